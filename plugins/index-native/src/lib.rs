//! The `native` index: vectors quantized to codes that a search scans or walks, and the best of them scored
//! again exactly.
//!
//! | part | where |
//! |---|---|
//! | the file, which is also how a sealed index lies in memory | `container` |
//! | codes of one bit a dimension, of narrow vectors two, and scanning them | `rabitq`, `rotation` |
//! | codes of four or eight bits, by which the best are scored again and a graph is walked | `codes`, `int4`, `int8` |
//! | lists by the nearest centroid | `ivf` |
//! | a graph of near rows | `graph` |
//! | making all of that | `build` |
//! | searching it | `sealed` |
//! | rows that were written since | `staged` |

mod best;
mod build;
mod candidates;
mod codes;
mod container;
mod exact;
mod graph;
mod index;
mod int4;
mod int8;
mod ivf;
mod options;
mod parallel;
mod rabitq;
mod rotation;
mod sealed;
mod staged;
#[cfg(test)]
mod tests;

pub use index::Native;
pub use options::{Layout, Options};

use magray_plugin_api::{Component, Plugin};

/// This plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-index-native",
    version: env!("CARGO_PKG_VERSION"),
    summary: "the fastest search on a CPU: quantized codes, the best scored exactly",
    components: &[Component::index::<Native>("native")],
};
