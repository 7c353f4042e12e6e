//! What makes a memory of records and vectors: how what words and meaning found becomes one order, which passage of a
//! record answers, and which records are promoted.
mod fusion;
mod passage;
pub mod promotion;
mod standing;

pub use fusion::{Fused, Fusion, LegScore, fuse};
pub use passage::{Passage, best_passages, passage_with_terms};
pub use standing::{RankFactor, add_documents};
