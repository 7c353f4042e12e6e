//! The settings, typed. `config/default.toml` gives every one its default and tells users about it.

use super::{
    background::Background,
    profile::{Profiles, Selected, shared},
    promotion::Promotion,
    resource_manager::ResourceManager,
    search::Search,
    sync::Sync,
    values::{Folder, Sha256, Ttl, lasting, name, share, whole},
};
use magray_model::GpuTuning;
use serde::{Deserialize, Serialize};
use serde_json::{Map, json};
use std::{num::NonZero, sync::LazyLock, thread};

const GIB: u64 = 1 << 30;
const UNLIMITED: i64 = i64::MAX;

/// Everything that a user can set.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What runs models.
    pub ai: Ai,
    /// Layers of memory and what searches them.
    pub memory: Memory,
    /// The work of a process that lives long.
    pub background: Background,
    /// The database.
    pub store: Store,
    /// Where plugins come from and which are trusted.
    pub plugins: Plugins,
    /// Reading of files.
    pub ingest: Ingest,
    /// Fetching of models.
    pub models: Models,
    /// Messages of the program.
    pub log: Log,
}

/// `[ai]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ai {
    /// How text becomes vectors.
    pub embedding: Embedding,
}

/// `[ai.embedding]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Embedding {
    /// Name of the profile in force.
    #[serde(deserialize_with = "name")]
    pub profile: String,
    /// Name or folder of the model.
    #[serde(deserialize_with = "name")]
    pub model_name: String,
    /// Whether a plugin that can use a GPU does.
    pub use_gpu: bool,
    /// Texts in one call of the plugin, at most.
    #[serde(deserialize_with = "whole::<1, 4096, _, _>")]
    pub batch_size: usize,
    /// The GPU to use.
    pub gpu_config: GpuConfig,
    /// Batching of the texts of all callers.
    pub pipeline: Pipeline,
    /// When a backend that fails is left alone.
    pub breaker: Breaker,
    /// Embedding plugins with their options.
    pub profiles: Profiles,
}

impl Embedding {
    /// The profile in force.
    pub fn selected(&self) -> Selected {
        self.profile(&self.profile)
    }

    /// The profile in force, and those that stand in for it where it fails.
    pub fn chain(&self) -> Vec<Selected> {
        let first = self.selected();
        let others: Vec<_> = first.profile.fallback.iter().map(|name| self.profile(name)).collect();
        std::iter::once(first).chain(others).collect()
    }

    /// The profile of this name, or the component of this name where there is no such profile.
    pub fn profile(&self, name: &str) -> Selected {
        let settings = [
            ("model", json!(self.model_name)),
            ("use_gpu", json!(self.use_gpu)),
            ("batch_size", json!(self.batch_size)),
            ("device_id", json!(self.gpu_config.device_id)),
            ("gpu_mem_limit", json!(self.gpu_config.gpu_mem_limit)),
        ];
        let mut shared = shared(settings);
        let own = self.profiles.get(name).and_then(|profile| profile.options.get("use_gpu")?.as_bool());
        // On a CPU each stream is one more copy of the model.
        let gpu_memory = if own.unwrap_or(self.use_gpu) { self.gpu_config.gpu_mem_limit } else { 0 };
        shared.extend(self.pipeline.options(gpu_memory));
        Selected::pick(&self.profiles, name, shared)
    }
}

/// `[ai.embedding.pipeline]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pipeline {
    /// Milliseconds that an interactive request waits for company, at most.
    #[serde(deserialize_with = "whole::<0, 1000, _, _>")]
    pub max_wait_interactive_ms: u64,
    /// Milliseconds that a bulk request waits for a full batch, at most.
    #[serde(deserialize_with = "whole::<0, 10_000, _, _>")]
    pub max_wait_bulk_ms: u64,
    /// Texts of one urgency that may wait.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub queue_texts: usize,
    /// Bytes of their texts.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub queue_bytes: usize,
    /// Tokens of a batch at most; 0 goes by the device.
    #[serde(deserialize_with = "whole::<0, UNLIMITED, _, _>")]
    pub token_budget: usize,
    /// Calls of one backend at once.
    #[serde(deserialize_with = "whole::<1, 64, _, _>")]
    pub workers: usize,
    /// Milliseconds after which a call of a backend counts as hung.
    #[serde(deserialize_with = "whole::<1, 86_400_000, _, _>")]
    pub call_timeout_ms: u64,
    /// Execution streams of a GPU; 0 goes by its memory.
    #[serde(deserialize_with = "whole::<0, 64, _, _>")]
    pub streams: u32,
    /// Whether batches go to a GPU through pinned memory.
    pub use_pinned_memory: Choice,
    /// Batches that are prepared while a GPU computes; 0 leaves it to the plugin.
    #[serde(deserialize_with = "whole::<0, 16, _, _>")]
    pub prefetch: u32,
}

impl Pipeline {
    /// Options for plugins that have them. What goes by the memory of the GPU is left to the plugin where
    /// `gpu_memory`, in bytes, is 0: unknown, or none.
    fn options(&self, gpu_memory: u64) -> Map<String, serde_json::Value> {
        let known = gpu_memory > 0;
        let streams = match self.streams {
            0 => known.then(|| GpuTuning::streams(gpu_memory)),
            streams => Some(streams),
        };
        let pinned = match self.use_pinned_memory {
            Choice::Auto => known.then(|| GpuTuning::pinned_memory(gpu_memory)),
            Choice::On => Some(true),
            Choice::Off => Some(false),
        };
        let prefetch = Some(self.prefetch).filter(|&batches| batches > 0);
        let options = [
            ("streams", streams.map(|streams| json!(streams))),
            ("use_pinned_memory", pinned.map(|pinned| json!(pinned))),
            ("prefetch", prefetch.map(|batches| json!(batches))),
        ];
        options.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }
}

/// Yes, no, or what suits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Choice {
    /// What suits.
    Auto,
    /// Yes.
    On,
    /// No.
    Off,
}

/// `[ai.embedding.breaker]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Breaker {
    /// Failures in a row after which a backend is left alone.
    #[serde(deserialize_with = "whole::<1, 1000, _, _>")]
    pub failures: u32,
    /// Failed calls of the last `window`, in percent, after which it is too.
    #[serde(deserialize_with = "whole::<1, 100, _, _>")]
    pub error_rate_percent: u8,
    /// Calls that the rate is taken over.
    #[serde(deserialize_with = "whole::<1, 1000, _, _>")]
    pub window: usize,
    /// Milliseconds that a backend is left alone the first time.
    #[serde(deserialize_with = "whole::<0, 86_400_000, _, _>")]
    pub cool_down_ms: u64,
    /// Milliseconds that it is left alone at most.
    #[serde(deserialize_with = "whole::<0, 86_400_000, _, _>")]
    pub max_cool_down_ms: u64,
}

/// `[ai.embedding.gpu_config]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuConfig {
    /// Number of the GPU, from 0.
    #[serde(deserialize_with = "whole::<0, 255, _, _>")]
    pub device_id: u32,
    /// Bytes of GPU memory to use at most; 0 is no limit.
    #[serde(deserialize_with = "whole::<0, UNLIMITED, _, _>")]
    pub gpu_mem_limit: u64,
}

/// `[memory]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Memory {
    /// Layer of a new record that names none.
    pub default_layer: DefaultLayer,
    /// How long a session that nobody continues is remembered.
    #[serde(deserialize_with = "lasting")]
    pub session_idle: Ttl,
    /// The layers.
    pub layers: Layers,
    /// What moves a record to the next layer.
    pub promotion: Promotion,
    /// How records are found and ranked.
    pub search: Search,
    /// Vector search.
    pub index: Index,
    /// When changes are built into the index.
    pub sync: Sync,
    /// Cache of embeddings.
    pub cache: Cache,
    /// Growth with the memory of the machine.
    pub resource_manager: ResourceManager,
}

/// `[memory.layers]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Layers {
    /// Hot context of a session.
    pub interact: LayerSettings,
    /// Distilled knowledge.
    pub insights: LayerSettings,
    /// Permanent documents.
    pub assets: LayerSettings,
}

/// `[memory.layers.NAME]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LayerSettings {
    /// How long a record lives; see [`Memory::lives`].
    pub ttl: Ttl,
    /// Candidates that an approximate index looks at in one search.
    #[serde(deserialize_with = "whole::<1, 10000, _, _>")]
    pub ef_search: usize,
    /// After how long the age of a record counts half of what it can count.
    pub half_life: Ttl,
}

/// `[memory.index]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Index {
    /// Name of the profile in force.
    #[serde(deserialize_with = "name")]
    pub profile: String,
    /// Share of the nearest vectors that an approximate index should find; 0 leaves that to the backend.
    #[serde(deserialize_with = "share")]
    pub recall_target: f64,
    /// Index plugins with their options.
    pub profiles: Profiles,
}

impl Index {
    /// The profile in force.
    pub fn selected(&self) -> Selected {
        self.profile(&self.profile)
    }

    /// The profile of this name, or the component of this name where there is no such profile.
    pub fn profile(&self, name: &str) -> Selected {
        Selected::pick(&self.profiles, name, Map::new())
    }
}

/// `[memory.cache]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cache {
    /// Name of the profile in force.
    #[serde(deserialize_with = "name")]
    pub profile: String,
    /// Bytes in memory at most; 0 goes by the memory of the machine, see [`Cache::max_bytes`].
    #[serde(deserialize_with = "whole::<0, UNLIMITED, _, _>")]
    pub max_size_bytes: u64,
    /// Entries at most; 0 is no limit.
    #[serde(deserialize_with = "whole::<0, UNLIMITED, _, _>")]
    pub max_entries: u64,
    /// Seconds that an entry is good for; 0 is for ever.
    #[serde(deserialize_with = "whole::<0, UNLIMITED, _, _>")]
    pub ttl_seconds: u64,
    /// Whether embeddings are kept on disk too.
    pub disk: bool,
    /// Microseconds that a text takes to embed from which on the disk is worth a look.
    #[serde(deserialize_with = "whole::<0, 1_000_000_000, _, _>")]
    pub disk_min_us: u64,
    /// Bytes on disk at most.
    #[serde(deserialize_with = "whole::<0, UNLIMITED, _, _>")]
    pub disk_max_bytes: u64,
    /// Entries on disk at most; 0 is no limit.
    #[serde(deserialize_with = "whole::<0, UNLIMITED, _, _>")]
    pub disk_max_entries: u64,
    /// Percent of look-ups by searches below which is an alert; 0 is none.
    #[serde(deserialize_with = "whole::<0, 100, _, _>")]
    pub alert_hit_rate_percent: u64,
    /// Look-ups by searches that the alert goes by.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub alert_lookups: u64,
    /// Cache policy plugins with their options.
    pub profiles: Profiles,
}

impl Cache {
    /// The profile in force.
    pub fn selected(&self) -> Selected {
        self.profile(&self.profile)
    }

    /// The profile of this name, or the component of this name where there is no such profile.
    pub fn profile(&self, name: &str) -> Selected {
        Selected::pick(&self.profiles, name, shared([("ttl_seconds", json!(self.ttl_seconds))]))
    }

    /// Bytes in memory at most, on a machine with `total_memory` bytes.
    pub fn max_bytes(&self, total_memory: u64) -> u64 {
        if self.max_size_bytes == 0 { default_cache_bytes(total_memory) } else { self.max_size_bytes }
    }
}

/// Cache size for a machine with `total_memory` bytes: 256 MiB up to 8 GiB, 1 GiB up to 16, 2 GiB up to 32,
/// 4 GiB up to 64, else 8 GiB; never above a quarter of the memory.
pub fn default_cache_bytes(total_memory: u64) -> u64 {
    let by_size = match total_memory.div_ceil(GIB) {
        0..=8 => GIB / 4,
        9..=16 => GIB,
        17..=32 => 2 * GIB,
        33..=64 => 4 * GIB,
        _ => 8 * GIB,
    };
    by_size.min(total_memory / 4)
}

/// `[store]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Store {
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// Milliseconds to wait for another process that holds the database.
    #[serde(deserialize_with = "whole::<0, 3_600_000, _, _>")]
    pub busy_timeout_ms: u64,
    /// Bytes that a large write must leave free on its disk.
    #[serde(deserialize_with = "whole::<0, UNLIMITED, _, _>")]
    pub min_free_bytes: u64,
}

/// `[plugins]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plugins {
    /// Folders to look in for plugins, first match wins.
    pub path: Vec<Folder>,
    /// Whether the usual folders are looked in after these.
    pub search_defaults: bool,
    /// Digests of the only files that may be loaded; empty allows every file.
    pub allow: Vec<Sha256>,
    /// Whether an unknown file is first loaded in a child process.
    pub probe: bool,
    /// Threads that a plugin may keep busy; 0 is one for each core.
    #[serde(deserialize_with = "whole::<0, 4096, _, _>")]
    pub threads: usize,
}

impl Plugins {
    /// Threads that a plugin may keep busy.
    pub fn thread_budget(&self) -> usize {
        // Each search asks for it, and the system reads files of control groups to tell.
        static CORES: LazyLock<usize> =
            LazyLock::new(|| thread::available_parallelism().map_or(1, NonZero::get));
        match self.threads {
            0 => *CORES,
            threads => threads,
        }
    }
}

/// `[ingest]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ingest {
    /// Characters of a chunk at most.
    #[serde(deserialize_with = "whole::<100, 100_000, _, _>")]
    pub chunk_chars: usize,
    /// Bytes of a file at most; larger ones are skipped.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub max_file_bytes: u64,
}

/// `[models]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Models {
    /// Attempts after one that brought nothing.
    #[serde(deserialize_with = "whole::<0, 100, _, _>")]
    pub retries: u64,
    /// Milliseconds to wait before the first of them.
    #[serde(deserialize_with = "whole::<0, 60_000, _, _>")]
    pub retry_wait_ms: u64,
    /// Milliseconds without a byte after which a server counts as gone.
    #[serde(deserialize_with = "whole::<1, 3_600_000, _, _>")]
    pub timeout_ms: u64,
}

/// `[log]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Log {
    /// The least severe messages to show.
    pub level: LogLevel,
}

/// Layer of a new record that names none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultLayer {
    /// Hot context of a session.
    Interact,
    /// Distilled knowledge.
    Insights,
    /// Permanent documents.
    Assets,
}

/// What an acknowledged write survives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Durability {
    /// A loss of power.
    Full,
    /// The end of the process; a loss of power may undo the last writes.
    Normal,
}

/// How severe a message must be to be shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Nothing at all.
    Off,
    /// What failed.
    Error,
    /// What a user should look at, too.
    Warn,
    /// What was done, too.
    Info,
    /// How it was done, too.
    Debug,
    /// Each step, too.
    Trace,
}

/// Two settings of one table that contradict each other.
#[derive(Debug, PartialEq)]
pub(super) struct Contradiction {
    /// Path of the table.
    pub(super) table: [&'static str; 2],
    /// The key that must be below the other one.
    pub(super) lower: &'static str,
    pub(super) upper: &'static str,
    /// `below` or `at most`.
    pub(super) relation: &'static str,
}

impl Config {
    /// What the settings, each right by itself, say against each other.
    pub(super) fn contradictions(&self) -> Vec<Contradiction> {
        self.memory.resource_manager.contradictions()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cache_size_follows_memory() {
        let gib = |n: u64| n * GIB;
        assert_eq!(default_cache_bytes(0), 0);
        assert_eq!(default_cache_bytes(gib(1) / 2), gib(1) / 8);
        assert_eq!(default_cache_bytes(gib(8)), gib(1) / 4);
        assert_eq!(default_cache_bytes(gib(8) + 1), gib(1));
        assert_eq!(default_cache_bytes(gib(16)), gib(1));
        assert_eq!(default_cache_bytes(gib(32)), gib(2));
        assert_eq!(default_cache_bytes(gib(64)), gib(4));
        assert_eq!(default_cache_bytes(gib(65)), gib(8));
        assert_eq!(default_cache_bytes(u64::MAX), gib(8));
    }
}
