//! Whole searches of what is stored, one after the other.
use super::tally::{LONGEST, Operations};
use crate::{
    bench::BenchError,
    engine::{Engine, EngineError, SearchRequest, VectorLeg},
    store::Filter,
};
use hdrhistogram::Histogram;
use magray_plugin_api::CallContext;
use serde::Serialize;
use std::time::Instant;

/// What was measured.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Searches {
    /// Records that are stored.
    pub records: u64,
    /// Who answered: embedding profile, model and index profile.
    pub backend: String,
    #[expect(missing_docs, reason = "as above")]
    pub model: String,
    #[expect(missing_docs, reason = "as above")]
    pub index: String,
    /// Milliseconds of the first search, which loads what it needs.
    pub first_ms: f64,
    /// Each query for the first time.
    pub embedded: Operations,
    /// And again, when the cache has its vector.
    pub cached: Operations,
    /// Queries that found nothing.
    pub empty: u64,
}

/// Asks every query twice. `done` is told after each.
///
/// # Errors
/// [`BenchError`] where a search fails.
pub fn measure_searches(
    cx: &dyn CallContext,
    engine: &Engine,
    queries: &[String],
    k: usize,
    filter: &Filter,
    done: &mut dyn FnMut(),
) -> Result<Searches, BenchError> {
    let ask = |query: &str| {
        let settings = engine.setup().config.memory.search.clone();
        let request = SearchRequest { filter: filter.clone(), ..SearchRequest::new(query, k, settings) };
        let start = Instant::now();
        let answer = engine.search(cx, &request)?;
        Ok::<_, EngineError>((answer, start.elapsed()))
    };
    // A query of our own, so that the first of theirs is not in the cache.
    let (answer, first) = ask("what is stored here")?;
    // None where words alone are searched.
    let leg = |name: fn(VectorLeg) -> String| answer.vector.clone().map(name).unwrap_or_default();
    let mut found = Searches {
        records: engine.store().count(filter).map_err(EngineError::from)?,
        backend: leg(|leg| leg.backend),
        model: leg(|leg| leg.model),
        index: leg(|leg| leg.index),
        first_ms: first.as_secs_f64() * 1000.0,
        ..Searches::default()
    };
    let mut round = |empty: &mut u64| {
        let unfit = |error: hdrhistogram::CreationError| BenchError::Worker {
            name: "the histogram".into(),
            fault: error.to_string(),
        };
        let mut times = Histogram::new_with_bounds(1, LONGEST, 3).map_err(unfit)?;
        let start = Instant::now();
        for query in queries {
            let (answer, took) = ask(query)?;
            times.saturating_record(u64::try_from(took.as_micros()).unwrap_or(LONGEST));
            *empty += u64::from(answer.hits.is_empty());
            done();
        }
        let per_s = queries.len() as f64 / start.elapsed().as_secs_f64();
        let (latency, service) = ((&times).into(), (&times).into());
        Ok::<_, BenchError>(Operations { calls: times.len(), failed: 0, per_s, latency, service })
    };
    found.embedded = round(&mut found.empty)?;
    found.cached = round(&mut 0)?;
    Ok(found)
}
