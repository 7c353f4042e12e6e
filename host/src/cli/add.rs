use super::{
    Failure, Outcome, args,
    args::Global,
    open,
    terminal::{GREEN, Terminal, UntilInterrupted},
    view,
};
use crate::{
    engine::{Engine, NewMemory},
    store::{Added, Layer, Outcome as Stored},
};
use clap::Args;
use serde::Serialize;
use std::{
    fs::File,
    io::{self, BufRead as _, Read},
    path::PathBuf,
};

/// Lines stored together.
const BATCH: usize = 1000;

/// Remember a text
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray add \"The staging key rotates on Mondays\" --tag ops --layer assets
  git log -1 --format=%B | magray add - --kind commit --project magray
  magray add --lines --file quotes.txt
  magray add \"The staging key rotates on Fridays\" --supersedes 01J8ZQ3K
  magray add \"The office is closed\" --valid-from 2026-12-24 --valid-to 2027-01-02")]
pub(super) struct Add {
    /// The text; - reads it from standard input
    #[arg(required_unless_present = "file", conflicts_with = "file")]
    text: Option<String>,
    /// Read the text from this file
    #[arg(long, short, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Each line of the input is a text of its own; empty ones are skipped
    #[arg(long)]
    lines: bool,
    /// How long it matters: interact for a day, insights for a season, assets for good
    #[arg(long, value_name = "LAYER", value_parser = args::layer())]
    layer: Option<Layer>,
    /// What it is [default: note]
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// A label; may be given several times
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// The project that it belongs to
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// The session that it was made in
    #[arg(long, value_name = "NAME")]
    session: Option<String>,
    /// What it is called; the words of a title are searched too
    #[arg(long, value_name = "TITLE")]
    title: Option<String>,
    /// Id of a record that this one replaces: from when this one is true, that one is not found any more, but by
    /// `search --as-of`; may be given several times
    #[arg(long, value_name = "ID", conflicts_with = "lines")]
    supersedes: Vec<String>,
    /// Since when it is true: 2026-03-01, 2026-03-01T12:00:00Z (UTC), 7d for seven days ago, +7d for in seven days
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    valid_from: Option<u64>,
    /// From when on it is not true any more, and so not found
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    valid_to: Option<u64>,
}

#[derive(Serialize)]
struct AddedJson<'a> {
    id: &'a str,
    layer: &'a str,
    outcome: &'a str,
}

impl Add {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        if self.lines && self.file.is_none() && self.text.as_deref() != Some("-") {
            return Err(Failure::Usage("--lines reads its texts from standard input (-) or --file".into()));
        }
        let engine = open(global, terminal)?;
        let stored = match (&self.file, self.text.as_deref()) {
            (Some(path), _) => {
                let name = path.display().to_string();
                let file = File::open(path).map_err(Failure::io(format!("cannot read {name}")))?;
                self.read(&engine, terminal, file, &name)?
            }
            (None, Some("-")) => self.read(&engine, terminal, io::stdin(), "standard input")?,
            (None, text) => self.store(&engine, terminal, vec![text.unwrap_or_default().to_owned()])?,
        };
        if stored == 0 {
            return Err(Failure::Usage("there is no text to add".into()));
        }
        super::upkeep(&engine);
        Ok(Outcome::Done)
    }

    fn read(
        &self,
        engine: &Engine,
        terminal: &Terminal,
        input: impl Read,
        name: &str,
    ) -> Result<usize, Failure> {
        // One byte more than is allowed is enough to see that it is too much.
        let limit = engine.setup().config.ingest.max_file_bytes + 1;
        let cannot_read = || Failure::io(format!("cannot read {name}"));
        let text = |bytes: Vec<u8>, place: String| {
            if bytes.len() as u64 == limit {
                // A cut text would not be what was meant, and its last character may be half.
                return Err(Failure::Usage(format!(
                    "{place}: the text has more than {} bytes; raise [ingest] max_file_bytes, or use `magray index`, which splits files",
                    limit - 1
                )));
            }
            String::from_utf8(bytes).map_err(|error| {
                let at = error.utf8_error().valid_up_to();
                Failure::Usage(format!("{place}: byte {at} is not UTF-8; convert the text to UTF-8 first"))
            })
        };
        if !self.lines {
            let mut bytes = Vec::new();
            input.take(limit).read_to_end(&mut bytes).map_err(cannot_read())?;
            return self.store(engine, terminal, vec![text(bytes, name.to_owned())?]);
        }
        let progress = terminal.progress("lines");
        let mut input = io::BufReader::new(input);
        let (mut batch, mut number, mut stored) = (Vec::new(), 0, 0);
        loop {
            let mut bytes = Vec::new();
            let read = (&mut input).take(limit).read_until(b'\n', &mut bytes).map_err(cannot_read())?;
            number += 1;
            let line = text(bytes, format!("{name}, line {number}"))?;
            if !line.trim().is_empty() {
                batch.push(line);
            }
            if batch.len() == BATCH || (read == 0 && !batch.is_empty()) {
                stored += self.store(engine, terminal, std::mem::take(&mut batch))?;
                progress.0.set_position(stored as u64);
            }
            if read == 0 {
                return Ok(stored);
            }
        }
    }

    /// Stores the texts and prints an answer for each once they are durable.
    fn store(&self, engine: &Engine, terminal: &Terminal, texts: Vec<String>) -> Result<usize, Failure> {
        let memories = texts.into_iter().map(|text| NewMemory {
            text,
            layer: self.layer,
            kind: self.kind.clone(),
            tags: self.tag.clone(),
            project: self.project.clone(),
            session: self.session.clone(),
            title: self.title.clone(),
            valid_from_ms: self.valid_from,
            valid_to_ms: self.valid_to,
            supersedes: self.supersedes.clone(),
        });
        let added = engine.add(&UntilInterrupted, memories.collect())?;
        for added in &added {
            match self.print(engine, terminal, added) {
                // Who reads the answers has gone, and still wants the texts stored.
                Err(failure) if failure.is_closed_pipe() => break,
                printed => printed?,
            }
        }
        Ok(added.len())
    }

    fn print(&self, engine: &Engine, terminal: &Terminal, added: &Added) -> Result<(), Failure> {
        let layer = self.layer.unwrap_or_else(|| engine.default_layer());
        let outcome = match added.outcome {
            Stored::Stored => "stored",
            Stored::Refreshed => "refreshed",
        };
        if terminal.json {
            return terminal.print_json(&AddedJson { id: &added.ulid, layer: layer.name(), outcome });
        }
        if added.outcome == Stored::Refreshed {
            return terminal.print(format_args!("{GREEN}refreshed{GREEN:#} {} in {layer}", added.ulid));
        }
        let until = engine.expiry(layer);
        let until = until.map_or_else(|| "for good".to_owned(), |ms| format!("until {}", view::day(ms)));
        terminal.print(format_args!("{GREEN}stored{GREEN:#} {} in {layer}, kept {until}", added.ulid))
    }
}
