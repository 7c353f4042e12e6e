//! The index of one layer: sealed segments of the chosen backend, and the delta of what changed since,
//! which is searched exactly.
//!
//! Searches take what there is by one atomic pointer. Whoever changes it makes a new state beside the old
//! one and puts it into its place; `updating` lets one of them at a time do so.
use super::{
    SyncOptions,
    delta::{Block, Delta, best_first},
    error::IndexError,
    open::Opened,
    segment::{Ids, Listed},
    snapshot::{self, Identity, Snapshot},
    tracker::ChangeTracker,
};
use crate::{
    plugins::{PluginError, Plugins},
    store::{Changes, Commit, Layer, SpaceId, Store},
};
use arc_swap::ArcSwapOption;
use magray_plugin_api::{
    CallContext, ComponentKind, Error, ErrorCode, Hit, IdFilter, IndexSpec, Metric, SearchParams, VectorIndex,
};
use std::{
    collections::HashSet,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Instant,
};

/// Rows of segments that are worth a thread to search them.
const THREAD_ROWS: u64 = 50_000;
/// Hits that are asked for beyond `k` where some rows may be dead.
const SPARE_HITS: usize = 8;

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
    pub(super) sync: SyncOptions,
}

impl LayerSettings {
    pub(super) fn spec(&self) -> IndexSpec {
        IndexSpec { dim: self.dim, metric: Metric::Cosine }
    }
}

/// The index of one layer in one space.
///
/// Threads: any number of calls at once. Searches wait for no writer and no sealing.
pub(super) struct LayerIndex {
    pub(super) settings: LayerSettings,
    pub(super) store: Arc<Store>,
    pub(super) plugins: Arc<Plugins>,
    tracker: Mutex<ChangeTracker>,
    state: ArcSwapOption<State>,
    updating: Mutex<()>,
    /// When it was looked whether a search is wanted to be checked.
    pub(super) looked: Mutex<Option<Instant>>,
    /// Whether it was searched since somebody last looked.
    pub(super) used: AtomicBool,
}

/// What is asked.
#[derive(Clone, Copy)]
pub(super) struct Query<'a> {
    /// `[dim]`.
    pub(super) vector: &'a [f32],
    pub(super) k: usize,
    pub(super) params: SearchParams,
    pub(super) filter: Option<IdFilter<'a>>,
}

/// What a search sees. Never changed.
pub(super) struct State {
    pub(super) sealed: Sealed,
    pub(super) delta: Delta,
    /// Both together show every change up to this one.
    pub(super) head: u64,
}

/// Opened segments.
#[derive(Default)]
pub(super) struct Sealed {
    pub(super) generation: u64,
    pub(super) covered_seq: u64,
    pub(super) parts: Vec<Part>,
}

#[derive(Clone)]
pub(super) struct Part {
    pub(super) listed: Listed,
    pub(super) index: Arc<dyn VectorIndex>,
    /// Of its rows, those that do not count among them.
    pub(super) ids: Arc<Ids>,
    /// Ids of rows that do not count any more, ascending.
    pub(super) dead: Arc<Vec<u64>>,
}

impl LayerIndex {
    pub(super) fn new(settings: LayerSettings, store: Arc<Store>, plugins: Arc<Plugins>) -> Self {
        let tracker = Mutex::new(ChangeTracker::new(settings.sync.seal_after, settings.sync.max_age));
        let (state, updating, looked) = (ArcSwapOption::empty(), Mutex::new(()), Mutex::new(None));
        Self { settings, store, plugins, tracker, state, updating, looked, used: AtomicBool::new(false) }
    }

    /// The vectors nearest to the query, best first, over everything that was committed before the call, by this process or any other.
    pub(super) fn search(&self, cx: &dyn CallContext, query: Query<'_>) -> Result<Vec<Hit>, IndexError> {
        let rows = self.settings.spec().check_rows(query.vector).map_err(|error| self.failed(error))?;
        if rows != 1 {
            let error = Error::invalid_input(format!("{} numbers are no query", query.vector.len()));
            return Err(self.failed(error));
        }
        self.used.store(true, Ordering::Relaxed);
        let state = self.current(cx)?;
        match self.search_state(cx, &state, query) {
            Ok(hits) => {
                if query.filter.is_none() && !state.sealed.parts.is_empty() {
                    self.offer(query.vector, &hits, query.k, state.head);
                }
                Ok(hits)
            }
            Err(error) if error.is_cancelled() || state.sealed.parts.is_empty() => Err(error),
            // A segment that fails a search must not take the memory away: the delta can hold all.
            Err(error) => {
                tracing::warn!("{}: {error}; searching exactly instead", self.describe());
                let exact = Arc::new(self.exact(cx, state.sealed.generation)?);
                let _updating = self.updating();
                self.state.store(Some(Arc::clone(&exact)));
                self.search_state(cx, &exact, query)
            }
        }
    }

    fn search_state(
        &self,
        cx: &dyn CallContext,
        state: &State,
        query: Query<'_>,
    ) -> Result<Vec<Hit>, IndexError> {
        let Query { vector, k, filter, .. } = query;
        let threads = self.settings.sync.search_threads;
        let part = |part: &Part| self.search_part(cx, part, &state.delta, query);
        let mut hits =
            state.delta.search(cx, vector, k, filter, threads).map_err(|error| self.failed(error))?;
        hits.extend(in_parallel(&state.sealed.parts, threads, part)?);
        hits.sort_by(best_first);
        hits.truncate(k);
        Ok(hits)
    }

    /// The best live rows of a segment. Dead ones are left out here and not by the plugin: a plugin would
    /// have to be told of each change, while searches run, and would tell those that still see the state
    /// before. (Decision 12 has the figures.)
    fn search_part(
        &self,
        cx: &dyn CallContext,
        part: &Part,
        delta: &Delta,
        query: Query<'_>,
    ) -> Result<Vec<Hit>, IndexError> {
        let Query { vector, k, mut params, filter } = query;
        params.ef = params.ef.max(part.listed.breadth);
        let rows = usize::try_from(part.listed.rows).unwrap_or(usize::MAX);
        // So many hits can be dead at most, and so many are likely to be.
        let dead = (part.dead.len() + delta.count_up_to(part.listed.last)).min(rows);
        let likely = k.saturating_mul(2 * dead) / rows.max(1) + SPARE_HITS;
        let mut ask = k.saturating_add(dead.min(likely)).min(rows);
        loop {
            let mut found = vec![Hit::NONE; ask];
            part.index
                .search(cx, vector, ask, params, filter, &mut found)
                .map_err(|error| self.failed(error))?;
            if found.iter().any(|hit| hit.score.is_nan()) {
                return Err(self.failed(Error::new(ErrorCode::INTERNAL, "it returned a score that is NaN")));
            }
            found.retain(|hit| !hit.is_none());
            let is_all = found.len() < ask;
            let (mut seen, before) = (HashSet::with_capacity(found.len()), found.len());
            found.retain(|hit| seen.insert(hit.id) && part.ids.contains(hit.id));
            let lies = before - found.len();
            if lies > 0 {
                tracing::warn!("{}: it found {lies} rows that it has not, or twice", self.describe());
            }
            found.retain(|hit| part.dead.binary_search(&hit.id).is_err() && !delta.shadows(hit.id));
            // Whatever took the place of rows, they come with more.
            let most = if lies > 0 { rows } else { k.saturating_add(dead).min(rows) };
            if found.len() >= k || is_all || ask >= most {
                found.truncate(k);
                return Ok(found);
            }
            ask = ask.saturating_mul(4).min(most);
        }
    }

    /// A state that shows everything committed before the call.
    pub(super) fn current(&self, cx: &dyn CallContext) -> Result<Arc<State>, IndexError> {
        let LayerSettings { space, layer, .. } = self.settings;
        let head = self.store.head(space, layer)?;
        if let Some(state) = self.state.load_full()
            && state.head >= head
        {
            return Ok(state);
        }
        let _updating = self.updating();
        let state = match self.state.load_full() {
            Some(state) if state.head >= head => return Ok(state),
            Some(state) if self.has_newer_snapshot(&state) => Arc::new(self.open(cx, Some(&state))?),
            Some(state) => state,
            None => Arc::new(self.open(cx, None)?),
        };
        let mut changes = self.store.changes_after(space, layer, state.head)?;
        let mut base = state;
        if !changes.complete {
            // The log no longer reaches back to what we have; the newest snapshot may.
            base = Arc::new(self.open(cx, Some(&base))?);
            changes = self.store.changes_after(space, layer, base.head)?;
        }
        if !changes.complete {
            base = Arc::new(self.exact(cx, base.sealed.generation)?);
            changes = self.store.changes_after(space, layer, base.head)?;
        }
        let state = Arc::new(self.with_changes(&base, Arc::new(changes)));
        self.state.store(Some(Arc::clone(&state)));
        Ok(state)
    }

    fn with_changes(&self, state: &State, changes: Arc<Changes>) -> State {
        let head = changes.head.max(state.head);
        let delta = state.delta.with(Block::new(self.settings.dim, changes));
        State { sealed: state.sealed.share(), delta, head }
    }

    /// Takes what a transaction of this process has committed, where the state is at the change before it.
    /// Else the next search reads it from the log.
    pub(super) fn receive(&self, commit: &Commit) {
        // Not by waiting: this is the thread that writes.
        let Ok(_updating) = self.updating.try_lock() else { return };
        let Some(state) = self.state.load_full() else { return };
        if state.head == commit.before {
            let state = self.with_changes(&state, Arc::clone(&commit.changes));
            self.state.store(Some(Arc::new(state)));
        }
    }

    /// Another process has sealed, and what we hold beside our segments has grown.
    fn has_newer_snapshot(&self, state: &State) -> bool {
        state.delta.len() as u64 >= self.settings.sync.seal_after
            && snapshot::generations(&self.settings.dir).first() > Some(&state.sealed.generation)
    }

    /// Shows `snapshot`, which this process has just written, instead of what it replaces.
    pub(super) fn switch(&self, cx: &dyn CallContext, snapshot: &Snapshot) {
        let Some(state) = self.state.load_full() else { return };
        // Beside searches and writers, for it reads files.
        let opened = self.open_parts(cx, snapshot, Some(&state.sealed));
        let _updating = self.updating();
        let state = self.state.load_full();
        let next = match (opened, state) {
            (Ok(Opened { sealed, has_holes: false }), Some(state)) => {
                let covered = sealed.covered_seq;
                let (delta, head) = (state.delta.since(covered), state.head.max(covered));
                Some(Arc::new(State { sealed, delta, head }))
            }
            // The next search opens what there is.
            _ => None,
        };
        self.state.store(next);
    }

    /// Drops what is in memory: the next search opens the newest snapshot.
    pub(super) fn close(&self) {
        let _updating = self.updating();
        self.state.store(None);
    }

    /// What is in memory, where anything is.
    pub(super) fn held(&self) -> Option<Arc<State>> {
        self.state.load_full()
    }

    /// How many rows memory holds where there is no segment that could be used.
    pub(super) fn scanned(&self) -> u64 {
        let state = self.state.load_full();
        state.filter(|state| state.sealed.parts.is_empty()).map_or(0, |state| state.delta.len() as u64)
    }

    /// Notes that so many changes wait to be sealed, and says whether they are due.
    pub(super) fn are_due(&self, waiting: u64) -> bool {
        let mut tracker = self.tracker.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        tracker.observe(waiting, now);
        tracker.is_due(now)
    }

    pub(super) fn identity(&self) -> Result<Identity, PluginError> {
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

    pub(super) fn describe(&self) -> String {
        format!("{} index of layer {}", self.settings.backend, self.settings.layer)
    }

    pub(super) fn failed(&self, error: Error) -> IndexError {
        IndexError::Backend { backend: self.settings.backend.clone(), error }
    }

    fn updating(&self) -> MutexGuard<'_, ()> {
        self.updating.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sealed {
    /// The same segments for another state.
    fn share(&self) -> Self {
        Self { generation: self.generation, covered_seq: self.covered_seq, parts: self.parts.clone() }
    }
}

/// The hits of all parts, by as many threads as their rows are worth.
fn in_parallel(
    parts: &[Part],
    threads: usize,
    search: impl Fn(&Part) -> Result<Vec<Hit>, IndexError> + Sync,
) -> Result<Vec<Hit>, IndexError> {
    let rows = parts.iter().map(|part| part.listed.rows).fold(0, u64::saturating_add);
    let threads = usize::try_from(rows / THREAD_ROWS).unwrap_or(usize::MAX).min(threads).min(parts.len());
    let next = AtomicUsize::new(0);
    let work = || {
        let mut hits = Vec::new();
        while let Some(part) = parts.get(next.fetch_add(1, Ordering::Relaxed)) {
            hits.extend(search(part)?);
        }
        Ok::<_, IndexError>(hits)
    };
    thread::scope(|scope| {
        // Where the system has no thread to give, the others do the work.
        let helpers: Vec<_> =
            (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, work).ok()).collect();
        let mut hits = work()?;
        for helper in helpers {
            hits.extend(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?);
        }
        Ok(hits)
    })
}

/// Lower-case hexadecimal digits.
pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
