//! The change log: how an index learns what came and went since it last looked.
//!
//! A log entry names a record of one space and layer. What became of it is read from `vectors`, so
//! many changes of one record are one, and an entry can never contradict the data.
use super::{
    Layer, RecordId, SpaceId, Store, StoreError, commits,
    vectors::{append_halves, dim},
};
use half::f16;
use rusqlite::Connection;

/// What an index has to do to be up to date.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Changes {
    /// The sequence number that it is then at.
    pub head: u64,
    /// Ids of the vectors that are new or other than before, ascending.
    pub upserts: Vec<u64>,
    /// Their vectors as the database has them, `[upserts.len(), dim]` row-major.
    pub vectors: Vec<f16>,
    /// Ids whose vectors are gone, ascending. Some may never have been seen.
    pub removed: Vec<u64>,
    /// Whether this is all. If not, the log was pruned beyond the number that was asked for, the
    /// lists are empty, and only [`Store::scan_vectors`] helps.
    pub complete: bool,
}

/// Which vectors changed, as ids alone.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Changed {
    /// The sequence number of the last change.
    pub head: u64,
    /// Ids of the vectors that came, changed or went, ascending.
    pub ids: Vec<u64>,
    /// Entries of the log: one vector may have changed more than once.
    pub changes: u64,
    /// As [`Changes::complete`].
    pub complete: bool,
}

impl Store {
    /// The sequence number of the last change of `space` and `layer`; 0 before the first.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn head(&self, space: SpaceId, layer: Layer) -> Result<u64, StoreError> {
        self.read(|db| Ok(head(db, space, layer)?))
    }

    /// How many changes of `space` and `layer` the log has after `seq`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn change_count(&self, space: SpaceId, layer: Layer, seq: u64) -> Result<u64, StoreError> {
        self.read(|db| {
            let mut count = db.prepare_cached(
                "SELECT count(*) FROM changes WHERE space_id = ?1 AND layer = ?2 AND seq > ?3",
            )?;
            Ok(count.query_row((space, layer, seq), |row| row.get(0))?)
        })
    }

    /// Everything that changed in `space` and `layer` after `seq`, as it is now.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown space, `Damaged` for a vector of another width.
    pub fn changes_after(&self, space: SpaceId, layer: Layer, seq: u64) -> Result<Changes, StoreError> {
        self.read(|db| {
            let head = head(db, space, layer)?;
            // A number beyond the head is of another database, or of one that was set back.
            let complete = (pruned(db, space, layer)?..=head).contains(&seq);
            let mut changes = Changes { head, complete, ..Changes::default() };
            if !complete || seq == head {
                return Ok(changes);
            }
            let dim = dim(db, space)?;
            let mut latest = db.prepare_cached(
                "SELECT changed.record_id, vector
                 FROM (SELECT DISTINCT record_id FROM changes
                       WHERE space_id = ?1 AND layer = ?2 AND seq > ?3) AS changed
                 LEFT JOIN vectors
                   ON vectors.space_id = ?1 AND vectors.layer = ?2 AND vectors.record_id = changed.record_id
                      AND length(vector) > 0
                 ORDER BY changed.record_id",
            )?;
            let mut rows = latest.query((space, layer, seq))?;
            while let Some(row) = rows.next()? {
                let id: RecordId = row.get(0)?;
                match row.get_ref(1)? {
                    rusqlite::types::ValueRef::Null => changes.removed.push(id.index_id()),
                    vector => {
                        append_halves(id, vector, dim, &mut changes.vectors)?;
                        changes.upserts.push(id.index_id());
                    }
                }
            }
            Ok(changes)
        })
    }

    /// Which vectors came, changed or went after `seq`: [`Store::changes_after`] without the vectors.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn changed_after(&self, space: SpaceId, layer: Layer, seq: u64) -> Result<Changed, StoreError> {
        self.read(|db| {
            let head = head(db, space, layer)?;
            let complete = (pruned(db, space, layer)?..=head).contains(&seq);
            let mut changed = Changed { head, complete, ..Changed::default() };
            if !complete || seq == head {
                return Ok(changed);
            }
            let mut ids = db.prepare_cached(
                "SELECT record_id, count(*) FROM changes WHERE space_id = ?1 AND layer = ?2 AND seq > ?3
                 GROUP BY record_id ORDER BY record_id",
            )?;
            let mut rows = ids.query((space, layer, seq))?;
            while let Some(row) = rows.next()? {
                let id: RecordId = row.get(0)?;
                changed.ids.push(id.index_id());
                changed.changes += row.get::<_, u64>(1)?;
            }
            Ok(changed)
        })
    }

    /// Drops the log of `space` and `layer` up to `up_to`, which every index that will be asked
    /// for has covered. Returns how many entries went.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn prune_changes(&self, space: SpaceId, layer: Layer, up_to: u64) -> Result<usize, StoreError> {
        self.write(move |db| {
            let up_to = up_to.min(head(db, space, layer)?);
            db.prepare_cached(
                "INSERT INTO pruned (space_id, layer, seq) VALUES (?1, ?2, ?3)
                 ON CONFLICT DO UPDATE SET seq = max(seq, excluded.seq)",
            )?
            .execute((space, layer, up_to))?;
            Ok(db
                .prepare_cached("DELETE FROM changes WHERE space_id = ?1 AND layer = ?2 AND seq <= ?3")?
                .execute((space, layer, up_to))?)
        })
    }
}

/// Logs that the vector of a record in `space` came, changed or went. `vector` is the new one as the
/// database has it; empty where there is none for an index.
pub(super) fn log(
    db: &Connection,
    space: SpaceId,
    layer: Layer,
    id: RecordId,
    vector: &[u8],
) -> rusqlite::Result<()> {
    let before = if commits::is_first(space, layer) { head(db, space, layer)? } else { 0 };
    db.prepare_cached("INSERT INTO changes (space_id, layer, record_id) VALUES (?1, ?2, ?3)")?
        .execute((space, layer, id))?;
    commits::record(space, layer, before, db.last_insert_rowid().cast_unsigned(), id, vector);
    Ok(())
}

pub(super) fn head(db: &Connection, space: SpaceId, layer: Layer) -> rusqlite::Result<u64> {
    let mut last = db.prepare_cached("SELECT max(seq) FROM changes WHERE space_id = ?1 AND layer = ?2")?;
    let last: Option<u64> = last.query_row((space, layer), |row| row.get(0))?;
    // A pruned log may be empty.
    last.map_or_else(|| pruned(db, space, layer), Ok)
}

/// The last change that was dropped from the log.
fn pruned(db: &Connection, space: SpaceId, layer: Layer) -> rusqlite::Result<u64> {
    db.prepare_cached("SELECT coalesce((SELECT seq FROM pruned WHERE space_id = ?1 AND layer = ?2), 0)")?
        .query_row((space, layer), |row| row.get(0))
}

#[cfg(test)]
mod tests {
    use super::super::{NewRecord, fixture::*};
    use super::*;

    const LAYER: Layer = Layer::Insights;

    fn vector(text: &str, vector: [f32; 2]) -> NewRecord {
        NewRecord { vector: Some(vector.to_vec()), ..note(text) }
    }

    #[test]
    fn many_changes_of_a_record_are_its_last_state() {
        let f = Fixture::new();
        let space = f.space(2);
        let records = vec![vector("a", [1.0, 0.0]), vector("b", [2.0, 0.0]), vector("c", [3.0, 0.0])];
        let ids: Vec<_> = f.store.add(Some(space), records).unwrap().iter().map(|added| added.id).collect();
        f.store.put_vectors(space, &[(ids[0], vec![5.0, 0.0])]).unwrap();
        f.store.forget(&[ids[1]]).unwrap();
        let changes = f.store.changes_after(space, LAYER, 0).unwrap();
        let expected = Changes {
            head: 5,
            upserts: vec![1, 3],
            vectors: [5.0, 0.0, 3.0, 0.0].map(f16::from_f32).to_vec(),
            removed: vec![2],
            complete: true,
        };
        assert_eq!(changes, expected);
        let nothing = Changes { head: 5, complete: true, ..Changes::default() };
        assert_eq!(f.store.changes_after(space, LAYER, 5).unwrap(), nothing);
        let changed = Changed { head: 5, ids: vec![1, 2, 3], changes: 5, complete: true };
        assert_eq!(f.store.changed_after(space, LAYER, 0).unwrap(), changed);
    }

    #[test]
    fn a_change_concerns_its_space_and_layer_alone() {
        let f = Fixture::new();
        let (space, other) = (f.space(2), f.space(3));
        let added = f.store.add(Some(space), vec![vector("a", [1.0, 0.0])]).unwrap();
        assert_eq!(f.store.head(space, LAYER).unwrap(), 1);
        assert_eq!(f.store.head(other, LAYER).unwrap(), 0);
        assert_eq!(f.store.head(space, Layer::Assets).unwrap(), 0);
        f.store.put_vectors(other, &[(added[0].id, vec![1.0; 3])]).unwrap();
        assert_eq!(f.store.head(space, LAYER).unwrap(), 1);
        f.store.forget(&[added[0].id]).unwrap();
        for space in [space, other] {
            assert_eq!(f.store.changes_after(space, LAYER, 2).unwrap().removed, [1]);
        }
    }

    #[test]
    fn a_record_without_a_vector_is_no_change() {
        let f = Fixture::new();
        let space = f.space(2);
        let added = f.store.add(Some(space), vec![note("a")]).unwrap();
        f.store.forget(&[added[0].id]).unwrap();
        assert_eq!(f.store.head(space, LAYER).unwrap(), 0);
    }

    #[test]
    fn who_is_behind_a_pruned_log_is_told() {
        let f = Fixture::new();
        let space = f.space(2);
        let records = (1..=4).map(|n| vector(&n.to_string(), [n as f32, 0.0])).collect();
        f.store.add(Some(space), records).unwrap();
        assert_eq!(f.store.prune_changes(space, LAYER, 2).unwrap(), 2);
        let behind = Changes { head: 4, ..Changes::default() };
        assert_eq!(f.store.changes_after(space, LAYER, 1).unwrap(), behind);
        assert_eq!(f.store.changes_after(space, LAYER, 2).unwrap().upserts, [3, 4]);
        // Pruning less again changes nothing, and pruning the future stops at the present.
        assert_eq!(f.store.prune_changes(space, LAYER, 1).unwrap(), 0);
        assert!(!f.store.changes_after(space, LAYER, 1).unwrap().complete);
        assert_eq!(f.store.prune_changes(space, LAYER, 1000).unwrap(), 2);
        assert_eq!(f.store.head(space, LAYER).unwrap(), 4);
        assert!(f.store.changes_after(space, LAYER, 4).unwrap().complete);
        // A number that was never given out is of another database.
        assert!(!f.store.changes_after(space, LAYER, 5).unwrap().complete);
        f.store.add(Some(space), vec![vector("new", [1.0, 0.0])]).unwrap();
        assert_eq!(f.store.changes_after(space, LAYER, 4).unwrap().upserts, [5]);
    }
}
