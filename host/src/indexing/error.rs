use crate::{plugins::PluginError, store::StoreError};
use magray_plugin_api::Error as ApiError;
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
    #[error("cannot write the index snapshot {}: {error}", path.display())]
    Write { path: PathBuf, error: io::Error },
}

/// Why a snapshot is not used.
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
    /// The plugin itself is not to be had.
    #[error(transparent)]
    Plugin(PluginError),
}
