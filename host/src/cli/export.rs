use super::{
    Failure, Outcome,
    args::{Global, Select},
    open_to_read,
    terminal::{GREEN, Terminal, UntilInterrupted},
    view,
    whole_file::WholeFile,
};
use crate::{
    engine::{Engine, EngineError, ExportReport, ExportVectors, now_ms},
    npy::{self, Dtype},
    store::{Filter, Layer},
};
use clap::{Args, ValueEnum};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    io::{self, BufWriter, Write},
    path::{Path, PathBuf},
    time::Instant,
};

/// Write records as lines of JSON, or vectors as a NumPy array
///
/// Each line is a record with every field; a first line says what the file is, and a last one counts and
/// digests it, so that `magray import` can tell whether it is whole. With --format npy the vectors go to
/// FILE.npy, one row a record, and the records to FILE.jsonl in the same order.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray export --out notes.jsonl --vectors
  magray export --project magray --tag ops | gzip > ops.jsonl.gz
  magray export --format npy --dtype f16 --out vectors.npy
  magray export | jq -r 'select(.text) | .text'")]
pub(super) struct Export {
    /// What to write
    #[arg(long, value_enum, default_value_t = Format::Jsonl)]
    format: Format,
    /// The file to write; - is standard output
    #[arg(long, short, value_name = "FILE", default_value = "-")]
    out: PathBuf,
    /// Write the vectors of the present model too
    #[arg(long)]
    vectors: bool,
    /// Numbers of a NumPy array
    #[arg(long, value_enum, default_value_t = Dtype::F32)]
    dtype: Dtype,
    #[command(flatten)]
    select: Select,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Format {
    Jsonl,
    Npy,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    file: String,
    /// Where the array is.
    #[serde(skip_serializing_if = "Option::is_none")]
    array: Option<String>,
    records: u64,
    layers: BTreeMap<&'static str, u64>,
    vectors: u64,
    left_out: u64,
    blake3: &'a str,
    took_ms: f64,
}

impl Export {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let start = Instant::now();
        let to_stdout = self.out == Path::new("-");
        if self.format == Format::Npy && to_stdout {
            return Err(Failure::Usage(
                "an array needs a file, and its records one beside it: give --out".into(),
            ));
        }
        if self.format == Format::Jsonl && self.dtype != Dtype::F32 {
            return Err(Failure::Usage("--dtype is for --format npy".into()));
        }
        let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
        terminal.stop_gently();
        let filter = Filter { not_expired_at_ms: Some(now_ms()), ..self.select.filter() };
        let (report, file, array) = match self.format {
            Format::Npy => {
                let lines = self.out.with_extension("jsonl");
                if lines == self.out {
                    return Err(Failure::Usage(
                        "call the array FILE.npy: its records go to FILE.jsonl".into(),
                    ));
                }
                let report = self.to_array(&engine, terminal, &filter, &lines)?;
                (report, lines.display().to_string(), Some(self.out.display().to_string()))
            }
            Format::Jsonl => {
                let vectors = if self.vectors { ExportVectors::Inline } else { ExportVectors::Omit };
                let report = if to_stdout {
                    let mut out = BufWriter::new(io::stdout().lock());
                    let failed = Failure::io("cannot write to standard output");
                    export(&engine, terminal, &filter, vectors, &mut out).map_err(output(failed))?
                } else {
                    let mut out = WholeFile::create(&self.out)?;
                    let report = export(&engine, terminal, &filter, vectors, &mut out);
                    let report = report.map_err(output(out.failure()))?;
                    out.finish(&[])?;
                    report
                };
                (report, self.out.display().to_string(), None)
            }
        };
        let words = format!("{}, blake3 {}", counts(&report), report.blake3);
        if to_stdout {
            terminal.hint(&format!("exported {words}"));
        } else if terminal.json {
            let layers = Layer::ALL.map(|layer| (layer.name(), report.layers[layer as usize]));
            terminal.print_json(&ReportJson {
                file,
                array,
                records: report.records,
                layers: layers.into(),
                vectors: report.vectors,
                left_out: report.left_out,
                blake3: &report.blake3,
                took_ms: start.elapsed().as_secs_f64() * 1000.0,
            })?;
        } else {
            terminal.print(format_args!("{GREEN}exported{GREEN:#} {words}"))?;
        }
        if report.left_out > 0 {
            terminal.hint(&format!(
                "{} without a vector left out; `magray reembed` embeds them",
                view::counted(report.left_out, "record")
            ));
        }
        Ok(if report.records == 0 { Outcome::NothingFound } else { Outcome::Done })
    }

    fn to_array(
        &self,
        engine: &Engine,
        terminal: &Terminal,
        filter: &Filter,
        lines: &Path,
    ) -> Result<ExportReport, Failure> {
        let (mut array, mut out) = (WholeFile::create(&self.out)?, WholeFile::create(lines)?);
        let failed = Failure::io(format!("cannot write {} and {}", self.out.display(), lines.display()));
        let dim = engine.dim()?;
        let written = array.write_all(&[0; npy::HEADER]);
        written.map_err(array.failure())?;
        let mut row = |row: &[f32]| array.write_all(&self.dtype.encode(row));
        let report = export(engine, terminal, filter, ExportVectors::Rows(&mut row), &mut out);
        let report = report.map_err(output(failed))?;
        // The records last: where they are, the array is.
        array.finish(&npy::header(self.dtype, report.records, dim))?;
        out.finish(&[])?;
        Ok(report)
    }
}

fn export(
    engine: &Engine,
    terminal: &Terminal,
    filter: &Filter,
    vectors: ExportVectors<'_>,
    out: &mut dyn Write,
) -> Result<ExportReport, EngineError> {
    let progress = terminal.progress("records");
    engine.export(&UntilInterrupted, filter, vectors, out, &mut |done, total| {
        progress.0.set_length(total);
        progress.0.set_position(done);
    })
}

fn counts(report: &ExportReport) -> String {
    let vectors = match report.vectors {
        0 => String::new(),
        vectors => format!(" and {}", view::counted(vectors, "vector")),
    };
    format!("{}{vectors}", view::counted(report.records, "record"))
}

/// Says what could not be written, and that an export that was stopped is none.
fn output(failed: impl FnOnce(io::Error) -> Failure) -> impl FnOnce(EngineError) -> Failure {
    move |error| match error {
        EngineError::Io(error) => failed(error),
        EngineError::Interrupted => Failure::Stopped("interrupted; the export is not whole".into()),
        error => error.into(),
    }
}
