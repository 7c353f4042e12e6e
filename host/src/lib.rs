//! Local semantic memory and vector search.
