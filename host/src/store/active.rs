//! Which model answers, and the way from one to another.
use super::{RecordId, SpaceId, Store, StoreError, vectors};
use rusqlite::{Connection, OptionalExtension, Row};
use std::{sync::mpsc, time::Duration};

/// Vectors that go in one transaction when a space is dropped.
const DROP_BATCH: usize = 4096;
/// How long a switch lets other writers wait for its last vectors.
const LAST_WAIT: Duration = Duration::from_secs(2);

/// A model that answers, or did before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ActiveModel {
    /// The embedding profile that runs it.
    pub profile: String,
    /// Its name, as `model_name` in the configuration.
    pub model: String,
    /// The space of its vectors.
    pub space: SpaceId,
}

/// What a space takes and lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpaceUse {
    /// Records that were embedded in it.
    pub embedded: u64,
    /// Records that were not.
    pub missing: u64,
    /// Bytes of its vectors.
    pub vector_bytes: u64,
}

/// Records without a vector in a space, for an estimate of what they cost.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MissingTexts {
    /// How many there are.
    pub count: u64,
    /// Characters of all of them.
    pub chars: u64,
    /// Some of them, spread over all.
    pub sample: Vec<RecordId>,
}

impl ActiveModel {
    fn from_row(row: &Row<'_>) -> rusqlite::Result<Self> {
        Ok(Self { profile: row.get(0)?, model: row.get(1)?, space: row.get(2)? })
    }
}

impl Store {
    /// The model that answers; none where nobody has switched and the configuration says.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn active_model(&self) -> Result<Option<ActiveModel>, StoreError> {
        self.read(|db| Ok(at_place(db, 0)?))
    }

    /// The model that answered before the last switch, unless its vectors were dropped.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn previous_model(&self) -> Result<Option<ActiveModel>, StoreError> {
        self.read(|db| Ok(at_place(db, 1)?))
    }

    /// Makes `to` the model that answers and `from` the one before, in one transaction, in which
    /// every record has a vector in the space of `to`. Up to `limit` records that still lack one are
    /// handed to `embed` while other writers wait; where there are more, or it takes more than two
    /// seconds, nothing is done and the answer is false.
    ///
    /// # Errors
    /// What `embed` or SQLite says, and then nothing is changed.
    pub fn switch_model<E: From<StoreError>>(
        &self,
        to: &ActiveModel,
        from: Option<&ActiveModel>,
        limit: usize,
        embed: impl FnOnce(&[RecordId]) -> Result<Vec<(RecordId, Vec<f32>)>, E>,
    ) -> Result<bool, E> {
        let dim = self.dim(to.space)?;
        let (places, space) = ([Some(to.clone()), from.cloned()], to.space);
        // The transaction runs on the writer's thread, and texts are embedded on this one.
        let (ask, asked) = mpsc::sync_channel::<Vec<RecordId>>(1);
        let (answer, answered) = mpsc::sync_channel::<Vec<(RecordId, Vec<u8>)>>(1);
        let pending = self.submit(move |db| {
            // One more shows that there are too many.
            let missing = vectors::without_vector(db, space, RecordId(0), limit.saturating_add(1))?;
            if missing.len() > limit {
                return Ok(false);
            }
            if !missing.is_empty() {
                // Where nobody is there any more, nothing comes back either.
                drop(ask.send(missing));
                // Others wait meanwhile, among them perhaps the backend itself, for a write of its own.
                let Ok(embedded) = answered.recv_timeout(LAST_WAIT) else { return Ok(false) };
                for (id, vector) in embedded {
                    vectors::put(db, space, id, &vector)?;
                }
            }
            for (place, model) in (0..).zip(&places) {
                set_place(db, place, model.as_ref())?;
            }
            Ok(true)
        })?;
        // Nothing comes where none is missing.
        if let Ok(missing) = asked.recv() {
            let vectors = embed(&missing)?;
            let encoded: Result<Vec<_>, StoreError> =
                vectors.iter().map(|(id, vector)| Ok((*id, vectors::encode(vector, dim)?))).collect();
            drop(answer.send(encoded?));
        }
        Ok(pending.wait()?)
    }

    /// What a space takes and lacks.
    ///
    /// # Errors
    /// `InvalidInput` for an unknown space.
    pub fn space_use(&self, space: SpaceId) -> Result<SpaceUse, StoreError> {
        self.read(|db| {
            let dim = vectors::dim(db, space)? as u64;
            // Counts of narrow indexes.
            let (records, embedded, zero): (u64, u64, u64) = db.query_row(
                "SELECT (SELECT count(*) FROM records),
                        (SELECT count(*) FROM vectors WHERE space_id = ?1),
                        (SELECT count(*) FROM vectors WHERE space_id = ?1 AND length(vector) = 0)",
                [space],
                |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
            )?;
            let vector_bytes = 2 * dim * (embedded - zero);
            Ok(SpaceUse { embedded, missing: records.saturating_sub(embedded), vector_bytes })
        })
    }

    /// The records without a vector in `space`, and about `sample` of them.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn missing_texts(&self, space: SpaceId, sample: usize) -> Result<MissingTexts, StoreError> {
        self.read(|db| {
            let without = "NOT EXISTS (SELECT 1 FROM vectors
                 WHERE space_id = ?1 AND vectors.layer = records.layer AND record_id = records.id)";
            let (count, chars): (u64, u64) = db.query_row(
                &format!(
                    "SELECT count(*), total(length(text) + coalesce(length(title) + 1, 0)) FROM records
                     WHERE {without}"
                ),
                [space],
                |row| Ok((row.get(0)?, row.get::<_, f64>(1)? as u64)),
            )?;
            let stride = (count / sample.max(1) as u64).max(1);
            let mut some = db.prepare(&format!(
                "SELECT id FROM (SELECT id, row_number() OVER (ORDER BY id) AS place FROM records WHERE {without})
                 WHERE place % ?2 = 0 LIMIT ?3"
            ))?;
            let sample = some.query_map((space, stride, sample), |row| row.get(0))?;
            Ok(MissingTexts { count, chars, sample: sample.collect::<Result<_, _>>()? })
        })
    }

    /// Drops a space with all its vectors, some thousand at a time; the way back to it is forgotten
    /// first.
    ///
    /// # Errors
    /// `InvalidInput` for the space of the model that answers.
    pub fn drop_space(&self, space: SpaceId) -> Result<(), StoreError> {
        self.write(move |db| {
            if at_place(db, 0)?.is_some_and(|active| active.space == space) {
                return Err(StoreError::invalid("the model that answers cannot be dropped").into());
            }
            db.execute("DELETE FROM active_models WHERE place = 1 AND space_id = ?1", [space])?;
            Ok(())
        })?;
        let batch = move |db: &Connection| {
            let mut drop = db.prepare_cached(
                "DELETE FROM vectors WHERE rowid IN (SELECT rowid FROM vectors WHERE space_id = ?1 LIMIT ?2)",
            )?;
            Ok(drop.execute((space, DROP_BATCH))?)
        };
        while self.write(batch)? > 0 {}
        self.write(move |db| {
            for table in ["changes WHERE space_id", "pruned WHERE space_id", "spaces WHERE id"] {
                db.execute(&format!("DELETE FROM {table} = ?1"), [space])?;
            }
            // One that another process has embedded meanwhile.
            db.execute("DELETE FROM vectors WHERE space_id = ?1", [space])?;
            Ok(())
        })
    }
}

fn at_place(db: &Connection, place: i64) -> rusqlite::Result<Option<ActiveModel>> {
    db.prepare_cached("SELECT profile, model, space_id FROM active_models WHERE place = ?1")?
        .query_row([place], ActiveModel::from_row)
        .optional()
}

fn set_place(db: &Connection, place: i64, model: Option<&ActiveModel>) -> rusqlite::Result<()> {
    db.execute("DELETE FROM active_models WHERE place = ?1", [place])?;
    if let Some(ActiveModel { profile, model, space }) = model {
        db.execute(
            "INSERT INTO active_models (place, profile, model, space_id) VALUES (?1, ?2, ?3, ?4)",
            (place, profile, model, space),
        )?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Filter, fixture::*};
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};

    fn model(name: &str, space: SpaceId) -> ActiveModel {
        ActiveModel { profile: "p".to_owned(), model: name.to_owned(), space }
    }

    fn no_embedding(_: &[RecordId]) -> Result<Vec<(RecordId, Vec<f32>)>, StoreError> {
        panic!("nothing is missing")
    }

    #[test]
    fn a_switch_waits_until_every_record_has_a_vector() {
        let f = Fixture::new();
        let (old, new) = (f.space(2), f.space(3));
        f.store.add(None, (0..5).map(|n| note(&n.to_string())).collect()).unwrap();
        assert_eq!(f.store.active_model().unwrap(), None);
        let (from, to) = (model("old", old), model("new", new));
        assert_eq!(f.store.switch_model(&to, Some(&from), 4, no_embedding), Ok(false));
        assert_eq!(f.store.active_model().unwrap(), None);
        let embed = |ids: &[RecordId]| {
            assert_eq!(ids.len(), 5);
            Ok::<_, StoreError>(ids.iter().map(|&id| (id, vec![1.0, 0.0, 0.0])).collect())
        };
        assert_eq!(f.store.switch_model(&to, Some(&from), 5, embed), Ok(true));
        assert_eq!(f.store.active_model().unwrap(), Some(to.clone()));
        assert_eq!(f.store.previous_model().unwrap(), Some(from));
        let used = SpaceUse { embedded: 5, missing: 0, vector_bytes: 5 * 6 };
        assert_eq!(f.store.space_use(new).unwrap(), used);
        assert_eq!(f.store.vector_count(new, super::super::Layer::Insights), Ok(5));
        assert_eq!(f.store.switch_model(&to, None, 0, no_embedding), Ok(true));
        assert_eq!(f.store.previous_model().unwrap(), None);
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn a_switch_that_cannot_embed_changes_nothing_and_frees_the_writer() {
        let f = Fixture::new();
        let new = f.space(3);
        f.store.add(None, vec![note("a")]).unwrap();
        let failing = |_: &[RecordId]| Err(StoreError::invalid("no model"));
        let error = f.store.switch_model(&model("new", new), None, 5, failing).unwrap_err();
        assert_eq!(error, StoreError::invalid("no model"));
        let wrong = |ids: &[RecordId]| Ok::<_, StoreError>(vec![(ids[0], vec![1.0])]);
        assert!(f.store.switch_model(&model("new", new), None, 5, wrong).is_err());
        assert_eq!(f.store.active_model().unwrap(), None);
        assert_eq!(f.store.space_use(new).unwrap().embedded, 0);
        f.store.add(None, vec![note("b")]).unwrap();
        // One that waits for the store itself is no deadlock.
        let waits = |ids: &[RecordId]| {
            f.store.add(None, vec![note("c")])?;
            Ok::<_, StoreError>(ids.iter().map(|&id| (id, vec![1.0, 0.0, 0.0])).collect())
        };
        assert_eq!(f.store.switch_model(&model("new", new), None, 5, waits), Ok(false));
        assert_eq!(f.store.active_model().unwrap(), None);
    }

    #[test]
    fn no_record_slips_in_while_others_add() {
        let f = Fixture::new();
        let (old, new) = (f.space(2), f.space(3));
        let to = model("new", new);
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let other = Store::open(f.store.path(), &NORMAL).unwrap();
            let done = &done;
            scope.spawn(move || {
                for n in 0..10_000 {
                    // As one does that has the old model: what comes after the switch is not its business.
                    if done.load(Ordering::Relaxed) || other.active_model().unwrap().is_some() {
                        break;
                    }
                    let record =
                        crate::store::NewRecord { vector: Some(vec![0.0, 1.0]), ..note(&n.to_string()) };
                    other.add(Some(old), vec![record]).unwrap();
                }
            });
            for _ in 0..1000 {
                let missing = f.store.without_vector(new, RecordId(0), 10_000).unwrap();
                let rows: Vec<_> = missing.iter().map(|&id| (id, vec![1.0, 0.0, 0.0])).collect();
                f.store.put_vectors(new, &rows).unwrap();
                let mut seen = 0;
                let embed = |ids: &[RecordId]| {
                    seen = ids.len();
                    // All that was committed before is seen, and nothing comes while this runs.
                    assert_eq!(f.store.space_use(new).unwrap().missing, seen as u64);
                    Ok::<_, StoreError>(ids.iter().map(|&id| (id, vec![1.0, 0.0, 0.0])).collect())
                };
                if f.store.switch_model(&to, None, 64, embed).unwrap() {
                    let total = f.store.count(&Filter::default()).unwrap();
                    let used = f.store.space_use(new).unwrap();
                    // One that was on its way may have come after the switch.
                    assert!(used.embedded + 1 >= total, "{used:?} of {total}");
                    break;
                }
            }
            done.store(true, Ordering::Relaxed);
        });
        assert!(f.store.active_model().unwrap().is_some());
    }

    #[test]
    fn a_dropped_space_is_gone_with_the_way_back_to_it() {
        let f = Fixture::new();
        let (old, new) = (f.space(2), f.space(3));
        let ids = f.store.add(None, (0..5000).map(|n| note(&n.to_string())).collect()).unwrap();
        for (space, vector) in [(old, vec![1.0, 0.0]), (new, vec![1.0, 0.0, 0.0])] {
            let rows: Vec<_> = ids.iter().map(|added| (added.id, vector.clone())).collect();
            f.store.put_vectors(space, &rows).unwrap();
        }
        f.store.switch_model(&model("new", new), Some(&model("old", old)), 0, no_embedding).unwrap();
        assert!(f.store.drop_space(new).is_err());
        f.store.drop_space(old).unwrap();
        assert_eq!(f.store.previous_model().unwrap(), None);
        assert!(f.store.space_use(old).is_err());
        assert_eq!(f.store.spaces().unwrap().len(), 1);
        assert_eq!(f.store.space_use(new).unwrap().embedded, 5000);
        assert_eq!(f.store.stats().unwrap().changes, 5000);
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_counted_and_sampled() {
        let f = Fixture::new();
        let space = f.space(2);
        let added = f.store.add(None, (0..100).map(|n| note(&format!("{n:05}"))).collect()).unwrap();
        f.store.put_vectors(space, &[(added[0].id, vec![1.0, 0.0])]).unwrap();
        let missing = f.store.missing_texts(space, 10).unwrap();
        assert_eq!((missing.count, missing.chars, missing.sample.len()), (99, 99 * 5, 10));
        assert!(missing.sample.windows(2).all(|pair| pair[0] < pair[1]), "{missing:?}");
        assert_eq!(f.store.missing_texts(space, 1000).unwrap().sample.len(), 99);
    }
}
