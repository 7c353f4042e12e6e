//! How broadly a segment must be searched so that its answers have the share of the nearest vectors that
//! the settings ask for: measured when the segment is written, on a sample of its own vectors.
use super::{delta::best_first, scan};
use half::f16;
use magray_plugin_api::{CallContext, Hit, Result, SearchParams, VectorIndex};

/// Segments of fewer rows are not measured: their search is quick however broad.
pub(super) const LEAST_ROWS: usize = 4096;
/// At a recall of .95 the standard error of the measured one is then .009.
const QUERIES: usize = 64;
/// Neighbours of each, itself not counted: it would be found first, and flatter the recall.
const K: usize = 10;
/// The breadths that are tried, each about 1.4 times the one before.
const BREADTHS: [u32; 18] =
    [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144];

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Tuned {
    /// `ef` of a search.
    pub(super) breadth: u32,
    /// The recall@10 at this breadth, 0 to 1.
    pub(super) recall: f32,
}

/// Some vectors of a segment, and their nearest neighbours by comparison with every row.
pub(super) struct Sample {
    dim: usize,
    ids: Vec<u64>,
    /// `[ids.len(), dim]` row-major, of length 1.
    queries: Vec<f32>,
    nearest: Vec<Vec<Hit>>,
}

/// Evenly spread, ascending.
pub(super) fn choose(ids: &[u64]) -> Vec<u64> {
    (0..QUERIES.min(ids.len())).map(|at| ids[at * ids.len() / QUERIES.min(ids.len())]).collect()
}

impl Sample {
    /// A sample of these vectors, which are not zero.
    pub(super) fn new(dim: usize, ids: Vec<u64>, mut queries: Vec<f32>) -> Self {
        for query in queries.chunks_exact_mut(dim) {
            let length = query.iter().map(|v| v * v).sum::<f32>().sqrt();
            query.iter_mut().for_each(|v| *v /= length);
        }
        let nearest = vec![Vec::new(); ids.len()];
        Self { dim, ids, queries, nearest }
    }

    /// Compares it with rows of the segment, `[ids.len(), dim]` row-major.
    pub(super) fn compare(&mut self, ids: &[u64], rows: &[f16]) {
        let (mut scales, mut dots) = (vec![0.0; ids.len()], vec![0.0; ids.len()]);
        scan::scales(self.dim, rows, &mut scales);
        let queries = self.queries.chunks_exact(self.dim).zip(&self.ids);
        for ((query, own), nearest) in queries.zip(&mut self.nearest) {
            scan::dots(query, rows, &mut dots);
            for ((&id, dot), scale) in ids.iter().zip(&dots).zip(&scales) {
                let hit = Hit::new(id, dot * scale);
                if id != *own && (nearest.len() < K || best_first(&hit, &nearest[K - 1]).is_lt()) {
                    let at = nearest.partition_point(|known| best_first(known, &hit).is_lt());
                    nearest.insert(at, hit);
                    nearest.truncate(K);
                }
            }
        }
    }

    /// The least breadth at which `index`, which holds every row that was compared, finds the share
    /// `target` of the nearest; the greatest there is where none does.
    pub(super) fn tune(&self, cx: &dyn CallContext, index: &dyn VectorIndex, target: f32) -> Result<Tuned> {
        // Recall rises with the breadth.
        let (mut low, mut high) = (0, BREADTHS.len() - 1);
        let mut tuned = self.at(cx, index, BREADTHS[high])?;
        while low < high && tuned.recall >= target {
            let middle = (low + high) / 2;
            let narrower = self.at(cx, index, BREADTHS[middle])?;
            if narrower.recall >= target {
                (high, tuned) = (middle, narrower);
            } else {
                low = middle + 1;
            }
        }
        Ok(tuned)
    }

    fn at(&self, cx: &dyn CallContext, index: &dyn VectorIndex, breadth: u32) -> Result<Tuned> {
        Ok(Tuned { breadth, recall: self.recall(cx, index, breadth)? })
    }

    fn recall(&self, cx: &dyn CallContext, index: &dyn VectorIndex, breadth: u32) -> Result<f32> {
        let mut found = vec![Hit::NONE; self.ids.len() * (K + 1)];
        let params = SearchParams::with_ef(breadth);
        index.search(cx, &self.queries, K + 1, params, None, &mut found)?;
        let (mut right, mut wanted) = (0, 0);
        for ((own, nearest), found) in self.ids.iter().zip(&self.nearest).zip(found.chunks_exact(K + 1)) {
            // Of equally near ones any will do.
            let least = nearest.last().map_or(f32::NEG_INFINITY, |hit| hit.score) - 1e-5;
            let others = found.iter().filter(|hit| hit.id != *own && !hit.is_none());
            right += others.take(K).filter(|hit| hit.score >= least).count();
            wanted += nearest.len();
        }
        Ok(right.min(wanted) as f32 / wanted.max(1) as f32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_api::{Capabilities, IdFilter, IndexSpec, IndexStats, Metric};
    use magray_plugin_testkit::Cx;
    use std::path::Path;

    const DIM: usize = 4;
    const ROWS: u64 = 500;

    fn row(id: u64) -> [f16; DIM] {
        let a = id as f32;
        [(a * 0.37).sin(), (a * 0.11).cos(), (a * 1.7).sin(), 0.3].map(f16::from_f32)
    }

    /// Compares with the rows whose id, taken modulo 1000, is below its breadth: a caricature of an
    /// approximate index, for the recall must follow the breadth exactly.
    struct Narrow;

    impl VectorIndex for Narrow {
        fn spec(&self) -> IndexSpec {
            IndexSpec { dim: DIM, metric: Metric::Cosine }
        }
        fn capabilities(&self) -> Capabilities {
            Capabilities { exact: false, concurrent_write: false, filtered: false, mapped: false }
        }
        fn stats(&self) -> IndexStats {
            IndexStats { live: ROWS, ..IndexStats::default() }
        }
        fn upsert(&self, _: &dyn CallContext, _: &[u64], _: &[f32]) -> Result<()> {
            Ok(())
        }
        fn remove(&self, _: &dyn CallContext, _: &[u64]) -> Result<usize> {
            Ok(0)
        }
        fn search(
            &self,
            _: &dyn CallContext,
            queries: &[f32],
            k: usize,
            params: SearchParams,
            _: Option<IdFilter<'_>>,
            out: &mut [Hit],
        ) -> Result<()> {
            for (query, out) in queries.chunks_exact(DIM).zip(out.chunks_exact_mut(k)) {
                let seen = (0..ROWS).filter(|id| id * 7919 % 1000 < u64::from(params.ef));
                let mut hits: Vec<Hit> = seen
                    .map(|id| {
                        let row = row(id).map(f16::to_f32);
                        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
                        Hit::new(id, dot(query, &row) / dot(&row, &row).sqrt())
                    })
                    .collect();
                hits.sort_by(best_first);
                out.iter_mut().zip(hits).for_each(|(out, hit)| *out = hit);
            }
            Ok(())
        }
        fn save(&self, _: &dyn CallContext, _: &Path) -> Result<()> {
            Ok(())
        }
    }

    fn sample() -> Sample {
        let ids: Vec<u64> = (0..ROWS).collect();
        let rows: Vec<f16> = ids.iter().flat_map(|&id| row(id)).collect();
        let chosen = choose(&ids);
        assert_eq!(chosen.len(), QUERIES);
        let queries = chosen.iter().flat_map(|&id| row(id).map(f16::to_f32)).collect();
        let mut sample = Sample::new(DIM, chosen, queries);
        for (ids, rows) in ids.chunks(77).zip(rows.chunks(77 * DIM)) {
            sample.compare(ids, rows);
        }
        sample
    }

    #[test]
    fn the_least_breadth_that_reaches_the_target_is_found() {
        let sample = sample();
        let recall = |breadth| sample.recall(&Cx::free(), &Narrow, breadth).unwrap();
        assert!(recall(16) < 0.1 && recall(1024) == 1.0);
        for target in [0.3, 0.6, 0.9, 1.0] {
            let tuned = sample.tune(&Cx::free(), &Narrow, target).unwrap();
            assert!(tuned.recall >= target && tuned.recall == recall(tuned.breadth));
            let narrower = BREADTHS.iter().rev().find(|&&breadth| breadth < tuned.breadth);
            assert!(narrower.is_none_or(|&narrower| recall(narrower) < target), "{target}: {tuned:?}");
        }
    }

    #[test]
    fn what_cannot_be_reached_is_said() {
        let mut sample = sample();
        // A neighbour that the index does not hold.
        sample.compare(&[9999], &row(123));
        sample.nearest.iter_mut().for_each(|nearest| nearest.iter_mut().for_each(|hit| hit.score += 1.0));
        let tuned = sample.tune(&Cx::free(), &Narrow, 0.95).unwrap();
        assert_eq!((tuned.breadth, tuned.recall), (BREADTHS[BREADTHS.len() - 1], 0.0));
    }

    #[test]
    fn a_sample_of_few_is_all_of_them() {
        assert_eq!(choose(&[3, 5, 9]), [3, 5, 9]);
        assert!(choose(&[]).is_empty());
    }
}
