//! Taking records in with all that is known of them.
use super::{
    Layer, PortableRecord, Record, RecordId, SpaceId, Store, StoreError,
    error::Fault,
    keywords, now_ms,
    record::{DEFAULT_KIND, content_hash},
    records,
    terms::Terms,
    vectors,
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
        if record.carried.is_some_and(|uses| !(0.0..=f32::MAX).contains(&uses)) {
            return Err(StoreError::invalid("carried is no number from 0 on"));
        }
        let numbers = [
            ("created_ms", record.created_ms),
            ("last_access_ms", record.last_access_ms),
            ("access_count", record.access_count),
            ("moved_count", record.moved_count),
            ("moved_ms", record.moved_ms),
            ("expires_ms", record.expires_ms.flatten()),
            ("valid_from_ms", record.valid_from_ms),
            ("valid_to_ms", record.valid_to_ms),
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
        arrival: from.arrival().unwrap_or(old.arrival),
        expires_ms: from.expires_ms.unwrap_or(old.expires_ms),
        valid_from_ms: from.valid_from_ms.or(old.valid_from_ms),
        valid_to_ms: from.valid_to_ms.or(old.valid_to_ms),
        superseded_by: old.superseded_by.clone(),
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
        // It tells which of the accesses were made in the layer, so it goes with their number.
        arrival: match from.arrival() {
            Some(arrival) if from.access_count > Some(old.access_count) => arrival,
            _ => old.arrival,
        },
        expires_ms: match from.expires_ms {
            Some(expires_ms) => old.expires_ms.zip(expires_ms).map(|(old, new)| old.max(new)),
            None => old.expires_ms,
        },
        valid_from_ms: old.valid_from_ms.or(from.valid_from_ms),
        valid_to_ms: old.valid_to_ms.or(from.valid_to_ms),
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
        arrival: record.arrival().unwrap_or_default(),
        expires_ms: new.expires_ms,
        valid_from_ms: record.valid_from_ms,
        valid_to_ms: record.valid_to_ms,
        superseded_by: None,
    };
    // Without RETURNING, which is a trigger to SQLite: see `records_fts` in the schema.
    write_row(
        db,
        "INSERT INTO records (
             ulid, layer, kind, project, session, created_ms, last_access_ms, access_count, importance, score,
             expires_ms, content_hash, source_path, line_start, line_end, title, text, valid_from_ms, valid_to_ms,
             moved_count, carried, moved_ms)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18, ?19, ?20, ?21,
             ?22)",
        &made,
    )?;
    let id = RecordId(db.last_insert_rowid());
    records::put_tags(db, id, &made.tags)?;
    keywords::insert(db, id, &Terms::of(made.title.as_deref(), &made.text))?;
    forget_source(db, &made)?;
    Ok(id)
}

fn update(db: &Connection, old: &Record, new: &Record) -> Result<(), Fault> {
    if (&old.title, &old.text) != (&new.title, &new.text) {
        keywords::remove(db, old.id)?;
        keywords::insert(db, old.id, &Terms::of(new.title.as_deref(), &new.text))?;
        db.prepare_cached("UPDATE meta SET texts_changed = texts_changed + 1")?.execute([])?;
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
             source_path = ?13, line_start = ?14, line_end = ?15, title = ?16, text = ?17,
             valid_from_ms = ?18, valid_to_ms = ?19, moved_count = ?20, carried = ?21, moved_ms = ?22
         WHERE ulid = ?1",
        new,
    )?;
    if old.tags != new.tags {
        records::remove_tags(db, old.id)?;
        records::put_tags(db, old.id, &new.tags)?;
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
        record.valid_from_ms,
        record.valid_to_ms,
        record.arrival.moved_count,
        record.arrival.carried,
        record.arrival.moved_ms,
    ])?;
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
mod tests;
