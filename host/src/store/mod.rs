//! The durable store: one SQLite database that everything else is derived from. Only this module
//! speaks SQL.
//!
//! - Writes go through one thread that commits them in groups (`writer.rs`); a call returns when its
//!   data is durable. Other processes may write to the same file: SQLite's lock orders them.
//! - Reads take a connection of their own and see one moment of the database; they never block.
//! - An index follows the store by the change log of its space and layer (`changes.rs`).
mod access;
mod active;
mod add;
mod backup;
mod bm25;
mod cache;
mod changes;
mod commits;
mod connection;
mod error;
mod exclusive;
mod export;
mod filter;
#[cfg(test)]
pub(crate) mod fixture;
mod ids;
mod import;
mod keywords;
mod layer;
#[cfg(test)]
mod model_test;
mod parity;
mod portable;
mod promotions;
mod record;
mod records;
mod room;
mod schema;
mod sources;
mod standing;
mod stats;
mod supersede;
mod terms;
mod vectors;
mod writer;

pub use active::{ActiveModel, MissingTexts, SpaceUse};
pub use add::{Added, Outcome};
pub use backup::{
    BackupManifest, BackupProgress, BackupStep, OnBackupProgress, read_backup_manifest, replace_database,
    sync_folder, unpack_backup, verify_backup,
};
pub use cache::{
    CacheCounts, CacheKey, CacheSpace, CacheSpaceStats, DiskCache, DiskCacheOptions, DiskCacheStats,
    LookupWindow, Lookups,
};
pub use changes::{Changed, Changes};
pub use commits::Commit;
pub use error::StoreError;
pub use exclusive::Exclusive;
pub use filter::Filter;
pub use ids::IdSet;
pub use import::{ImportDefaults, ImportRecord, Imported};
pub use layer::Layer;
pub use parity::ParityReference;
pub use portable::{PortableRecord, PortableVector};
pub use promotions::{
    Candidate, CycleNote, CycleRecord, Move, Moved, PromotionRecord, Score, Skipped, Stay, Undone,
};
pub use record::{Arrival, NewRecord, Record, RecordId, SourceRef};
pub(crate) use room::free_where_short;
pub use sources::{NewSource, Source, SourceOutcome};
pub use standing::Standing;
pub use stats::{LayerStats, StoreStats};
pub use terms::{query_terms, text_terms};
pub use vectors::{Space, SpaceId};

use access::Accesses;
use connection::Readers;
use error::Fault;
use rusqlite::{Connection, ffi};
use std::{
    path::{Path, PathBuf},
    sync::OnceLock,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use writer::{Pending, Writer};

/// What an acknowledged write survives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Durability {
    /// `kill -9` and power loss: every transaction waits for the disk.
    #[default]
    Full,
    /// `kill -9`. Power loss may take back the last transactions, never damage the database.
    Normal,
}

/// How to open a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreOptions {
    /// What an acknowledged write survives.
    pub durability: Durability,
    /// How long to wait for another process's transaction.
    pub busy_timeout: Duration,
    /// Refuse every write. The database must be there.
    pub read_only: bool,
}

impl Default for StoreOptions {
    fn default() -> Self {
        Self { durability: Durability::Full, busy_timeout: Duration::from_secs(5), read_only: false }
    }
}

/// The records, their vectors, tags and sources.
///
/// Threads: any number of calls at once; share it in an `Arc`. Every call blocks; reads for as
/// long as SQLite computes, writes until they are durable. Dropping it writes the accesses that
/// are still in memory.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    readers: Readers,
    accesses: Accesses,
    /// `None` where the store is read only.
    writer: Option<Writer>,
    id: OnceLock<[u8; 16]>,
    /// Goes last: then nothing of the database is open any more.
    _shared: Option<std::fs::File>,
}

impl Store {
    /// Opens the database at `path`. Unless read only, makes it and its folder where they are
    /// missing, and brings an older schema up to date.
    ///
    /// # Errors
    /// Any [`StoreError`] about the file. A file that is no database of ours, is damaged, or comes
    /// from a newer version is left as it is.
    pub fn open(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        if !options.read_only {
            create_folder(path)?;
        } else if !path.exists() {
            return Err(StoreError::Missing { path: path.to_path_buf() });
        }
        let shared = exclusive::share(path, options.busy_timeout)?;
        let readers = Readers::new(path, options);
        let writer = if options.read_only {
            let version = readers.read(|db| schema::version(db, path))?;
            if version < schema::VERSION {
                let reason = format!("its schema of version {version} must first become {}", schema::VERSION);
                return Err(StoreError::ReadOnly { path: path.to_path_buf(), reason });
            }
            None
        } else {
            Some(Writer::start(path, options)?)
        };
        let (path, accesses) = (path.to_path_buf(), Accesses::new());
        Ok(Self { path, readers, accesses, writer, id: OnceLock::new(), _shared: shared })
    }

    /// What tells this database from every other, even from one that is made at the same path when
    /// this one is gone. A copy of the file has the same.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn id(&self) -> Result<[u8; 16], StoreError> {
        if let Some(id) = self.id.get() {
            return Ok(*id);
        }
        let id = self.read(|db| Ok(db.query_row("SELECT database_id FROM meta", [], |row| row.get(0))?))?;
        Ok(*self.id.get_or_init(|| id))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Calls `listener` after each transaction of this store, on the thread that writes and before the
    /// writes are acknowledged, once for each space and layer whose vectors changed. It must be quick
    /// and must not write. One that returns false is not called again.
    pub fn on_commit(&self, listener: impl Fn(&Commit) -> bool + Send + 'static) {
        if let Some(writer) = &self.writer {
            writer.listeners().add(Box::new(listener));
        }
    }

    /// Gives back memory that it holds to be quicker: pages of the database, and connections that nobody uses.
    ///
    /// # Errors
    /// What SQLite says; the writer keeps its pages while another process writes.
    pub fn release_memory(&self) -> Result<(), StoreError> {
        self.readers.close_idle();
        match &self.writer {
            Some(writer) => writer.submit_if_free(|db| Ok(db.execute_batch("PRAGMA shrink_memory")?)).wait(),
            None => Ok(()),
        }
    }

    /// The largest id of a record, 0 where there is none: there are at most so many.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn last_record(&self) -> Result<u64, StoreError> {
        self.read(|db| {
            let last: Option<i64> = db.query_row("SELECT max(id) FROM records", [], |row| row.get(0))?;
            Ok(last.unwrap_or(0).unsigned_abs())
        })
    }

    /// Runs `work` in one read transaction.
    fn read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, StoreError> {
        self.readers.read(work)
    }

    /// Runs `work` in a write transaction, alone or with others, and waits until it is durable.
    fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<T, StoreError> {
        self.submit(work)?.wait()
    }

    /// Queues `work` for a write transaction.
    fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Result<Pending<T>, StoreError> {
        let Some(writer) = &self.writer else {
            let reason = "it was opened to read only".to_owned();
            return Err(StoreError::ReadOnly { path: self.path.clone(), reason });
        };
        Ok(writer.submit(work))
    }
}

/// Bytes of the pages that SQLite keeps in this process, of all databases. What it holds beside them it does not count
/// (`.cargo/config.toml`): all threads would meet at that counter.
pub fn sqlite_memory() -> u64 {
    let (mut now, mut highest) = (0, 0);
    // SAFETY: it writes two numbers where it is told to, under SQLite's own lock.
    let read =
        unsafe { ffi::sqlite3_status64(ffi::SQLITE_STATUS_PAGECACHE_OVERFLOW, &mut now, &mut highest, 0) };
    if read == ffi::SQLITE_OK { u64::try_from(now).unwrap_or(0) } else { 0 }
}

/// Makes the folder of the database where it is missing. Nobody else may look into a new one.
pub(crate) fn create_folder(database: &Path) -> Result<(), StoreError> {
    let Some(folder) = database.parent() else { return Ok(()) };
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder
        .recursive(true)
        .create(folder)
        .map_err(|error| StoreError::Folder { path: folder.to_path_buf(), reason: error.to_string() })
}

/// The path of a file that stands beside another and is called after it.
fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::{fixture::*, *};
    use std::{fs, sync::mpsc};

    const READ_ONLY: fn() -> StoreOptions = || StoreOptions { read_only: true, ..StoreOptions::default() };

    #[test]
    fn what_was_added_is_there_after_it_is_opened_again() {
        let f = Fixture::new();
        let added = f.store.add(None, vec![note("the tide is high")]).unwrap();
        let f = f.reopen(&StoreOptions::default());
        assert_eq!(f.store.get(&added[0].ulid).unwrap().unwrap().text, "the tide is high");
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_read_only_store_reads_and_refuses_to_write() {
        let f = Fixture::new();
        f.store.add(None, vec![note("a")]).unwrap();
        let reader = Store::open(f.store.path(), &READ_ONLY()).unwrap();
        let records = reader.list(&Filter::default(), 10, 0).unwrap();
        assert_eq!(records.len(), 1);
        reader.touch(&[records[0].id], 1);
        reader.flush().unwrap();
        let error = reader.add(None, vec![note("b")]).unwrap_err();
        assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
        assert_eq!(reader.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn each_database_has_an_id_of_its_own_that_stays() {
        let f = Fixture::new();
        let id = f.store.id().unwrap();
        assert_ne!(id, Fixture::new().store.id().unwrap());
        let f = f.reopen(&READ_ONLY());
        assert_eq!(f.store.id(), Ok(id));
    }

    #[cfg(unix)]
    #[test]
    fn a_new_folder_is_its_owners_alone_and_another_is_left_as_it_is() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        let open = |path: &Path| Store::open(&path.join("magray.db"), &NORMAL).unwrap();
        let (new, shared) = (folder.path().join("new"), folder.path().join("shared"));
        open(&new);
        assert_eq!(mode(&new), 0o700);
        fs::create_dir(&shared).unwrap();
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).unwrap();
        open(&shared);
        assert_eq!(mode(&shared), 0o755);
    }

    #[test]
    fn a_missing_database_is_made_unless_read_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/down/magray.db");
        let error = Store::open(&path, &READ_ONLY()).unwrap_err();
        assert_eq!(error, StoreError::Missing { path: path.clone() });
        assert!(!path.exists());
        Store::open(&path, &StoreOptions::default()).unwrap();
        Store::open(&path, &READ_ONLY()).unwrap();
    }

    #[test]
    fn an_empty_file_is_a_new_database_but_not_to_read_only() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("magray.db");
        fs::write(&path, "").unwrap();
        assert!(matches!(Store::open(&path, &READ_ONLY()), Err(StoreError::ReadOnly { .. })));
        Store::open(&path, &StoreOptions::default()).unwrap().add(None, vec![note("a")]).unwrap();
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("file"), "").unwrap();
        let error = Store::open(&folder.path().join("file/magray.db"), &StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::Folder { .. }), "{error}");
        assert!(error.to_string().contains("file"), "{error}");
    }

    #[test]
    fn a_folder_in_place_of_the_file_cannot_be_opened() {
        let folder = tempfile::tempdir().unwrap();
        let error = Store::open(folder.path(), &StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::CannotOpen { .. }), "{error}");
    }

    #[test]
    fn a_file_that_is_no_database_is_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("magray.db");
        let text = "Dear diary, ".repeat(1000);
        fs::write(&path, &text).unwrap();
        for options in [StoreOptions::default(), READ_ONLY()] {
            let error = Store::open(&path, &options).unwrap_err();
            assert!(matches!(error, StoreError::NotADatabase { .. }), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), text);
    }

    #[test]
    fn a_damaged_database_is_reported_and_kept() {
        let f = Fixture::new();
        let texts = (0..2000).map(|n| note(&format!("{n} {}", "word ".repeat(50)))).collect();
        f.store.add(None, texts).unwrap();
        let (path, folder) = f.close();
        let mut bytes = fs::read(&path).unwrap();
        let third = bytes.len() / 3;
        bytes[third..2 * third].fill(0xa5);
        fs::write(&path, &bytes).unwrap();

        let store = Store::open(&path, &StoreOptions::default()).unwrap();
        let error = store.list(&Filter::default(), usize::MAX, 0).unwrap_err();
        assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
        assert_ne!(store.check().unwrap(), Vec::<String>::new());
        drop(store);
        assert_eq!(fs::read(&path).unwrap().len(), bytes.len());
        drop(folder);
    }

    #[test]
    fn two_stores_write_to_one_file_at_once() {
        let f = Fixture::new();
        let other = Store::open(f.store.path(), &NORMAL).unwrap();
        std::thread::scope(|scope| {
            for (at, store) in [&f.store, &other, &f.store, &other].into_iter().enumerate() {
                scope.spawn(move || {
                    for n in 0..50 {
                        // Every text is added by two threads, one a store.
                        store.add(None, vec![note(&format!("{} {n}", at / 2))]).unwrap();
                    }
                });
            }
        });
        for store in [&f.store, &other] {
            assert_eq!(store.count(&Filter::default()).unwrap(), 100);
            assert_eq!(store.check().unwrap(), Vec::<String>::new());
        }
    }

    #[test]
    fn many_may_make_the_database_at_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("magray.db");
        std::thread::scope(|scope| {
            for n in 0..8 {
                let path = &path;
                scope.spawn(move || {
                    let store = Store::open(path, &NORMAL).unwrap();
                    store.add(None, vec![note(&n.to_string())]).unwrap();
                });
            }
        });
        assert_eq!(Store::open(&path, &NORMAL).unwrap().count(&Filter::default()).unwrap(), 8);
    }

    #[test]
    fn readers_do_not_wait_for_a_writer() {
        let f = Fixture::new();
        f.store.add(None, vec![note("a")]).unwrap();
        let (release, released) = mpsc::channel::<()>();
        let (started, running) = mpsc::channel();
        let pending = f
            .store
            .submit(move |db| {
                db.execute("DELETE FROM records", [])?;
                started.send(()).unwrap();
                released.recv().unwrap();
                Ok(())
            })
            .unwrap();
        running.recv().unwrap();
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 1);
        release.send(()).unwrap();
        pending.wait().unwrap();
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 0);
    }

    #[test]
    fn a_database_that_stays_locked_is_an_error() {
        let f = Fixture::new();
        let options = StoreOptions { busy_timeout: Duration::from_millis(20), ..NORMAL };
        let waiting = Store::open(f.store.path(), &options).unwrap();
        let holder = Connection::open(f.store.path()).unwrap();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        let error = waiting.add(None, vec![note("a")]).unwrap_err();
        assert!(matches!(error, StoreError::Busy { .. }), "{error}");
        holder.execute_batch("ROLLBACK").unwrap();
        waiting.add(None, vec![note("a")]).unwrap();
    }
}
