//! Texts from arguments and files, one after the other.
use super::super::Failure;
use clap::ValueEnum;
use serde_json::{Map, Value};
use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read as _},
    path::PathBuf,
};

/// How a file holds texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// Each line is a text
    Lines,
    /// Each line is a JSON object
    Jsonl,
    /// The file is one text
    Whole,
}

/// A text, and the id that its input gave it.
#[derive(Debug)]
pub(super) struct Text {
    pub(super) id: Option<Value>,
    pub(super) text: String,
}

/// Where texts come from.
#[derive(Debug)]
pub(super) enum Source {
    Arguments(Vec<String>),
    File { path: PathBuf, format: Format },
}

type Texts<'a> = Box<dyn Iterator<Item = Result<Text, Failure>> + 'a>;

impl Source {
    /// A file, `-` for standard input, in the format that was asked for or that its name tells.
    pub(super) fn file(path: PathBuf, format: Option<Format>) -> Self {
        let is_jsonl =
            path.extension().is_some_and(|extension| extension == "jsonl" || extension == "ndjson");
        let format = format.unwrap_or(if is_jsonl { Format::Jsonl } else { Format::Lines });
        Self::File { path, format }
    }

    /// The texts, none of more than `longest` bytes.
    pub(super) fn texts<'a>(
        self,
        field: &'a str,
        id_field: &'a str,
        longest: u64,
    ) -> Result<Texts<'a>, Failure> {
        let (path, format) = match self {
            Self::Arguments(texts) => {
                let texts = texts.into_iter().enumerate();
                return Ok(Box::new(texts.map(|(number, text)| {
                    let place = || format!("text {}", number + 1);
                    Ok(Text { id: None, text: not_empty(text, place)? })
                })));
            }
            Self::File { path, format } => (path, format),
        };
        let is_stdin = path.as_os_str() == "-";
        let name = if is_stdin { "standard input".to_owned() } else { path.display().to_string() };
        let input: Box<dyn BufRead> = if is_stdin {
            Box::new(BufReader::new(io::stdin()))
        } else {
            let file = File::open(&path).map_err(Failure::io(format!("cannot read {name}")))?;
            Box::new(BufReader::new(file))
        };
        let mut pieces = Pieces { input, name, longest, is_whole: format == Format::Whole, number: 0 };
        Ok(Box::new(std::iter::from_fn(move || {
            let piece = pieces.next()?;
            Some(piece.and_then(|text| {
                let place = || pieces.place();
                match format {
                    Format::Jsonl => from_json(&text, field, id_field, place),
                    _ => Ok(Text { id: None, text: not_empty(text, place)? }),
                }
            }))
        })))
    }
}

fn not_empty(text: String, place: impl Fn() -> String) -> Result<String, Failure> {
    if text.trim().is_empty() {
        return Err(Failure::Usage(format!("{}: the text is empty", place())));
    }
    Ok(text)
}

fn from_json(line: &str, field: &str, id_field: &str, place: impl Fn() -> String) -> Result<Text, Failure> {
    let wrong = |what: String| Failure::Usage(format!("{}: {what}", place()));
    let mut object: Map<String, Value> =
        serde_json::from_str(line).map_err(|error| wrong(format!("it is no JSON object: {error}")))?;
    match object.remove(field) {
        Some(Value::String(text)) => Ok(Text { id: object.remove(id_field), text: not_empty(text, &place)? }),
        Some(_) => Err(wrong(format!("the field '{field}' is no string"))),
        None => {
            let known: Vec<&str> = object.keys().map(String::as_str).collect();
            Err(wrong(format!("there is no field '{field}'; --field names another of {}", known.join(", "))))
        }
    }
}

/// The lines of an input, or all of it.
struct Pieces {
    input: Box<dyn BufRead>,
    name: String,
    longest: u64,
    is_whole: bool,
    /// Of the piece that was read last, from 1.
    number: u64,
}

impl Pieces {
    fn next(&mut self) -> Option<Result<String, Failure>> {
        if self.is_whole && self.number > 0 {
            return None;
        }
        self.number += 1;
        let mut bytes = Vec::new();
        // The line's end, and one byte that shows that it is too long.
        let mut limited = (&mut self.input).take(self.longest.saturating_add(2));
        let read = match self.is_whole {
            true => limited.read_to_end(&mut bytes),
            false => limited.read_until(b'\n', &mut bytes),
        };
        match read {
            Ok(0) if !self.is_whole => return None,
            Ok(_) => {}
            Err(error) => return Some(Err(Failure::io(format!("cannot read {}", self.name))(error))),
        }
        if !self.is_whole {
            bytes.pop_if(|last| *last == b'\n');
            bytes.pop_if(|last| *last == b'\r');
        }
        if bytes.len() as u64 > self.longest {
            return Some(Err(Failure::Usage(format!(
                "{}: the text has more than {} bytes; raise [ingest] max_file_bytes",
                self.place(),
                self.longest
            ))));
        }
        Some(String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Failure::Usage(format!("{}: byte {at} is not UTF-8; convert the text first", self.place()))
        }))
    }

    fn place(&self) -> String {
        if self.is_whole { self.name.clone() } else { format!("{}, line {}", self.name, self.number) }
    }
}
