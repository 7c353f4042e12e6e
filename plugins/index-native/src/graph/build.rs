//! Building: near rows are found in random partitions, pruned to neighbours, and joined both ways.

use super::{
    HEADER, MAX_DEGREE, MAX_ROWS,
    partition::{candidates, order},
    prune::{Near, Pruner},
};
use crate::{
    int8::{Codes, Kernel},
    parallel,
};
use magray_plugin_api::{CallContext, Error, ErrorCode, Result};
use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

/// A layer of so many rows needs none above: the search looks at all of them.
const TOP: usize = 64;

/// One row in so many is in the layer above too.
const SPARSER: u64 = 32;

/// Rows that a thread takes at a time.
const ROWS: usize = 256;

/// How a graph is built.
#[derive(Clone, Debug)]
pub(crate) struct Params {
    /// The most neighbours of a row.
    pub(crate) degree: usize,
    /// Random partitions; more find more of the truly near rows.
    pub(crate) passes: usize,
    /// Near rows that a row takes from each partition.
    pub(crate) nearest: usize,
    /// The most rows of a part, all of which are compared with one another.
    pub(crate) leaf: usize,
    /// The same seed and rows give the same graph, however many threads build it.
    pub(crate) seed: u64,
}

impl Default for Params {
    fn default() -> Self {
        Self { degree: 32, passes: 10, nearest: 12, leaf: 1024, seed: 0x6d61_6772_6179 }
    }
}

/// Rows and the distances between them.
#[derive(Debug)]
pub(super) struct Space<'a> {
    pub(super) codes: Codes<'a>,
    pub(super) kernel: Kernel,
    /// See [`build`].
    pub(super) lift: Option<&'a [f32]>,
}

impl Space<'_> {
    /// Half of the squared distance of two rows with this dot product, in units of the codes.
    pub(super) fn distance(&self, a: u32, b: u32, dot: i32) -> i32 {
        let (a, b) = (a as usize, b as usize);
        let flat = self.codes.half()[a].wrapping_add(self.codes.half()[b]).wrapping_sub(dot);
        flat.saturating_add(self.lifted(a, b))
    }

    /// What the additional dimension adds to [`Space::distance`].
    pub(super) fn lifted(&self, a: usize, b: usize) -> i32 {
        self.lift.map_or(0, |lift| ((lift[a] - lift[b]).powi(2) / 2.0) as i32)
    }
}

/// Builds the graph of `codes` with up to `threads` threads, as [`super::Outline`] reads it.
///
/// Neighbours are near by distance. Under [`Metric::Dot`](magray_plugin_api::Metric::Dot) that would
/// lose the long vectors, which have the greatest products. There `lift` gives each row one more
/// dimension, `sqrt(longest² - length²)` in units of the codes, which makes all rows equally long
/// (Bachrach et al., Speeding up the Xbox recommender system, 2014): then the nearest to a query, which
/// has 0 in that dimension, is the one with the greatest product.
///
/// # Errors
/// `CANCELLED` and `DEADLINE`, as `cx` says; `UNSUPPORTED` where there are more than [`MAX_ROWS`].
///
/// # Panics
/// Where `lift` has not one number a row, or the degree is not in `1..=MAX_DEGREE`.
pub(crate) fn build(
    cx: &dyn CallContext,
    kernel: Kernel,
    codes: Codes<'_>,
    lift: Option<&[f32]>,
    params: &Params,
    threads: usize,
) -> Result<Vec<u32>> {
    let n = codes.len();
    assert!(lift.is_none_or(|lift| lift.len() == n) && (1..=MAX_DEGREE).contains(&params.degree));
    if n > MAX_ROWS {
        let message = format!("a graph of {n} rows; {MAX_ROWS} is the most, so split it");
        return Err(Error::new(ErrorCode::UNSUPPORTED, message));
    }
    let space = Space { codes, kernel, lift };
    let (mut rows, twins) = distinct(&codes);
    let progress = Progress { cx, done: AtomicU64::new(0), total: (rows.len() * (params.passes + 2)) as u64 };
    let work = Work { space: &space, params, threads: threads.max(1), progress: &progress };
    let mut local = work.layer(&rows)?;
    let mut graph = vec![0; HEADER];
    if twins.is_empty() {
        graph.extend(&local);
    } else {
        graph.extend(scatter(n, params.degree, &rows, &local));
    }
    let bottom = graph.len();
    let mut below = n;
    while below > TOP || below == n && !twins.is_empty() {
        let entries = entries(&local, params.degree, params.seed.wrapping_add(below as u64));
        rows = entries.into_iter().map(|place| rows[place as usize]).collect();
        // Where hardly any rows hang together, layers do not help: this one is looked at as a whole.
        let last = rows.len() >= below.div_ceil(4) * 3;
        local = work.layer(&rows)?;
        graph.push(rows.len() as u32);
        graph.extend(&rows);
        graph.extend(&local);
        below = rows.len();
        if last {
            break;
        }
    }
    graph[0] = params.degree as u32;
    // Rows are fewer than 2^31, and each takes part in few layers.
    graph[1] = (graph.len() - bottom) as u32;
    graph[2] = twins.len() as u32;
    graph.extend(twins.into_flattened());
    Ok(graph)
}

/// The rows that differ from all before them, and pairs of one of these and one equal to it, sorted.
fn distinct(codes: &Codes<'_>) -> (Vec<u32>, Vec<[u32; 2]>) {
    let mut first: HashMap<&[u8], u32> = HashMap::with_capacity(codes.len());
    let (mut rows, mut twins) = (Vec::with_capacity(codes.len()), Vec::new());
    for row in 0..codes.len() as u32 {
        let same = *first.entry(codes.row(row as usize)).or_insert(row);
        if same == row {
            rows.push(row);
        } else {
            twins.push([same, row]);
        }
    }
    twins.sort_unstable();
    (rows, twins)
}

/// The neighbours of the places of `rows` as neighbours of all `n` rows.
fn scatter(n: usize, degree: usize, rows: &[u32], local: &[u32]) -> Vec<u32> {
    let mut all: Vec<u32> = (0..n as u32).flat_map(|row| std::iter::repeat_n(row, degree)).collect();
    for (&row, neighbors) in rows.iter().zip(local.chunks_exact(degree)) {
        let own = &mut all[row as usize * degree..][..degree];
        own.iter_mut().zip(neighbors).for_each(|(own, &place)| *own = rows[place as usize]);
    }
    all
}

/// The places that are in the layer above too, ascending: a random share, and as many more as it takes
/// for every place to be reached from one of them.
fn entries(neighbors: &[u32], degree: usize, seed: u64) -> Vec<u32> {
    let n = neighbors.len() / degree;
    let mut chosen: Vec<bool> =
        (0..n as u64).map(|place| mix(seed ^ place).is_multiple_of(SPARSER)).collect();
    let mut reached = vec![false; n];
    let mut stack: Vec<u32> = Vec::new();
    let mut reach = |from: usize, reached: &mut [bool]| {
        reached[from] = true;
        stack.push(from as u32);
        while let Some(place) = stack.pop() {
            for &next in &neighbors[place as usize * degree..][..degree] {
                if !std::mem::replace(&mut reached[next as usize], true) {
                    stack.push(next);
                }
            }
        }
    };
    for place in (0..n).filter(|&place| chosen[place]) {
        reach(place, &mut reached);
    }
    for place in 0..n {
        if !reached[place] {
            chosen[place] = true;
            reach(place, &mut reached);
        }
    }
    (0..n as u32).filter(|&place| chosen[place as usize]).collect()
}

/// A random number out of any number (Steele et al., SplitMix, 2014).
pub(super) fn mix(seed: u64) -> u64 {
    let z = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

/// What is done, for the caller.
pub(super) struct Progress<'a> {
    cx: &'a dyn CallContext,
    done: AtomicU64,
    total: u64,
}

/// Builds layers.
pub(super) struct Work<'a> {
    pub(super) space: &'a Space<'a>,
    pub(super) params: &'a Params,
    pub(super) threads: usize,
    progress: &'a Progress<'a>,
}

impl Work<'_> {
    /// The neighbours of each of `rows` among them, `[m, degree]`: places in `rows`.
    fn layer(&self, rows: &[u32]) -> Result<Vec<u32>> {
        let degree = self.params.degree;
        let order = order(self, rows)?;
        let ordered: Vec<u32> = order.iter().map(|&place| rows[place as usize]).collect();
        let found = self.neighbors(&ordered)?;
        let mut neighbors = vec![0; found.len()];
        for (&place, found) in order.iter().zip(found.chunks_exact(degree)) {
            let own = &mut neighbors[place as usize * degree..][..degree];
            own.iter_mut().zip(found).for_each(|(own, &other)| *own = order[other as usize]);
        }
        Ok(neighbors)
    }

    /// The same, whatever the order of the rows.
    fn neighbors(&self, rows: &[u32]) -> Result<Vec<u32>> {
        let degree = self.params.degree;
        let own = |place: usize| std::iter::repeat_n(place as u32, degree);
        let mut forward: Vec<u32> = (0..rows.len()).flat_map(own).collect();
        let candidates = candidates(self, rows)?;
        let per_row = candidates.len() / rows.len().max(1);
        let chunks = forward.chunks_mut(ROWS * degree).enumerate();
        parallel::each(
            self.threads,
            chunks,
            || (Pruner::new(self.space), Vec::new()),
            |(pruner, near), (chunk, out)| {
                for (at, out) in out.chunks_exact_mut(degree).enumerate() {
                    let found = &candidates[(chunk * ROWS + at) * per_row..][..per_row];
                    near.clear();
                    near.extend(found.iter().map(|bits| Near::from_bits(bits.load(Ordering::Relaxed))));
                    near.sort_unstable();
                    near.dedup();
                    near.truncate(near.partition_point(|&near| near < Near::NONE));
                    pruner.prune(rows, near, out);
                }
                self.done(out.len() / degree)
            },
        )?;
        drop(candidates);
        let backward = Backward::new(&forward, degree);
        let mut neighbors = forward.to_vec();
        let chunks = neighbors.chunks_mut(ROWS * degree).enumerate();
        parallel::each(
            self.threads,
            chunks,
            || (Pruner::new(self.space), Vec::new(), Vec::new()),
            |(pruner, near, all), (chunk, out)| {
                for (at, out) in out.chunks_exact_mut(degree).enumerate() {
                    let place = (chunk * ROWS + at) as u32;
                    all.clear();
                    all.extend(out.iter().filter(|&&other| other != place));
                    for &other in backward.of(place) {
                        if !all.contains(&other) {
                            all.push(other);
                        }
                    }
                    out.fill(place);
                    if all.len() <= degree {
                        out[..all.len()].copy_from_slice(all);
                    } else {
                        pruner.near(rows, place, all, near);
                        pruner.prune(rows, near, out);
                    }
                }
                self.done(out.len() / degree)
            },
        )?;
        Ok(neighbors)
    }

    /// Counts rows that are done with one step.
    pub(super) fn done(&self, rows: usize) -> Result<()> {
        let done = self.progress.done.fetch_add(rows as u64, Ordering::Relaxed) + rows as u64;
        self.progress.cx.progress(done.min(self.progress.total), self.progress.total);
        self.progress.cx.check()
    }
}

/// Who has a place as its neighbour.
struct Backward {
    begins: Vec<usize>,
    from: Vec<u32>,
}

impl Backward {
    fn new(neighbors: &[u32], degree: usize) -> Self {
        let n = neighbors.len() / degree;
        // A row that is near to very many takes the first of them: there is no room for all.
        let most = 2 * degree as u32;
        let edges = || {
            let rows = neighbors.chunks_exact(degree).enumerate();
            rows.flat_map(|(from, to)| to.iter().map(move |&to| (from as u32, to as usize)))
                .filter(|&(from, to)| from as usize != to)
        };
        let mut counts = vec![0u32; n];
        edges().for_each(|(_, to)| counts[to] = (counts[to] + 1).min(most));
        let mut begins = Vec::with_capacity(n + 1);
        let mut sum = 0;
        begins.push(0);
        begins.extend(counts.iter().map(|&count| {
            sum += count as usize;
            sum
        }));
        let mut from = vec![0; sum];
        let mut next = begins.clone();
        for (source, to) in edges() {
            if next[to] < begins[to + 1] {
                from[next[to]] = source;
                next[to] += 1;
            }
        }
        Self { begins, from }
    }

    fn of(&self, place: u32) -> &[u32] {
        &self.from[self.begins[place as usize]..self.begins[place as usize + 1]]
    }
}
