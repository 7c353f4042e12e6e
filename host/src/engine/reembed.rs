//! From one model to another: embed everything anew beside what serves, then switch at once.
use super::{Engine, EngineError, ModelChoice, Vectors, upkeep};
use crate::{
    indexing::Extent,
    store::{ActiveModel, RecordId, Space, SpaceId},
};
use magray_plugin_api::{CallContext, Role};
use std::{
    fs::{self, File, TryLockError},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Records that are embedded to see how long all will take.
const SAMPLE: usize = 256;
/// Records that may be embedded while other writers wait for the switch.
const LAST_ROUND: usize = 128;
/// Bytes that a vector takes in the database beside its numbers, as measured.
const ROW_BYTES: u64 = 48;

/// What a space holds and takes.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct SpaceReport {
    /// Name of the model, and width of its vectors.
    pub model: String,
    pub dim: usize,
    pub digest: [u8; 32],
    pub embedded: u64,
    /// Records without a vector in it.
    pub missing: u64,
    pub vector_bytes: u64,
    pub index_bytes: u64,
    pub place: Place,
}

/// What a space is to the database.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Its model answers.
    Active,
    /// Its model answered before the last switch.
    Previous,
    /// Neither: left from earlier, or not complete yet.
    Other,
}

/// What `reembed` would do.
#[derive(Clone, Debug)]
pub struct ReembedPlan {
    /// The space that answers; none where its model cannot be had.
    pub from: Option<SpaceReport>,
    /// The space to switch to, as it is now.
    pub to: SpaceReport,
    /// How long it will take, by a sample; none where nothing is missing.
    pub estimate: Option<Duration>,
    /// Bytes that vectors and index will take more than now.
    pub more_bytes: u64,
    /// Bytes that are free where the data folder is.
    pub free_bytes: u64,
}

/// What `reembed` did.
#[derive(Clone, Debug)]
pub struct ReembedReport {
    /// Records that got a vector.
    pub embedded: u64,
    /// The space that answered before; none where there was none or its model cannot be had.
    pub from: Option<SpaceReport>,
    /// The space that answers now.
    pub to: SpaceReport,
    /// Whether another space answers now than before.
    pub switched: bool,
}

/// A way from the model in force to another, both loaded. Only one is under way in a data folder.
#[expect(missing_debug_implementations, reason = "backends have nothing to show")]
pub struct Reembed<'a> {
    engine: &'a Engine,
    target: Box<Vectors>,
    from: Option<ActiveModel>,
    /// Held as long as this is.
    _lock: File,
}

impl Engine {
    /// Loads the model to switch to. Nothing is written but its space.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] where another process is at it, or why the model cannot be had.
    pub fn reembed(&self, choice: &ModelChoice) -> Result<Reembed<'_>, EngineError> {
        let lock = self.lock_reembed()?;
        // The embeddings of everything would only push others out of the cache on disk.
        let target = self.load(choice, false)?;
        let from = match self.store.active_model()? {
            Some(active) => Some(active),
            None => match self.vectors() {
                Ok(vectors) => {
                    let ModelChoice { profile, model } = vectors.choice.clone();
                    Some(ActiveModel { profile, model, space: vectors.space })
                }
                Err(error) => {
                    tracing::warn!(
                        "the model in force cannot be loaded, so there will be no way back: {error}"
                    );
                    None
                }
            },
        };
        Ok(Reembed { engine: self, target, from, _lock: lock })
    }

    /// The model to go back to.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] where there is none.
    pub fn previous_model(&self) -> Result<ModelChoice, EngineError> {
        let previous = self.store.previous_model()?;
        previous.as_ref().map(ModelChoice::from).ok_or_else(|| {
            let none = "there is no model to go back to: nobody has switched, or its vectors were dropped; \
                        `magray --model NAME reembed` embeds everything for another model";
            EngineError::Invalid(none.into())
        })
    }

    /// Every space in the database, the one that answers first.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn spaces(&self) -> Result<Vec<SpaceReport>, EngineError> {
        let active = match self.store.active_model()? {
            Some(active) => Some(active.space),
            // It answers, unless it cannot be loaded.
            None => self.vectors().ok().map(|vectors| vectors.space),
        };
        let previous = self.store.previous_model()?.map(|previous| previous.space);
        let mut reports = Vec::new();
        for space in self.store.spaces()? {
            let place = match Some(space.id) {
                id if id == active => Place::Active,
                id if id == previous => Place::Previous,
                _ => Place::Other,
            };
            reports.push(self.report(&space, place)?);
        }
        reports.sort_by_key(|report| report.place as u8);
        Ok(reports)
    }

    /// Drops the vectors and indexes of every model but the one in force. Returns what they took.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] where that model lacks vectors, so that the others may be needed.
    pub fn drop_other_spaces(&self, cx: &dyn CallContext) -> Result<Vec<SpaceReport>, EngineError> {
        let _lock = self.lock_reembed()?;
        let keep = self.vectors()?.space;
        let missing = self.store.space_use(keep)?.missing;
        if missing > 0 {
            return Err(EngineError::Invalid(format!(
                "the model in force has no vector of {missing} records; `magray reembed` embeds them, then the others can go"
            )));
        }
        let mut dropped = Vec::new();
        for space in self.store.spaces()?.into_iter().filter(|space| space.id != keep) {
            cx.check().map_err(|_| EngineError::Interrupted)?;
            let report = self.report(&space, Place::Other)?;
            self.store.drop_space(space.id)?;
            let dir = self.index_dir(&space);
            match fs::remove_dir_all(&dir) {
                Err(error) if dir.exists() => {
                    tracing::warn!("the index {} could not be removed: {error}", dir.display());
                }
                _ => {}
            }
            dropped.push(report);
        }
        Ok(dropped)
    }

    fn lock_reembed(&self) -> Result<File, EngineError> {
        let path = self.setup.data_dir.join("reembed.lock");
        let cannot = |error| EngineError::Invalid(format!("cannot write {}: {error}", path.display()));
        let lock = File::create(&path).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => Ok(lock),
            Err(TryLockError::Error(error)) => Err(cannot(error)),
            Err(TryLockError::WouldBlock) => {
                Err(EngineError::Invalid("another `magray reembed` is under way on this data folder".into()))
            }
        }
    }

    fn report(&self, space: &Space, place: Place) -> Result<SpaceReport, EngineError> {
        let used = self.store.space_use(space.id)?;
        Ok(SpaceReport {
            model: space.model.clone(),
            dim: space.dim,
            digest: space.digest,
            embedded: used.embedded,
            missing: used.missing,
            vector_bytes: used.vector_bytes,
            index_bytes: bytes_below(&self.index_dir(space)),
            place,
        })
    }

    fn report_of(&self, id: SpaceId, place: Place) -> Result<Option<SpaceReport>, EngineError> {
        let spaces = self.store.spaces()?;
        spaces.iter().find(|space| space.id == id).map(|space| self.report(space, place)).transpose()
    }

    fn index_dir(&self, space: &Space) -> PathBuf {
        crate::indexing::space_dir(&self.setup.data_dir.join("index"), &space.digest)
    }
}

impl Reembed<'_> {
    /// What [`Reembed::run`] would do, by a sample that is embedded for it.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn plan(&self, cx: &dyn CallContext) -> Result<ReembedPlan, EngineError> {
        let store = &self.engine.store;
        let missing = store.missing_texts(self.target.space, SAMPLE)?;
        let estimate = match missing.sample.as_slice() {
            [] => None,
            sample => {
                let texts = self.engine.embedding_texts(sample)?;
                let texts: Vec<&str> = texts.iter().map(|(_, text)| text.as_str()).collect();
                // A few to warm up, where there are enough to tell.
                let (warm_up, measured) = texts.split_at(if texts.len() > 16 { 8 } else { 0 });
                self.target.embedding.embed(cx, warm_up, Role::Passage)?;
                let start = Instant::now();
                self.target.embedding.embed(cx, measured, Role::Passage)?;
                let chars: usize = measured.iter().map(|text| text.chars().count()).sum();
                Some(start.elapsed().mul_f64(missing.chars as f64 / chars.max(1) as f64))
            }
        };
        let (from, to) = self.reports()?;
        let more_bytes = more_bytes(from.as_ref(), &to);
        Ok(ReembedPlan { from, to, estimate, more_bytes, free_bytes: self.free_bytes()? })
    }

    /// Embeds every record that has no vector of the new model, seals its indexes and switches to it.
    /// Until then the old one serves; records that others add meanwhile are embedded before the switch.
    /// What is done stays done when it is interrupted, and the next run goes on from there. `progress` is
    /// told how many of how many records have their vector.
    ///
    /// # Errors
    /// [`EngineError::NoRoom`], or another [`EngineError`].
    pub fn run(
        &self,
        cx: &dyn CallContext,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ReembedReport, EngineError> {
        let (engine, target) = (self.engine, &*self.target);
        let store = &engine.store;
        let (from, to) = self.reports()?;
        let what = format!("to embed everything for {}", to.model);
        engine.setup.ensure_room(&engine.setup.data_dir, more_bytes(from.as_ref(), &to), &what)?;
        target.embedding.keep_standby();
        let total = to.missing + to.embedded;
        let mut embedded = 0;
        let choice = &target.choice;
        let next =
            ActiveModel { profile: choice.profile.clone(), model: choice.model.clone(), space: target.space };
        let is_active = self.from.as_ref().is_some_and(|from| *from == next);
        // A way back leads to another space.
        let before = match &self.from {
            Some(from) if from.space == next.space => store.previous_model()?,
            from => from.clone(),
        };
        let mut is_sealed = false;
        loop {
            embedded += engine.embed_missing_in(cx, target, &mut |done| {
                progress(to.embedded + embedded + done, total.max(to.embedded + embedded + done));
            })?;
            cx.check().map_err(|_| EngineError::Interrupted)?;
            // Before the switch, so that the first search finds it ready.
            if !is_sealed {
                target.indexes.sync(cx, None, Extent::All)?;
                is_sealed = true;
            }
            if is_active {
                break;
            }
            let mut last = 0;
            let is_done = store.switch_model(&next, before.as_ref(), LAST_ROUND, |ids| {
                let rows = engine.embed_records(cx, target, ids)?;
                last = rows.len() as u64;
                Ok::<_, EngineError>(rows)
            })?;
            if is_done {
                embedded += last;
                break;
            }
        }
        let switched = self.from.as_ref().is_none_or(|from| from.space != next.space);
        let from = match &self.from {
            Some(from) if switched => engine.report_of(from.space, Place::Previous)?,
            _ => None,
        };
        let to = engine.report_of(target.space, Place::Active)?.unwrap_or(to);
        Ok(ReembedReport { embedded, from, to, switched })
    }

    fn reports(&self) -> Result<(Option<SpaceReport>, SpaceReport), EngineError> {
        let from = match &self.from {
            Some(from) => self.engine.report_of(from.space, Place::Active)?,
            None => None,
        };
        let to = self.engine.report_of(self.target.space, Place::Other)?;
        let to = to.ok_or_else(|| EngineError::Invalid("the space of the new model is gone".into()))?;
        Ok((from, to))
    }

    fn free_bytes(&self) -> Result<u64, EngineError> {
        let dir = &self.engine.setup.data_dir;
        fs4::available_space(dir).map_err(|error| {
            EngineError::Invalid(format!("cannot tell how much room there is in {}: {error}", dir.display()))
        })
    }
}

impl Engine {
    /// What is embedded of each record that is still there.
    fn embedding_texts(&self, ids: &[RecordId]) -> Result<Vec<(RecordId, String)>, EngineError> {
        let records = self.store.records(ids)?;
        Ok(records
            .iter()
            .map(|record| {
                (record.id, upkeep::embedding_text(record.title.as_deref(), &record.text).into_owned())
            })
            .collect())
    }

    /// Vectors of records, none stored.
    pub(super) fn embed_records(
        &self,
        cx: &dyn CallContext,
        vectors: &Vectors,
        ids: &[RecordId],
    ) -> Result<Vec<(RecordId, Vec<f32>)>, EngineError> {
        let records = self.embedding_texts(ids)?;
        let texts: Vec<&str> = records.iter().map(|(_, text)| text.as_str()).collect();
        let rows = vectors.embedding.embed(cx, &texts, Role::Passage)?;
        let rows = rows.chunks_exact(vectors.embedding.info().dim);
        Ok(records.iter().zip(rows).map(|((id, _), row)| (*id, row.to_vec())).collect())
    }
}

/// What the vectors that a space lacks will take, with its index. An index takes as much for a number
/// as that of the present space, or as a flat one.
fn more_bytes(from: Option<&SpaceReport>, to: &SpaceReport) -> u64 {
    let known = from.filter(|from| from.index_bytes > 0 && from.embedded > 0);
    let index_bytes = match known {
        Some(from) => from.index_bytes * to.dim as u64 / (from.embedded * from.dim as u64).max(1),
        None => 4 * to.dim as u64 + 16,
    };
    let records = to.embedded + to.missing;
    to.missing * (2 * to.dim as u64 + ROW_BYTES) + (records * index_bytes).saturating_sub(to.index_bytes)
}

/// Bytes of the files in and below a folder.
fn bytes_below(dir: &Path) -> u64 {
    let entries = dir.read_dir().into_iter().flatten().flatten();
    let size = |entry: fs::DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => bytes_below(&entry.path()),
        _ => entry.metadata().map_or(0, |file| file.len()),
    };
    entries.map(size).sum()
}
