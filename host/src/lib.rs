//! Local semantic memory and vector search.
pub mod config;
pub mod ingest;
pub mod plugins;
pub mod store;
