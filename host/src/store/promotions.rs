//! Records on their way to the next layer: what a cycle has to weigh, what it moves, and what it leaves
//! behind to explain and to undo that. What deserves to move is not decided here.
mod history;
mod merge;
mod undo;

pub use history::{CycleRecord, PromotionRecord};
pub use undo::{Skipped, Undone};

use super::{
    Layer, RecordId, SpaceId, Store, StoreError,
    error::Fault,
    vectors::{append_halves, dim, move_to},
};
use half::f16;
use merge::merge;
use rusqlite::{Connection, OptionalExtension, Params, Row, params};
use serde::Serialize;
use std::collections::{HashMap, HashSet};

/// A record that may move to the next layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The record.
    pub id: RecordId,
    /// Its id for people.
    pub ulid: String,
    /// Where it is.
    pub layer: Layer,
    /// Its project; empty where it belongs to none.
    pub project: String,
    /// Since when it is there, in milliseconds since 1970.
    pub since_ms: u64,
    /// When it was last used.
    pub last_access_ms: u64,
    /// How often it was used.
    pub access_count: u64,
    /// How often it was used in this layer, and what it brought along.
    pub uses: f64,
    /// From 0 to 1.
    pub importance: f32,
    /// When it may be deleted.
    pub expires_ms: Option<u64>,
    /// As the database has it; none where it was not embedded or has no direction.
    pub vector: Option<Vec<f16>>,
}

/// What a record deserves, and why: each part from 0 to 1.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Score {
    /// The whole, from 0 to 1.
    pub value: f64,
    /// How lately it was used.
    pub recency: f64,
    /// How often it was used.
    pub frequency: f64,
    /// How much it matters, by what was said of it and by its use.
    pub importance: f64,
    /// How near it is to what is used, itself included; none where it has no vector.
    pub similarity: Option<f64>,
}

/// A record that is to move.
#[derive(Clone, Debug, PartialEq)]
pub struct Move {
    /// The record.
    pub id: RecordId,
    /// Its id for people.
    pub ulid: String,
    /// Where it was when that was decided.
    pub from: Layer,
    /// Where it is to go.
    pub to: Layer,
    /// How often it had been used: with another number it was decided about something else.
    pub access_count: u64,
    /// The uses that it takes along.
    pub carried: f64,
    /// What it deserves.
    pub score: Score,
    /// What that had to reach; none where it is moved by hand.
    pub threshold: Option<f64>,
    /// When it may be deleted before the move.
    pub former_expires_ms: Option<u64>,
    /// When it may be deleted after the move.
    pub expires_ms: Option<u64>,
}

/// A record that stays where it is until it is used again.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Stay {
    /// The record.
    pub id: RecordId,
    /// How often it had been used.
    pub access_count: u64,
    /// What it deserves.
    pub score: f64,
    /// Whether it was weighed, or is to be looked at again.
    pub weighed: bool,
}

/// What becomes of a move.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Moved {
    /// It is in the other layer.
    Moved,
    /// What says the same is there in the same project, took over what is known of it, and supersedes it.
    Merged {
        /// Id for people of the one that is left.
        into: String,
    },
    /// What says the same is there and was superseded by something else, so it stays where it is.
    Outdated,
    /// It was used, moved or deleted meanwhile.
    Changed,
}

/// What a cycle writes beside its moves.
#[derive(Clone, Copy, Debug)]
pub struct CycleNote {
    /// Its number, once it has one.
    pub cycle: Option<i64>,
    /// Its time, in milliseconds since 1970.
    pub now_ms: u64,
    /// Digest of the settings that it goes by, where all was weighed by them.
    pub settings: Option<[u8; 32]>,
    /// Moves before this time are forgotten.
    pub keep_from_ms: u64,
}

/// The condition of the index `records_to_weigh`, to the letter.
const MAY_MOVE: &str = "layer < 2 AND source_path IS NULL AND superseded_by IS NULL";

impl Store {
    /// The first `limit` records of `layer` after `after`, by id, that a cycle has to weigh: those that
    /// were used since they were weighed, or, where the settings have changed and `all` must be weighed,
    /// ever. Records of files are none: a file is in one layer. No text is read; vectors are those in `space`,
    /// where there is one.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown space, and what SQLite says.
    pub fn promotion_candidates(
        &self,
        space: Option<SpaceId>,
        layer: Layer,
        all: bool,
        after: RecordId,
        limit: usize,
    ) -> Result<Vec<Candidate>, StoreError> {
        let (from, used) = match all {
            true => ("records", "access_count > 0"),
            false => ("records INDEXED BY records_to_weigh", "access_count <> weighed_count"),
        };
        let condition = format!("{used} AND {MAY_MOVE} AND layer = ?2 AND id > ?3 ORDER BY id LIMIT {limit}");
        self.read(|db| candidates(db, space, &select(from, &condition), (space, layer, after)))
    }

    /// These records as candidates, whether they were used or not; those of files, of no next layer and
    /// superseded ones are left out.
    ///
    /// # Errors
    /// As [`Store::promotion_candidates`].
    pub fn as_candidates(
        &self,
        space: Option<SpaceId>,
        ids: &[RecordId],
    ) -> Result<Vec<Candidate>, StoreError> {
        let sql = select("records", &format!("{MAY_MOVE} AND id = ?2"));
        self.read(|db| {
            let mut found = Vec::with_capacity(ids.len());
            for &id in ids {
                found.extend(candidates(db, space, &sql, (space, id))?);
            }
            Ok(found)
        })
    }

    /// The vectors of the `limit` records of `project` that were used last, in whatever layer, `[n, dim]`
    /// row-major; without those that have none in `space`.
    ///
    /// # Errors
    /// As [`Store::promotion_candidates`].
    pub fn recently_used(&self, space: SpaceId, project: &str, limit: usize) -> Result<Vec<f16>, StoreError> {
        self.read(|db| {
            let dim = dim(db, space)?;
            let mut used = db.prepare_cached(
                "SELECT used.id, vector
                 FROM (SELECT id, layer, last_access_ms FROM records INDEXED BY records_by_use
                       WHERE project = ?2 AND access_count > 0
                       ORDER BY last_access_ms DESC, id DESC LIMIT ?3) AS used
                 JOIN vectors ON space_id = ?1 AND vectors.layer = used.layer AND record_id = used.id
                 WHERE length(vector) > 0 ORDER BY last_access_ms DESC, used.id DESC",
            )?;
            let mut rows = used.query((space, project, limit as u64))?;
            let mut vectors = Vec::new();
            while let Some(row) = rows.next()? {
                append_halves(row.get(0)?, row.get_ref(1)?, dim, &mut vectors)?;
            }
            Ok(vectors)
        })
    }

    /// When a cycle last wrote something, and the digest of its settings.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn promotion_state(&self) -> Result<Option<(u64, [u8; 32])>, StoreError> {
        self.read(|db| {
            let mut state = db.prepare_cached("SELECT cycled_ms, settings FROM promotion_state")?;
            Ok(state.query_row([], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
        })
    }

    /// How many records are due for deletion.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn count_due(&self, now_ms: u64) -> Result<u64, StoreError> {
        let due = i64::try_from(now_ms).unwrap_or(i64::MAX);
        self.read(|db| {
            let mut count = db.prepare_cached("SELECT count(*) FROM records WHERE expires_ms <= ?1")?;
            Ok(count.query_row([due], |row| row.get(0))?)
        })
    }

    /// What would become of `moves`, in their order, if they were applied now.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn foresee_promotions(&self, moves: &[Move]) -> Result<Vec<Moved>, StoreError> {
        self.read(|db| {
            // What moves on makes room for what comes after it, and what is merged leads on.
            let (mut left, mut merged) = (HashSet::new(), HashMap::new());
            let mut outcomes = Vec::with_capacity(moves.len());
            for it in moves {
                outcomes.push(match current(db, it)? {
                    None => Moved::Changed,
                    Some(_) => match place(db, it.id, it.to, &left)? {
                        Place::Free => {
                            left.insert(it.id);
                            Moved::Moved
                        }
                        Place::Same(other, ulid) => {
                            let into = merged.get(&other).cloned().unwrap_or(ulid);
                            merged.insert(it.id, into.clone());
                            Moved::Merged { into }
                        }
                        Place::Outdated => Moved::Outdated,
                    },
                });
            }
            Ok(outcomes)
        })
    }

    /// Moves records and notes which were weighed, in one transaction, with all that explains it. Vectors go
    /// along in every space, and indexes learn of it by the change log. Returns what became of each
    /// move, and the number of the cycle where something moved.
    ///
    /// # Errors
    /// `ReadOnly`, `Full`, `Busy`; then nothing has moved.
    pub fn apply_promotions(
        &self,
        note: CycleNote,
        moves: Vec<Move>,
        stays: Vec<Stay>,
    ) -> Result<(Option<i64>, Vec<Moved>), StoreError> {
        self.write(move |db| {
            let mut cycle = note.cycle;
            let mut outcomes = Vec::with_capacity(moves.len());
            for it in &moves {
                let outcome = apply(db, &note, &mut cycle, it)?;
                if outcome == Moved::Outdated {
                    let (id, access_count, score) = (it.id, it.access_count, it.score.value);
                    stay(db, &Stay { id, access_count, score, weighed: true })?;
                }
                outcomes.push(outcome);
            }
            for it in &stays {
                stay(db, it)?;
            }
            if let Some(settings) = &note.settings {
                db.prepare_cached(
                    "INSERT OR REPLACE INTO promotion_state (place, cycled_ms, settings) VALUES (0, ?1, ?2)",
                )?
                .execute((note.now_ms, settings))?;
            }
            history::prune(db, note.keep_from_ms)?;
            Ok((cycle, outcomes))
        })
    }
}

fn select(from: &str, condition: &str) -> String {
    // The vector is looked up by itself: in a join SQLite would begin with the vectors.
    format!(
        "SELECT id, ulid, layer, project, coalesce(moved_ms, created_ms), last_access_ms, access_count,
             access_count - moved_count + carried, importance, expires_ms,
             (SELECT vector FROM vectors
              WHERE space_id = ?1 AND vectors.layer = records.layer AND record_id = records.id
                AND length(vector) > 0)
         FROM {from} WHERE {condition}"
    )
}

fn candidates(
    db: &Connection,
    space: Option<SpaceId>,
    sql: &str,
    params: impl Params,
) -> Result<Vec<Candidate>, Fault> {
    // Without a space there are no vectors to be as wide as it says.
    let dim = space.map_or(Ok(0), |space| dim(db, space))?;
    let mut found = db.prepare_cached(sql)?;
    let mut rows = found.query(params)?;
    let mut candidates = Vec::new();
    while let Some(row) = rows.next()? {
        candidates.push(candidate(row, dim)?);
    }
    Ok(candidates)
}

fn candidate(row: &Row<'_>, dim: usize) -> Result<Candidate, Fault> {
    let id = row.get(0)?;
    let vector = match row.get_ref(10)? {
        rusqlite::types::ValueRef::Null => None,
        blob => {
            let mut vector = Vec::with_capacity(dim);
            append_halves(id, blob, dim, &mut vector)?;
            Some(vector)
        }
    };
    Ok(Candidate {
        id,
        ulid: row.get(1)?,
        layer: row.get(2)?,
        project: row.get(3)?,
        since_ms: row.get(4)?,
        last_access_ms: row.get(5)?,
        access_count: row.get(6)?,
        uses: row.get(7)?,
        importance: row.get(8)?,
        expires_ms: row.get(9)?,
        vector,
    })
}

/// Where a record would come to.
enum Place {
    Free,
    /// What says the same is there, or has moved on from there.
    Same(RecordId, String),
    /// What says the same is there, and something else superseded it.
    Outdated,
}

/// `left` are records that do not count: they are on their way out.
fn place(db: &Connection, id: RecordId, to: Layer, left: &HashSet<RecordId>) -> rusqlite::Result<Place> {
    let mut other = same_in(db, id, to)?;
    // One that was merged leads to the one that is left; no chain of them is longer than there are layers.
    for _ in Layer::ALL {
        match other {
            None => break,
            Some((other_id, ..)) if left.contains(&other_id) => return Ok(Place::Free),
            Some((other_id, ulid, None)) => return Ok(Place::Same(other_id, ulid)),
            Some((_, _, Some(newer))) => {
                let mut next = db.prepare_cached(
                    "SELECT newer.id, newer.ulid, newer.superseded_by
                     FROM records AS one JOIN records AS newer ON newer.content_hash = one.content_hash
                     WHERE one.id = ?1 AND newer.id = ?2",
                )?;
                match next.query_row((id, newer), same).optional()? {
                    Some(next) => other = Some(next),
                    None => return Ok(Place::Outdated),
                }
            }
        }
    }
    Ok(if other.is_none() { Place::Free } else { Place::Outdated })
}

/// A record that says the same as another one, its id for people, and what superseded it.
type Same = (RecordId, String, Option<RecordId>);

fn same(row: &Row<'_>) -> rusqlite::Result<Same> {
    Ok((row.get(0)?, row.get(1)?, row.get(2)?))
}

/// What says the same in `layer`.
fn same_in(db: &Connection, id: RecordId, layer: Layer) -> rusqlite::Result<Option<Same>> {
    db.prepare_cached(
        "SELECT other.id, other.ulid, other.superseded_by
         FROM records AS one JOIN records AS other
           ON other.content_hash = one.content_hash AND other.project = one.project
         WHERE one.id = ?1 AND other.layer = ?2 AND other.source_path IS NULL",
    )?
    .query_row((id, layer), same)
    .optional()
}

/// What a move changes of a record, as it was.
struct Former {
    expires_ms: Option<u64>,
    score: f64,
    moved_count: u64,
    carried: f64,
    moved_ms: Option<u64>,
}

/// The record as it is, where it is still what the decision was about.
fn current(db: &Connection, it: &Move) -> rusqlite::Result<Option<Former>> {
    db.prepare_cached(&format!(
        "SELECT expires_ms, score, moved_count, carried, moved_ms FROM records
         WHERE id = ?1 AND layer = ?2 AND access_count = ?3 AND {MAY_MOVE}"
    ))?
    .query_row((it.id, it.from, it.access_count), |row| {
        Ok(Former {
            expires_ms: row.get(0)?,
            score: row.get(1)?,
            moved_count: row.get(2)?,
            carried: row.get(3)?,
            moved_ms: row.get(4)?,
        })
    })
    .optional()
}

fn apply(db: &Connection, note: &CycleNote, cycle: &mut Option<i64>, it: &Move) -> Result<Moved, Fault> {
    let Some(former) = current(db, it)? else { return Ok(Moved::Changed) };
    let (outcome, merged) = match place(db, it.id, it.to, &HashSet::new())? {
        Place::Outdated => return Ok(Moved::Outdated),
        Place::Free => {
            db.prepare_cached(
                "UPDATE records SET layer = ?2, expires_ms = ?3, score = ?4, weighed_count = access_count,
                     moved_count = access_count, carried = ?5, moved_ms = ?6
                 WHERE id = ?1",
            )?
            .execute((it.id, it.to, it.expires_ms, it.score.value, it.carried, note.now_ms))?;
            move_to(db, it.from, it.to, it.id)?;
            (Moved::Moved, None)
        }
        Place::Same(into, ulid) => {
            let merged = merge(db, it, into, ulid.clone())?;
            (Moved::Merged { into: ulid }, Some(merged))
        }
    };
    let cycle = match *cycle {
        Some(cycle) => cycle,
        None => {
            db.prepare_cached("INSERT INTO promotion_cycles (at_ms) VALUES (?1)")?.execute([note.now_ms])?;
            *cycle.insert(db.last_insert_rowid())
        }
    };
    let merged = merged.map(|merged| serde_json::to_string(&merged)).transpose();
    let merged = merged.map_err(|error| rusqlite::Error::ToSqlConversionFailure(error.into()))?;
    db.prepare_cached(
        "INSERT INTO promotions (
             cycle_id, record_id, ulid, from_layer, to_layer, score, recency, frequency, importance, similarity,
             threshold, expires_ms, former_expires_ms, former_score, former_moved_count, former_carried,
             former_moved_ms, merged)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, ?13, ?14, ?15, ?16, ?17, ?18)",
    )?
    .execute(params![
        cycle,
        it.id,
        it.ulid,
        it.from,
        it.to,
        it.score.value,
        it.score.recency,
        it.score.frequency,
        it.score.importance,
        it.score.similarity,
        it.threshold,
        it.expires_ms,
        former.expires_ms,
        former.score,
        former.moved_count,
        former.carried,
        former.moved_ms,
        merged,
    ])?;
    Ok(outcome)
}

fn stay(db: &Connection, it: &Stay) -> rusqlite::Result<()> {
    db.prepare_cached(
        "UPDATE records SET weighed_count = iif(?4, access_count, -1), score = ?3
         WHERE id = ?1 AND access_count = ?2",
    )?
    .execute((it.id, it.access_count, it.score, it.weighed))?;
    Ok(())
}

#[cfg(test)]
mod tests;
