use super::{
    Failure, Outcome,
    args::Global,
    setup,
    terminal::{BOLD, GREEN, Terminal, YELLOW},
    view,
};
use crate::{
    config::Cache as CacheSettings,
    engine::Setup,
    store::{CacheCounts, CacheSpaceStats, DiskCacheStats, Lookups},
};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use serde::Serialize;
use std::path::PathBuf;

/// See and clear the cache of embeddings
#[derive(Debug, Subcommand)]
pub(super) enum Cache {
    Stats(Stats),
    Clear(Clear),
}

/// Show what is cached of each model, and how often it helped
///
/// Embeddings are cached in memory for as long as a command runs, and on disk for the next one. The
/// counts are of all commands since the file was made.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray cache stats
  magray cache stats --json")]
pub(super) struct Stats {}

/// Drop cached embeddings; what is needed again is computed again
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray cache clear
  magray cache clear --expired
  magray cache clear --space potion-base-8M-int8")]
pub(super) struct Clear {
    /// Only those of this model, by its name or the first digits of its space
    #[arg(long, value_name = "MODEL")]
    space: Option<String>,
    /// Only those that are older than [memory.cache] ttl_seconds
    #[arg(long)]
    expired: bool,
}

#[derive(Serialize)]
struct StatsJson {
    memory: MemoryJson,
    disk: DiskJson,
    searches: SearchesJson,
    spaces: Vec<SpaceJson>,
}

#[derive(Serialize)]
struct MemoryJson {
    max_bytes: u64,
    max_entries: u64,
    lifetime: CountsJson,
}

#[derive(Serialize)]
struct DiskJson {
    enabled: bool,
    path: PathBuf,
    /// Bytes of the file, with room that is free in it.
    file_bytes: u64,
    entries: u64,
    bytes: u64,
    max_bytes: u64,
    /// 0 is no limit, and no age.
    max_entries: u64,
    ttl_seconds: u64,
    lifetime: CountsJson,
}

/// The last look-ups by searches.
#[derive(Serialize)]
struct SearchesJson {
    lookups: u64,
    hits: u64,
    hit_rate_percent: Option<f64>,
    /// Look-ups that the alert waits for, and percent of them that must be answered; 0 is no alert.
    alert_lookups: u64,
    alert_hit_rate_percent: u64,
    alert: Option<String>,
}

#[derive(Serialize)]
struct CountsJson {
    hits: u64,
    misses: u64,
    insertions: u64,
    evictions: u64,
    expired: u64,
}

#[derive(Serialize)]
struct SpaceJson {
    space: String,
    model: String,
    dim: usize,
    entries: u64,
    bytes: u64,
    expired: u64,
    oldest: String,
    newest: String,
}

impl From<CacheCounts> for CountsJson {
    fn from(counts: CacheCounts) -> Self {
        let CacheCounts { hits, misses, insertions, evictions, expired } = counts;
        Self { hits, misses, insertions, evictions, expired }
    }
}

impl From<&CacheSpaceStats> for SpaceJson {
    fn from(space: &CacheSpaceStats) -> Self {
        Self {
            space: digits(space),
            model: space.model.clone(),
            dim: space.dim,
            entries: space.entries,
            bytes: space.bytes,
            expired: space.expired,
            oldest: view::time(space.oldest_s.saturating_mul(1000)),
            newest: view::time(space.newest_s.saturating_mul(1000)),
        }
    }
}

impl Cache {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        match self {
            Self::Stats(Stats {}) => show(&setup, terminal),
            Self::Clear(clear) => clear.run(&setup, terminal),
        }
    }
}

/// What is on disk; none where there is no cache yet, or none that can be used.
pub(super) fn on_disk(setup: &Setup) -> Option<DiskCacheStats> {
    let cache = setup.disk_cache();
    cache.path().exists().then(|| cache.stats()).flatten()
}

fn show(setup: &Setup, terminal: &Terminal) -> Result<Outcome, Failure> {
    let settings = &setup.config.memory.cache;
    let path = setup.disk_cache().path().to_owned();
    let stats = on_disk(setup);
    if stats.is_none() && path.exists() {
        return Err(Failure::Partly(format!(
            "the cache {} cannot be used; -v says why, and deleting it does no harm",
            path.display()
        )));
    }
    let counts = |level: fn(&DiskCacheStats) -> CacheCounts| stats.as_ref().map(level).unwrap_or_default();
    let json = StatsJson {
        memory: MemoryJson {
            max_bytes: setup.cache_bytes(),
            max_entries: settings.max_entries,
            lifetime: counts(|stats| stats.memory_totals).into(),
        },
        disk: DiskJson {
            enabled: settings.disk,
            file_bytes: std::fs::metadata(&path).map_or(0, |file| file.len()),
            path,
            entries: stats.as_ref().map_or(0, |stats| stats.entries),
            bytes: stats.as_ref().map_or(0, |stats| stats.bytes),
            max_bytes: settings.disk_max_bytes,
            max_entries: settings.disk_max_entries,
            ttl_seconds: settings.ttl_seconds,
            lifetime: counts(|stats| stats.disk_totals).into(),
        },
        searches: searches(stats.as_ref().map(|stats| stats.lookups).unwrap_or_default(), settings),
        spaces: stats.iter().flat_map(|stats| &stats.spaces).map(SpaceJson::from).collect(),
    };
    if terminal.json {
        terminal.print_json(&json)?;
    } else {
        print(terminal, &json)?;
    }
    Ok(Outcome::Done)
}

fn searches(last: Lookups, settings: &CacheSettings) -> SearchesJson {
    let CacheSettings { alert_lookups, alert_hit_rate_percent, .. } = *settings;
    let alert = last.is_low(alert_lookups, alert_hit_rate_percent).then(|| {
        let disk = if settings.disk { "" } else { ", turn on `disk`" };
        format!(
            "searches find too little in the cache: raise `max_size_bytes` or `disk_max_bytes`{disk}, or try another \
             policy (`magray bench cache`), all of [memory.cache]"
        )
    });
    SearchesJson {
        lookups: last.asked,
        hits: last.answered,
        hit_rate_percent: last.hit_percent(),
        alert_lookups,
        alert_hit_rate_percent,
        alert,
    }
}

fn print(
    terminal: &Terminal,
    StatsJson { memory, disk, searches, spaces }: &StatsJson,
) -> Result<(), Failure> {
    let most = |entries: u64| match entries {
        0 => String::new(),
        entries => format!(" or {entries} vectors"),
    };
    terminal.print(format_args!(
        "{BOLD}memory{BOLD:#}  up to {}{} while a command runs; {}",
        HumanBytes(memory.max_bytes),
        most(memory.max_entries),
        answered(memory.lifetime.hits, memory.lifetime.misses)
    ))?;
    let (off, lives) = (
        if disk.enabled { "" } else { " (off by [memory.cache] disk)" },
        match disk.ttl_seconds {
            0 => "for good".to_owned(),
            seconds => format!("for {}", humantime::format_duration(std::time::Duration::from_secs(seconds))),
        },
    );
    terminal.print(format_args!(
        "{BOLD}disk{BOLD:#}    {}, {} of up to {}{}, {lives}{off}; {}",
        view::counted(disk.entries, "vector"),
        HumanBytes(disk.bytes),
        HumanBytes(disk.max_bytes),
        most(disk.max_entries),
        answered(disk.lifetime.hits, disk.lifetime.misses)
    ))?;
    terminal.print(format_args!("        {} ({})", disk.path.display(), HumanBytes(disk.file_bytes)))?;
    if searches.lookups > 0 {
        let SearchesJson { lookups, hits, .. } = *searches;
        terminal.print(format_args!(
            "{BOLD}lately{BOLD:#}  of searches {}",
            answered(hits, lookups.saturating_sub(hits))
        ))?;
    }
    if let Some(alert) = &searches.alert {
        terminal.print(format_args!("{YELLOW}alert{YELLOW:#}   {alert}"))?;
    }
    if !spaces.is_empty() {
        terminal.print(format_args!(
            "\n{BOLD}{:<28} {:>5} {:>9} {:>11} {:>8}  {:<20} {:<20}{BOLD:#}",
            "model", "wide", "vectors", "bytes", "expired", "oldest", "newest"
        ))?;
    }
    for SpaceJson { model, dim, entries, bytes, expired, oldest, newest, .. } in spaces {
        let bytes = HumanBytes(*bytes).to_string();
        terminal.print(format_args!(
            "{model:<28} {dim:>5} {entries:>9} {bytes:>11} {expired:>8}  {oldest:<20} {newest:<20}"
        ))?;
    }
    Ok(())
}

/// How many of the look-ups found something.
pub(super) fn answered(hits: u64, misses: u64) -> String {
    match hits + misses {
        0 => "never asked".to_owned(),
        asked => format!("{:.1}% of {asked} look-ups answered", 100.0 * hits as f64 / asked as f64),
    }
}

impl Clear {
    fn run(self, setup: &Setup, terminal: &Terminal) -> Result<Outcome, Failure> {
        let cache = setup.disk_cache();
        let stats = on_disk(setup);
        let space = match (&self.space, &stats) {
            (Some(name), Some(stats)) => {
                let found = stats.spaces.iter().find(|space| is_named(space, name));
                let Some(found) = found else {
                    let known: Vec<_> = stats.spaces.iter().map(|space| space.model.as_str()).collect();
                    terminal
                        .hint(&format!("nothing is cached of '{name}'; cached are: {}", known.join(", ")));
                    return Ok(Outcome::NothingFound);
                };
                Some(found)
            }
            _ => None,
        };
        let dropped = match &stats {
            None if cache.path().exists() => None,
            None => Some(0),
            Some(_) => cache.clear(space, self.expired),
        };
        let dropped = dropped.ok_or_else(|| {
            Failure::Partly(format!(
                "the cache {} cannot be written; try again when no other process uses it, or delete it",
                cache.path().display()
            ))
        })?;
        if terminal.json {
            terminal.print_json(&serde_json::json!({ "dropped": dropped }))?;
        } else {
            terminal.print(format_args!(
                "{GREEN}dropped{GREEN:#} {}",
                view::counted(dropped, "cached embedding")
            ))?;
        }
        Ok(Outcome::Done)
    }
}

/// Whether a user means this space.
fn is_named(space: &CacheSpaceStats, name: &str) -> bool {
    space.model == name || (name.len() >= 4 && digits(space).starts_with(&name.to_ascii_lowercase()))
}

/// The first digits of the space's digest, as its folder of indexes has them.
fn digits(space: &CacheSpaceStats) -> String {
    space.digest[..8].iter().map(|byte| format!("{byte:02x}")).collect()
}
