//! How fast indexes are, at which recall and in how much memory.
mod contestant;
mod curve;
mod set;
mod sweep;
mod worker;

pub use set::VectorSet;
pub use worker::{IndexBackend, IndexReply, IndexTask, Setting, Sweep, serve_index};

use super::{BenchError, Contestant, metrics::Ranking, throughput::interruptible, worker::Held};
use crate::plugins::Plugins;
use contestant::Running;
pub(super) use curve::{Cost, cheapest, pareto_front};
use magray_plugin_api::{CallContext, Metric};
use serde::{Deserialize, Serialize};
use set::{K, Neighbours};
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};
use sweep::{measure_filter, measure_sweep};

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct IndexRequest {
    /// Who takes part.
    pub contestants: Vec<Contestant>,
    /// Numbers of threads; the indexes are built with the first.
    pub threads: Vec<usize>,
    /// Numbers of queries in one call; latency and filters are measured with the first.
    pub batches: Vec<usize>,
    /// The recall at which latency and filtered search are measured.
    pub recall: f64,
    /// How often each is measured.
    pub runs: usize,
    /// Shares of the vectors that filters let through, for filtered search.
    pub shares: Vec<f64>,
    /// What is relevant to each query, for points that say how good their answers are.
    pub judged: Option<Judged>,
}

/// Relevance of rows by query, for those that are relevant.
#[derive(Clone, Debug)]
pub struct Judged(pub Vec<HashMap<u64, u32>>);

impl Judged {
    /// How good these answers are, to the depth of ten.
    fn rank(&self, found: &[Vec<u64>]) -> Ranking {
        let one = |(found, judged): (&Vec<u64>, &HashMap<u64, u32>)| {
            let grades: Vec<u32> = found.iter().map(|id| judged.get(id).copied().unwrap_or(0)).collect();
            Ranking::of(&grades, &judged.values().copied().collect::<Vec<_>>())
        };
        Ranking::mean(&found.iter().zip(&self.0).map(one).collect::<Vec<_>>())
    }
}

/// Calls by how long they took: at `n`, those of 10^(n/20) microseconds and more, but less than of the next.
pub type Histogram = BTreeMap<i32, u32>;

/// What was measured.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct IndexFigures {
    pub set: String,
    pub metric: &'static str,
    pub rows: usize,
    pub dim: usize,
    pub queries: usize,
    pub k: usize,
    pub builds: Vec<Build>,
    pub searches: Vec<Searched>,
}

/// How an index was built.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Build {
    /// Who.
    pub name: String,
    /// What it ran.
    pub engine: String,
    /// With which options.
    pub options: String,
    /// Cores and threads that it had.
    pub threads: usize,
    /// From the first vector to the saved file.
    pub vectors_per_cpu_s: f64,
    /// The same by the wall's clock.
    pub seconds: f64,
    /// Length of its files.
    pub file_bytes_per_vector: f64,
}

/// How an index was searched with so many threads.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Searched {
    /// Who.
    pub name: String,
    /// Cores and threads that it had.
    pub threads: usize,
    /// Milliseconds from its files, which the system has in its cache, to an index.
    pub open_ms: f64,
    /// Milliseconds of the first search thereafter.
    pub first_ms: f64,
    /// Growth of the process's resident memory, mapped files with it, from before the opening to the end of all
    /// searches. None where the system does not tell.
    pub memory_bytes_per_vector: Option<f64>,
    /// What the plugin says that it held after the last search; none of those who do not say.
    pub held: Option<Held>,
    /// By the number of queries in one call.
    pub curves: Vec<Curve>,
    /// At the recall asked for; none where it takes no filters.
    pub filtered: Vec<Filtered>,
}

/// Speed against recall.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Curve {
    /// Queries in one call.
    pub batch: usize,
    /// What was measured: without settings that another one leaves far behind.
    pub points: Vec<Point>,
    /// Interpolated along the front of the points that none is superior to.
    pub at: Vec<At>,
    /// The place of the cheapest point that reaches the recall asked for, else of the one that comes nearest.
    pub chosen: usize,
}

/// Speed at a recall.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct At {
    /// Of ten neighbours.
    pub recall: f64,
    /// None where no setting reaches it.
    pub queries_per_cpu_s: Option<f64>,
}

/// Speed with a setting.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Point {
    /// The knobs.
    pub setting: Setting,
    /// Of ten neighbours.
    pub recall: f64,
    /// How good the answers are by nDCG@10; none where nothing is judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ndcg_10: Option<f64>,
    /// And its speed.
    #[serde(flatten)]
    pub speed: Speed,
    /// Calls of all runs.
    pub calls: Histogram,
}

/// Medians over the runs.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Speed {
    pub queries_per_cpu_s: f64,
    pub queries_per_s: f64,
    /// Milliseconds of one call: median, 95th and 99th percentile over all runs.
    pub p50_ms: f64,
    pub p95_ms: f64,
    pub p99_ms: f64,
    /// From the slowest run to the fastest by CPU time, as a share of the median.
    pub spread: f64,
}

/// Speed where only some vectors may be found.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Filtered {
    /// The share of them.
    pub share: f64,
    /// Among these.
    pub recall: f64,
    /// With the setting that was chosen without a filter.
    #[serde(flatten)]
    pub speed: Speed,
}

/// Settings of a sweep, until it is known how many there are.
const EXPECTED: usize = 14;

/// Builds all indexes, each in a process of its own, opens each in another one, and measures these in turn, run by
/// run, so that other work on the machine hits them alike. `folder` is an empty one for the indexes; `plugins` have
/// the exact index that computes what is right. `progress` is told how many measurements are done, of how many as far
/// as is known, and whose turn it was.
///
/// # Errors
/// [`BenchError`] where any of them fails: a table that lacks one says nothing of it.
pub fn measure_index(
    cx: &dyn CallContext,
    request: &IndexRequest,
    set: &mut VectorSet,
    plugins: &Plugins,
    folder: &Path,
    progress: &mut dyn FnMut(usize, usize, &str),
) -> Result<IndexFigures, BenchError> {
    let (Some(&threads), Some(&batch)) = (request.threads.first(), request.batches.first()) else {
        return Err(BenchError::Worker { name: "the bench".into(), fault: "no threads, or no batch".into() });
    };
    let mut steps = Steps::new(request, progress);
    let builders = request.contestants.iter().map(|contestant| Running::start(contestant, threads, set));
    // All of them first, so that one that cannot start is known before hours of work.
    let builders = interruptible(cx, builders.collect::<Result<Vec<_>, _>>())?;
    steps.told("true neighbours");
    let truth = interruptible(cx, set.neighbours(cx, plugins))?;
    let mut builds = Vec::new();
    for (place, builder) in builders.into_iter().enumerate() {
        steps.told(&builder.contestant.name);
        builds.push(interruptible(cx, builder.build(&folder.join(place.to_string()), set.rows()))?);
        steps.done();
    }
    let filters = filters(cx, request, set, plugins, folder)?;
    let mut searches = Vec::new();
    for &threads in &request.threads {
        let open = |(place, contestant): (usize, _)| {
            Running::start(contestant, threads, set)?.open(&folder.join(place.to_string()))
        };
        let opened = request.contestants.iter().enumerate().map(open).collect::<Result<Vec<_>, _>>();
        let mut opened = interruptible(cx, opened)?;
        for &batch in &request.batches {
            measure_sweep(cx, request, set, &truth, &mut opened, batch, &mut steps)?;
        }
        for filter in &filters {
            measure_filter(cx, request, set, filter, &mut opened, batch, &mut steps)?;
        }
        searches.extend(opened.into_iter().map(|opened| opened.end(set.rows())));
    }
    Ok(IndexFigures {
        set: set.name(),
        metric: worker::name_of(set.metric()),
        rows: set.rows(),
        dim: set.dim(),
        queries: set.query_count(),
        k: K,
        builds,
        searches,
    })
}

/// The metric of this name: cosine, dot or l2.
pub fn metric_named(name: &str) -> Option<Metric> {
    [Metric::Cosine, Metric::Dot, Metric::L2].into_iter().find(|&metric| worker::name_of(metric) == name)
}

/// The rows that may be found, in a file for the workers, and the nearest of them to each query.
struct Filter {
    share: f64,
    path: PathBuf,
    allowed: HashSet<u64>,
    truth: Neighbours,
}

fn filters(
    cx: &dyn CallContext,
    request: &IndexRequest,
    set: &mut VectorSet,
    plugins: &Plugins,
    folder: &Path,
) -> Result<Vec<Filter>, BenchError> {
    let make = |share| {
        let rows = set.draw(share);
        let path = folder.join(format!("allowed-{share}"));
        let bytes: Vec<u8> = rows.iter().flat_map(|row| row.to_le_bytes()).collect();
        fs::write(&path, bytes).map_err(write_failed(&path))?;
        let truth = interruptible(cx, set.exact(cx, plugins, Some(&rows)))?;
        let allowed = rows.into_iter().map(u64::from).collect();
        Ok(Filter { share, path, allowed, truth })
    };
    request.shares.iter().copied().map(make).collect()
}

fn write_failed(path: &Path) -> impl FnOnce(io::Error) -> BenchError {
    let path = path.to_owned();
    move |error| BenchError::Data { path, fault: error.to_string() }
}

/// How far a measurement is.
struct Steps<'a> {
    progress: &'a mut dyn FnMut(usize, usize, &str),
    done: usize,
    of: usize,
    contestants: usize,
}

impl<'a> Steps<'a> {
    fn new(request: &IndexRequest, progress: &'a mut dyn FnMut(usize, usize, &str)) -> Self {
        let rounds = EXPECTED * request.batches.len() + request.shares.len();
        let searches = request.threads.len() * rounds * (request.runs + 1);
        let contestants = request.contestants.len();
        Self { progress, done: 0, of: contestants * (1 + searches), contestants }
    }

    /// Whose turn it is.
    fn told(&mut self, name: &str) {
        (self.progress)(self.done, self.of, name);
    }

    fn done(&mut self) {
        self.done += 1;
    }

    /// So many settings are measured in each of so many rounds.
    fn settings(&mut self, count: usize, rounds: usize) {
        self.of = (self.of + count * rounds).saturating_sub(self.contestants * EXPECTED * rounds);
    }
}
