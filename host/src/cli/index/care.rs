//! `magray index verify | rebuild | compact | stats`: what is done with the index and not with files.
use super::super::{
    Failure, Outcome, args,
    args::Global,
    open, open_to_read,
    sync::{Summary, run_sync},
    terminal::{BOLD, GREEN, RED, Terminal, WithProgress},
    view,
};
use crate::{
    engine::EngineError,
    indexing::{Extent, LayerIndexStats, LayerVerdict},
    store::Layer,
};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde::Serialize;

#[derive(Debug, Subcommand)]
pub(in super::super) enum Care {
    Verify(Verify),
    Rebuild(Rebuild),
    Compact(Compact),
    Stats(Stats),
}

/// Compare the index with what is stored: every byte of its files, every id, and a sample of answers
///
/// Exits with 3 where anything is wrong. Nothing is lost then: the index is made of what is stored, and
/// `magray index rebuild` makes it anew.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray index verify
  magray --index hnsw index verify --layer assets --json")]
pub(in super::super) struct Verify {
    /// Only this layer
    #[arg(long, value_name = "LAYER", value_parser = args::layer())]
    layer: Option<Layer>,
}

/// Build the index anew from what is stored; searches go on with the old one until it is ready
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray index rebuild
  magray index rebuild --layer insights")]
pub(in super::super) struct Rebuild {
    /// Only this layer
    #[arg(long, value_name = "LAYER", value_parser = args::layer())]
    layer: Option<Layer>,
}

/// Build all changes into the index and merge its parts into as few as can be
///
/// There is no need to: parts are merged, and what was removed from them makes room, by themselves.
/// Fewer parts make a search a little faster.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray index compact
  magray index compact --layer assets --json")]
pub(in super::super) struct Compact {
    /// Only this layer
    #[arg(long, value_name = "LAYER", value_parser = args::layer())]
    layer: Option<Layer>,
}

/// Show what the index holds: parts, vectors, bytes, and what waits to be built in
///
/// `recall` is the share of the ten nearest that sampled searches found when a part was built, `live` that of
/// searches as they came, which `magray sync --watch` checks.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray index stats
  magray --index hnsw index stats --json")]
pub(in super::super) struct Stats {}

#[derive(Serialize)]
struct VerdictJson<'a> {
    layer: &'static str,
    ok: bool,
    segments: usize,
    rows: u64,
    bytes: u64,
    /// Share of the ten nearest that sampled searches found, and how many searches.
    recall: Option<f64>,
    queries: usize,
    findings: &'a [String],
    notes: &'a [String],
    seconds: f64,
}

#[derive(Serialize)]
struct StatsJson {
    layer: &'static str,
    index: String,
    segments: usize,
    rows: u64,
    dead: u64,
    bytes: u64,
    covered_seq: u64,
    tail: u64,
    /// Index writes, and the changes that they took in, since the index was made.
    syncs: u64,
    changes: u64,
    spared: Option<f64>,
    /// Least recall@10 measured when a part was built; none where none is both large and approximate.
    recall: Option<f32>,
    /// Searches that were done again exactly in the background, and the recall that they had.
    rechecked: u64,
    live_recall: Option<f64>,
}

impl Care {
    pub(in super::super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        match self {
            Self::Verify(verify) => verify.run(global, terminal),
            Self::Rebuild(rebuild) => write(global, terminal, rebuild.layer, Extent::Rebuild),
            Self::Compact(compact) => write(global, terminal, compact.layer, Extent::Compact),
            Self::Stats(stats) => stats.run(global, terminal),
        }
    }
}

fn write(
    global: &Global,
    terminal: &Terminal,
    layer: Option<Layer>,
    extent: Extent,
) -> Result<Outcome, Failure> {
    let engine = open(global, terminal)?;
    let Summary { busy, .. } = run_sync(&engine, terminal, layer, extent)?;
    if busy {
        return Err(Failure::Partly(
            "another process is writing the index; try again when it has ended".into(),
        ));
    }
    Ok(Outcome::Done)
}

impl Verify {
    fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
        terminal.stop_gently();
        let verdicts = {
            let progress = terminal.progress("done");
            let indexes = engine.indexes()?;
            indexes.verify(&WithProgress(&progress), self.layer).map_err(EngineError::from)?
        };
        let wrong: usize = verdicts.iter().map(|verdict| verdict.findings.len()).sum();
        if terminal.json {
            let layers: Vec<_> = verdicts.iter().map(VerdictJson::from).collect();
            terminal.print_json(&serde_json::json!({ "ok": wrong == 0, "layers": layers }))?;
        } else {
            verdicts.iter().try_for_each(|verdict| print_verdict(terminal, verdict))?;
        }
        if wrong > 0 {
            return Err(Failure::Partly(format!(
                "the index is damaged: {}; `magray index rebuild` builds it anew from what is stored",
                view::counted(wrong as u64, "finding")
            )));
        }
        Ok(Outcome::Done)
    }
}

impl<'a> From<&'a LayerVerdict> for VerdictJson<'a> {
    fn from(verdict: &'a LayerVerdict) -> Self {
        Self {
            layer: verdict.layer.name(),
            ok: verdict.findings.is_empty(),
            segments: verdict.segments,
            rows: verdict.rows,
            bytes: verdict.bytes,
            recall: verdict.recall.map(|recall| recall.recall),
            queries: verdict.recall.map_or(0, |recall| recall.queries),
            findings: &verdict.findings,
            notes: &verdict.notes,
            seconds: verdict.took.as_secs_f64(),
        }
    }
}

fn print_verdict(terminal: &Terminal, verdict: &LayerVerdict) -> Result<(), Failure> {
    let state = if verdict.findings.is_empty() {
        format!("{GREEN}ok{GREEN:#}")
    } else {
        format!("{RED}damaged{RED:#}")
    };
    let recall = verdict.recall.map(|recall| {
        let searches = view::counted(recall.queries as u64, "search");
        let searches = searches.replace("searchs", "searches");
        format!(", {searches} found {:.1}% of the nearest", 100.0 * recall.recall)
    });
    terminal.print(format_args!(
        "{BOLD}{:<10}{BOLD:#} {state}: {} in {}, {} hashed{}",
        verdict.layer.name(),
        view::counted(verdict.rows, "vector"),
        view::counted(verdict.segments as u64, "segment"),
        HumanBytes(verdict.bytes),
        recall.unwrap_or_default()
    ))?;
    for line in verdict.findings.iter().chain(&verdict.notes) {
        terminal.print(format_args!("           {line}"))?;
    }
    Ok(())
}

impl Stats {
    fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
        let stats = engine.indexes()?.stats().map_err(EngineError::from)?;
        if terminal.json {
            let layers: Vec<_> = stats.iter().map(StatsJson::from).collect();
            terminal.print_json(&serde_json::json!({ "layers": layers }))?;
            return Ok(Outcome::Done);
        }
        terminal.print(format_args!(
            "{BOLD}{:<10} {:<8} {:>8} {:>9} {:>7} {:>10} {:>9} {:>6} {:>7} {:>7}  writes spared{BOLD:#}",
            "layer", "index", "segments", "vectors", "dead", "size", "up to", "tail", "recall", "live"
        ))?;
        for layer in &stats {
            let spared = layer.spared().map_or("-".into(), |spared| format!("{:.1}%", 100.0 * spared));
            let figure = |figure: Option<f64>| figure.map_or("-".into(), |figure| format!("{figure:.3}"));
            let recall = figure(layer.recall.map(f64::from));
            let live = figure((layer.live.checks > 0).then_some(layer.live.recall));
            terminal.print(format_args!(
                "{:<10} {:<8} {:>8} {:>9} {:>7} {:>10} {:>9} {:>6} {recall:>7} {live:>7}  {spared}",
                layer.layer.name(),
                layer.backend,
                layer.segments,
                layer.sealed,
                layer.dead,
                HumanBytes(layer.bytes).to_string(),
                layer.covered_seq,
                layer.tail
            ))?;
        }
        Ok(Outcome::Done)
    }
}

impl From<&LayerIndexStats> for StatsJson {
    fn from(stats: &LayerIndexStats) -> Self {
        Self {
            layer: stats.layer.name(),
            index: stats.backend.clone(),
            segments: stats.segments,
            rows: stats.sealed,
            dead: stats.dead,
            bytes: stats.bytes,
            covered_seq: stats.covered_seq,
            tail: stats.tail,
            syncs: stats.syncs,
            changes: stats.changes,
            spared: stats.spared(),
            recall: stats.recall,
            rechecked: stats.live.checks,
            live_recall: (stats.live.checks > 0).then_some(stats.live.recall),
        }
    }
}
