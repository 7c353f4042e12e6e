//! Embedding backend `cpu`, in pure Rust: static (model2vec-type) models, one of which is embedded so
//! that this backend works offline, at once, and on every machine; and transformer models.
//!
//! [`PLUGIN`] knows only static models and is small: it is linked into the program. [`FULL_PLUGIN`]
//! has both and is the plugin file.

mod embedder;
mod options;
mod static_model;
mod tokenizer;
mod transformer;
mod workers;

pub use embedder::CpuEmbedder;
pub use options::{CpuOptions, WantedPrecision};
pub use static_model::{Options, StaticEmbedder};

use magray_plugin_api::{Component, Plugin};

/// The part of this plugin that is linked into the program.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-embed-cpu",
    version: env!("CARGO_PKG_VERSION"),
    summary: "static embedding models in pure Rust, one of them embedded",
    components: &[Component::embedder::<StaticEmbedder>("cpu")],
};

/// The whole plugin.
pub const FULL_PLUGIN: Plugin = Plugin {
    summary: "static and transformer embedding models in pure Rust, one of them embedded",
    components: &[Component::embedder::<CpuEmbedder>("cpu")],
    ..PLUGIN
};
