//! What makes a memory of records and vectors: the passage of a record that answers, and which records
//! are promoted.
mod passage;
pub mod promotion;

pub use passage::{Passage, best_passages};
