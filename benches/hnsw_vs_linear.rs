//! The graph of `hnsw` beside comparing with every vector (`flat`), by number of vectors: where the one begins to pay.
//! Recall is printed with each size. Vectors are the first ones of the sentence embeddings where they are there, else
//! drawn around centres.
#![expect(clippy::print_stderr, reason = "recall that criterion has no place for")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use magray_benches::Ann;
use magray_index_flat::Flat;
use magray_index_hnsw::{Hnsw, Options, Preset};
use magray_plugin_api::{CreateVectorIndex, Hit, IndexSpec, Metric, Result, SearchParams, VectorIndex};
use magray_plugin_testkit::{Cx, HOST};
use std::collections::HashSet;

/// Hits a query.
const K: usize = 10;
const SIZES: [usize; 4] = [500, 2_000, 8_000, 32_000];

/// Points around a hundred centres, the same in every run.
fn drawn(rows: usize, dim: usize, seed: u64) -> Vec<f32> {
    let number = |n: u64| {
        // The finalizer of SplitMix64 (Steele et al., OOPSLA 2014).
        let mut z = n.wrapping_add(seed).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ z >> 31) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let at = |row: usize, d: usize| {
        number((row % 100 * dim + d) as u64) + 0.7 * number((1 << 40) + (row * dim + d) as u64)
    };
    (0..rows).flat_map(|row| (0..dim).map(move |d| at(row, d))).collect()
}

fn search(index: &dyn VectorIndex, query: &[f32]) -> Result<[Hit; K]> {
    let mut hits = [Hit::NONE; K];
    index.search(&Cx::free(), query, K, SearchParams::with_ef(100), None, &mut hits)?;
    Ok(hits)
}

fn run(c: &mut Criterion, dim: usize, base: &[f32], queries: &[f32]) -> Result<()> {
    let spec = IndexSpec { dim, metric: Metric::Cosine };
    let mut group = c.benchmark_group("hnsw_vs_linear");
    group.sample_size(20).throughput(Throughput::Elements(1));
    for rows in SIZES.into_iter().filter(|rows| rows * dim <= base.len()) {
        let ids: Vec<u64> = (0..rows as u64).collect();
        // A graph for any number of vectors.
        let options = Options { preset: Preset::Ecommerce, exact_below: 0, ..Options::default() };
        let graph = Hnsw::create(options, spec, HOST)?;
        let linear = Flat::create(magray_index_flat::Options::default(), spec, HOST)?;
        for index in [&graph as &dyn VectorIndex, &linear] {
            index.upsert(&Cx::free(), &ids, &base[..rows * dim])?;
        }
        let (mut found, mut asked) = (0, 0);
        for query in queries.chunks_exact(dim).take(200) {
            let truth: HashSet<u64> = search(&linear, query)?.iter().map(|hit| hit.id).collect();
            found += search(&graph, query)?.iter().filter(|hit| truth.contains(&hit.id)).count();
            asked += K;
        }
        eprintln!("{rows} vectors: recall@{K} of the graph {:.4}", found as f64 / asked as f64);
        for (name, index) in [("hnsw", &graph as &dyn VectorIndex), ("linear", &linear)] {
            let mut queries = queries.chunks_exact(dim).cycle();
            group.bench_function(BenchmarkId::new(name, rows), |b| {
                b.iter(|| queries.next().map(|query| search(index, query)));
            });
        }
    }
    group.finish();
    Ok(())
}

fn benches(c: &mut Criterion) {
    let ran = match Ann::read("minilm-100k-384-cos") {
        Ok(ann) => run(c, ann.dim, &ann.base, &ann.queries),
        Err(error) => {
            eprintln!("{error}: vectors are drawn; MAGRAY_DATA names the folder of the data");
            run(c, 384, &drawn(32_000, 384, 1), &drawn(500, 384, 2))
        }
    };
    ran.unwrap_or_else(|error| panic!("{error}"));
}

criterion_group!(hnsw_vs_linear, benches);
criterion_main!(hnsw_vs_linear);
