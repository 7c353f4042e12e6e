//! Embedding backend `candle`: transformer models on [candle](candle_core), in f32 on the CPU or, as
//! the plugin `candle-cuda` (feature `cuda`), on an NVIDIA GPU.
//!
//! What decides a vector comes from `magray_model`, so that spaces are those of the backends `cpu`
//! and `onnx`. `network` holds the networks as candle tensors, `batch` how texts share one pass,
//! `lanes` on which threads.

mod batch;
mod embedder;
mod lanes;
mod network;
mod options;

pub use embedder::CandleEmbedder;
pub use options::{Options, Precision};

use magray_plugin_api::{Component, Error, ErrorCode, Plugin};

/// Name of the component.
const NAME: &str = if cfg!(feature = "cuda") { "candle-cuda" } else { "candle" };

/// This plugin.
pub const PLUGIN: Plugin = Plugin {
    id: if cfg!(feature = "cuda") { "magray-embed-candle-cuda" } else { "magray-embed-candle" },
    version: env!("CARGO_PKG_VERSION"),
    summary: if cfg!(feature = "cuda") {
        "transformer models by candle on NVIDIA GPUs"
    } else {
        "transformer models by candle on the CPU"
    },
    components: &[Component::embedder::<CandleEmbedder>(NAME)],
};

/// What candle says, as an error of ours. That memory ran out is told apart by the names that CUDA
/// and cuBLAS give it, for the error's types exist only in a CUDA build.
fn failed(error: &candle_core::Error) -> Error {
    let text = error.to_string();
    // A backtrace follows where RUST_BACKTRACE is set.
    let message = text.lines().next().unwrap_or_default();
    if text.contains("OUT_OF_MEMORY") || text.contains("ALLOC_FAILED") {
        let message = format!("GPU memory ran out ({message}); lower batch_size or max_tokens");
        return Error::new(ErrorCode::OUT_OF_MEMORY, message);
    }
    Error::new(ErrorCode::INTERNAL, format!("candle: {message}"))
}
