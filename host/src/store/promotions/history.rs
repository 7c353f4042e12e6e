//! What was promoted, and why.
use super::{Score, merge::Merged};
use crate::store::{Layer, Store, StoreError, error::Fault};
use rusqlite::{Connection, Row};

/// The moves of one cycle.
#[derive(Clone, Debug, PartialEq)]
pub struct CycleRecord {
    /// Its number.
    pub cycle: i64,
    /// When it was, in milliseconds since 1970.
    pub at_ms: u64,
    /// What it moved.
    pub moves: Vec<PromotionRecord>,
}

/// One move.
#[derive(Clone, Debug, PartialEq)]
pub struct PromotionRecord {
    /// The record's id for people.
    pub id: String,
    /// Where it was.
    pub from: Layer,
    /// Where it went.
    pub to: Layer,
    /// What it deserved.
    pub score: Score,
    /// What that had to reach; none where it was moved by hand.
    pub threshold: Option<f64>,
    /// When it may be deleted since then, in milliseconds since 1970; none for never.
    pub expires_ms: Option<u64>,
    /// When it could have been deleted before.
    pub former_expires_ms: Option<u64>,
    /// The record that it was merged into.
    pub merged_into: Option<String>,
    /// When the move was undone.
    pub undone_ms: Option<u64>,
}

impl Store {
    /// The last `limit` cycles that moved something, newest first.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn promotion_history(&self, limit: usize) -> Result<Vec<CycleRecord>, StoreError> {
        self.read(|db| {
            let mut cycles =
                db.prepare_cached("SELECT id, at_ms FROM promotion_cycles ORDER BY id DESC LIMIT ?1")?;
            let cycles: Vec<(i64, u64)> = cycles
                .query_map([limit as u64], |row| Ok((row.get(0)?, row.get(1)?)))?
                .collect::<Result<_, _>>()?;
            let moves = cycles
                .into_iter()
                .map(|(cycle, at_ms)| Ok(CycleRecord { cycle, at_ms, moves: moves_of(db, cycle)? }));
            moves.collect()
        })
    }
}

fn moves_of(db: &Connection, cycle: i64) -> Result<Vec<PromotionRecord>, Fault> {
    let mut moves = db.prepare_cached(
        "SELECT ulid, from_layer, to_layer, score, recency, frequency, importance, similarity, threshold,
             expires_ms, former_expires_ms, merged, undone_ms
         FROM promotions WHERE cycle_id = ?1 ORDER BY id",
    )?;
    let mut rows = moves.query([cycle])?;
    let mut records = Vec::new();
    while let Some(row) = rows.next()? {
        records.push(PromotionRecord {
            id: row.get(0)?,
            from: row.get(1)?,
            to: row.get(2)?,
            score: Score {
                value: row.get(3)?,
                recency: row.get(4)?,
                frequency: row.get(5)?,
                importance: row.get(6)?,
                similarity: row.get(7)?,
            },
            threshold: row.get(8)?,
            expires_ms: row.get(9)?,
            former_expires_ms: row.get(10)?,
            merged_into: merged(row, 11)?.map(|merged| merged.ulid),
            undone_ms: row.get(12)?,
        });
    }
    Ok(records)
}

pub(super) fn merged(row: &Row<'_>, column: usize) -> Result<Option<Merged>, Fault> {
    let Some(json) = row.get_ref(column)?.as_str_or_null().map_err(rusqlite::Error::from)? else {
        return Ok(None);
    };
    let damaged = |error| Fault::Damaged(format!("a promotion cannot be read: {error}"));
    serde_json::from_str(json).map(Some).map_err(damaged)
}

/// Forgets the cycles before `keep_from_ms`.
pub(super) fn prune(db: &Connection, keep_from_ms: u64) -> rusqlite::Result<()> {
    let before = i64::try_from(keep_from_ms).unwrap_or(i64::MAX);
    let mut old = db.prepare_cached("SELECT max(id) FROM promotion_cycles WHERE at_ms < ?1")?;
    let Some(last) = old.query_row([before], |row| row.get::<_, Option<i64>>(0))? else { return Ok(()) };
    db.prepare_cached("DELETE FROM promotions WHERE cycle_id <= ?1")?.execute([last])?;
    db.prepare_cached("DELETE FROM promotion_cycles WHERE id <= ?1")?.execute([last])?;
    Ok(())
}
