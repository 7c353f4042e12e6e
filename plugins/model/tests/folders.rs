//! Model folders, small ones made here and the real ones of `scripts/fetch-models.sh`.
#![expect(clippy::unwrap_used, reason = "a test")]
use magray_model::{
    Architecture, Manifest, ManifestFile, ModelFolder, Overrides, Pooling, Prefixes, Tokenizer, Weights,
};
use magray_model_testkit::{fetched, minilm_reference, tiny};
use magray_plugin_api::{ErrorCode, Role};
use serde_json::{Value, json};
use std::fs;
use tempfile::TempDir;

#[test]
fn minilm_is_what_its_files_say() {
    let folder = ModelFolder::open(&fetched("models/all-MiniLM-L6-v2"), &Overrides::default()).unwrap();
    assert_eq!(folder.spec.max_tokens, 256);
    assert_eq!(folder.spec.dim, 384);
    assert_eq!(folder.spec.pooling, Pooling::Mean);
    assert_eq!(folder.spec.prefixes, Default::default());
    assert_eq!(folder.spec.architecture.label(), "bert 6x384");
    let weights = Weights::open(&folder).unwrap();
    assert_eq!(weights.f32("embeddings.LayerNorm.weight", &[384]).unwrap().len(), 384);
    let error = weights.f32("embeddings.LayerNorm.weight", &[383]).unwrap_err();
    assert!(error.message().contains("[384], not [383]"), "{error}");
    assert_eq!(weights.f32("nothing", &[1]).unwrap_err().code(), ErrorCode::CORRUPT_DATA);
}

#[test]
fn a_vocabulary_that_is_larger_than_the_table_is_refused() {
    for model in ["bert", "xlm-roberta", "mpnet", "qwen3"] {
        let dir = tiny(model);
        let file: Value = serde_json::from_slice(&fs::read(dir.join("tokenizer.json")).unwrap()).unwrap();
        let vocab = &file["model"]["vocab"];
        let of_model: Vec<u64> = match vocab.as_object() {
            Some(ids) => ids.values().map(|id| id.as_u64().unwrap()).collect(),
            None => (0..vocab.as_array().unwrap().len() as u64).collect(),
        };
        let added =
            file["added_tokens"].as_array().unwrap().iter().map(|token| token["id"].as_u64().unwrap());
        let largest = of_model.into_iter().chain(added).max().unwrap() as usize;
        let open = |rows| Tokenizer::open(&dir, Prefixes::default(), 16, rows);
        open(largest + 1).unwrap();
        let error = open(largest).unwrap_err();
        assert!(error.message().contains(&format!("has the id {largest}")), "{model}: {error}");
    }
}

#[test]
fn tokens_are_those_of_the_reference() {
    let folder = ModelFolder::open(&fetched("models/all-MiniLM-L6-v2"), &Overrides::default()).unwrap();
    let tokenizer = folder.tokenizer().unwrap();
    for item in minilm_reference() {
        let mut ids = Vec::new();
        tokenizer.encode(&item.text, Role::Query, &mut ids).unwrap();
        assert_eq!(ids, item.token_ids, "{}", item.text);
    }
}

#[test]
fn a_long_text_is_cut_without_being_tokenized_whole() {
    let folder = ModelFolder::open(&fetched("models/all-MiniLM-L6-v2"), &Overrides::default()).unwrap();
    let tokenizer = folder.tokenizer().unwrap();
    let encode = |text: &str| {
        let mut ids = Vec::new();
        tokenizer.encode(text, Role::Passage, &mut ids).unwrap();
        ids
    };
    let (start, filler) = ("one two three ".repeat(300), "word ".repeat(200_000));
    assert_eq!(encode(&format!("{start}{filler}")), encode(&start));
    assert_eq!(encode(&start).len(), 256);
    // White space is many bytes and no token, so the first cut is not enough.
    let (space, few) = (" ".repeat(100_000), "alpha beta");
    assert_eq!(encode(&format!("alpha{space}beta")), encode(few));
    assert!(encode(&space).is_empty());
}

#[test]
fn a_multilingual_model_has_prefixes() {
    let folder = ModelFolder::open(&fetched("models/multilingual-e5-small"), &Overrides::default()).unwrap();
    assert_eq!((folder.spec.max_tokens, folder.spec.dim), (512, 384));
    assert_eq!(folder.spec.prefixes.query, "query: ");
    let tokenizer = folder.tokenizer().unwrap();
    let packed = |role| tokenizer.encode_all(&["Привет, мир", ""], role).unwrap();
    let (query, passage) = (packed(Role::Query), packed(Role::Passage));
    assert_ne!(query, passage);
    assert_eq!(query.texts().map(<[u32]>::is_empty).collect::<Vec<_>>(), [false, true]);
    assert_eq!((query.ids[0], query.ids.last()), (0, Some(&2)));
}

fn bert_config() -> Value {
    json!({
        "model_type": "bert", "hidden_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
        "intermediate_size": 8, "vocab_size": 10, "max_position_embeddings": 16, "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    })
}

/// A folder with these files; values that are no text are written as JSON.
fn folder(files: &[(&str, Value)]) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let bytes = content.as_str().map_or_else(|| content.to_string(), str::to_owned);
        fs::write(path, bytes).unwrap();
    }
    dir
}

fn with(key: &str, value: Value) -> Value {
    let mut config = bert_config();
    config[key] = value;
    config
}

#[test]
fn settings_come_from_all_files() {
    let pooling = |mode: &str| {
        json!([{"type": "sentence_transformers.models.Transformer", "path": ""},
               {"type": "sentence_transformers.models.Pooling", "path": mode}])
    };
    let weights = ("model.safetensors", json!(""));
    let dir = folder(&[
        ("config.json", with("model_type", json!("xlm-roberta"))),
        weights.clone(),
        ("modules.json", pooling("1_Pooling")),
        ("1_Pooling/config.json", json!({"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false})),
        ("tokenizer_config.json", json!({"model_max_length": 1e30})),
        ("magray.json", json!({"source": "test", "files": [], "query_prefix": "q: "})),
    ]);
    let spec = ModelFolder::open(dir.path(), &Overrides::default()).unwrap().spec;
    assert_eq!(spec.pooling, Pooling::Cls);
    assert_eq!(spec.max_tokens, 14, "16 positions, of which the first two are not used");
    assert_eq!(spec.prefixes.query, "q: ");

    let own =
        Overrides { max_tokens: Some(5), dim: Some(2), query_prefix: Some("?".into()), ..Default::default() };
    let spec = ModelFolder::open(dir.path(), &own).unwrap().spec;
    assert_eq!((spec.max_tokens, spec.dim, spec.prefixes.query.as_str()), (5, 2, "?"));
    for (max_tokens, dim) in [(Some(15), None), (Some(2), None), (None, Some(5)), (None, Some(0))] {
        let overrides = Overrides { max_tokens, dim, ..Default::default() };
        let error = ModelFolder::open(dir.path(), &overrides).unwrap_err();
        assert_eq!(error.code(), ErrorCode::INVALID_CONFIG, "{error}");
    }
}

#[test]
fn what_cannot_be_run_is_refused() {
    let weights = ("model.safetensors", json!(""));
    let cases = [
        (folder(&[]), ErrorCode::UNAVAILABLE, "config.json is missing"),
        (folder(&[("config.json", bert_config())]), ErrorCode::UNAVAILABLE, "no model.safetensors"),
        (folder(&[("config.json", json!("{"))]), ErrorCode::CORRUPT_DATA, "no JSON"),
        (folder(&[("config.json", with("model_type", json!("llama")))]), ErrorCode::UNSUPPORTED, "llama"),
        (folder(&[("config.json", with("hidden_size", json!(5)))]), ErrorCode::CORRUPT_DATA, "sizes"),
        (folder(&[("config.json", with("hidden_size", json!(-5)))]), ErrorCode::CORRUPT_DATA, "config.json"),
        (folder(&[("config.json", with("hidden_act", json!("swish")))]), ErrorCode::UNSUPPORTED, "swish"),
        (
            folder(&[
                ("config.json", bert_config()),
                weights.clone(),
                ("modules.json", json!([{"type": "x.Dense"}])),
            ]),
            ErrorCode::UNSUPPORTED,
            "x.Dense",
        ),
        (
            folder(&[
                ("config.json", bert_config()),
                weights.clone(),
                ("modules.json", json!([{"type": "x.Pooling", "path": "../1_Pooling"}])),
            ]),
            ErrorCode::CORRUPT_DATA,
            "../1_Pooling",
        ),
        (
            folder(&[
                ("config.json", bert_config()),
                ("model.safetensors.index.json", json!({"weight_map": {"a": "../x.safetensors"}})),
            ]),
            ErrorCode::CORRUPT_DATA,
            "weight_map",
        ),
    ];
    for (dir, code, says) in cases {
        let error = ModelFolder::open(dir.path(), &Overrides::default()).unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        assert!(error.message().contains(says), "{error}");
        assert!(error.message().contains(&dir.path().display().to_string()), "{error}");
    }
    let nothing = ModelFolder::open("no/such/model".as_ref(), &Overrides::default()).unwrap_err();
    assert!(nothing.message().contains("magray model list"), "{nothing}");
    let dir = folder(&[("config.json", bert_config()), ("onnx/model.onnx", json!("x"))]);
    let only_onnx = ModelFolder::open(dir.path(), &Overrides::default()).unwrap();
    assert_eq!(Weights::open(&only_onnx).unwrap_err().code(), ErrorCode::UNSUPPORTED);
    let missing = Tokenizer::open(dir.path(), Default::default(), 8, 10).unwrap_err();
    assert_eq!(missing.code(), ErrorCode::UNAVAILABLE);
}

#[test]
fn other_networks_are_known() {
    let mpnet = Architecture::from_config(&with("model_type", json!("mpnet"))).unwrap();
    let Architecture::Bert(mpnet) = mpnet else { panic!("{mpnet:?}") };
    assert_eq!((mpnet.first_position, mpnet.relative_buckets, mpnet.token_types), (2, Some(32), false));
    let config = json!({
        "model_type": "qwen3", "hidden_size": 1024, "num_hidden_layers": 28, "num_attention_heads": 16,
        "num_key_value_heads": 8, "head_dim": 128, "intermediate_size": 3072, "vocab_size": 151_669,
        "max_position_embeddings": 32_768, "rope_theta": 1_000_000, "rope_scaling": null, "rms_norm_eps": 1e-6,
        "hidden_act": "silu", "attention_bias": false, "use_sliding_window": false,
    });
    let Architecture::Qwen3(qwen) = Architecture::from_config(&config).unwrap() else { panic!() };
    assert_eq!((qwen.head_dim, qwen.rope_theta), (128, 1e6));
}

#[test]
fn the_space_is_of_everything_that_decides() {
    let files =
        [("config.json", bert_config()), ("model.safetensors", json!("w")), ("tokenizer.json", json!("t"))];
    let space = |files: &[(&str, Value)], overrides: &Overrides| {
        ModelFolder::open(folder(files).path(), overrides).unwrap().space().unwrap()
    };
    let none = Overrides::default();
    let first = space(&files, &none);
    assert_eq!(first, space(&files, &none));
    let mut spaces = vec![first];
    for (at, content) in [(0, with("layer_norm_eps", json!(1e-6))), (1, json!("v")), (2, json!("u"))] {
        let mut files = files.clone();
        files[at].1 = content;
        spaces.push(space(&files, &none));
    }
    spaces.push(space(&files, &Overrides { dim: Some(2), ..Default::default() }));
    spaces.push(space(&files, &Overrides { max_tokens: Some(8), ..Default::default() }));
    spaces.push(space(&files, &Overrides { query_prefix: Some("q".into()), ..Default::default() }));
    for (at, space) in spaces.iter().enumerate() {
        assert!(!spaces[..at].contains(space), "{at}");
    }
}

#[test]
fn a_manifest_vouches_for_what_did_not_change() {
    let dir = folder(&[
        ("config.json", bert_config()),
        ("model.safetensors", json!("w")),
        ("tokenizer.json", json!("t")),
    ]);
    let open = || ModelFolder::open(dir.path(), &Overrides::default()).unwrap().space().unwrap();
    let true_space = open();
    let metadata = fs::metadata(dir.path().join("model.safetensors")).unwrap();
    let file = |content: &str| ManifestFile {
        path: "model.safetensors".into(),
        size: metadata.len(),
        mtime_ns: ManifestFile::mtime_ns(&metadata),
        sha256: String::new(),
        blake3: blake3::hash(content.as_bytes()).to_hex().to_string(),
    };
    let write = |file| {
        let manifest = Manifest { files: vec![file], ..Manifest::default() };
        fs::write(dir.path().join("magray.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    };
    write(file("w"));
    assert_eq!(open(), true_space);
    // It is believed, so another digest is another space; a file that changed is read.
    write(file("something else"));
    assert_ne!(open(), true_space);
    write(ManifestFile { mtime_ns: 1, ..file("something else") });
    assert_eq!(open(), true_space);
}
