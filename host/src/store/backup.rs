//! Backups: one file that is a whole SQLite database and, behind it, a footer that proves it.
//!
//! ```text
//! the database, as SQLite writes it      manifest.bytes
//! manifest, JSON                         length
//! length, little-endian u64              8
//! MAGIC                                  16
//! ```
//!
//! SQLite takes its length from the header of a database and does not mind what follows, so any
//! SQLite tool reads a backup as it is.
use super::{
    LayerStats, Store, StoreError, connection,
    error::Fault,
    now_ms, schema,
    stats::{check_tables, count_layers},
    with_suffix,
};
use rusqlite::{
    Connection, OpenFlags,
    backup::{Backup, StepResult},
};
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, SeekFrom, Write as _},
    ops::ControlFlow,
    path::Path,
    time::Duration,
};

/// The end of every backup.
const MAGIC: &[u8; 16] = b"\nmagray-backup1\n";
/// Bytes of the footer that say where it begins.
const TAIL: u64 = 8 + MAGIC.len() as u64;
/// A longer manifest is none.
const MAX_MANIFEST: u64 = 1 << 20;
/// Pages copied at a time: 2 MiB of the usual 8 KiB.
const STEP_PAGES: i32 = 256;
/// Bytes read at a time.
const CHUNK: usize = 1 << 20;

/// What a backup holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupManifest {
    /// Version of the program that made it.
    pub magray: String,
    /// The moment that it shows, in milliseconds since 1970.
    pub created_ms: u64,
    /// Version of its schema.
    pub schema_version: i64,
    /// Records and vectors of each layer.
    pub layers: Vec<LayerStats>,
    /// Files that records were taken from.
    pub sources: u64,
    /// Bytes of the database.
    pub bytes: u64,
    /// BLAKE3 of these bytes, in hexadecimal digits.
    pub blake3: String,
}

impl BackupManifest {
    /// Records in all layers.
    pub fn records(&self) -> u64 {
        self.layers.iter().map(|layer| layer.records).sum()
    }
}

/// How far a backup or a restore is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackupProgress {
    /// What is being done.
    pub step: BackupStep,
    /// Bytes done of it.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// What is being done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackupStep {
    /// The database is copied.
    Copy,
    /// SQLite looks for damage; how far it is nobody knows.
    Check,
    /// The bytes are digested.
    Digest,
}

/// Told how far it is; ends it by `Break`.
pub type OnBackupProgress<'a> = dyn FnMut(BackupProgress) -> ControlFlow<()> + 'a;

impl Store {
    /// Writes the database, as it is at one moment, to the file `to`, which must be empty or missing;
    /// others read and write meanwhile. The copy is then checked, counted and sealed with its digest.
    /// While it is made the write-ahead log of the database cannot be emptied.
    /// `None` where `progress` broke it off; `to` is then of no use.
    ///
    /// # Errors
    /// `Full` and others about `to`, `Damaged` where the database is.
    pub fn backup(
        &self,
        to: &Path,
        progress: &mut OnBackupProgress<'_>,
    ) -> Result<Option<BackupManifest>, StoreError> {
        let about = |fault: Fault| fault.at(to);
        let mut copy = Connection::open(to).map_err(|error| StoreError::from_sqlite(to, &error))?;
        // Of use to nobody until it is whole and synced, so there is nothing to undo.
        copy.execute_batch("PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF;")
            .map_err(|error| about(error.into()))?;
        let manifest = self.read(|db| {
            // Counted first, so that the read transaction has begun: the copy shows the same moment,
            // however much is committed while it is made.
            let manifest = BackupManifest {
                magray: env!("CARGO_PKG_VERSION").to_owned(),
                created_ms: now_ms(),
                schema_version: schema::version(db, &self.path)?,
                layers: count_layers(db)?,
                sources: db.query_row("SELECT count(*) FROM sources", [], |row| row.get(0))?,
                bytes: 0,
                blake3: String::new(),
            };
            Ok(copy_pages(db, &mut copy, progress)
                .map_err(|fault| self.blame(fault, to))?
                .then_some(manifest))
        })?;
        let Some(mut manifest) = manifest else { return Ok(None) };
        // A file of its own, which is read without a log beside it.
        copy.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))
            .map_err(|error| about(error.into()))?;
        copy.close().map_err(|(_, error)| about(error.into()))?;
        manifest.bytes = fs::metadata(to).map_err(io_error(to))?.len();
        if step(progress, BackupStep::Check, 0, manifest.bytes).is_break() {
            return Ok(None);
        }
        check(to, &manifest)?;
        let Some(hasher) = digest(to, manifest.bytes, progress)? else { return Ok(None) };
        manifest.blake3 = hasher.finalize().to_hex().to_string();
        seal(to, &manifest).map_err(io_error(to))?;
        Ok(Some(manifest))
    }

    /// Damage is of the database that is read, all else of the file that is written.
    fn blame(&self, fault: Fault, to: &Path) -> StoreError {
        match fault.at(to) {
            StoreError::Damaged { reason, .. } => StoreError::Damaged { path: self.path.clone(), reason },
            error => error,
        }
    }
}

/// Copies every page; `false` where it was broken off.
fn copy_pages(
    from: &Connection,
    to: &mut Connection,
    progress: &mut OnBackupProgress<'_>,
) -> Result<bool, Fault> {
    let page: u64 = from.query_row("PRAGMA page_size", [], |row| row.get(0))?;
    let backup = Backup::new(from, to)?;
    loop {
        let result = backup.step(STEP_PAGES)?;
        let pages = backup.progress();
        let [total, left] =
            [pages.pagecount, pages.remaining].map(|pages| u64::try_from(pages).unwrap_or(0) * page);
        if step(progress, BackupStep::Copy, total.saturating_sub(left), total).is_break() {
            return Ok(false);
        }
        match result {
            StepResult::Done => return Ok(true),
            StepResult::More => {}
            // Nobody else knows of the copy, and a reader waits for nobody.
            _ => return Err(Fault::Damaged("SQLite found a page of its own locked".to_owned())),
        }
    }
}

/// What the file says that it holds, without a look at the rest of it.
///
/// # Errors
/// [`StoreError::NotABackup`].
pub fn read_backup_manifest(backup: &Path) -> Result<BackupManifest, StoreError> {
    let read = || -> io::Result<Option<BackupManifest>> {
        let mut file = File::open(backup)?;
        let length = file.metadata()?.len();
        let Some(tail) = length.checked_sub(TAIL) else { return Ok(None) };
        file.seek(SeekFrom::Start(tail))?;
        let (mut size, mut magic) = ([0; 8], [0; MAGIC.len()]);
        file.read_exact(&mut size)?;
        file.read_exact(&mut magic)?;
        let size = u64::from_le_bytes(size);
        let Some(begin) = tail.checked_sub(size).filter(|_| magic == *MAGIC && size <= MAX_MANIFEST) else {
            return Ok(None);
        };
        file.seek(SeekFrom::Start(begin))?;
        let mut manifest = Vec::new();
        file.take(size).read_to_end(&mut manifest)?;
        let manifest: Option<BackupManifest> = serde_json::from_slice(&manifest).ok();
        Ok(manifest.filter(|manifest| manifest.bytes == begin))
    };
    let reason = match read() {
        Ok(Some(manifest)) => return Ok(manifest),
        Ok(None) => "it does not end as one: it is something else, or was cut short".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(StoreError::NotABackup { path: backup.to_path_buf(), reason })
}

/// Checks a backup: its digest, its soundness, its counts. `None` where `progress` broke it off.
///
/// # Errors
/// `NotABackup`, or `NewerSchema` where this program is too old for it.
pub fn verify_backup(
    backup: &Path,
    progress: &mut OnBackupProgress<'_>,
) -> Result<Option<BackupManifest>, StoreError> {
    let manifest = read_backup_manifest(backup)?;
    if manifest.schema_version > schema::VERSION {
        let (path, found, supported) = (backup.to_path_buf(), manifest.schema_version, schema::VERSION);
        return Err(StoreError::NewerSchema { path, found, supported });
    }
    let Some(hasher) = digest(backup, manifest.bytes, progress)? else { return Ok(None) };
    ensure_digest(backup, &manifest, &hasher)?;
    if step(progress, BackupStep::Check, 0, manifest.bytes).is_break() {
        return Ok(None);
    }
    check(backup, &manifest)?;
    Ok(Some(manifest))
}

/// Writes the database of a backup that was verified to the new file `to`, brings it up to date and
/// gives it an id of its own: its history parts from that of the database it was made of, so what was
/// derived from that must not be taken for its own. `None` where `progress` broke it off.
///
/// # Errors
/// `NotABackup` where the bytes are others than when it was made; `Full` and others about `to`.
pub fn unpack_backup(
    backup: &Path,
    to: &Path,
    progress: &mut OnBackupProgress<'_>,
) -> Result<Option<BackupManifest>, StoreError> {
    let manifest = read_backup_manifest(backup)?;
    let mut hasher = blake3::Hasher::new();
    let file = File::open(backup).map_err(io_error(backup))?;
    let mut out = File::create(to).map_err(io_error(to))?;
    let whole = each_chunk(file, manifest.bytes, BackupStep::Copy, progress, |bytes| {
        hasher.update(bytes);
        out.write_all(bytes)
    });
    if whole.map_err(io_error(to))?.is_break() {
        return Ok(None);
    }
    drop(out);
    ensure_digest(backup, &manifest, &hasher)?;
    let fit = || -> Result<(), Fault> {
        let mut database = Connection::open(to)?;
        schema::migrate(&mut database, to)?;
        database.execute("UPDATE meta SET database_id = randomblob(16)", [])?;
        ensure_counts(&database, &manifest)?;
        database.close().map_err(|(_, error)| error)?;
        Ok(())
    };
    fit().map_err(|fault| fault.at(to))?;
    File::open(to).and_then(|file| file.sync_all()).map_err(io_error(to))?;
    Ok(Some(manifest))
}

/// Puts the database file `new` in the place of `database`, whose former content is then called `keep`.
/// At any moment one of the two, whole, is in place. The caller holds the [`super::Exclusive`] of `database`.
/// Returns whether there was something to keep.
///
/// # Errors
/// `InUse` where a program that knows nothing of our lock has it open; `Failed`.
pub fn replace_database(database: &Path, new: &Path, keep: &Path) -> Result<bool, StoreError> {
    let there = database.exists();
    if there {
        fold_log(database)?;
        keep_as(database, keep).map_err(io_error(keep))?;
    }
    // Left where the former database is damaged. SQLite would take them for those of the new one.
    for suffix in ["-wal", "-shm", "-journal"] {
        let (beside, kept) = (with_suffix(database, suffix), with_suffix(keep, suffix));
        if beside.exists() {
            fs::rename(&beside, kept).map_err(io_error(&beside))?;
        }
    }
    fs::rename(new, database).map_err(io_error(database))?;
    sync_folder(database);
    Ok(there)
}

/// Writes the log into the database, which then is one file. A damaged one stays as it is.
fn fold_log(database: &Path) -> Result<(), StoreError> {
    let fold = || -> rusqlite::Result<()> {
        let db = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_WRITE)?;
        db.busy_timeout(Duration::ZERO)?;
        db.pragma_update_and_check(None, "locking_mode", "EXCLUSIVE", |_| Ok(()))?;
        // Needs to be the only one that has it open.
        db.pragma_update_and_check(None, "journal_mode", "DELETE", |_| Ok(()))
    };
    match fold().map_err(|error| StoreError::from_sqlite(database, &error)) {
        Err(StoreError::Busy { path }) => Err(StoreError::InUse { path }),
        Err(error) => {
            tracing::warn!("the former database is kept as it is: {error}");
            Ok(())
        }
        Ok(()) => Ok(()),
    }
}

/// A second name where the file system has such, else a copy.
fn keep_as(database: &Path, keep: &Path) -> io::Result<()> {
    match fs::hard_link(database, keep) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Err(error),
        Err(_) => {
            fs::copy(database, keep)?;
            File::open(keep)?.sync_all()
        }
        Ok(()) => Ok(()),
    }
}

/// A name in a folder lasts once the folder is on disk; not every system can be asked for it.
pub fn sync_folder(file: &Path) {
    if let Some(folder) = file.parent()
        && let Err(error) = File::open(folder).and_then(|folder| folder.sync_all())
    {
        tracing::debug!("cannot sync {}: {error}", folder.display());
    }
}

/// Whether the copy is sound and holds what its manifest says.
fn check(path: &Path, manifest: &BackupManifest) -> Result<(), StoreError> {
    let look = || -> Result<Vec<String>, Fault> {
        let db = connection::open_unchanging(path)?;
        ensure_counts(&db, manifest)?;
        check_tables(&db, "PRAGMA integrity_check")
    };
    let reason = match look().map_err(|fault| fault.at(path)) {
        Ok(findings) => match findings.first() {
            None => return Ok(()),
            Some(first) => first.clone(),
        },
        Err(StoreError::Damaged { reason, .. }) => reason,
        Err(error) => return Err(error),
    };
    Err(StoreError::NotABackup { path: path.to_path_buf(), reason })
}

fn ensure_counts(db: &Connection, manifest: &BackupManifest) -> Result<(), Fault> {
    let layers = count_layers(db)?;
    if layers != manifest.layers {
        return Err(Fault::Damaged(format!("it has {layers:?} and should have {:?}", manifest.layers)));
    }
    Ok(())
}

/// Digests the first `bytes` of a file. `None` where `progress` broke it off.
fn digest(
    path: &Path,
    bytes: u64,
    progress: &mut OnBackupProgress<'_>,
) -> Result<Option<blake3::Hasher>, StoreError> {
    let mut hasher = blake3::Hasher::new();
    let file = File::open(path).map_err(io_error(path))?;
    let whole = each_chunk(file, bytes, BackupStep::Digest, progress, |bytes| {
        hasher.update(bytes);
        Ok(())
    });
    Ok(whole.map_err(io_error(path))?.is_continue().then_some(hasher))
}

fn ensure_digest(
    backup: &Path,
    manifest: &BackupManifest,
    hasher: &blake3::Hasher,
) -> Result<(), StoreError> {
    let found = hasher.finalize().to_hex();
    if found.as_str() == manifest.blake3 {
        return Ok(());
    }
    let reason = format!("its digest is {found} and was {} when it was made", manifest.blake3);
    Err(StoreError::NotABackup { path: backup.to_path_buf(), reason })
}

/// Reads `total` bytes.
fn each_chunk(
    mut file: File,
    total: u64,
    what: BackupStep,
    progress: &mut OnBackupProgress<'_>,
    mut take: impl FnMut(&[u8]) -> io::Result<()>,
) -> io::Result<ControlFlow<()>> {
    let (mut done, mut chunk) = (0, vec![0; CHUNK]);
    while done < total {
        let most = usize::try_from(total - done).map_or(CHUNK, |left| left.min(CHUNK));
        let read = file.read(&mut chunk[..most])?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        take(&chunk[..read])?;
        done += read as u64;
        if step(progress, what, done, total).is_break() {
            return Ok(ControlFlow::Break(()));
        }
    }
    Ok(ControlFlow::Continue(()))
}

fn step(progress: &mut OnBackupProgress<'_>, step: BackupStep, done: u64, total: u64) -> ControlFlow<()> {
    progress(BackupProgress { step, done, total })
}

/// Writes the footer, and waits until all is on disk.
fn seal(path: &Path, manifest: &BackupManifest) -> io::Result<()> {
    let mut footer = serde_json::to_vec(manifest)?;
    let length = footer.len() as u64;
    footer.extend(length.to_le_bytes());
    footer.extend(MAGIC);
    let mut file = OpenOptions::new().append(true).open(path)?;
    file.write_all(&footer)?;
    file.sync_all()
}

fn io_error(path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_path_buf();
    move |error| match error.kind() {
        io::ErrorKind::StorageFull => StoreError::Full { path },
        _ => StoreError::Failed { path, reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests;
