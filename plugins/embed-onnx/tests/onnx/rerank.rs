//! Cross-encoders: models that read a query and a passage together.
use crate::support::{create, open, text};
use magray_embed_onnx::{Options, Precision};
use magray_model_testkit::{repository, tiny};
use magray_plugin_api::{Embedder, ErrorCode, Role};
use magray_plugin_testkit::{self as testkit, Cx};
use serde::Deserialize;
use std::fs;

#[derive(Deserialize)]
struct Expected {
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    query: String,
    passage: String,
    score: f32,
}

/// A tiny model of `plugins/model/tests/make_reranker_fixtures.py`.
fn reranker(name: &str) -> (String, Vec<Item>) {
    let dir = repository().join("plugins/model/tests/data/rerankers").join(name);
    let json = fs::read(dir.join("expected.json")).unwrap();
    (text(dir), serde_json::from_slice::<Expected>(&json).unwrap().items)
}

#[test]
fn scores_are_those_of_the_reference() {
    for name in ["bert", "xlm-roberta"] {
        let (model, items) = reranker(name);
        let int8 = Options { model: model.clone(), precision: Precision::Int8, ..Options::default() };
        for (embedder, bound) in [(open(&model), 1e-5), (create(int8).unwrap(), 0.05)] {
            for item in &items {
                let mut score = [f32::NAN];
                embedder.rerank(&Cx::free(), &item.query, &[&item.passage], &mut score).unwrap();
                let apart = (score[0] - item.score).abs();
                assert!(apart <= bound, "{name}: {:?} {:?}: {apart}", item.query, item.passage);
            }
        }
    }
}

#[test]
fn a_score_does_not_depend_on_the_other_passages() {
    let (model, items) = reranker("bert");
    let embedder = open(&model);
    let passages: Vec<&str> = items.iter().map(|item| item.passage.as_str()).collect();
    let mut together = vec![0.0; passages.len()];
    embedder.rerank(&Cx::free(), "the cat", &passages, &mut together).unwrap();
    for (passage, expected) in passages.iter().zip(together) {
        let mut alone = [0.0];
        embedder.rerank(&Cx::free(), "the cat", &[passage], &mut alone).unwrap();
        assert!((alone[0] - expected).abs() < 1e-6, "{passage}");
    }
    embedder.rerank(&Cx::free(), "nothing to judge", &[], &mut []).unwrap();
    embedder.warm_up(&Cx::free()).unwrap();
}

#[test]
fn what_a_model_is_not_for_is_refused() {
    let (model, _) = reranker("bert");
    let embedder = open(&model);
    let refused = embedder.embed(&Cx::free(), &["a"], Role::Query, &mut [0.0; 36]).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::UNSUPPORTED);
    assert!(refused.message().contains("judges pairs"), "{refused}");
    let vectors = open(&text(tiny("bert")));
    let refused = vectors.rerank(&Cx::free(), "a", &["b"], &mut [0.0]).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::UNSUPPORTED);
    let wrong = embedder.rerank(&Cx::free(), "a", &["b"], &mut [0.0; 2]).unwrap_err();
    assert_eq!(wrong.code(), ErrorCode::INVALID_INPUT);

    // Several classes say which topic a text is of, not how well it answers.
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(&model).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
    }
    let config = dir.path().join("config.json");
    let two =
        fs::read_to_string(&config).unwrap().replace("\"0\": \"LABEL_0\"", "\"0\": \"a\", \"1\": \"b\"");
    fs::write(&config, two).unwrap();
    let refused = create(Options { model: text(dir.path().to_owned()), ..Options::default() }).unwrap_err();
    assert_eq!(refused.code(), ErrorCode::UNSUPPORTED);
    assert!(refused.message().contains("2 classes"), "{refused}");
}

#[test]
fn it_conforms() {
    testkit::embedder(&open(&reranker("bert").0)).assert();
}
