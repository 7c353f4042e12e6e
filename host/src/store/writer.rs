//! Group commit: one thread writes, and requests that wait while it commits share the next
//! transaction. Each is answered after its data is durable.
use super::{
    StoreOptions,
    commits::{self, Listeners},
    connection,
    error::{Fault, StoreError},
    with_suffix,
};
use rusqlite::{Connection, Transaction, TransactionBehavior};
use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, Sender},
    },
    thread::JoinHandle,
    time::Duration,
};

/// The most requests that share a transaction.
const MAX_GROUP: usize = 1024;

/// Bytes of the write-ahead log beyond which it is written back and emptied.
const WAL_LIMIT: u64 = 32 << 20;

/// Runs in the transaction, or is told why there is none, and leaves how to answer.
type Work = Box<dyn FnOnce(Result<&mut Transaction<'_>, StoreError>) -> Answer + Send>;

/// What a caller wants to be written.
struct Request {
    work: Work,
    /// Whether it waits for another process's transaction, or fails at once.
    waits: bool,
}

/// Answers a request once it is known whether the transaction is durable.
type Answer = Box<dyn FnOnce(Result<(), StoreError>)>;

/// What a caller waits for.
#[derive(Debug)]
pub(super) struct Pending<T>(Receiver<Result<T, StoreError>>);

impl<T> Pending<T> {
    /// Blocks until the data is durable or the request failed.
    pub(super) fn wait(self) -> Result<T, StoreError> {
        self.0.recv().unwrap_or_else(|_| Err(StoreError::Stopped))
    }
}

/// The thread that writes.
#[derive(Debug)]
pub(super) struct Writer {
    path: PathBuf,
    /// `None` only while it is dropped.
    requests: Option<Sender<Request>>,
    thread: Option<JoinHandle<()>>,
    commits: Arc<AtomicU64>,
    listeners: Arc<Listeners>,
}

impl Writer {
    /// Opens the database for writing and starts the thread.
    pub(super) fn start(path: &Path, options: &StoreOptions) -> Result<Self, StoreError> {
        let connection = connection::open_writer(path, options).map_err(|fault| fault.at(path))?;
        let (requests, queue) = mpsc::channel();
        let commits = Arc::new(AtomicU64::new(0));
        let listeners = Arc::new(Listeners::default());
        let worker = Worker {
            connection,
            path: path.to_path_buf(),
            busy_timeout: options.busy_timeout,
            commits: Arc::clone(&commits),
            listeners: Arc::clone(&listeners),
        };
        let thread = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || worker.run(&queue))
            .map_err(|error| StoreError::Failed { path: path.to_path_buf(), reason: error.to_string() })?;
        Ok(Self {
            path: path.to_path_buf(),
            requests: Some(requests),
            thread: Some(thread),
            commits,
            listeners,
        })
    }

    /// Queues `work`, which sees the database as all earlier requests left it. Where it fails, what
    /// it wrote is undone, and the others of its transaction are not touched.
    pub(super) fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Pending<T> {
        self.queue(work, true)
    }

    /// As [`Writer::submit`], but `work` fails at once where another process is writing.
    pub(super) fn submit_if_free<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
    ) -> Pending<T> {
        self.queue(work, false)
    }

    fn queue<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Connection) -> Result<T, Fault> + Send + 'static,
        waits: bool,
    ) -> Pending<T> {
        let (reply, answer) = mpsc::sync_channel(1);
        let path = self.path.clone();
        let work: Work = Box::new(move |transaction| {
            let result = transaction
                .and_then(|transaction| in_savepoint(transaction, work).map_err(|fault| fault.at(&path)));
            let answer: Answer = Box::new(move |committed| {
                let result = result.and_then(|value| committed.map(|()| value));
                // Whoever does not wait for the answer does not want it.
                drop(reply.send(result));
            });
            answer
        });
        if let Some(requests) = &self.requests {
            // Where the thread is gone, the request is dropped, and `wait` says so.
            drop(requests.send(Request { work, waits }));
        }
        Pending(answer)
    }

    /// Who is told of commits.
    pub(super) fn listeners(&self) -> &Listeners {
        &self.listeners
    }

    /// How many transactions it has committed.
    pub(super) fn commits(&self) -> u64 {
        self.commits.load(Ordering::Relaxed)
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened; everything acknowledged is on disk.
            drop(thread.join());
        }
    }
}

fn in_savepoint<T>(
    transaction: &mut Transaction<'_>,
    work: impl FnOnce(&Connection) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let savepoint = transaction.savepoint()?;
    let done = work(&savepoint).and_then(|value| {
        savepoint.commit()?;
        Ok(value)
    });
    if done.is_err() {
        commits::spoil();
    }
    done
}

struct Worker {
    connection: Connection,
    path: PathBuf,
    busy_timeout: Duration,
    commits: Arc<AtomicU64>,
    listeners: Arc<Listeners>,
}

impl Worker {
    fn run(mut self, queue: &Receiver<Request>) {
        while let Ok(first) = queue.recv() {
            let group = std::iter::once(first).chain(queue.try_iter()).take(MAX_GROUP).collect();
            self.commit(group);
            if let Err(error) = self.bound_wal() {
                tracing::warn!("cannot write the log of {} back: {error}", self.path.display());
            }
        }
    }

    fn commit(&mut self, group: Vec<Request>) {
        let waits = group.iter().any(|request| request.waits);
        let timeout = if waits { self.busy_timeout } else { Duration::ZERO };
        let mut transaction = match begin(&mut self.connection, timeout) {
            Ok(transaction) => transaction,
            Err(error) => {
                let error = StoreError::from_sqlite(&self.path, &error);
                for request in group {
                    (request.work)(Err(error.clone()))(Err(error.clone()));
                }
                return;
            }
        };
        commits::begin(!self.listeners.is_empty());
        let mut answers = Vec::with_capacity(group.len());
        for request in group {
            let open = ensure_open(&transaction, &self.path).map(|()| &mut transaction);
            answers.push((request.work)(open));
        }
        let changed = commits::end();
        let committed = ensure_open(&transaction, &self.path)
            .and_then(|()| transaction.commit().map_err(|error| StoreError::from_sqlite(&self.path, &error)));
        if committed.is_ok() {
            self.commits.fetch_add(1, Ordering::Relaxed);
            self.listeners.tell(&changed);
        }
        for answer in answers {
            answer(committed.clone());
        }
    }

    /// Empties a log that has grown too long. Where readers are still in it, it is tried again
    /// after the next transaction; nobody waits.
    fn bound_wal(&self) -> rusqlite::Result<()> {
        if wal_bytes(&self.path) < WAL_LIMIT {
            return Ok(());
        }
        self.connection.busy_timeout(Duration::ZERO)?;
        self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
    }
}

/// Begins to write once no other process does, or fails after `timeout`.
fn begin(connection: &mut Connection, timeout: Duration) -> rusqlite::Result<Transaction<'_>> {
    connection.busy_timeout(timeout)?;
    connection.transaction_with_behavior(TransactionBehavior::Immediate)
}

/// SQLite ends the whole transaction where a statement finds no more disk or memory. What follows
/// would then be committed statement by statement.
fn ensure_open(transaction: &Transaction<'_>, path: &Path) -> Result<(), StoreError> {
    if transaction.is_autocommit() {
        let reason = "another write of the same moment failed for lack of disk or memory, and undid this one; \
                      free some and try again";
        return Err(StoreError::Failed { path: path.to_path_buf(), reason: reason.to_owned() });
    }
    Ok(())
}

/// Bytes of the write-ahead log.
pub(super) fn wal_bytes(database: &Path) -> u64 {
    std::fs::metadata(with_suffix(database, "-wal")).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, fixture::*};
    use super::*;

    /// Keeps the writer busy until the returned sender sends.
    fn block(store: &super::super::Store) -> (mpsc::Sender<()>, Pending<()>) {
        let (release, released) = mpsc::channel::<()>();
        let (started, running) = mpsc::channel();
        let pending = store
            .submit(move |_| {
                started.send(()).unwrap();
                released.recv().unwrap();
                Ok(())
            })
            .unwrap();
        running.recv().unwrap();
        (release, pending)
    }

    fn insert(text: &str) -> impl FnOnce(&Connection) -> Result<(), Fault> + Send + 'static {
        let text = format!("/{text}");
        move |db| {
            db.execute("INSERT INTO sources VALUES (?1, x'', x'', 0, 0, 0, '', 0)", [&text])?;
            Ok(())
        }
    }

    #[test]
    fn requests_that_wait_share_a_transaction() {
        let f = Fixture::new();
        let (release, first) = block(&f.store);
        let pending: Vec<_> = (0..50).map(|n| f.store.submit(insert(&n.to_string())).unwrap()).collect();
        release.send(()).unwrap();
        first.wait().unwrap();
        for request in pending {
            request.wait().unwrap();
        }
        assert_eq!(f.store.stats().unwrap().commits, 2);
        assert_eq!(f.store.source_paths("/").unwrap().len(), 50);
    }

    #[test]
    fn a_bad_request_fails_alone_and_wholly() {
        let f = Fixture::new();
        let (release, first) = block(&f.store);
        let good = f.store.submit(insert("a")).unwrap();
        let bad = f
            .store
            .submit(|db| {
                insert("b")(db)?;
                insert("a")(db)
            })
            .unwrap();
        let later = f.store.submit(insert("c")).unwrap();
        release.send(()).unwrap();
        first.wait().unwrap();
        good.wait().unwrap();
        later.wait().unwrap();
        assert!(matches!(bad.wait(), Err(StoreError::Failed { .. })));
        assert_eq!(f.store.stats().unwrap().commits, 2);
        assert_eq!(f.store.source_paths("/").unwrap(), ["/a", "/c"]);
    }

    #[test]
    fn a_transaction_that_sqlite_gave_up_acknowledges_nothing() {
        let f = Fixture::new();
        let (release, first) = block(&f.store);
        let before = f.store.submit(insert("a")).unwrap();
        let culprit: Pending<()> = f
            .store
            .submit(|db| {
                db.execute_batch("ROLLBACK")?;
                Err(Fault::Damaged("test".to_owned()))
            })
            .unwrap();
        let after = f.store.submit(insert("b")).unwrap();
        release.send(()).unwrap();
        // The first has a transaction of its own.
        first.wait().unwrap();
        for request in [before, culprit, after] {
            assert!(request.wait().is_err());
        }
        assert_eq!(f.store.source_paths("/").unwrap(), Vec::<String>::new());
        f.store.submit(insert("c")).unwrap().wait().unwrap();
        assert_eq!(f.store.source_paths("/").unwrap().len(), 1);
    }

    #[test]
    fn a_full_disk_is_an_error_and_nothing_is_half_stored() {
        let f = Fixture::new();
        f.store.add(None, vec![note("before")]).unwrap();
        let limit = |pages: &'static str| {
            let sql = format!("PRAGMA max_page_count = {pages}");
            f.store.write(move |db| Ok(db.query_row(&sql, [], |_| Ok(()))?)).unwrap();
        };
        limit("60");
        let many = |n| (0..n).map(|n| note(&format!("{n} {}", "word ".repeat(200)))).collect();
        let error = f.store.add(None, many(1000)).unwrap_err();
        assert_eq!(error, StoreError::Full { path: f.store.path().to_path_buf() });
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 1);
        limit("1000000");
        f.store.add(None, many(1000)).unwrap();
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 1001);
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn the_log_is_emptied_when_it_is_long() {
        let f = Fixture::new();
        f.store
            .write(|db| {
                let blob = vec![7u8; WAL_LIMIT as usize + 1];
                Ok(db.execute("INSERT INTO sources VALUES ('/a', ?1, x'', 0, 0, 0, '', 0)", [blob])?)
            })
            .unwrap();
        // The second request is answered after the log of the first was seen to.
        f.store.submit(insert("b")).unwrap().wait().unwrap();
        assert!(f.store.stats().unwrap().wal_bytes < WAL_LIMIT);
    }

    #[test]
    fn threads_add_at_once() {
        let f = Fixture::new();
        std::thread::scope(|scope| {
            for thread in 0..8 {
                let store = &f.store;
                scope.spawn(move || {
                    for n in 0..25 {
                        let added = store.add(None, vec![note(&format!("{thread} {n}"))]).unwrap();
                        assert!(store.get(&added[0].ulid).unwrap().is_some());
                    }
                });
            }
        });
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 200);
    }
}
