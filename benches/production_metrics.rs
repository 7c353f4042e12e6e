//! What watching costs: a latency that is recorded, histograms of threads that are merged, a percentile that is read,
//! the counters and states of the embedding backends at one moment, and the conditions of the machine.

use criterion::{Criterion, criterion_group, criterion_main};
use hdrhistogram::Histogram;
use magray::{
    bench::Conditions,
    config::Config,
    embedding::{CacheLimits, Candidate, Embedding, EmbeddingCache, Made},
    plugins::{PluginOptions, Plugins},
};
use magray_plugin_api::{Plugin, Role};
use magray_plugin_testkit::Cx;
use std::{hint::black_box, sync::Arc};

const LINKED: &[&Plugin] = &[&magray_embed_cpu::PLUGIN, &magray_cache_lru::PLUGIN];

/// With times from a microsecond to an hour in three digits, as `magray bench workload` keeps them.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 3_600_000_000, 3).expect("bounds that can be")
}

fn benches(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("production_metrics");
    let mut times = histogram();
    let mut us = 1_u64;
    group.bench_function("record a latency", |b| {
        b.iter(|| {
            us = us.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            times.saturating_record(black_box(us >> 44));
        });
    });
    let mut all = histogram();
    group.bench_function("merge the histogram of a thread", |b| {
        b.iter(|| all.add(black_box(&times)).expect("the same bounds"));
    });
    group.bench_function("read the 99th percentile", |b| b.iter(|| black_box(all.value_at_quantile(0.99))));

    let plugins = Arc::new(Plugins::discover(PluginOptions::default(), LINKED));
    let policy = plugins.cache_policy("lru", "{}").expect("it is linked in");
    let cache = EmbeddingCache::new(policy, CacheLimits { max_bytes: 1 << 20, max_entries: 100 });
    let made = {
        let plugins = plugins.clone();
        move || Ok(Made { embedder: plugins.embedder("cpu", "{}")?, origin: "cpu".to_owned() })
    };
    let candidate = Candidate { profile: "cpu".to_owned(), make: Box::new(made) };
    let defaults = Config::load(None, std::iter::empty(), &[]).expect("the defaults").config;
    let embedding = Embedding::new(vec![candidate], None, cache, &(&defaults).into()).expect("it starts");
    embedding.answer(&Cx::free(), &["a text"], Role::Query).expect("it works");
    group.bench_function("counters and states of the backends", |b| b.iter(|| black_box(embedding.status())));
    group.bench_function("counts of the cache", |b| b.iter(|| black_box(embedding.cache().memory())));
    group.bench_function("conditions of the machine", |b| b.iter(|| black_box(Conditions::now())));
    group.finish();
}

criterion_group!(production_metrics, benches);
criterion_main!(production_metrics);
