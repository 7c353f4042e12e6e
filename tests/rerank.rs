//! A cross-encoder (a tiny one) orders what a search found, by the real library on the real ONNX Runtime.
use crate::support::{Home, ONNX, Ran, assets, repository};
use serde_json::Value;

const TEXTS: [&str; 4] = [
    "The cat sat on the mat.",
    "The weather in spring is for the cat.",
    "one two three four cat",
    "A database index, with a cat.",
];

fn search(home: &Home, more: &[&str]) -> Value {
    let mut command = home.command(&[&["search", "the cat", "--explain", "--json"], more].concat());
    command.env("ORT_DYLIB_PATH", assets("onnxruntime/libonnxruntime.so"));
    serde_json::from_str(&Ran::of(&mut command).expect(0).stdout).expect("JSON")
}

fn texts(found: &Value) -> Vec<&str> {
    let hits = found["hits"].as_array().expect("hits");
    hits.iter().map(|hit| hit["text"].as_str().expect("a text")).collect()
}

#[test]
fn the_best_results_come_in_the_order_of_the_reranker() {
    let home = Home::new();
    home.install(ONNX);
    for text in TEXTS {
        home.run(&["add", text]).expect(0);
    }
    let model = repository().join("plugins/model/tests/data/rerankers/bert");
    let model = model.to_str().expect("UTF-8");
    let found = search(&home, &[]);
    assert_eq!(found["reranking"], Value::Null, "{found}");

    let reranked = search(&home, &["--rerank", model]);
    assert_eq!(reranked["reranking"]["judged"], 4, "{reranked}");
    assert_eq!(reranked["reranking"]["device"], "cpu", "{reranked}");
    let scores: Vec<f64> = reranked["hits"]
        .as_array()
        .expect("hits")
        .iter()
        .map(|hit| hit["explain"]["reranked"].as_f64().expect("each was judged"))
        .collect();
    assert!(scores.is_sorted_by(|a, b| a > b), "{reranked}");
    assert_ne!(texts(&reranked), texts(&found));
    assert_eq!(texts(&search(&home, &["--rerank", model, "-k", "1"])), texts(&reranked)[..1]);

    // Words alone need no other model.
    let by_words = search(&home, &["--rerank", model, "--mode", "keyword"]);
    assert_eq!((&by_words["backend"], texts(&by_words)), (&Value::Null, texts(&reranked)));
}

#[test]
fn without_its_model_the_order_stays_and_it_is_said() {
    let home = Home::new();
    home.install(ONNX);
    for text in TEXTS {
        home.run(&["add", text]).expect(0);
    }
    let found = search(&home, &[]);
    // One that is not there, and one that makes vectors.
    let vectors = repository().join("plugins/model/tests/data/architectures/bert");
    for (model, why) in
        [("no-such-model", "no such folder"), (vectors.to_str().expect("UTF-8"), "makes vectors")]
    {
        let plain = search(&home, &["--rerank", model]);
        assert_eq!(texts(&plain), texts(&found), "{plain}");
        assert!(plain["reranking"]["failure"].as_str().expect("a reason").contains(why), "{plain}");
        let mut command = home.command(&["search", "the cat", "--rerank", model]);
        command.env("ORT_DYLIB_PATH", assets("onnxruntime/libonnxruntime.so"));
        Ran::of(&mut command).expect(0).says(&["as they were found", why]);
    }
}
