//! Spaces and the vectors in them.
use super::{Layer, RecordId, Store, StoreError, changes, error::Fault};
use half::{f16, slice::HalfFloatSliceExt};
use rusqlite::{
    Connection, OptionalExtension,
    types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef},
};
use std::ops::ControlFlow;

/// The id of a [`Space`] inside one database.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpaceId(pub i64);

impl ToSql for SpaceId {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.0))
    }
}

impl FromSql for SpaceId {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        value.as_i64().map(Self)
    }
}

/// Vectors that may be compared with each other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Space {
    /// Its id here.
    pub id: SpaceId,
    /// [`EmbedderInfo::space`](magray_plugin_api::EmbedderInfo::space) of its embedders.
    pub digest: [u8; 32],
    /// Name of the model, for people.
    pub model: String,
    /// Width of every vector.
    pub dim: usize,
}

impl Store {
    /// The space of this digest; it is entered where it is new.
    ///
    /// # Errors
    /// `InvalidInput` where the width is 0 or the space is known with another one.
    pub fn space(&self, digest: [u8; 32], model: &str, dim: usize) -> Result<SpaceId, StoreError> {
        if dim == 0 {
            return Err(StoreError::invalid(format!("the vectors of '{model}' have no width")));
        }
        if let Some(known) = self.read(|db| find(db, &digest))? {
            return known.of_width(dim);
        }
        let model = model.to_owned();
        self.write(move |db| {
            db.execute(
                "INSERT INTO spaces (digest, model, dim) VALUES (?1, ?2, ?3) ON CONFLICT DO NOTHING",
                (&digest, &model, dim),
            )?;
            let known = find(db, &digest)?.ok_or(rusqlite::Error::QueryReturnedNoRows)?;
            Ok(known.of_width(dim)?)
        })
    }

    /// Every space, oldest first.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn spaces(&self) -> Result<Vec<Space>, StoreError> {
        self.read(|db| {
            let mut spaces = db.prepare_cached("SELECT id, digest, model, dim FROM spaces ORDER BY id")?;
            Ok(spaces.query_map([], Space::from_row)?.collect::<Result<_, _>>()?)
        })
    }

    /// Gives records their vectors in `space`, in place of those that they have there. A vector of
    /// zeros has no direction: its record counts as embedded, and no index hears of it. Records that
    /// are gone are passed over. Returns how many were there.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown space, a vector of another width, or one with numbers that f16
    /// cannot hold; then nothing is stored.
    pub fn put_vectors(&self, space: SpaceId, vectors: &[(RecordId, Vec<f32>)]) -> Result<usize, StoreError> {
        let dim = self.dim(space)?;
        let mut encoded = Vec::with_capacity(vectors.len());
        for (id, vector) in vectors {
            encoded.push((*id, encode(vector, dim)?));
        }
        self.write(move |db| {
            let mut stored = 0;
            for (id, vector) in &encoded {
                stored += usize::from(put(db, space, *id, vector)?);
            }
            Ok(stored)
        })
    }

    /// The first `limit` records after `after`, by id, that were not embedded in `space`. To go through
    /// all of them start with `RecordId(0)` and go on with the last id.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn without_vector(
        &self,
        space: SpaceId,
        after: RecordId,
        limit: usize,
    ) -> Result<Vec<RecordId>, StoreError> {
        self.read(|db| Ok(without_vector(db, space, after, limit)?))
    }

    /// How many records were not embedded in `space`.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn count_without_vector(&self, space: SpaceId) -> Result<u64, StoreError> {
        self.read(|db| {
            // Every row of `vectors` is of a record. Whole tables are counted by pages of narrow indexes, some hundred
            // rows at a time, and those of a space row by row; mostly there is no other space.
            let mut count = db.prepare_cached(
                "SELECT (SELECT count(*) FROM records)
                      - (SELECT count(*) FROM vectors)
                      + (SELECT count(*) FROM vectors WHERE space_id < ?1)
                      + (SELECT count(*) FROM vectors WHERE space_id > ?1)",
            )?;
            Ok(count.query_row([space], |row| row.get(0))?)
        })
    }

    /// How many vectors `space` and `layer` have, without those that have no direction.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn vector_count(&self, space: SpaceId, layer: Layer) -> Result<u64, StoreError> {
        self.read(|db| {
            // Two counts of narrow indexes.
            let mut count = db.prepare_cached(
                "SELECT (SELECT count(*) FROM vectors WHERE space_id = ?1 AND layer = ?2)
                      - (SELECT count(*) FROM vectors
                         WHERE space_id = ?1 AND layer = ?2 AND length(vector) = 0)",
            )?;
            Ok(count.query_row((space, layer), |row| row.get(0))?)
        })
    }

    /// Hands every vector of `space` and `layer` to `visit`, by ascending id, at most `batch` at a
    /// time: the ids and the vectors, `[ids.len(), dim]` row-major. `visit` ends it by `Break`.
    /// Returns the sequence number that the vectors are of: go on with
    /// [`Store::changes_after`] from there.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown space, `Damaged` for a vector of another width.
    pub fn scan_vectors(
        &self,
        space: SpaceId,
        layer: Layer,
        batch: usize,
        mut visit: impl FnMut(&[u64], &[f32]) -> ControlFlow<()>,
    ) -> Result<u64, StoreError> {
        self.read(|db| {
            let head = changes::head(db, space, layer)?;
            let mut decoder = Decoder::new(dim(db, space)?);
            let mut ids = Vec::with_capacity(batch);
            let mut vectors = Vec::with_capacity(batch.saturating_mul(decoder.dim()));
            let mut all = db.prepare_cached(
                "SELECT record_id, vector FROM vectors
                 WHERE space_id = ?1 AND layer = ?2 AND length(vector) > 0 ORDER BY record_id",
            )?;
            let mut rows = all.query((space, layer))?;
            while let Some(row) = rows.next()? {
                let id: RecordId = row.get(0)?;
                decoder.append(id, row.get_ref(1)?, &mut vectors)?;
                ids.push(id.index_id());
                if ids.len() >= batch {
                    if visit(&ids, &vectors).is_break() {
                        return Ok(head);
                    }
                    ids.clear();
                    vectors.clear();
                }
            }
            if !ids.is_empty() {
                // It was the last batch: there is nothing left to break off.
                let _ = visit(&ids, &vectors);
            }
            Ok(head)
        })
    }

    /// The ids of all vectors of `space` and `layer`, ascending, and the sequence number that they are of.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn vector_ids(&self, space: SpaceId, layer: Layer) -> Result<(Vec<u64>, u64), StoreError> {
        self.read(|db| {
            let head = changes::head(db, space, layer)?;
            // Two scans of narrow indexes; a condition on the vector would read them all.
            let mut all = db.prepare_cached(
                "SELECT record_id FROM vectors WHERE space_id = ?1 AND layer = ?2
                 EXCEPT
                 SELECT record_id FROM vectors WHERE space_id = ?1 AND layer = ?2 AND length(vector) = 0
                 ORDER BY record_id",
            )?;
            let ids = all.query_map((space, layer), |row| Ok(row.get::<_, RecordId>(0)?.index_id()))?;
            Ok((ids.collect::<Result<_, _>>()?, head))
        })
    }

    /// Hands the vectors of `ids`, which are ascending, to `visit`, at most `batch` at a time: the ids and
    /// the vectors as the database has them, `[ids.len(), dim]` row-major. Those that are gone are left out.
    /// `visit` ends it by `Break`. Each batch is of one moment, and later ones may be of a later one.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown space, `Damaged` for a vector of another width.
    pub fn vectors_of(
        &self,
        space: SpaceId,
        layer: Layer,
        ids: &[u64],
        batch: usize,
        mut visit: impl FnMut(&[u64], &[f16]) -> ControlFlow<()>,
    ) -> Result<(), StoreError> {
        let dim = self.dim(space)?;
        for wanted in ids.chunks(batch.max(1)) {
            let (mut found, mut vectors) =
                (Vec::with_capacity(wanted.len()), Vec::with_capacity(wanted.len() * dim));
            self.read(|db| {
                let mut one = db.prepare_cached(
                    "SELECT vector FROM vectors
                     WHERE space_id = ?1 AND layer = ?2 AND record_id = ?3 AND length(vector) > 0",
                )?;
                for &index_id in wanted {
                    let id = RecordId::from_index_id(index_id);
                    let mut rows = one.query((space, layer, id))?;
                    if let Some(row) = rows.next()? {
                        append_halves(id, row.get_ref(0)?, dim, &mut vectors)?;
                        found.push(index_id);
                    }
                }
                Ok(())
            })?;
            if !found.is_empty() && visit(&found, &vectors).is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Width of the vectors of `space`.
    pub(super) fn dim(&self, space: SpaceId) -> Result<usize, StoreError> {
        self.read(|db| dim(db, space))
    }
}

impl Space {
    fn from_row(row: &rusqlite::Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { id: row.get(0)?, digest: row.get(1)?, model: row.get(2)?, dim: row.get(3)? })
    }

    fn of_width(self, dim: usize) -> Result<SpaceId, StoreError> {
        if self.dim != dim {
            return Err(StoreError::invalid(format!(
                "the vectors of '{}' are {} wide in the database, not {dim}",
                self.model, self.dim
            )));
        }
        Ok(self.id)
    }
}

fn find(db: &Connection, digest: &[u8; 32]) -> Result<Option<Space>, Fault> {
    let mut space = db.prepare_cached("SELECT id, digest, model, dim FROM spaces WHERE digest = ?1")?;
    Ok(space.query_row([digest], Space::from_row).optional()?)
}

pub(super) fn dim(db: &Connection, space: SpaceId) -> Result<usize, Fault> {
    let mut dim = db.prepare_cached("SELECT dim FROM spaces WHERE id = ?1")?;
    let dim = dim.query_row([space], |row| row.get(0)).optional()?;
    Ok(dim.ok_or_else(|| StoreError::invalid(format!("there is no space {}", space.0)))?)
}

/// The first `limit` records after `after` that were not embedded in `space`.
pub(super) fn without_vector(
    db: &Connection,
    space: SpaceId,
    after: RecordId,
    limit: usize,
) -> rusqlite::Result<Vec<RecordId>> {
    let mut missing = db.prepare_cached(
        "SELECT id FROM records WHERE id > ?2 AND NOT EXISTS (
             SELECT 1 FROM vectors
             WHERE space_id = ?1 AND vectors.layer = records.layer AND record_id = records.id)
         ORDER BY id LIMIT ?3",
    )?;
    let ids = missing.query_map((space, after, limit), |row| row.get(0))?;
    ids.collect()
}

/// Gives a record its vector, in place of one that it has. Returns whether the record is there.
pub(super) fn put(db: &Connection, space: SpaceId, id: RecordId, vector: &[u8]) -> rusqlite::Result<bool> {
    let mut put = db.prepare_cached(
        "INSERT INTO vectors (space_id, layer, record_id, vector)
         SELECT ?1, layer, id, ?3 FROM records WHERE id = ?2
         ON CONFLICT DO UPDATE SET vector = excluded.vector
         RETURNING layer",
    )?;
    let layer: Option<Layer> = put.query_row((space, id, vector), |row| row.get(0)).optional()?;
    if let Some(layer) = layer {
        changes::log(db, space, layer, id, vector)?;
    }
    Ok(layer.is_some())
}

/// Gives a record its vector unless it was embedded in `space`.
pub(super) fn put_missing(
    db: &Connection,
    space: SpaceId,
    layer: Layer,
    id: RecordId,
    vector: &[u8],
) -> rusqlite::Result<()> {
    let mut put = db.prepare_cached(
        "INSERT INTO vectors (space_id, layer, record_id, vector) VALUES (?1, ?2, ?3, ?4)
         ON CONFLICT DO NOTHING",
    )?;
    if put.execute((space, layer, id, vector))? == 1 && !vector.is_empty() {
        changes::log(db, space, layer, id, vector)?;
    }
    Ok(())
}

/// Whether a record was embedded in `space`.
pub(super) fn exists(db: &Connection, space: SpaceId, layer: Layer, id: RecordId) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT 1 FROM vectors WHERE space_id = ?1 AND layer = ?2 AND record_id = ?3")?
        .exists((space, layer, id))
}

/// Drops the vectors of a record in every space.
pub(super) fn remove(db: &Connection, layer: Layer, id: RecordId) -> rusqlite::Result<()> {
    let mut remove = db.prepare_cached(
        "DELETE FROM vectors WHERE space_id IN (SELECT id FROM spaces) AND layer = ?1 AND record_id = ?2
         RETURNING space_id",
    )?;
    let spaces: Vec<SpaceId> =
        remove.query_map((layer, id), |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    for space in spaces {
        changes::log(db, space, layer, id, &[])?;
    }
    Ok(())
}

/// Takes the vectors of a record along to another layer, in every space.
pub(super) fn move_to(db: &Connection, from: Layer, to: Layer, id: RecordId) -> rusqlite::Result<()> {
    let mut moved = db.prepare_cached(
        "UPDATE vectors SET layer = ?2
         WHERE space_id IN (SELECT id FROM spaces) AND layer = ?1 AND record_id = ?3
         RETURNING space_id, vector",
    )?;
    let moved: Vec<(SpaceId, Vec<u8>)> = moved
        .query_map((from, to, id), |row| Ok((row.get(0)?, row.get(1)?)))?
        .collect::<rusqlite::Result<_>>()?;
    for (space, vector) in moved {
        changes::log(db, space, from, id, &[])?;
        changes::log(db, space, to, id, &vector)?;
    }
    Ok(())
}

/// The vector as the database has it: `dim` little-endian f16, or nothing where all are zero.
///
/// # Errors
/// `InvalidInput` as [`Store::put_vectors`].
pub(super) fn encode(vector: &[f32], dim: usize) -> Result<Vec<u8>, StoreError> {
    if vector.len() != dim {
        return Err(StoreError::invalid(format!(
            "a vector has {} numbers, and the space has {dim}",
            vector.len()
        )));
    }
    let mut halves = vec![f16::ZERO; dim];
    halves.convert_from_f32_slice(vector);
    if !halves.iter().all(|half| half.is_finite()) {
        return Err(StoreError::invalid("a vector has a number that is not finite or too large for f16"));
    }
    if halves.iter().all(|&half| half == f16::ZERO) {
        return Ok(Vec::new());
    }
    Ok(halves.reinterpret_cast().iter().flat_map(|bits| bits.to_le_bytes()).collect())
}

/// Reads vectors of one width.
pub(super) struct Decoder {
    halves: Vec<f16>,
    dim: usize,
}

impl Decoder {
    pub(super) fn new(dim: usize) -> Self {
        Self { halves: Vec::with_capacity(dim), dim }
    }

    fn dim(&self) -> usize {
        self.dim
    }

    /// Appends the vector of record `id` to `out`.
    pub(super) fn append(
        &mut self,
        id: RecordId,
        blob: ValueRef<'_>,
        out: &mut Vec<f32>,
    ) -> Result<(), Fault> {
        self.halves.clear();
        append_halves(id, blob, self.dim, &mut self.halves)?;
        let start = out.len();
        out.resize(start + self.dim, 0.0);
        self.halves.convert_to_f32_slice(&mut out[start..]);
        Ok(())
    }
}

/// Appends the vector of record `id` to `out` as it is in the database.
pub(super) fn append_halves(
    id: RecordId,
    blob: ValueRef<'_>,
    dim: usize,
    out: &mut Vec<f16>,
) -> Result<(), Fault> {
    match blob {
        ValueRef::Blob(bytes) if bytes.len() == 2 * dim => {
            out.extend(halves(bytes));
            Ok(())
        }
        _ => Err(Fault::Damaged(format!("the vector of record {id} is not {dim} wide"))),
    }
}

/// The numbers of a vector in the database.
pub(super) fn halves(bytes: &[u8]) -> impl Iterator<Item = f16> + '_ {
    bytes.as_chunks().0.iter().map(|bytes| f16::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::super::{NewRecord, fixture::*};
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_vector_is_read_as_it_was_written_but_for_f16(vector in prop::collection::vec(0.01f32..1.0, 1..40)) {
            let bytes = encode(&vector, vector.len()).unwrap();
            let mut read = Vec::new();
            let mut decoder = Decoder::new(vector.len());
            decoder.append(RecordId(1), ValueRef::Blob(&bytes), &mut read).unwrap();
            prop_assert_eq!(read.len(), vector.len());
            for (read, written) in read.iter().zip(&vector) {
                prop_assert!((read - written).abs() <= written / 2048.0);
            }
        }
    }

    #[test]
    fn a_space_is_known_by_its_digest() {
        let f = Fixture::new();
        let first = f.store.space([1; 32], "small", 3).unwrap();
        let second = f.store.space([2; 32], "large", 5).unwrap();
        assert_ne!(first, second);
        assert_eq!(f.store.space([1; 32], "small", 3), Ok(first));
        let error = f.store.space([1; 32], "small", 4).unwrap_err().to_string();
        assert!(error.contains("'small' are 3 wide"), "{error}");
        assert!(f.store.space([3; 32], "empty", 0).is_err());
        let large = Space { id: second, digest: [2; 32], model: "large".to_owned(), dim: 5 };
        assert_eq!(f.store.spaces().unwrap()[1], large);
    }

    #[test]
    fn records_without_a_vector_are_found_in_steps_and_given_one() {
        let f = Fixture::new();
        let space = f.space(2);
        let records = (0..5).map(|n| note(&n.to_string())).collect();
        let ids: Vec<RecordId> = f.store.add(None, records).unwrap().iter().map(|added| added.id).collect();
        f.store.put_vectors(space, &[(ids[1], vec![1.0, 0.0])]).unwrap();
        assert_eq!(f.store.without_vector(space, RecordId(0), 2).unwrap(), [ids[0], ids[2]]);
        assert_eq!(f.store.without_vector(space, ids[2], 9).unwrap(), ids[3..]);

        let gone = RecordId(99);
        let vectors: Vec<_> = ids.iter().chain([&gone]).map(|&id| (id, vec![0.0, 2.0])).collect();
        assert_eq!(f.store.put_vectors(space, &vectors).unwrap(), 5);
        assert_eq!(f.store.without_vector(space, RecordId(0), 9).unwrap(), []);
        assert!(f.store.put_vectors(space, &[(ids[0], vec![1.0])]).is_err());
        assert!(f.store.put_vectors(SpaceId(9), &[]).is_err());
    }

    #[test]
    fn a_scan_hands_over_batches_of_one_layer_and_can_be_ended() {
        let f = Fixture::new();
        let space = f.space(2);
        let record = |n: usize| NewRecord {
            layer: if n == 3 { Layer::Assets } else { Layer::Insights },
            vector: Some(vec![n as f32, 1.0]),
            ..note(&n.to_string())
        };
        f.store.add(Some(space), (1..=6).map(record).collect()).unwrap();
        let mut batches = Vec::new();
        let head = f.store.scan_vectors(space, Layer::Insights, 2, |ids, vectors| {
            batches.push((ids.to_vec(), vectors.to_vec()));
            ControlFlow::Continue(())
        });
        assert_eq!(head, f.store.head(space, Layer::Insights));
        assert_eq!(
            batches,
            [
                (vec![1, 2], vec![1.0, 1.0, 2.0, 1.0]),
                (vec![4, 5], vec![4.0, 1.0, 5.0, 1.0]),
                (vec![6], vec![6.0, 1.0])
            ]
        );
        let mut calls = 0;
        let ended = f.store.scan_vectors(space, Layer::Insights, 2, |_, _| {
            calls += 1;
            ControlFlow::Break(())
        });
        assert_eq!((calls, ended), (1, head));
    }

    #[test]
    fn a_record_without_a_direction_is_embedded_and_no_index_hears_of_it() {
        let f = Fixture::new();
        let space = f.space(2);
        let record = |text, vector: [f32; 2]| NewRecord { vector: Some(vector.to_vec()), ..note(text) };
        // The smaller one is zero in f16.
        let records = vec![record("a", [0.0, 0.0]), record("b", [1e-9, 0.0]), record("c", [1.0, 0.0])];
        let ids: Vec<_> = f.store.add(Some(space), records).unwrap().iter().map(|added| added.id).collect();
        let seen = || {
            let mut seen = Vec::new();
            let scanned = f.store.scan_vectors(space, Layer::Insights, 9, |ids, _| {
                seen.extend_from_slice(ids);
                ControlFlow::Continue(())
            });
            assert_eq!(scanned, f.store.head(space, Layer::Insights));
            assert_eq!(f.store.vector_count(space, Layer::Insights).unwrap(), seen.len() as u64);
            let (ids, head) = f.store.vector_ids(space, Layer::Insights).unwrap();
            assert_eq!((&ids, Ok(head)), (&seen, f.store.head(space, Layer::Insights)));
            let mut read = Vec::new();
            let all: Vec<u64> = (0..9).collect();
            let visit = |ids: &[u64], _: &[f16]| {
                read.extend_from_slice(ids);
                ControlFlow::Continue(())
            };
            f.store.vectors_of(space, Layer::Insights, &all, 2, visit).unwrap();
            assert_eq!(read, seen);
            assert_eq!(f.store.stats().unwrap().layers[1].vectors, seen.len() as u64);
            seen
        };
        assert_eq!(seen(), [3]);
        assert_eq!(f.store.changes_after(space, Layer::Insights, 0).unwrap().upserts, [3]);
        assert_eq!(f.store.count_without_vector(space).unwrap(), 0);
        assert_eq!(f.store.without_vector(space, RecordId(0), 9).unwrap(), []);

        // One that loses its direction is gone to an index, and one that gets one is new.
        let head = f.store.head(space, Layer::Insights).unwrap();
        f.store.put_vectors(space, &[(ids[2], vec![0.0; 2]), (ids[0], vec![0.0, 1.0])]).unwrap();
        let changes = f.store.changes_after(space, Layer::Insights, head).unwrap();
        assert_eq!((changes.upserts, changes.removed), (vec![1], vec![3]));
        assert_eq!(seen(), [1]);
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn vectors_are_counted_without_being_read() {
        let f = Fixture::new();
        let plan = |condition: &str| -> String {
            let sql = format!(
                "EXPLAIN QUERY PLAN SELECT count(*) FROM vectors WHERE space_id = 1 AND layer = 1{condition}"
            );
            f.store.read(|db| Ok(db.query_row(&sql, [], |row| row.get(3))?)).unwrap()
        };
        assert!(plan("").contains("COVERING INDEX sqlite_autoindex_vectors_1"), "{}", plan(""));
        let without_direction = plan(" AND length(vector) = 0");
        assert!(without_direction.contains("INDEX vectors_without_direction"), "{without_direction}");
    }

    #[test]
    fn a_vector_of_another_width_is_damage() {
        let f = Fixture::new();
        let space = f.space(2);
        f.store.add(Some(space), vec![NewRecord { vector: Some(vec![1.0, 1.0]), ..note("a") }]).unwrap();
        f.store.write(|db| Ok(db.execute("UPDATE vectors SET vector = x'0000'", [])?)).unwrap();
        let error = f.store.scan_vectors(space, Layer::Insights, 9, |_, _| ControlFlow::Continue(()));
        assert!(matches!(error, Err(StoreError::Damaged { .. })));
        assert_eq!(f.store.check().unwrap(), ["1 vectors of a wrong width"]);
    }
}
