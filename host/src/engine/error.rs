use crate::{embedding::EmbeddingError, indexing::IndexError, plugins::PluginError, store::StoreError};

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is what its source says")]
pub enum EngineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error(transparent)]
    Embedding(#[from] EmbeddingError),
    #[error(transparent)]
    Index(#[from] IndexError),
    /// The request itself cannot be.
    #[error("{0}")]
    Invalid(String),
    #[error("interrupted; what was stored so far is kept, and the same command goes on from there")]
    Interrupted,
}
