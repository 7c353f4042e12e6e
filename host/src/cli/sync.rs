use super::{
    Failure, Outcome, args,
    args::Global,
    open,
    terminal::{BOLD, Terminal, WithProgress},
    watch,
};
use crate::{
    engine::{Engine, EngineError},
    indexing::{Extent, LayerSync},
    store::Layer,
};
use clap::Args;
use serde::Serialize;

/// Build what has changed into the index now
///
/// There is no need to: every command does what is due after its answer, and a search finds each change
/// at once whether it is built in or not. After much was written, `magray sync --all` makes the next
/// searches as fast as can be.
///
/// With --watch it goes on until Ctrl-C or SIGTERM and does what [background] of the configuration says, for every
/// process that writes to the data folder: builds changes in, merges, drops records past their time, embeds
/// what has no vector, checks searches and files. It says what it did, by lines of JSON with --json, and with
/// --quiet nothing. Several may watch one folder.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray sync
  magray sync --all
  magray sync --watch
  magray --index hnsw sync --all --layer assets --json")]
pub(super) struct Sync {
    /// Also what is not due yet by the thresholds of [memory.sync]
    #[arg(long)]
    all: bool,
    /// Go on until Ctrl-C or SIGTERM, and do all other background work too
    #[arg(long, conflicts_with_all = ["all", "layer"])]
    watch: bool,
    /// Only this layer
    #[arg(long, value_name = "LAYER", value_parser = args::layer())]
    layer: Option<Layer>,
}

#[derive(Serialize)]
struct LayerJson {
    layer: &'static str,
    synced: bool,
    /// Another process was at it.
    busy: bool,
    changes: u64,
    rows_written: u64,
    segments_before: usize,
    segments: usize,
    seconds: f64,
}

/// How a run ended.
pub(super) struct Summary {
    /// Whether another process held a lock.
    pub(super) busy: bool,
}

impl Sync {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        if self.watch {
            return watch::run(global, terminal);
        }
        let engine = open(global, terminal)?;
        let extent = if self.all { Extent::All } else { Extent::Due { step_rows: u64::MAX } };
        if run_sync(&engine, terminal, self.layer, extent)?.busy {
            terminal.warn("another process is writing the index, so what it writes was left to it");
        }
        Ok(Outcome::Done)
    }
}

/// Brings the index up to date and prints what became of each layer.
pub(super) fn run_sync(
    engine: &Engine,
    terminal: &Terminal,
    layer: Option<Layer>,
    extent: Extent,
) -> Result<Summary, Failure> {
    terminal.stop_gently();
    let layers = {
        let progress = terminal.progress("vectors");
        let indexes = engine.indexes()?;
        indexes.sync(&WithProgress(&progress), layer, extent).map_err(EngineError::from)?
    };
    if terminal.json {
        let json: Vec<_> = layers.iter().map(LayerJson::from).collect();
        terminal.print_json(&serde_json::json!({ "layers": json }))?;
    } else {
        print(terminal, &layers)?;
    }
    Ok(Summary { busy: layers.iter().any(|layer| layer.busy) })
}

fn print(terminal: &Terminal, layers: &[LayerSync]) -> Result<(), Failure> {
    terminal.print(format_args!(
        "{BOLD}{:<10} {:>9} {:>9} {:>9} {:>9}{BOLD:#}",
        "layer", "changes", "written", "segments", "seconds"
    ))?;
    for layer in layers {
        let segments = if layer.segments == layer.segments_before {
            layer.segments.to_string()
        } else {
            format!("{} > {}", layer.segments_before, layer.segments)
        };
        terminal.print(format_args!(
            "{:<10} {:>9} {:>9} {segments:>9} {:>9.2}",
            layer.layer.name(),
            layer.changes,
            layer.rows_written,
            layer.took.as_secs_f64()
        ))?;
    }
    Ok(())
}

impl From<&LayerSync> for LayerJson {
    fn from(layer: &LayerSync) -> Self {
        Self {
            layer: layer.layer.name(),
            synced: layer.synced,
            busy: layer.busy,
            changes: layer.changes,
            rows_written: layer.rows_written,
            segments_before: layer.segments_before,
            segments: layer.segments,
            seconds: layer.took.as_secs_f64(),
        }
    }
}
