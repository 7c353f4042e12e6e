use super::{
    Failure, Outcome,
    args::Global,
    cache, memory, open_to_read,
    terminal::{BOLD, Terminal},
    view,
};
use crate::{
    config,
    embedding::{EmbeddingStatus, MemberStatus},
};
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;

/// Show what is stored
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray stats
  magray stats --memory --json")]
pub(super) struct Stats {
    /// Show instead whose memory it is, of a process with the model loaded and every index open, and what caches and
    /// indexes may hold in one that lives long
    #[arg(long)]
    memory: bool,
}

#[derive(Serialize)]
struct StatsJson {
    database: String,
    database_bytes: u64,
    wal_bytes: u64,
    schema_version: i64,
    /// What an acknowledged write survives, by `[store] durability`.
    durability: config::Durability,
    sources: u64,
    backend: String,
    model: String,
    dim: usize,
    unembedded: u64,
    cache: CacheJson,
    embedding: EmbeddingStatus,
    layers: Vec<LayerJson>,
}

/// Embeddings on disk, and how often a look-up found one there or in memory.
#[derive(Serialize)]
struct CacheJson {
    entries: u64,
    bytes: u64,
    hits: u64,
    misses: u64,
}

#[derive(Serialize)]
struct LayerJson {
    layer: &'static str,
    records: u64,
    vectors: u64,
    index: String,
    /// Vectors in the index's segments, how many segments these are, and changes beside them.
    sealed: u64,
    segments: usize,
    tail: u64,
    /// Index writes, and the changes that they took in, since the index was made.
    syncs: u64,
    changes: u64,
}

impl Stats {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
        if self.memory {
            memory::show(&engine, terminal)?;
            return Ok(Outcome::Done);
        }
        let stats = engine.store().stats()?;
        let embedding = engine.embedding()?;
        let indexes = engine.indexes()?.stats().map_err(crate::engine::EngineError::from)?;
        let layers = stats.layers.iter().map(|layer| {
            let index = indexes.iter().find(|index| index.layer == layer.layer);
            LayerJson {
                layer: layer.layer.name(),
                records: layer.records,
                vectors: layer.vectors,
                index: index.map(|index| index.backend.clone()).unwrap_or_default(),
                sealed: index.map_or(0, |index| index.sealed),
                segments: index.map_or(0, |index| index.segments),
                tail: index.map_or(0, |index| index.tail),
                syncs: index.map_or(0, |index| index.syncs),
                changes: index.map_or(0, |index| index.changes),
            }
        });
        let cached = cache::on_disk(engine.setup());
        let cache = cached.map_or(CacheJson { entries: 0, bytes: 0, hits: 0, misses: 0 }, |cached| {
            // What memory misses is looked for on disk.
            let (memory, disk) = (cached.memory_totals, cached.disk_totals);
            let hits = memory.hits + disk.hits;
            let misses = (memory.hits + memory.misses).saturating_sub(hits);
            CacheJson { entries: cached.entries, bytes: cached.bytes, hits, misses }
        });
        let json = StatsJson {
            database: engine.store().path().display().to_string(),
            database_bytes: stats.database_bytes,
            wal_bytes: stats.wal_bytes,
            schema_version: stats.schema_version,
            durability: engine.setup().config.store.durability,
            sources: stats.sources,
            backend: embedding.backend().to_owned(),
            model: embedding.info().model.clone(),
            dim: embedding.info().dim,
            unembedded: engine.unembedded()?,
            cache,
            embedding: embedding.status(),
            layers: layers.collect(),
        };
        if terminal.json {
            terminal.print_json(&json)?
        } else {
            print(terminal, &json)?
        }
        Ok(Outcome::Done)
    }
}

fn print(terminal: &Terminal, stats: &StatsJson) -> Result<(), Failure> {
    let size = HumanBytes(stats.database_bytes + stats.wal_bytes);
    terminal.print(format_args!("{} ({size}, schema {})", stats.database, stats.schema_version))?;
    terminal.print(format_args!(
        "{} files; model {}, {} wide, by {}",
        stats.sources, stats.model, stats.dim, stats.backend
    ))?;
    if stats.unembedded > 0 {
        terminal.print(format_args!("{} records have no vector of this model", stats.unembedded))?;
    }
    terminal.print(format_args!(
        "what is stored survives {}",
        match stats.durability {
            config::Durability::Full => "a loss of power (durability full: each commit waits for the disk)",
            config::Durability::Normal => {
                "the end of the program; a loss of power may undo the last writes (durability normal)"
            }
        }
    ))?;
    let CacheJson { entries, bytes, hits, misses } = stats.cache;
    terminal.print(format_args!(
        "cache: {entries} embeddings on disk, {}; {}",
        HumanBytes(bytes),
        cache::answered(hits, misses)
    ))?;
    for MemberStatus { profile, state, device, last_error, .. } in &stats.embedding.members {
        let device = device.as_ref().map(|device| format!(", {}", view::ran_on(device))).unwrap_or_default();
        let error = last_error.as_ref().map(|error| format!("; {error}")).unwrap_or_default();
        terminal.print(format_args!("embedding backend {profile}: {state}{device}{error}"))?;
    }
    terminal.print(format_args!(
        "\n{BOLD}{:<10} {:>9} {:>9}  {:<10} {:>9} {:>8} {:>6}{BOLD:#}",
        "layer", "records", "vectors", "index", "sealed", "segments", "tail"
    ))?;
    for layer in &stats.layers {
        let LayerJson { layer, records, vectors, index, sealed, segments, tail, .. } = layer;
        terminal.print(format_args!(
            "{layer:<10} {records:>9} {vectors:>9}  {index:<10} {sealed:>9} {segments:>8} {tail:>6}"
        ))?;
    }
    Ok(())
}
