//! The vectors of each backend are as right as its model is known to be: parts of public data sets, through the
//! program and the plugin files. `magray bench quality --check` does it with the whole sets.
use crate::support::{CANDLE, CPU, Home, ONNX, assets, shared};
use serde_json::{Value, json};
use std::fs;

/// What a model is known to do on parts of public data.
struct Known {
    /// Of the first 300 pairs of STS-B's test set.
    spearman: f64,
    /// nDCG@10 of the first 50 test queries of SciFact, and of its first 50 training queries, over the documents
    /// judged for them and 50 others.
    ndcg: [f64; 2],
}

/// potion-base-8M-int8, recorded from a run: nobody publishes figures of parts. Whether its vectors are right is
/// decided by those of its authors, below.
const STATIC: Known = Known { spearman: 0.891722, ndcg: [0.800522, 0.798292] };

/// all-MiniLM-L6-v2 by onnxruntime in f32 (the graph of scripts/bench-embed-peers.py), with the figures computed by
/// other code than ours. On the whole test set of STS-B that gives the published 0.82032.
const MINILM: Known = Known { spearman: 0.933746, ndcg: [0.952328, 0.911495] };

/// A backend with a model, of which the plugin file is installed.
struct Subject {
    home: Home,
    backend: &'static str,
    model: String,
}

impl Subject {
    fn new(library: &str, backend: &'static str, model: impl Into<String>) -> Self {
        let home = Home::new();
        home.install(library);
        Self { home, backend, model: model.into() }
    }

    fn measure(&self, args: &[&str]) -> Value {
        let bench = ["bench", "quality", "--backends", self.backend, "--model", &self.model];
        let measured = self.home.json(&[&bench, args].concat());
        assert!(measured["model"].as_str().is_some_and(|model| self.model.ends_with(model)), "{measured}");
        assert_eq!(measured["backend"], self.backend);
        measured
    }

    fn is_as_good_as(&self, known: &Known, tolerance: f64) {
        let near = |measured: &Value, set: &str, metric: &str, wanted: f64| {
            let found = figure(measured, set, metric);
            assert!((found - wanted).abs() <= tolerance, "{set} {metric} is {found}, not {wanted}");
        };
        let measured = self.measure(&["--sts", &shared("data/sts/stsb-en-test.tsv.zst"), "--limit", "300"]);
        near(&measured, "stsb-en-test", "Spearman", known.spearman);
        let measured = self.measure(&["--data", &shared("data/scifact"), "--limit", "50"]);
        near(&measured, "scifact/test", "nDCG@10", known.ndcg[0]);
        near(&measured, "scifact/train", "nDCG@10", known.ndcg[1]);
    }
}

fn static_model() -> Subject {
    Subject::new(CPU, "cpu", "potion-base-8M-int8")
}

fn figure(measured: &Value, set: &str, metric: &str) -> f64 {
    let found = measured["measurements"].as_array().expect("measurements");
    let found = found.iter().find(|found| found["set"] == set && found["metric"] == metric);
    found
        .and_then(|found| found["value"].as_f64())
        .unwrap_or_else(|| panic!("no {metric} of {set} in {measured}"))
}

#[test]
fn the_static_model_is_as_good_as_it_is_known_to_be() {
    static_model().is_as_good_as(&STATIC, 0.0005);
}

fn minilm(library: &str, backend: &'static str) -> Subject {
    Subject::new(library, backend, assets("models/all-MiniLM-L6-v2").to_str().expect("UTF-8"))
}

/// The model that every backend runs: its 36 reference vectors, within what the precision allows, and its figures.
fn runs_minilm(subject: &Subject, tolerance: f64) {
    let measured = subject.measure(&["--ref", &shared("data/ref/embeddings_ref.json"), "--check"]);
    assert_eq!(measured["skipped"], json!([]));
    assert_eq!(measured["texts"], 36);
    subject.is_as_good_as(&MINILM, tolerance);
}

#[test]
fn candle_computes_what_the_model_is_known_for() {
    runs_minilm(&minilm(CANDLE, "candle"), 0.0005);
}

#[test]
fn cpu_computes_what_the_model_is_known_for() {
    // In bf16 where the processor has it.
    runs_minilm(&minilm(CPU, "cpu"), 0.005);
}

#[test]
fn onnx_computes_what_the_model_is_known_for() {
    let subject = minilm(ONNX, "onnx");
    let runtime = subject.home.data().join("runtime");
    fs::create_dir_all(&runtime).expect("a folder");
    fs::copy(assets("onnxruntime/libonnxruntime.so"), runtime.join("libonnxruntime.so"))
        .expect("the runtime");
    runs_minilm(&subject, 0.0005);
}

/// Vectors that the authors' own code made of the weights in f32, as a file that `bench quality` reads.
fn reference_of_the_static_model(home: &Home, change: impl Fn(&mut Vec<Value>)) -> String {
    let path = crate::support::repository().join("plugins/embed-cpu/tests/data/reference.json");
    let mut made: Value = serde_json::from_slice(&fs::read(path).expect("the reference")).expect("JSON");
    let items = made["items"].as_array_mut().expect("items");
    for item in items.iter_mut() {
        let count = item["token_ids"].as_array().expect("token ids").len();
        *item = json!({ "text": item["text"], "n_tokens": count, "embedding": item["f32"] });
    }
    change(items);
    let text = json!({ "model": "potion-base-8M-int8", "items": items }).to_string();
    home.file("reference.json", text).to_str().expect("UTF-8").to_owned()
}

#[test]
fn the_static_model_equals_its_reference_vectors() {
    let subject = static_model();
    let path = reference_of_the_static_model(&subject.home, |_| {});
    let measured = subject.measure(&["--ref", &path, "--check"]);
    assert_eq!(figure(&measured, "reference", "texts with a wrong token count"), 0.0);
    let cosine = figure(&measured, "reference", "min cosine");
    assert!((0.999..=1.0).contains(&cosine), "{cosine}");
}

#[test]
fn a_check_fails_where_vectors_or_tokens_are_others() {
    let home = Home::new();
    home.install(CPU);
    let path = reference_of_the_static_model(&home, |items| {
        let other = items[1]["embedding"].clone();
        items[0]["embedding"] = other;
        items[2]["n_tokens"] = json!(999);
    });
    let ran = home.run(&["bench", "quality", "--ref", &path, "--check", "--json"]).expect(3);
    let measured: Value = serde_json::from_str(&ran.stdout).expect("the figures all the same");
    assert_eq!(figure(&measured, "reference", "texts with a wrong token count"), 1.0);
    ran.says(&["2 figures farther from the known"]);
    // Without --check they are only shown.
    home.run(&["bench", "quality", "--ref", &path]).expect(0);
}

#[test]
fn vectors_of_another_model_are_no_reference() {
    let home = Home::new();
    let ran = home
        .run(&["bench", "quality", "--ref", &shared("data/ref/embeddings_ref.json"), "--check"])
        .expect(0);
    ran.says(&["skipped", "all-MiniLM-L6-v2, not of potion-base-8M-int8"]);
}

#[test]
fn what_is_no_data_is_wrong_usage() {
    let home = Home::new();
    home.run(&["bench", "quality"]).expect(2).says(&["--data"]);
    let empty = home.path().to_str().expect("UTF-8").to_owned();
    home.run(&["bench", "quality", "--data", &empty]).expect(2).says(&["no evaluation data here"]);
    home.run(&["bench", "quality", "--data", "none-such"]).expect(2).says(&["none-such"]);
    let broken = home.file("pairs.tsv", "1.0\tone sentence\n");
    let broken = broken.to_str().expect("UTF-8");
    home.run(&["bench", "quality", "--sts", broken]).expect(2).says(&["pairs.tsv: line 1"]);
    home.run(&["--backend", "cpu", "bench", "quality", "--sts", broken, "--backends", "none-such"]).expect(2);
}

#[test]
fn speed_is_measured_of_every_backend_and_peer_in_a_process_of_its_own() {
    let home = Home::new();
    home.install(CPU);
    let texts: Vec<String> = (0..40).map(|i| format!("line {i} of the texts to embed")).collect();
    let texts = home.file("texts.txt", texts.join("\n"));
    let texts = texts.to_str().expect("UTF-8");
    // The worker of this very program is a peer like any other.
    let program = env!("CARGO_BIN_EXE_magray");
    let peer = format!("itself={program} --backend cpu bench worker");
    let args = ["bench", "embed", "--texts", texts, "--runs", "2", "--queries", "5", "--batch", "8,64"];
    let measured = home.json(&[&args[..], &["--threads", "1", "--peer", &peer]].concat());
    let rates = measured["rates"].as_array().expect("rates");
    assert_eq!(rates.len(), 2 * 2 * 2, "two orders, two batches, two contestants: {measured}");
    for rate in rates {
        assert!(rate["texts_per_s"].as_f64() > Some(0.0), "{rate}");
        assert_eq!(
            (&rate["texts"], &rate["shape"], &rate["threads"]),
            (&json!(40), &json!("own"), &json!(1))
        );
        assert_eq!(rate["model"], "potion-base-8M-int8");
        // The first is what the other is compared with, and the other is the very same.
        match rate["name"].as_str() {
            Some("itself") => assert!(rate["min_cosine"].as_f64() > Some(0.99999), "{rate}"),
            _ => assert_eq!(rate["min_cosine"], Value::Null),
        }
    }
    let latencies = measured["latencies"].as_array().expect("latencies");
    let [ours, peer] = &latencies[..] else { panic!("{measured}") };
    assert!(ours["start_to_answer_ms"].as_f64() > Some(0.0), "{ours}");
    assert_eq!((&peer["name"], &peer["start_to_answer_ms"]), (&json!("itself"), &Value::Null));
    assert!(measured["machine"]["cores"].as_u64() >= Some(1), "{measured}");
}

#[test]
fn a_peer_that_ends_or_talks_nonsense_is_named() {
    let home = Home::new();
    let texts = home.file("texts.txt", "one\ntwo\nthree\nfour\n");
    let texts = texts.to_str().expect("UTF-8");
    for (peer, said) in [("mute=true", "mute: it has ended"), ("parrot=cat", "parrot: an odd answer")] {
        let ran = home.run(&["bench", "embed", "--texts", texts, "--peer", peer, "--threads", "1"]);
        ran.expect(3).says(&[said]);
    }
    home.run(&["bench", "embed", "--texts", texts, "--backends", "none-such"]).expect(3).says(&["none-such"]);
}
