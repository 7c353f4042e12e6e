//! Embedding on a GPU: texts a second through the pipeline beside calls of the backend itself (`gpu_pipeline`), and by
//! the number of texts in a call (`gpu_optimization`), which is what a GPU is tuned by.
//!
//! The model is all-MiniLM-L6-v2 from `$MAGRAY_TEST_ASSETS`, else from `target/test-assets`
//! (`scripts/fetch-models.sh`); a library of ONNX Runtime for CUDA is named by `ORT_DYLIB_PATH`. Skipped with a
//! message where there is no GPU or no model.
#![expect(clippy::print_stderr, reason = "why nothing is measured, which criterion has no place for")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use magray::{
    config::Config,
    embedding::{CacheLimits, Candidate, Embedding, EmbeddingCache, Made},
    plugins::{PluginOptions, Plugins},
    resources::gpu,
};
use magray_plugin_api::{Plugin, Role};
use magray_plugin_testkit::Cx;
use std::{env, hint::black_box, path::PathBuf, sync::Arc};

const LINKED: &[&Plugin] = &[&magray_embed_onnx::PLUGIN, &magray_chaos_plugin::PLUGIN];

/// The folder of all-MiniLM-L6-v2.
fn minilm() -> Option<PathBuf> {
    let default = || concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-assets").into();
    let assets = env::var_os("MAGRAY_TEST_ASSETS").map_or_else(default, PathBuf::from);
    Some(assets.join("models/all-MiniLM-L6-v2")).filter(|dir| dir.is_dir())
}

fn benches(criterion: &mut Criterion) {
    match gpu::probe() {
        Ok(found) if !found.gpus.is_empty() => {}
        Ok(none) => return eprintln!("skipped: there is no GPU: {}", none.absence),
        Err(error) => return eprintln!("skipped: {error}"),
    }
    let Some(model) = minilm() else {
        return eprintln!("skipped: no all-MiniLM-L6-v2; run scripts/fetch-models.sh");
    };
    let plugins = Arc::new(Plugins::discover(PluginOptions::default(), LINKED));
    let options = |batch: usize| {
        let model = model.to_string_lossy().replace('\\', "\\\\");
        format!(r#"{{"model": "{model}", "use_gpu": true, "batch_size": {batch}}}"#)
    };
    let direct = plugins.embedder("onnx", &options(256)).unwrap_or_else(|error| panic!("{error}"));
    let reason = direct.device().fallback_reason;
    if !reason.is_empty() {
        return eprintln!("skipped: it does not run on the GPU: {reason}");
    }
    let words = ["water", "house", "time", "people", "river", "city", "music", "road"];
    let text = |n: usize| (0..32).map(|i| words[(n * 7 + i * (n % 5 + 1)) % 8]).collect::<Vec<_>>().join(" ");
    let texts: Vec<String> = (0..1024).map(text).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let dim = direct.info().dim;
    let mut out = vec![0.0; texts.len() * dim];

    let mut group = criterion.benchmark_group("gpu_optimization");
    group.sample_size(10);
    for batch in [16, 32, 64, 128, 256] {
        group.throughput(Throughput::Elements(texts.len() as u64));
        group.bench_with_input(BenchmarkId::new("texts in a call", batch), &batch, |b, &batch| {
            b.iter(|| {
                for (texts, out) in texts.chunks(batch).zip(out.chunks_mut(batch * dim)) {
                    direct.embed(&Cx::free(), black_box(texts), Role::Passage, out).expect("it works");
                }
            });
        });
    }
    group.finish();

    let made = {
        let (plugins, options) = (plugins.clone(), options(256));
        move || {
            let embedder = plugins.embedder("onnx", &options)?;
            Ok(Made { embedder, origin: format!("onnx {options}") })
        }
    };
    let candidate = Candidate { profile: "onnx".to_owned(), make: Box::new(made) };
    // A cache that is off from the first text on, since its policy fails.
    let policy = plugins.cache_policy("chaos", r#"{"fault": "panic_in_call"}"#).expect("it is linked in");
    let cache = EmbeddingCache::new(policy, CacheLimits { max_bytes: 0, max_entries: 0 });
    let defaults = Config::load(None, std::iter::empty(), &[]).expect("the defaults").config;
    let piped = Embedding::new(vec![candidate], None, cache, &(&defaults).into()).expect("it starts");
    let mut group = criterion.benchmark_group("gpu_pipeline");
    group.sample_size(10);
    for count in [1, 128, 1024] {
        let (texts, out) = (&texts[..count], &mut out[..count * dim]);
        group.throughput(Throughput::Elements(count as u64));
        group.bench_function(BenchmarkId::new("direct", count), |b| {
            b.iter(|| {
                for (texts, out) in texts.chunks(256).zip(out.chunks_mut(256 * dim)) {
                    direct.embed(&Cx::free(), black_box(texts), Role::Passage, out).expect("it works");
                }
            });
        });
        group.bench_function(BenchmarkId::new("pipeline", count), |b| {
            b.iter(|| piped.embed(&Cx::free(), black_box(texts), Role::Passage).expect("it works"));
        });
    }
    group.finish();
}

criterion_group!(gpu_benches, benches);
criterion_main!(gpu_benches);
