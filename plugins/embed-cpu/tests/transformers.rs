//! Transformer models against what the reference implementation makes of the same texts: tiny ones of
//! each network, and the real ones of `scripts/fetch-models.sh`.
#![expect(clippy::unwrap_used, reason = "a test")]
use magray_embed_cpu::{CpuEmbedder, CpuOptions, WantedPrecision};
use magray_plugin_api::{CreateEmbedder, Embedder, ErrorCode, Role};
use magray_plugin_testkit::{self as testkit, Cx, HOST};
use serde::Deserialize;
use std::{
    env, fs,
    path::{Path, PathBuf},
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
const PRECISIONS: [WantedPrecision; 3] = [WantedPrecision::F32, WantedPrecision::Bf16, WantedPrecision::Int8];

/// The folder of a model that the setup script fetches.
fn fetched(model: &str) -> PathBuf {
    let assets = env::var_os("MAGRAY_TEST_ASSETS")
        .map_or_else(|| PathBuf::from(ROOT).join("target/test-assets"), PathBuf::from);
    let dir = assets.join("models").join(model);
    assert!(dir.is_dir(), "{} is missing; run scripts/fetch-models.sh", dir.display());
    dir
}

fn options(dir: &Path, precision: WantedPrecision) -> CpuOptions {
    CpuOptions { model: dir.to_str().unwrap().to_owned(), precision, ..CpuOptions::default() }
}

/// The model in `dir`; none where this CPU lacks the precision.
fn open(dir: &Path, precision: WantedPrecision) -> Option<CpuEmbedder> {
    match CpuEmbedder::create(options(dir, precision), HOST) {
        Ok(embedder) => Some(embedder),
        Err(error) => {
            assert_eq!(error.code(), ErrorCode::UNAVAILABLE, "{error}");
            assert!(error.message().contains("which this CPU lacks"), "{error}");
            None
        }
    }
}

fn embed(embedder: &CpuEmbedder, texts: &[&str], role: Role) -> Vec<f32> {
    let mut out = vec![f32::NAN; texts.len() * embedder.info().dim];
    embedder.embed(&Cx::free(), texts, role, &mut out).unwrap();
    out
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

#[derive(Deserialize)]
struct Reference {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    text: String,
    #[serde(default)]
    role: String,
    token_ids: Vec<u32>,
    embedding: Vec<f32>,
}

impl Item {
    fn role(&self) -> Role {
        if self.role == "query" { Role::Query } else { Role::Passage }
    }
}

fn reference(path: &Path) -> Vec<Item> {
    let json = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice::<Reference>(&json).unwrap().items
}

/// Embeds all items of each role in one call, and compares. Returns the least cosine and the largest
/// difference.
fn compare(embedder: &CpuEmbedder, items: &[Item]) -> (f32, f32) {
    let (mut cosine, mut difference) = (1.0_f32, 0.0_f32);
    for role in [Role::Query, Role::Passage] {
        let items: Vec<&Item> = items.iter().filter(|item| item.role() == role).collect();
        let texts: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
        if role == Role::Passage {
            let mut counts = vec![0; texts.len()];
            embedder.count_tokens(&texts, &mut counts).unwrap();
            let expected: Vec<u32> = items.iter().map(|item| item.token_ids.len() as u32).collect();
            assert_eq!(counts, expected);
        }
        for (item, row) in items.iter().zip(embed(embedder, &texts, role).chunks(embedder.info().dim)) {
            cosine = cosine.min(dot(row, &item.embedding));
            let differences = row.iter().zip(&item.embedding).map(|(a, b)| (a - b).abs());
            difference = differences.fold(difference, f32::max);
        }
    }
    (cosine, difference)
}

#[test]
fn tiny_models_of_each_network_agree_with_the_reference() {
    for name in ["bert", "bert-cls-f16", "xlm-roberta", "mpnet", "qwen3"] {
        let dir = Path::new(ROOT).join("plugins/model/tests/data/architectures").join(name);
        let items = reference(&dir.join("expected.json"));
        for precision in PRECISIONS {
            let Some(embedder) = open(&dir, precision) else { continue };
            let (cosine, difference) = compare(&embedder, &items);
            println!("{name} {precision:?} cosine {cosine} difference {difference}");
            // Random weights average nothing out, so the coarse precisions are only roughly right here.
            match precision {
                WantedPrecision::F32 => assert!(difference <= 1e-4, "{name}: {difference}"),
                WantedPrecision::Bf16 => assert!(cosine >= 0.999, "{name}: {cosine}"),
                _ => assert!(cosine >= 0.99, "{name}: {cosine}"),
            }
            testkit::embedder(&embedder).assert();
        }
    }
}

#[test]
fn minilm_agrees_with_the_reference() {
    let shared =
        env::var_os("MAGRAY_SHARED").map_or_else(|| Path::new(ROOT).join("../shared"), PathBuf::from);
    let items = reference(&shared.join("data/ref/embeddings_ref.json"));
    assert_eq!(items.len(), 36);
    for precision in PRECISIONS {
        let Some(embedder) = open(&fetched("all-MiniLM-L6-v2"), precision) else { continue };
        let (cosine, difference) = compare(&embedder, &items);
        println!("{precision:?} cosine {cosine} difference {difference}");
        match precision {
            WantedPrecision::F32 => assert!(difference <= 1e-4, "{difference}"),
            WantedPrecision::Bf16 => assert!(cosine >= 0.999, "{cosine}"),
            _ => assert!(cosine >= 0.995, "{cosine}"),
        }
        testkit::embedder(&embedder).assert();
    }
}
