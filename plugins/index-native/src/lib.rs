//! The `native` index: vectors quantized to codes that a search scans or walks, and the best of them
//! scored again exactly.

#[allow(dead_code, unused_imports, reason = "in the making")]
mod graph;
#[allow(dead_code, unused_imports, reason = "in the making")]
mod int8;

use magray_plugin_api::Plugin;

/// This plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-index-native",
    version: env!("CARGO_PKG_VERSION"),
    summary: "the fastest search on a CPU: quantized codes, the best scored exactly",
    components: &[],
};
