//! The `hnsw` index: approximate search over a graph of the `hnsw_rs` crate.
//!
//! `hnsw_rs` is a graph and no more. What it lacks, or does in a way that a long-lived process
//! cannot bear, is contained here, each hazard in one place:
//!
//! | hazard of `hnsw_rs` 0.3.5 | where it is met |
//! |---|---|
//! | ends the process on bad files and parameters | `options`; `graph` writes the files that it loads |
//! | no delete, no update, one id returned twice; many equal vectors cut the graph in two | `segment` |
//! | panics on NaN and on a negative distance, takes any width | `index`, `distance` |
//! | keeps every vector in memory, and out of reach by its id | `rows` |
//! | prints to standard output when it saves | `graph` writes itself |
//! | uses the global thread pool, even to drop a graph | `graph` |
//! | searches through a hash table and an allocation a link; panics in one of breadth 1 under a filter | `links` |
//! | forgets its level distribution when it is loaded | `graph` |
mod distance;
mod files;
mod graph;
mod ids;
mod index;
mod links;
mod options;
mod rows;
mod segment;

pub use index::Hnsw;
pub use options::{Options, Preset};

use magray_plugin_api::{Component, Plugin};

/// This plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-index-hnsw",
    version: env!("CARGO_PKG_VERSION"),
    summary: "approximate vector search over a hierarchical graph (hnsw_rs)",
    components: &[Component::index::<Hnsw>("hnsw")],
};
