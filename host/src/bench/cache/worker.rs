//! A process that has one cache policy replay requests, in the cache of embeddings that it rules elsewhere.
use super::{
    super::{
        BenchError,
        worker::{Held, Spent},
    },
    CacheTrace, in_cache,
};
use crate::engine::Setup;
use serde::{Deserialize, Serialize};

/// What a worker is asked: replay so many requests of so many keys by Zipf's law in a cache of `capacity` vectors that
/// are `dim` wide. What is not there is put in.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "as said")]
pub struct Replay {
    pub keys: usize,
    pub requests: usize,
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
    let &Replay { keys, requests, capacity, dim } = request;
    let trace = CacheTrace::zipf(keys, 1.0, requests);
    let policy = setup.cache_policy(&setup.plugins(), &setup.config.memory.cache.profile)?;
    let mut spent = Spent::default();
    let cache = spent.on(|| in_cache(policy, &trace, capacity, dim))?;
    let memory = cache.memory();
    Ok(Replayed {
        requests: requests as u64,
        hits: memory.counts.hits,
        cpu_s: spent.cpu.as_secs_f64(),
        held: cache.policy_memory().into(),
        bytes: memory.bytes,
    })
}
