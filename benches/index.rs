//! Searches per second of the index plugins over 100,000 sentence embeddings, and their recall.
#![expect(clippy::print_stderr, reason = "recall and times that criterion has no place for")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use magray_benches::Ann;
use magray_index_flat::Flat;
use magray_index_native::Native;
use magray_plugin_api::{
    CreateVectorIndex, Hit, IdFilter, IndexSpec, Metric, Result, SearchParams, VectorIndex,
};
use magray_plugin_testkit::{Cx, HOST};
use std::{hint::black_box, time::Instant};

/// Hits a query.
const K: usize = 10;

fn search(index: &dyn VectorIndex, queries: &[f32], filter: Option<IdFilter<'_>>) -> Result<Vec<Hit>> {
    let mut hits = vec![Hit::NONE; queries.len() / index.spec().dim * K];
    index.search(&Cx::free(), queries, K, SearchParams::default(), filter, &mut hits)?;
    Ok(hits)
}

fn indexes(c: &mut Criterion) {
    let ann = match Ann::read("minilm-100k-384-cos") {
        Ok(ann) => ann,
        Err(error) => return eprintln!("skipped: {error}; MAGRAY_DATA names the folder of the data"),
    };
    run::<Flat>(c, "flat", &ann).unwrap_or_else(|error| panic!("{error}"));
    run::<Native>(c, "native", &ann).unwrap_or_else(|error| panic!("{error}"));
}

fn run<I: CreateVectorIndex<Options: Default>>(c: &mut Criterion, name: &str, ann: &Ann) -> Result<()> {
    let spec = IndexSpec { dim: ann.dim, metric: Metric::Cosine };
    let ids: Vec<u64> = (0..(ann.base.len() / ann.dim) as u64).collect();
    let started = Instant::now();
    let built = I::create(I::Options::default(), spec, HOST)?;
    built.upsert(&Cx::free(), &ids, &ann.base)?;
    eprintln!("{name}: {} vectors stored in {:.1?}", ids.len(), started.elapsed());

    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let started = Instant::now();
    built.save(&Cx::free(), dir.path())?;
    eprintln!("{name}: saved in {:.1?}", started.elapsed());
    let started = Instant::now();
    let index = I::open(I::Options::default(), spec, dir.path(), HOST)?;
    eprintln!("{name}: opened in {:.1?}, {}", started.elapsed(), index.describe());
    drop(built);

    let found: Vec<u64> = search(&index, &ann.queries, None)?.iter().map(|hit| hit.id).collect();
    eprintln!("{name}: recall@{K} {:.4} in one batch of {}", ann.recall(K, &found), found.len() / K);
    let mut found = Vec::new();
    for query in ann.queries.chunks_exact(ann.dim).take(100) {
        found.extend(search(&index, query, None)?.iter().map(|hit| hit.id));
    }
    eprintln!("{name}: recall@{K} {:.4} one by one", ann.recall(K, &found));

    let mut group = c.benchmark_group(name);
    group.sample_size(10);
    for batch in [1, 4, 16, 64, 256] {
        let mut queries = ann.queries.chunks_exact(batch * ann.dim).cycle();
        group.throughput(Throughput::Elements(batch as u64));
        group.bench_with_input(BenchmarkId::new("batch", batch), &batch, |b, _| {
            b.iter(|| black_box(queries.next().map(|queries| search(&index, queries, None))));
        });
    }
    for share in [10, 100, 1000] {
        let allowed: Vec<u64> = ids.iter().copied().step_by(share).collect();
        group.throughput(Throughput::Elements(1));
        group.bench_with_input(BenchmarkId::new("filter-one-in", share), &share, |b, _| {
            b.iter(|| search(&index, &ann.queries[..ann.dim], Some(IdFilter::sorted(&allowed))));
        });
    }
    group.finish();
    Ok(())
}

criterion_group!(benches, indexes);
criterion_main!(benches);
