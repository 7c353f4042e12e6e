//! What changed since the last snapshot, in memory and searched exactly: blocks of rows in half
//! precision as the store has them, in the order in which they came. A newer block shadows what older
//! blocks, and all segments, hold of its ids.
//!
//! Nothing is ever changed in place. A change makes a new list of blocks, which shares all but the
//! smallest with the old one, so that a search goes on with what it has.
use super::scan;
use crate::store::Changes;
use half::f16;
use magray_plugin_api::{CallContext, Hit, IdFilter, Result};
use std::{
    num::NonZero,
    ops::Range,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

/// Blocks that would have more rows together stay apart, so that an addition never copies much.
const MERGED_ROWS: usize = 4096;
/// Neighbours become one block unless the older one is so many times as large: some log(n) blocks.
const MERGE_RATIO: usize = 4;
/// Rows that are scored at a time.
const STRIDE: usize = 1024;
/// Multiply-adds that are worth a thread.
const THREAD_WORK: usize = 8 << 20;
/// A filter that lets at most one row in so many through is gone through id by id.
const SPARSE: usize = 8;

/// Some changes: no id is in them twice.
#[derive(Debug, Default)]
pub(super) struct Block {
    changes: Arc<Changes>,
    /// The reciprocal of each row's length.
    scales: Vec<f32>,
}

impl Block {
    pub(super) fn new(dim: usize, changes: Arc<Changes>) -> Self {
        let mut scales = vec![0.0; changes.upserts.len()];
        scan::scales(dim, &changes.vectors, &mut scales);
        Self { changes, scales }
    }

    fn ids(&self) -> &[u64] {
        &self.changes.upserts
    }

    fn rows(&self, dim: usize, rows: Range<usize>) -> &[f16] {
        &self.changes.vectors[rows.start * dim..rows.end * dim]
    }

    fn shadows(&self, id: u64) -> bool {
        self.ids().binary_search(&id).is_ok() || self.changes.removed.binary_search(&id).is_ok()
    }

    fn weight(&self) -> usize {
        self.ids().len() + self.changes.removed.len()
    }

    fn merge(dim: usize, old: &Self, new: &Self) -> Self {
        let mut merged = Changes { head: new.changes.head, complete: true, ..Changes::default() };
        let mut scales = Vec::with_capacity(old.scales.len() + new.scales.len());
        let mut append = |block: &Self, at: usize| {
            merged.upserts.push(block.ids()[at]);
            merged.vectors.extend_from_slice(block.rows(dim, at..at + 1));
            scales.push(block.scales[at]);
        };
        let (mut a, mut b) = (0, 0);
        loop {
            match (old.ids().get(a), new.ids().get(b)) {
                (Some(&id), newer) if newer.is_none_or(|&newer| id < newer) => {
                    if new.changes.removed.binary_search(&id).is_err() {
                        append(old, a);
                    }
                    a += 1;
                }
                (older, Some(id)) => {
                    a += usize::from(older == Some(id));
                    append(new, b);
                    b += 1;
                }
                _ => break,
            }
        }
        let removed = old.changes.removed.iter().filter(|id| new.ids().binary_search(id).is_err());
        merged.removed = removed.chain(&new.changes.removed).copied().collect();
        merged.removed.sort_unstable();
        merged.removed.dedup();
        Self { changes: Arc::new(merged), scales }
    }
}

/// The blocks since a snapshot, oldest first.
#[derive(Clone, Debug)]
pub(super) struct Delta {
    dim: usize,
    blocks: Vec<Arc<Block>>,
}

impl Delta {
    pub(super) fn new(dim: usize) -> Self {
        Self { dim, blocks: Vec::new() }
    }

    /// With a block that is newer than all others.
    pub(super) fn with(&self, block: Block) -> Self {
        let mut blocks = self.blocks.clone();
        let mut block = block;
        while let Some(last) = blocks.last()
            && last.weight() < MERGE_RATIO * block.weight()
            && last.weight() + block.weight() <= MERGED_ROWS
        {
            block = Block::merge(self.dim, last, &block);
            blocks.pop();
        }
        if block.weight() > 0 {
            blocks.push(Arc::new(block));
        }
        Self { dim: self.dim, blocks }
    }

    /// Without what a snapshot that covers every change up to `covered` shows too. A block that goes
    /// further stays whole, for it is the newest of what it has.
    pub(super) fn since(&self, covered: u64) -> Self {
        let blocks = self.blocks.iter().filter(|block| block.changes.head > covered).cloned().collect();
        Self { dim: self.dim, blocks }
    }

    /// Rows and removals that it holds.
    pub(super) fn len(&self) -> usize {
        self.blocks.iter().map(|block| block.weight()).sum()
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        let of = |block: &Arc<Block>| {
            let Changes { upserts, vectors, removed, .. } = &*block.changes;
            size_of_val(&upserts[..])
                + size_of_val(&vectors[..])
                + size_of_val(&removed[..])
                + size_of_val(&block.scales[..])
        };
        self.blocks.iter().map(of).sum()
    }

    /// How many of its ids, at most, are at most `last`: those that may shadow what a segment holds.
    pub(super) fn count_up_to(&self, last: u64) -> usize {
        let count = |ids: &[u64]| ids.partition_point(|&id| id <= last);
        self.blocks.iter().map(|block| count(block.ids()) + count(&block.changes.removed)).sum()
    }

    /// Whether it says what became of `id`, so that older rows of it do not count.
    pub(super) fn shadows(&self, id: u64) -> bool {
        self.blocks.iter().any(|block| block.shadows(id))
    }

    /// The `k` rows nearest to `query`, which is not zero, best first.
    pub(super) fn search(
        &self,
        cx: &dyn CallContext,
        query: &[f32],
        k: usize,
        filter: Option<IdFilter<'_>>,
        threads: usize,
    ) -> Result<Vec<Hit>> {
        let length = query.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>().sqrt();
        let query: Vec<f32> = query.iter().map(|&v| (f64::from(v) / length) as f32).collect();
        let rows: usize = self.blocks.iter().map(|block| block.ids().len()).sum();
        if k == 0 || rows == 0 {
            return Ok(Vec::new());
        }
        if let Some(filter) = filter
            && filter.count() <= (rows / SPARSE) as u64
        {
            return Ok(self.listed(&query, k, filter));
        }
        let parts: Vec<(usize, usize)> = (0..self.blocks.len())
            .flat_map(|at| (0..self.blocks[at].ids().len()).step_by(STRIDE).map(move |first| (at, first)))
            .collect();
        let next = AtomicUsize::new(0);
        let work = || {
            let (mut best, mut scores) = (Best::new(k), Vec::new());
            while let Some(&(at, first)) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
                cx.check()?;
                self.score(at, first, &query, filter, &mut scores, &mut best);
            }
            Ok(best)
        };
        let threads = (rows * self.dim / THREAD_WORK).min(threads).min(parts.len());
        let best = thread::scope(|scope| {
            // Where the system has no thread to give, the others do the work.
            let helpers: Vec<_> =
                (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
            let mut best = work()?;
            for helper in helpers {
                let other = helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                other.hits.into_iter().for_each(|hit| best.push(hit));
            }
            Ok::<_, magray_plugin_api::Error>(best)
        })?;
        Ok(best.into_sorted())
    }

    /// Some rows of a block.
    fn score(
        &self,
        at: usize,
        first: usize,
        query: &[f32],
        filter: Option<IdFilter<'_>>,
        scores: &mut Vec<f32>,
        best: &mut Best,
    ) {
        let block = &self.blocks[at];
        let rows = first..block.ids().len().min(first + STRIDE);
        scores.resize(rows.len(), 0.0);
        scan::dots(query, block.rows(self.dim, rows.clone()), scores);
        for (row, dot) in rows.zip(scores) {
            let score = (*dot * block.scales[row]).clamp(-1.0, 1.0);
            let id = block.ids()[row];
            if score >= best.threshold
                && filter.is_none_or(|filter| filter.contains(id))
                && !self.blocks[at + 1..].iter().any(|newer| newer.shadows(id))
            {
                best.push(Hit::new(id, score));
            }
        }
    }

    fn listed(&self, query: &[f32], k: usize, filter: IdFilter<'_>) -> Vec<Hit> {
        let mut best = Best::new(k);
        for id in filter.iter() {
            let Some(block) = self.blocks.iter().rev().find(|block| block.shadows(id)) else { continue };
            let Ok(row) = block.ids().binary_search(&id) else { continue };
            let mut score = [0.0];
            scan::dots(query, block.rows(self.dim, row..row + 1), &mut score);
            best.push(Hit::new(id, (score[0] * block.scales[row]).clamp(-1.0, 1.0)));
        }
        best.into_sorted()
    }
}

/// The best `k` hits so far, and at most as many others.
struct Best {
    k: usize,
    hits: Vec<Hit>,
    /// A score below this changes nothing.
    threshold: f32,
}

impl Best {
    fn new(k: usize) -> Self {
        Self { k, hits: Vec::new(), threshold: f32::NEG_INFINITY }
    }

    fn push(&mut self, hit: Hit) {
        self.hits.push(hit);
        if self.hits.len() >= self.k.saturating_mul(2).max(16) {
            self.shrink();
        }
    }

    fn shrink(&mut self) {
        if let Some(last) = NonZero::new(self.k)
            && self.hits.len() > self.k
        {
            self.hits.select_nth_unstable_by(last.get() - 1, best_first);
            self.hits.truncate(self.k);
            self.threshold = self.hits[self.k - 1].score;
        }
    }

    fn into_sorted(mut self) -> Vec<Hit> {
        self.hits.sort_unstable_by(best_first);
        self.hits.truncate(self.k);
        self.hits
    }
}

/// Orders hits by falling score, equal ones by id.
pub(super) fn best_first(a: &Hit, b: &Hit) -> std::cmp::Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_testkit::Cx;
    use proptest::{collection::vec, prelude::*};
    use std::collections::{BTreeMap, BTreeSet};

    const DIM: usize = 3;

    fn vector_of(id: u64, version: u32) -> [f16; DIM] {
        let (a, b) = (id as f32, version as f32);
        [(a * 0.7 + b).sin(), (a * 1.3 - b).cos(), 0.5].map(f16::from_f32)
    }

    fn block(head: u64, changes: &BTreeMap<u64, Option<u32>>) -> Block {
        let mut all = Changes { head, complete: true, ..Changes::default() };
        for (&id, version) in changes {
            match version {
                Some(version) => {
                    all.upserts.push(id);
                    all.vectors.extend(vector_of(id, *version));
                }
                None => all.removed.push(id),
            }
        }
        Block::new(DIM, Arc::new(all))
    }

    fn exact(model: &BTreeMap<u64, u32>, query: &[f32; DIM], keep: impl Fn(u64) -> bool) -> Vec<Hit> {
        let mut hits: Vec<Hit> = model
            .iter()
            .filter(|(id, _)| keep(**id))
            .map(|(&id, &version)| {
                let row = vector_of(id, version).map(|v| v.to_f64());
                let dot: f64 = row.iter().zip(query).map(|(a, b)| a * f64::from(*b)).sum();
                let lengths = row.iter().map(|v| v * v).sum::<f64>()
                    * query.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>();
                Hit::new(id, (dot / lengths.sqrt()) as f32)
            })
            .collect();
        hits.sort_by(best_first);
        hits
    }

    proptest! {
        #[test]
        fn blocks_show_the_last_state_of_each_id(
            commits in vec(prop::collection::btree_map(0u64..60, prop::option::of(0u32..5), 0..12), 0..40),
            query in [0.1f32..1.0, 0.1f32..1.0, 0.1f32..1.0],
            wanted in prop::collection::btree_set(0u64..60, 0..60),
            k in 1usize..12,
        ) {
            let (mut delta, mut model, mut touched) = (Delta::new(DIM), BTreeMap::new(), BTreeSet::new());
            for (seq, changes) in (1..).zip(&commits) {
                delta = delta.with(block(seq, changes));
                for (&id, version) in changes {
                    touched.insert(id);
                    match version {
                        Some(version) => model.insert(id, *version),
                        None => model.remove(&id),
                    };
                }
            }
            prop_assert!(delta.blocks.len() <= 8, "{} blocks", delta.blocks.len());
            for id in 0..60 {
                prop_assert_eq!(delta.shadows(id), touched.contains(&id));
            }
            let list: Vec<u64> = wanted.iter().copied().collect();
            let filter = IdFilter::sorted(&list);
            for filter in [None, Some(filter)] {
                let expected = exact(&model, &query, |id| filter.is_none_or(|filter| filter.contains(id)));
                let found = delta.search(&Cx::free(), &query, k, filter, 2).unwrap();
                prop_assert_eq!(found.len(), expected.len().min(k));
                for (found, expected) in found.iter().zip(&expected) {
                    prop_assert!((found.score - expected.score).abs() < 1e-5, "{:?} {:?}", found, expected);
                }
            }
            // A snapshot of everything leaves nothing, one of nothing leaves everything.
            prop_assert_eq!(delta.since(commits.len() as u64).len(), 0);
            prop_assert_eq!(delta.since(0).len(), delta.len());
        }
    }

    #[test]
    fn many_rows_are_searched_by_threads_and_large_blocks_are_not_copied() {
        let ids: Vec<u64> = (0..3000).collect();
        let changes: BTreeMap<u64, Option<u32>> = ids.iter().map(|&id| (id, Some(0))).collect();
        let later: BTreeMap<u64, Option<u32>> = ids.iter().map(|&id| (id + 1500, Some(1))).collect();
        let delta = Delta::new(DIM).with(block(1, &changes)).with(block(2, &later));
        assert_eq!(delta.blocks.len(), 2);
        let mut model: BTreeMap<u64, u32> = ids.iter().map(|&id| (id, 0)).collect();
        model.extend(ids.iter().map(|&id| (id + 1500, 1)));
        let query = [0.3, -0.2, 0.9];
        let expected = exact(&model, &query, |_| true);
        let found = delta.search(&Cx::free(), &query, 50, None, 4).unwrap();
        for (found, expected) in found.iter().zip(&expected[..50]) {
            assert!((found.score - expected.score).abs() < 1e-5);
        }
        assert!(delta.search(&Cx::cancelled(), &query, 50, None, 4).is_err());
        assert_eq!(delta.count_up_to(99), 100);
    }
}
