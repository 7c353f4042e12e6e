//! From the runs of the cells to figures, and from these to what combinations do.
use super::{
    super::{
        Conditions, Contestant, Held, Histogram, Machine, Ran, Replayed, Setting,
        index::{Cost, cheapest, pareto_front},
        metrics::Ranking,
        throughput::quantile,
    },
    Fault, MatrixRequest, Runs,
    cells::{EmbedCell, Files, IndexCell},
};
use serde::Serialize;
use std::collections::BTreeMap;

/// A figure that was measured several times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Figure {
    pub median: f64,
    pub low: f64,
    pub high: f64,
}

impl Figure {
    fn of(values: impl IntoIterator<Item = f64>) -> Self {
        let values: Vec<f64> = values.into_iter().collect();
        if values.is_empty() {
            return Self::default();
        }
        let at = |share| quantile(values.clone(), share);
        Self { median: at(0.5), low: at(0.0), high: at(1.0) }
    }

    /// From the lowest to the highest, as a share of the median.
    pub fn spread(&self) -> f64 {
        if self.median == 0.0 { 0.0 } else { (self.high - self.low) / self.median }
    }
}

/// All that was measured, and what combinations do.
#[derive(Clone, Debug, Serialize)]
pub struct Matrix {
    /// The data set.
    pub set: String,
    /// Where its questions come from.
    pub questions_from: String,
    /// Texts that are searched.
    pub documents: usize,
    /// Questions.
    pub questions: usize,
    /// Threads and cores of each.
    pub threads: usize,
    /// How often each was measured.
    pub runs: usize,
    /// The recall that the settings of the rows were to reach.
    pub recall: f64,
    /// Embedding backends.
    pub backends: Vec<EmbedFigures>,
    /// Indexes, by space.
    pub indexes: Vec<IndexSummary>,
    /// Cache policies, by size.
    pub caches: Vec<CacheSummary>,
    /// Every backend with every index and every cache.
    pub rows: Vec<Row>,
    /// Who could not be measured.
    pub faults: Vec<Fault>,
    /// What may have spoiled the figures.
    pub noise: Noise,
}

/// An embedding backend.
#[derive(Clone, Debug, Serialize)]
pub struct EmbedFigures {
    /// Its name.
    pub name: String,
    /// What it ran.
    #[serde(flatten)]
    pub ran: Ran,
    /// The digest of the space of its vectors.
    pub space: String,
    /// Their width.
    pub dim: usize,
    /// From the start of a process to a model that is loaded.
    pub start_s: Figure,
    /// Documents a second, in the order in which they stand.
    pub texts_per_s: Figure,
    /// The same in tokens.
    pub tokens_per_s: Figure,
    /// Milliseconds of one question: median, 95th and 99th percentile.
    pub p50_ms: Figure,
    #[expect(missing_docs, reason = "as above")]
    pub p95_ms: Figure,
    #[expect(missing_docs, reason = "as above")]
    pub p99_ms: Figure,
    /// Memory of the whole process; none where the system does not tell.
    pub resident_bytes: Option<f64>,
    /// What the plugin says that it holds.
    pub held: Held,
    /// Of its own vectors, by comparing each question with every document.
    pub exact: Ranking,
}

/// An index over the vectors of a space.
#[derive(Clone, Debug, Serialize)]
pub struct IndexSummary {
    /// The digest of the space.
    pub space: String,
    /// The backend whose vectors were taken.
    pub vectors_of: String,
    /// Its name.
    pub name: String,
    /// What it ran, and with which options.
    pub engine: String,
    #[expect(missing_docs, reason = "as above")]
    pub options: String,
    /// Vectors a second, from the first to the saved file.
    pub build_per_s: Figure,
    /// The same by CPU time.
    pub build_per_cpu_s: Figure,
    /// Length of its files.
    pub disk_bytes: f64,
    /// Milliseconds of opening them.
    pub open_ms: Figure,
    /// Growth of a process that opens and searches it, mapped files with it; none where the system does not tell.
    pub resident_bytes: Option<f64>,
    /// What the plugin says that it holds; none of peers.
    pub held: Option<Held>,
    /// By setting.
    pub points: Vec<PointSummary>,
    /// The places of those that no other is superior to in recall and speed, by ascending recall.
    pub front: Vec<usize>,
    /// The place of the cheapest that reaches the recall asked for, else of the one that comes nearest.
    pub chosen: usize,
    /// Whether anything but this program runs it.
    pub peer: bool,
}

/// An index with a setting of its knobs.
#[derive(Clone, Debug, Serialize)]
pub struct PointSummary {
    /// The knobs.
    pub setting: Setting,
    /// The share of the ten nearest vectors that it finds.
    pub recall: f64,
    /// How good its answers are.
    pub ndcg_10: f64,
    /// One query a call.
    pub queries_per_s: Figure,
    /// The same by CPU time.
    pub queries_per_cpu_s: Figure,
    /// Milliseconds of one call: median, 95th and 99th percentile.
    pub p50_ms: Figure,
    #[expect(missing_docs, reason = "as above")]
    pub p95_ms: Figure,
    #[expect(missing_docs, reason = "as above")]
    pub p99_ms: Figure,
    /// Calls of all runs.
    pub calls: Histogram,
}

/// A cache policy with so much room.
#[derive(Clone, Debug, Serialize)]
pub struct CacheSummary {
    /// Its name.
    pub name: String,
    /// Room, as a share of all texts, and in vectors.
    pub share: f64,
    #[expect(missing_docs, reason = "as above")]
    pub capacity: usize,
    /// Requests that it answered, of those of the trace.
    pub hit_ratio: f64,
    /// Nanoseconds of CPU time for one request, with the copy of the vector.
    pub ns: Figure,
    /// Bytes of the vectors in it, with their keys.
    pub bytes: f64,
    /// What the policy says that it holds for itself.
    pub held: Held,
}

/// A combination, computed from its parts.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The parts.
    pub backend: String,
    #[expect(missing_docs, reason = "as above")]
    pub model: String,
    #[expect(missing_docs, reason = "as above")]
    pub index: String,
    /// The knobs of the index: the cheapest that reach the recall asked for.
    pub setting: Setting,
    #[expect(missing_docs, reason = "as above")]
    pub cache: String,
    /// Room of the cache, as a share of all texts.
    pub cache_share: f64,
    /// How good the answers are: those of the index on the vectors of the space.
    pub ndcg_10: f64,
    /// The share of the ten nearest vectors that the index finds.
    pub recall: f64,
    /// Texts that are embedded in a second.
    pub texts_per_s: f64,
    /// Vectors that are built into the index in a second.
    pub build_per_s: f64,
    /// Milliseconds of a query that no cache answers: the sum of both parts' percentiles, so that the 95th and 99th
    /// are rather too high.
    pub p50_ms: f64,
    #[expect(missing_docs, reason = "as above")]
    pub p95_ms: f64,
    #[expect(missing_docs, reason = "as above")]
    pub p99_ms: f64,
    /// Milliseconds of a query of the trace in the mean, where the cache answers what it can.
    pub mean_ms: f64,
    /// Queries a second, one after the other, of the same.
    pub queries_per_s: f64,
    /// The share of the trace that the cache answers.
    pub hit_ratio: f64,
    /// Process of the backend, growth by the index, and cache.
    pub memory_bytes: f64,
    /// Files of the index.
    pub disk_bytes: f64,
    /// Whether its index is of another program, so that no configuration can name it.
    pub peer: bool,
}

/// What may have spoiled the figures.
#[derive(Clone, Debug, Serialize)]
pub struct Noise {
    /// Processes that wanted a core while cells were measured, lowest and highest.
    pub load: [f64; 2],
    /// Frequency of the cores then; none where the system does not tell.
    pub mhz: Option<[f64; 2]>,
    /// How often the processor was slowed down for heat from the first cell to the last; none where it is not told.
    pub throttled: Option<u64>,
    /// The widest spread of a figure over the runs, and of what.
    pub widest: Option<(f64, String)>,
    /// In words.
    pub note: String,
}

type All<'a> = (
    Runs<&'a Contestant, EmbedCell>,
    Runs<(&'a str, &'a Contestant), IndexCell>,
    Runs<(&'a Contestant, f64), Replayed>,
);

pub(super) fn matrix(
    request: &MatrixRequest,
    files: &Files<'_>,
    (embedded, indexed, cached): All<'_>,
    faults: Vec<Fault>,
    (before, conditions): (Conditions, &[Conditions]),
) -> Matrix {
    let (documents, questions) = request.set.counts();
    let backends: Vec<EmbedFigures> =
        embedded.iter().filter_map(|(contestant, cells)| backend(contestant, cells)).collect();
    let indexes = indexed.iter().filter_map(|((space, contestant), cells)| {
        let vectors_of = files.read_space(space).map(|space| space.backend).unwrap_or_default();
        index((space, vectors_of, contestant), cells, documents, request.recall)
    });
    let indexes: Vec<IndexSummary> = indexes.collect();
    let caches = cached.iter().filter_map(|((contestant, share), cells)| {
        cache((contestant, *share, request.capacity(*share)), cells)
    });
    let caches: Vec<CacheSummary> = caches.collect();
    let mut rows = Vec::new();
    for backend in &backends {
        for index in indexes.iter().filter(|index| index.space == backend.space) {
            rows.extend(
                caches.iter().filter_map(|cache| row(backend, index, index.points.get(index.chosen)?, cache)),
            );
        }
    }
    let noise = noise(before, conditions, &backends, &indexes);
    Matrix {
        set: request.set.name.clone(),
        questions_from: request.set.origin.clone(),
        documents,
        questions,
        threads: request.threads,
        runs: request.runs,
        recall: request.recall,
        backends,
        indexes,
        caches,
        rows,
        faults,
        noise,
    }
}

fn backend(contestant: &Contestant, cells: &[EmbedCell]) -> Option<EmbedFigures> {
    let first = cells.first()?;
    let of = |figure: fn(&EmbedCell) -> f64| Figure::of(cells.iter().map(figure));
    let resident: Vec<f64> = cells.iter().filter_map(|cell| Some(cell.resident_bytes? as f64)).collect();
    Some(EmbedFigures {
        name: contestant.name.clone(),
        ran: first.ran.clone(),
        space: first.space.clone(),
        dim: first.dim?,
        start_s: of(|cell| cell.start_s),
        texts_per_s: of(|cell| cell.texts_per_s),
        tokens_per_s: of(|cell| cell.tokens_per_s),
        p50_ms: of(|cell| cell.ms[0]),
        p95_ms: of(|cell| cell.ms[1]),
        p99_ms: of(|cell| cell.ms[2]),
        resident_bytes: (!resident.is_empty()).then(|| quantile(resident, 0.5)),
        held: first.held,
        exact: first.exact?,
    })
}

fn index(
    (space, vectors_of, contestant): (&str, String, &Contestant),
    cells: &[IndexCell],
    documents: usize,
    recall: f64,
) -> Option<IndexSummary> {
    let first = cells.first()?;
    let of = |figure: &dyn Fn(&IndexCell) -> f64| Figure::of(cells.iter().map(figure));
    let rows = documents as f64;
    let resident: Vec<f64> =
        cells.iter().filter_map(|cell| Some(cell.searched.memory_bytes_per_vector? * rows)).collect();
    // A setting that the sweep of some runs left out was far behind.
    let mut by_setting: BTreeMap<&Setting, Vec<_>> = BTreeMap::new();
    for point in cells.iter().flat_map(|cell| &cell.searched.curves).flat_map(|curve| &curve.points) {
        by_setting.entry(&point.setting).or_default().push(point);
    }
    let points = by_setting.into_iter().filter(|(_, points)| points.len() * 2 > cells.len());
    let points = points.map(|(setting, points)| {
        let of =
            |figure: fn(&super::super::Point) -> f64| Figure::of(points.iter().map(|point| figure(point)));
        let mut calls = Histogram::new();
        for (&place, count) in points.iter().flat_map(|point| &point.calls) {
            *calls.entry(place).or_default() += count;
        }
        PointSummary {
            setting: setting.clone(),
            recall: of(|point| point.recall).median,
            ndcg_10: of(|point| point.ndcg_10.unwrap_or(0.0)).median,
            queries_per_s: of(|point| point.speed.queries_per_s),
            queries_per_cpu_s: of(|point| point.speed.queries_per_cpu_s),
            p50_ms: of(|point| point.speed.p50_ms),
            p95_ms: of(|point| point.speed.p95_ms),
            p99_ms: of(|point| point.speed.p99_ms),
            calls,
        }
    });
    let points: Vec<PointSummary> = points.collect();
    let costs: Vec<Cost> = points
        .iter()
        .map(|point| Cost { recall: point.recall, speed: point.queries_per_cpu_s.median })
        .collect();
    let chosen = cheapest(&costs, recall)?;
    let front = pareto_front(costs.clone());
    let front = front.iter().filter_map(|best| costs.iter().position(|cost| cost == best)).collect();
    Some(IndexSummary {
        space: space.to_owned(),
        vectors_of,
        name: contestant.name.clone(),
        engine: first.build.engine.clone(),
        options: first.build.options.clone(),
        build_per_s: of(&|cell| rows / cell.build.seconds),
        build_per_cpu_s: of(&|cell| cell.build.vectors_per_cpu_s),
        disk_bytes: of(&|cell| cell.build.file_bytes_per_vector * rows).median,
        open_ms: of(&|cell| cell.searched.open_ms),
        resident_bytes: (!resident.is_empty()).then(|| quantile(resident, 0.5)),
        held: first.searched.held,
        points,
        front,
        chosen,
        peer: contestant.program.is_none(),
    })
}

fn cache(
    (contestant, share, capacity): (&Contestant, f64, usize),
    cells: &[Replayed],
) -> Option<CacheSummary> {
    let first = cells.first()?;
    let requests = first.requests.max(1) as f64;
    Some(CacheSummary {
        name: contestant.name.clone(),
        share,
        capacity,
        hit_ratio: Figure::of(cells.iter().map(|cell| cell.hits as f64 / requests)).median,
        ns: Figure::of(cells.iter().map(|cell| cell.cpu_s / requests * 1e9)),
        bytes: first.bytes as f64,
        held: first.held,
    })
}

/// What a backend, an index at a point and a cache do together; none where they are of different spaces.
pub(super) fn row(
    backend: &EmbedFigures,
    index: &IndexSummary,
    point: &PointSummary,
    cache: &CacheSummary,
) -> Option<Row> {
    let miss = 1.0 - cache.hit_ratio;
    let mean_ms = cache.ns.median / 1e6 + miss * backend.p50_ms.median + 1000.0 / point.queries_per_s.median;
    let held = |held: &Held| (held.resident + held.device) as f64;
    let memory_bytes = backend.resident_bytes.unwrap_or_else(|| held(&backend.held))
        + index.resident_bytes.or_else(|| index.held.as_ref().map(held)).unwrap_or(0.0)
        + cache.bytes
        + held(&cache.held);
    (backend.space == index.space).then(|| Row {
        backend: backend.name.clone(),
        model: backend.ran.model.clone(),
        index: index.name.clone(),
        setting: point.setting.clone(),
        cache: cache.name.clone(),
        cache_share: cache.share,
        ndcg_10: point.ndcg_10,
        recall: point.recall,
        texts_per_s: backend.texts_per_s.median,
        build_per_s: index.build_per_s.median,
        p50_ms: backend.p50_ms.median + point.p50_ms.median,
        p95_ms: backend.p95_ms.median + point.p95_ms.median,
        p99_ms: backend.p99_ms.median + point.p99_ms.median,
        mean_ms,
        queries_per_s: 1000.0 / mean_ms,
        hit_ratio: cache.hit_ratio,
        memory_bytes,
        disk_bytes: index.disk_bytes,
        peer: index.peer,
    })
}

/// Figures whose runs lie farther apart than this, by share, are said to be noisy.
const NOISY: f64 = 0.25;

fn noise(
    before: Conditions,
    conditions: &[Conditions],
    backends: &[EmbedFigures],
    indexes: &[IndexSummary],
) -> Noise {
    let ends = |values: Vec<f64>| -> Option<[f64; 2]> {
        Some([values.iter().copied().reduce(f64::min)?, values.iter().copied().reduce(f64::max)?])
    };
    let all = || conditions.iter().chain([&before]);
    let load = ends(all().map(|now| now.load).collect()).unwrap_or_default();
    let mhz = ends(all().filter_map(|now| now.mhz).collect());
    let throttled = all().filter_map(|now| now.throttled).max().zip(before.throttled);
    let throttled = throttled.map(|(last, first)| last.saturating_sub(first));
    let speeds = backends.iter().map(|of| (of.texts_per_s.spread(), format!("texts/s of {}", of.name)));
    let chosen = indexes.iter().filter_map(|of| Some((of, of.points.get(of.chosen)?)));
    let searches =
        chosen.map(|(of, point)| (point.queries_per_cpu_s.spread(), format!("queries/s of {}", of.name)));
    let widest = speeds.chain(searches).max_by(|a, b| a.0.total_cmp(&b.0));
    let cores = Machine::here().cores as f64;
    let mut notes = Vec::new();
    if load[1] > cores + 1.0 {
        notes.push(format!("other work ran beside it (load up to {:.1} on {cores} cores)", load[1]));
    }
    if let Some([low, high]) = mhz.filter(|[low, high]| high - low > 0.1 * high) {
        notes.push(format!("the cores ran at {low:.0} to {high:.0} MHz"));
    }
    if let Some(times) = throttled.filter(|&times| times > 0) {
        notes.push(format!("the processor was slowed down for heat {times} times"));
    }
    if let Some((spread, what)) = widest.as_ref().filter(|(spread, _)| *spread > NOISY) {
        notes.push(format!("the runs lie up to {:.0}% apart ({what})", spread * 100.0));
    }
    let note = match notes.is_empty() {
        true => "nothing that spoils figures was seen".to_owned(),
        false => format!("trust ratios before absolutes: {}", notes.join("; ")),
    };
    Noise { load, mhz, throttled, widest, note }
}
