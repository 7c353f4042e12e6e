//! What the embedding pipeline counts, for `magray stats` and whatever watches the program.
use magray_plugin_api::ErrorCode;
use serde::Serialize;
use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// Counters since the start.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    pub(super) requests: AtomicU64,
    pub(super) texts: AtomicU64,
    pub(super) tokens: AtomicU64,
    pub(super) cache_hits: AtomicU64,
    pub(super) overloads: AtomicU64,
    pub(super) batches: AtomicU64,
    pub(super) batch_texts: AtomicU64,
    pub(super) batch_room: AtomicU64,
    pub(super) queue_us: AtomicU64,
    pub(super) queue_max_us: AtomicU64,
    pub(super) fallbacks: AtomicU64,
    pub(super) halvings: AtomicU64,
    pub(super) switch_last_ns: AtomicU64,
    pub(super) switch_max_ns: AtomicU64,
}

/// [`Embedding::status`](super::Embedding::status)'s counters at one moment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Counters {
    /// Calls of the pipeline; those that the cache answered whole are none.
    pub requests: u64,
    /// Texts in them.
    pub texts: u64,
    /// Tokens in them, as far as they were counted: a backend that reads whole texts, however long
    /// they are, needs no counting.
    pub tokens: u64,
    /// Texts that the cache answered.
    pub cache_hits: u64,
    /// Calls that were turned away because too much was waiting.
    pub overloads: u64,
    /// Batches that were cut from what waited.
    pub batches: u64,
    /// Texts of these batches, over those that they had room for, 0 to 1.
    pub batch_fill: f64,
    /// How long a batch's oldest text had waited for it, in milliseconds: the mean and the longest.
    pub queue_wait_ms: f64,
    /// The longest of these waits.
    pub queue_wait_max_ms: f64,
    /// Batches that another backend than the first of the chain answered.
    pub fallbacks: u64,
    /// Batches that were cut in half because memory ran out.
    pub halvings: u64,
    /// From a failure to the call of the next backend, in milliseconds: the last time.
    pub switch_last_ms: f64,
    /// The longest of these times.
    pub switch_max_ms: f64,
}

impl Metrics {
    pub(super) fn add(counter: &AtomicU64, value: usize) {
        counter.fetch_add(value as u64, Relaxed);
    }

    pub(super) fn waited(&self, wait: Duration) {
        let us = u64::try_from(wait.as_micros()).unwrap_or(u64::MAX);
        self.queue_us.fetch_add(us, Relaxed);
        self.queue_max_us.fetch_max(us, Relaxed);
    }

    pub(super) fn switched(&self, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.switch_last_ns.store(ns, Relaxed);
        self.switch_max_ns.fetch_max(ns, Relaxed);
    }

    pub(super) fn snapshot(&self) -> Counters {
        let get = |counter: &AtomicU64| counter.load(Relaxed);
        let ms = |counter: &AtomicU64| get(counter) as f64 / 1000.0;
        let share = |part: f64, whole: u64| if whole == 0 { 0.0 } else { part / whole as f64 };
        Counters {
            requests: get(&self.requests),
            texts: get(&self.texts),
            tokens: get(&self.tokens),
            cache_hits: get(&self.cache_hits),
            overloads: get(&self.overloads),
            batches: get(&self.batches),
            batch_fill: share(get(&self.batch_texts) as f64, get(&self.batch_room)),
            queue_wait_ms: share(ms(&self.queue_us), get(&self.batches)),
            queue_wait_max_ms: ms(&self.queue_max_us),
            fallbacks: get(&self.fallbacks),
            halvings: get(&self.halvings),
            switch_last_ms: ms(&self.switch_last_ns) / 1000.0,
            switch_max_ms: ms(&self.switch_max_ns) / 1000.0,
        }
    }
}

/// Codes of the API that are counted one by one; others count as internal errors.
const CODES: usize = 11;

/// Failures of one backend by their kind.
#[derive(Debug, Default)]
pub(super) struct FailureCounts {
    by_code: [AtomicU64; CODES],
    pub(super) bad_answer: AtomicU64,
    pub(super) hung: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) not_started: AtomicU64,
}

impl FailureCounts {
    pub(super) fn code(&self, code: ErrorCode) -> &AtomicU64 {
        let at = usize::try_from(code.0).unwrap_or(0);
        self.by_code.get(at).unwrap_or(&self.by_code[ErrorCode::INTERNAL.0 as usize])
    }

    /// Those that happened, by name.
    pub(super) fn snapshot(&self) -> BTreeMap<&'static str, u64> {
        let codes = (0..).zip(&self.by_code).map(|(code, count)| (ErrorCode(code).name(), count));
        let others = [
            ("bad answer", &self.bad_answer),
            ("hung", &self.hung),
            ("refused", &self.refused),
            ("not started", &self.not_started),
        ];
        let all = codes.chain(others).map(|(name, count)| (name, count.load(Relaxed)));
        all.filter(|(_, count)| *count > 0).collect()
    }
}
