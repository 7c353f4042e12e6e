//! The index of the [usearch](https://github.com/unum-cloud/usearch) library as a component `usearch`, to
//! compare others with in one run of `magray bench`.
//!
//! The graph, its distances and its deletes are usearch's own. What is added is what the contract asks
//! and usearch leaves to its caller:
//!
//! | usearch 2.26 | here |
//! |---|---|
//! | fails a search while more threads search than it has room for | they wait for one another |
//! | the breadth of a search is one number for the whole index | changed while nobody searches |
//! | misses what is there after many removals | the graph is built anew |
//! | may return fewer hits than there are, after removals or under a filter | compares with each vector then |
//! | scores by rounded numbers where it stores `bf16` or `i8` | candidates are scored again by the originals |
//! | trusts the file that it loads | sees it only when its digest fits |
mod files;
mod index;

pub use index::{Options, Scalar, Usearch};

use magray_plugin_api::{Component, Plugin, export_plugin};

/// This plugin.
pub const USEARCH: Plugin = Plugin {
    id: "magray-index-usearch",
    version: env!("CARGO_PKG_VERSION"),
    summary: "the index of the usearch library, to compare with",
    components: &[Component::index::<Usearch>("usearch")],
};

export_plugin!(USEARCH);
