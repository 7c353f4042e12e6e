//! `magray embed`: texts in, vectors out, in constant memory.
mod input;
mod output;

use super::{
    Failure, Outcome,
    args::Global,
    setup,
    terminal::{Terminal, UntilInterrupted},
    view,
};
use crate::{
    engine::{Engine, EngineError},
    npy::Dtype,
};
use clap::{Args, ValueEnum};
use input::{Format, Source, Text};
use magray_plugin_api::Role;
use output::{Encoding, Sink};
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Texts embedded at a time: enough to sort them by length, and to write them while few wait.
const BATCH_TEXTS: usize = 4096;
/// Bytes of text after which a batch is embedded though it has fewer.
const BATCH_BYTES: usize = 8 << 20;

/// Turn texts into vectors, without storing anything
///
/// Prints one JSON object a text, {"id":..,"embedding":[..]}, or writes a NumPy array. The id is that of the
/// input, else the number of the text, from 0. Vectors have length 1; one of a text of which the model knows
/// no word is zero. Input is read, embedded and written piece by piece, however long it is.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray embed \"how are backups made\" --role query
  cut -f2 titles.tsv | magray embed --stdin --output titles.npy
  magray embed --file corpus.jsonl --field body --id-field _id > vectors.jsonl
  magray embed --file a.txt --file b.txt --format whole --encoding base64
  magray --backend onnx --model all-MiniLM-L6-v2 embed --stdin --output v.npy --dtype f16")]
pub(super) struct Embed {
    /// Texts
    #[arg(value_name = "TEXT", required_unless_present_any = ["file", "stdin"])]
    texts: Vec<String>,
    /// Read texts from this file; may be given several times; - is standard input
    #[arg(long, short, value_name = "FILE")]
    file: Vec<PathBuf>,
    /// Read texts from standard input
    #[arg(long)]
    stdin: bool,
    /// How files hold texts [default: jsonl for .jsonl and .ndjson, else lines]
    #[arg(long, value_name = "FORMAT")]
    format: Option<Format>,
    /// In JSONL, the field that holds the text
    #[arg(long, value_name = "NAME", default_value = "text")]
    field: String,
    /// In JSONL, the field that holds the id
    #[arg(long, value_name = "NAME", default_value = "id")]
    id_field: String,
    /// What the texts are; some models embed questions otherwise
    #[arg(long, value_name = "ROLE", default_value = "passage")]
    role: RoleName,
    /// Write here: a NumPy array where the name ends in .npy, else JSONL
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Numbers of the NumPy array
    #[arg(long, value_name = "TYPE", default_value = "f32")]
    dtype: Dtype,
    /// How JSONL holds a vector: numbers, or base64 of little-endian f32
    #[arg(long, value_name = "ENCODING", default_value = "float")]
    encoding: Encoding,
    /// Repeat each text in JSONL
    #[arg(long)]
    with_text: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RoleName {
    /// A question
    Query,
    /// A text that answers
    Passage,
}

/// What --json prints where the vectors go to a file.
#[derive(Serialize)]
struct SummaryJson<'a> {
    output: &'a PathBuf,
    texts: u64,
    /// Texts of which the model knows no word.
    unknown: u64,
    model: &'a str,
    dim: usize,
    took_ms: f64,
}

/// What was done so far.
#[derive(Default)]
struct Done {
    texts: u64,
    /// Texts of which the model knows no word.
    zero: u64,
}

impl Embed {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let engine = Engine::open_detached(setup(global, terminal)?)?;
        terminal.stop_gently();
        let info = engine.embedding()?.info().clone();
        let mut sink =
            Sink::open(self.output.as_deref(), info.dim, self.dtype, self.encoding, self.with_text)?;
        let start = Instant::now();
        let mut done = Done::default();
        {
            let progress = terminal.progress("texts");
            let mut batch = Vec::new();
            let mut bytes = 0;
            let longest = engine.setup().config.ingest.max_file_bytes;
            for source in self.sources() {
                for text in source.texts(&self.field, &self.id_field, longest)? {
                    let text = text?;
                    bytes += text.text.len();
                    batch.push(text);
                    if batch.len() == BATCH_TEXTS || bytes >= BATCH_BYTES {
                        // There is more, so it will take long enough for a backend to fail.
                        engine.embedding()?.keep_standby();
                        self.embed(&engine, &std::mem::take(&mut batch), &mut sink, &mut done)?;
                        progress.0.set_position(done.texts);
                        bytes = 0;
                    }
                }
            }
            self.embed(&engine, &batch, &mut sink, &mut done)?;
        }
        if done.texts == 0 {
            return Err(Failure::Usage("there is no text to embed".into()));
        }
        sink.finish(done.texts)?;
        let took = start.elapsed().as_secs_f64();
        if let (true, Some(output)) = (terminal.json, &self.output) {
            terminal.print_json(&SummaryJson {
                output,
                texts: done.texts,
                unknown: done.zero,
                model: &info.model,
                dim: info.dim,
                took_ms: took * 1000.0,
            })?;
        }
        terminal.hint(&format!(
            "{} in {took:.1} s ({:.0} a second): {}, {} wide",
            view::counted(done.texts, "text"),
            done.texts as f64 / took.max(1e-9),
            info.model,
            info.dim
        ));
        if done.zero > 0 {
            terminal.warn(&format!(
                "the model knows no word of {}, so their vectors are zero",
                view::counted(done.zero, "text")
            ));
        }
        Ok(Outcome::Done)
    }

    /// Where the texts come from, in the order of the output.
    fn sources(&self) -> Vec<Source> {
        let mut sources = Vec::new();
        if !self.texts.is_empty() {
            sources.push(Source::Arguments(self.texts.clone()));
        }
        let files = self.file.iter().cloned().chain(self.stdin.then(|| PathBuf::from("-")));
        sources.extend(files.map(|path| Source::file(path, self.format)));
        sources
    }

    fn embed(
        &self,
        engine: &Engine,
        batch: &[Text],
        sink: &mut Sink,
        done: &mut Done,
    ) -> Result<(), Failure> {
        let role = match self.role {
            RoleName::Query => Role::Query,
            RoleName::Passage => Role::Passage,
        };
        let texts: Vec<&str> = batch.iter().map(|text| text.text.as_str()).collect();
        let stopped = |error| match EngineError::from(error) {
            EngineError::Interrupted => Failure::Stopped(match self.output {
                Some(_) => "interrupted; nothing was written".into(),
                None => format!("interrupted after {}", view::counted(done.texts, "text")),
            }),
            error => error.into(),
        };
        let embedding = engine.embedding()?;
        let vectors = embedding.embed(&UntilInterrupted, &texts, role).map_err(stopped)?;
        for (text, vector) in batch.iter().zip(vectors.chunks_exact(embedding.info().dim)) {
            sink.write(text, done.texts, vector)?;
            done.texts += 1;
            done.zero += u64::from(vector.iter().all(|&v| v == 0.0));
        }
        sink.flush()
    }
}
