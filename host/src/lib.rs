//! Local semantic memory and vector search: the library below the `magray` program.
//!
//! Dependencies point downward only: [`cli`] over [`mod@bench`] and [`engine`] over [`memory`] and [`indexing`] over
//! [`embedding`] and [`ingest`] over [`store`] and [`plugins`] over [`config`] over [`resources`]. Only `store` speaks SQL, only
//! `plugins` loads libraries, only `cli` prints. [`models`] stands beside them: it finds and fetches model
//! folders; so does [`services`], by which [`engine`] makes its parts. `docs/ARCHITECTURE.md` walks through them.
pub mod bench;
pub mod cli;
pub mod config;
pub mod embedding;
pub mod engine;
pub mod indexing;
pub mod ingest;
pub mod memory;
pub mod models;
mod npy;
pub mod plugins;
pub mod resources;
pub mod services;
pub mod store;
