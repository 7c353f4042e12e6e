use rusqlite::ErrorCode;
use std::path::{Path, PathBuf};

/// Why the store did not do what it was asked. Each message names the file and the remedy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The folder of the database cannot be made.
    #[error("cannot create the folder {}: {reason}; choose another data folder or make its parent writable", .path.display())]
    Folder {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        reason: String,
    },
    /// A read-only store needs a database that is there.
    #[error("there is no database at {}; add a record first, or choose another data folder", .path.display())]
    Missing {
        /// The database.
        path: PathBuf,
    },
    /// A newer magray wrote the database. Nothing was changed.
    #[error("{} has schema version {found}, and this magray knows versions up to {supported}; use a newer magray, or another data folder", .path.display())]
    NewerSchema {
        /// The database.
        path: PathBuf,
        /// Version of the file.
        found: i64,
        /// The newest version that this program knows.
        supported: i64,
    },
    /// The file is something else. Nothing was changed.
    #[error("{} is not a magray database ({reason}); move it away, or choose another data folder", .path.display())]
    NotADatabase {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The database is damaged. It is left as it is.
    #[error("{} is damaged ({reason}); keep a copy of it, then restore a backup", .path.display())]
    Damaged {
        /// The database.
        path: PathBuf,
        /// What SQLite found.
        reason: String,
    },
    /// The database or its folder cannot be written, or the store was opened to read only.
    #[error("{} cannot be written ({reason}); make the file and its folder writable, or choose another data folder", .path.display())]
    ReadOnly {
        /// The database.
        path: PathBuf,
        /// What is in the way.
        reason: String,
    },
    /// The file cannot be opened or created.
    #[error("{} cannot be opened ({reason}); check that file and folder may be read and written", .path.display())]
    CannotOpen {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        reason: String,
    },
    /// The disk is full. The request stored nothing.
    #[error("no room left to write {}; nothing of the request was stored; free some disk space and try again", .path.display())]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// Another process held the database locked for longer than the busy timeout.
    #[error("{} stayed locked by another process; try again, or raise store.busy_timeout_ms", .path.display())]
    Busy {
        /// The database.
        path: PathBuf,
    },
    /// The file must be ours alone for this, and another process has it open.
    #[error("{} is open in another process; end every magray that uses it, then try again", .path.display())]
    InUse {
        /// The database.
        path: PathBuf,
    },
    /// The file is no backup, or not what it was when it was made.
    #[error("{} is no whole backup ({reason}); take another one", .path.display())]
    NotABackup {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The thread that writes has ended; everything acknowledged is stored.
    #[error("the store has stopped after an internal error; restart magray")]
    Stopped,
    /// An argument cannot be.
    #[error("{0}")]
    InvalidInput(String),
    /// Several records have an id that begins so.
    #[error("'{prefix}' is the beginning of several ids; give more characters")]
    AmbiguousId {
        /// What was asked for.
        prefix: String,
    },
    /// Anything else; the request stored nothing.
    #[error("cannot use {}: {reason}", .path.display())]
    Failed {
        /// The database.
        path: PathBuf,
        /// What SQLite said.
        reason: String,
    },
}

impl StoreError {
    pub(super) fn invalid(message: impl Into<String>) -> Self {
        Self::InvalidInput(message.into())
    }

    pub(super) fn from_sqlite(path: &Path, error: &rusqlite::Error) -> Self {
        let path = path.to_path_buf();
        let reason = error.to_string();
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy { path },
            Some(ErrorCode::DiskFull) => Self::Full { path },
            Some(ErrorCode::NotADatabase) => Self::NotADatabase { path, reason },
            Some(ErrorCode::DatabaseCorrupt) => Self::Damaged { path, reason },
            Some(ErrorCode::ReadOnly) => Self::ReadOnly { path, reason },
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied) => Self::CannotOpen { path, reason },
            _ => Self::Failed { path, reason },
        }
    }
}

/// What the work inside a transaction fails with: [`StoreError`] where it knows better than SQLite.
#[derive(Debug)]
pub(super) enum Fault {
    Sqlite(rusqlite::Error),
    Store(StoreError),
    /// What is stored cannot be.
    Damaged(String),
}

impl Fault {
    /// The error for the caller, with the file that it is about.
    pub(super) fn at(self, path: &Path) -> StoreError {
        match self {
            Self::Sqlite(error) => StoreError::from_sqlite(path, &error),
            Self::Store(error) => error,
            Self::Damaged(reason) => StoreError::Damaged { path: path.to_path_buf(), reason },
        }
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sqlite(error)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}
