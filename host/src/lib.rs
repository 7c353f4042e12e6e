//! Local semantic memory and vector search.
pub mod plugins;
