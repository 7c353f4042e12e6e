//! A record that says the same as one of the next layer is merged into that one, and may be taken out again.
use super::Move;
use crate::store::{RecordId, error::Fault, supersede};
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};

/// A record that was merged into another one, and what that changed there.
#[derive(Serialize, Deserialize)]
pub(super) struct Merged {
    pub(super) into: i64,
    pub(super) ulid: String,
    /// Accesses that were added.
    added: u64,
    /// Uses that were carried over.
    #[serde(with = "bits")]
    carried: f64,
    before: Taken,
    after: Taken,
    /// Those that it did not have.
    tags: Vec<String>,
    /// Until when the merged one was true.
    former_valid_to_ms: Option<u64>,
}

/// What a record takes over of one that is merged into it.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
struct Taken {
    last_access_ms: u64,
    #[serde(with = "bits")]
    importance: f64,
    expires_ms: Option<u64>,
    valid_from_ms: Option<u64>,
    valid_to_ms: Option<u64>,
    #[serde(with = "bits")]
    carried: f64,
    /// Where it moves on, what it took over is not to be told from its own any more.
    moved_ms: Option<u64>,
}

/// Numbers as their bits: as decimals they would come back a little different.
mod bits {
    use serde::{Deserialize, Deserializer, Serializer};

    #[expect(clippy::trivially_copy_pass_by_ref, reason = "serde wants a reference")]
    pub(super) fn serialize<S: Serializer>(number: &f64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(number.to_bits())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<f64, D::Error> {
        u64::deserialize(deserializer).map(f64::from_bits)
    }
}

impl Taken {
    fn of(db: &Connection, id: RecordId) -> rusqlite::Result<Self> {
        db.prepare_cached(
            "SELECT last_access_ms, importance, expires_ms, valid_from_ms, valid_to_ms, carried, moved_ms
             FROM records WHERE id = ?1",
        )?
        .query_row([id], |row| {
            Ok(Self {
                last_access_ms: row.get(0)?,
                importance: row.get(1)?,
                expires_ms: row.get(2)?,
                valid_from_ms: row.get(3)?,
                valid_to_ms: row.get(4)?,
                carried: row.get(5)?,
                moved_ms: row.get(6)?,
            })
        })
    }
}

/// Gives what is known of a record to the one that says the same in the other layer, whose id for people is
/// `ulid`, and which supersedes it: it is true whenever one of the two was.
pub(super) fn merge(db: &Connection, it: &Move, into: RecordId, ulid: String) -> Result<Merged, Fault> {
    let before = Taken::of(db, into)?;
    // The accesses that it takes over are not such that were made in its layer; but they are news of it, so
    // it is weighed again.
    db.prepare_cached(
        "UPDATE records SET
             last_access_ms = max(records.last_access_ms, one.last_access_ms),
             access_count = records.access_count + one.access_count,
             moved_count = records.moved_count + one.access_count,
             carried = records.carried + ?3,
             importance = max(records.importance, one.importance),
             -- With NULL, which is never or not known, max and min are NULL.
             expires_ms = max(records.expires_ms, ?4),
             valid_from_ms = min(records.valid_from_ms, one.valid_from_ms),
             valid_to_ms = max(records.valid_to_ms, one.valid_to_ms)
         FROM (SELECT last_access_ms, access_count, importance, valid_from_ms, valid_to_ms
               FROM records WHERE id = ?2) AS one
         WHERE records.id = ?1",
    )?
    .execute((into, it.id, it.carried, it.expires_ms))?;
    let mut tags = db.prepare_cached(
        "INSERT INTO record_tags (record_id, tag) SELECT ?1, tag FROM record_tags WHERE record_id = ?2
         ON CONFLICT DO NOTHING RETURNING tag",
    )?;
    let tags = tags.query_map((into, it.id), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    let after = Taken::of(db, into)?;
    let former_valid_to_ms = Taken::of(db, it.id)?.valid_to_ms;
    supersede::link(db, it.id, into)?;
    db.prepare_cached("UPDATE records SET weighed_count = access_count, score = ?2 WHERE id = ?1")?
        .execute((it.id, it.score.value))?;
    let (added, carried) = (it.access_count, it.carried);
    Ok(Merged { into: into.0, ulid, added, carried, before, after, tags, former_valid_to_ms })
}

/// Takes `id`, which had `former_score`, out again, or says why not: what the other record took over and
/// still has as it was goes back.
pub(super) fn part(
    db: &Connection,
    id: RecordId,
    former_score: f64,
    merged: &Merged,
) -> Result<Option<String>, Fault> {
    let (before, after) = (&merged.before, &merged.after);
    let parted = db
        .prepare_cached(
            "UPDATE records SET
                 access_count = access_count - ?2,
                 -- An import may have given it others.
                 moved_count = max(moved_count - ?2, 0),
                 last_access_ms = iif(last_access_ms = ?3, ?4, last_access_ms),
                 importance = iif(importance = ?5, ?6, importance),
                 expires_ms = iif(expires_ms IS ?7, ?8, expires_ms),
                 carried = iif(carried = ?9, ?10, max(carried - ?11, 0.0)),
                 valid_from_ms = iif(valid_from_ms IS ?13, ?14, valid_from_ms),
                 valid_to_ms = iif(valid_to_ms IS ?15, ?16, valid_to_ms)
             WHERE id = ?1 AND access_count >= ?2 AND moved_ms IS ?12",
        )?
        .execute(params![
            merged.into,
            merged.added,
            after.last_access_ms,
            before.last_access_ms,
            after.importance,
            before.importance,
            after.expires_ms,
            before.expires_ms,
            after.carried,
            before.carried,
            merged.carried,
            after.moved_ms,
            after.valid_from_ms,
            before.valid_from_ms,
            after.valid_to_ms,
            before.valid_to_ms,
        ])?;
    if parted == 0 {
        return Ok(Some(format!("{}, which it was merged into, has moved or changed since", merged.ulid)));
    }
    let mut drop_tag = db.prepare_cached("DELETE FROM record_tags WHERE record_id = ?1 AND tag = ?2")?;
    for tag in &merged.tags {
        drop_tag.execute((merged.into, tag))?;
    }
    db.prepare_cached(
        "UPDATE records SET superseded_by = NULL, valid_to_ms = ?3, score = ?2, weighed_count = access_count
         WHERE id = ?1",
    )?
    .execute((id, former_score, merged.former_valid_to_ms))?;
    Ok(None)
}
