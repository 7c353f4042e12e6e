use super::Subject;
use crate::{
    bench::{Backend, DataSets, Limit, Measurement, Quality, QualityData, measure_quality},
    cli::{
        Failure, Outcome,
        args::Global,
        terminal::{BOLD, DIM, GREEN, RED, Terminal, UntilInterrupted},
        view,
    },
};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Judge the vectors of embedding backends on data sets with known answers
#[derive(Debug, Args)]
#[command(after_help = "\
Files may be packed (.zst, .gz). A data folder is a retrieval set in BEIR's layout (corpus.jsonl,
queries.jsonl, qrels/SPLIT.tsv), or has folders that are, and a folder `sts` of scored pairs (TSV:
score, sentence, sentence) and a folder `ref` of reference vectors (JSON).

Where the figure of a model on a set is published, the difference is shown.

Examples:
  magray bench quality --data data/scifact
  magray bench quality --data data --backends cpu,onnx --model all-MiniLM-L6-v2 --check
  magray bench quality --sts pairs.tsv --limit 500 --json")]
pub(in crate::cli) struct QualityCommand {
    #[command(flatten)]
    subject: Subject,
    /// Folder of data sets
    #[arg(long, value_name = "DIR", required_unless_present_any = ["sts", "reference"])]
    data: Option<PathBuf>,
    /// File of scored pairs; may be given several times
    #[arg(long, value_name = "FILE")]
    sts: Vec<PathBuf>,
    /// File of reference vectors; may be given several times
    #[arg(long = "ref", value_name = "FILE")]
    reference: Vec<PathBuf>,
    /// Use only the first N pairs, reference vectors and queries of each set, and about N documents besides those
    /// that are judged
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    limit: Option<u32>,
    /// Fail where a figure is farther from the known one than the precision allows
    #[arg(long)]
    check: bool,
}

#[derive(Serialize)]
struct QualityJson<'a> {
    backend: &'a str,
    model: &'a str,
    dim: usize,
    device: &'a str,
    engine: &'a str,
    precision: &'a str,
    fallback_reason: &'a str,
    texts: usize,
    texts_per_s: f64,
    tokens_per_s: f64,
    measurements: Vec<MeasurementJson<'a>>,
    skipped: &'a [String],
}

#[derive(Serialize)]
struct MeasurementJson<'a> {
    set: &'a str,
    metric: &'static str,
    value: f64,
    reference: Option<f64>,
    difference: Option<f64>,
    tolerance: Option<f64>,
    off: bool,
}

impl<'a> From<&'a Measurement> for MeasurementJson<'a> {
    fn from(found: &'a Measurement) -> Self {
        Self {
            set: &found.set,
            metric: found.metric,
            value: found.value,
            reference: found.reference,
            difference: found.difference(),
            tolerance: found.reference.map(|_| found.tolerance),
            off: found.is_off(),
        }
    }
}

impl QualityCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let mut sets = match &self.data {
            Some(dir) => DataSets::find(dir)?,
            None => DataSets::default(),
        };
        sets.pairs.extend(self.sts);
        sets.references.extend(self.reference);
        let (setup, backends) = self.subject.resolve(global, terminal)?;
        let data = QualityData::read(&sets, Limit(self.limit.map(|limit| limit as usize)))?;
        let plugins = setup.plugins();
        let mut off = 0;
        for name in backends {
            let backend = Backend::open(&setup, &plugins, &name)?;
            let quality = {
                let progress = terminal.progress("texts");
                progress.0.set_length(data.texts() as u64);
                progress.0.set_message(name);
                measure_quality(&UntilInterrupted, &backend, &data, &mut |texts| {
                    progress.0.inc(texts as u64)
                })?
            };
            off += quality.measurements.iter().filter(|found| found.is_off()).count();
            print(terminal, &quality)?;
        }
        if self.check && off > 0 {
            let figures = view::counted(off as u64, "figure");
            return Err(Failure::Partly(format!(
                "{figures} farther from the known than the precision allows"
            )));
        }
        Ok(Outcome::Done)
    }
}

fn print(terminal: &Terminal, quality: &Quality) -> Result<(), Failure> {
    let Quality { backend, model, dim, device, measurements, skipped, texts, tokens, took } = quality;
    let seconds = took.as_secs_f64();
    let (texts_per_s, tokens_per_s) = (*texts as f64 / seconds, *tokens as f64 / seconds);
    if terminal.json {
        return terminal.print_json(&QualityJson {
            backend,
            model,
            dim: *dim,
            device: &device.device,
            engine: &device.engine,
            precision: &device.precision,
            fallback_reason: &device.fallback_reason,
            texts: *texts,
            texts_per_s,
            tokens_per_s,
            measurements: measurements.iter().map(Into::into).collect(),
            skipped,
        });
    }
    terminal.print(format_args!(
        "{BOLD}{backend}{BOLD:#}  {model}, {dim} wide, on {} ({}, {})\n{DIM}{texts} texts, {texts_per_s:.0} texts/s, {tokens_per_s:.0} tokens/s{DIM:#}",
        device.device, device.engine, device.precision
    ))?;
    if !device.fallback_reason.is_empty() {
        terminal.warn(&format!("{backend} did not run where it was asked to: {}", device.fallback_reason));
    }
    let width = measurements.iter().map(|found| found.set.len()).max().unwrap_or(0);
    for found in measurements {
        let Measurement { set, metric, value, reference, tolerance } = found;
        let compared = match (reference, found.difference(), found.is_off()) {
            (Some(reference), Some(difference), true) => {
                format!("  {reference:.5}  {RED}{difference:+.6}, more than {tolerance}{RED:#}")
            }
            (Some(reference), Some(difference), false) => {
                format!("  {reference:.5}  {GREEN}{difference:+.6}{GREEN:#}")
            }
            _ => String::new(),
        };
        terminal.print(format_args!("  {set:<width$}  {metric:<30} {value:>9.6}{compared}"))?;
    }
    for set in skipped {
        terminal.hint(&format!("skipped {set}"));
    }
    Ok(())
}
