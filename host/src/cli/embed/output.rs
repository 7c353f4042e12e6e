//! Vectors as lines of JSON, or as a NumPy array. A file appears under its name when it is whole.
use super::{
    super::{Failure, whole_file::WholeFile},
    input::Text,
};
use crate::npy::{self, Dtype};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use serde::Serialize;
use serde_json::Value;
use std::{
    io::{self, BufWriter, Write},
    path::Path,
};

/// How a line of JSON holds a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Encoding {
    Float,
    Base64,
}

#[derive(Serialize)]
struct LineJson<'a> {
    id: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    embedding: VectorJson<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum VectorJson<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// Takes vectors.
pub(super) struct Sink {
    out: Out,
    form: Form,
}

enum Out {
    Stdout(BufWriter<io::Stdout>),
    File(WholeFile),
}

enum Form {
    Jsonl { encoding: Encoding, with_text: bool },
    Npy { dtype: Dtype, dim: usize },
}

impl Sink {
    /// Standard output, or a file beside `output` that takes its name in the end.
    pub(super) fn open(
        output: Option<&Path>,
        dim: usize,
        dtype: Dtype,
        encoding: Encoding,
        with_text: bool,
    ) -> Result<Self, Failure> {
        let is_npy = output.is_some_and(|path| path.extension().is_some_and(|extension| extension == "npy"));
        if !is_npy && dtype != Dtype::F32 {
            return Err(Failure::Usage("--dtype is for a NumPy array: name one by --output FILE.npy".into()));
        }
        if is_npy && (encoding != Encoding::Float || with_text) {
            return Err(Failure::Usage(
                "a NumPy array holds numbers only: --encoding and --with-text are for JSONL".into(),
            ));
        }
        let form = if is_npy { Form::Npy { dtype, dim } } else { Form::Jsonl { encoding, with_text } };
        let out = match output {
            None => Out::Stdout(BufWriter::new(io::stdout())),
            Some(path) => Out::File(WholeFile::create(path)?),
        };
        let mut sink = Self { out, form };
        if is_npy {
            sink.bytes(&[0; npy::HEADER])?;
        }
        Ok(sink)
    }

    /// Writes the vector of a text; `number` is its id where it has none.
    pub(super) fn write(&mut self, text: &Text, number: u64, vector: &[f32]) -> Result<(), Failure> {
        match self.form {
            Form::Npy { dtype, .. } => self.bytes(&dtype.encode(vector)),
            Form::Jsonl { encoding, with_text } => {
                let number = Value::from(number);
                let embedding = match encoding {
                    Encoding::Float => VectorJson::Float(vector),
                    Encoding::Base64 => {
                        let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                        VectorJson::Base64(STANDARD.encode(bytes))
                    }
                };
                let id = text.id.as_ref().unwrap_or(&number);
                let line = LineJson { id, text: with_text.then_some(&text.text), embedding };
                let mut line =
                    serde_json::to_vec(&line).map_err(|error| self.failure()(io::Error::from(error)))?;
                line.push(b'\n');
                self.bytes(&line)
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match &mut self.out {
            Out::Stdout(out) => out.write_all(bytes),
            Out::File(file) => file.write_all(bytes),
        };
        written.map_err(self.failure())
    }

    /// Hands on what is buffered.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        let flushed = match &mut self.out {
            Out::Stdout(out) => out.flush(),
            Out::File(file) => file.flush(),
        };
        flushed.map_err(self.failure())
    }

    /// Completes the output, which has `rows` vectors.
    pub(super) fn finish(mut self, rows: u64) -> Result<(), Failure> {
        self.flush()?;
        match (self.out, self.form) {
            (Out::Stdout(_), _) => Ok(()),
            (Out::File(file), Form::Npy { dtype, dim }) => file.finish(&npy::header(dtype, rows, dim)),
            (Out::File(file), Form::Jsonl { .. }) => file.finish(&[]),
        }
    }

    fn failure(&self) -> Box<dyn FnOnce(io::Error) -> Failure> {
        match &self.out {
            Out::Stdout(_) => Box::new(Failure::io("cannot write to standard output")),
            Out::File(file) => Box::new(file.failure()),
        }
    }
}
