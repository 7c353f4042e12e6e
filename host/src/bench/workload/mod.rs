//! A steady load on the engine itself, at rates that do not wait for it.
//!
//! Operations have the times at which they are due, whatever became of those before (an open loop). Latency counts
//! from then and not from when a thread was free to begin, so that a stall is seen in all operations that it held up
//! (Tene, "How NOT to Measure Latency", 2015, calls the error coordinated omission).
mod judge;
mod search;
mod tally;
mod trend;

pub use judge::{Sla, Verdict};
pub use search::{Searches, measure_searches};
pub use tally::{Operations, Quantiles};
pub use trend::{MemoryTrend, Sample};

use super::{BenchError, zipf::Zipf};
use crate::{
    engine::{Engine, EngineError, NewMemory, SearchRequest},
    resources::pressure::Pressure,
    store::{Filter, Layer, RecordId},
};
use magray_plugin_api::CallContext;
use serde::Serialize;
use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};
use tally::Tally;

/// What to do, and how often.
#[derive(Clone, Debug)]
pub struct WorkloadRequest {
    /// How long, after the warm-up.
    pub time: Duration,
    /// How long the load is there before anything counts.
    pub warm_up: Duration,
    /// Records that are added in a second; 0 adds none.
    pub inserts: f64,
    /// Queries in a second; 0 asks none.
    pub searches: f64,
    /// Records in one call, one size after the other, each for an equal part of the time.
    pub batches: Vec<usize>,
    /// Results of a query.
    pub k: usize,
    /// Threads that search; a quarter as many add.
    pub threads: usize,
    /// Records that are there before.
    pub records: usize,
    /// Whether as many of the oldest records are forgotten as are added, so that what is stored stays as much.
    pub steady: bool,
    /// The texts: those of the records, and the beginnings of some as queries.
    pub texts: Vec<String>,
    /// Different queries, asked by Zipf's law.
    pub queries: usize,
}

/// What became of it.
#[derive(Clone, Debug, Serialize)]
pub struct Workload {
    /// Seconds that count.
    pub seconds: f64,
    /// Records at the end.
    pub records: u64,
    /// Queries.
    pub search: Operations,
    /// Calls that add records, by the size of a call.
    pub inserts: Vec<Inserts>,
    /// Queries and records in a second.
    pub items_per_s: f64,
    /// The share of the queries whose vector came from the cache.
    pub hit_rate: f64,
    /// The share of all calls that failed.
    pub error_rate: f64,
    /// What the first of them said.
    pub first_error: Option<String>,
    /// Memory of the whole machine in use at the end, 0 to 1; none where the system does not tell.
    pub memory_used: Option<f64>,
    /// Memory of this process, second by second.
    pub memory: MemoryTrend,
}

/// Calls that add so many records each.
#[derive(Clone, Debug, Serialize)]
pub struct Inserts {
    /// Records in one call.
    pub batch: usize,
    /// The calls.
    #[serde(flatten)]
    pub calls: Operations,
}

/// Records stored in one call before the load.
const FILLING: usize = 500;
/// After the end, by share of the time, what has not begun is given up, and has failed.
const OVERTIME: f64 = 0.25;
/// Words of a query.
const QUERY_WORDS: usize = 8;

/// Fills an engine that is empty and puts the load on it. `done` is told each second how many have passed, and of how
/// many.
///
/// # Errors
/// [`BenchError`] where the load cannot begin; what fails then is counted.
pub fn run_workload(
    cx: &dyn CallContext,
    engine: &Arc<Engine>,
    request: &WorkloadRequest,
    progress: &dyn Fn(u64, u64),
) -> Result<Workload, BenchError> {
    let load = Load::new(request)?;
    load.fill(cx, engine)?;
    // As in a program that lives long; ends with this function.
    let _background = engine.start_background(|_| {}).map_err(EngineError::from)?;
    let start = Instant::now();
    let (found, stored, memory) = thread::scope(|scope| {
        let load = &load;
        let searchers: Vec<_> = (0..request.threads.max(1))
            .map(|_| scope.spawn(move || load.search(cx, engine, start)))
            .collect();
        let writers: Vec<_> = (0..request.threads.div_ceil(4))
            .map(|_| scope.spawn(move || load.insert(cx, engine, start)))
            .collect();
        let memory = watch(cx, start, request, progress);
        let of = |threads: Vec<thread::ScopedJoinHandle<'_, Tally>>| {
            let tallies = threads
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
            tallies.fold(Tally::default(), Tally::with)
        };
        (of(searchers), of(writers), memory)
    });
    if cx.is_cancelled() {
        return Err(BenchError::Interrupted);
    }
    let records = engine.store().count(&Filter::default()).map_err(EngineError::from)?;
    Ok(load.report(found, stored, memory, records))
}

/// A call that adds: when it is due, and how many records it has.
type Insert = (Duration, usize);

/// What threads share.
struct Load<'a> {
    request: &'a WorkloadRequest,
    queries: Vec<String>,
    /// Which of them is asked.
    zipf: Zipf,
    next_search: AtomicU64,
    /// Texts that were given away.
    given: AtomicU64,
    oldest: Mutex<VecDeque<RecordId>>,
    /// The calls that add which are still to come.
    inserts: Mutex<Box<dyn Iterator<Item = Insert> + Send + 'a>>,
}

impl<'a> Load<'a> {
    fn new(request: &'a WorkloadRequest) -> Result<Self, BenchError> {
        let fault = |fault: &str| BenchError::Worker { name: "the load".into(), fault: fault.into() };
        if request.texts.is_empty() || request.batches.contains(&0) || request.batches.is_empty() {
            return Err(fault("it needs texts, and calls of one record or more"));
        }
        let beginnings = request
            .texts
            .iter()
            .map(|text| text.split_whitespace().take(QUERY_WORDS).collect::<Vec<_>>().join(" "));
        let mut queries: Vec<String> =
            beginnings.filter(|query| !query.is_empty()).take(request.queries).collect();
        queries.dedup();
        if queries.is_empty() {
            return Err(fault("its texts have no word"));
        }
        Ok(Self {
            request,
            zipf: Zipf::new(queries.len(), 1.0),
            queries,
            next_search: AtomicU64::new(0),
            given: AtomicU64::new(0),
            oldest: Mutex::default(),
            inserts: Mutex::new(Box::new(schedule(request))),
        })
    }

    /// The texts that are stored in turn. Where what is stored stays as much they are few, so that the cache of
    /// embeddings, which may grow, soon has all of them.
    fn texts(&self) -> &[String] {
        let texts = &self.request.texts;
        let few = (2 * self.request.records).max(1);
        if self.request.steady { &texts[..texts.len().min(few)] } else { texts }
    }

    fn end(&self) -> Duration {
        self.request.warm_up + self.request.time
    }

    fn fill(&self, cx: &dyn CallContext, engine: &Engine) -> Result<(), BenchError> {
        let mut left = self.request.records;
        while left > 0 {
            let batch = left.min(FILLING);
            self.add(cx, engine, batch)?;
            left -= batch;
        }
        // The first search opens the index.
        self.ask(cx, engine, &self.queries[0])?;
        Ok(())
    }

    fn add(&self, cx: &dyn CallContext, engine: &Engine, count: usize) -> Result<(), BenchError> {
        let text = |_| {
            let at = self.given.fetch_add(1, Ordering::Relaxed) as usize;
            let texts = self.texts();
            let (round, text) = (at / texts.len(), &texts[at % texts.len()]);
            // The same text again would be the same record, where that is still there.
            let is_new = round == 0 || self.request.steady && texts.len() >= 2 * self.request.records;
            let text = if is_new { text.clone() } else { format!("{text} ({round})") };
            NewMemory { text, layer: Some(Layer::Assets), ..NewMemory::default() }
        };
        let added = engine.add(cx, (0..count).map(text).collect())?;
        if self.request.steady {
            let mut oldest = self.oldest.lock().unwrap_or_else(PoisonError::into_inner);
            oldest.extend(added.iter().map(|added| added.id));
            let more = oldest.len().saturating_sub(self.request.records.max(1));
            let gone: Vec<RecordId> = oldest.drain(..more).collect();
            drop(oldest);
            if !gone.is_empty() {
                engine.store().forget(&gone).map_err(EngineError::from)?;
            }
        }
        Ok(())
    }

    /// Whether the cache answered for the vector.
    fn ask(&self, cx: &dyn CallContext, engine: &Engine, query: &str) -> Result<bool, BenchError> {
        let settings = engine.setup().config.memory.search.clone();
        let answer = engine.search(cx, &SearchRequest::new(query, self.request.k, settings))?;
        Ok(answer.vector.is_some_and(|leg| leg.cached))
    }

    fn search(&self, cx: &dyn CallContext, engine: &Engine, start: Instant) -> Tally {
        let mut tally = Tally::default();
        if self.request.searches <= 0.0 {
            return tally;
        }
        loop {
            let n = self.next_search.fetch_add(1, Ordering::Relaxed);
            // Beyond all time at a rate near 0.
            let due = Duration::try_from_secs_f64(n as f64 / self.request.searches).unwrap_or(Duration::MAX);
            if due >= self.end() || !until(cx, start + due) {
                return tally;
            }
            let query = &self.queries[self.zipf.rank(n)];
            tally.time(due >= self.request.warm_up, start + due, 1, || {
                self.in_time(start).and_then(|()| self.ask(cx, engine, query))
            });
        }
    }

    fn insert(&self, cx: &dyn CallContext, engine: &Engine, start: Instant) -> Tally {
        let mut tally = Tally::default();
        loop {
            let next = self.inserts.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some((due, batch)) = next else { return tally };
            if !until(cx, start + due) {
                return tally;
            }
            let counts = due >= self.request.warm_up;
            tally.time(counts, start + due, batch, || {
                self.in_time(start).and_then(|()| self.add(cx, engine, batch)).map(|()| false)
            });
        }
    }

    /// An error where the system is so far behind that the load would never end.
    fn in_time(&self, start: Instant) -> Result<(), BenchError> {
        if start.elapsed() <= self.end().mul_f64(1.0 + OVERTIME) {
            return Ok(());
        }
        let fault = "it was given up long after it was due: the system does not keep up".to_owned();
        Err(BenchError::Worker { name: "the load".into(), fault })
    }

    fn report(&self, found: Tally, stored: Tally, memory: MemoryTrend, records: u64) -> Workload {
        let seconds = self.request.time.as_secs_f64();
        let search = found.of(1, seconds);
        // Each size has its part of the time.
        let part = seconds / self.request.batches.len() as f64;
        let mut sizes = self.request.batches.clone();
        sizes.sort_unstable();
        sizes.dedup();
        let inserts = sizes.iter().map(|&batch| {
            let parts = self.request.batches.iter().filter(|&&size| size == batch).count() as f64;
            Inserts { batch, calls: stored.of(batch, part * parts) }
        });
        let inserts: Vec<Inserts> = inserts.filter(|inserts| inserts.calls.calls > 0).collect();
        let records_added: u64 =
            inserts.iter().map(|of| (of.calls.calls - of.calls.failed) * of.batch as u64).sum();
        let calls = search.calls + inserts.iter().map(|of| of.calls.calls).sum::<u64>();
        let failed = search.failed + inserts.iter().map(|of| of.calls.failed).sum::<u64>();
        Workload {
            seconds,
            records,
            items_per_s: ((search.calls - search.failed) + records_added) as f64 / seconds,
            hit_rate: found.cached as f64 / (search.calls - search.failed).max(1) as f64,
            error_rate: failed as f64 / calls.max(1) as f64,
            first_error: found.first_error.or(stored.first_error),
            memory_used: memory_used(),
            search,
            inserts,
            memory,
        }
    }
}

/// The calls that add, in the order of their time, each made as it is asked for: a long load has many. The sizes share
/// the time after the warm-up, which has the first of them.
fn schedule(request: &WorkloadRequest) -> impl Iterator<Item = Insert> + Send + '_ {
    let rate = request.inserts;
    let part = request.time.as_secs_f64() / request.batches.len() as f64;
    let warm_up = request.warm_up.as_secs_f64();
    let first = request.batches.first().map(|&batch| (0.0, warm_up, batch));
    let others = request.batches.iter().enumerate().map(move |(place, &batch)| {
        let from = warm_up + place as f64 * part;
        (from, from + part, batch)
    });
    first.into_iter().chain(others).filter(move |_| rate > 0.0).flat_map(move |(from, to, batch)| {
        let every = batch as f64 / rate;
        let times = (0u64..).map(move |n| from + n as f64 * every).take_while(move |&due| due < to);
        times.map(move |due| (Duration::from_secs_f64(due), batch))
    })
}

/// Waits until something is due; false where the load was called off.
fn until(cx: &dyn CallContext, due: Instant) -> bool {
    // In steps, so that Ctrl-C is heard.
    loop {
        if cx.is_cancelled() {
            return false;
        }
        let left = due.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        thread::sleep(left.min(Duration::from_millis(100)));
    }
}

/// Looks at the memory of this process each second until the end.
fn watch(
    cx: &dyn CallContext,
    start: Instant,
    request: &WorkloadRequest,
    progress: &dyn Fn(u64, u64),
) -> MemoryTrend {
    let mut samples = Vec::new();
    let all = (request.warm_up + request.time).as_secs();
    for second in request.warm_up.as_secs().. {
        let due = Duration::from_secs(second);
        if due > request.warm_up + request.time || !until(cx, start + due) {
            break;
        }
        progress(second, all);
        let bytes = Pressure::sample().process.resident;
        // 0 where the system does not tell.
        samples.extend((bytes > 0).then(|| Sample { second: start.elapsed().as_secs_f64(), bytes }));
    }
    MemoryTrend::of(samples)
}

/// The share of the machine's memory that is in use.
fn memory_used() -> Option<f64> {
    let pressure = Pressure::sample();
    pressure.limits.iter().find(|limit| limit.name == "machine").map(|limit| limit.percent() / 100.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> WorkloadRequest {
        WorkloadRequest {
            time: Duration::from_secs(8),
            warm_up: Duration::from_secs(1),
            inserts: 100.0,
            searches: 1000.0,
            batches: vec![1, 10, 50, 100],
            k: 10,
            threads: 4,
            records: 0,
            steady: false,
            texts: vec!["one two".into(), "three four five".into(), " ".into()],
            queries: 10,
        }
    }

    #[test]
    fn each_size_of_call_has_its_part_of_the_time_and_the_rate_stays() {
        let request = request();
        let calls: Vec<Insert> = schedule(&request).collect();
        for (place, batch) in [1, 10, 50, 100].into_iter().enumerate() {
            let from = Duration::from_secs(1 + 2 * place as u64);
            let of = calls.iter().filter(|(due, _)| (from..from + Duration::from_secs(2)).contains(due));
            let of: Vec<_> = of.collect();
            assert_eq!((of.len(), of.iter().all(|(_, size)| *size == batch)), (200 / batch, true));
        }
        assert!(calls.is_sorted());
        assert_eq!(schedule(&WorkloadRequest { inserts: 0.0, ..request }).next(), None);
    }

    #[test]
    fn a_load_without_end_begins_at_once() {
        // Listed beforehand, its calls would be more than any memory holds.
        let time = Duration::from_secs(1 << 50);
        let request = WorkloadRequest { time, warm_up: Duration::ZERO, batches: vec![1], ..request() };
        let load = Load::new(&request).unwrap();
        let call = load.inserts.lock().unwrap().nth(12_345);
        assert_eq!(call, Some((Duration::from_millis(123_450), 1)));
    }

    #[test]
    fn a_load_without_texts_or_with_empty_calls_does_not_begin() {
        for broken in [
            WorkloadRequest { texts: Vec::new(), ..request() },
            WorkloadRequest { texts: vec!["  ".into()], ..request() },
            WorkloadRequest { batches: vec![0], ..request() },
        ] {
            assert!(Load::new(&broken).is_err(), "{broken:?}");
        }
    }
}
