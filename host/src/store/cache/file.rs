//! What is in the file: SQL over one connection. The caller says what time it is.
use super::{CacheCounts, CacheKey, CacheSpace, CacheSpaceStats, DiskCacheOptions, LookupWindow, Lookups};
use crate::store::{
    StoreError, StoreOptions,
    connection::{self, enter_wal},
    error::Fault,
};
use half::{
    f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use rusqlite::{Connection, OpenFlags, OptionalExtension, TransactionBehavior};
use std::{collections::HashMap, path::Path, sync::Arc, time::Duration};

/// The schema that this program reads and writes.
const VERSION: i64 = 1;
/// In the header of the file: `magc`.
const APPLICATION_ID: i64 = 0x6d61_6763;
/// Bytes of a page: eight vectors of 384 numbers or four of 768 fill one.
const PAGE_SIZE: i64 = 8192;
/// How long to wait for another process that writes. It is a cache: better without than late.
const BUSY: Duration = Duration::from_millis(500);
/// Entries that go at once where some must.
pub(super) const EVICT_BATCH: usize = 500;
/// Seconds after which a use is written down again. Reads in between cost no write.
pub(super) const RENEW_AFTER_S: u64 = 3600;
/// Bytes that an entry takes beside its vector: its other columns, two index rows, and a share of
/// the room that pages leave free.
const ENTRY_OVERHEAD: u64 = 160;

/// A connection to the file.
#[derive(Debug)]
pub(super) struct File {
    db: Connection,
    /// Ids of the spaces that this connection has seen.
    spaces: HashMap<[u8; 32], i64>,
}

/// A vector on its way into the file.
#[derive(Debug)]
pub(super) struct Put {
    pub(super) key: CacheKey,
    pub(super) space: Arc<CacheSpace>,
    /// Little-endian f16.
    pub(super) vector: Vec<u8>,
}

/// What one transaction writes.
#[derive(Debug, Default)]
pub(super) struct Batch {
    pub(super) puts: Vec<Put>,
    /// [`CacheKey::id`] of entries that were found.
    pub(super) used: Vec<u64>,
    /// What both levels did, to be added to the totals: memory, disk.
    pub(super) counts: [CacheCounts; 2],
    /// To be added to the window.
    pub(super) lookups: Lookups,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.puts.len() + self.used.len()
    }
}

/// What a look into the file found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    /// The vector was written to the caller's slice.
    Fresh {
        /// How much longer it is good for; none for ever.
        left_s: Option<u64>,
        /// Whether its use is to be written down.
        renew: bool,
    },
    Expired,
    Absent,
}

/// The columns of an entry.
struct Row {
    half: u64,
    stored_s: u64,
    used_s: u64,
    checksum: i64,
}

impl File {
    /// Opens the file and makes it where it is missing.
    pub(super) fn open(path: &Path) -> Result<Self, Fault> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let options = StoreOptions { busy_timeout: BUSY, ..StoreOptions::default() };
        let mut db = connection::open(path, flags, &options)?;
        if version(&db, path)? == 0 {
            db.pragma_update(None, "page_size", PAGE_SIZE)?;
        }
        enter_wal(&db, BUSY)?;
        // What a loss of power leaves is found by SQLite or by the checksums, and made anew.
        db.pragma_update(None, "synchronous", "OFF")?;
        create(&mut db, path)?;
        Ok(Self { db, spaces: HashMap::new() })
    }

    /// Looks for a vector and copies it to `out`.
    pub(super) fn get(
        &self,
        key: CacheKey,
        out: &mut [f32],
        ttl: Option<Duration>,
        now_s: u64,
    ) -> Result<Found, Fault> {
        let mut entry = self
            .db
            .prepare_cached("SELECT half, stored_s, used_s, checksum, vector FROM entries WHERE id = ?1")?;
        let mut rows = entry.query([key.id.cast_signed()])?;
        let Some(row) = rows.next()? else { return Ok(Found::Absent) };
        let vector = row.get_ref(4)?;
        let row = Row {
            half: row.get::<_, i64>(0)?.cast_unsigned(),
            stored_s: row.get(1)?,
            used_s: row.get(2)?,
            checksum: row.get(3)?,
        };
        if row.half != key.check {
            return Ok(Found::Absent);
        }
        let left_s = ttl.map(|ttl| ttl.as_secs().saturating_sub(now_s.saturating_sub(row.stored_s)));
        if left_s == Some(0) {
            return Ok(Found::Expired);
        }
        let vector = vector.as_blob().unwrap_or_default();
        if vector.len() != 2 * out.len() || checksum(key, row.stored_s, vector) != row.checksum {
            return Err(Fault::Damaged("a vector is not as it was written".to_owned()));
        }
        let bits: Vec<u16> = vector.as_chunks().0.iter().map(|bytes| u16::from_le_bytes(*bytes)).collect();
        bits.reinterpret_cast::<f16>().convert_to_f32_slice(out);
        Ok(Found::Fresh { left_s, renew: now_s.saturating_sub(row.used_s) >= RENEW_AFTER_S })
    }

    /// Writes all of it in one transaction, and drops what is out of date or too much. Returns what
    /// the level on disk did.
    pub(super) fn write(
        &mut self,
        batch: &Batch,
        options: &DiskCacheOptions,
        now_s: u64,
    ) -> Result<CacheCounts, Fault> {
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut held = Held::read(&transaction)?;
        let mut did = CacheCounts::default();
        for put in &batch.puts {
            let space = match self.spaces.get(&put.space.digest) {
                // Another process may have cleared the space.
                Some(&id) if is_space(&transaction, id, &put.space)? => id,
                _ => enter_space(&transaction, &put.space)?,
            };
            self.spaces.insert(put.space.digest, space);
            insert(&transaction, put, space, now_s, &mut held)?;
            did.insertions += 1;
        }
        for id in &batch.used {
            transaction
                .prepare_cached("UPDATE entries SET used_s = max(used_s, ?2) WHERE id = ?1")?
                .execute((id.cast_signed(), now_s))?;
        }
        did.expired = expire(&transaction, options.ttl, now_s, EVICT_BATCH, &mut held)?;
        while held.is_over(options) {
            let evicted = held.delete(
                &transaction,
                "DELETE FROM entries WHERE id IN (SELECT id FROM entries ORDER BY used_s LIMIT ?1)
                 RETURNING length(vector)",
                [EVICT_BATCH],
            )?;
            did.evictions += evicted;
            if evicted == 0 {
                break;
            }
        }
        held.write(&transaction)?;
        for (level, counts) in batch.counts.iter().enumerate() {
            let counts = if level == 1 { counts.plus(&did) } else { *counts };
            add_total(&transaction, level, &counts)?;
        }
        if batch.lookups.asked > 0 {
            let mut window = lookups(&transaction)?;
            window.add(batch.lookups, options.lookups);
            transaction.prepare_cached("DELETE FROM lookups")?.execute([])?;
            let mut insert =
                transaction.prepare_cached("INSERT INTO lookups (asked, answered) VALUES (?1, ?2)")?;
            for part in &window.parts {
                insert.execute((part.asked, part.answered))?;
            }
        }
        transaction.commit()?;
        Ok(did)
    }

    /// Drops the entries of a space, those that are out of date, or all. Returns how many.
    pub(super) fn clear(
        &mut self,
        space: Option<i64>,
        only_expired: bool,
        ttl: Option<Duration>,
        now_s: u64,
    ) -> Result<u64, Fault> {
        let transaction = self.db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut held = Held::read(&transaction)?;
        let (oldest, newest) = match (only_expired, ttl) {
            (false, _) => (-1, i64::MAX),
            (true, Some(ttl)) => (-1, last_expired(ttl, now_s)),
            (true, None) => (-1, -1),
        };
        let cleared = held.delete(
            &transaction,
            "DELETE FROM entries WHERE stored_s BETWEEN ?1 AND ?2 AND (?3 IS NULL OR space_id = ?3)
             RETURNING length(vector)",
            (oldest, newest, space),
        )?;
        transaction.execute("DELETE FROM spaces WHERE id NOT IN (SELECT space_id FROM entries)", [])?;
        self.spaces.clear();
        held.write(&transaction)?;
        transaction.commit()?;
        Ok(cleared)
    }

    /// Gives the room of dropped entries back to the system.
    pub(super) fn shrink(&self) -> Result<(), Fault> {
        self.db.execute_batch("VACUUM; PRAGMA wal_checkpoint(TRUNCATE)")?;
        Ok(())
    }

    /// Entries and their bytes.
    pub(super) fn held(&self) -> Result<(u64, u64), Fault> {
        let Held { entries, bytes } = Held::read(&self.db)?;
        Ok((entries, bytes))
    }

    /// Since the file was made: memory, disk.
    pub(super) fn totals(&self) -> Result<[CacheCounts; 2], Fault> {
        let total = |level: i64| {
            self.db
                .prepare_cached(
                    "SELECT hits, misses, insertions, evictions, expired FROM totals WHERE level = ?1",
                )?
                .query_row([level], |row| {
                    Ok(CacheCounts {
                        hits: row.get(0)?,
                        misses: row.get(1)?,
                        insertions: row.get(2)?,
                        evictions: row.get(3)?,
                        expired: row.get(4)?,
                    })
                })
        };
        Ok([total(0)?, total(1)?])
    }

    /// The last look-ups by searches.
    pub(super) fn lookups(&self) -> Result<LookupWindow, Fault> {
        Ok(lookups(&self.db)?)
    }

    /// What it holds of each space, the largest first.
    pub(super) fn spaces(&self, ttl: Option<Duration>, now_s: u64) -> Result<Vec<CacheSpaceStats>, Fault> {
        let mut spaces = self.db.prepare(
            "SELECT spaces.id, digest, model, dim, count(*), min(stored_s), max(stored_s),
                    count(*) FILTER (WHERE stored_s <= ?1)
             FROM entries JOIN spaces ON spaces.id = space_id
             GROUP BY space_id ORDER BY count(*) DESC, model",
        )?;
        let last_expired = ttl.map_or(-1, |ttl| last_expired(ttl, now_s));
        let spaces = spaces.query_map([last_expired], |row| {
            let dim: u64 = row.get(3)?;
            let entries: u64 = row.get(4)?;
            Ok(CacheSpaceStats {
                id: row.get(0)?,
                digest: row.get(1)?,
                model: row.get(2)?,
                dim: usize::try_from(dim).unwrap_or(usize::MAX),
                entries,
                bytes: entries.saturating_mul(dim.saturating_mul(2).saturating_add(ENTRY_OVERHEAD)),
                oldest_s: row.get(5)?,
                newest_s: row.get(6)?,
                expired: row.get(7)?,
            })
        })?;
        Ok(spaces.collect::<Result<_, _>>()?)
    }
}

fn lookups(db: &Connection) -> rusqlite::Result<LookupWindow> {
    let mut parts = db.prepare_cached("SELECT asked, answered FROM lookups ORDER BY id")?;
    let parts = parts.query_map([], |row| Ok(Lookups { asked: row.get(0)?, answered: row.get(1)? }))?;
    Ok(LookupWindow { parts: parts.collect::<Result<_, _>>()? })
}

/// The vector as the file has it; nothing where f16 cannot hold it.
pub(super) fn encode(vector: &[f32]) -> Option<Vec<u8>> {
    let mut halves = vec![f16::ZERO; vector.len()];
    halves.convert_from_f32_slice(vector);
    let is_sound = halves.iter().all(|half| half.is_finite());
    is_sound.then(|| halves.reinterpret_cast().iter().flat_map(|bits| bits.to_le_bytes()).collect())
}

/// Ties a vector to its key and age, so that no damage can give it to another text.
fn checksum(key: CacheKey, stored_s: u64, vector: &[u8]) -> i64 {
    let mut hasher = blake3::Hasher::new();
    for part in [key.id, key.check, stored_s] {
        hasher.update(&part.to_le_bytes());
    }
    let mut bytes = [0; 8];
    hasher.update(vector).finalize_xof().fill(&mut bytes);
    i64::from_le_bytes(bytes)
}

/// The schema version, 0 where the file is empty.
fn version(db: &Connection, path: &Path) -> Result<i64, Fault> {
    // One statement, so that all is of one moment: another process may be making the file.
    let (application, version, objects): (i64, i64, i64) = db.query_row(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
         FROM pragma_application_id, pragma_user_version",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    if (application, version) != (APPLICATION_ID, VERSION) && (application, version, objects) != (0, 0, 0) {
        let reason = format!("it is no cache of version {VERSION}");
        return Err(StoreError::NotADatabase { path: path.to_path_buf(), reason }.into());
    }
    Ok(version)
}

fn create(db: &mut Connection, path: &Path) -> Result<(), Fault> {
    if version(db, path)? != VERSION {
        let transaction = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have made it while this one waited for the lock.
        if version(&transaction, path)? == 0 {
            transaction.execute_batch(include_str!("schema.sql"))?;
            transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
            transaction.pragma_update(None, "user_version", VERSION)?;
        }
        transaction.commit()?;
    }
    // Not by a version of its own: an older program has no use for it, and goes on with the file.
    db.execute_batch(include_str!("lookups.sql"))?;
    Ok(())
}

fn is_space(db: &Connection, id: i64, space: &CacheSpace) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM spaces WHERE id = ?1 AND digest = ?2")?.exists((id, space.digest))
}

fn enter_space(db: &Connection, space: &CacheSpace) -> rusqlite::Result<i64> {
    db.prepare_cached("INSERT INTO spaces (digest, model, dim) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING")?
        .execute((&space.digest, &space.model, space.dim))?;
    db.prepare_cached("SELECT id FROM spaces WHERE digest = ?1")?.query_row([&space.digest], |row| row.get(0))
}

fn insert(db: &Connection, put: &Put, space: i64, now_s: u64, held: &mut Held) -> rusqlite::Result<()> {
    let id = put.key.id.cast_signed();
    let values =
        (id, put.key.check.cast_signed(), space, now_s, checksum(put.key, now_s, &put.vector), &put.vector);
    let is_new = db
        .prepare_cached(
            "INSERT INTO entries (id, half, space_id, stored_s, used_s, checksum, vector)
             VALUES (?1, ?2, ?3, ?4, ?4, ?5, ?6) ON CONFLICT DO NOTHING",
        )?
        .execute(values)?;
    if is_new == 0 {
        let old: Option<u64> = db
            .prepare_cached("SELECT length(vector) FROM entries WHERE id = ?1")?
            .query_row([id], |row| row.get(0))
            .optional()?;
        held.remove(old.unwrap_or_default());
        db.prepare_cached(
            "UPDATE entries SET half = ?2, space_id = ?3, stored_s = ?4, used_s = ?4, checksum = ?5, vector = ?6
             WHERE id = ?1",
        )?
        .execute(values)?;
    }
    held.entries += 1;
    held.bytes += put.vector.len() as u64 + ENTRY_OVERHEAD;
    Ok(())
}

fn expire(
    db: &Connection,
    ttl: Option<Duration>,
    now_s: u64,
    limit: usize,
    held: &mut Held,
) -> rusqlite::Result<u64> {
    let Some(ttl) = ttl else { return Ok(0) };
    held.delete(
        db,
        "DELETE FROM entries
         WHERE id IN (SELECT id FROM entries WHERE stored_s <= ?1 ORDER BY stored_s LIMIT ?2)
         RETURNING length(vector)",
        (last_expired(ttl, now_s), limit),
    )
}

/// What was stored at this second or before is out of date.
fn last_expired(ttl: Duration, now_s: u64) -> i64 {
    now_s.checked_sub(ttl.as_secs()).and_then(|last| i64::try_from(last).ok()).unwrap_or(-1)
}

fn add_total(db: &Connection, level: usize, counts: &CacheCounts) -> rusqlite::Result<()> {
    if *counts == CacheCounts::default() {
        return Ok(());
    }
    db.prepare_cached(
        "UPDATE totals SET hits = hits + ?2, misses = misses + ?3, insertions = insertions + ?4,
                           evictions = evictions + ?5, expired = expired + ?6
         WHERE level = ?1",
    )?
    .execute((
        level,
        counts.hits,
        counts.misses,
        counts.insertions,
        counts.evictions,
        counts.expired,
    ))?;
    Ok(())
}

/// The books of what `entries` holds.
struct Held {
    entries: u64,
    bytes: u64,
}

impl Held {
    fn read(db: &Connection) -> rusqlite::Result<Self> {
        db.prepare_cached("SELECT entries, bytes FROM held")?
            .query_row([], |row| Ok(Self { entries: row.get(0)?, bytes: row.get(1)? }))
    }

    fn write(&self, db: &Connection) -> rusqlite::Result<()> {
        db.prepare_cached("UPDATE held SET entries = ?1, bytes = ?2")?.execute((self.entries, self.bytes))?;
        Ok(())
    }

    fn is_over(&self, options: &DiskCacheOptions) -> bool {
        self.bytes > options.max_bytes || self.entries > options.max_entries
    }

    fn remove(&mut self, vector_bytes: u64) {
        self.entries = self.entries.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(vector_bytes + ENTRY_OVERHEAD);
    }

    /// Runs a `DELETE` that returns the length of each vector. Returns how many went.
    fn delete(&mut self, db: &Connection, sql: &str, values: impl rusqlite::Params) -> rusqlite::Result<u64> {
        let mut delete = db.prepare_cached(sql)?;
        let mut gone = 0;
        for bytes in delete.query_map(values, |row| row.get(0))? {
            self.remove(bytes?);
            gone += 1;
        }
        Ok(gone)
    }
}
