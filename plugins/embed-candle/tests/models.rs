//! Tiny models of every network, and the real ones of `scripts/fetch-models.sh`.
#![expect(clippy::unwrap_used, reason = "a test")]
use magray_embed_candle::{CandleEmbedder, Options, PLUGIN, Precision};
use magray_model::{ModelFolder, Overrides};
use magray_model_testkit::{apart, compare, embed, fetched, minilm_reference, tiny, tiny_reference};
use magray_plugin_api::{CallContext, CreateEmbedder, Embedder, Error, ErrorCode, Result, Role};
use magray_plugin_testkit::{self as testkit, HOST};
use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;

fn options(dir: &Path) -> Options {
    Options { model: dir.to_str().unwrap().to_owned(), ..Options::default() }
}

fn open(dir: &Path) -> Result<CandleEmbedder> {
    CandleEmbedder::create(options(dir), HOST)
}

static MINILM: LazyLock<CandleEmbedder> =
    LazyLock::new(|| open(&fetched("models/all-MiniLM-L6-v2")).unwrap());

#[test]
fn keeps_the_contract() {
    testkit::embedder(&*MINILM).assert();
}

#[test]
fn every_network_computes_what_the_reference_does() {
    let models: Vec<PathBuf> = fs::read_dir(tiny("")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(models.len() >= 5, "{models:?}");
    for dir in models {
        let agreement = compare(&open(&dir).unwrap(), &tiny_reference(&dir));
        assert!(agreement.difference <= 1e-4, "{agreement:?} for {}", dir.display());
    }
}

#[test]
fn minilm_is_that_of_the_reference() {
    let agreement = compare(&*MINILM, &minilm_reference());
    assert!(agreement.difference <= 1e-4, "{agreement:?}");
    let report = MINILM.device();
    assert_eq!((&*report.device, &*report.engine, &*report.precision), ("cpu", "candle", "f32"));
    let folder = ModelFolder::open(&fetched("models/all-MiniLM-L6-v2"), &Overrides::default()).unwrap();
    assert_eq!(MINILM.info().space, folder.space().unwrap());
    // 22.7 million weights of 4 bytes.
    let memory = MINILM.memory_use();
    assert!((80 << 20..100 << 20).contains(&memory.resident) && memory.device == 0, "{memory:?}");
}

#[test]
fn a_russian_query_finds_its_passage() {
    let embedder = open(&fetched("models/multilingual-e5-small")).unwrap();
    let passages = [
        "Кошка спит на тёплом подоконнике.",
        "Резервное копирование базы данных запускается каждую ночь в два часа.",
        "The train to Berlin leaves from platform four.",
    ];
    let passages = embed(&embedder, &passages, Role::Passage);
    for (query, expected) in [("когда делается бэкап", 1), ("где лежит кот", 0), ("поезд в Берлин", 2)]
    {
        let query = embed(&embedder, &[query], Role::Query);
        let score = |row: &[f32]| row.iter().zip(&query).map(|(a, b)| a * b).sum::<f32>();
        let scores: Vec<f32> = passages.chunks(embedder.info().dim).map(score).collect();
        let best = (0..3).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        assert_eq!(best, Some(expected), "{scores:?}");
    }
}

#[test]
fn vectors_are_in_the_callers_order() {
    let texts: Vec<String> = (0..100).map(|at| format!("text {at} ").repeat(at % 37)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let embedder = open(&tiny("bert")).unwrap();
    let together = embed(&embedder, &texts, Role::Passage);
    for (text, row) in texts.iter().zip(together.chunks(embedder.info().dim)) {
        assert!(apart(row, &embed(&embedder, &[text], Role::Passage)) < 1e-5, "{text:?}");
        assert_eq!(row.iter().all(|&number| number == 0.0), text.is_empty());
    }
}

#[test]
fn options_decide() {
    let dir = tiny("qwen3");
    let whole = open(&dir).unwrap();
    let overrides = |overrides| Options { overrides, ..options(&dir) };
    let narrow = overrides(Overrides { dim: Some(4), ..Overrides::default() });
    let narrow = CandleEmbedder::create(narrow, HOST).unwrap();
    assert_ne!(narrow.info().space, whole.info().space);
    let (row, cut) = (embed(&whole, &["a"], Role::Passage), embed(&narrow, &["a"], Role::Passage));
    let length = row[..4].iter().map(|number| number * number).sum::<f32>().sqrt();
    let scaled: Vec<f32> = row[..4].iter().map(|number| number / length).collect();
    assert!(apart(&cut, &scaled) < 1e-6);

    let own = Overrides {
        query_prefix: Some("a".into()),
        passage_prefix: Some(String::new()),
        ..Overrides::default()
    };
    let own = CandleEmbedder::create(overrides(own), HOST).unwrap();
    assert_ne!(embed(&own, &["a"], Role::Query), embed(&own, &["a"], Role::Passage));
    let short = overrides(Overrides { max_tokens: Some(4), ..Overrides::default() });
    let short = CandleEmbedder::create(short, HOST).unwrap();
    let mut count = [0];
    short.count_tokens(&["one two three four five"], &mut count).unwrap();
    assert_eq!((count, short.info().max_tokens), ([4], 4));
}

#[test]
fn options_that_cannot_be_are_refused() {
    let overrides = Overrides { dim: Some(100_000), ..Overrides::default() };
    let too_wide = Options { overrides, ..options(&tiny("bert")) };
    let cases = [
        (Options::default(), ErrorCode::INVALID_CONFIG, "'model' is empty"),
        (Options { batch_size: 0, ..options(&tiny("bert")) }, ErrorCode::INVALID_CONFIG, "'batch_size'"),
        (Options { use_gpu: Some(true), ..options(&tiny("bert")) }, ErrorCode::UNAVAILABLE, "candle-cuda"),
        (
            Options { precision: Precision::F16, ..options(&tiny("bert")) },
            ErrorCode::INVALID_CONFIG,
            "'precision'",
        ),
        (too_wide, ErrorCode::INVALID_CONFIG, "'dim'"),
        (options("no/such/model".as_ref()), ErrorCode::UNAVAILABLE, "no/such/model"),
    ];
    for (options, code, says) in cases {
        let error = CandleEmbedder::create(options, HOST).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
    let unknown = PLUGIN.embedder("candle", r#"{"model": "m", "modle": "m"}"#, HOST).err().unwrap();
    assert!(unknown.message().contains("`modle`, expected one of `batch_size`, `dim`"), "{unknown}");
    let schema: serde_json::Value = serde_json::from_str(CandleEmbedder::OPTIONS_SCHEMA).unwrap();
    assert!(schema["properties"]["use_gpu"].is_object());
}

/// A copy of a tiny model, changed.
fn damaged(model: &str, change: impl FnOnce(&Path)) -> Error {
    let copy = TempDir::new().unwrap();
    for entry in fs::read_dir(tiny(model)).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, copy.path().join(path.file_name().unwrap())).unwrap();
        }
    }
    let _ = fs::remove_file(copy.path().join("modules.json"));
    open(copy.path()).unwrap();
    change(copy.path());
    open(copy.path()).unwrap_err()
}

#[test]
fn damaged_models_are_refused() {
    let weights = |dir: &Path| dir.join("model.safetensors");
    for part in 0..8 {
        let error = damaged("bert", |dir| {
            let whole = fs::read(weights(dir)).unwrap();
            fs::write(weights(dir), &whole[..whole.len() * part / 8]).unwrap();
        });
        assert_eq!(error.code(), ErrorCode::CORRUPT_DATA, "{part}/8: {error}");
    }
    let error = damaged("bert", |dir| fs::remove_file(weights(dir)).unwrap());
    assert_eq!(error.code(), ErrorCode::UNAVAILABLE, "{error}");
    let error = damaged("bert", |dir| fs::write(dir.join("tokenizer.json"), "{").unwrap());
    assert_eq!(error.code(), ErrorCode::CORRUPT_DATA, "{error}");
}

#[test]
fn missing_and_misshapen_tensors_are_named() {
    for (model, name) in [
        ("bert", "encoder.layer.1.output.dense.bias"),
        ("xlm-roberta", "embeddings.position_embeddings.weight"),
        ("mpnet", "encoder.relative_attention_bias.weight"),
        ("qwen3", "layers.0.self_attn.q_norm.weight"),
    ] {
        // The header is text, and a name of the same length keeps everything in its place.
        let error = damaged(model, |dir| {
            let path = dir.join("model.safetensors");
            let mut bytes = fs::read(&path).unwrap();
            let at = bytes.windows(name.len()).position(|window| window == name.as_bytes()).unwrap();
            bytes[at + name.len() - 1] = b'_';
            fs::write(&path, bytes).unwrap();
        });
        assert_eq!(error.code(), ErrorCode::CORRUPT_DATA, "{error}");
        assert!(error.message().contains(name), "{error}");
    }
    let error = damaged("bert", |dir| {
        let path = dir.join("config.json");
        let config = fs::read_to_string(&path).unwrap();
        let mut config: serde_json::Value = serde_json::from_str(&config).unwrap();
        config["intermediate_size"] = (config["intermediate_size"].as_u64().unwrap() + 1).into();
        fs::write(&path, config.to_string()).unwrap();
    });
    assert!(error.message().contains("has the shape"), "{error}");
}

#[test]
fn a_long_batch_can_be_cancelled() {
    struct CancelledLater(AtomicU64);
    impl CallContext for CancelledLater {
        fn is_cancelled(&self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed) > 70
        }
        fn remaining(&self) -> Option<Duration> {
            None
        }
        fn progress(&self, _: u64, _: u64) {}
    }
    // 64 texts are asked for one by one as they are tokenized; what follows is in the network.
    let texts = ["one two three four"; 64];
    let mut out = vec![0.0; texts.len() * MINILM.info().dim];
    let cx = CancelledLater(AtomicU64::new(0));
    let error = MINILM.embed(&cx, &texts, Role::Passage, &mut out).unwrap_err();
    assert_eq!(error.code(), ErrorCode::CANCELLED);
    assert!(embed(&*MINILM, &texts[..1], Role::Passage).iter().any(|&number| number != 0.0));
}
