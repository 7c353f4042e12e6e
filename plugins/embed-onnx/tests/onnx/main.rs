//! Real models on a real ONNX Runtime.
#![expect(clippy::unwrap_used, reason = "a test")]
mod rerank;
mod support;

use magray_embed_onnx::{Options, Precision};
use magray_model_testkit::{apart, compare, embed, minilm_reference, tiny_reference};
use magray_plugin_api::{CallContext, Embedder, ErrorCode, Health, Role};
use std::{
    fs,
    path::Path,
    time::{Duration, Instant},
};
use support::{create, fetched, open, tiny};
use tempfile::TempDir;

const MINILM: &str = "models/all-MiniLM-L6-v2";

#[test]
fn minilm_keeps_the_contract() {
    magray_plugin_testkit::embedder(&open(&fetched(MINILM))).assert();
}

#[test]
fn minilm_gives_the_reference_vectors() {
    let embedder = open(&fetched(MINILM));
    let agreement = compare(&embedder, &minilm_reference());
    assert!(agreement.difference <= 1e-4, "{agreement:?}");
    let device = embedder.device();
    assert_eq!((device.device.as_str(), device.engine.as_str()), ("cpu", "CPUExecutionProvider"));
    assert_eq!((device.precision.as_str(), device.fallback_reason.as_str()), ("f32", ""));
}

#[test]
fn every_network_gives_the_vectors_of_its_reference() {
    for name in ["bert", "bert-cls-f16", "mpnet", "xlm-roberta", "qwen3"] {
        let folder = tiny(name);
        let embedder = open(&folder);
        let int8 =
            create(Options { model: folder.clone(), precision: Precision::Int8, ..Options::default() });
        let int8 = int8.unwrap();
        let reference = tiny_reference(folder.as_ref());
        let agreement = compare(&embedder, &reference);
        assert!(agreement.difference <= 1e-4, "{name}: {agreement:?}");
        let agreement = compare(&int8, &reference);
        assert!(agreement.cosine >= 0.99, "{name} int8: {agreement:?}");
    }
}

#[test]
fn int8_keeps_the_contract_and_is_near_the_reference() {
    let model = fetched(MINILM);
    let embedder = create(Options { model, precision: Precision::Int8, ..Options::default() }).unwrap();
    magray_plugin_testkit::embedder(&embedder).assert();
    assert_eq!(embedder.device().precision, "int8");
    assert_eq!(embedder.info(), open(&fetched(MINILM)).info(), "it is the same space");
    let agreement = compare(&embedder, &minilm_reference());
    assert!(agreement.cosine >= 0.995, "{agreement:?}");
}

/// The folder of a tiny model with other files.
fn folder(model: &str, files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(tiny(model)).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            fs::copy(entry.path(), dir.path().join(entry.file_name())).unwrap();
        }
    }
    fs::remove_file(dir.path().join("modules.json")).unwrap();
    for (name, content) in files {
        fs::write(dir.path().join(name), content).unwrap();
    }
    dir
}

/// The same network as the tiny model `bert`, as others publish it.
const FILE: &[u8] = include_bytes!("../data/bert/model.onnx");

#[test]
fn an_onnx_file_is_run_where_there_are_no_tensors() {
    let dir = folder("bert", &[("model.onnx", FILE)]);
    fs::remove_file(dir.path().join("model.safetensors")).unwrap();
    let embedder = open(dir.path().to_str().unwrap());
    magray_plugin_testkit::embedder(&embedder).assert();
    let agreement = compare(&embedder, &tiny_reference(tiny("bert").as_ref()));
    assert!(agreement.difference <= 1e-4, "{agreement:?}");
}

#[test]
fn a_damaged_or_unknown_onnx_file_is_refused() {
    let name = b"token_type_ids";
    let at = FILE.windows(name.len()).position(|window| window == name).unwrap();
    assert!(at > 0);
    let renamed = replace(FILE, name, b"tokenXtype_ids");
    let config = fs::read_to_string(Path::new(&tiny("bert")).join("config.json")).unwrap();
    let wider = config.replace("\"hidden_size\": 36", "\"hidden_size\": 39");
    assert_ne!(config, wider);
    for (content, config, code, says) in [
        (&b"garbage"[..], &config, ErrorCode::CORRUPT_DATA, "model.onnx"),
        (&b""[..], &config, ErrorCode::CORRUPT_DATA, "model.onnx"),
        (&FILE[..FILE.len() / 2], &config, ErrorCode::CORRUPT_DATA, "model.onnx"),
        (&renamed, &config, ErrorCode::UNSUPPORTED, "tokenXtype_ids"),
        (FILE, &wider, ErrorCode::UNSUPPORTED, "36 wide"),
    ] {
        let dir = folder("bert", &[("model.onnx", content), ("config.json", config.as_bytes())]);
        fs::remove_file(dir.path().join("model.safetensors")).unwrap();
        let model = dir.path().to_str().unwrap().to_owned();
        let error = create(Options { model, ..Options::default() }).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for at in 0..bytes.len() - from.len() {
        if &bytes[at..][..from.len()] == from {
            bytes[at..][..to.len()].copy_from_slice(to);
        }
    }
    bytes
}

#[test]
fn a_damaged_model_is_refused() {
    let whole = fs::read(Path::new(&tiny("bert")).join("model.safetensors")).unwrap();
    let config = fs::read_to_string(Path::new(&tiny("bert")).join("config.json")).unwrap();
    let more = config.replace("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3");
    assert_ne!(config, more);
    for (weights, config, says) in
        [(&whole[..whole.len() / 2], &config, "model.safetensors"), (&whole[..], &more, "encoder.layer.2")]
    {
        let dir = folder("bert", &[("model.safetensors", weights), ("config.json", config.as_bytes())]);
        let model = dir.path().to_str().unwrap().to_owned();
        let error = create(Options { model, ..Options::default() }).unwrap_err();
        assert_eq!(error.code(), ErrorCode::CORRUPT_DATA, "{error}");
        assert!(error.message().contains(says), "{error}");
    }
}

#[test]
fn without_a_gpu_it_says_so_or_runs_on_the_cpu_where_it_may() {
    let gpu = Options { model: tiny("bert"), use_gpu: true, device_id: 9, ..Options::default() };
    let error = create(gpu.clone()).unwrap_err();
    assert_eq!(error.code(), ErrorCode::UNAVAILABLE);
    for part in ["NVIDIA", "allow_cpu"] {
        assert!(error.message().contains(part), "no {part} in {error}");
    }
    let device = create(Options { allow_cpu: true, ..gpu }).unwrap().device();
    assert_eq!((device.device.as_str(), device.engine.as_str()), ("cpu", "CPUExecutionProvider"));
    assert!(device.fallback_reason.contains("NVIDIA"), "{device:?}");
}

#[test]
fn streams_share_the_work_and_change_no_vector() {
    let texts: Vec<String> = (0..100).map(|n| "some words ".repeat(1 + n % 20)).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let one = open(&tiny("bert"));
    let three = create(Options { model: tiny("bert"), streams: 3, prefetch: Some(1), ..Options::default() });
    let three = three.unwrap();
    for wrong in ["0", "many", ""] {
        let error = three.tune("tokens_at_once", wrong).unwrap_err();
        assert_eq!(error.code(), ErrorCode::INVALID_CONFIG, "{wrong}");
    }
    three.tune("tokens_at_once", "40").unwrap();
    let (a, b) = (embed(&one, &texts, Role::Passage), embed(&three, &texts, Role::Passage));
    assert!(apart(&a, &b) <= 1e-5);
    let said: serde_json::Value = serde_json::from_str(&three.describe()).unwrap();
    assert_eq!(said["streams"], 3);
    assert!(said["nodes"]["CPUExecutionProvider"].as_u64() > Some(10), "{said}");
    assert_eq!(said["memory"]["success_rate"], 1.0);
    assert_eq!(said["memory"]["tokens_at_once"], 40);
    assert!(said["memory"]["reserved"].as_u64() > Some(0), "{said}");
    assert!(said["onnx_runtime"].as_str().is_some_and(|version| version.starts_with("1.")), "{said}");
}

#[test]
fn a_long_call_can_be_cancelled() {
    /// Cancels once the call has run for a while.
    struct Impatient(Instant);
    impl CallContext for Impatient {
        fn is_cancelled(&self) -> bool {
            self.0.elapsed() > Duration::from_millis(30)
        }
        fn remaining(&self) -> Option<Duration> {
            None
        }
        fn progress(&self, _done: u64, _total: u64) {}
    }
    let embedder = open(&fetched(MINILM));
    let text = "many words of a long text ".repeat(100);
    let texts = vec![text.as_str(); 128];
    let mut out = vec![0.0; texts.len() * embedder.info().dim];
    let error = embedder.embed(&Impatient(Instant::now()), &texts, Role::Passage, &mut out).unwrap_err();
    assert_eq!(error.code(), ErrorCode::CANCELLED);
    assert_eq!(embedder.health(), Health::ok(), "that is no failure");
    assert!(embed(&embedder, &["it goes on"], Role::Query).iter().any(|&number| number != 0.0));
}
