//! Models by the names of their folders, and the real ONNX Runtime.
use magray_embed_onnx::{OnnxEmbedder, Options};
use magray_model_testkit as testkit;
use magray_plugin_api::{CreateEmbedder, Result};
use magray_plugin_testkit::HOST;
use std::path::PathBuf;

pub(crate) fn text(path: PathBuf) -> String {
    path.into_os_string().into_string().unwrap()
}

/// What the setup script fetches.
pub(crate) fn fetched(path: &str) -> String {
    text(testkit::fetched(path))
}

pub(crate) fn runtime() -> String {
    fetched("onnxruntime/libonnxruntime.so")
}

/// A tiny model of the crate magray-model.
pub(crate) fn tiny(name: &str) -> String {
    text(testkit::tiny(name))
}

pub(crate) fn create(options: Options) -> Result<OnnxEmbedder> {
    OnnxEmbedder::create(Options { runtime: runtime(), ..options }, HOST)
}

pub(crate) fn open(model: &str) -> OnnxEmbedder {
    create(Options { model: model.to_owned(), ..Options::default() }).unwrap()
}
