//! Counting accesses without a write for every read.
use super::{RecordId, Store, StoreError, error::Fault};
use rusqlite::Connection;
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// How long accesses stay in memory at most while there are new ones.
const FLUSH_AFTER: Duration = Duration::from_secs(5);

/// Accesses that are not written yet.
#[derive(Debug)]
pub(super) struct Accesses(Mutex<Unwritten>);

#[derive(Debug)]
struct Unwritten {
    /// How often and when last, in milliseconds since 1970.
    by_record: HashMap<RecordId, (u64, u64)>,
    since: Instant,
}

impl Accesses {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Unwritten { by_record: HashMap::new(), since: Instant::now() }))
    }

    fn lock(&self) -> MutexGuard<'_, Unwritten> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unwritten {
    fn take(&mut self) -> HashMap<RecordId, (u64, u64)> {
        self.since = Instant::now();
        std::mem::take(&mut self.by_record)
    }
}

impl Store {
    /// Counts an access of each record. It is kept in memory and written every few seconds, by
    /// [`Store::flush`], or when the store is dropped. A crash loses some, and so does another
    /// process that is writing then: nobody waits for a count. A read-only store counts nothing.
    pub fn touch(&self, ids: &[RecordId], now_ms: u64) {
        let Some(writer) = &self.writer else { return };
        let mut unwritten = self.accesses.lock();
        for &id in ids {
            let (count, last) = unwritten.by_record.entry(id).or_default();
            *count += 1;
            *last = now_ms.max(*last);
        }
        if unwritten.since.elapsed() >= FLUSH_AFTER {
            let accesses = unwritten.take();
            drop(writer.submit_if_free(move |db| count(db, &accesses)));
        }
    }

    /// Writes the accesses that are still in memory.
    ///
    /// # Errors
    /// `Full`, `Busy`; the accesses are then lost.
    pub fn flush(&self) -> Result<(), StoreError> {
        let accesses = self.accesses.lock().take();
        if accesses.is_empty() {
            return Ok(());
        }
        self.write(move |db| count(db, &accesses))
    }
}

impl Drop for Store {
    fn drop(&mut self) {
        let accesses = self.accesses.lock().take();
        if let Some(writer) = self.writer.as_ref().filter(|_| !accesses.is_empty())
            && let Err(error) = writer.submit_if_free(move |db| count(db, &accesses)).wait()
        {
            tracing::debug!("the last accesses were not counted: {error}");
        }
    }
}

fn count(db: &Connection, accesses: &HashMap<RecordId, (u64, u64)>) -> Result<(), Fault> {
    let mut update = db.prepare_cached(
        "UPDATE records SET access_count = access_count + ?2, last_access_ms = max(last_access_ms, ?3)
         WHERE id = ?1",
    )?;
    for (id, (count, last)) in accesses {
        update.execute((id, count, last))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, fixture::*};
    use super::*;

    #[test]
    fn a_dropped_store_does_not_wait_for_another_process_to_count_accesses() {
        let f = Fixture::new();
        let id = f.store.add(None, vec![note("a")]).unwrap()[0].id;
        let holder = Connection::open(f.store.path()).unwrap();
        holder.execute_batch("BEGIN IMMEDIATE").unwrap();
        f.store.touch(&[id], 1);
        let started = Instant::now();
        let (path, folder) = f.close();
        assert!(started.elapsed() < NORMAL.busy_timeout / 2);
        holder.execute_batch("ROLLBACK").unwrap();
        assert_eq!(Store::open(&path, &NORMAL).unwrap().records(&[id]).unwrap()[0].access_count, 0);
        drop(folder);
    }

    #[test]
    fn accesses_are_written_together_by_flush_and_when_dropped() {
        let f = Fixture::new();
        let ids: Vec<_> =
            f.store.add(None, vec![note("a"), note("b")]).unwrap().iter().map(|added| added.id).collect();
        let commits = || f.store.stats().unwrap().commits;
        let before = commits();
        let later = u64::from(u32::MAX) << 10;
        for n in 0..10 {
            f.store.touch(&ids[..1], later + n);
        }
        f.store.touch(&ids, 5);
        assert_eq!(commits(), before);
        f.store.flush().unwrap();
        assert_eq!(commits(), before + 1);
        let records = f.store.records(&ids).unwrap();
        assert_eq!((records[0].access_count, records[0].last_access_ms), (11, later + 9));
        // An access of the past does not set the time back.
        assert_eq!((records[1].access_count, records[1].last_access_ms), (1, records[1].created_ms));
        f.store.flush().unwrap();
        assert_eq!(commits(), before + 1);

        f.store.touch(&ids[1..], later);
        let f = f.reopen(&NORMAL);
        assert_eq!(f.store.list(&Filter::default(), 1, 0).unwrap()[0].access_count, 2);
    }
}
