//! What makes a memory of records and vectors: ranking over layers, and the passage that answers.
mod passage;

pub use passage::{Passage, best_passages};
