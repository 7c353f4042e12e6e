//! Connections: how one is set up, and the pool of those that read.
use super::{
    Durability, StoreOptions,
    bm25::{self, Lengths},
    error::{Fault, StoreError},
    schema, with_suffix,
};
use rusqlite::{Connection, ErrorCode, OpenFlags, config::DbConfig};
use std::{
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Bytes of a page of a new database. Vectors of 768 and 1024 numbers waste half of a 4 KiB page.
const PAGE_SIZE: i64 = 8192;

/// KiB of pages that the writer may keep in memory.
const WRITER_CACHE_KIB: i64 = 32 * 1024;

/// Prepared statements that a connection keeps.
const STATEMENTS: usize = 64;

/// Readers that are kept open while nobody uses them. One that is opened anew reads the schema and plans its statements,
/// which takes longer than a search.
const IDLE_READERS: usize = 32;

/// Opens the connection that writes; makes the database, or migrates it, where needed.
pub(super) fn open_writer(path: &Path, options: &StoreOptions) -> Result<Connection, Fault> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let mut connection = open(path, flags, options)?;
    // Looks before it writes: the file may be of another program.
    if schema::version(&connection, path)? == 0 {
        connection.pragma_update(None, "page_size", PAGE_SIZE)?;
    }
    enter_wal(&connection, options.busy_timeout)?;
    let synchronous = match options.durability {
        Durability::Full => "FULL",
        Durability::Normal => "NORMAL",
    };
    connection.pragma_update(None, "synchronous", synchronous)?;
    // Only macOS knows it: there a plain fsync does not reach the platter.
    connection.pragma_update(None, "fullfsync", true)?;
    connection.pragma_update(None, "cache_size", -WRITER_CACHE_KIB)?;
    // Keeps what a savepoint may have to undo in memory, not in a file.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // The writer thread checkpoints after it has answered.
    connection.pragma_update(None, "wal_autocheckpoint", 0)?;
    schema::migrate(&mut connection, path)?;
    Ok(connection)
}

pub(super) fn open(path: &Path, flags: OpenFlags, options: &StoreOptions) -> Result<Connection, Fault> {
    let connection = Connection::open_with_flags(path, flags)?;
    connection.busy_timeout(options.busy_timeout)?;
    connection.set_prepared_statement_cache_capacity(STATEMENTS);
    // Else a statement is planned anew for each value of a parameter in a range, those of FTS5 too.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    Ok(connection)
}

/// Opens a file that nobody changes, without a lock or a log beside it.
pub(super) fn open_unchanging(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(immutable_uri(path), flags | OpenFlags::SQLITE_OPEN_URI)
}

/// Switches to the write-ahead log. SQLite does not wait for the lock that this needs, so we do.
pub(super) fn enter_wal(connection: &Connection, timeout: Duration) -> rusqlite::Result<()> {
    let started = Instant::now();
    loop {
        match connection.pragma_update_and_check(None, "journal_mode", "wal", |_| Ok(())) {
            Err(error)
                if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy)
                    && started.elapsed() < timeout =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            done => return done,
        }
    }
}

/// Connections that read, as many as there are readers at once.
#[derive(Debug)]
pub(super) struct Readers {
    path: PathBuf,
    options: StoreOptions,
    lengths: Lengths,
    idle: Mutex<Vec<Connection>>,
}

impl Readers {
    pub(super) fn new(path: &Path, options: &StoreOptions) -> Self {
        let (path, options) = (path.to_path_buf(), options.clone());
        Self { path, options, lengths: Lengths::default(), idle: Mutex::default() }
    }

    /// Runs `work` in one read transaction: all that it reads is of one moment, and no writer waits.
    pub(super) fn read<T>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        self.try_read(work).map_err(|fault| fault.at(&self.path))
    }

    fn try_read<T>(&self, work: impl FnOnce(&Connection) -> Result<T, Fault>) -> Result<T, Fault> {
        let idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let connection = match idle {
            Some(connection) => connection,
            None => {
                let connection = self.open()?;
                bm25::register(&connection, &self.lengths)?;
                connection
            }
        };
        // Not rusqlite's transaction, which has both statements parsed each time.
        connection.prepare_cached("BEGIN")?.execute([])?;
        let result = work(&connection);
        connection.prepare_cached("COMMIT")?.execute([])?;
        let mut idle = self.idle.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_READERS {
            idle.push(connection);
        }
        result
    }

    /// Closes the connections that nobody uses.
    pub(super) fn close_idle(&self) {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn open(&self) -> Result<Connection, Fault> {
        if self.options.read_only {
            return self.open_read_only();
        }
        // The log's shared memory has to be written even to read.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = open(&self.path, flags, &self.options)?;
        connection.pragma_update(None, "query_only", true)?;
        Ok(connection)
    }

    fn open_read_only(&self) -> Result<Connection, Fault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = open(&self.path, flags, &self.options)?;
        match connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(())) {
            Ok(()) => Ok(connection),
            // The log's shared memory cannot be made in a folder that may not be written. Without a
            // log the file is all there is. What another user writes meanwhile may be missed.
            Err(error) if cannot_make_log(&error) && self.has_no_log() => {
                open(&immutable_uri(&self.path), flags | OpenFlags::SQLITE_OPEN_URI, &self.options)
            }
            Err(error) => Err(error.into()),
        }
    }

    fn has_no_log(&self) -> bool {
        std::fs::metadata(with_suffix(&self.path, "-wal")).map_or(true, |log| log.len() == 0)
    }
}

fn cannot_make_log(error: &rusqlite::Error) -> bool {
    matches!(error.sqlite_error_code(), Some(ErrorCode::CannotOpen | ErrorCode::ReadOnly))
}

/// The name by which SQLite opens a file that nobody changes.
fn immutable_uri(path: &Path) -> PathBuf {
    let mut uri = "file:".to_owned();
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte))
            }
            byte => uri.push_str(&format!("%{byte:02X}")),
        }
    }
    uri.push_str("?immutable=1");
    uri.into()
}
