//! Searches per second and recall of the `hnsw` index over 100,000 sentence embeddings, by breadth.
//! Apart from the bench of the exact index, for building the graph takes minutes.
#![expect(clippy::print_stderr, reason = "recall and times that criterion has no place for")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use magray_benches::Ann;
use magray_index_hnsw::{Hnsw, Options, Preset};
use magray_plugin_api::{
    CreateVectorIndex, Hit, IdFilter, IndexSpec, Metric, Result, SearchParams, VectorIndex,
};
use magray_plugin_testkit::{Cx, HOST};
use std::{fs, time::Instant};

/// Hits a query.
const K: usize = 10;

/// Processor seconds that this process has used, by Linux's count of hundredths; elsewhere 0.
fn cpu_seconds() -> f64 {
    let stat = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // User and system time are the 14th and 15th field, the 2nd being a name in parentheses.
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}

/// The default preset takes four times as long to build.
fn options() -> Options {
    Options { preset: Preset::Ecommerce, ..Options::default() }
}

fn search(index: &Hnsw, query: &[f32], ef: u32, filter: Option<IdFilter<'_>>) -> Result<[Hit; K]> {
    let mut hits = [Hit::NONE; K];
    index.search(&Cx::free(), query, K, SearchParams::with_ef(ef), filter, &mut hits)?;
    Ok(hits)
}

fn recall(index: &Hnsw, ann: &Ann, ef: u32) -> Result<f64> {
    let mut found = Vec::new();
    for query in ann.queries.chunks_exact(ann.dim).take(1000) {
        found.extend(search(index, query, ef, None)?.map(|hit| hit.id));
    }
    Ok(ann.recall(K, &found))
}

fn hnsw(c: &mut Criterion) {
    let ann = match Ann::read("minilm-100k-384-cos") {
        Ok(ann) => ann,
        Err(error) => return eprintln!("skipped: {error}; MAGRAY_DATA names the folder of the data"),
    };
    run(c, &ann).unwrap_or_else(|error| panic!("{error}"));
}

fn run(c: &mut Criterion, ann: &Ann) -> Result<()> {
    let spec = IndexSpec { dim: ann.dim, metric: Metric::Cosine };
    let ids: Vec<u64> = (0..(ann.base.len() / ann.dim) as u64).collect();
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let built = Hnsw::create(options(), spec, HOST)?;
    built.upsert(&Cx::free(), &ids, &ann.base)?;
    let cpu = cpu_seconds() - cpu;
    let rate = ids.len() as f64 / cpu;
    eprintln!("hnsw: built in {:.1?}, {cpu:.1} CPU s, {rate:.0} vectors per CPU s", started.elapsed());
    eprintln!("hnsw: {} {:?}", built.describe(), built.memory_use());

    let dir = tempfile::tempdir().unwrap_or_else(|error| panic!("{error}"));
    let (started, cpu) = (Instant::now(), cpu_seconds());
    built.save(&Cx::free(), dir.path())?;
    eprintln!("hnsw: saved in {:.1?}, {:.1} CPU s", started.elapsed(), cpu_seconds() - cpu);
    let (started, cpu) = (Instant::now(), cpu_seconds());
    let opened = Hnsw::open(options(), spec, dir.path(), HOST)?;
    eprintln!("hnsw: opened in {:.1?}, {:.1} CPU s", started.elapsed(), cpu_seconds() - cpu);

    let mut group = c.benchmark_group("hnsw");
    group.sample_size(10).throughput(Throughput::Elements(1));
    for (name, index) in [("built", &built), ("opened", &opened)] {
        for ef in [10, 25, 50, 100, 200] {
            let cpu = cpu_seconds();
            let recall = recall(index, ann, ef)?;
            let rate = 1000.0 / (cpu_seconds() - cpu);
            eprintln!("hnsw, {name}: ef {ef}: recall@{K} {recall:.4}, {rate:.0} queries per CPU s");
            let mut queries = ann.queries.chunks_exact(ann.dim).cycle();
            group.bench_with_input(BenchmarkId::new(name, ef), &ef, |b, &ef| {
                b.iter(|| queries.next().map(|query| search(index, query, ef, None)));
            });
        }
    }
    for share in [2, 10, 100] {
        let allowed: Vec<u64> = ids.iter().copied().step_by(share).collect();
        let mut queries = ann.queries.chunks_exact(ann.dim).cycle();
        group.bench_with_input(BenchmarkId::new("filter-one-in", share), &share, |b, _| {
            b.iter(|| {
                queries.next().map(|query| search(&opened, query, 0, Some(IdFilter::sorted(&allowed))))
            });
        });
    }
    opened.remove(&Cx::free(), &ids[..ids.len() / 10])?;
    let mut queries = ann.queries.chunks_exact(ann.dim).cycle();
    group.bench_function("one-in-10-dead", |b| {
        b.iter(|| queries.next().map(|query| search(&opened, query, 0, None)));
    });
    group.finish();
    Ok(())
}

criterion_group!(benches, hnsw);
criterion_main!(benches);
