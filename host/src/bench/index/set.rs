//! Vectors, queries, and which vectors are really the nearest.
use super::super::{BenchError, data::fault_of, npy::Npy};
use crate::plugins::Plugins;
use magray_plugin_api::{CallContext, Hit, IndexSpec, Metric, SearchParams};
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
};

/// Neighbours that are asked for: recall is recall@10.
pub(super) const K: usize = 10;

/// Rows that are held in memory at once where the neighbours are computed.
const BLOCK: usize = 1 << 15;

/// A data set of vectors on disk.
#[derive(Debug)]
pub struct VectorSet {
    dir: PathBuf,
    metric: Metric,
    base: Npy,
    base_path: PathBuf,
    query_path: PathBuf,
    /// `[query_count, dim]` row-major.
    queries: Vec<f32>,
    query_count: usize,
}

/// For each query the rows that are its nearest, best first: ten, or as many as there are.
pub(in crate::bench) type Neighbours = Vec<Vec<u32>>;

impl VectorSet {
    /// Opens a folder with `base.f16.npy`, `query.f16.npy` (or `.f32.npy`, or `.npy`), each a table of f16 or f32
    /// with one vector a row, of which the first `queries` queries are used.
    ///
    /// # Errors
    /// [`BenchError::Data`].
    pub fn open(dir: &Path, metric: Metric, queries: Option<usize>) -> Result<Self, BenchError> {
        let base_path = table(dir, "base")?;
        let query_path = table(dir, "query")?;
        let (base, mut asked) = (Npy::open(&base_path)?, Npy::open(&query_path)?);
        if asked.width() != base.width() {
            let fault =
                format!("its vectors are {} wide, and those of the base {}", asked.width(), base.width());
            return Err(fault_of(&query_path, fault));
        }
        if u32::try_from(base.rows()).is_err() {
            return Err(fault_of(&base_path, "more rows than 32 bits can number"));
        }
        let query_count = asked.rows().min(queries.unwrap_or(usize::MAX));
        if query_count == 0 || base.rows() == 0 {
            let empty = if base.rows() == 0 { &base_path } else { &query_path };
            return Err(fault_of(empty, "there is no vector in it"));
        }
        let queries = asked.floats(0..query_count)?;
        Ok(Self { dir: dir.to_owned(), metric, base, base_path, query_path, queries, query_count })
    }

    /// The name of the folder.
    pub fn name(&self) -> String {
        let dir = self.dir.canonicalize().unwrap_or_else(|_| self.dir.clone());
        dir.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// How near two vectors are.
    pub fn metric(&self) -> Metric {
        self.metric
    }

    /// Vectors.
    pub fn rows(&self) -> usize {
        self.base.rows()
    }

    /// Width of each.
    pub fn dim(&self) -> usize {
        self.base.width()
    }

    /// Queries.
    pub fn query_count(&self) -> usize {
        self.query_count
    }

    pub(super) fn paths(&self) -> (&Path, &Path) {
        (&self.base_path, &self.query_path)
    }

    /// The neighbours among all vectors: those of `gt100.i32.npy`, a table of row numbers, best first, where there
    /// is one, else computed.
    pub(super) fn neighbours(
        &mut self,
        cx: &dyn CallContext,
        plugins: &Plugins,
    ) -> Result<Neighbours, BenchError> {
        let path = self.dir.join("gt100.i32.npy");
        if !path.exists() {
            return self.exact(cx, plugins, None);
        }
        let mut truth = Npy::open(&path)?;
        let wanted = K.min(self.rows());
        if truth.width() < wanted {
            return Err(fault_of(
                &path,
                format!("it names {} neighbours, fewer than {wanted}", truth.width()),
            ));
        }
        let rows = truth.row_numbers(0..self.query_count, self.rows())?;
        Ok(rows.chunks_exact(truth.width()).map(|row| row[..wanted].to_vec()).collect())
    }

    /// The neighbours among the allowed rows, ascending, by comparing with each of them: what the linked-in index
    /// `flat` does, over so many rows at a time that any set fits into memory.
    pub(in crate::bench) fn exact(
        &mut self,
        cx: &dyn CallContext,
        plugins: &Plugins,
        allowed: Option<&[u32]>,
    ) -> Result<Neighbours, BenchError> {
        let (dim, rows) = (self.dim(), self.rows());
        let spec = IndexSpec { dim, metric: self.metric };
        let mut best: Vec<Vec<Hit>> = vec![Vec::new(); self.query_count];
        for start in (0..rows).step_by(BLOCK) {
            let end = rows.min(start + BLOCK);
            let chosen: Vec<u64> = match allowed {
                None => (start as u64..end as u64).collect(),
                Some(allowed) => {
                    let from = allowed.partition_point(|&row| (row as usize) < start);
                    let to = allowed.partition_point(|&row| (row as usize) < end);
                    allowed[from..to].iter().map(|&row| u64::from(row)).collect()
                }
            };
            let mut vectors = self.base.floats(start..end)?;
            if chosen.len() < end - start {
                let row = |&id: &u64| &vectors[(id as usize - start) * dim..][..dim];
                vectors = chosen.iter().flat_map(row).copied().collect();
            }
            let index = plugins.linked_index("flat", spec)?;
            let mut hits = vec![Hit::NONE; self.query_count * K];
            index
                .upsert(cx, &chosen, &vectors)
                .and_then(|()| index.search(cx, &self.queries, K, SearchParams::default(), None, &mut hits))
                .map_err(|error| BenchError::failed("flat", error))?;
            for (best, hits) in best.iter_mut().zip(hits.chunks_exact(K)) {
                best.extend(hits.iter().filter(|hit| !hit.is_none()));
                best.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
                best.truncate(K);
            }
        }
        Ok(best.into_iter().map(|hits| hits.into_iter().map(|hit| hit.id as u32).collect()).collect())
    }

    /// This share of the rows, at least one, drawn without regard to where they lie; ascending.
    pub(super) fn draw(&self, share: f64) -> Vec<u32> {
        let count = ((self.rows() as f64 * share).ceil() as usize).clamp(1, self.rows());
        let mut rows: Vec<u32> = (0..self.rows() as u32).collect();
        if count < rows.len() {
            rows.select_nth_unstable_by_key(count, |&row| (mixed(row), row));
            rows.truncate(count);
        }
        rows.sort_unstable();
        rows
    }

    /// The mean share of the true neighbours that were found. One that is as near as the last of them, but for the
    /// rounding of f32, is as good.
    ///
    /// # Errors
    /// [`BenchError::Data`] where a row cannot be read.
    pub(super) fn recall(&mut self, truth: &Neighbours, found: &[Vec<u64>]) -> Result<f64, BenchError> {
        let mut sum = 0.0;
        for (query, (truth, found)) in truth.iter().zip(found).enumerate() {
            let Some(&last) = truth.last() else { continue };
            let known: HashSet<u64> = truth.iter().map(|&row| u64::from(row)).collect();
            let (mut hits, others): (usize, Vec<u64>) = (
                found.iter().filter(|id| known.contains(id)).count(),
                found.iter().copied().filter(|id| !known.contains(id)).collect(),
            );
            if !others.is_empty() {
                let worst = self.score(query, last as usize)?;
                let enough = worst - TIE * worst.abs().max(1.0);
                for id in others {
                    hits += usize::from(self.score(query, id as usize)? >= enough);
                }
            }
            sum += hits.min(truth.len()) as f64 / truth.len() as f64;
        }
        Ok(sum / truth.len() as f64)
    }

    fn score(&mut self, query: usize, row: usize) -> Result<f64, BenchError> {
        let vector = self.base.floats(row..row + 1)?;
        Ok(score(self.metric, &self.queries[query * vector.len()..][..vector.len()], &vector))
    }
}

/// Scores that are less than this apart, relative to the score, may have changed places by rounding.
const TIE: f64 = 1e-6;

/// A similarity: greater is nearer.
fn score(metric: Metric, a: &[f32], b: &[f32]) -> f64 {
    let pairs = || a.iter().zip(b).map(|(&a, &b)| (f64::from(a), f64::from(b)));
    let dot = || pairs().map(|(a, b)| a * b).sum::<f64>();
    let norm = |v: &[f32]| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    match metric {
        Metric::Cosine => dot() / (norm(a) * norm(b)),
        Metric::Dot => dot(),
        Metric::L2 => -pairs().map(|(a, b)| (a - b).powi(2)).sum::<f64>(),
    }
}

/// The finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
fn mixed(row: u32) -> u64 {
    let mut z = (u64::from(row) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

fn table(dir: &Path, name: &str) -> Result<PathBuf, BenchError> {
    let names = [".f16.npy", ".f32.npy", ".npy"].map(|ending| format!("{name}{ending}"));
    let found = names.iter().map(|name| dir.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| fault_of(dir, format!("there is no {}", names.join(" or "))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bench::npy::tests::table_of, plugins::PluginOptions};
    use std::fs;

    struct Always;

    impl CallContext for Always {
        fn is_cancelled(&self) -> bool {
            false
        }
        fn remaining(&self) -> Option<std::time::Duration> {
            None
        }
        fn progress(&self, _: u64, _: u64) {}
    }

    /// Points on a line: vector i is (i, 1), so the nearest by L2 are the neighbours in number.
    fn line(dir: &Path, rows: usize) -> VectorSet {
        let row = |i: usize| [i as f32, 1.0];
        fs::write(dir.join("base.f32.npy"), table_of(&(0..rows).map(row).collect::<Vec<_>>()))
            .expect("a file");
        fs::write(dir.join("query.npy"), table_of(&[[20.1, 1.0], [0.0, 1.0]])).expect("a file");
        VectorSet::open(dir, Metric::L2, None).expect("it is whole")
    }

    fn plugins() -> Plugins {
        Plugins::discover(
            PluginOptions { threads: 1, ..PluginOptions::default() },
            &[&magray_index_flat::PLUGIN],
        )
    }

    #[test]
    fn neighbours_are_computed_where_no_file_names_them() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut set = line(dir.path(), 40);
        assert_eq!((set.rows(), set.dim(), set.query_count()), (40, 2, 2));
        let found = set.neighbours(&Always, &plugins()).expect("computed");
        assert_eq!(found[0], [20, 21, 19, 22, 18, 23, 17, 24, 16, 25]);
        assert_eq!(found[1], (0..10).collect::<Vec<_>>());
        let allowed: Vec<u32> = vec![3, 19, 30];
        assert_eq!(set.exact(&Always, &plugins(), Some(&allowed)).expect("computed")[0], [19, 30, 3]);
    }

    #[test]
    fn the_neighbours_of_a_file_must_be_rows_and_enough() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut set = line(dir.path(), 40);
        let file = dir.path().join("gt100.i32.npy");
        let write = |width: usize, last: i32| {
            let rows = vec![(0..width as i32 - 1).chain([last]).collect::<Vec<_>>(); 2];
            fs::write(&file, crate::bench::npy::tests::row_numbers(&rows)).expect("a file");
        };
        write(12, 39);
        assert_eq!(set.neighbours(&Always, &plugins()).expect("whole")[1], (0..10).collect::<Vec<_>>());
        write(12, 40);
        let error = set.neighbours(&Always, &plugins()).expect_err("40 is no row").to_string();
        assert!(error.contains("40 is no row of 40"), "{error}");
        write(9, 8);
        let error = set.neighbours(&Always, &plugins()).expect_err("too few").to_string();
        assert!(error.contains("9 neighbours, fewer than 10"), "{error}");
    }

    #[test]
    fn recall_counts_what_is_as_near_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut set = line(dir.path(), 40);
        let truth: Neighbours = vec![vec![20, 21, 19], vec![0, 1]];
        let mut recall = |first: &[u64], second: &[u64]| {
            set.recall(&truth, &[first.to_vec(), second.to_vec()]).expect("rows can be read")
        };
        assert_eq!(recall(&[19, 20, 21], &[1, 0]), 1.0);
        assert_eq!(recall(&[20, 21], &[0, 2]), (2.0 / 3.0 + 0.5) / 2.0);
        assert_eq!(recall(&[], &[5]), 0.0);
        // Nearer than the last that the file names, so the file is what is wrong.
        let truth: Neighbours = vec![vec![20, 30], vec![0]];
        assert_eq!(set.recall(&truth, &[vec![20, 22], vec![0]]).expect("rows"), 1.0);
    }

    #[test]
    fn a_draw_is_of_the_share_that_was_asked_for() {
        let dir = tempfile::tempdir().expect("a folder");
        let set = line(dir.path(), 1000);
        for (share, count) in [(0.01, 10), (0.1, 100), (0.5, 500), (1.0, 1000), (1e-9, 1)] {
            let drawn = set.draw(share);
            assert!(drawn.len() == count && drawn.is_sorted_by(|a, b| a < b) && drawn[count - 1] < 1000);
        }
        let drawn = set.draw(0.1);
        let low = drawn.iter().filter(|&&row| row < 500).count();
        assert!((30..70).contains(&low), "{low} of 100 lie in the first half");
    }

    #[test]
    fn a_folder_that_does_not_fit_together_is_refused() {
        let dir = tempfile::tempdir().expect("a folder");
        let open = || VectorSet::open(dir.path(), Metric::Dot, None).map_err(|error| error.to_string());
        assert!(open().expect_err("empty").contains("no base.f16.npy or base.f32.npy or base.npy"));
        fs::write(dir.path().join("base.npy"), table_of(&[[1.0, 2.0]])).expect("a file");
        assert!(open().expect_err("no queries").contains("no query.f16.npy"));
        fs::write(dir.path().join("query.npy"), table_of(&[[1.0, 2.0, 3.0]])).expect("a file");
        assert!(open().expect_err("another width").contains("3 wide, and those of the base 2"));
        fs::write(dir.path().join("query.npy"), table_of::<2>(&[])).expect("a file");
        assert!(open().expect_err("no query").contains("no vector in it"));
    }

    #[test]
    fn scores_are_similarities() {
        let (a, b) = ([3.0, 4.0], [6.0, 8.0]);
        assert_eq!(score(Metric::Cosine, &a, &b), 1.0);
        assert_eq!(score(Metric::Dot, &a, &b), 50.0);
        assert_eq!(score(Metric::L2, &a, &b), -25.0);
    }
}
