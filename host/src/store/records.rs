//! Reading and deleting records.
use super::{
    Arrival, Filter, Layer, Record, RecordId, SourceRef, Store, StoreError, error::Fault, keywords, vectors,
};
use rusqlite::{Connection, OptionalExtension, Row, params_from_iter, types::Value};

/// The fewest characters of an id that stand for it.
const MIN_PREFIX: usize = 4;

/// Expired records that one transaction deletes, so that other writers get their turn.
const EXPIRE_BATCH: usize = 5000;

const COLUMNS: &str = "records.id, ulid, layer, kind, title, text, project, session, source_path, line_start, \
     line_end, created_ms, last_access_ms, access_count, importance, score, moved_count, carried, \
     moved_ms, expires_ms, valid_from_ms, valid_to_ms, \
     (SELECT better.ulid FROM records AS better WHERE better.id = records.superseded_by) AS superseded_by";

impl Store {
    /// The record with this id, or the one whose id alone begins so; at least 4 characters, in
    /// upper or lower case.
    ///
    /// # Errors
    /// `InvalidInput` for what cannot be an id, `AmbiguousId`.
    pub fn get(&self, id: &str) -> Result<Option<Record>, StoreError> {
        if id.len() < MIN_PREFIX || !id.bytes().all(|byte| byte.is_ascii_alphanumeric()) {
            return Err(StoreError::invalid(format!(
                "'{id}' is no id; give at least {MIN_PREFIX} letters and digits of one"
            )));
        }
        let prefix = id.to_ascii_uppercase();
        self.read(|db| {
            let mut ids =
                db.prepare_cached("SELECT id FROM records WHERE ulid >= ?1 AND ulid < ?1 || '~' LIMIT 2")?;
            let ids: Vec<RecordId> =
                ids.query_map([&prefix], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
            match ids[..] {
                [] => Ok(None),
                [id] => Ok(read_record(db, id)?),
                _ => Err(StoreError::AmbiguousId { prefix }.into()),
            }
        })
    }

    /// The records of these ids, in their order, without those that are gone.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn records(&self, ids: &[RecordId]) -> Result<Vec<Record>, StoreError> {
        self.read(|db| {
            let records = ids.iter().map(|&id| read_record(db, id));
            Ok(records.filter_map(Result::transpose).collect::<Result<_, _>>()?)
        })
    }

    /// The records that fit, newest first, without the first `offset` and at most `limit`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn list(&self, filter: &Filter, limit: usize, offset: usize) -> Result<Vec<Record>, StoreError> {
        let (condition, mut values) = filter.condition();
        values.extend([limit, offset].map(|n| Value::Integer(i64::try_from(n).unwrap_or(i64::MAX))));
        let sql = format!(
            "SELECT {COLUMNS} FROM records WHERE {condition} ORDER BY records.id DESC LIMIT ? OFFSET ?"
        );
        self.read(|db| {
            let mut records = db.prepare_cached(&sql)?;
            let records = records.query_map(params_from_iter(values), |row| from_row(db, row))?;
            Ok(records.collect::<Result<_, _>>()?)
        })
    }

    /// Deletes records. Returns how many were there. The sources of those that came from a file are
    /// dropped: what is left of the file has to be read again to be whole.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`.
    pub fn forget(&self, ids: &[RecordId]) -> Result<usize, StoreError> {
        let ids = ids.to_vec();
        self.write(move |db| Ok(remove_all(db, ids)?))
    }

    /// Deletes every record that fits, as [`Store::forget`]; with the default filter, every record.
    /// Returns how many.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`.
    pub fn forget_matching(&self, filter: &Filter) -> Result<usize, StoreError> {
        let (condition, values) = filter.condition();
        self.write(move |db| {
            let sql = format!("SELECT records.id FROM records WHERE {condition}");
            Ok(remove_all(db, ids(db, &sql, values)?)?)
        })
    }

    /// Whether any record is due for deletion.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn any_due(&self, now_ms: u64) -> Result<bool, StoreError> {
        let due = i64::try_from(now_ms).unwrap_or(i64::MAX);
        self.read(|db| {
            let mut any =
                db.prepare_cached("SELECT EXISTS (SELECT 1 FROM records WHERE expires_ms <= ?1)")?;
            Ok(any.query_row([due], |row| row.get(0))?)
        })
    }

    /// Deletes the records that were due at `now_ms` or before, as [`Store::forget`]. Returns how
    /// many.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`; some of them may then be deleted.
    pub fn expire(&self, now_ms: u64) -> Result<usize, StoreError> {
        let due = i64::try_from(now_ms).unwrap_or(i64::MAX);
        // Most of the time nothing is due, and then nobody has to wait for the lock.
        if !self.any_due(now_ms)? {
            return Ok(0);
        }
        let mut expired = 0;
        loop {
            let batch = self.write(move |db| {
                let sql = format!("SELECT id FROM records WHERE expires_ms <= ? LIMIT {EXPIRE_BATCH}");
                Ok(remove_all(db, ids(db, &sql, vec![Value::Integer(due)])?)?)
            })?;
            expired += batch;
            if batch < EXPIRE_BATCH {
                return Ok(expired);
            }
        }
    }
}

pub(super) fn ids(db: &Connection, sql: &str, values: Vec<Value>) -> Result<Vec<RecordId>, Fault> {
    let mut ids = db.prepare_cached(sql)?;
    Ok(ids.query_map(params_from_iter(values), |row| row.get(0))?.collect::<Result<_, _>>()?)
}

/// Deletes records, and says of their files that they were not read.
fn remove_all(db: &Connection, ids: Vec<RecordId>) -> rusqlite::Result<usize> {
    let mut removed = 0;
    let mut drop_source = db
        .prepare_cached("DELETE FROM sources WHERE path = (SELECT source_path FROM records WHERE id = ?1)")?;
    for id in ids {
        drop_source.execute([id])?;
        removed += usize::from(remove(db, id)?);
    }
    Ok(removed)
}

/// Deletes a record and everything that hangs on it. Returns whether it was there.
pub(super) fn remove(db: &Connection, id: RecordId) -> rusqlite::Result<bool> {
    let mut layer = db.prepare_cached("SELECT layer FROM records WHERE id = ?1")?;
    let layer: Option<Layer> = layer.query_row([id], |row| row.get(0)).optional()?;
    let Some(layer) = layer else { return Ok(false) };
    keywords::remove(db, id)?;
    db.prepare_cached("DELETE FROM records WHERE id = ?1")?.execute([id])?;
    remove_tags(db, id)?;
    vectors::remove(db, layer, id)?;
    Ok(true)
}

/// Gives a record these tags, beside those that it has.
pub(super) fn put_tags<'a>(
    db: &Connection,
    id: RecordId,
    tags: impl IntoIterator<Item = &'a String>,
) -> rusqlite::Result<()> {
    let mut put =
        db.prepare_cached("INSERT INTO record_tags (record_id, tag) VALUES (?1, ?2) ON CONFLICT DO NOTHING")?;
    for tag in tags {
        put.execute((id, tag))?;
    }
    Ok(())
}

pub(super) fn remove_tags(db: &Connection, id: RecordId) -> rusqlite::Result<()> {
    db.prepare_cached("DELETE FROM record_tags WHERE record_id = ?1")?.execute([id])?;
    Ok(())
}

pub(super) fn read_record(db: &Connection, id: RecordId) -> rusqlite::Result<Option<Record>> {
    db.prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE id = ?1"))?
        .query_row([id], |row| from_row(db, row))
        .optional()
}

fn from_row(db: &Connection, row: &Row<'_>) -> rusqlite::Result<Record> {
    let id = row.get("id")?;
    let mut tags = db.prepare_cached("SELECT tag FROM record_tags WHERE record_id = ?1 ORDER BY tag")?;
    let tags = tags.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
    let source = match row.get("source_path")? {
        Some(path) => {
            Some(SourceRef { path, line_start: row.get("line_start")?, line_end: row.get("line_end")? })
        }
        None => None,
    };
    let project: String = row.get("project")?;
    Ok(Record {
        id,
        ulid: row.get("ulid")?,
        layer: row.get("layer")?,
        kind: row.get("kind")?,
        title: row.get("title")?,
        text: row.get("text")?,
        tags,
        project: (!project.is_empty()).then_some(project),
        session: row.get("session")?,
        source,
        created_ms: row.get("created_ms")?,
        last_access_ms: row.get("last_access_ms")?,
        access_count: row.get("access_count")?,
        importance: row.get("importance")?,
        score: row.get("score")?,
        arrival: Arrival {
            moved_count: row.get("moved_count")?,
            carried: row.get("carried")?,
            moved_ms: row.get("moved_ms")?,
        },
        expires_ms: row.get("expires_ms")?,
        valid_from_ms: row.get("valid_from_ms")?,
        valid_to_ms: row.get("valid_to_ms")?,
        superseded_by: row.get("superseded_by")?,
    })
}

#[cfg(test)]
mod tests {
    use super::super::{NewRecord, NewSource, fixture::*, now_ms};
    use super::*;

    #[test]
    fn a_record_is_found_by_the_beginning_of_its_id() {
        let f = Fixture::new();
        let added = f.store.add(None, vec![note("a"), note("b")]).unwrap();
        for record in &added {
            // The time of both may be the same; the 16 random characters are not.
            for id in [&record.ulid[..], &record.ulid.to_lowercase(), &record.ulid[..22]] {
                assert_eq!(f.store.get(id).unwrap().map(|found| found.id), Some(record.id), "{id}");
            }
        }
        let error = f.store.get(&added[0].ulid[..4]).unwrap_err();
        assert!(matches!(error, StoreError::AmbiguousId { .. }), "{error}");
        assert_eq!(f.store.get("ZZZZ").unwrap(), None);
        assert_eq!(f.store.get(&format!("{}0", added[0].ulid)).unwrap(), None);
        for bad in ["", "abc", "ab%d", "äbcd"] {
            assert!(matches!(f.store.get(bad), Err(StoreError::InvalidInput(_))), "{bad}");
        }
    }

    #[test]
    fn records_come_in_the_order_asked_for_and_lists_newest_first() {
        let f = Fixture::new();
        f.store.add(None, (0..5).map(|n| note(&n.to_string())).collect()).unwrap();
        let texts = |records: Vec<Record>| records.into_iter().map(|record| record.text).collect::<String>();
        let asked = [RecordId(4), RecordId(99), RecordId(1)];
        assert_eq!(texts(f.store.records(&asked).unwrap()), "30");
        assert_eq!(texts(f.store.list(&Filter::default(), 3, 0).unwrap()), "432");
        assert_eq!(texts(f.store.list(&Filter::default(), 3, 3).unwrap()), "10");
    }

    #[test]
    fn what_is_forgotten_is_gone_and_its_id_is_not_used_again() {
        let f = Fixture::new();
        let space = f.space(2);
        let new = || vec![NewRecord { tags: strings(&["t"]), vector: Some(vec![1.0, 1.0]), ..note("a") }];
        let id = f.store.add(Some(space), new()).unwrap()[0].id;
        assert_eq!(f.store.forget(&[id, id, RecordId(77)]).unwrap(), 1);
        assert_eq!(f.store.records(&[id]).unwrap(), []);
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
        assert!(f.store.add(Some(space), new()).unwrap()[0].id > id);
        assert_eq!(
            f.store.forget_matching(&Filter { tags: strings(&["u"]), ..Filter::default() }).unwrap(),
            0
        );
        assert_eq!(
            f.store.forget_matching(&Filter { tags: strings(&["t"]), ..Filter::default() }).unwrap(),
            1
        );
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_file_that_lost_a_record_is_not_known_any_more() {
        let f = Fixture::new();
        let due = |text: &str, expires_ms| NewRecord { expires_ms, tags: strings(&[text]), ..note(text) };
        for path in ["/forget", "/match", "/expire", "/keep"] {
            let source = NewSource {
                path: path.to_owned(),
                content_hash: [1; 32],
                settings: [2; 32],
                size: 0,
                mtime_ms: 0,
                project: None,
                layer: Layer::Assets,
            };
            let expires_ms = (path == "/expire").then_some(5);
            f.store.replace_source(source, vec![due(path, expires_ms), note("rest")], None).unwrap();
        }
        let known =
            || ["/forget", "/match", "/expire", "/keep"].map(|p| f.store.source(p).unwrap().is_some());
        let forget = Filter { source: Some("/forget".to_owned()), ..Filter::default() };
        let first = f.store.list(&forget, 1, 0).unwrap()[0].id;
        assert_eq!(f.store.forget(&[first]).unwrap(), 1);
        assert_eq!(known(), [false, true, true, true]);
        let tagged = Filter { tags: strings(&["/match"]), ..Filter::default() };
        assert_eq!(f.store.forget_matching(&tagged).unwrap(), 1);
        assert_eq!(f.store.expire(5).unwrap(), 1);
        assert_eq!(known(), [false, false, false, true]);
        // What is left of them is still found where the files are.
        assert_eq!(f.store.source_paths("/").unwrap(), ["/expire", "/forget", "/keep", "/match"]);
    }

    #[test]
    fn what_is_due_expires_in_batches() {
        let f = Fixture::new();
        let now = now_ms();
        let due = (0..EXPIRE_BATCH + 1).map(|n| NewRecord { expires_ms: Some(now), ..note(&n.to_string()) });
        let later = NewRecord { expires_ms: Some(now + 1), ..note("later") };
        f.store.add(None, due.chain([later, note("never")]).collect()).unwrap();
        assert_eq!(f.store.expire(now - 1).unwrap(), 0);
        assert_eq!(f.store.expire(now).unwrap(), EXPIRE_BATCH + 1);
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 2);
    }
}
