//! Storing records, and storing them again.
use super::{
    Layer, NewRecord, RecordId, SpaceId, Store, StoreError, error::Fault, keywords, now_ms,
    record::DEFAULT_KIND, records, supersede, terms::Terms, vectors,
};
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeSet;
use ulid::Ulid;

/// What became of a record that was added.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Added {
    /// Its id for indexes.
    pub id: RecordId,
    /// Its id for people.
    pub ulid: String,
    /// Whether it is new.
    pub outcome: Outcome,
}

/// Whether an added record is new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It is new.
    Stored,
    /// It was there: its access is counted, its expiry prolonged, its tags merged. Its kind and
    /// session are the new ones where these say something: a kind other than `note`, any session.
    /// Where it was not true any more, or not yet, it is from now on.
    Refreshed,
}

impl Store {
    /// Stores records, all or none. The same title and text in the same layer, project and source
    /// file is one record. Vectors are of `space`; a record that has one there keeps it.
    ///
    /// # Errors
    /// `InvalidInput` for an empty text, an importance outside 0..=1, a time of truth that ends before it
    /// begins, a vector without a space or that [`Store::put_vectors`] would refuse; `ReadOnly`, `Full`, `Busy`.
    pub fn add(&self, space: Option<SpaceId>, records: Vec<NewRecord>) -> Result<Vec<Added>, StoreError> {
        let records = self.prepare(space, records)?;
        self.write(move |db| {
            let now = now_ms();
            records.iter().map(|record| add(db, space, record, now)).collect()
        })
    }

    /// Does outside the transaction what can be done there, and checks the records.
    pub(super) fn prepare(
        &self,
        space: Option<SpaceId>,
        records: Vec<NewRecord>,
    ) -> Result<Vec<Prepared>, StoreError> {
        let dim = space.map(|space| self.dim(space)).transpose()?;
        records.into_iter().map(|record| Prepared::new(record, dim)).collect()
    }
}

/// A record that is fit to be stored.
pub(super) struct Prepared {
    pub(super) record: NewRecord,
    pub(super) content_hash: [u8; 32],
    /// Trimmed, without empty ones.
    pub(super) tags: BTreeSet<String>,
    /// For the keyword index.
    terms: Terms,
    /// As the database has it.
    vector: Option<Vec<u8>>,
}

impl Prepared {
    fn new(mut record: NewRecord, dim: Option<usize>) -> Result<Self, StoreError> {
        if record.text.trim().is_empty() {
            return Err(StoreError::invalid("a record needs a text"));
        }
        if !(0.0..=1.0).contains(&record.importance) {
            return Err(StoreError::invalid(format!(
                "the importance {} is not from 0 to 1",
                record.importance
            )));
        }
        supersede::check_validity(record.valid_from_ms, record.valid_to_ms)?;
        let vector = match (record.vector.take(), dim) {
            (Some(vector), Some(dim)) => Some(vectors::encode(&vector, dim)?),
            (Some(_), None) => return Err(StoreError::invalid("a vector needs the space that it is in")),
            (None, _) => None,
        };
        let tags = record.tags.iter().map(|tag| tag.trim()).filter(|tag| !tag.is_empty());
        let tags = tags.map(str::to_owned).collect();
        let terms = Terms::of(record.title.as_deref(), &record.text);
        Ok(Self { content_hash: record.content_hash(), tags, terms, vector, record })
    }

    /// Gives the stored record its vector where it has none.
    pub(super) fn put_vector(
        &self,
        db: &Connection,
        space: Option<SpaceId>,
        id: RecordId,
    ) -> rusqlite::Result<()> {
        match (space, &self.vector) {
            (Some(space), Some(vector)) => vectors::put_missing(db, space, self.record.layer, id, vector),
            _ => Ok(()),
        }
    }
}

fn add(db: &Connection, space: Option<SpaceId>, new: &Prepared, now: u64) -> Result<Added, Fault> {
    let added = match find_same(db, new)? {
        Some((id, ulid)) => {
            refresh(db, id, new, now)?;
            Added { id, ulid, outcome: Outcome::Refreshed }
        }
        None => insert(db, new, now)?,
    };
    for &old in &new.record.supersedes {
        supersede::replace(db, old, added.id)?;
    }
    records::put_tags(db, added.id, &new.tags)?;
    new.put_vector(db, space, added.id)?;
    Ok(added)
}

/// The record that says the same in the same place.
fn find_same(db: &Connection, new: &Prepared) -> rusqlite::Result<Option<(RecordId, String)>> {
    let hash = &new.content_hash;
    let (layer, project): (Layer, &str) = (new.record.layer, new.record.project());
    let found = |row: &rusqlite::Row<'_>| Ok((row.get(0)?, row.get(1)?));
    // Two statements, for each has an index of its own.
    match &new.record.source {
        None => db
            .prepare_cached(
                "SELECT id, ulid FROM records
                 WHERE content_hash = ?1 AND layer = ?2 AND project = ?3 AND source_path IS NULL",
            )?
            .query_row((hash, layer, project), found),
        Some(source) => db
            .prepare_cached(
                "SELECT id, ulid FROM records
                 WHERE content_hash = ?1 AND layer = ?2 AND project = ?3 AND source_path = ?4 LIMIT 1",
            )?
            .query_row((hash, layer, project, &source.path), found),
    }
    .optional()
}

fn refresh(db: &Connection, id: RecordId, new: &Prepared, now: u64) -> rusqlite::Result<()> {
    let record = &new.record;
    let kind = Some(&record.kind).filter(|kind| *kind != DEFAULT_KIND);
    db.prepare_cached(
        "UPDATE records SET
             last_access_ms = max(last_access_ms, ?2),
             access_count = access_count + 1,
             importance = max(importance, ?3),
             -- With NULL, which is never, max is NULL.
             expires_ms = max(expires_ms, ?4),
             kind = coalesce(?5, kind),
             session = coalesce(?6, session)
         WHERE id = ?1",
    )?
    .execute((id, now, record.importance, record.expires_ms, kind, &record.session))?;
    // What is said again holds again.
    let says_when = record.valid_from_ms.is_some() || record.valid_to_ms.is_some();
    db.prepare_cached(
        "UPDATE records SET
             valid_from_ms = coalesce(?4, iif(valid_to_ms <= ?2 OR valid_from_ms > ?2, ?2, valid_from_ms)),
             valid_to_ms = ?5,
             superseded_by = NULL
         WHERE id = ?1 AND (?3 OR valid_to_ms <= ?2 OR valid_from_ms > ?2)",
    )?
    .execute((
        id,
        now,
        says_when || !record.supersedes.is_empty(),
        record.valid_from_ms,
        record.valid_to_ms,
    ))?;
    Ok(())
}

pub(super) fn insert(db: &Connection, new: &Prepared, now: u64) -> Result<Added, Fault> {
    let ulid = Ulid::generate().to_string();
    let record = &new.record;
    let source = record.source.as_ref();
    // Without RETURNING, which is a trigger to SQLite: see `records_fts` in the schema.
    db.prepare_cached(
        "INSERT INTO records (
             ulid, layer, kind, project, session, created_ms, last_access_ms, access_count,
             importance, score, expires_ms, content_hash, source_path, line_start, line_end, title, text,
             valid_from_ms, valid_to_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6, 0, ?7, 0, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16)",
    )?
    .execute((
        &ulid,
        record.layer,
        &record.kind,
        record.project(),
        &record.session,
        now,
        record.importance,
        record.expires_ms,
        &new.content_hash,
        source.map(|source| &source.path),
        source.map(|source| source.line_start),
        source.map(|source| source.line_end),
        &record.title,
        &record.text,
        record.valid_from_ms.or((!record.supersedes.is_empty()).then_some(now)),
        record.valid_to_ms,
    ))?;
    let id = RecordId(db.last_insert_rowid());
    keywords::insert(db, id, &new.terms)?;
    Ok(Added { id, ulid, outcome: Outcome::Stored })
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, SourceRef, fixture::*};
    use super::*;

    #[test]
    fn the_same_text_is_one_record_that_is_refreshed() {
        let f = Fixture::new();
        let space = f.space(2);
        let first = NewRecord { tags: strings(&["b", " a ", "", "a"]), expires_ms: Some(10), ..note("same") };
        let again = NewRecord {
            tags: strings(&["c"]),
            expires_ms: Some(5),
            importance: 0.9,
            vector: Some(vec![1.0, 2.0]),
            ..note("same")
        };
        let first = f.store.add(Some(space), vec![first]).unwrap();
        let again = f.store.add(Some(space), vec![again]).unwrap();
        assert_eq!((first[0].outcome, again[0].outcome), (Outcome::Stored, Outcome::Refreshed));
        assert_eq!((first[0].id, &first[0].ulid), (again[0].id, &again[0].ulid));

        let record = &f.store.records(&[first[0].id]).unwrap()[0];
        assert_eq!(record.tags, ["a", "b", "c"]);
        assert_eq!((record.expires_ms, record.importance, record.access_count), (Some(10), 0.9, 1));
        // The vector was missing, so the index hears of it; a third time it hears nothing.
        let head = f.store.head(space, Layer::Insights).unwrap();
        assert_eq!(f.store.changes_after(space, Layer::Insights, 0).unwrap().upserts, [1]);
        f.store.add(Some(space), vec![NewRecord { vector: Some(vec![1.0, 2.0]), ..note("same") }]).unwrap();
        assert_eq!(f.store.head(space, Layer::Insights).unwrap(), head);
        assert_eq!(f.store.records(&[first[0].id]).unwrap()[0].expires_ms, None);
    }

    #[test]
    fn a_record_that_is_added_again_takes_the_kind_and_session_that_are_given() {
        let f = Fixture::new();
        let new = |kind: &str, session: Option<&str>| NewRecord {
            kind: kind.to_owned(),
            session: session.map(str::to_owned),
            ..note("same")
        };
        let add = |new| {
            let id = f.store.add(None, vec![new]).unwrap()[0].id;
            let record = f.store.records(&[id]).unwrap().remove(0);
            (record.kind, record.session)
        };
        let is = |kind: &str, session: Option<&str>| (kind.to_owned(), session.map(str::to_owned));
        assert_eq!(add(new("note", None)), is("note", None));
        assert_eq!(add(new("decision", Some("s"))), is("decision", Some("s")));
        assert_eq!(add(new("note", None)), is("decision", Some("s")));
        assert_eq!(add(new("fact", Some("t"))), is("fact", Some("t")));
    }

    #[test]
    fn layer_project_title_and_file_tell_records_apart() {
        let f = Fixture::new();
        let source = |path: &str| Some(SourceRef { path: path.to_owned(), line_start: 1, line_end: 2 });
        let records = vec![
            note("same"),
            NewRecord { layer: Layer::Assets, ..note("same") },
            NewRecord { project: Some("p".to_owned()), ..note("same") },
            NewRecord { title: Some("t".to_owned()), ..note("same") },
            NewRecord { source: source("/a"), ..note("same") },
            NewRecord { source: source("/b"), ..note("same") },
        ];
        let first = f.store.add(None, records.clone()).unwrap();
        assert!(first.iter().all(|added| added.outcome == Outcome::Stored));
        let again = f.store.add(None, records).unwrap();
        assert!(again.iter().all(|added| added.outcome == Outcome::Refreshed));
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 6);
        // A project without a name is none.
        let unnamed = NewRecord { project: Some(String::new()), ..note("same") };
        assert_eq!(f.store.add(None, vec![unnamed]).unwrap()[0].id, first[0].id);
    }

    #[test]
    fn a_record_comes_back_as_it_was_added() {
        let f = Fixture::new();
        let new = NewRecord {
            layer: Layer::Assets,
            kind: "chunk".to_owned(),
            title: Some("A > B".to_owned()),
            text: "Füße\0 🦀".to_owned(),
            tags: strings(&["x"]),
            project: Some("p".to_owned()),
            session: Some("s".to_owned()),
            source: Some(SourceRef { path: "/a/b.md".to_owned(), line_start: 3, line_end: 9 }),
            importance: 0.25,
            expires_ms: Some(7),
            valid_from_ms: Some(8),
            valid_to_ms: Some(9),
            supersedes: Vec::new(),
            vector: None,
        };
        let added = f.store.add(None, vec![new.clone()]).unwrap();
        let record = f.store.get(&added[0].ulid).unwrap().unwrap();
        assert_eq!(record.id, added[0].id);
        assert_eq!(record.created_ms, record.last_access_ms);
        assert_eq!((record.access_count, record.score, record.superseded_by), (0, 0.0, None));
        let back = NewRecord {
            layer: record.layer,
            kind: record.kind,
            title: record.title,
            text: record.text,
            tags: record.tags,
            project: record.project,
            session: record.session,
            source: record.source,
            importance: record.importance,
            expires_ms: record.expires_ms,
            valid_from_ms: record.valid_from_ms,
            valid_to_ms: record.valid_to_ms,
            supersedes: Vec::new(),
            vector: None,
        };
        assert_eq!(back, new);
    }

    #[test]
    fn what_cannot_be_stored_is_refused_and_nothing_of_the_call_is_stored() {
        let f = Fixture::new();
        let space = f.space(2);
        let bad = [
            note(" \n"),
            NewRecord { importance: f32::NAN, ..note("a") },
            NewRecord { importance: 1.5, ..note("a") },
            NewRecord { valid_from_ms: Some(5), valid_to_ms: Some(5), ..note("a") },
            NewRecord { vector: Some(vec![1.0]), ..note("a") },
            NewRecord { vector: Some(vec![1e6, 0.0]), ..note("a") },
            NewRecord { vector: Some(vec![f32::NAN, 0.0]), ..note("a") },
        ];
        for record in bad {
            let error = f.store.add(Some(space), vec![note("good"), record.clone()]).unwrap_err();
            assert!(matches!(error, StoreError::InvalidInput(_)), "{record:?}: {error}");
        }
        let homeless = NewRecord { vector: Some(vec![1.0, 1.0]), ..note("a") };
        assert!(matches!(f.store.add(None, vec![homeless]), Err(StoreError::InvalidInput(_))));
        assert!(matches!(f.store.add(Some(SpaceId(9)), vec![note("a")]), Err(StoreError::InvalidInput(_))));
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 0);
    }
}
