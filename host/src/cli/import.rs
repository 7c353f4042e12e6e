use super::{
    Failure, Outcome,
    args::Global,
    open,
    terminal::{GREEN, Terminal, UntilInterrupted},
    view,
};
use crate::{
    engine::{Engine, EngineError, ImportInput, ImportProgress, ImportReport},
    npy::Rows,
    store::Layer,
};
use clap::Args;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, BufRead, BufReader},
    path::{Path, PathBuf},
    time::Instant,
};

/// Take in records from lines of JSON
///
/// Reads what `magray export` wrote, and any lines with a `text` and, if they like, id, layer, kind,
/// title, tags, project, session, source, created_ms, last_access_ms, access_count, importance, score,
/// expires_ms, valid_from_ms, valid_to_ms, superseded_by and vector. A record is known by its id, else by
/// what it says, so the same file may be taken in twice. Vectors of another model are left, and such records
/// embedded anew.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray import notes.jsonl
  zcat ops.jsonl.gz | magray import -
  jq -c '{text: .body, tags: [.topic]}' posts.jsonl | magray import - --skip-bad
  magray import vectors.npy               the array and the records in vectors.jsonl")]
pub(super) struct Import {
    /// A file of lines, or a NumPy array (.npy) with such a file beside it; - is standard input
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Pass over lines that cannot be taken in, and tell of each
    #[arg(long)]
    skip_bad: bool,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    records: u64,
    new: u64,
    new_by_layer: BTreeMap<&'static str, u64>,
    updated: u64,
    unchanged: u64,
    expired: u64,
    bad: u64,
    bad_lines: Vec<BadLineJson<'a>>,
    verified: u64,
    vectors: u64,
    embedded: u64,
    broken_links: u64,
    blake3: &'a str,
    whole: Option<bool>,
    took_ms: f64,
}

#[derive(Serialize)]
struct BadLineJson<'a> {
    line: u64,
    reason: &'a str,
}

impl Import {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let start = Instant::now();
        let is_array = self.file.extension().is_some_and(|extension| extension == "npy");
        let lines = if is_array { self.file.with_extension("jsonl") } else { self.file.clone() };
        // Before anything is made.
        let mut input: Box<dyn BufRead> = match self.file == Path::new("-") {
            true => Box::new(io::stdin().lock()),
            false => Box::new(BufReader::new(read(&lines)?)),
        };
        let failed = Failure::io(format!("cannot read {}", self.file.display()));
        let array = match is_array {
            true => Some(Rows::open(BufReader::new(read(&self.file)?))),
            false => None,
        };
        let mut array = match array.transpose() {
            Ok(array) => array,
            Err(error) => return Err(failed(error)),
        };
        let engine = open(global, terminal)?;
        terminal.stop_gently();
        let report = {
            let mut row = || array.as_mut().map_or_else(|| Ok(Vec::new()), Rows::next);
            let rows = is_array.then_some(&mut row as &mut dyn FnMut() -> io::Result<Vec<f32>>);
            let input = ImportInput { lines: &mut *input, rows, skip_bad: self.skip_bad };
            import(&engine, terminal, input).map_err(|error| match error {
                EngineError::Io(error) => failed(error),
                error => error.into(),
            })?
        };
        super::upkeep(&engine);
        print(terminal, &report, start)?;
        if let Some(rows) = array.map(|array| array.left()).filter(|&left| left > 0) {
            return Err(Failure::Partly(format!("the array has {rows} rows more than there are records")));
        }
        if report.whole == Some(false) {
            return Err(Failure::Partly(
                "the file is cut short or was changed since it was exported: its count and digest are not those of \
                 its last line; what it holds is taken in. Take in the whole one, or, where it was changed on \
                 purpose, remove its first and last line"
                    .into(),
            ));
        }
        Ok(if report.records == 0 { Outcome::NothingFound } else { Outcome::Done })
    }
}

fn read(path: &Path) -> Result<File, Failure> {
    File::open(path).map_err(Failure::io(format!("cannot read {}", path.display())))
}

fn import(engine: &Engine, terminal: &Terminal, input: ImportInput<'_>) -> Result<ImportReport, EngineError> {
    let progress = terminal.progress("records");
    engine.import(&UntilInterrupted, input, &mut |now| match now {
        ImportProgress::Records { done, total } => {
            if let Some(total) = total {
                progress.0.set_length(total);
            }
            progress.0.set_position(done);
        }
        ImportProgress::Embedded(done) => progress.0.set_message(format!("{done} embedded")),
    })
}

fn print(terminal: &Terminal, report: &ImportReport, start: Instant) -> Result<(), Failure> {
    let new: u64 = report.new.iter().sum();
    for bad in &report.bad_lines {
        terminal.warn(&format!("line {}: {}", bad.line, bad.reason));
    }
    if report.bad > report.bad_lines.len() as u64 {
        terminal.warn(&format!("{} lines more were passed over", report.bad - report.bad_lines.len() as u64));
    }
    if let Some(model) = &report.foreign_model {
        terminal.hint(&format!(
            "the vectors that came along are of {model}, and another model is in force: the records were embedded anew"
        ));
    }
    if report.broken_links > 0 {
        terminal.warn(&format!(
            "{} said to be superseded by one that is not here",
            view::counted(report.broken_links, "record is")
        ));
    }
    if terminal.json {
        let new_by_layer = Layer::ALL.map(|layer| (layer.name(), report.new[layer as usize]));
        let bad = report.bad_lines.iter();
        return terminal.print_json(&ReportJson {
            records: report.records,
            new,
            new_by_layer: new_by_layer.into(),
            updated: report.updated,
            unchanged: report.unchanged,
            expired: report.expired,
            bad: report.bad,
            bad_lines: bad.map(|bad| BadLineJson { line: bad.line, reason: &bad.reason }).collect(),
            verified: report.verified,
            vectors: report.vectors,
            embedded: report.embedded,
            broken_links: report.broken_links,
            blake3: &report.blake3,
            whole: report.whole,
            took_ms: start.elapsed().as_secs_f64() * 1000.0,
        });
    }
    let mut parts = vec![
        view::counted(report.records, "record"),
        format!("{new} new"),
        format!("{} updated", report.updated),
        format!("{} unchanged", report.unchanged),
    ];
    let counts = [
        (report.expired, "past their time"),
        (report.bad, "passed over"),
        (report.vectors, "with their vectors"),
        (report.embedded, "embedded"),
    ];
    parts
        .extend(counts.iter().filter(|(count, _)| *count > 0).map(|(count, what)| format!("{count} {what}")));
    terminal.print(format_args!(
        "{GREEN}imported{GREEN:#} {} in {:.1} s; {} found in the database",
        parts.join(", "),
        start.elapsed().as_secs_f64(),
        report.verified
    ))?;
    let checked = if report.whole == Some(true) { ", as it was exported" } else { "" };
    terminal.print(format_args!("blake3 {}{checked}", report.blake3))
}
