//! What makes a memory of records and vectors: the passage of a record that answers.
mod passage;

pub use passage::{Passage, best_passages};
