//! What the embedding pipeline costs beside calls of the backend `cpu` itself, and how long it takes from a
//! failure to the call of the standby.

#![expect(clippy::print_stdout, reason = "figures that criterion has no place for")]

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use magray::{
    config::Config,
    embedding::{BreakerOptions, CacheLimits, Candidate, Embedding, EmbeddingCache, EmbeddingOptions, Made},
    plugins::{PluginOptions, Plugins},
};
use magray_plugin_api::{Plugin, Role};
use magray_plugin_testkit::Cx;
use std::{
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

const LINKED: &[&Plugin] = &[&magray_embed_cpu::PLUGIN, &magray_chaos_plugin::PLUGIN];

fn candidate(plugins: &Arc<Plugins>, component: &'static str, options: &'static str) -> Candidate {
    let plugins = plugins.clone();
    let make = move || {
        let embedder = plugins.embedder(component, options)?;
        Ok(Made { embedder, origin: format!("{component} {options}") })
    };
    Candidate { profile: component.to_owned(), make: Box::new(make) }
}

/// With a cache that is off from the first text on, since its policy fails; `failures` in a row open the breaker.
fn embedding(plugins: &Plugins, candidates: Vec<Candidate>, failures: u32) -> Embedding {
    let policy = plugins.cache_policy("chaos", r#"{"fault": "panic_in_call"}"#).expect("it is linked in");
    let cache = EmbeddingCache::new(policy, CacheLimits { max_bytes: 0, max_entries: 0 });
    let defaults = Config::load(None, std::iter::empty(), &[]).expect("the defaults").config;
    let mut options = EmbeddingOptions::from(&defaults);
    options.breaker = BreakerOptions { failures, window: failures as usize, ..options.breaker };
    Embedding::new(candidates, None, cache, &options).expect("the backend starts")
}

fn benches(criterion: &mut Criterion) {
    let plugins = Arc::new(Plugins::discover(PluginOptions::default(), LINKED));
    let direct = plugins.embedder("cpu", "{}").expect("it is linked in");
    let piped = embedding(&plugins, vec![candidate(&plugins, "cpu", "{}")], 3);
    let texts: Vec<String> =
        (0..4096).map(|n| format!("entry {n} of the log says that backup {} was whole", n * n)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut out = vec![0.0; texts.len() * direct.info().dim];

    let mut group = criterion.benchmark_group("pipeline");
    for count in [1, 32, 4096] {
        let (texts, out) = (&texts[..count], &mut out[..count * direct.info().dim]);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(format!("direct/{count}"), |bencher| {
            bencher.iter(|| direct.embed(&Cx::free(), black_box(texts), Role::Query, out).expect("it works"));
        });
        group.bench_function(format!("search/{count}"), |bencher| {
            bencher.iter(|| piped.answer(&Cx::free(), black_box(texts), Role::Query).expect("it works"));
        });
        group.bench_function(format!("bulk/{count}"), |bencher| {
            bencher.iter(|| piped.embed(&Cx::free(), black_box(texts), Role::Query).expect("it works"));
        });
    }
    group.throughput(Throughput::Elements(1));

    // It fails each time, and the standby answers each time.
    let failing = candidate(&plugins, "chaos", r#"{"fault": "nan"}"#);
    let fallback = embedding(&plugins, vec![failing, candidate(&plugins, "chaos", "{}")], 1_000_000);
    fallback.keep_standby();
    group.bench_function("switch", |bencher| {
        bencher.iter_custom(|rounds| {
            let switch = |_| {
                fallback.answer(&Cx::free(), &["a text"], Role::Query).expect("the standby works");
                Duration::from_secs_f64(fallback.status().counters.switch_last_ms / 1000.0)
            };
            (0..rounds).map(switch).sum()
        });
    });
    group.finish();
    let call = |call: &mut dyn FnMut()| {
        let mut times: Vec<Duration> = (0..10_000)
            .map(|_| {
                let start = Instant::now();
                call();
                start.elapsed()
            })
            .collect();
        times.sort_unstable();
        format!("{:?} at best, {:?} at the median", times[0], times[times.len() / 2])
    };
    // Where a machine is busy, means say little.
    let out = &mut out[..direct.info().dim];
    let one = &texts[..1];
    println!(
        "one text, directly: {}",
        call(&mut || direct.embed(&Cx::free(), one, Role::Query, out).expect("it works"))
    );
    println!(
        "one text, through the pipeline: {}",
        call(&mut || drop(black_box(piped.answer(&Cx::free(), one, Role::Query).expect("it works"))))
    );
    println!("switch, the longest: {:.3} ms", fallback.status().counters.switch_max_ms);
}

criterion_group!(pipeline, benches);
criterion_main!(pipeline);
