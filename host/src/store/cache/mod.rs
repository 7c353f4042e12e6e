//! The cache of vectors on disk, which outlives the process and is shared by several. Whatever
//! becomes of its file, the caller only misses.
mod file;
mod lookups;
#[cfg(test)]
mod tests;

use super::error::Fault;
use file::{Batch, File, Found, Put};
pub use lookups::{LookupWindow, Lookups};
use rusqlite::ErrorCode;
use std::{
    fmt,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
        mpsc::{self, Receiver, SyncSender, TrySendError},
    },
    thread::JoinHandle,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

/// Writes that share a transaction.
const WRITE_BATCH: usize = 512;
/// Writes that may wait for the disk; what comes on top is not kept.
const QUEUE: usize = 8 * WRITE_BATCH;
/// How long a write waits for others.
const LINGER: Duration = Duration::from_secs(1);

/// 128 bits of a hash of space, role and text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct CacheKey {
    /// The half that entries are found by.
    pub id: u64,
    /// The half that tells two texts apart that share the other.
    pub check: u64,
}

/// The space of a vector, as [`Space`](super::Space) without its id.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as there")]
pub struct CacheSpace {
    pub digest: [u8; 32],
    pub model: String,
    pub dim: usize,
}

/// What a level of the cache did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Look-ups that found a vector.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Vectors that were stored.
    pub insertions: u64,
    /// Vectors that made room for others.
    pub evictions: u64,
    /// Vectors that were dropped because they were too old.
    pub expired: u64,
}

impl CacheCounts {
    fn plus(&self, other: &Self) -> Self {
        Self {
            hits: self.hits + other.hits,
            misses: self.misses + other.misses,
            insertions: self.insertions + other.insertions,
            evictions: self.evictions + other.evictions,
            expired: self.expired + other.expired,
        }
    }
}

/// How much the file may hold, and how long.
#[derive(Clone, Copy, Debug)]
pub struct DiskCacheOptions {
    /// How long a vector is good for; none for ever. Holds for those that are there, too.
    pub ttl: Option<Duration>,
    /// Bytes of vectors and what belongs to them.
    pub max_bytes: u64,
    /// Vectors.
    pub max_entries: u64,
    /// Look-ups by searches that the file keeps the hit rate of.
    pub lookups: u64,
}

/// What the file holds.
#[derive(Clone, Debug)]
pub struct DiskCacheStats {
    /// Vectors.
    pub entries: u64,
    /// Bytes of vectors and what belongs to them, which is what [`DiskCacheOptions::max_bytes`] bounds.
    pub bytes: u64,
    /// By space, the largest first.
    pub spaces: Vec<CacheSpaceStats>,
    /// What the level in memory did since the file was made, in every process that has ended.
    pub memory_totals: CacheCounts,
    /// What the level on disk did since the file was made.
    pub disk_totals: CacheCounts,
    /// The last look-ups by searches, [`DiskCacheOptions::lookups`] of them or some more.
    pub lookups: Lookups,
}

/// What the file holds of one space.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct CacheSpaceStats {
    id: i64,
    pub digest: [u8; 32],
    pub model: String,
    pub dim: usize,
    pub entries: u64,
    pub bytes: u64,
    /// When the oldest and the newest were stored, in seconds since 1970.
    pub oldest_s: u64,
    pub newest_s: u64,
    /// How many are out of date and still to be dropped.
    pub expired: u64,
}

/// Vectors by [`CacheKey`] in a file, as f16.
///
/// The file is opened by the first call, and made by the first write where it is missing. One that is damaged or of
/// another version is moved aside with a warning and made anew; where it cannot be used at all, every
/// look-up misses. Each vector carries a checksum over key and value. Vectors are written by a thread of
/// its own, some hundred in a transaction, and what a killed process had not written is lost.
///
/// Threads: any number of calls at once. Dropping it writes what waits.
pub struct DiskCache {
    shared: Arc<Shared>,
    reader: Mutex<Side>,
    writer: Mutex<Option<Writer>>,
}

impl fmt::Debug for DiskCache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiskCache").field("path", &self.shared.path).finish_non_exhaustive()
    }
}

struct Shared {
    path: PathBuf,
    options: DiskCacheOptions,
    /// Grows when the file is moved aside, so that nobody goes on with the old one.
    generation: AtomicU64,
    aside: Mutex<()>,
    counts: Mutex<Counts>,
}

#[derive(Default)]
struct Counts {
    /// What the level on disk did in this process.
    process: CacheCounts,
    /// What the totals of the file lack: memory, disk.
    unwritten: [CacheCounts; 2],
    /// What its window lacks.
    lookups: Lookups,
}

/// One user's connection.
enum Side {
    Closed,
    Open { file: File, generation: u64, identity: Option<(u64, u64)> },
    Off,
}

struct Writer {
    queue: SyncSender<Message>,
    thread: JoinHandle<()>,
}

enum Message {
    Put(Put),
    Used(u64),
    Flush(SyncSender<()>),
}

/// What becomes of a file after a fault.
enum Verdict {
    Damaged(String),
    Busy,
    Unusable(String),
}

impl DiskCache {
    /// The cache in the file at `path`. Opens nothing yet.
    pub fn new(path: &Path, options: DiskCacheOptions) -> Self {
        let shared = Shared {
            path: path.to_path_buf(),
            options,
            generation: AtomicU64::new(0),
            aside: Mutex::new(()),
            counts: Mutex::default(),
        };
        Self { shared: Arc::new(shared), reader: Mutex::new(Side::Closed), writer: Mutex::new(None) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.shared.path
    }

    /// The bounds.
    pub fn options(&self) -> &DiskCacheOptions {
        &self.shared.options
    }

    /// Copies the vector of `key` to `out`, where it is held. Returns how much longer it is good
    /// for, [`Duration::MAX`] for ever.
    pub fn get(&self, key: CacheKey, out: &mut [f32]) -> Option<Duration> {
        let ttl = self.shared.options.ttl;
        let found = self.shared.with(&mut lock(&self.reader), false, |file| file.get(key, out, ttl, now_s()));
        let left = match found {
            Some(Found::Fresh { left_s, renew }) => {
                if renew {
                    self.send(Message::Used(key.id));
                }
                Some(left_s.map_or(Duration::MAX, Duration::from_secs))
            }
            _ => None,
        };
        let (hits, misses) = (u64::from(left.is_some()), u64::from(left.is_none()));
        self.shared.count(1, &CacheCounts { hits, misses, ..CacheCounts::default() });
        left
    }

    /// Keeps `vector` under `key`; it can be found once it is written.
    pub fn put(&self, space: &Arc<CacheSpace>, key: CacheKey, vector: &[f32]) {
        if let Some(vector) = file::encode(vector) {
            self.send(Message::Put(Put { key, space: space.clone(), vector }));
        }
    }

    /// Adds what the level in memory did to the totals.
    pub fn add_memory_counts(&self, counts: &CacheCounts) {
        self.shared.count(0, counts);
    }

    /// Adds look-ups by searches to the window, whichever level answered. They are written with what is written next,
    /// or at the end.
    pub fn add_lookups(&self, lookups: Lookups) {
        let mut counts = lock(&self.shared.counts);
        counts.lookups = counts.lookups.plus(lookups);
    }

    /// What this level did in this process, so far as it is written.
    pub fn counts(&self) -> CacheCounts {
        lock(&self.shared.counts).process
    }

    /// Waits until everything that was put is in the file.
    pub fn flush(&self) {
        let (done, wait) = mpsc::sync_channel(1);
        let queue = lock(&self.writer).as_ref().map(|writer| writer.queue.clone());
        if let Some(queue) = queue
            && queue.send(Message::Flush(done)).is_ok()
        {
            // Where the thread is gone there is nothing to wait for.
            let _ = wait.recv();
        }
    }

    /// What the file holds; none where it cannot be used.
    pub fn stats(&self) -> Option<DiskCacheStats> {
        let ttl = self.shared.options.ttl;
        self.shared.with(&mut lock(&self.reader), false, |file| {
            let (entries, bytes) = file.held()?;
            let [memory_totals, disk_totals] = file.totals()?;
            let spaces = file.spaces(ttl, now_s())?;
            let lookups = file.lookups()?.total();
            Ok(DiskCacheStats { entries, bytes, spaces, memory_totals, disk_totals, lookups })
        })
    }

    /// Drops the vectors of `space`, or of all; where `only_expired`, only those that are out of
    /// date. Returns how many; none where the file cannot be used.
    pub fn clear(&self, space: Option<&CacheSpaceStats>, only_expired: bool) -> Option<u64> {
        let ttl = self.shared.options.ttl;
        let space = space.map(|space| space.id);
        self.flush();
        let mut reader = lock(&self.reader);
        let cleared =
            self.shared.with(&mut reader, false, |file| file.clear(space, only_expired, ttl, now_s()));
        // Others may be reading; then the room is used again by what comes.
        let _ = self.shared.with(&mut reader, false, |file| file.shrink());
        cleared
    }

    /// Drops the vectors that are out of date; their room is used again by what comes. Returns how many; none
    /// where the file cannot be used.
    pub fn trim(&self) -> Option<u64> {
        let ttl = self.shared.options.ttl;
        self.shared.with(&mut lock(&self.reader), false, |file| file.clear(None, true, ttl, now_s()))
    }

    fn send(&self, message: Message) {
        let mut writer = lock(&self.writer);
        if writer.is_none() {
            *writer = Writer::start(&self.shared);
        }
        let Some(Writer { queue, .. }) = &*writer else { return };
        if let Err(TrySendError::Full(_)) = queue.try_send(message) {
            tracing::trace!(
                "{}: the disk does not keep up, so a vector is not cached",
                self.path().display()
            );
        }
    }
}

impl Drop for DiskCache {
    fn drop(&mut self) {
        let writer = self.writer.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(Writer { queue, thread }) = writer {
            drop(queue);
            // A panic was reported where it happened; it is a cache.
            let _ = thread.join();
        }
        let is_written = {
            let Counts { unwritten, lookups, .. } = &*lock(&self.shared.counts);
            *unwritten == <[CacheCounts; 2]>::default() && lookups.asked == 0
        };
        if !is_written {
            let reader = self.reader.get_mut().unwrap_or_else(PoisonError::into_inner);
            self.shared.write(reader, Batch::default());
        }
    }
}

impl Writer {
    fn start(shared: &Arc<Shared>) -> Option<Self> {
        let (queue, messages) = mpsc::sync_channel(QUEUE);
        let shared = shared.clone();
        let thread = std::thread::Builder::new().name("cache-writer".to_owned());
        let thread = thread.spawn(move || shared.run(&messages)).ok()?;
        Some(Self { queue, thread })
    }
}

impl Shared {
    /// Writes what comes, many at a time, until nobody sends any more.
    fn run(&self, messages: &Receiver<Message>) {
        let mut side = Side::Closed;
        while let Ok(first) = messages.recv() {
            let (mut batch, mut waiting) = (Batch::default(), None);
            let end = Instant::now() + LINGER;
            let mut next = Some(first);
            while let Some(message) = next {
                match message {
                    Message::Put(put) => batch.puts.push(put),
                    Message::Used(id) => batch.used.push(id),
                    Message::Flush(done) => waiting = Some(done),
                }
                if waiting.is_some() || batch.len() >= WRITE_BATCH {
                    break;
                }
                next = messages.recv_timeout(end.saturating_duration_since(Instant::now())).ok();
            }
            self.write(&mut side, batch);
            if let Some(done) = waiting {
                // Whoever does not wait any more does not want it.
                let _ = done.send(());
            }
        }
    }

    fn write(&self, side: &mut Side, mut batch: Batch) {
        {
            let mut counts = lock(&self.counts);
            batch.counts = std::mem::take(&mut counts.unwritten);
            batch.lookups = std::mem::take(&mut counts.lookups);
        }
        match self.with(side, !batch.puts.is_empty(), |file| file.write(&batch, &self.options, now_s())) {
            // They are in the totals already.
            Some(did) => {
                let mut counts = lock(&self.counts);
                counts.process = counts.process.plus(&did);
            }
            None => {
                let mut counts = lock(&self.counts);
                for (unwritten, lost) in counts.unwritten.iter_mut().zip(&batch.counts) {
                    *unwritten = unwritten.plus(lost);
                }
                counts.lookups = counts.lookups.plus(batch.lookups);
            }
        }
    }

    fn count(&self, level: usize, counts: &CacheCounts) {
        let mut all = lock(&self.counts);
        all.unwritten[level] = all.unwritten[level].plus(counts);
        if level == 1 {
            all.process = all.process.plus(counts);
        }
    }

    /// Runs `work` on the file, opened first where it is not and, where it `makes`, made; none where
    /// it cannot be used.
    fn with<T>(
        &self,
        side: &mut Side,
        makes: bool,
        mut work: impl FnMut(&mut File) -> Result<T, Fault>,
    ) -> Option<T> {
        // Once more with a new file where this one turns out damaged.
        for _ in 0..2 {
            let generation = self.generation.load(Ordering::Acquire);
            if let Side::Open { generation: of, .. } = side
                && *of != generation
            {
                *side = Side::Closed;
            }
            if let Side::Closed = side {
                if !makes && !self.path.exists() {
                    return None;
                }
                let identity = identity(&self.path);
                *side = match File::open(&self.path) {
                    Ok(file) => {
                        let identity = identity.or_else(|| self::identity(&self.path));
                        Side::Open { file, generation, identity }
                    }
                    Err(fault) if self.recover(side, &fault, generation, identity) => continue,
                    Err(_) => return None,
                };
            }
            let Side::Open { file, identity, .. } = side else { return None };
            let identity = *identity;
            match work(file) {
                Ok(value) => return Some(value),
                Err(fault) if self.recover(side, &fault, generation, identity) => {}
                Err(_) => return None,
            }
        }
        None
    }

    /// Deals with a fault; returns whether another attempt may succeed.
    fn recover(&self, side: &mut Side, fault: &Fault, generation: u64, of: Option<(u64, u64)>) -> bool {
        match verdict(fault) {
            Verdict::Damaged(reason) => {
                *side = Side::Closed;
                let is_done = self.set_aside(&reason, generation, of);
                if !is_done {
                    *side = Side::Off;
                }
                is_done
            }
            Verdict::Busy => {
                tracing::debug!("{} is in use by another process", self.path.display());
                false
            }
            Verdict::Unusable(reason) => {
                tracing::debug!("no vectors are cached in {}: {reason}", self.path.display());
                *side = Side::Off;
                false
            }
        }
    }

    /// Moves a damaged file away. Returns whether a new one can be made.
    fn set_aside(&self, reason: &str, generation: u64, of: Option<(u64, u64)>) -> bool {
        let _alone = lock(&self.aside);
        // The other side, or another process, may have done it already.
        if self.generation.load(Ordering::Acquire) != generation || identity(&self.path) != of {
            return true;
        }
        let beside = |suffix: &str| {
            let mut path = self.path.clone().into_os_string();
            path.push(suffix);
            PathBuf::from(path)
        };
        let aside = beside(".damaged");
        // The log goes first: none may be left beside a new file.
        for log in [beside("-wal"), beside("-shm")] {
            let _ = std::fs::remove_file(log);
        }
        if let Err(error) = std::fs::rename(&self.path, &aside) {
            tracing::debug!("{} is damaged and cannot be moved away: {error}", self.path.display());
            return false;
        }
        self.generation.fetch_add(1, Ordering::AcqRel);
        tracing::warn!(
            "the cache of embeddings {} is damaged or of another version ({reason}); it was moved to {} and begins anew",
            self.path.display(),
            aside.display()
        );
        true
    }
}

fn verdict(fault: &Fault) -> Verdict {
    let error = match fault {
        Fault::Sqlite(error) => error,
        Fault::Store(error) => return Verdict::Damaged(error.to_string()),
        Fault::Damaged(reason) => return Verdict::Damaged(reason.clone()),
    };
    match error.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Verdict::Busy,
        Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => Verdict::Damaged(error.to_string()),
        // Tables, columns or values that are not ours.
        Some(ErrorCode::Unknown | ErrorCode::ConstraintViolation | ErrorCode::TypeMismatch) | None => {
            Verdict::Damaged(error.to_string())
        }
        Some(_) => Verdict::Unusable(error.to_string()),
    }
}

/// What tells a file from another at the same path.
fn identity(path: &Path) -> Option<(u64, u64)> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        std::fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
    }
    #[cfg(not(unix))]
    {
        let _ = path;
        None
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Seconds since 1970.
fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
