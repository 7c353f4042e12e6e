//! Texts a second of the embedding backend `cpu`, on one thread and on those that the host grants; and
//! tokens a second of its transformers, by all-MiniLM-L6-v2 from `$MAGRAY_TEST_ASSETS`, else from
//! `target/test-assets` (`scripts/fetch-models.sh`).
//!
//! `MAGRAY_BENCH_TEXTS` names a file with one text a line, to measure your own. Without it the texts
//! are words of the vocabulary, drawn as language does: a few of them very often.

#![expect(clippy::print_stderr, reason = "what is not measured, which criterion has no place for")]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use faer::{Accum, Mat, Par, linalg::matmul::matmul};
use magray_embed_cpu::{CpuEmbedder, CpuOptions, Options, StaticEmbedder, WantedPrecision};
use magray_model_testkit::Threads;
use magray_plugin_api::{CreateEmbedder, Embedder, Role};
use magray_plugin_testkit::{Cx, HOST};
use std::{env, hint::black_box, path::PathBuf};

const VOCAB: &str = include_str!("../plugins/embed-cpu/model/potion-base-8M-int8/vocab.txt");

/// 4096 texts of 8 to 14 words.
fn drawn_texts() -> Vec<String> {
    let words: Vec<&str> =
        VOCAB.lines().filter(|piece| piece.bytes().all(|byte| byte.is_ascii_lowercase())).collect();
    let mut state = 1_u64;
    let mut draw = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 11) as f64 / (1_u64 << 53) as f64
    };
    let text = |_| {
        let count = 8 + (draw() * 7.0) as usize;
        // Rank by Zipf's law: the logarithm of the rank is even.
        let words = (0..count).map(|_| words[(words.len() as f64).powf(draw()) as usize - 1]);
        words.collect::<Vec<_>>().join(" ")
    };
    (0..4096).map(text).collect()
}

fn texts() -> Vec<String> {
    let Some(path) = std::env::var_os("MAGRAY_BENCH_TEXTS") else { return drawn_texts() };
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    text.lines().map(str::to_owned).collect()
}

/// The folder of all-MiniLM-L6-v2.
fn minilm() -> Option<PathBuf> {
    let default = || concat!(env!("CARGO_MANIFEST_DIR"), "/../target/test-assets").into();
    let assets = env::var_os("MAGRAY_TEST_ASSETS").map_or_else(default, PathBuf::from);
    Some(assets.join("models/all-MiniLM-L6-v2")).filter(|dir| dir.is_dir())
}

/// Tokens a second by each precision that this CPU has, on the threads that the host grants: short
/// texts, long ones, and both mixed, in no order; and one question alone.
fn transformers(criterion: &mut Criterion) {
    let Some(model) = minilm() else {
        eprintln!("no all-MiniLM-L6-v2: transformers are not measured; run scripts/fetch-models.sh");
        return;
    };
    let texts = texts();
    let long: Vec<String> = texts.chunks(20).map(|texts| texts.join(" ")).take(64).collect();
    let short: Vec<&str> = texts.iter().map(String::as_str).take(256).collect();
    let mixed: Vec<&str> = long.iter().zip(&short).flat_map(|(long, short)| [long.as_str(), short]).collect();
    let long: Vec<&str> = long.iter().map(String::as_str).collect();
    let mut group = criterion.benchmark_group("embed/transformer");
    for (name, precision) in
        [("f32", WantedPrecision::F32), ("bf16", WantedPrecision::Bf16), ("int8", WantedPrecision::Int8)]
    {
        let model = model.to_string_lossy().into_owned();
        let options = CpuOptions { model, precision, ..CpuOptions::default() };
        let embedder = match CpuEmbedder::create(options, HOST) {
            Ok(embedder) => embedder,
            Err(error) => {
                eprintln!("{name} is not measured: {error}");
                continue;
            }
        };
        let sets: [(&str, &[&str]); 4] =
            [("question", &short[..1]), ("short", &short), ("mixed", &mixed), ("long", &long)];
        for (set, texts) in sets {
            let mut counts = vec![0; texts.len()];
            embedder.count_tokens(texts, &mut counts).expect("one count a text");
            let mut out = vec![0.0; texts.len() * embedder.info().dim];
            group.throughput(Throughput::Elements(counts.iter().map(|&count| u64::from(count)).sum()));
            group.bench_function(BenchmarkId::new(name, set), |bencher| {
                bencher.iter(|| {
                    embedder
                        .embed(&Cx::free(), black_box(texts), Role::Passage, &mut out)
                        .expect("nobody cancels");
                });
            });
        }
    }
}

/// f32 on one thread: all of all-MiniLM-L6-v2 by our kernels, beside its matrix products alone by faer, in the sizes
/// that they have there.
fn faer_products(criterion: &mut Criterion) {
    static ONE: Threads = Threads::new(1);
    const TOKENS: usize = 512;
    const LAYERS: usize = 6;
    let Some(model) = minilm() else { return };
    let mut group = criterion.benchmark_group("embed/f32, one thread");
    let options = CpuOptions {
        model: model.to_string_lossy().into_owned(),
        precision: WantedPrecision::F32,
        ..CpuOptions::default()
    };
    let embedder = CpuEmbedder::create(options, &ONE).expect("f32 runs on every CPU");
    let texts = texts();
    let texts: Vec<String> = texts.chunks(12).map(|texts| texts.join(" ")).take(32).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let (mut counts, mut out) = (vec![0; texts.len()], vec![0.0; texts.len() * embedder.info().dim]);
    embedder.count_tokens(&texts, &mut counts).expect("one count a text");
    group.throughput(Throughput::Elements(counts.iter().map(|&count| u64::from(count)).sum()));
    group.bench_function("cpu, the whole network", |bencher| {
        bencher.iter(|| {
            embedder.embed(&Cx::free(), black_box(&texts), Role::Passage, &mut out).expect("it works")
        });
    });

    let mut layer = [(384, 1152), (384, 384), (384, 1536), (1536, 384)].map(|(inputs, outputs)| {
        let number = |row: usize, column: usize| ((row * 31 + column * 17) % 97) as f32 / 97.0 - 0.5;
        let weights = Mat::from_fn(inputs, outputs, number);
        (Mat::from_fn(TOKENS, inputs, number), weights, Mat::<f32>::zeros(TOKENS, outputs))
    });
    group.throughput(Throughput::Elements(TOKENS as u64));
    group.bench_function("faer, the products alone", |bencher| {
        bencher.iter(|| {
            for _ in 0..LAYERS {
                for (x, weights, out) in &mut layer {
                    matmul(out.as_mut(), Accum::Replace, black_box(&*x), &*weights, 1.0, Par::Seq);
                }
            }
        });
    });
}

fn benches(criterion: &mut Criterion) {
    criterion.bench_function("embed/create", |bencher| {
        bencher
            .iter(|| StaticEmbedder::create(Options::default(), HOST).expect("the embedded model is whole"));
    });

    let embedder = StaticEmbedder::create(Options::default(), HOST).expect("the embedded model is whole");
    let texts = texts();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let mut counts = vec![0; texts.len()];
    let mut group = criterion.benchmark_group("embed");

    embedder.count_tokens(&texts, &mut counts).expect("one count a text");
    group.throughput(Throughput::Elements(counts.iter().map(|&count| u64::from(count)).sum()));
    group.bench_function("tokens", |bencher| {
        bencher.iter(|| embedder.count_tokens(black_box(&texts), &mut counts).expect("one count a text"));
    });

    group.throughput(Throughput::Elements(texts.len() as u64));
    let mut out = vec![0.0; texts.len() * embedder.info().dim];
    // Up to 32 texts are the work of one thread.
    for batch in [1, 32, embedder.info().max_batch] {
        group.bench_function(BenchmarkId::new("texts", batch), |bencher| {
            bencher.iter(|| {
                for (texts, out) in texts.chunks(batch).zip(out.chunks_mut(batch * embedder.info().dim)) {
                    embedder
                        .embed(&Cx::free(), black_box(texts), Role::Passage, out)
                        .expect("nobody cancels");
                }
            });
        });
    }
}

criterion_group!(embed, benches, transformers, faer_products);
criterion_main!(embed);
