//! The contract between the magray host and its plugins.
//!
//! An author implements one of three safe traits, [`Embedder`], [`VectorIndex`] or
//! [`CachePolicy`], together with its `Create...` trait that makes a value from the options in
//! the user's TOML, and names the types in [`export_plugin!`]. What carries them over the library
//! boundary is machinery that no author sees.
//!
//! ```
//! use magray_plugin_api::{CachePolicy, CreateCachePolicy, Host, Result};
//!
//! /// Drops the oldest entry first.
//! #[derive(Default)]
//! pub struct Fifo(std::collections::VecDeque<(u64, u64)>);
//!
//! impl CachePolicy for Fifo {
//!     fn on_insert(&mut self, key: u64, weight: u64, _now_ms: u64) {
//!         self.on_remove(key);
//!         self.0.push_back((key, weight));
//!     }
//!     fn on_hit(&mut self, _key: u64, _now_ms: u64) {}
//!     fn on_remove(&mut self, key: u64) {
//!         self.0.retain(|&(held, _)| held != key);
//!     }
//!     fn evict(&mut self, weight: u64, _now_ms: u64, victims: &mut Vec<u64>) {
//!         let mut freed = 0_u64;
//!         while freed < weight && let Some((key, weight)) = self.0.pop_front() {
//!             freed = freed.saturating_add(weight);
//!             victims.push(key);
//!         }
//!     }
//! }
//!
//! #[derive(serde::Deserialize)]
//! pub struct NoOptions {}
//!
//! impl CreateCachePolicy for Fifo {
//!     type Options = NoOptions;
//!     fn create(_: NoOptions, _: &'static dyn Host) -> Result<Self> {
//!         Ok(Self::default())
//!     }
//! }
//!
//! magray_plugin_api::export_plugin! {
//!     id: "example-fifo",
//!     summary: "drops the oldest entry first",
//!     cache_policies: { "fifo" => Fifo },
//! }
//! # fn main() {}
//! ```
//!
//! # Rules for every kind
//! - Calls block. The host makes them from threads of its own, any number at once unless the trait
//!   says otherwise. A plugin may own threads or a runtime of its own.
//! - A panic in any method, `create` and `Drop` included, is caught at the boundary and becomes
//!   [`ErrorCode::PANICKED`] of that one call. So plugins must be built with `panic = "unwind"`.
//! - Buffers belong to the caller. A method writes into the slice it is given and keeps nothing.
//! - A library is never unloaded, so `&'static` data of a plugin stays valid.
//! - `tracing` events of a plugin reach the host's log.
#![deny(missing_docs)]

#[doc(hidden)]
pub mod abi;
mod cache;
mod component;
mod context;
mod embedder;
mod error;
mod export;
pub mod host;
mod index;
pub mod manifest;
mod status;

pub use cache::{CachePolicy, CreateCachePolicy};
pub use component::{Component, ComponentKind, MakeIndex, Maker, Plugin};
pub use context::{CallContext, Host, LogLevel};
pub use embedder::{CreateEmbedder, Embedder, EmbedderInfo, Role};
pub use error::{Error, ErrorCode, Result};
pub use index::{
    Capabilities, CreateVectorIndex, Hit, IdFilter, IndexSpec, IndexStats, Metric, SearchParams, VectorIndex,
};
pub use status::{DeviceReport, Health, HealthLevel, MemoryUse};

#[doc(hidden)]
pub mod __private {
    pub use crate::export::{ExportedPlugin, header};
    pub use abi_stable::library::LibHeader;
}
