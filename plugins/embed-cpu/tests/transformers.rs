//! Transformer models against what the reference implementation makes of the same texts: tiny ones of
//! each network, and the real ones of `scripts/fetch-models.sh`.
#![expect(clippy::unwrap_used, reason = "a test")]
use magray_embed_cpu::{CpuEmbedder, CpuOptions, WantedPrecision};
use magray_model::Overrides;
use magray_model_testkit::{Agreement, compare, dot, embed, fetched, minilm_reference, tiny, tiny_reference};
use magray_plugin_api::{CallContext, CreateEmbedder, Embedder, ErrorCode, Role};
use magray_plugin_testkit::{self as testkit, HOST};
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
};

const PRECISIONS: [WantedPrecision; 3] = [WantedPrecision::F32, WantedPrecision::Bf16, WantedPrecision::Int8];

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

#[test]
fn tiny_models_of_each_network_agree_with_the_reference() {
    for name in ["bert", "bert-cls-f16", "xlm-roberta", "mpnet", "qwen3"] {
        let dir = tiny(name);
        let items = tiny_reference(&dir);
        for precision in PRECISIONS {
            let Some(embedder) = open(&dir, precision) else { continue };
            let Agreement { cosine, difference } = compare(&embedder, &items);
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
    let items = minilm_reference();
    for precision in PRECISIONS {
        let Some(embedder) = open(&fetched("models/all-MiniLM-L6-v2"), precision) else { continue };
        let Agreement { cosine, difference } = compare(&embedder, &items);
        match precision {
            WantedPrecision::F32 => assert!(difference <= 1e-4, "{difference}"),
            WantedPrecision::Bf16 => assert!(cosine >= 0.999, "{cosine}"),
            _ => assert!(cosine >= 0.997, "{cosine}"),
        }
        testkit::embedder(&embedder).assert();
    }
}

#[test]
fn a_russian_question_finds_its_passage() {
    let embedder =
        CpuEmbedder::create(options(&fetched("models/multilingual-e5-small"), WantedPrecision::Auto), HOST)
            .unwrap();
    let passages = [
        "Чтобы сварить борщ, нужны свёкла, капуста и мясной бульон.",
        "Столица Франции — Париж, город на Сене.",
        "The borrow checker of Rust finds data races before the program runs.",
        "Поезд из Москвы в Казань идёт около двенадцати часов.",
    ];
    let questions = ["Как приготовить борщ?", "Какой город главный во Франции?", "memory safety in Rust"];
    let dim = embedder.info().dim;
    let found = embed(&embedder, &passages, Role::Passage);
    for (at, question) in embed(&embedder, &questions, Role::Query).chunks(dim).enumerate() {
        let scores: Vec<f32> = found.chunks(dim).map(|passage| dot(question, passage)).collect();
        let best = (0..scores.len()).max_by(|&a, &b| scores[a].total_cmp(&scores[b]));
        assert_eq!(best, Some(at), "{scores:?}");
    }
}

#[test]
fn neighbours_and_threads_change_no_bit() {
    let dir = fetched("models/all-MiniLM-L6-v2");
    let texts: Vec<String> = (0..40).map(|n| format!("text number {n} ").repeat(1 + n * 7 % 60)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    for embedder in PRECISIONS.iter().filter_map(|&precision| open(&dir, precision)) {
        let together = embed(&embedder, &texts, Role::Passage);
        for (text, row) in texts.iter().zip(together.chunks(embedder.info().dim)) {
            assert_eq!(embed(&embedder, &[text], Role::Passage), row, "{embedder:?} {text:?}");
        }
    }
}

#[test]
fn a_call_stops_between_layers() {
    /// Wants no answer any more once it was asked a few times.
    struct CancelledLater(AtomicU64);
    impl CallContext for CancelledLater {
        fn is_cancelled(&self) -> bool {
            self.0.fetch_add(1, Ordering::Relaxed) > 3
        }
        fn remaining(&self) -> Option<std::time::Duration> {
            None
        }
        fn progress(&self, done: u64, total: u64) {
            panic!("{done} of {total} texts were embedded before it was asked again");
        }
    }
    let embedder = open(&fetched("models/all-MiniLM-L6-v2"), WantedPrecision::F32).unwrap();
    let text = "many words ".repeat(200);
    let mut out = vec![0.0; embedder.info().dim];
    let cx = CancelledLater(AtomicU64::new(0));
    let error = embedder.embed(&cx, &[&text], Role::Passage, &mut out).unwrap_err();
    assert_eq!(error.code(), ErrorCode::CANCELLED);
}

#[test]
fn options_are_checked_and_decide_the_space() {
    let dir = tiny("bert");
    let options = options(&dir, WantedPrecision::F32);
    let create = |options: CpuOptions| CpuEmbedder::create(options, HOST);
    let plain = create(options.clone()).unwrap();
    assert_eq!((plain.info().dim, plain.info().max_tokens, plain.info().max_batch), (36, 48, 4096));
    assert_eq!(plain.device().precision, "f32");

    let overridden = |overrides| CpuOptions { overrides, ..options.clone() };
    let less = overridden(Overrides { dim: Some(8), max_tokens: Some(5), ..Overrides::default() });
    let less = create(CpuOptions { batch_size: 2, ..less }).unwrap();
    assert_eq!((less.info().dim, less.info().max_tokens, less.info().max_batch), (8, 5, 2));
    assert_ne!(less.info().space, plain.info().space);
    let mut count = [0];
    less.count_tokens(&["one two three four five"], &mut count).unwrap();
    assert_eq!(count, [5]);

    let query_prefix = Some("query: ".to_owned());
    let prefixed = create(overridden(Overrides { query_prefix, ..Overrides::default() })).unwrap();
    assert_ne!(prefixed.info().space, plain.info().space);
    assert_eq!(embed(&prefixed, &["cat"], Role::Query), embed(&plain, &["query: cat"], Role::Query));
    assert_eq!(embed(&prefixed, &["cat"], Role::Passage), embed(&plain, &["cat"], Role::Passage));
    // The precision is no part of the space.
    if let Some(coarse) = open(&dir, WantedPrecision::Int8) {
        assert_eq!(coarse.info().space, plain.info().space);
    }

    for (wrong, says) in [
        (CpuOptions { batch_size: 0, ..options.clone() }, "'batch_size' is 0"),
        (overridden(Overrides { dim: Some(37), ..Overrides::default() }), "'dim' is 37"),
        (overridden(Overrides { max_tokens: Some(1000), ..Overrides::default() }), "'max_tokens' is 1000"),
        (
            CpuOptions {
                model: CpuOptions::default().model,
                precision: WantedPrecision::Bf16,
                ..options.clone()
            },
            "'precision' is for transformer models",
        ),
    ] {
        let error = create(wrong).unwrap_err();
        assert_eq!(error.code(), ErrorCode::INVALID_CONFIG, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
}

#[test]
fn the_plugin_file_still_runs_static_models() {
    let embedder = CpuEmbedder::create(CpuOptions::default(), HOST).unwrap();
    assert_eq!(embedder.info().model, "potion-base-8M-int8");
    testkit::embedder(&embedder).assert();
}

#[test]
fn the_schema_names_the_options_and_their_defaults() {
    let schema: serde_json::Value = serde_json::from_str(CpuEmbedder::OPTIONS_SCHEMA).unwrap();
    let mut defaults = serde_json::Map::new();
    for (name, property) in schema["properties"].as_object().unwrap() {
        if let Some(default) = property.get("default") {
            defaults.insert(name.clone(), default.clone());
        }
    }
    let options: CpuOptions = serde_json::from_value(defaults.into()).unwrap();
    assert_eq!(options, CpuOptions::default());
    for name in ["max_tokens", "dim", "query_prefix", "passage_prefix"] {
        assert!(schema["properties"].get(name).is_some(), "{name}");
    }
    assert!(serde_json::from_str::<CpuOptions>(r#"{"precison": "f32"}"#).is_err());
}
