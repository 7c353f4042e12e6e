//! Files that records were taken from.
use super::{
    Layer, NewRecord, RecordId, SourceRef, SpaceId, Store, StoreError, add, error::Fault,
    filter::at_and_below, now_ms, records, vectors,
};
use rusqlite::{Connection, OptionalExtension, Row};
use std::collections::{HashMap, VecDeque};

/// A file as it is read now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSource {
    /// Where it is.
    pub path: String,
    /// BLAKE3 of its bytes.
    pub content_hash: [u8; 32],
    /// Digest of what its records depend on beside its bytes: how it was split, how they were
    /// labelled.
    pub settings: [u8; 32],
    /// Its length in bytes.
    pub size: u64,
    /// When it was last changed, in milliseconds since 1970.
    pub mtime_ms: u64,
    /// The project of its records.
    pub project: Option<String>,
    /// The layer of its records.
    pub layer: Layer,
}

/// A file as it was when its records were stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// What was known of the file.
    pub file: NewSource,
    /// When its records were stored, in milliseconds since 1970.
    pub indexed_ms: u64,
}

/// What became of the records of a source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct SourceOutcome {
    /// They are new.
    pub added: usize,
    /// They were there, perhaps at other lines.
    pub kept: usize,
    /// They were there and are not any more.
    pub removed: usize,
}

impl std::iter::Sum for SourceOutcome {
    fn sum<I: Iterator<Item = Self>>(outcomes: I) -> Self {
        outcomes.fold(Self::default(), |a, b| Self {
            added: a.added + b.added,
            kept: a.kept + b.kept,
            removed: a.removed + b.removed,
        })
    }
}

const COLUMNS: &str = "path, content_hash, settings, size, mtime_ms, project, layer, indexed_ms";

impl Store {
    /// Makes `records` the records of `source`, all of them and no others, at once. Layer, project
    /// and path are those of the source; of [`NewRecord::source`] only the lines count. A record
    /// with the title and text of one that is there keeps its id, age, accesses and vector.
    ///
    /// # Errors
    /// As [`Store::add`].
    pub fn replace_source(
        &self,
        source: NewSource,
        records: Vec<NewRecord>,
        space: Option<SpaceId>,
    ) -> Result<SourceOutcome, StoreError> {
        let outcomes = self.replace_sources(vec![(source, records)], space)?;
        Ok(outcomes.into_iter().sum())
    }

    /// [`Store::replace_source`] for several files in one transaction, which costs one wait for the
    /// disk.
    ///
    /// # Errors
    /// As [`Store::add`]; then nothing of any file is changed.
    pub fn replace_sources(
        &self,
        files: Vec<(NewSource, Vec<NewRecord>)>,
        space: Option<SpaceId>,
    ) -> Result<Vec<SourceOutcome>, StoreError> {
        let mut prepared = Vec::with_capacity(files.len());
        for (source, records) in files {
            let records = self.prepare(space, records_of(&source, records))?;
            prepared.push((source, records));
        }
        self.write(move |db| {
            prepared.iter().map(|(source, records)| replace(db, source, records, space)).collect()
        })
    }

    /// The positions of the records that [`Store::replace_source`] could not give a vector that is
    /// there already: embed these, and leave the vectors of the others out.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn records_to_embed(
        &self,
        source: &NewSource,
        records: &[NewRecord],
        space: SpaceId,
    ) -> Result<Vec<usize>, StoreError> {
        self.read(|db| {
            let mut kept = Kept::of(db, source)?;
            let mut missing = Vec::new();
            for (at, record) in records.iter().enumerate() {
                let has_vector = match kept.take(&record.content_hash()) {
                    Some(id) => vectors::exists(db, space, source.layer, id)?,
                    None => false,
                };
                if !has_vector {
                    missing.push(at);
                }
            }
            Ok(missing)
        })
    }

    /// The source at `path`, if it was stored and none of its records was forgotten or expired since.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn source(&self, path: &str) -> Result<Option<Source>, StoreError> {
        self.read(|db| {
            let mut source = db.prepare_cached(&format!("SELECT {COLUMNS} FROM sources WHERE path = ?1"))?;
            Ok(source.query_row([path], Source::from_row).optional()?)
        })
    }

    /// The paths at or below `path`, sorted, of sources and of records that are left of one.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn source_paths(&self, path: &str) -> Result<Vec<String>, StoreError> {
        self.read(|db| {
            let mut paths = db.prepare_cached(
                "SELECT path FROM sources WHERE path = ?1 OR (path >= ?2 AND path < ?3)
                 UNION
                 SELECT source_path FROM records
                 WHERE source_path = ?1 OR (source_path >= ?2 AND source_path < ?3)
                 ORDER BY 1",
            )?;
            Ok(paths.query_map(at_and_below(path), |row| row.get(0))?.collect::<Result<_, _>>()?)
        })
    }

    /// Lets the records of sources live until `expires_ms`, where they would be due earlier.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`.
    pub fn prolong_sources(&self, paths: &[String], expires_ms: u64) -> Result<(), StoreError> {
        let paths = paths.to_vec();
        self.write(move |db| {
            let mut prolong = db.prepare_cached(
                "UPDATE records SET expires_ms = ?2 WHERE source_path = ?1 AND expires_ms < ?2",
            )?;
            for path in &paths {
                prolong.execute((path, expires_ms))?;
            }
            Ok(())
        })
    }

    /// Forgets sources and their records. Returns how many records went.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`.
    pub fn remove_sources(&self, paths: &[String]) -> Result<usize, StoreError> {
        let paths = paths.to_vec();
        self.write(move |db| {
            let mut removed = 0;
            for path in &paths {
                let mut ids = db.prepare_cached("SELECT id FROM records WHERE source_path = ?1")?;
                let ids: Vec<RecordId> =
                    ids.query_map([path], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
                for id in ids {
                    removed += usize::from(records::remove(db, id)?);
                }
                db.prepare_cached("DELETE FROM sources WHERE path = ?1")?.execute([path])?;
            }
            Ok(removed)
        })
    }
}

fn replace(
    db: &Connection,
    source: &NewSource,
    records: &[add::Prepared],
    space: Option<SpaceId>,
) -> Result<SourceOutcome, Fault> {
    let now = now_ms();
    let mut kept = Kept::of(db, source)?;
    let mut outcome = SourceOutcome::default();
    for new in records {
        let id = match kept.take(&new.content_hash) {
            Some(id) => {
                keep(db, id, &new.record)?;
                records::remove_tags(db, id)?;
                outcome.kept += 1;
                id
            }
            None => {
                outcome.added += 1;
                add::insert(db, new, now)?.id
            }
        };
        records::put_tags(db, id, &new.tags)?;
        new.put_vector(db, space, id)?;
    }
    for id in kept.left_over() {
        outcome.removed += usize::from(records::remove(db, id)?);
    }
    put(db, source, now)?;
    Ok(outcome)
}

impl Source {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        let project: String = row.get("project")?;
        let file = NewSource {
            path: row.get("path")?,
            content_hash: row.get("content_hash")?,
            settings: row.get("settings")?,
            size: row.get("size")?,
            mtime_ms: row.get("mtime_ms")?,
            project: (!project.is_empty()).then_some(project),
            layer: row.get("layer")?,
        };
        Ok(Self { file, indexed_ms: row.get("indexed_ms")? })
    }
}

fn records_of(source: &NewSource, mut records: Vec<NewRecord>) -> Vec<NewRecord> {
    for record in &mut records {
        record.layer = source.layer;
        record.project.clone_from(&source.project);
        let (line_start, line_end) =
            record.source.as_ref().map_or((1, 1), |lines| (lines.line_start, lines.line_end));
        record.source = Some(SourceRef { path: source.path.clone(), line_start, line_end });
    }
    records
}

/// The records that a source has, by what they say. It may say the same thing several times.
struct Kept {
    by_content: HashMap<[u8; 32], VecDeque<RecordId>>,
    /// Of another layer or project, where the source was before.
    elsewhere: Vec<RecordId>,
}

impl Kept {
    fn of(db: &Connection, source: &NewSource) -> Result<Self, Fault> {
        let mut records = db.prepare_cached(
            "SELECT id, content_hash, layer = ?2 AND project = ?3 FROM records WHERE source_path = ?1
             ORDER BY line_start, id",
        )?;
        let project = source.project.as_deref().unwrap_or_default();
        let mut rows = records.query((&source.path, source.layer, project))?;
        let mut kept = Self { by_content: HashMap::new(), elsewhere: Vec::new() };
        while let Some(row) = rows.next()? {
            let id = row.get(0)?;
            if row.get(2)? {
                kept.by_content.entry(row.get(1)?).or_default().push_back(id);
            } else {
                kept.elsewhere.push(id);
            }
        }
        Ok(kept)
    }

    fn take(&mut self, content_hash: &[u8; 32]) -> Option<RecordId> {
        self.by_content.get_mut(content_hash)?.pop_front()
    }

    fn left_over(self) -> impl Iterator<Item = RecordId> {
        self.by_content.into_values().flatten().chain(self.elsewhere)
    }
}

/// Gives a record that stays whatever may have changed around its text.
fn keep(db: &Connection, id: RecordId, new: &NewRecord) -> rusqlite::Result<()> {
    let lines = new.source.as_ref().map(|lines| (lines.line_start, lines.line_end)).unzip();
    db.prepare_cached(
        "UPDATE records SET line_start = ?2, line_end = ?3, kind = ?4, session = ?5, importance = ?6,
             expires_ms = ?7
         WHERE id = ?1",
    )?
    .execute((id, lines.0, lines.1, &new.kind, &new.session, new.importance, new.expires_ms))?;
    Ok(())
}

fn put(db: &Connection, source: &NewSource, now: u64) -> rusqlite::Result<()> {
    db.prepare_cached(&format!(
        "INSERT OR REPLACE INTO sources ({COLUMNS}) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)"
    ))?
    .execute((
        &source.path,
        &source.content_hash,
        &source.settings,
        source.size,
        source.mtime_ms,
        source.project.as_deref().unwrap_or_default(),
        source.layer,
        now,
    ))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, fixture::*};
    use super::*;

    fn file(path: &str) -> NewSource {
        NewSource {
            path: path.to_owned(),
            content_hash: [7; 32],
            settings: [8; 32],
            size: 12,
            mtime_ms: 34,
            project: Some("p".to_owned()),
            layer: Layer::Assets,
        }
    }

    /// One chunk a text, each a line below the last.
    fn chunks(texts: &[&str], first_line: u32) -> Vec<NewRecord> {
        let chunk = |(text, line_start): (&&str, u32)| NewRecord {
            source: Some(SourceRef { path: String::new(), line_start, line_end: line_start }),
            vector: Some(vec![line_start as f32, 1.0]),
            ..note(text)
        };
        texts.iter().zip(first_line..).map(chunk).collect()
    }

    /// Text and line of every record, by line.
    fn stored(f: &Fixture) -> Vec<(String, u32)> {
        let records = f.store.list(&Filter::default(), 99, 0).unwrap();
        let mut lines: Vec<_> = records.into_iter().map(|r| (r.text, r.source.unwrap().line_start)).collect();
        lines.sort_by_key(|line| line.1);
        lines
    }

    #[test]
    fn a_changed_file_costs_what_changed() {
        let f = Fixture::new();
        let space = f.space(2);
        let replace = |texts: &[&str], line| {
            f.store.replace_source(file("/a"), chunks(texts, line), Some(space)).unwrap()
        };
        assert_eq!(replace(&["one", "two", "two"], 1), SourceOutcome { added: 3, kept: 0, removed: 0 });
        let head = f.store.head(space, Layer::Assets).unwrap();
        let before =
            f.store.list(&Filter { project: Some("p".to_owned()), ..Filter::default() }, 9, 0).unwrap();
        assert_eq!(before.len(), 3);
        assert_eq!(before[0].layer, Layer::Assets);

        assert_eq!(replace(&["one", "two", "two"], 5), SourceOutcome { added: 0, kept: 3, removed: 0 });
        assert_eq!(f.store.head(space, Layer::Assets).unwrap(), head);
        assert_eq!(stored(&f), [("one".to_owned(), 5), ("two".to_owned(), 6), ("two".to_owned(), 7)]);

        assert_eq!(replace(&["two", "three"], 1), SourceOutcome { added: 1, kept: 1, removed: 2 });
        assert_eq!(stored(&f), [("two".to_owned(), 1), ("three".to_owned(), 2)]);
        let changes = f.store.changes_after(space, Layer::Assets, head).unwrap();
        assert_eq!((changes.upserts.len(), changes.removed.len()), (1, 2));
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn the_same_text_in_two_files_is_two_records() {
        let f = Fixture::new();
        for path in ["/a", "/b"] {
            f.store.replace_source(file(path), chunks(&["same"], 1), Some(f.space(2))).unwrap();
        }
        f.store
            .add(
                None,
                vec![NewRecord { project: Some("p".to_owned()), layer: Layer::Assets, ..note("same") }],
            )
            .unwrap();
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 3);
        assert_eq!(f.store.remove_sources(&strings(&["/a", "/nowhere"])).unwrap(), 1);
        assert_eq!(f.store.count(&Filter::default()).unwrap(), 2);
    }

    #[test]
    fn a_source_that_moves_to_another_layer_takes_its_records_along() {
        let f = Fixture::new();
        let space = f.space(2);
        f.store.replace_source(file("/a"), chunks(&["x", "y"], 1), Some(space)).unwrap();
        let moved = NewSource { layer: Layer::Insights, ..file("/a") };
        let outcome = f.store.replace_source(moved, chunks(&["x", "y"], 1), Some(space)).unwrap();
        assert_eq!(outcome, SourceOutcome { added: 2, kept: 0, removed: 2 });
        assert_eq!(f.store.changes_after(space, Layer::Assets, 0).unwrap().removed, [1, 2]);
        assert_eq!(f.store.changes_after(space, Layer::Insights, 0).unwrap().upserts, [3, 4]);
    }

    #[test]
    fn only_what_has_no_vector_is_to_be_embedded() {
        let f = Fixture::new();
        let space = f.space(2);
        let embed = |texts: &[&str]| f.store.records_to_embed(&file("/a"), &chunks(texts, 1), space).unwrap();
        assert_eq!(embed(&["x", "y"]), [0, 1]);
        let mut records = chunks(&["x", "y"], 1);
        records[1].vector = None;
        f.store.replace_source(file("/a"), records, Some(space)).unwrap();
        assert_eq!(embed(&["new", "x", "x", "y"]), [0, 2, 3]);
    }

    #[test]
    fn tags_of_a_kept_record_are_those_given_last() {
        let f = Fixture::new();
        for tags in [&["a", "b"][..], &["c"]] {
            let record = NewRecord { tags: strings(tags), ..note("x") };
            f.store.replace_source(file("/a"), vec![record], None).unwrap();
        }
        assert_eq!(f.store.list(&Filter::default(), 9, 0).unwrap()[0].tags, ["c"]);
    }

    #[test]
    fn sources_are_found_by_path_and_folder() {
        let f = Fixture::new();
        for path in ["/b/2", "/a/1", "/b/1", "/b%", "/b.txt", "/b-old/1", "/c"] {
            f.store.replace_source(file(path), Vec::new(), None).unwrap();
        }
        let source = f.store.source("/b/2").unwrap().unwrap();
        assert_eq!(source.file, file("/b/2"));
        assert!(source.indexed_ms > 0);
        assert_eq!(f.store.source("/b").unwrap(), None);
        let paths = |path| f.store.source_paths(path).unwrap();
        assert_eq!(paths("/b"), ["/b/1", "/b/2"]);
        assert_eq!(paths("/b/"), ["/b/1", "/b/2"]);
        assert_eq!(paths("/c"), ["/c"]);
        assert_eq!(paths("/").len(), 7);
        f.store.remove_sources(&strings(&["/b/1"])).unwrap();
        assert_eq!(paths("/b"), ["/b/2"]);
    }

    #[test]
    fn the_records_of_a_source_live_longer_but_never_shorter() {
        let f = Fixture::new();
        let due = |text: &str, expires_ms| NewRecord { expires_ms, ..note(text) };
        let records = vec![due("early", Some(10)), due("late", Some(30)), due("never", None)];
        for path in ["/a", "/b"] {
            f.store.replace_source(file(path), records.clone(), None).unwrap();
        }
        f.store.prolong_sources(&strings(&["/a", "/nowhere"]), 20).unwrap();
        let expiries = |path: &str| {
            let filter = Filter { source: Some(path.to_owned()), ..Filter::default() };
            let records = f.store.list(&filter, 9, 0).unwrap();
            records.iter().rev().map(|record| record.expires_ms).collect::<Vec<_>>()
        };
        assert_eq!(expiries("/a"), [Some(20), Some(30), None]);
        assert_eq!(expiries("/b"), [Some(10), Some(30), None]);
    }
}
