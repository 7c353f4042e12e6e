use crate::{
    embedding::EmbeddingError, indexing::IndexError, plugins::PluginError, services::ServiceError,
    store::StoreError,
};
use magray_plugin_api::ErrorCode;
use std::{io, path::PathBuf};

/// Why the engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each is what its source says")]
pub enum EngineError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Plugin(PluginError),
    #[error(transparent)]
    Embedding(EmbeddingError),
    #[error(transparent)]
    Index(IndexError),
    #[error(transparent)]
    Service(#[from] ServiceError),
    /// The request itself cannot be.
    #[error("{0}")]
    Invalid(String),
    /// Nothing of the write was begun.
    #[error(
        "too little room in {}: {what} takes about {} MiB, {} MiB are free, and {} MiB are to stay free; \
         make room, or lower [store] min_free_bytes",
        .dir.display(), .needed.div_ceil(1 << 20), .free >> 20, .reserve.div_ceil(1 << 20)
    )]
    NoRoom { dir: PathBuf, what: String, needed: u64, free: u64, reserve: u64 },
    /// Nothing of the write was begun.
    #[error(
        "{stored} vectors are stored, and {new} more would be above [memory.resource_manager] scaling_max_vectors, {most}; \
         raise it where memory allows (`magray config check` says whether it does), or forget what is not needed"
    )]
    Full { stored: u64, new: u64, most: u64 },
    /// Input or output of the caller.
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("interrupted; what was stored so far is kept, and the same command goes on from there")]
    Interrupted,
}

impl From<PluginError> for EngineError {
    fn from(error: PluginError) -> Self {
        match &error {
            PluginError::Call { error: call, .. } if call.code() == ErrorCode::CANCELLED => Self::Interrupted,
            _ => Self::Plugin(error),
        }
    }
}

impl From<EmbeddingError> for EngineError {
    fn from(error: EmbeddingError) -> Self {
        match &error {
            EmbeddingError::Backend { error: call, .. } if call.code() == ErrorCode::CANCELLED => {
                Self::Interrupted
            }
            _ => match error {
                EmbeddingError::Store(error) => Self::Store(error),
                error => Self::Embedding(error),
            },
        }
    }
}

impl From<IndexError> for EngineError {
    fn from(error: IndexError) -> Self {
        if error.is_cancelled() { Self::Interrupted } else { Self::Index(error) }
    }
}
