//! The wire: `repr(C)` types and vtables below the safe traits. No author code and, but for
//! [`crate::host`], no host code comes here.
//!
//! Each kind has a `sabi_trait` (`EmbedderAbi`), the plugin's side (`EmbedderToAbi`, a safe value
//! behind the vtable, every method caught) and the host's side (`EmbedderFromAbi`, the vtable as a
//! safe value).
//!
//! # What may change
//! - Minor version: a trait method with a default body after the last one; a field at the end of
//!   [`PluginRoot`]; a new [`crate::ErrorCode`].
//! - Anything else breaks plugins: bump [`crate::manifest::ABI_EPOCH`].
#![allow(non_local_definitions)] // `#[sabi_trait]` of abi_stable 0.11.3 expands to these.
#![allow(missing_docs, missing_debug_implementations, unreachable_pub)]
#![allow(clippy::undocumented_unsafe_blocks)] // In what its macros expand to.

mod cache;
mod context;
mod embedder;
mod index;
mod log;
mod panic;
mod root;

pub use cache::{CacheBox, CacheToAbi};
pub use context::{HostFromAbi, HostRef};
pub use embedder::{EmbedderBox, EmbedderToAbi};
pub use index::{IndexBox, IndexSpecAbi, IndexToAbi};
pub use log::LogToHost;
pub use panic::{catch, keep_panic_messages};
pub use root::{PluginRoot, PluginRootRef};

pub(crate) use context::HostToAbi;
pub(crate) use embedder::EmbedderFromAbi;
pub(crate) use index::{IndexFromAbi, utf8};

pub type AbiResult<T> = abi_stable::std_types::RResult<T, crate::Error>;
