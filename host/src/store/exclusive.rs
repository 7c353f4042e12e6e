//! Who has the database open: any number of stores, or one who puts another file in its place.
//! SQLite's own locks belong to the file, and so cannot order a change of the file.
use super::{StoreError, with_suffix};
use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Held by who may put another file in the place of the database: no store has it open.
#[derive(Debug)]
pub struct Exclusive {
    _lock: File,
}

impl Exclusive {
    /// Takes the database at `path`, whose folder must be there.
    ///
    /// # Errors
    /// `InUse` where anybody has it open, `ReadOnly` where the folder may not be written.
    pub fn take(path: &Path) -> Result<Self, StoreError> {
        let denied = |error: std::io::Error| StoreError::ReadOnly {
            path: path.to_path_buf(),
            reason: error.to_string(),
        };
        let lock = create(path).map_err(denied)?;
        match lock.try_lock() {
            Ok(()) => Ok(Self { _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse { path: path.to_path_buf() }),
            Err(TryLockError::Error(error)) => Err(denied(error)),
        }
    }
}

/// Held as long as a store is open. None where the folder may not be written, so that nobody can
/// replace the database either, or where the file system has no locks.
///
/// # Errors
/// `Busy` where the database is being replaced for longer than `timeout`.
pub(super) fn share(path: &Path, timeout: Duration) -> Result<Option<File>, StoreError> {
    let Ok(lock) = create(path).or_else(|_| File::open(lock_path(path))) else { return Ok(None) };
    let started = Instant::now();
    loop {
        match lock.try_lock_shared() {
            Ok(()) => return Ok(Some(lock)),
            Err(TryLockError::WouldBlock) if started.elapsed() < timeout => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::WouldBlock) => return Err(StoreError::Busy { path: path.to_path_buf() }),
            Err(TryLockError::Error(error)) => {
                tracing::debug!("{} cannot be locked: {error}", lock_path(path).display());
                return Ok(None);
            }
        }
    }
}

fn create(database: &Path) -> std::io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(lock_path(database))
}

fn lock_path(database: &Path) -> PathBuf {
    with_suffix(database, ".lock")
}
