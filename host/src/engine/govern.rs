//! The governor at work: samples memory, has it judged, and has caches and indexes hold to what they are granted.
use super::{Engine, EngineError, MemoryReport};
use crate::resources::{
    fit::{Fit, bytes_per_vector},
    governor::{Decision, Grant, Rules},
    leak::{Leak, LeakDetector},
    pressure::Pressure,
    scheduler::Counts,
};
use magray_plugin_api::CallContext;
use serde::Serialize;
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A cache may take so much of the memory: one part of four.
const CACHE_SHARE: u64 = 4;

/// Grows and shrinks what the parts of one [`Engine`] hold in memory, by `[memory.resource_manager]`.
///
/// It has no thread: a process that lives long calls [`Governor::tick_at`] every [`Governor::interval`].
#[expect(missing_debug_implementations, reason = "grants and numbers")]
pub struct Governor {
    rules: Rules,
    interval: Duration,
    grants: Grants,
    detector: LeakDetector,
    /// The suspect of the leak that was warned of.
    warned_of: Option<String>,
}

/// What may be held in memory.
#[derive(Clone, Debug)]
pub struct Grants {
    /// Vectors that indexes hold open.
    pub vectors: Grant,
    /// Bytes of cached embeddings.
    pub cache: Grant,
}

/// What the governor saw and did.
#[derive(Clone, Debug, Serialize)]
pub struct Tick {
    /// Whose memory it was before.
    pub memory: MemoryReport,
    /// Vectors that indexes may hold open, and that they do now.
    pub vectors: Decision,
    /// See `vectors`.
    pub held_vectors: u64,
    /// Bytes that cached embeddings may take in memory, and that they do now.
    pub cache: Decision,
    /// See `cache`.
    pub cached_bytes: u64,
    /// What grows that should not.
    pub leak: Option<Leak>,
}

impl Engine {
    /// What the governor begins with, beside so much memory. Loads the embedding backend.
    ///
    /// # Errors
    /// [`EngineError`] where it cannot be had.
    pub fn grants(&self, pressure: &Pressure) -> Result<Grants, EngineError> {
        let limits = &self.setup.config.memory.resource_manager;
        let total = pressure.total();
        let most_vectors = limits.scaling_max_vectors.min(self.fit(total)?.most());
        let mut most_bytes = limits.scaling_cache_bytes.min(total / CACHE_SHARE);
        // What a user has set bounds it, too.
        if let bytes @ 1.. = self.setup.config.memory.cache.max_size_bytes {
            most_bytes = most_bytes.min(bytes);
        }
        Ok(Grants {
            vectors: Grant::new(limits.base_max_vectors, most_vectors),
            cache: Grant::new(limits.base_cache_bytes, most_bytes),
        })
    }

    /// Whether as many vectors as may be stored can be searched from a memory of so many bytes. Loads the
    /// embedding backend, which knows their width.
    ///
    /// # Errors
    /// [`EngineError`] where it cannot be had.
    pub fn fit(&self, memory: u64) -> Result<Fit, EngineError> {
        Ok(fit(&self.setup.config, self.vectors()?.embedding.info().dim, memory))
    }

    /// One look of the governor, in the background.
    pub(super) fn govern(&self, _: &dyn CallContext) -> Result<Counts, EngineError> {
        let pressure = Pressure::sample();
        let governor = self.governor.get_or_try_make(|| Governor::begin(self, &pressure).map(Mutex::new))?;
        governor.lock().unwrap_or_else(PoisonError::into_inner).tick_at(self, Instant::now(), pressure);
        Ok(Counts::new())
    }
}

/// Whether as many vectors as `config` allows, of `dim` numbers, can be searched from a memory of so many bytes.
pub fn fit(config: &crate::config::Config, dim: usize, memory: u64) -> Fit {
    let selected = config.memory.index.selected();
    let limits = &config.memory.resource_manager;
    Fit {
        bytes_per_vector: bytes_per_vector(&selected.profile.plugin, &selected.profile.options, dim),
        backend: selected.profile.plugin.clone(),
        vectors: limits.scaling_max_vectors,
        dim,
        memory,
        percent: limits.critical_memory_usage_percent,
    }
}

impl Governor {
    /// Begins with the base of each grant, and has the cache hold to it. Loads the embedding backend.
    ///
    /// # Errors
    /// [`EngineError`] where it cannot be had.
    pub fn begin(engine: &Engine, pressure: &Pressure) -> Result<Self, EngineError> {
        let limits = &engine.setup.config.memory.resource_manager;
        let governor = Self {
            rules: limits.rules(),
            interval: limits.interval(),
            grants: engine.grants(pressure)?,
            detector: LeakDetector::new(limits.leak_rules()),
            warned_of: None,
        };
        engine.vectors()?.embedding.cache().set_max_bytes(governor.grants.cache.granted());
        Ok(governor)
    }

    /// How often to look.
    pub fn interval(&self) -> Duration {
        self.interval
    }

    /// Decides by how memory is `now`, and has it done. Takes some milliseconds.
    pub fn tick_at(&mut self, engine: &Engine, now: Instant, pressure: Pressure) -> Tick {
        let memory = engine.memory_at(pressure);
        let supply = self.rules.supply(&memory.pressure);
        let (cached, held) = (cached_bytes(engine), held_vectors(engine));
        let cache = self.grants.cache.look(&self.rules, cached, supply, now);
        let vectors = self.grants.vectors.look(&self.rules, held, supply, now);
        // A model that was switched from stays loaded, and shares with the next.
        let models = engine.loaded().count().max(1) as u64;
        let rows = if supply.critical { 0 } else { vectors.granted / models };
        for loaded in engine.loaded() {
            loaded.embedding.cache().set_max_bytes(cache.granted / models);
            loaded.indexes.keep_to(rows, supply.factor < 1.0);
        }
        if supply.critical || cache.granted < cache.before {
            engine.give_back();
        }
        for (what, unit, decision) in [("cached embeddings", "bytes", cache), ("indexes", "vectors", vectors)]
        {
            if decision.is_change() {
                tracing::info!(
                    "{what}: {} {unit} granted, {} before: {}",
                    decision.granted,
                    decision.before,
                    <&str>::from(decision.reason)
                );
            }
        }
        let leak = self.detector.observe(now, memory.pressure.process.anonymous, &memory.holdings());
        self.warn_of(leak.as_ref());
        let (held_vectors, cached_bytes) = (held_vectors(engine), cached_bytes(engine));
        Tick { memory, vectors, held_vectors, cache, cached_bytes, leak }
    }

    /// Once for each suspect, until it grows no more.
    fn warn_of(&mut self, leak: Option<&Leak>) {
        let suspect = leak.map(|leak| leak.suspect.clone());
        if let Some(Leak { suspect, growth, bytes_per_hour, advice }) = leak
            && self.warned_of.as_ref() != Some(suspect)
        {
            tracing::warn!(
                "memory leaks: {} MiB more than after the start, {} MiB an hour; suspected is: {suspect}; {advice}",
                growth >> 20,
                bytes_per_hour >> 20
            );
        }
        self.warned_of = suspect;
    }
}

fn cached_bytes(engine: &Engine) -> u64 {
    engine.loaded().map(|vectors| vectors.embedding.cache().memory().bytes).sum()
}

fn held_vectors(engine: &Engine) -> u64 {
    engine.loaded().map(|vectors| vectors.indexes.rows_held()).sum()
}
