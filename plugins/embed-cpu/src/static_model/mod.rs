//! Static (model2vec-type) models: the vector of a text is the mean of one row of weights a token.
//!
//! `pooling` sums the rows with the instructions that the CPU has, which takes about as long as finding
//! the tokens.

mod embedder;
mod model;
mod pooling;
mod weights;

pub use embedder::{Options, StaticEmbedder};
#[cfg(test)]
pub(crate) use model::EMBEDDED_VOCAB;
pub(crate) use model::{EMBEDDED, pieces_of};
