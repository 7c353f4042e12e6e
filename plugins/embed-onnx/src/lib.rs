//! Embedding backend `onnx`: transformer models on ONNX Runtime, on the CPU or on a CUDA GPU.
//!
//! ONNX Runtime is a library of its own that is found and loaded when an embedder is made
//! (`runtime`); this crate needs nothing of it to build. A model of the BERT family needs no ONNX
//! file: `graph` builds the network in memory from the safetensors, by the fused operators that ONNX
//! Runtime has for such networks, in f32 or quantized to int8. Other networks run from an ONNX file
//! of the model's folder (`source`). `sessions` makes the sessions and sees where their nodes were
//! really placed, `batch` cuts a call into runs of little padding, `pool` keeps account of the
//! memory of a device and of what failed there.

mod batch;
mod classifier;
mod cuda;
mod embedder;
mod error;
mod graph;
mod options;
mod pool;
mod runtime;
mod sessions;
mod source;

pub use embedder::OnnxEmbedder;
pub use options::{Options, Precision};

use magray_plugin_api::{Component, Plugin};

/// This plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-embed-onnx",
    version: env!("CARGO_PKG_VERSION"),
    summary: "transformer embedding models on ONNX Runtime, CPU and CUDA",
    components: &[Component::embedder::<OnnxEmbedder>("onnx")],
};
