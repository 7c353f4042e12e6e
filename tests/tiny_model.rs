//! A model that is small, and looks like one: nobody reads its weights.
use crate::{hub::sha256, support::Home};
use serde_json::json;
use std::{fs, path::Path};

/// Bytes of the weights, which nobody reads here.
pub(crate) const WEIGHTS: usize = 2_000_000;

pub(crate) fn config() -> Vec<u8> {
    json!({
        "model_type": "bert", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "intermediate_size": 64, "vocab_size": 100, "max_position_embeddings": 48, "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    })
    .to_string()
    .into_bytes()
}

/// Not random, and no two parts alike.
pub(crate) fn weights() -> Vec<u8> {
    let mut state = 1_u64;
    let mut next = || {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 56) as u8
    };
    (0..WEIGHTS).map(|_| next()).collect()
}

pub(crate) const POOLING: &[u8] = br#"{"pooling_mode_mean_tokens": true}"#;
pub(crate) const MODULES: &[u8] =
    br#"[{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"}]"#;

pub(crate) fn model() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("1_Pooling/config.json", POOLING.to_vec()),
        ("config.json", config()),
        ("model.safetensors", weights()),
        ("modules.json", MODULES.to_vec()),
        ("tokenizer.json", b"{}".to_vec()),
    ]
}

/// The files below a folder, with their digests.
pub(crate) fn contents(dir: &Path) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(dir).expect("below").to_string_lossy().replace('\\', "/");
                found.push((name, sha256(&fs::read(&path).expect("a file"))));
            }
        }
    }
    found.sort();
    found
}

/// What the folder of the model must hold, but for the manifest.
pub(crate) fn expected() -> Vec<(String, String)> {
    let mut files: Vec<_> =
        model().into_iter().map(|(name, content)| (name.to_owned(), sha256(&content))).collect();
    files.sort();
    files
}

#[track_caller]
pub(crate) fn assert_is_model(home: &Home, name: &str) {
    let dir = home.data().join("models").join(name);
    let mut found = contents(&dir);
    found.retain(|(name, _)| name != "magray.json");
    assert_eq!(found, expected());
    home.run(&["model", "verify", name]).expect(0);
}

#[track_caller]
pub(crate) fn assert_no_model(home: &Home) {
    assert!(!home.data().join("models/tiny").exists());
    home.run(&["model", "list"]).expect(1);
}
