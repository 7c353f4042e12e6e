use super::{search::Candidate, *};
use crate::{
    codes::{self, ByCodes, Query},
    exact,
    int8::{Codes, Kernel, Quantizer, stride},
    rabitq,
};
use build::mix;
use magray_plugin_api::{CallContext, ErrorCode, IndexSpec, Metric};
use proptest::prelude::*;
use std::{collections::HashSet, time::Duration};

/// A caller that cancels or does not.
struct Context(bool);

impl CallContext for Context {
    fn is_cancelled(&self) -> bool {
        self.0
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, done: u64, total: u64) {
        assert!(done <= total);
    }
}

/// The graph in a section, where there is one.
fn open(n: usize, section: &[u32]) -> Option<Graph<'_>> {
    Some(Outline::read(n, section)?.graph(section))
}

/// Vectors with their codes.
struct Data {
    dim: usize,
    metric: Metric,
    rows: Vec<f32>,
    quantizer: Quantizer,
    bytes: Vec<u8>,
    half: Vec<i32>,
}

/// A number near 0, roughly normal.
fn normal(seed: &mut u64) -> f32 {
    let mut sum = 0.0;
    for _ in 0..4 {
        *seed = mix(*seed);
        sum += (*seed >> 40) as f32 / (1 << 24) as f32 - 0.5;
    }
    sum
}

/// `n` vectors around `centers` points, or around none.
fn vectors(dim: usize, n: usize, centers: usize, spread: f32, seed: u64) -> Vec<f32> {
    let mut seed = seed;
    let points: Vec<f32> = (0..centers * dim).map(|_| normal(&mut seed)).collect();
    let mut rows = Vec::with_capacity(n * dim);
    for row in 0..n {
        for at in 0..dim {
            let center = if centers == 0 { 0.0 } else { points[row % centers * dim + at] };
            rows.push(center + spread * normal(&mut seed));
        }
    }
    rows
}

impl Data {
    fn new(dim: usize, metric: Metric, mut rows: Vec<f32>) -> Self {
        if metric == Metric::Cosine {
            for row in rows.chunks_exact_mut(dim) {
                let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                row.iter_mut().for_each(|v| *v /= length);
            }
        }
        let n = rows.len() / dim;
        let quantizer = Quantizer::fit(dim, &rows);
        let (mut bytes, mut half) = (vec![0; n * stride(dim)], vec![0; n]);
        quantizer.encode(Kernel::detect(), &rows, &mut bytes, &mut half);
        Self { dim, metric, rows, quantizer, bytes, half }
    }

    fn len(&self) -> usize {
        self.half.len()
    }

    fn codes(&self) -> Codes<'_> {
        Codes::new(stride(self.dim), &self.bytes, &self.half).unwrap()
    }

    fn build(&self, params: &Params, threads: usize) -> Vec<u32> {
        let squares: Vec<f32> =
            self.rows.chunks_exact(self.dim).map(|row| row.iter().map(|v| v * v).sum()).collect();
        let most = squares.iter().fold(0.0f32, |most, &square| most.max(square));
        let scale = self.quantizer.scale();
        let lift: Vec<f32> = squares.iter().map(|square| (most - square).sqrt() * scale).collect();
        let lift = (self.metric == Metric::Dot).then_some(&*lift);
        build(&Context(false), Kernel::detect(), self.codes(), lift, params, threads).unwrap()
    }

    /// How far a row is from a query, exactly.
    fn distance(&self, query: &[f32], row: usize) -> f32 {
        let pairs = query.iter().zip(&self.rows[row * self.dim..][..self.dim]);
        match self.metric {
            Metric::L2 => pairs.map(|(a, b)| (a - b).powi(2)).sum(),
            _ => -pairs.map(|(a, b)| a * b).sum::<f32>(),
        }
    }

    /// The rows that a search for `k` finds, the nearest by their vectors first.
    fn search(
        &self,
        graph: &Graph<'_>,
        query: &[f32],
        k: usize,
        ef: usize,
        scratch: &mut Scratch,
    ) -> Vec<u32> {
        let queries = self.query(query);
        let mut scorer = self.scorer(&queries);
        let found = graph.search(&mut scorer, k, ef, scratch);
        self.exact(query, found.iter().map(|candidate| candidate.row))
    }

    fn query(&self, query: &[f32]) -> Query {
        let query = exact::prepare(IndexSpec { dim: self.dim, metric: self.metric }, query);
        Query::new(rabitq::Kernel::detect(), self.metric, &query, &self.quantizer, None)
    }

    fn scorer<'a>(&'a self, query: &'a Query) -> ByCodes<'a> {
        ByCodes::new(Kernel::detect(), codes::Codes::Bytes(self.codes()), query, self.metric)
    }

    fn exact(&self, query: &[f32], rows: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut found: Vec<Candidate> =
            rows.map(|row| Candidate { distance: self.distance(query, row as usize), row }).collect();
        found.sort_unstable();
        found.iter().map(|candidate| candidate.row).collect()
    }

    /// The share of the `k` nearest that searches with random queries find; rows that are as near as
    /// the `k`-th count too.
    fn recall(&self, k: usize, ef: usize, queries: &[f32]) -> f64 {
        let section = self.build(&Params::default(), 2);
        let graph = open(self.len(), &section).unwrap();
        let mut scratch = Scratch::default();
        let (mut hits, mut all) = (0, 0);
        for query in queries.chunks_exact(self.dim) {
            let truth = self.exact(query, 0..self.len() as u32);
            let limit = self.distance(query, truth[k - 1] as usize);
            let found = self.search(&graph, query, k, ef, &mut scratch);
            let distinct: HashSet<_> = found.iter().collect();
            assert_eq!(distinct.len(), found.len(), "no row twice");
            hits += found[..k].iter().filter(|&&row| self.distance(query, row as usize) <= limit).count();
            all += k;
        }
        hits as f64 / all as f64
    }
}

/// The rows that can be reached from the top.
fn reached(graph: &Graph<'_>) -> usize {
    let spread = |neighbors: &[u32], from: Vec<u32>| {
        let n = neighbors.len() / graph.degree;
        let mut seen = vec![false; n];
        let mut stack = from;
        stack.iter().for_each(|&place| seen[place as usize] = true);
        while let Some(place) = stack.pop() {
            for &next in &neighbors[place as usize * graph.degree..][..graph.degree] {
                if !std::mem::replace(&mut seen[next as usize], true) {
                    stack.push(next);
                }
            }
        }
        (0..n as u32).filter(|&place| seen[place as usize]).collect::<Vec<u32>>()
    };
    let mut rows: Option<Vec<u32>> = None;
    for layer in graph.upper.iter().rev() {
        let places = match rows {
            Some(rows) => rows.iter().map(|row| layer.rows.binary_search(row).unwrap() as u32).collect(),
            // All of the top is looked at.
            None => (0..layer.rows.len() as u32).collect(),
        };
        rows =
            Some(spread(layer.neighbors, places).iter().map(|&place| layer.rows[place as usize]).collect());
        assert_eq!(rows.as_ref().unwrap().len(), layer.rows.len());
    }
    let rows = spread(
        graph.neighbors,
        rows.unwrap_or_else(|| (0..(graph.neighbors.len() / graph.degree) as u32).collect()),
    );
    let twins: HashSet<u32> = graph.twins.iter().map(|pair| pair[1]).collect();
    assert!(rows.iter().all(|row| !twins.contains(row)) || graph.upper.is_empty());
    rows.len() + if graph.upper.is_empty() { 0 } else { twins.len() }
}

#[test]
fn recall_on_random_vectors() {
    // Near by dot product are rows that are far from one another, so that takes more breadth.
    for (metric, ef) in [(Metric::Cosine, 128), (Metric::L2, 128), (Metric::Dot, 384)] {
        let data = Data::new(24, metric, vectors(24, 4000, 0, 1.0, 1));
        let recall = data.recall(10, ef, &vectors(24, 50, 0, 1.0, 2));
        assert!(recall > 0.97, "{metric:?}: {recall}");
    }
}

#[test]
fn recall_on_clusters_far_apart() {
    // Smaller and larger than a leaf; no row of one is near to one of another.
    for centers in [300, 3] {
        let rows = vectors(16, 3000, centers, 0.1, 3);
        let queries = rows[..16 * 60].to_vec();
        let data = Data::new(16, Metric::L2, rows);
        let recall = data.recall(10, 64, &queries);
        assert!(recall > 0.95, "{centers}: {recall}");
    }
}

/// The long vectors have the greatest products with most queries, and few are near to them.
#[test]
fn recall_by_dot_product_on_uneven_lengths() {
    let mut rows = vectors(16, 3000, 0, 1.0, 5);
    for (at, row) in rows.chunks_exact_mut(16).enumerate() {
        row.iter_mut().for_each(|v| *v *= 1.0 + (at % 10) as f32);
    }
    let data = Data::new(16, Metric::Dot, rows);
    let recall = data.recall(10, 256, &vectors(16, 50, 0, 1.0, 6));
    assert!(recall > 0.95, "{recall}");
}

/// Hundreds of equal vectors must neither hide others nor be hidden.
#[test]
fn recall_on_duplicates() {
    let mut rows = vectors(12, 1500, 0, 1.0, 7);
    for at in 0..1500 {
        // 3 vectors 250 times each, and 750 that are their own.
        if at % 2 == 0 {
            let source = (at / 2 % 3) * 24 + 12;
            let source = rows[source..source + 12].to_vec();
            rows[at * 12..(at + 1) * 12].copy_from_slice(&source);
        }
    }
    let queries = [vectors(12, 40, 0, 1.0, 8), rows[..60].to_vec()].concat();
    let data = Data::new(12, Metric::L2, rows);
    let section = data.build(&Params::default(), 2);
    let graph = open(data.len(), &section).unwrap();
    assert_eq!(reached(&graph), data.len());
    assert!(graph.twins.len() >= 747);
    // More than are equal.
    let recall = data.recall(300, 400, &queries);
    assert!(recall > 0.97, "{recall}");
}

#[test]
fn equal_vectors_and_few() {
    for (n, distinct) in [(0, 1), (1, 1), (2, 1), (2, 2), (33, 33), (64, 64), (65, 65), (200, 1), (200, 2)] {
        let mut rows = vectors(5, distinct, 0, 1.0, 9);
        rows = (0..n).flat_map(|at| rows[at % distinct * 5..][..5].to_vec()).collect();
        let data = Data::new(5, Metric::L2, rows);
        let section = data.build(&Params::default(), 2);
        let graph = open(n, &section).unwrap();
        assert_eq!(reached(&graph), n, "{n} {distinct}");
        let mut found = data.search(&graph, &[0.1; 5], n.max(1), n.max(1), &mut Scratch::default());
        found.sort_unstable();
        assert_eq!(found, (0..n as u32).collect::<Vec<_>>(), "{n} {distinct}");
    }
}

/// Counts the rows that are compared.
struct Counted<'a>(ByCodes<'a>, usize);

impl Scorer for Counted<'_> {
    fn score(&mut self, rows: &[u32], out: &mut [f32]) {
        self.1 += rows.len();
        self.0.score(rows, out);
    }

    fn zero(&self) -> Option<f32> {
        self.0.zero()
    }
}

/// The fewer of the rows in view are wanted, the sooner a walk ends, and it finds those as before. Vectors far from the
/// origin, for what is measured is no distance then.
#[test]
fn a_walk_ends_where_rows_are_far() {
    for metric in [Metric::L2, Metric::Cosine] {
        let mut rows = vectors(24, 4000, 40, 0.5, 21);
        rows.iter_mut().for_each(|v| *v += 1.0);
        let data = Data::new(24, metric, rows);
        let section = data.build(&Params::default(), 2);
        let graph = open(data.len(), &section).unwrap();
        let mut scratch = Scratch::default();
        let (mut near, mut all, mut same) = (0, 0, 0);
        for row in (0..data.len()).step_by(100) {
            let query = &data.rows[row * 24..][..24];
            let codes = data.query(query);
            let mut walk = |k: usize| {
                let mut scorer = Counted(data.scorer(&codes), 0);
                let found = graph.search(&mut scorer, k, 200, &mut scratch);
                (found[..5].iter().map(|candidate| candidate.row).collect::<Vec<_>>(), scorer.1)
            };
            let ((few, compared), (many, compared_all)) = (walk(5), walk(200));
            (near, all, same) = (near + compared, all + compared_all, same + usize::from(few == many));
        }
        assert!(4 * near < 3 * all, "{metric:?}: {near} of {all} compared");
        assert!(same >= 38, "{metric:?}: {same} of 40 found the same");
    }
}

#[test]
fn a_filter_costs_no_recall() {
    let data = Data::new(16, Metric::Cosine, vectors(16, 4000, 20, 0.5, 10));
    let section = data.build(&Params::default(), 2);
    let graph = open(data.len(), &section).unwrap();
    let queries = vectors(16, 40, 20, 0.5, 10);
    let mut scratch = Scratch::default();
    // A random third, and what is far from the first queries: clusters of the other half.
    let filters: [&dyn Fn(u32) -> bool; 2] =
        [&|row| mix(u64::from(row)).is_multiple_of(3), &|row| row % 20 >= 10];
    for (number, filter) in filters.into_iter().enumerate() {
        let mut hits = 0;
        for query in queries.chunks_exact(16) {
            let codes = data.query(query);
            let mut scorer = data.scorer(&codes);
            let found = graph.search_filtered(&mut scorer, 64, filter, 4000, &mut scratch).unwrap();
            assert!(found.iter().all(|candidate| filter(candidate.row)));
            let found = data.exact(query, found.iter().map(|candidate| candidate.row));
            let truth = data.exact(query, (0..4000).filter(|&row| filter(row)));
            hits += truth[..10].iter().filter(|row| found[..10].contains(row)).count();
        }
        assert!(hits > 380, "filter {number}: {hits} of 400");
    }
    let codes = data.query(&queries[..16]);
    let mut scorer = data.scorer(&codes);
    // One row of 4000, and it is not near: given up.
    let one = data.exact(&queries[..16], 0..4000)[3999];
    assert!(graph.search_filtered(&mut scorer, 64, |row| row == one, 500, &mut scratch).is_none());
    // With leave to look at all it is found.
    let found = graph.search_filtered(&mut scorer, 64, |row| row == one, 4000, &mut scratch).unwrap();
    assert_eq!(found.iter().map(|candidate| candidate.row).collect::<Vec<_>>(), [one]);
}

#[test]
fn the_same_graph_by_any_number_of_threads() {
    let data = Data::new(16, Metric::L2, vectors(16, 3000, 50, 0.3, 11));
    let one = data.build(&Params::default(), 1);
    for threads in [2, 5] {
        assert!(one == data.build(&Params::default(), threads), "{threads} threads");
    }
    assert!(one != data.build(&Params { seed: 1, ..Params::default() }, 2));
    let graph = open(data.len(), &one).unwrap();
    assert_eq!(reached(&graph), data.len());
    assert!(!graph.upper.is_empty());
}

#[test]
fn a_build_can_be_cancelled() {
    let data = Data::new(4, Metric::L2, vectors(4, 500, 0, 1.0, 12));
    let built = build(&Context(true), Kernel::detect(), data.codes(), None, &Params::default(), 2);
    assert_eq!(built.unwrap_err().code(), ErrorCode::CANCELLED);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Any shape of data and of the graph: all is reached from the top.
    #[test]
    fn all_rows_are_reached(
        (dim, n, centers) in (1usize..9, 0usize..400, 0usize..5),
        degree in 2usize..10,
        leaf in 30usize..100,
        coarse in any::<bool>(),
        seed: u64,
    ) {
        let mut rows = vectors(dim, n, centers, 0.2, seed);
        if coarse {
            // Many equal codes.
            rows.iter_mut().for_each(|v| *v = (*v * 4.0).round());
        }
        let data = Data::new(dim, Metric::L2, rows);
        let params = Params { degree, leaf, passes: 2, nearest: 5, seed };
        let section = data.build(&params, 2);
        let graph = open(n, &section).unwrap();
        prop_assert_eq!(reached(&graph), n);
        let mut scratch = Scratch::default();
        let found = data.search(&graph, &vec![0.0; dim], n + 1, n + 1, &mut scratch);
        let distinct: HashSet<_> = found.iter().collect();
        prop_assert!(distinct.len() == found.len() && found.is_empty() == (n == 0));
    }

    /// Whatever a file says: it is refused, or a search finds rows that there are.
    #[test]
    fn damage_does_no_harm(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u32>()), 1..20),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut rows = vectors(4, 300, 0, 1.0, 13);
        rows.copy_within(..40, 400);
        let data = Data::new(4, Metric::L2, rows);
        let mut section = data.build(&Params { degree: 6, ..Params::default() }, 1);
        for (at, value) in changes {
            let at = at.index(section.len());
            // Values that may be rows are the harder ones to find.
            section[at] = if value % 2 == 0 { value } else { value % 400 };
        }
        if let Some(cut) = cut {
            section.truncate(cut.index(section.len()));
        }
        let Some(graph) = open(300, &section) else { return Ok(()) };
        let mut scratch = Scratch::default();
        for ef in [1, 10, 300] {
            let found = data.search(&graph, &[0.1; 4], ef, ef, &mut scratch);
            prop_assert!(found.len() <= ef && found.iter().all(|&row| row < 300));
            let codes = data.query(&[0.1; 4]);
            let mut scorer = data.scorer(&codes);
            let found = graph.search_filtered(&mut scorer, ef, |row| row % 2 == 0, 300, &mut scratch);
            prop_assert!(found.is_none_or(|found| found.iter().all(|candidate| candidate.row < 300)));
        }
    }
}
