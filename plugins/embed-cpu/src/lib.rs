//! Embedding backend `cpu`: static (model2vec-type) models in pure Rust. One model is embedded, so
//! this backend works offline, at once, and on every machine.
//!
//! The vector of a text is the mean of one row of weights a token. `tokenizer` finds the tokens, and
//! `pooling` sums their rows with the instructions that the CPU has; each takes about half the time.

mod embedder;
mod model;
mod pooling;
mod tokenizer;
mod weights;

pub use embedder::{Options, StaticEmbedder};

use magray_plugin_api::{Component, Plugin};

/// This plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-embed-cpu",
    version: env!("CARGO_PKG_VERSION"),
    summary: "static embedding models in pure Rust, one of them embedded",
    components: &[Component::embedder::<StaticEmbedder>("cpu")],
};
