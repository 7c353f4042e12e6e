//! Taking records in with all that is known of them.
use super::{
    Layer, PortableRecord, Record, RecordId, SpaceId, Store, StoreError,
    error::Fault,
    keywords, now_ms,
    record::{DEFAULT_KIND, content_hash},
    records, vectors,
};
use rusqlite::{Connection, OptionalExtension};
use std::collections::BTreeSet;
use ulid::Ulid;

/// What a record is given that a file does not say.
#[derive(Clone, Copy, Debug)]
pub struct ImportDefaults {
    /// Its layer.
    pub layer: Layer,
    /// When a new one expires, by layer in the order of [`Layer::ALL`], in milliseconds since 1970.
    pub expires_ms: [Option<u64>; Layer::ALL.len()],
}

/// A record that is fit to be taken in.
#[derive(Clone, Debug)]
pub struct ImportRecord {
    record: PortableRecord,
    layer: Layer,
    tags: BTreeSet<String>,
    content_hash: [u8; 32],
    /// As the database has it.
    vector: Option<Vec<u8>>,
    expires_ms: Option<u64>,
}

/// What became of a record that was taken in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Imported {
    /// It is new.
    New(RecordId),
    /// It was there, and is now as the file says.
    Updated(RecordId),
    /// It was there, the same.
    Unchanged(RecordId),
    /// It cannot be: why.
    Refused(String),
}

impl Imported {
    /// The record, where there is one.
    pub fn id(&self) -> Option<RecordId> {
        match self {
            Self::New(id) | Self::Updated(id) | Self::Unchanged(id) => Some(*id),
            Self::Refused(_) => None,
        }
    }
}

impl ImportRecord {
    /// Checks a record of a file. Vectors are `dim` wide.
    ///
    /// # Errors
    /// `InvalidInput`, which says what is wrong with it.
    pub fn new(
        mut record: PortableRecord,
        defaults: &ImportDefaults,
        dim: usize,
    ) -> Result<Self, StoreError> {
        if record.text.trim().is_empty() {
            return Err(StoreError::invalid("a record needs a text"));
        }
        for (name, id) in [("id", &mut record.id), ("superseded_by", &mut record.superseded_by)] {
            if let Some(id) = id {
                let ulid = Ulid::from_string(id).map_err(|_| {
                    let hint = "26 letters and digits, as an export has them; leave it out to be given one";
                    StoreError::invalid(format!("{name} '{id}' is no id of magray: {hint}"))
                })?;
                *id = ulid.to_string();
            }
        }
        for (name, share) in [("importance", record.importance), ("score", record.score)] {
            if share.is_some_and(|share| !(0.0..=1.0).contains(&share)) {
                return Err(StoreError::invalid(format!("{name} is not from 0 to 1")));
            }
        }
        let numbers = [
            ("created_ms", record.created_ms),
            ("last_access_ms", record.last_access_ms),
            ("access_count", record.access_count),
            ("expires_ms", record.expires_ms.flatten()),
        ];
        for (name, number) in numbers {
            if number.is_some_and(|number| i64::try_from(number).is_err()) {
                return Err(StoreError::invalid(format!("{name} is too large")));
            }
        }
        record.project = record.project.filter(|project| !project.is_empty());
        let layer = record.layer.unwrap_or(defaults.layer);
        let tags = record.tags.iter().map(|tag| tag.trim()).filter(|tag| !tag.is_empty());
        Ok(Self {
            layer,
            tags: tags.map(str::to_owned).collect(),
            content_hash: content_hash(record.title.as_deref(), &record.text),
            vector: record.vector.take().map(|vector| vector.encoded(dim)).transpose()?,
            expires_ms: record.expires_ms.unwrap_or(defaults.expires_ms[layer as usize]),
            record,
        })
    }

    /// Its id and that of the record that says it better, where there is such.
    pub fn link(&self) -> Option<(String, String)> {
        self.record.id.clone().zip(self.record.superseded_by.clone())
    }

    /// Its layer.
    pub fn layer(&self) -> Layer {
        self.layer
    }

    /// When it may be deleted.
    pub fn expires_ms(&self) -> Option<u64> {
        self.expires_ms
    }

    /// Bytes of its text.
    pub fn text_bytes(&self) -> usize {
        self.record.text.len()
    }
}

impl Store {
    /// Takes records in, in one transaction. One with the id of a record that is there makes that one be
    /// as it says; counts and times of access never go back. One of another id that says the same in the
    /// same place adds its tags, and keeps of kind, session, importance, times and accesses what says
    /// more. So to take the same in again changes nothing. Vectors are of `space`; a record that has one
    /// there keeps it while its text stays. Links to other records are made by [`Store::supersede`].
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`; then none is taken in.
    pub fn import(&self, space: SpaceId, records: Vec<ImportRecord>) -> Result<Vec<Imported>, StoreError> {
        self.write(move |db| {
            let now = now_ms();
            records.iter().map(|record| import(db, space, record, now)).collect()
        })
    }

    /// Says of records, by their ids, which others say it better. Returns of how many one of the two is
    /// not there.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`.
    pub fn supersede(&self, links: Vec<(String, String)>) -> Result<u64, StoreError> {
        self.write(move |db| {
            let mut link = db.prepare_cached(
                "UPDATE records SET superseded_by = better.id FROM records AS better
                 WHERE records.ulid = ?1 AND better.ulid = ?2",
            )?;
            let mut missing = 0;
            for ids in &links {
                missing += u64::from(link.execute((&ids.0, &ids.1))? == 0);
            }
            Ok(missing)
        })
    }

    /// How many of these records are there.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn count_of(&self, ids: &[RecordId]) -> Result<u64, StoreError> {
        self.read(|db| {
            let mut there = db.prepare_cached("SELECT 1 FROM records WHERE id = ?1")?;
            let mut count = 0;
            for id in ids {
                count += u64::from(there.exists([id])?);
            }
            Ok(count)
        })
    }
}

fn import(db: &Connection, space: SpaceId, new: &ImportRecord, now: u64) -> Result<Imported, Fault> {
    let by_id = match &new.record.id {
        Some(ulid) => db
            .prepare_cached("SELECT id FROM records WHERE ulid = ?1")?
            .query_row([ulid], |row| row.get::<_, RecordId>(0))
            .optional()?,
        None => None,
    };
    let known = by_id.map(|id| records::read_record(db, id)).transpose()?.flatten();
    // A line that says only what changes leaves the record where it is.
    let layer = match (&known, new.record.layer) {
        (Some(known), None) => known.layer,
        _ => new.layer,
    };
    let same = same_content(db, new, layer)?;
    let imported = match by_id.or(same) {
        None => Imported::New(insert(db, new, now)?),
        Some(id) => {
            let old = match known {
                Some(known) => known,
                None => records::read_record(db, id)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?,
            };
            let merged = if by_id.is_some() { replaced(&old, new, layer) } else { joined(&old, new) };
            if let Some(same) = same.filter(|&same| same != id && new.record.source.is_none()) {
                let same = records::read_record(db, same)?.map(|record| record.ulid).unwrap_or_default();
                return Ok(Imported::Refused(format!(
                    "record {} would say the same as {same}, which is there in the same layer and project",
                    old.ulid
                )));
            }
            if merged == old {
                Imported::Unchanged(id)
            } else {
                update(db, &old, &merged)?;
                Imported::Updated(id)
            }
        }
    };
    if let (Some(id), Some(vector)) = (imported.id(), &new.vector) {
        vectors::put_missing(db, space, layer, id, vector)?;
    }
    Ok(imported)
}

/// The record that says the same in the same place; of a file, at the same lines.
fn same_content(db: &Connection, new: &ImportRecord, layer: Layer) -> rusqlite::Result<Option<RecordId>> {
    let hash = &new.content_hash;
    let project = new.record.project.as_deref().unwrap_or_default();
    match &new.record.source {
        None => db
            .prepare_cached(
                "SELECT id FROM records
                 WHERE content_hash = ?1 AND layer = ?2 AND project = ?3 AND source_path IS NULL",
            )?
            .query_row((hash, layer, project), |row| row.get(0)),
        Some(source) => db
            .prepare_cached(
                "SELECT id FROM records
                 WHERE content_hash = ?1 AND layer = ?2 AND project = ?3 AND source_path = ?4
                   AND line_start = ?5 AND line_end = ?6 LIMIT 1",
            )?
            .query_row((hash, layer, project, &source.path, source.line_start, source.line_end), |row| {
                row.get(0)
            }),
    }
    .optional()
}

/// The record of this id, as the file says.
fn replaced(old: &Record, new: &ImportRecord, layer: Layer) -> Record {
    let from = &new.record;
    Record {
        id: old.id,
        ulid: old.ulid.clone(),
        layer,
        kind: from.kind.clone().unwrap_or_else(|| DEFAULT_KIND.to_owned()),
        title: from.title.clone(),
        text: from.text.clone(),
        tags: new.tags.iter().cloned().collect(),
        project: from.project.clone(),
        session: from.session.clone(),
        source: from.source.clone(),
        created_ms: from.created_ms.unwrap_or(old.created_ms),
        last_access_ms: old.last_access_ms.max(from.last_access_ms.unwrap_or(0)),
        access_count: old.access_count.max(from.access_count.unwrap_or(0)),
        importance: from.importance.unwrap_or(old.importance),
        score: from.score.unwrap_or(old.score),
        expires_ms: from.expires_ms.unwrap_or(old.expires_ms),
        superseded_by: old.superseded_by,
    }
}

/// A record that says the same, with what the file adds.
fn joined(old: &Record, new: &ImportRecord) -> Record {
    let from = &new.record;
    let tags: BTreeSet<String> = old.tags.iter().cloned().chain(new.tags.iter().cloned()).collect();
    let kind = from.kind.as_ref().filter(|kind| *kind != DEFAULT_KIND).unwrap_or(&old.kind);
    Record {
        kind: kind.clone(),
        tags: tags.into_iter().collect(),
        session: from.session.clone().or_else(|| old.session.clone()),
        created_ms: old.created_ms.min(from.created_ms.unwrap_or(u64::MAX)),
        last_access_ms: old.last_access_ms.max(from.last_access_ms.unwrap_or(0)),
        access_count: old.access_count.max(from.access_count.unwrap_or(0)),
        importance: old.importance.max(from.importance.unwrap_or(0.0)),
        score: old.score.max(from.score.unwrap_or(0.0)),
        expires_ms: match from.expires_ms {
            Some(expires_ms) => old.expires_ms.zip(expires_ms).map(|(old, new)| old.max(new)),
            None => old.expires_ms,
        },
        ..old.clone()
    }
}

fn insert(db: &Connection, new: &ImportRecord, now: u64) -> Result<RecordId, Fault> {
    let record = &new.record;
    let created_ms = record.created_ms.unwrap_or(now);
    let made = Record {
        id: RecordId(0),
        ulid: record.id.clone().unwrap_or_else(|| Ulid::generate().to_string()),
        layer: new.layer,
        kind: record.kind.clone().unwrap_or_else(|| DEFAULT_KIND.to_owned()),
        title: record.title.clone(),
        text: record.text.clone(),
        tags: new.tags.iter().cloned().collect(),
        project: record.project.clone(),
        session: record.session.clone(),
        source: record.source.clone(),
        created_ms,
        last_access_ms: record.last_access_ms.unwrap_or(created_ms),
        access_count: record.access_count.unwrap_or(0),
        importance: record.importance.unwrap_or(0.5),
        score: record.score.unwrap_or(0.0),
        expires_ms: new.expires_ms,
        superseded_by: None,
    };
    // Without RETURNING, which is a trigger to SQLite: see `records_fts` in the schema.
    write_row(
        db,
        "INSERT INTO records (
             ulid, layer, kind, project, session, created_ms, last_access_ms, access_count, importance, score,
             expires_ms, content_hash, source_path, line_start, line_end, title, text)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17)",
        &made,
    )?;
    let id = RecordId(db.last_insert_rowid());
    put_tags(db, id, &made.tags)?;
    keywords::insert(db, id, made.title.as_deref(), &made.text)?;
    forget_source(db, &made)?;
    Ok(id)
}

fn update(db: &Connection, old: &Record, new: &Record) -> Result<(), Fault> {
    if (&old.title, &old.text) != (&new.title, &new.text) {
        keywords::remove(db, old.id, old.title.as_deref(), &old.text)?;
        keywords::insert(db, old.id, new.title.as_deref(), &new.text)?;
        vectors::remove(db, old.layer, old.id)?;
    }
    if old.layer != new.layer {
        vectors::move_to(db, old.layer, new.layer, old.id)?;
    }
    write_row(
        db,
        "UPDATE records SET
             layer = ?2, kind = ?3, project = ?4, session = ?5, created_ms = ?6, last_access_ms = ?7,
             access_count = ?8, importance = ?9, score = ?10, expires_ms = ?11, content_hash = ?12,
             source_path = ?13, line_start = ?14, line_end = ?15, title = ?16, text = ?17
         WHERE ulid = ?1",
        new,
    )?;
    if old.tags != new.tags {
        records::remove_tags(db, old.id)?;
        put_tags(db, old.id, &new.tags)?;
    }
    let said = |record: &Record| (record.layer, record.project.clone(), record.source.clone());
    if said(old) != said(new) || (&old.title, &old.text) != (&new.title, &new.text) {
        forget_source(db, old)?;
        forget_source(db, new)?;
    }
    Ok(())
}

fn write_row(db: &Connection, sql: &str, record: &Record) -> rusqlite::Result<()> {
    let source = record.source.as_ref();
    db.prepare_cached(sql)?.execute(rusqlite::params![
        record.ulid,
        record.layer,
        record.kind,
        record.project.as_deref().unwrap_or_default(),
        record.session,
        record.created_ms,
        record.last_access_ms,
        record.access_count,
        record.importance,
        record.score,
        record.expires_ms,
        content_hash(record.title.as_deref(), &record.text),
        source.map(|source| &source.path),
        source.map(|source| source.line_start),
        source.map(|source| source.line_end),
        record.title,
        record.text,
    ])?;
    Ok(())
}

fn put_tags(db: &Connection, id: RecordId, tags: &[String]) -> rusqlite::Result<()> {
    let mut put = db.prepare_cached("INSERT INTO record_tags (record_id, tag) VALUES (?1, ?2)")?;
    for tag in tags {
        put.execute((id, tag))?;
    }
    Ok(())
}

/// Its records are others than those that were read from the file, so it is read again when asked for.
fn forget_source(db: &Connection, record: &Record) -> rusqlite::Result<()> {
    if let Some(source) = &record.source {
        db.prepare_cached("DELETE FROM sources WHERE path = ?1")?.execute([&source.path])?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, PortableVector, fixture::*};
    use super::*;
    use proptest::{collection::vec, option, prelude::*, sample::select};
    use std::{collections::BTreeMap, ops::ControlFlow};

    const DEFAULTS: ImportDefaults =
        ImportDefaults { layer: Layer::Insights, expires_ms: [Some(1 << 50), None, None] };

    fn take_in(f: &Fixture, space: SpaceId, records: &[PortableRecord]) -> Vec<Imported> {
        let fit = |record: &PortableRecord| ImportRecord::new(record.clone(), &DEFAULTS, 2).unwrap();
        f.store.import(space, records.iter().map(fit).collect()).unwrap()
    }

    fn exported(f: &Fixture, space: SpaceId) -> Vec<PortableRecord> {
        let mut all = Vec::new();
        let count = f.store.export(&Filter::default(), Some(space), &mut |total, record| {
            all.push(record);
            assert!(all.len() as u64 <= total);
            ControlFlow::Continue(())
        });
        assert_eq!(count.unwrap(), all.len() as u64);
        all
    }

    fn said(text: &str) -> PortableRecord {
        PortableRecord { text: text.to_owned(), ..PortableRecord::default() }
    }

    prop_compose! {
        /// A record as an export has it; `n` tells it from the others.
        fn record(n: u8)(
            layer in select(&Layer::ALL[..]),
            kind in "[a-z]{1,6}",
            title in option::of("\\PC{0,8}"),
            text in "\\PC{0,12}[\u{0}\n\"\\\\ü🦀]?",
            tags in prop::collection::btree_set("[a-z]{1,3}", 0..3),
            project in option::of("[a-z]{1,3}"),
            session in option::of("[a-z]{1,3}"),
            source in option::of(("/[a-z]{1,2}", 1u32..9, 9u32..99)),
            times in (0u64..1 << 52, 0u64..1 << 52, 0u64..1000),
            shares in (0.0f32..=1.0, 0.0f32..=1.0),
            expires_ms in option::of(0u64..1 << 52),
            better in option::of(0u8..12),
            vector in option::of((-2.0f32..2.0, -2.0f32..2.0)),
        ) -> PortableRecord {
            PortableRecord {
                id: Some(ulid_of(n)),
                layer: Some(layer),
                kind: Some(kind),
                title,
                // No two say the same, so that each stays itself.
                text: format!("{n} {text}"),
                tags: tags.into_iter().collect(),
                project,
                session,
                source: source.map(|(path, line_start, line_end)| super::super::SourceRef { path, line_start, line_end }),
                created_ms: Some(times.0),
                last_access_ms: Some(times.1),
                access_count: Some(times.2),
                importance: Some(shares.0),
                score: Some(shares.1),
                expires_ms: Some(expires_ms),
                superseded_by: better.map(ulid_of),
                vector: vector.map(|(x, y)| PortableVector::new(&[x, y]).unwrap()),
            }
        }
    }

    fn ulid_of(n: u8) -> String {
        Ulid::from_parts(u64::from(n), 7).to_string()
    }

    /// Several states of up to 12 records.
    fn files() -> impl Strategy<Value = Vec<Vec<PortableRecord>>> {
        vec(vec((0u8..12).prop_flat_map(record), 0..12), 1..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

        /// Files are taken in one after the other, through JSON. The model is a map from id to the last
        /// line, where use never goes back and a vector stays with its text.
        #[test]
        fn records_come_back_as_they_went(files in files()) {
            let f = Fixture::new();
            let space = f.space(2);
            let mut model: BTreeMap<String, PortableRecord> = BTreeMap::new();
            let mut order = Vec::new();
            for file in &files {
                let lines: Vec<String> = file.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
                let read: Vec<PortableRecord> =
                    lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
                prop_assert_eq!(&read, file);
                for (imported, new) in take_in(&f, space, &read).into_iter().zip(read) {
                    let id = new.id.clone().unwrap();
                    let mut now = PortableRecord { superseded_by: None, ..new };
                    let old = model.get(&id).cloned();
                    if let Some(old) = &old {
                        now.last_access_ms = now.last_access_ms.max(old.last_access_ms);
                        now.access_count = now.access_count.max(old.access_count);
                        if (&old.title, &old.text) == (&now.title, &now.text) {
                            now.vector = old.vector.clone().or(now.vector);
                        }
                        // Links are made in the end.
                        now.superseded_by = old.superseded_by.clone();
                    } else {
                        order.push(id.clone());
                    }
                    let is_same = old.as_ref().is_some_and(|old| {
                        PortableRecord { vector: None, ..old.clone() } == PortableRecord { vector: None, ..now.clone() }
                    });
                    match imported {
                        Imported::New(_) => prop_assert!(old.is_none()),
                        Imported::Unchanged(_) => prop_assert!(is_same),
                        Imported::Updated(_) => prop_assert!(old.is_some() && !is_same),
                        Imported::Refused(reason) => prop_assert!(false, "{}", reason),
                    }
                    model.insert(id, now);
                }
                let links = file.iter().filter_map(|line| line.id.clone().zip(line.superseded_by.clone()));
                let links: Vec<_> = links.collect();
                let there = |id: &String| model.contains_key(id);
                let broken = links.iter().filter(|(_, better)| !there(better)).count();
                prop_assert_eq!(f.store.supersede(links.clone()).unwrap(), broken as u64);
                for (id, better) in links.into_iter().filter(|(_, better)| model.contains_key(better)).collect::<Vec<_>>() {
                    model.get_mut(&id).unwrap().superseded_by = Some(better);
                }
                let expected: Vec<_> = order.iter().map(|id| model[id].clone()).collect();
                prop_assert_eq!(exported(&f, space), expected.clone());
                // What was exported changes nothing.
                let again = take_in(&f, space, &expected);
                prop_assert!(again.iter().all(|imported| matches!(imported, Imported::Unchanged(_))), "{:?}", again);
                prop_assert_eq!(exported(&f, space), expected);
            }
            prop_assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
        }
    }

    #[test]
    fn a_text_alone_is_a_record() {
        let f = Fixture::new();
        let space = f.space(2);
        assert!(matches!(take_in(&f, space, &[said("a")])[..], [Imported::New(_)]));
        let record = &exported(&f, space)[0];
        assert_eq!((record.layer, record.kind.as_deref()), (Some(Layer::Insights), Some("note")));
        assert_eq!((record.expires_ms, record.importance), (Some(None), Some(0.5)));
        assert!(record.created_ms.is_some_and(|created| created > 0));
        assert!(matches!(take_in(&f, space, &[said("a")])[..], [Imported::Unchanged(_)]));
        let hot = PortableRecord { layer: Some(Layer::Interact), ..said("b") };
        take_in(&f, space, &[hot]);
        assert_eq!(exported(&f, space)[1].expires_ms, Some(Some(1 << 50)));
    }

    #[test]
    fn one_that_says_the_same_is_the_same_and_gains() {
        let f = Fixture::new();
        let space = f.space(2);
        f.store.add(None, vec![note("a")]).unwrap();
        let old = exported(&f, space).remove(0);
        let new = PortableRecord {
            id: Some(ulid_of(1)),
            kind: Some("fact".to_owned()),
            tags: strings(&["t"]),
            created_ms: Some(5),
            access_count: Some(9),
            importance: Some(0.1),
            vector: Some(PortableVector::new(&[1.0, 0.0]).unwrap()),
            ..said("a")
        };
        assert!(matches!(take_in(&f, space, std::slice::from_ref(&new))[..], [Imported::Updated(_)]));
        let expected = PortableRecord {
            kind: new.kind.clone(),
            tags: new.tags.clone(),
            created_ms: Some(5),
            access_count: Some(9),
            vector: new.vector.clone(),
            ..old
        };
        assert_eq!(exported(&f, space), [expected]);
        assert!(matches!(take_in(&f, space, &[new])[..], [Imported::Unchanged(_)]));
    }

    #[test]
    fn another_text_takes_another_vector_and_other_words() {
        let f = Fixture::new();
        let space = f.space(2);
        let of = |text: &str, layer, vector: [f32; 2]| PortableRecord {
            id: Some(ulid_of(1)),
            layer: Some(layer),
            vector: Some(PortableVector::new(&vector).unwrap()),
            ..said(text)
        };
        take_in(&f, space, &[of("moon", Layer::Assets, [1.0, 0.0])]);
        take_in(&f, space, &[of("tide", Layer::Assets, [0.0, 1.0])]);
        let vectors = |layer, seq| -> Vec<f32> {
            let changes = f.store.changes_after(space, layer, seq).unwrap();
            changes.vectors.iter().map(|v| v.to_f32()).collect()
        };
        assert_eq!(vectors(Layer::Assets, 0), [0.0, 1.0]);
        take_in(&f, space, &[of("tide", Layer::Insights, [0.0, 1.0])]);
        assert_eq!((vectors(Layer::Assets, 0).len(), vectors(Layer::Insights, 0)), (0, vec![0.0, 1.0]));
        assert_eq!(f.store.find_words(&["tide"], &Filter::default(), 9).unwrap().len(), 1);
        assert_eq!(f.store.find_words(&["moon"], &Filter::default(), 9).unwrap().len(), 0);
        // A line that does not say where it belongs leaves it there.
        let more = PortableRecord { id: Some(ulid_of(1)), tags: strings(&["t"]), ..said("tide") };
        take_in(&f, space, &[more]);
        assert_eq!(exported(&f, space)[0].layer, Some(Layer::Insights));
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_record_may_not_become_another() {
        let f = Fixture::new();
        let space = f.space(2);
        let of = |n, text: &str| PortableRecord { id: Some(ulid_of(n)), ..said(text) };
        take_in(&f, space, &[of(1, "a"), of(2, "b")]);
        let before = exported(&f, space);
        let imported = take_in(&f, space, &[of(1, "b"), of(3, "c")]);
        assert!(
            matches!(&imported[0], Imported::Refused(reason) if reason.contains(&ulid_of(2))),
            "{imported:?}"
        );
        assert!(matches!(imported[1], Imported::New(_)));
        assert_eq!(exported(&f, space)[..2], before);
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let refused = [
            (said(" "), "text"),
            (PortableRecord { id: Some("doc-1".to_owned()), ..said("a") }, "doc-1"),
            (PortableRecord { superseded_by: Some("x".to_owned()), ..said("a") }, "superseded_by"),
            (PortableRecord { importance: Some(1.5), ..said("a") }, "importance"),
            (PortableRecord { score: Some(f32::NAN), ..said("a") }, "score"),
            (PortableRecord { created_ms: Some(u64::MAX), ..said("a") }, "created_ms"),
            (PortableRecord { expires_ms: Some(Some(u64::MAX)), ..said("a") }, "expires_ms"),
            (PortableRecord { vector: Some(PortableVector(vec![0, 0])), ..said("a") }, "vector"),
            (PortableRecord { vector: Some(PortableVector(vec![0; 5])), ..said("a") }, "half"),
            (PortableRecord { vector: Some(PortableVector(vec![0xff; 4])), ..said("a") }, "finite"),
        ];
        for (record, reason) in refused {
            let error = ImportRecord::new(record, &DEFAULTS, 2).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        for (line, reason) in [
            ("{\"text\":\"a\",\"layr\":\"assets\"}", "unknown field `layr`"),
            ("{\"text\":\"a\",\"layer\":\"hot\"}", "unknown variant `hot`"),
            ("{\"text\":\"a\",\"vector\":\"?\"}", "base64"),
            ("{\"text\":\"a\",\"vector\":7}", "array of numbers"),
            ("{\"layer\":\"assets\"}", "missing field `text`"),
        ] {
            let error = serde_json::from_str::<PortableRecord>(line).unwrap_err().to_string();
            assert!(error.contains(reason), "{reason}: {error}");
        }
        let numbers: PortableRecord = serde_json::from_str("{\"text\":\"a\",\"vector\":[0.5,-1]}").unwrap();
        assert_eq!(numbers.vector.unwrap().numbers(2), [0.5, -1.0]);
    }
}
