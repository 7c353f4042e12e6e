use super::hub::HubError;
use std::{
    io,
    path::{Path, PathBuf},
};

/// Why a model could not be found, fetched or checked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each says what it is in its message")]
pub enum ModelError {
    #[error(
        "'{0}' cannot be the name of a model; use letters, digits, dots, hyphens and underscores, and begin \
         with a letter or digit"
    )]
    BadName(String),

    #[error(
        "'{name}' is neither a known model{} nor a repository; `magray model list --available` shows the known \
         ones, any other is named OWNER/NAME",
        meant.map(|meant| format!(" (did you mean '{meant}'?)")).unwrap_or_default()
    )]
    NotKnown { name: String, meant: Option<&'static str> },

    #[error("there is no model '{name}' in {}", dir.display())]
    Missing { name: String, dir: PathBuf },

    #[error(
        "there is a model '{name}' already, from {source_of}; --name OTHER keeps both, \
         `magray model remove {name}` makes room"
    )]
    Exists { name: String, source_of: String },

    #[error(transparent)]
    Hub(#[from] HubError),

    #[error("{from} is no model that magray can use: {reason}")]
    Unusable { from: String, reason: String },

    #[error(
        "{from} is a model that none of magray's own backends runs: {reason}; --force takes it anyway, for a plugin of yours"
    )]
    Unsupported { from: String, reason: String },

    #[error("{} is damaged: {reason}; get it again", path.display())]
    Damaged { path: PathBuf, reason: String },

    #[error(
        "the model '{0}' has no manifest to check it against, since `magray model` did not put it there; \
         `magray model import` of its folder, under another name, writes one"
    )]
    NoManifest(String),

    #[error("{} takes {need} bytes more, and {} has {free} left; make room, or choose another --data-dir", what, dir.display())]
    NoSpace { what: String, dir: PathBuf, need: u64, free: u64 },

    #[error("cannot {what} {}: {error}", path.display())]
    Io { what: &'static str, path: PathBuf, error: io::Error },

    #[error("interrupted; a download goes on from there when the same command is given again")]
    Interrupted,
}

/// Makes the error of what was tried with `path`.
pub(super) fn io_error(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ModelError {
    let path = path.to_owned();
    move |error| ModelError::Io { what, path, error }
}

pub(super) fn damaged(path: &Path, reason: impl Into<String>) -> ModelError {
    ModelError::Damaged { path: path.to_owned(), reason: reason.into() }
}
