//! A process that has one cache policy replay requests, in the cache of embeddings that it rules elsewhere.
use super::{BenchError, data::fault_of, worker::Held};
use crate::{
    embedding::{CacheLimits, EmbeddingCache},
    engine::Setup,
    store::CacheKey,
};
use cpu_time::ProcessTime;
use magray_plugin_api::ComponentKind;
use serde::{Deserialize, Serialize};
use std::{fs, path::PathBuf, time::Instant};

/// What a worker is asked: replay the requests of a file, ids as little-endian u32, in a cache of so many vectors of
/// this width. What is not there is put in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as said")]
pub struct Replay {
    pub trace: PathBuf,
    pub capacity: usize,
    pub dim: usize,
}

/// What it answers, or `{"error": ...}`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReplayReply {
    /// What became of the requests.
    Replayed(Replayed),
    /// It cannot.
    Error(String),
}

/// What became of the requests of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Replayed {
    /// Requests.
    pub requests: u64,
    /// Those that the cache answered.
    pub hits: u64,
    /// Of the replay, by the process's CPU time.
    pub cpu_s: f64,
    /// And by the wall's clock.
    pub seconds: f64,
    /// What the policy says that its books take.
    pub held: Held,
    /// Bytes of the vectors in the cache at the end, with their keys.
    pub bytes: u64,
}

/// Serves the cache policy in force. `receive` gives the next request, or none where there are no more.
///
/// # Errors
/// Only what `receive` and `send` return: faults of the policy are replies.
pub fn serve_replay<E>(
    setup: &Setup,
    mut receive: impl FnMut() -> Result<Option<Replay>, E>,
    mut send: impl FnMut(&ReplayReply) -> Result<(), E>,
) -> Result<(), E> {
    while let Some(request) = receive()? {
        let replayed = replay(setup, &request).map(ReplayReply::Replayed);
        send(&replayed.unwrap_or_else(|error| ReplayReply::Error(error.to_string())))?;
    }
    Ok(())
}

fn replay(setup: &Setup, request: &Replay) -> Result<Replayed, BenchError> {
    let Replay { trace, capacity, dim } = request;
    let bytes = fs::read(trace).map_err(|error| fault_of(trace, error.to_string()))?;
    let (ids, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(fault_of(trace, "no file of u32"));
    }
    let selected = setup.config.memory.cache.selected();
    let (plugins, component) = (setup.plugins(), &selected.profile.plugin);
    let options = selected.options_json(&plugins.options_schema(ComponentKind::CachePolicy, component)?);
    let limits = CacheLimits { max_bytes: u64::MAX, max_entries: *capacity };
    let cache = EmbeddingCache::new(plugins.cache_policy(component, &options)?, limits);
    let (vector, mut out) = (vec![0.0; *dim], vec![0.0; *dim]);
    let untimed = |error: std::io::Error| BenchError::Worker {
        name: component.clone(),
        fault: format!("the system does not tell its CPU time: {error}"),
    };
    let (cpu, start) = (ProcessTime::try_now().map_err(untimed)?, Instant::now());
    for &id in ids {
        // As mixed as the hashes that keys are elsewhere.
        let id = u64::from(u32::from_le_bytes(id)).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let key = CacheKey { id, check: id };
        if !cache.get(&key, &mut out) {
            cache.insert(&key, &vector);
        }
    }
    let (cpu_s, seconds) = (cpu.try_elapsed().map_err(untimed)?.as_secs_f64(), start.elapsed().as_secs_f64());
    let memory = cache.memory();
    let (requests, held) = (ids.len() as u64, cache.policy_memory().into());
    Ok(Replayed { requests, hits: memory.counts.hits, cpu_s, seconds, held, bytes: memory.bytes })
}
