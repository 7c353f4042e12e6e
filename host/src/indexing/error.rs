use crate::{plugins::PluginError, store::StoreError};
use magray_plugin_api::{Error as ApiError, ErrorCode};
use std::{io, path::PathBuf};

/// Why a search or a snapshot failed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum IndexError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("the index backend '{backend}' failed: {error}")]
    Backend { backend: String, error: ApiError },
    #[error("cannot write the index {}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
    /// Nothing was begun; what was to be sealed is searched exactly meanwhile.
    #[error(
        "too little room in {}: segments of the index take about {} MiB, {} MiB are free, and {} MiB are to stay free; \
         make room, or lower [store] min_free_bytes",
        .dir.display(), .needed.div_ceil(1 << 20), .free >> 20, .reserve.div_ceil(1 << 20)
    )]
    NoRoom { dir: PathBuf, needed: u64, free: u64, reserve: u64 },
    #[error("the index cannot be read: {0}")]
    Unreadable(String),
}

impl IndexError {
    /// Whether the caller no longer wanted it.
    pub fn is_cancelled(&self) -> bool {
        matches!(self, Self::Backend { error, .. } if error.code() == ErrorCode::CANCELLED)
    }
}

/// Why a snapshot or a segment is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    /// It vanished: another process has just replaced it.
    #[error("it is gone")]
    Gone,
    /// It is whole, but not what is asked for now.
    #[error("{0}")]
    Stale(String),
    /// Its files are not as they were written.
    #[error("{0}")]
    Damaged(String),
    /// Its files cannot be read just now, which says nothing about them.
    #[error("{0}")]
    Unreadable(String),
    /// The caller no longer wants to know.
    #[error("{0}")]
    Cancelled(ApiError),
    /// The plugin itself is not to be had.
    #[error(transparent)]
    Plugin(PluginError),
}
