//! Taking moves back.
use super::{
    history::merged,
    merge::{Merged, part},
    same_in,
};
use crate::store::{Layer, RecordId, Store, StoreError, error::Fault, vectors::move_to};
use rusqlite::{Connection, OptionalExtension, params};
use serde::Serialize;

/// What became of taking back a cycle.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Undone {
    /// The cycle.
    pub cycle: i64,
    /// Ids for people of the records that are again where and as they were.
    pub undone: Vec<String>,
    /// Those that were left as they are.
    pub skipped: Vec<Skipped>,
}

/// A move that was not taken back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Skipped {
    /// The record's id for people.
    pub id: String,
    /// Why.
    pub reason: String,
}

/// A move that was made.
struct Made {
    row: i64,
    id: RecordId,
    ulid: String,
    from: Layer,
    to: Layer,
    at_ms: u64,
    expires_ms: Option<u64>,
    former_expires_ms: Option<u64>,
    former_score: f64,
    former_moved_count: u64,
    former_carried: f64,
    former_moved_ms: Option<u64>,
    merged: Option<Merged>,
}

impl Store {
    /// Takes back what a cycle moved, by default the last one of which something can be taken back: layer,
    /// expiry, score and counts are again what they were, and what was merged is apart. Accesses since then
    /// stay counted. What has changed since in another way is skipped. Nothing of it moves again before
    /// it is used again. `None` where there is no such cycle.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`; then nothing is taken back.
    pub fn undo_promotions(&self, cycle: Option<i64>, now_ms: u64) -> Result<Option<Undone>, StoreError> {
        self.write(move |db| {
            let last = "SELECT max(cycle_id) FROM promotions
                        WHERE undone_ms IS NULL AND (?1 IS NULL OR cycle_id = ?1)";
            let Some(cycle) =
                db.prepare_cached(last)?.query_row([cycle], |row| row.get::<_, Option<i64>>(0))?
            else {
                return Ok(None);
            };
            let mut done = Undone { cycle, undone: Vec::new(), skipped: Vec::new() };
            for made in made(db, cycle)? {
                match undo(db, &made, now_ms)? {
                    None => {
                        db.prepare_cached("UPDATE promotions SET undone_ms = ?2 WHERE id = ?1")?
                            .execute((made.row, now_ms))?;
                        done.undone.push(made.ulid);
                    }
                    Some(reason) => done.skipped.push(Skipped { id: made.ulid, reason }),
                }
            }
            Ok(Some(done))
        })
    }
}

/// The moves of a cycle that were not taken back, the last one first: it may be in the way of the others.
fn made(db: &Connection, cycle: i64) -> Result<Vec<Made>, Fault> {
    let mut made = db.prepare_cached(
        "SELECT promotions.id, record_id, ulid, from_layer, to_layer, at_ms, expires_ms, former_expires_ms,
             former_score, former_moved_count, former_carried, former_moved_ms, merged
         FROM promotions JOIN promotion_cycles ON promotion_cycles.id = cycle_id
         WHERE cycle_id = ?1 AND undone_ms IS NULL ORDER BY promotions.id DESC",
    )?;
    let mut rows = made.query([cycle])?;
    let mut all = Vec::new();
    while let Some(row) = rows.next()? {
        all.push(Made {
            row: row.get(0)?,
            id: row.get(1)?,
            ulid: row.get(2)?,
            from: row.get(3)?,
            to: row.get(4)?,
            at_ms: row.get(5)?,
            expires_ms: row.get(6)?,
            former_expires_ms: row.get(7)?,
            former_score: row.get(8)?,
            former_moved_count: row.get(9)?,
            former_carried: row.get(10)?,
            former_moved_ms: row.get(11)?,
            merged: merged(row, 12)?,
        });
    }
    Ok(all)
}

/// Takes a move back, or says why not.
fn undo(db: &Connection, made: &Made, now_ms: u64) -> Result<Option<String>, Fault> {
    let mut now = db.prepare_cached(
        "SELECT layer, expires_ms, moved_ms, superseded_by, source_path FROM records WHERE id = ?1",
    )?;
    type Now = (Layer, Option<u64>, Option<u64>, Option<RecordId>, Option<String>);
    let now: Option<Now> = now
        .query_row([made.id], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?)))
        .optional()?;
    let Some((layer, expires_ms, moved_ms, superseded_by, source)) = now else {
        return Ok(Some("it is not there any more".to_owned()));
    };
    if let Some(merged) = &made.merged {
        if layer != made.from || superseded_by != Some(RecordId(merged.into)) {
            return Ok(Some(format!("it is not superseded by {} any more", merged.ulid)));
        }
        return part(db, made.id, made.former_score, merged);
    }
    if layer != made.to || moved_ms != Some(made.at_ms) {
        return Ok(Some(format!("it is in {layer} now, and came there in another way")));
    }
    if superseded_by.is_some() || source.is_some() {
        return Ok(Some("it was superseded, or taken from a file, since".to_owned()));
    }
    if expires_ms != made.expires_ms {
        return Ok(Some("it was stored again since, and another time was set for it".to_owned()));
    }
    if made.former_expires_ms.is_some_and(|due| due <= now_ms) {
        return Ok(Some(format!("its time in {} is over, so it would be deleted at once", made.from)));
    }
    if same_in(db, made.id, made.from)?.is_some() {
        return Ok(Some(format!("what says the same was stored in {} since", made.from)));
    }
    db.prepare_cached(
        "UPDATE records SET layer = ?2, expires_ms = ?3, score = ?4, moved_count = ?5, carried = ?6,
             moved_ms = ?7, weighed_count = access_count
         WHERE id = ?1",
    )?
    .execute(params![
        made.id,
        made.from,
        made.former_expires_ms,
        made.former_score,
        made.former_moved_count,
        made.former_carried,
        made.former_moved_ms,
    ])?;
    move_to(db, made.to, made.from, made.id)?;
    Ok(None)
}
