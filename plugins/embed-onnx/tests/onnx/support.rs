//! The parts that tests share: models, ONNX Runtime, reference vectors.
use magray_embed_onnx::{OnnxEmbedder, Options};
use magray_plugin_api::{CreateEmbedder, Embedder, Result, Role};
use magray_plugin_testkit::{Cx, HOST};
use serde::Deserialize;
use std::{
    env, fs,
    path::{Path, PathBuf},
};

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");

/// What the setup script fetches.
pub(crate) fn fetched(path: &str) -> String {
    let assets = env::var_os("MAGRAY_TEST_ASSETS")
        .map_or_else(|| Path::new(ROOT).join("target/test-assets"), PathBuf::from);
    let path = assets.join(path);
    assert!(path.exists(), "{} is missing; run scripts/fetch-models.sh", path.display());
    path.into_os_string().into_string().unwrap()
}

pub(crate) fn runtime() -> String {
    fetched("onnxruntime/libonnxruntime.so")
}

/// A tiny model of the crate magray-model.
pub(crate) fn tiny(name: &str) -> String {
    format!("{ROOT}/plugins/model/tests/data/architectures/{name}")
}

pub(crate) fn create(options: Options) -> Result<OnnxEmbedder> {
    OnnxEmbedder::create(Options { runtime: runtime(), ..options }, HOST)
}

pub(crate) fn open(model: &str) -> OnnxEmbedder {
    create(Options { model: model.to_owned(), ..Options::default() }).unwrap()
}

pub(crate) fn embed(embedder: &OnnxEmbedder, texts: &[&str], role: Role) -> Vec<Vec<f32>> {
    let dim = embedder.info().dim;
    let mut out = vec![f32::NAN; texts.len() * dim];
    embedder.embed(&Cx::free(), texts, role, &mut out).unwrap();
    out.chunks(dim).map(<[f32]>::to_vec).collect()
}

#[derive(Deserialize)]
pub(crate) struct Reference {
    pub(crate) items: Vec<Item>,
}

/// A text and its vector by the reference implementation.
#[derive(Deserialize)]
pub(crate) struct Item {
    pub(crate) text: String,
    #[serde(default)]
    pub(crate) role: Option<String>,
    pub(crate) embedding: Vec<f32>,
}

impl Item {
    pub(crate) fn role(&self) -> Role {
        if self.role.as_deref() == Some("query") { Role::Query } else { Role::Passage }
    }
}

pub(crate) fn reference(path: &Path) -> Reference {
    let bytes = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}

/// Vectors of all-MiniLM-L6-v2 that others computed.
pub(crate) fn minilm_reference() -> Reference {
    let shared =
        env::var_os("MAGRAY_SHARED").map_or_else(|| Path::new(ROOT).join("../shared"), PathBuf::from);
    reference(&shared.join("data/ref/embeddings_ref.json"))
}

pub(crate) fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

pub(crate) fn cosine(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
