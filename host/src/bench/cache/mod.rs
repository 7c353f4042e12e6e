//! How much caches answer that policies rule: traces are replayed, and what the best of all would answer is
//! computed; and what an operation of a policy costs.
mod belady;
mod trace;
mod worker;

pub use trace::CacheTrace;
pub use worker::{Replay, ReplayReply, Replayed, serve_replay};

use super::BenchError;
use crate::{
    embedding::{CacheLimits, EmbeddingCache},
    engine::Setup,
    plugins::Plugins,
    store::CacheKey,
};
use belady::belady;
use cpu_time::ThreadTime;
use magray_plugin_api::{CallContext, Result as ApiResult, host::ContainedPolicy};
use serde::Serialize;
use std::collections::HashMap;

/// Entries of a full cache in which the time of an operation is measured.
const TIMED_ENTRIES: u64 = 100_000;
/// Operations of one kind in a round, and rounds, of which the quickest counts.
const TIMED_OPERATIONS: u64 = 100_000;
const ROUNDS: usize = 5;

/// How large a cache is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheSize {
    /// Entries, or bytes where the trace has them.
    Exactly(u64),
    /// In percent of all keys of the trace, or of their bytes.
    Percent(f64),
}

/// What a replay gives.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct CacheFigures {
    pub trace: String,
    pub requests: usize,
    pub unique: usize,
    /// Bytes of all keys; none where the trace does not say.
    pub unique_bytes: Option<u64>,
    pub sizes: Vec<SizeFigures>,
    pub operations: Vec<OperationCost>,
}

/// What caches of one size answer.
#[derive(Debug, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SizeFigures {
    /// Bytes where the trace has them, else entries.
    pub capacity: u64,
    /// With the future known; by bytes it is no bound.
    pub belady: Answered,
    pub policies: Vec<PolicyFigures>,
}

/// Requests that were answered.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Answered {
    /// How many.
    pub hits: u64,
    /// How many were not.
    pub misses: u64,
    /// Share of the requests, 0 to 1.
    pub hit_ratio: f64,
    /// Share of their bytes; none where the trace does not say.
    pub byte_hit_ratio: Option<f64>,
}

/// What a cache under one policy answers.
#[derive(Debug, Serialize)]
pub struct PolicyFigures {
    /// Its profile or component.
    pub name: String,
    /// What it answers where room is made for one entry at a time.
    #[serde(flatten)]
    pub answered: Answered,
    /// Share of the requests that the cache of embeddings answers under this policy, which makes room for
    /// many at a time; none where the trace has bytes, since all vectors weigh the same.
    pub in_cache_hit_ratio: Option<f64>,
    /// Bytes that the policy's books take for an entry.
    pub bytes_per_entry: f64,
}

/// CPU time of one operation, through the plugin's ABI, in a full cache.
#[derive(Debug, Serialize)]
pub struct OperationCost {
    /// The profile or component of the policy.
    pub name: String,
    /// Entries of the cache.
    pub entries: u64,
    /// A hit.
    pub hit_ns: f64,
    /// A miss: the insertion, and the eviction that makes room for it.
    pub miss_ns: f64,
}

/// Replays `trace` in caches of each of `sizes` under each of the policies `names`, which are profiles of the
/// config or components of plugins. `progress` gets how many replays are done, of how many, and which is next.
///
/// # Errors
/// [`BenchError`].
pub fn measure_cache(
    cx: &dyn CallContext,
    setup: &Setup,
    plugins: &Plugins,
    trace: &CacheTrace,
    names: &[String],
    sizes: &[CacheSize],
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<CacheFigures, BenchError> {
    let (unique, weight) = trace.unique();
    let steps = (sizes.len() + 1) * names.len() + sizes.len();
    let mut done = 0;
    let mut next = |name: &str| {
        progress(done, steps, name);
        done += 1;
    };
    let policy = |name: &str| Ok::<_, BenchError>(setup.cache_policy(plugins, name)?);
    let mut figures = Vec::new();
    for &size in sizes {
        let capacity = match size {
            CacheSize::Exactly(capacity) => capacity,
            CacheSize::Percent(percent) => (weight as f64 * percent / 100.0) as u64,
        }
        .max(1);
        next("belady");
        let best = trace.answered(belady(&trace.requests, capacity));
        let mut policies = Vec::new();
        for name in names {
            next(name);
            let (answered, bytes_per_entry) = replay(cx, name, policy(name)?, trace, capacity)?;
            let in_cache = || {
                let entries = usize::try_from(capacity).unwrap_or(usize::MAX);
                let cache = in_cache(policy(name)?, trace, entries, 1);
                Ok::<_, BenchError>(cache.memory().counts.hits as f64 / trace.requests.len() as f64)
            };
            policies.push(PolicyFigures {
                name: name.clone(),
                answered: trace.answered(answered),
                in_cache_hit_ratio: if trace.has_bytes { None } else { Some(in_cache()?) },
                bytes_per_entry,
            });
        }
        figures.push(SizeFigures { capacity, belady: best, policies });
    }
    let mut operations = Vec::new();
    for name in names {
        next(name);
        operations.push(cost(name, policy(name)?).map_err(|error| BenchError::failed(name, error))?);
    }
    Ok(CacheFigures {
        trace: trace.name.clone(),
        requests: trace.requests.len(),
        unique,
        unique_bytes: trace.has_bytes.then_some(weight),
        sizes: figures,
        operations,
    })
}

impl CacheTrace {
    fn answered(&self, (hits, weight): (u64, u64)) -> Answered {
        let requests = self.requests.len() as u64;
        let total: u64 = self.requests.iter().map(|request| request.weight).sum();
        let share = |part: u64, of: u64| if of == 0 { 0.0 } else { part as f64 / of as f64 };
        Answered {
            hits,
            misses: requests - hits,
            hit_ratio: share(hits, requests),
            byte_hit_ratio: self.has_bytes.then(|| share(weight, total)),
        }
    }
}

/// Requests that are answered, and their weight; and the bytes of the policy's books for an entry. An entry
/// that is too heavy for the cache passes by it.
fn replay(
    cx: &dyn CallContext,
    name: &str,
    mut policy: ContainedPolicy,
    trace: &CacheTrace,
    capacity: u64,
) -> Result<((u64, u64), f64), BenchError> {
    let failed = |error| BenchError::failed(name, error);
    let broken = |fault: String| BenchError::Broken { backend: name.to_owned(), fault };
    let mut held: HashMap<u64, u64> = HashMap::new();
    let (mut used, mut hits, mut weight) = (0, 0, 0);
    let mut unknown = None;
    policy.on_capacity(capacity).map_err(failed)?;
    for (at, request) in trace.requests.iter().enumerate() {
        if at % 4096 == 0 {
            cx.check().map_err(failed)?;
        }
        if held.contains_key(&request.key) {
            hits += 1;
            weight += request.weight;
            policy.on_hit(request.key, 0).map_err(failed)?;
            continue;
        }
        if request.weight > capacity {
            continue;
        }
        policy.on_insert(request.key, request.weight, 0).map_err(failed)?;
        held.insert(request.key, request.weight);
        used += request.weight;
        if used <= capacity {
            continue;
        }
        let over = used - capacity;
        let drop = |victim| match held.remove(&victim) {
            Some(weight) => used -= weight,
            None => unknown = Some(victim),
        };
        policy.evict(over, 0, drop).map_err(failed)?;
        if let Some(victim) = unknown {
            return Err(broken(format!("it named {victim} to drop, which is not held")));
        }
        if used > capacity {
            return Err(broken(format!("it made no room: {used} are held of {capacity}")));
        }
    }
    let bytes = policy.memory_use().resident as f64 / held.len().max(1) as f64;
    Ok(((hits, weight), bytes))
}

/// The cache of embeddings, of so many vectors that are `dim` wide, after a replay.
fn in_cache(policy: ContainedPolicy, trace: &CacheTrace, max_entries: usize, dim: usize) -> EmbeddingCache {
    let cache = EmbeddingCache::new(policy, CacheLimits { max_bytes: u64::MAX, max_entries });
    let (vector, mut out) = (vec![0.0; dim], vec![0.0; dim]);
    for request in &trace.requests {
        let key = CacheKey { id: request.key, check: request.key };
        if !cache.get(&key, &mut out) {
            cache.insert(&key, &vector);
        }
    }
    cache
}

/// Keys in no order that a cache of the processor could foresee.
fn scattered(number: u64) -> u64 {
    number.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn cost(name: &str, mut policy: ContainedPolicy) -> ApiResult<OperationCost> {
    policy.on_capacity(TIMED_ENTRIES)?;
    let mut held: Vec<u64> = (0..TIMED_ENTRIES).map(scattered).collect();
    held.iter().try_for_each(|&key| policy.on_insert(key, 1, 0))?;
    let mut newest = TIMED_ENTRIES;
    let (mut hit_ns, mut miss_ns) = (f64::MAX, f64::MAX);
    for _ in 0..ROUNDS {
        let start = ThreadTime::now();
        for i in 0..TIMED_OPERATIONS {
            policy.on_hit(held[(i * 7_919 % held.len() as u64) as usize], 0)?;
        }
        hit_ns = hit_ns.min(start.elapsed().as_nanos() as f64 / TIMED_OPERATIONS as f64);
        let mut victims = Vec::with_capacity(TIMED_OPERATIONS as usize);
        let start = ThreadTime::now();
        for _ in 0..TIMED_OPERATIONS {
            policy.on_insert(scattered(newest), 1, 0)?;
            policy.evict(1, 0, |victim| victims.push(victim))?;
            newest += 1;
        }
        miss_ns = miss_ns.min(start.elapsed().as_nanos() as f64 / TIMED_OPERATIONS as f64);
        held.extend((newest - TIMED_OPERATIONS..newest).map(scattered));
        victims.sort_unstable();
        held.retain(|key| victims.binary_search(key).is_err());
    }
    Ok(OperationCost { name: name.to_owned(), entries: TIMED_ENTRIES, hit_ns, miss_ns })
}
