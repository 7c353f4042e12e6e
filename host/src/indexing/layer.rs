//! The index of one layer: a sealed snapshot of the chosen backend, and the exact tail of what
//! changed since.
use super::{
    error::{IndexError, Unusable},
    snapshot::{self, Identity, Snapshot},
};
use crate::{
    plugins::{PluginError, Plugins, is_corrupt},
    store::{Changes, Layer, SpaceId, Store},
};
use magray_plugin_api::{
    CallContext, ComponentKind, Error, ErrorCode, Hit, IdFilter, IndexSpec, Metric, SearchParams, VectorIndex,
};
use std::{
    fs::{self, File, TryLockError},
    ops::ControlFlow,
    path::PathBuf,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// The backend that scans the tail: exact, and always the one that is linked in.
const TAIL_BACKEND: &str = "flat";
/// Vectors read from the store at a time.
const BATCH: usize = 1024;
/// Changes that the log keeps for a backend that falls behind.
const MAX_LAG: u64 = 100_000;
/// How often to look for a snapshot that is not being replaced.
const OPEN_ATTEMPTS: usize = 5;

/// Which backend seals a layer, and where.
#[derive(Clone, Debug)]
pub(super) struct LayerSettings {
    pub(super) database: [u8; 16],
    pub(super) layer: Layer,
    pub(super) space: SpaceId,
    pub(super) space_digest: [u8; 32],
    pub(super) dim: usize,
    pub(super) backend: String,
    pub(super) options: String,
    /// `index/SPACE/LAYER/BACKEND` in the data folder.
    pub(super) dir: PathBuf,
}

impl LayerSettings {
    fn spec(&self) -> IndexSpec {
        IndexSpec { dim: self.dim, metric: Metric::Cosine }
    }
}

/// The index of one layer in one space.
///
/// Threads: any number of searches at once; catching up and sealing exclude them.
pub(super) struct LayerIndex {
    settings: LayerSettings,
    store: Arc<Store>,
    plugins: Arc<Plugins>,
    state: RwLock<Option<State>>,
}

struct State {
    sealed: Option<Box<dyn VectorIndex>>,
    /// The change up to which `sealed` was complete when it was written; 0 where there is none.
    covered_seq: u64,
    tail: Box<dyn VectorIndex>,
    /// `sealed` and `tail` together show every change up to this one.
    head: u64,
}

/// What a layer's index holds, for `stats`.
#[derive(Clone, Debug)]
pub struct LayerIndexStats {
    /// The layer.
    pub layer: Layer,
    /// The backend that seals it.
    pub backend: String,
    /// Vectors in the snapshot.
    pub sealed: u64,
    /// Changes since, which are searched exactly.
    pub tail: u64,
}

impl LayerIndex {
    pub(super) fn new(settings: LayerSettings, store: Arc<Store>, plugins: Arc<Plugins>) -> Self {
        Self { settings, store, plugins, state: RwLock::new(None) }
    }

    /// The `k` vectors nearest to `query`, `[dim]`, best first, over everything that was committed before the call, by this process or any other.
    pub(super) fn search(
        &self,
        cx: &dyn CallContext,
        query: &[f32],
        k: usize,
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
    ) -> Result<Vec<Hit>, IndexError> {
        loop {
            self.catch_up(cx)?;
            let sealed = match self.search_state(cx, query, k, params, filter) {
                // It was sealed meanwhile: catch up with the new snapshot.
                Ok(None) => continue,
                Ok(Some(hits)) => return Ok(hits),
                Err(error) if error.is_cancelled() => return Err(error),
                Err(error) => (error, self.read().as_ref().is_some_and(|state| state.sealed.is_some())),
            };
            let (error, true) = sealed else { return Err(sealed.0) };
            // A snapshot that fails a search must not take the memory away: the tail can hold all.
            tracing::warn!("{}: {error}; searching exactly instead", self.describe());
            *self.write() = Some(self.exact(cx)?);
        }
    }

    /// None where there is no state to search.
    fn search_state(
        &self,
        cx: &dyn CallContext,
        query: &[f32],
        k: usize,
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
    ) -> Result<Option<Vec<Hit>>, IndexError> {
        let guard = self.read();
        let Some(state) = &*guard else { return Ok(None) };
        let mut hits = Vec::new();
        for index in state.sealed.iter().chain([&state.tail]) {
            let mut found = vec![Hit::NONE; k];
            index.search(cx, query, k, params, filter, &mut found).map_err(|error| self.failed(error))?;
            if found.iter().any(|hit| hit.score.is_nan()) {
                return Err(self.failed(Error::new(ErrorCode::INTERNAL, "it returned a score that is NaN")));
            }
            hits.extend(found.into_iter().filter(|hit| !hit.is_none()));
        }
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        hits.truncate(k);
        Ok(Some(hits))
    }

    /// Opens the snapshot where that has not been done, and applies what changed since.
    fn catch_up(&self, cx: &dyn CallContext) -> Result<(), IndexError> {
        let head = self.store.head(self.settings.space, self.settings.layer)?;
        if self.read().as_ref().is_some_and(|state| state.head >= head) {
            return Ok(());
        }
        let mut guard = self.write();
        let mut state = match guard.take() {
            Some(state) => state,
            None => self.open()?,
        };
        let changes = self.store.changes_after(self.settings.space, self.settings.layer, state.head)?;
        let state = if !changes.complete {
            // The log no longer reaches back to the snapshot.
            self.exact(cx)?
        } else if let Err(error) = self.apply(cx, &mut state, &changes) {
            tracing::warn!("{}: {error}; searching exactly instead", self.describe());
            self.exact(cx)?
        } else {
            state
        };
        *guard = Some(state);
        Ok(())
    }

    /// Shadows what the snapshot holds of the changed records, and puts the new vectors into the
    /// tail.
    fn apply(&self, cx: &dyn CallContext, state: &mut State, changes: &Changes) -> Result<(), IndexError> {
        for ids in [&changes.upserts, &changes.removed] {
            if let Some(sealed) = &state.sealed {
                sealed.remove(cx, ids).map_err(|error| self.failed(error))?;
            }
        }
        state.tail.remove(cx, &changes.removed).map_err(|error| self.failed(error))?;
        state.tail.upsert(cx, &changes.upserts, &changes.vectors).map_err(|error| self.failed(error))?;
        state.head = changes.head;
        Ok(())
    }

    /// The newest snapshot that verifies, or none; nothing of it is damaged in silence.
    fn open(&self) -> Result<State, IndexError> {
        let tail = self.plugins.linked_index(TAIL_BACKEND, self.settings.spec())?;
        let mut state = State { sealed: None, covered_seq: 0, tail, head: 0 };
        // A snapshot that another process replaces while it is opened makes way for a newer one.
        for _ in 0..OPEN_ATTEMPTS {
            let mut replaced = false;
            for number in snapshot::sequence_numbers(&self.settings.dir) {
                match self.open_snapshot(self.settings.dir.join(number.to_string())) {
                    Ok((sealed, Snapshot { covered_seq, .. })) => {
                        state.sealed = Some(sealed);
                        (state.covered_seq, state.head) = (covered_seq, covered_seq);
                        return Ok(state);
                    }
                    Err(Unusable::Gone) => replaced = true,
                    Err(Unusable::Stale(why)) => {
                        tracing::info!("{}: snapshot {number}: {why}", self.describe())
                    }
                    Err(Unusable::Damaged(why)) => self.set_aside(number, &why),
                    Err(Unusable::Unreadable(why)) => {
                        tracing::warn!(
                            "{}: snapshot {number}: {why}; searching exactly instead",
                            self.describe()
                        );
                        return Ok(state);
                    }
                    Err(Unusable::Plugin(error @ PluginError::Call { .. })) => {
                        tracing::warn!("{}: {error}; searching exactly instead", self.describe());
                        return Ok(state);
                    }
                    Err(Unusable::Plugin(error)) => return Err(error.into()),
                }
            }
            if !replaced {
                break;
            }
        }
        Ok(state)
    }

    fn open_snapshot(&self, dir: PathBuf) -> Result<(Box<dyn VectorIndex>, Snapshot), Unusable> {
        let snapshot = snapshot::verify(dir, &self.identity().map_err(Unusable::Plugin)?)?;
        let LayerSettings { backend, options, .. } = &self.settings;
        let opened = self.plugins.index(backend, options, self.settings.spec(), Some(&snapshot.dir));
        match opened {
            Ok(index) => Ok((index, snapshot)),
            Err(_) if !snapshot.dir.exists() => Err(Unusable::Gone),
            Err(error) if is_corrupt(&error) => Err(Unusable::Damaged(error.to_string())),
            Err(error) => Err(Unusable::Plugin(error)),
        }
    }

    fn set_aside(&self, number: u64, why: &str) {
        let dir = self.settings.dir.join(number.to_string());
        let fate = match snapshot::set_aside(&dir) {
            Ok(aside) => format!("it was moved to {}", aside.display()),
            Err(error) => format!("it could not be moved away ({error})"),
        };
        tracing::warn!(
            "{}: snapshot {number} is damaged: {why}; {fate}, and it will be rebuilt from the store",
            self.describe()
        );
    }

    /// Everything in the exact tail, without a snapshot.
    fn exact(&self, cx: &dyn CallContext) -> Result<State, IndexError> {
        let tail = self.plugins.linked_index(TAIL_BACKEND, self.settings.spec())?;
        let head = self.fill(cx, &*tail)?;
        Ok(State { sealed: None, covered_seq: 0, tail, head })
    }

    /// Stores every vector of the layer in `index`, and returns the change that this is true of.
    fn fill(&self, cx: &dyn CallContext, index: &dyn VectorIndex) -> Result<u64, IndexError> {
        let total = self.store.vector_count(self.settings.space, self.settings.layer)?;
        let mut done = 0;
        let mut failed = None;
        let head =
            self.store.scan_vectors(self.settings.space, self.settings.layer, BATCH, |ids, vectors| {
                if let Err(error) = index.upsert(cx, ids, vectors) {
                    failed = Some(error);
                    return ControlFlow::Break(());
                }
                done += ids.len() as u64;
                cx.progress(done, total);
                ControlFlow::Continue(())
            })?;
        if let Some(error) = failed {
            return Err(self.failed(error));
        }
        let held = index.stats().live;
        if held != done {
            let message = format!("it holds {held} of {done} vectors that it was given");
            return Err(self.failed(Error::new(ErrorCode::INTERNAL, message)));
        }
        Ok(head)
    }

    /// Whether at least `seal_after` changes wait for a snapshot. Opens nothing.
    fn is_due(&self, seal_after: u64) -> Result<bool, IndexError> {
        let LayerSettings { layer, space, dir, .. } = &self.settings;
        let waiting = match snapshot::sequence_numbers(dir).first() {
            Some(&covered_seq) => self.store.change_count(*space, *layer, covered_seq)?,
            None => self.store.vector_count(*space, *layer)?,
        };
        // A snapshot that was found stale or damaged counts as none.
        let scanned = self.read().as_ref().map_or(0, |state| match state.sealed {
            Some(_) => 0,
            None => state.tail.stats().live,
        });
        Ok(waiting.max(scanned) >= seal_after)
    }

    /// Writes a snapshot of everything where at least `seal_after` changes wait for it. Returns
    /// whether it did; where another process is at it, that is left to it.
    pub(super) fn seal(&self, cx: &dyn CallContext, seal_after: u64) -> Result<bool, IndexError> {
        if !self.is_due(seal_after)? {
            return Ok(false);
        }
        let dir = &self.settings.dir;
        let cannot = |error| IndexError::Write { path: dir.clone(), error };
        fs::create_dir_all(dir).map_err(cannot)?;
        let lock = File::create(dir.join("lock")).map_err(cannot)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(false),
            Err(TryLockError::Error(error)) => return Err(cannot(error)),
        }
        // Whoever had the lock before may have done it.
        if !self.is_due(seal_after)? {
            return Ok(false);
        }
        snapshot::clean(dir);
        let identity = self.identity()?;
        let (index, head) = self.next_snapshot(cx)?;
        let snapshot = snapshot::write(cx, dir, &identity, &*index, head)?;
        *self.write() = None;
        self.prune()?;
        tracing::info!(
            "{}: sealed {} vectors in {}",
            self.describe(),
            index.stats().live,
            snapshot.dir.display()
        );
        Ok(true)
    }

    /// Drops the part of the change log that the snapshots of every backend have covered.
    fn prune(&self) -> Result<(), IndexError> {
        let LayerSettings { layer, space, dir, .. } = &self.settings;
        let backends = dir.parent().and_then(|layer| layer.read_dir().ok()).into_iter().flatten();
        let newest =
            backends.filter_map(|backend| snapshot::sequence_numbers(&backend.ok()?.path()).first().copied());
        let head = self.store.head(*space, *layer)?;
        // A backend that was tried once must not hold the log for ever: it builds its index anew.
        let newest = newest.filter(|&covered_seq| head - covered_seq.min(head) <= MAX_LAG);
        if let Some(covered_seq) = newest.min() {
            self.store.prune_changes(*space, *layer, covered_seq)?;
        }
        Ok(())
    }

    /// The newest snapshot with every change since, or all of the layer anew.
    fn next_snapshot(&self, cx: &dyn CallContext) -> Result<(Box<dyn VectorIndex>, u64), IndexError> {
        let LayerSettings { backend, options, layer, space, .. } = &self.settings;
        if let State { sealed: Some(index), covered_seq, .. } = self.open()? {
            let changes = self.store.changes_after(*space, *layer, covered_seq)?;
            if changes.complete {
                let grown = index
                    .remove(cx, &changes.removed)
                    .and_then(|_| index.upsert(cx, &changes.upserts, &changes.vectors));
                match grown {
                    Ok(()) => return Ok((index, changes.head)),
                    Err(error) => tracing::warn!("{}: {error}; building it anew", self.describe()),
                }
            }
        }
        let index = self.plugins.index(backend, options, self.settings.spec(), None)?;
        let head = self.fill(cx, &*index)?;
        Ok((index, head))
    }

    pub(super) fn stats(&self) -> Result<LayerIndexStats, IndexError> {
        let opened = self.open()?;
        let LayerSettings { space, layer, .. } = &self.settings;
        let tail = match opened.sealed {
            Some(_) => self.store.change_count(*space, *layer, opened.covered_seq)?,
            None => self.store.vector_count(*space, *layer)?,
        };
        Ok(LayerIndexStats {
            layer: self.settings.layer,
            backend: self.settings.backend.clone(),
            sealed: opened.sealed.as_ref().map_or(0, |index| index.stats().live),
            tail,
        })
    }

    fn identity(&self) -> Result<Identity, PluginError> {
        let LayerSettings { backend, options, dim, .. } = &self.settings;
        let provider = self.plugins.provider(ComponentKind::Index, backend)?;
        Ok(Identity {
            database: hex(&self.settings.database),
            backend: backend.clone(),
            plugin: provider.id.clone(),
            plugin_version: provider.version.clone(),
            options: options.clone(),
            space: hex(&self.settings.space_digest),
            dim: *dim,
            metric: Identity::metric_name(self.settings.spec().metric),
        })
    }

    fn describe(&self) -> String {
        format!("{} index of layer {}", self.settings.backend, self.settings.layer)
    }

    fn failed(&self, error: Error) -> IndexError {
        IndexError::Backend { backend: self.settings.backend.clone(), error }
    }

    fn read(&self) -> RwLockReadGuard<'_, Option<State>> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Option<State>> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
