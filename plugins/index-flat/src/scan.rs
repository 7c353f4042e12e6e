//! Comparing queries with every row, block by block.

use crate::{
    kernel::Kernel,
    rows::{Block, Rows},
    top::Top,
};
use magray_plugin_api::{CallContext, Hit, IdFilter, Metric, Result};
use std::{
    ops::Range,
    panic::resume_unwind,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

/// Bytes of vectors in a block: it stays in the second-level cache while all queries pass over it.
const BLOCK_BYTES: usize = 256 << 10;

#[cfg(feature = "gemm")]
/// From so many queries on, a matrix product beats [`Kernel::dots`]. Measured with AVX-512 at width 384:
/// 21 ms against 17 for 16 queries over 100,000 rows, 28 against 29 for 32, 42 against 52 for 64.
const MATMUL_QUERIES: usize = 32;

/// Multiply-adds that are worth a thread: a millisecond or so, many times what it takes to start.
const THREAD_WORK: usize = 4 << 20;

/// A filter that lets at most one row in so many through is turned into a list of rows; other ones
/// are asked about each row that would be a hit.
const SPARSE: usize = 8;

/// Scores by a matrix product, where that is the faster way: `queries` `[m, dim]` and `rows` `[n, dim]`
/// into `scores` `[m, n]`, all row-major.
#[cfg(feature = "gemm")]
fn multiply(dim: usize, queries: &[f32], m: usize, rows: &[f32], n: usize, scores: &mut [f32]) -> bool {
    use faer::{Accum, MatMut, MatRef, Par, linalg::matmul::matmul};
    if m < MATMUL_QUERIES {
        return false;
    }
    let rows = MatRef::from_row_major_slice(rows, n, dim);
    let queries = MatRef::from_row_major_slice(queries, m, dim);
    let scores = MatMut::from_column_major_slice_mut(scores, n, m);
    matmul(scores, Accum::Replace, rows, queries.transpose(), 1.0, Par::Seq);
    true
}

#[cfg(not(feature = "gemm"))]
fn multiply(_: usize, _: &[f32], _: usize, _: &[f32], _: usize, _: &mut [f32]) -> bool {
    false
}

/// What to search for.
pub(crate) struct Scan<'a> {
    pub(crate) rows: &'a Rows,
    pub(crate) kernel: Kernel,
    /// `[m, dim]` row-major, of length 1 under cosine.
    pub(crate) queries: &'a [f32],
    /// Squared lengths of the queries.
    pub(crate) norms: &'a [f32],
    /// Queries that are compared with a block together; at least 1.
    pub(crate) batch: usize,
    pub(crate) k: usize,
    pub(crate) filter: Option<IdFilter<'a>>,
}

impl Scan<'_> {
    /// The hits of each query, best first, with the work spread over at most `threads` threads.
    pub(crate) fn run(&self, cx: &dyn CallContext, threads: usize) -> Result<Vec<Vec<Hit>>> {
        let candidates = self.candidates();
        let blocks = self.blocks(&candidates);
        let work = candidates.len(self.rows) * self.queries.len();
        let threads = (work / THREAD_WORK).min(threads).min(blocks.len());
        let next = AtomicUsize::new(0);
        let worker = || self.work(cx, &candidates, &blocks, &next);
        let tops = thread::scope(|scope| {
            // Where the system has no thread to give, the others do the work.
            let helpers: Vec<_> = (1..threads)
                .filter_map(|_| thread::Builder::new().spawn_scoped(scope, worker).ok())
                .collect();
            let mut tops = worker()?;
            for helper in helpers {
                let others = helper.join().unwrap_or_else(|panic| resume_unwind(panic))?;
                tops.iter_mut().zip(others).for_each(|(top, other)| top.merge(other));
            }
            Ok(tops)
        })?;
        Ok(tops.into_iter().map(Top::into_sorted).collect())
    }

    fn candidates(&self) -> Candidates {
        match self.filter {
            Some(filter) if filter.count() <= (self.rows.len() / SPARSE) as u64 => {
                let mut rows: Vec<usize> = filter.iter().filter_map(|id| self.rows.find(id)).collect();
                rows.sort_unstable();
                rows.dedup();
                Candidates::Listed(rows)
            }
            _ => Candidates::All,
        }
    }

    /// Ranges of positions among the candidates.
    fn blocks(&self, candidates: &Candidates) -> Vec<Range<usize>> {
        let len = (BLOCK_BYTES / 4 / self.rows.spec.dim).max(16);
        let split = |range: Range<usize>| {
            let end = range.end;
            range.step_by(len).map(move |begin| begin..end.min(begin + len))
        };
        match candidates {
            Candidates::All => {
                split(0..self.rows.boundary()).chain(split(self.rows.boundary()..self.rows.len())).collect()
            }
            Candidates::Listed(rows) => split(0..rows.len()).collect(),
        }
    }

    /// Takes block after block until none is left.
    fn work(
        &self,
        cx: &dyn CallContext,
        candidates: &Candidates,
        blocks: &[Range<usize>],
        next: &AtomicUsize,
    ) -> Result<Vec<Top>> {
        let k = self.k.min(candidates.len(self.rows));
        let mut tops: Vec<Top> = self.norms.iter().map(|_| Top::new(k)).collect();
        let (mut scores, mut gathered) = (Vec::new(), Gathered::default());
        while let Some(range) = blocks.get(next.fetch_add(1, Ordering::Relaxed)) {
            cx.check()?;
            let block = match candidates {
                Candidates::All => self.rows.block(range.clone()),
                Candidates::Listed(rows) => gathered.fill(self.rows, &rows[range.clone()]),
            };
            let batches =
                self.queries.chunks(self.batch * self.rows.spec.dim).zip(self.norms.chunks(self.batch));
            for ((queries, norms), tops) in batches.zip(tops.chunks_mut(self.batch)) {
                scores.resize(norms.len() * range.len(), 0.0);
                self.score(block, queries, norms, &mut scores);
                for (top, scores) in tops.iter_mut().zip(scores.chunks_exact(range.len())) {
                    for (position, &score) in range.clone().zip(scores) {
                        if score >= top.threshold()
                            && let Some(id) = self.allowed(candidates, position)
                        {
                            top.push(Hit::new(id, score));
                        }
                    }
                }
            }
        }
        Ok(tops)
    }

    /// Writes `[m, n]` row-major: the scores of the block's `n` rows for each of `m` queries.
    fn score(&self, block: Block<'_>, queries: &[f32], norms: &[f32], scores: &mut [f32]) {
        let (m, dim) = (norms.len(), self.rows.spec.dim);
        let n = scores.len() / m;
        if !multiply(dim, queries, m, block.vectors, n, scores) {
            self.kernel.dots(dim, queries, block.vectors, scores);
        }
        if self.rows.spec.metric == Metric::L2 {
            for (scores, query_norm) in scores.chunks_exact_mut(n).zip(norms) {
                for (score, norm) in scores.iter_mut().zip(block.norms) {
                    *score = (2.0 * *score - query_norm - norm).min(0.0);
                }
            }
        }
    }

    /// The id at a position, where it may be returned.
    fn allowed(&self, candidates: &Candidates, position: usize) -> Option<u64> {
        match candidates {
            Candidates::Listed(rows) => Some(self.rows.id(rows[position])),
            Candidates::All => {
                let id = self.rows.id(position);
                let allowed =
                    self.rows.is_live(position) && self.filter.is_none_or(|filter| filter.contains(id));
                allowed.then_some(id)
            }
        }
    }
}

/// The rows that are scored.
enum Candidates {
    All,
    /// Live rows that a sparse filter lets through, ascending.
    Listed(Vec<usize>),
}

impl Candidates {
    fn len(&self, rows: &Rows) -> usize {
        match self {
            Self::All => rows.len(),
            Self::Listed(listed) => listed.len(),
        }
    }
}

/// Rows from here and there, copied to lie one after the other.
#[derive(Default)]
struct Gathered {
    vectors: Vec<f32>,
    norms: Vec<f32>,
}

impl Gathered {
    fn fill(&mut self, rows: &Rows, listed: &[usize]) -> Block<'_> {
        self.vectors.clear();
        self.norms.clear();
        for &row in listed {
            let block = rows.block(row..row + 1);
            self.vectors.extend_from_slice(block.vectors);
            self.norms.extend_from_slice(block.norms);
        }
        Block { vectors: &self.vectors, norms: &self.norms }
    }
}
