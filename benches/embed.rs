//! Texts a second of the embedding backend `cpu`, on one thread and on those that the host grants.
//!
//! `MAGRAY_BENCH_TEXTS` names a file with one text a line, to measure your own. Without it the texts
//! are words of the vocabulary, drawn as language does: a few of them very often.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use magray_embed_cpu::{Options, StaticEmbedder};
use magray_plugin_api::{CreateEmbedder, Embedder, Role};
use magray_plugin_testkit::{Cx, HOST};
use std::hint::black_box;

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

criterion_group!(embed, benches);
criterion_main!(embed);
