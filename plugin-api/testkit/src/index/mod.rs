//! Checks of vector indexes: what one can ask of an empty or small one. Answers are compared in
//! `answers`, files in `files`.

mod answers;
mod files;

use crate::{
    Asks, Checked, Cx, DESCRIBES, HEALTHY, MEMORY, Outcome, POLLS, Polled, Report, Run, Settings,
    TUNE_UNKNOWN, describes, ensure, healthy, memory, polls, random::Random, refused, tune_unknown,
};
use magray_plugin_api::{ErrorCode, Hit, IdFilter, IndexSpec, Metric, Result, SearchParams, VectorIndex};
use std::{
    collections::HashSet,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

type Index = Box<dyn VectorIndex>;
type Make<'a> = &'a dyn Fn(IndexSpec) -> Result<Index>;
type Open<'a> = &'a dyn Fn(IndexSpec, &Path) -> Result<Index>;

/// Checks an index. `make` makes an empty one; `open` opens what `save` wrote, and without it the
/// checks of files are skipped. What `make` refuses as `UNSUPPORTED` is skipped too.
pub fn index(make: Make<'_>, open: Option<Open<'_>>) -> Report {
    let mut all = Run::new(None, Settings::default());
    run(&mut all, make, open);
    all.report
}

pub(crate) fn run(run: &mut Run<'_>, make: Make<'_>, open: Option<Open<'_>>) {
    let subject = Subject::new(make, open, run.settings);
    for &(name, asks, check) in entries() {
        run.check((name, asks), || check(&subject));
    }
}

pub(crate) fn asks() -> impl Iterator<Item = Asks> {
    entries().map(|&(name, asks, _)| (name, asks))
}

fn entries() -> impl Iterator<Item = &'static Entry> {
    CHECKS.iter().chain(answers::CHECKS).chain(files::CHECKS)
}

/// Width of the indexes of most checks.
const DIM: usize = 16;

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::L2, Metric::Dot];

/// The plugin's index under check.
struct Subject<'a> {
    make: Make<'a>,
    open: Option<Open<'a>>,
    /// One that it does, for the checks that do not care.
    metric: Metric,
    settings: Settings,
}

impl<'a> Subject<'a> {
    fn new(make: Make<'a>, open: Option<Open<'a>>, settings: Settings) -> Self {
        let metric = METRICS.into_iter().find(|&metric| {
            !make(IndexSpec { dim: DIM, metric }).is_err_and(|error| error.code() == ErrorCode::UNSUPPORTED)
        });
        Self { make, open, metric: metric.unwrap_or(Metric::Cosine), settings }
    }

    fn spec(&self) -> IndexSpec {
        IndexSpec { dim: DIM, metric: self.metric }
    }

    fn make(&self, spec: IndexSpec) -> Checked<Index> {
        (self.make)(spec).map_err(|error| match error.code() {
            ErrorCode::UNSUPPORTED => Outcome::Skipped(error.to_string()),
            _ => error.into(),
        })
    }

    fn empty(&self) -> Checked<Index> {
        self.make(self.spec())
    }

    /// With the ids `0..n` and their unit vectors, `[n, DIM]`, none near another.
    fn filled(&self, n: usize) -> Checked<(Index, Vec<f32>)> {
        let index = self.empty()?;
        let vectors = unit_vectors(1, n);
        index.upsert(&Cx::free(), &ids(n), &vectors)?;
        Ok((index, vectors))
    }
}

fn ids(n: usize) -> Vec<u64> {
    (0..n as u64).collect()
}

/// `[n, DIM]` row-major.
fn unit_vectors(seed: u64, n: usize) -> Vec<f32> {
    let mut vectors = Random(seed).vectors(n, DIM);
    for vector in vectors.chunks_exact_mut(DIM) {
        let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|v| *v /= length);
    }
    vectors
}

/// The row `i` of vectors of the usual width.
fn row(vectors: &[f32], i: usize) -> &[f32] {
    &vectors[i * DIM..][..DIM]
}

/// The hits of one query without the filler at the end, after looking at what every answer owes:
/// best first, no id twice, nothing after the filler, every place written.
fn search(
    index: &dyn VectorIndex,
    query: &[f32],
    k: usize,
    filter: Option<IdFilter<'_>>,
) -> Checked<Vec<Hit>> {
    let unwritten = Hit::new(u64::MAX - 7, f32::NAN);
    let mut hits = vec![unwritten; k];
    index.search(&Cx::free(), query, k, SearchParams::default(), filter, &mut hits)?;
    let found = hits.iter().position(Hit::is_none).unwrap_or(k);
    let (hits, filler) = hits.split_at(found);
    ensure!(filler.iter().all(|&hit| hit == Hit::NONE), "the tail is not Hit::NONE: {filler:?}");
    ensure!(hits.iter().all(|hit| hit.score.is_finite()), "a place is not written: {hits:?}");
    ensure!(hits.is_sorted_by(|a, b| a.score >= b.score), "not best first: {hits:?}");
    let distinct: HashSet<u64> = hits.iter().map(|hit| hit.id).collect();
    ensure!(distinct.len() == hits.len(), "an id twice: {hits:?}");
    ensure!(
        filter.is_none_or(|filter| distinct.iter().all(|&id| filter.contains(id))),
        "the filter does not let all through: {hits:?}"
    );
    Ok(hits.to_vec())
}

/// The best hit for `query` is `id`.
fn finds(index: &dyn VectorIndex, query: &[f32], id: u64) -> Checked {
    let hits = search(index, query, 1, None)?;
    ensure!(hits.first().is_some_and(|hit| hit.id == id), "looked for the vector of {id}, got {hits:?}");
    Ok(())
}

/// It holds exactly the ids and vectors that [`Subject::filled`] gave it.
fn unchanged(index: &dyn VectorIndex, vectors: &[f32]) -> Checked {
    let (live, rows) = (index.stats().live, vectors.len() / DIM);
    ensure!(live == rows as u64, "{live} vectors are live, {rows} were stored");
    (0..rows).try_for_each(|i| finds(index, row(vectors, i), i as u64))
}

type Entry = (&'static str, &'static str, fn(&Subject<'_>) -> Checked);

const CHECKS: &[Entry] = &[
    (HEALTHY.0, HEALTHY.1, |subject| healthy(&subject.empty()?.health())),
    (DESCRIBES.0, DESCRIBES.1, |subject| describes(&subject.filled(10)?.0.describe())),
    (TUNE_UNKNOWN.0, TUNE_UNKNOWN.1, |subject| {
        let index = subject.empty()?;
        tune_unknown(|name, value| index.tune(name, value))
    }),
    ("gives-its-spec", "spec() is what the index was made with", gives_its_spec),
    ("finds-itself", "a stored vector is its own best hit", finds_itself),
    ("best-first", "hits stand by falling score", best_first),
    ("pads-with-none", "where fewer than k match, Hit::NONE fills the row", pads_with_none),
    ("empty-index", "a search in an empty index succeeds and finds nothing", empty_index),
    ("empty-calls", "no ids, no queries and k = 0 are no errors", empty_calls),
    ("warms-up", "warm_up() succeeds, with and without vectors", warms_up),
    ("replaces", "an id that is there is replaced", replaces),
    ("last-of-one-id-counts", "of an id named twice in one upsert the last row counts", last_counts),
    ("removes", "removed ids are not found again; unknown and repeated ones do not count", removes),
    ("counts-live", "stats().live is the number of vectors that can be found", counts_live),
    ("any-id", "0 and u64::MAX - 1 are ids like any other", any_id),
    ("refuses-reserved-id", "the id u64::MAX gives INVALID_INPUT and changes nothing", refuses_reserved_id),
    (
        "refuses-wrong-length",
        "lengths that do not fit give INVALID_INPUT and change nothing",
        refuses_wrong_length,
    ),
    ("refuses-not-finite", "NaN and infinities give INVALID_INPUT and change nothing", refuses_not_finite),
    ("refuses-zero-under-cosine", "a zero vector under cosine gives INVALID_INPUT", refuses_zero),
    ("equal-vectors", "ids with one and the same vector are all found", equal_vectors),
    ("cancels", "a cancelled context gives CANCELLED", cancels),
    ("keeps-deadline", "a passed deadline gives DEADLINE", keeps_deadline),
    (
        "reads-while-writing",
        "searches beside a writer find what the writer leaves alone",
        reads_while_writing,
    ),
    ("deterministic", "the same search finds the same again", deterministic),
    (POLLS.0, POLLS.1, asks_while_it_works),
    (MEMORY.0, MEMORY.1, memory_stays),
];

fn gives_its_spec(subject: &Subject<'_>) -> Checked {
    let spec = subject.empty()?.spec();
    ensure!(spec == subject.spec(), "made with {:?}, it says {spec:?}", subject.spec());
    Ok(())
}

fn finds_itself(subject: &Subject<'_>) -> Checked {
    let (index, vectors) = subject.filled(200)?;
    unchanged(&*index, &vectors)
}

fn best_first(subject: &Subject<'_>) -> Checked {
    let (index, _) = subject.filled(200)?;
    unit_vectors(2, 20).chunks_exact(DIM).try_for_each(|query| search(&*index, query, 50, None).map(drop))
}

fn pads_with_none(subject: &Subject<'_>) -> Checked {
    let (index, vectors) = subject.filled(20)?;
    let found = search(&*index, row(&vectors, 0), 25, None)?.len();
    ensure!(found == 20, "k = 25 of 20 vectors found {found}");
    Ok(())
}

fn empty_index(subject: &Subject<'_>) -> Checked {
    let index = subject.empty()?;
    let hits = search(&*index, &unit_vectors(2, 1), 5, None)?;
    ensure!(hits.is_empty(), "{hits:?}");
    let removed = index.remove(&Cx::free(), &[1])?;
    ensure!(removed == 0, "removed {removed} of nothing");
    Ok(())
}

fn empty_calls(subject: &Subject<'_>) -> Checked {
    for n in [0, 20] {
        let (index, vectors) = subject.filled(n)?;
        let (cx, params) = (Cx::free(), SearchParams::default());
        index.upsert(&cx, &[], &[])?;
        index.remove(&cx, &[])?;
        index.search(&cx, &[], 5, params, None, &mut [])?;
        index.search(&cx, &unit_vectors(2, 3), 0, params, None, &mut [])?;
        unchanged(&*index, &vectors)?;
    }
    Ok(())
}

fn warms_up(subject: &Subject<'_>) -> Checked {
    for n in [0, 20] {
        let (index, vectors) = subject.filled(n)?;
        index.warm_up(&Cx::free())?;
        unchanged(&*index, &vectors)?;
    }
    Ok(())
}

fn replaces(subject: &Subject<'_>) -> Checked {
    let (index, _) = subject.filled(50)?;
    let replaced = unit_vectors(2, 50);
    index.upsert(&Cx::free(), &ids(50), &replaced)?;
    unchanged(&*index, &replaced)?;
    let all = search(&*index, row(&replaced, 0), 60, None)?.len();
    ensure!(all == 50, "50 ids were replaced, a search for all finds {all}");
    Ok(())
}

fn last_counts(subject: &Subject<'_>) -> Checked {
    let index = subject.empty()?;
    let vectors = unit_vectors(2, 3);
    index.upsert(&Cx::free(), &[5, 6, 5], &vectors)?;
    finds(&*index, row(&vectors, 2), 5)?;
    let all = search(&*index, row(&vectors, 0), 3, None)?;
    ensure!(all.len() == 2, "two ids were stored, found {all:?}");
    let live = index.stats().live;
    ensure!(live == 2, "two ids were stored, {live} are live");
    Ok(())
}

fn removes(subject: &Subject<'_>) -> Checked {
    let (index, vectors) = subject.filled(50)?;
    let removed = index.remove(&Cx::free(), &[3, 3, 1_000, 7])?;
    ensure!(removed == 2, "3 and 7 were there, it says that {removed} were");
    for i in [3, 7] {
        let hits = search(&*index, row(&vectors, i), 60, None)?;
        ensure!(hits.iter().all(|hit| hit.id != 3 && hit.id != 7), "a removed id is found: {hits:?}");
        ensure!(hits.len() == 48, "48 are left, found {}", hits.len());
    }
    let again = index.remove(&Cx::free(), &[3])?;
    ensure!(again == 0, "3 was removed a second time");
    index.upsert(&Cx::free(), &[3, 7], &[row(&vectors, 3), row(&vectors, 7)].concat())?;
    unchanged(&*index, &vectors)
}

fn counts_live(subject: &Subject<'_>) -> Checked {
    let (index, vectors) = subject.filled(50)?;
    index.remove(&Cx::free(), &ids(10))?;
    index.upsert(&Cx::free(), &[20, 21], &vectors[..2 * DIM])?;
    let live = index.stats().live;
    ensure!(live == 40, "40 ids are left, stats() says {live}");
    Ok(())
}

fn any_id(subject: &Subject<'_>) -> Checked {
    let index = subject.empty()?;
    let ids = [0, 1 << 32, u64::from(u32::MAX), i64::MAX as u64, u64::MAX - 1];
    let vectors = unit_vectors(2, ids.len());
    index.upsert(&Cx::free(), &ids, &vectors)?;
    for (i, &id) in ids.iter().enumerate() {
        finds(&*index, row(&vectors, i), id)?;
        let only = search(&*index, row(&vectors, 0), 5, Some(IdFilter::sorted(&[id])))?;
        ensure!(only.len() == 1 && only[0].id == id, "a filter for {id} alone gives {only:?}");
    }
    let removed = index.remove(&Cx::free(), &ids)?;
    ensure!(removed == ids.len(), "removed {removed} of {}", ids.len());
    Ok(())
}

/// An upsert that is refused as `INVALID_INPUT` and changes nothing, although the other rows of the
/// call are right.
fn upsert_refused(subject: &Subject<'_>, what: &str, ids: &[u64], rows: &[f32]) -> Checked {
    let (index, vectors) = subject.filled(20)?;
    refused(what, ErrorCode::INVALID_INPUT, index.upsert(&Cx::free(), ids, rows))?;
    unchanged(&*index, &vectors)
}

fn search_refused(index: &dyn VectorIndex, what: &str, queries: &[f32], k: usize, places: usize) -> Checked {
    let mut hits = vec![Hit::NONE; places];
    let result = index.search(&Cx::free(), queries, k, SearchParams::default(), None, &mut hits);
    refused(what, ErrorCode::INVALID_INPUT, result)
}

fn refuses_reserved_id(subject: &Subject<'_>) -> Checked {
    upsert_refused(subject, "upsert of u64::MAX", &[0, u64::MAX], &unit_vectors(2, 2))
}

fn refuses_wrong_length(subject: &Subject<'_>) -> Checked {
    let rows = unit_vectors(2, 2);
    for length in [0, 1, DIM, 2 * DIM - 1] {
        upsert_refused(subject, &format!("two ids, {length} numbers"), &[0, 100], &rows[..length])?;
    }
    let (index, _) = subject.filled(20)?;
    for (length, places) in [(1, 3), (DIM - 1, 3), (DIM + 1, 3), (DIM, 2), (DIM, 4), (2 * DIM, 3)] {
        let what = format!("search with {length} numbers, k = 3 and {places} places");
        search_refused(&*index, &what, &rows[..length], 3, places)?;
    }
    Ok(())
}

fn refuses_not_finite(subject: &Subject<'_>) -> Checked {
    let (index, _) = subject.filled(20)?;
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut rows = unit_vectors(2, 2);
        rows[2 * DIM - 1] = bad;
        upsert_refused(subject, &format!("upsert of {bad}"), &[0, 100], &rows)?;
        search_refused(&*index, &format!("search for {bad}"), &rows, 3, 6)?;
    }
    Ok(())
}

fn refuses_zero(subject: &Subject<'_>) -> Checked {
    if subject.metric != Metric::Cosine {
        return Err(Outcome::Skipped("it does not do cosine".into()));
    }
    let mut rows = unit_vectors(2, 2);
    rows[DIM..].fill(0.0);
    upsert_refused(subject, "upsert of zero", &[0, 100], &rows)?;
    search_refused(&*subject.filled(20)?.0, "search for zero", &rows, 3, 6)
}

fn equal_vectors(subject: &Subject<'_>) -> Checked {
    let (index, vectors) = subject.filled(20)?;
    let first = row(&vectors, 0);
    index.upsert(&Cx::free(), &ids(10), &first.repeat(10))?;
    let hits = search(&*index, first, 10, None)?;
    ensure!(hits.len() == 10 && hits.iter().all(|hit| hit.id < 10), "ids 0 to 9 are equal, found {hits:?}");
    Ok(())
}

fn stopped(subject: &Subject<'_>, cx: Cx, code: ErrorCode) -> Checked {
    let (index, vectors) = subject.filled(200)?;
    refused("upsert", code, index.upsert(&cx, &ids(200), &vectors))?;
    let mut hits = vec![Hit::NONE; 200];
    refused("search", code, index.search(&cx, &vectors, 1, SearchParams::default(), None, &mut hits))
}

fn cancels(subject: &Subject<'_>) -> Checked {
    stopped(subject, Cx::cancelled(), ErrorCode::CANCELLED)
}

fn keeps_deadline(subject: &Subject<'_>) -> Checked {
    stopped(subject, Cx::expired(), ErrorCode::DEADLINE)
}

fn reads_while_writing(subject: &Subject<'_>) -> Checked {
    const KEPT: usize = 20;
    let (index, vectors) = subject.filled(100)?;
    let written = AtomicBool::new(false);
    let write = || {
        for seed in 3..23 {
            index.upsert(&Cx::free(), &ids(100)[KEPT..], &unit_vectors(seed, 100 - KEPT))?;
            index.remove(&Cx::free(), &ids(60)[KEPT..])?;
        }
        Ok(())
    };
    let read = || {
        loop {
            let last = written.load(Ordering::Acquire);
            (0..KEPT).try_for_each(|i| finds(&*index, row(&vectors, i), i as u64))?;
            search(&*index, row(&vectors, 0), 50, None)?;
            if last {
                return Ok(());
            }
        }
    };
    std::thread::scope(|scope| {
        let readers: Vec<_> = (0..3).map(|_| scope.spawn(read)).collect();
        // A panic of the writer must not leave the readers waiting.
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(write));
        written.store(true, Ordering::Release);
        result.unwrap_or_else(|_| Err(Outcome::Failed("the writer panicked".into())))?;
        readers.into_iter().try_for_each(|reader| {
            reader.join().unwrap_or_else(|_| Err(Outcome::Failed("a reader panicked".into())))
        })
    })
}

fn deterministic(subject: &Subject<'_>) -> Checked {
    let (index, _) = subject.filled(200)?;
    for query in unit_vectors(2, 10).chunks_exact(DIM) {
        let (once, again) = (search(&*index, query, 10, None)?, search(&*index, query, 10, None)?);
        ensure!(once == again, "{once:?} first, {again:?} then");
    }
    Ok(())
}

fn asks_while_it_works(subject: &Subject<'_>) -> Checked {
    let index = subject.empty()?;
    let vectors = unit_vectors(2, 5000);
    let cx = Polled::new();
    index.upsert(&cx, &ids(5000), &vectors)?;
    polls(&cx)
}

fn memory_stays(subject: &Subject<'_>) -> Checked {
    memory::stays(subject.settings, || {
        let (index, vectors) = subject.filled(500)?;
        search(&*index, row(&vectors, 0), 10, None)?;
        index.remove(&Cx::free(), &ids(500))?;
        Ok(())
    })
}
