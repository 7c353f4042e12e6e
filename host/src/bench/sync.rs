//! What it takes until a commit can be found: the work of the index after the store's transaction, by number of
//! changes and number of vectors stored, and searches beside it.
use super::{BenchError, throughput::quantile, worker::Spent};
use crate::{
    engine::{EngineError, Setup},
    indexing::{Extent, IndexOptions, Indexes, SyncOptions},
    plugins::Plugins,
    resources::total_memory,
    store::{Changes, Commit, Durability, Layer, NewRecord, SpaceId, Store, StoreOptions},
};
use half::f16;
use magray_plugin_api::{CallContext, ComponentKind, Hit, SearchParams};
use serde::Serialize;
use std::{path::Path, sync::Arc, time::Duration};
use tempfile::TempDir;

const DIM: usize = 384;
const SPACE: [u8; 32] = [7; 32];
const LAYER: Layer = Layer::Insights;
/// Records that are stored together.
const BATCH: u64 = 10_000;
/// Records of a transaction that is timed.
const TRANSACTION: u64 = 1000;
/// Of the vectors that a commit brings, beyond all that are stored.
const NEW: u64 = 1 << 40;
/// Commits: how many changes, and whether they are a third each of new, changed and removed ones, or all new.
const COMMITS: [(u64, bool); 4] = [(100, false), (1000, false), (10_000, false), (10_000, true)];
/// Measurements with each number of vectors: storing them, each commit, searches, transactions.
const STEPS: usize = COMMITS.len() + 3;

/// What was measured, in CPU time of the process, medians of the runs.
#[derive(Clone, Debug, Serialize)]
pub struct SyncFigures {
    /// The profile or component of the index.
    pub index: String,
    /// Width of the vectors.
    pub dim: usize,
    /// By number of vectors stored.
    pub stored: Vec<SyncStored>,
}

/// With so many vectors stored and sealed.
#[derive(Clone, Debug, Serialize)]
pub struct SyncStored {
    /// How many.
    pub rows: u64,
    /// What commits take.
    pub commits: Vec<SyncCommit>,
    /// Microseconds of a search of what is sealed.
    pub search_us: f64,
    /// Of opening all of it, and a search.
    pub open_us: f64,
    /// Of a transaction of 1000 records with no index open.
    pub add_us: f64,
    /// Of one with an index open that is handed its changes.
    pub add_open_us: f64,
    /// Of reading 1000 changes back from the log, as a process does that did not write them.
    pub read_back_us: f64,
}

/// A commit of so many changes.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct SyncCommit {
    /// How many.
    pub changes: u64,
    /// Whether they are a third each of new, changed and removed ones; else all are new.
    pub mixed: bool,
    /// Microseconds from the commit until the changes can be found.
    pub receive_us: f64,
    /// Of a search beside them, not sealed yet.
    pub search_us: f64,
}

/// How many measurements it is, for a progress bar.
pub fn sync_steps(rows: &[u64]) -> usize {
    STEPS * rows.len()
}

/// Measures the index in force, in folders of its own, with each of `rows` vectors stored, each figure `runs` times.
/// `done` is told after each step.
///
/// # Errors
/// [`BenchError`].
pub fn measure_sync(
    cx: &dyn CallContext,
    setup: &Setup,
    rows: &[u64],
    runs: usize,
    done: &mut dyn FnMut(),
) -> Result<SyncFigures, BenchError> {
    let plugins = Arc::new(setup.plugins());
    let mut stored = Vec::new();
    for &rows in rows {
        let world = World::new(cx, setup, &plugins, rows)?;
        done();
        let mut commits = Vec::new();
        // Each change of a mixed one is of another vector.
        for (changes, mixed) in COMMITS.into_iter().filter(|&(changes, mixed)| !mixed || changes <= rows) {
            commits.push(world.commit_figures(changes, mixed, runs)?);
            done();
        }
        let opened = world.opened()?;
        let search_us = world.search_us(&opened, runs)?;
        let open_us = median_us(runs, || Ok(()), |()| world.opened())?;
        done();
        drop(opened);
        let [add_us, add_open_us, read_back_us] = world.transactions(runs)?;
        done();
        stored.push(SyncStored { rows, commits, search_us, open_us, add_us, add_open_us, read_back_us });
    }
    Ok(SyncFigures { index: setup.config.memory.index.profile.clone(), dim: DIM, stored })
}

/// A stored memory of so many vectors, all sealed.
struct World<'a> {
    cx: &'a dyn CallContext,
    store: Arc<Store>,
    plugins: Arc<Plugins>,
    space: SpaceId,
    options: IndexOptions,
    rows: u64,
    /// Removed with it.
    _folder: TempDir,
}

impl<'a> World<'a> {
    fn new(
        cx: &'a dyn CallContext,
        setup: &Setup,
        plugins: &Arc<Plugins>,
        rows: u64,
    ) -> Result<Self, BenchError> {
        let folder = tempfile::tempdir().map_err(EngineError::from)?;
        let store = Arc::new(open(&folder.path().join("magray.db"))?);
        let space = store.space(SPACE, "bench", DIM).map_err(EngineError::from)?;
        for first in (0..rows).step_by(BATCH as usize) {
            cx.check().map_err(|_| BenchError::Interrupted)?;
            let records = (first..rows.min(first + BATCH)).map(record).collect();
            store.add(Some(space), records).map_err(EngineError::from)?;
        }
        let selected = setup.config.memory.index.selected();
        let backend = selected.profile.plugin.clone();
        let settings = &setup.config.memory.sync;
        let options = IndexOptions {
            database: store.id().map_err(EngineError::from)?,
            space,
            space_digest: SPACE,
            dim: DIM,
            options: selected.options_json(&plugins.options_schema(ComponentKind::Index, &backend)?),
            backend,
            dir: folder.path().join("index"),
            // Nothing is sealed while it is measured, and nothing tuned.
            sync: SyncOptions {
                seal_after: 50,
                max_age: Duration::from_secs(300),
                batch_size: settings.batch_size(total_memory()),
                merge_factor: settings.merge_factor,
                partition_max: settings.partition_max,
                compact_percent: settings.compact_percent,
                recall_target: 0.0,
                search_threads: setup.config.plugins.thread_budget(),
                min_free_bytes: setup.config.store.min_free_bytes,
            },
        };
        let plugins = Arc::clone(plugins);
        let world = Self { cx, store, plugins, space, options, rows, _folder: folder };
        world.indexes().sync(cx, None, Extent::All).map_err(EngineError::from)?;
        Ok(world)
    }

    fn indexes(&self) -> Indexes {
        Indexes::new(&self.options, &self.store, &self.plugins)
    }

    /// Opened by a search, as in a process that has answered before.
    fn opened(&self) -> Result<Indexes, BenchError> {
        let indexes = self.indexes();
        self.search(&indexes, &vector(1), 1)?;
        Ok(indexes)
    }

    fn search(&self, indexes: &Indexes, query: &[f32], k: usize) -> Result<Vec<Hit>, BenchError> {
        let found = indexes.search(self.cx, LAYER, query, k, SearchParams::default(), None);
        Ok(found.map_err(EngineError::from)?)
    }

    fn search_us(&self, indexes: &Indexes, runs: usize) -> Result<f64, BenchError> {
        let mut queries = (1..).map(vector);
        let query = || Ok(queries.next().unwrap_or_default());
        median_us(runs, query, |query| self.search(indexes, &query, 10))
    }

    /// What the store hands over of a transaction with so many changes.
    fn commit(&self, count: u64, mixed: bool) -> Result<Commit, BenchError> {
        let before = self.store.head(self.space, LAYER).map_err(EngineError::from)?;
        let mut changes = Changes { head: before + count, complete: true, ..Changes::default() };
        let mut upsert = |id: u64| {
            changes.upserts.push(id);
            changes.vectors.extend(vector(id + NEW).into_iter().map(f16::from_f32));
        };
        // Ids from 1; the changed ones lie all over.
        let third = if mixed { count / 3 } else { 0 };
        let step = (self.rows / (2 * third).max(1)).max(1);
        (0..third).for_each(|i| upsert(1 + (2 * i) * step % self.rows));
        (0..count - 2 * third).for_each(|i| upsert(self.rows + 1 + i));
        changes.removed = (0..third).map(|i| 1 + (2 * i + 1) * step % self.rows).collect();
        Ok(Commit { space: self.space, layer: LAYER, before, changes: Arc::new(changes) })
    }

    fn commit_figures(&self, changes: u64, mixed: bool, runs: usize) -> Result<SyncCommit, BenchError> {
        let commit = self.commit(changes, mixed)?;
        let receive = |indexes: Indexes| {
            indexes.receive(&commit);
            Ok(indexes)
        };
        let receive_us = median_us(runs, || self.opened(), receive)?;
        let indexes = receive(self.opened()?)?;
        let finds = |id: u64, seed: u64| {
            let hits = self.search(&indexes, &vector(seed), 3)?;
            Ok::<_, BenchError>(hits.iter().any(|hit| hit.id == id))
        };
        let newest = self.rows + 1;
        if !finds(newest, newest + NEW)? {
            return Err(self.broken("it does not find a vector that was just added"));
        }
        for &removed in commit.changes.removed.iter().take(20) {
            if finds(removed, removed - 1)? {
                return Err(self.broken("it finds a vector that was just removed"));
            }
        }
        Ok(SyncCommit { changes, mixed, receive_us, search_us: self.search_us(&indexes, runs)? })
    }

    /// Microseconds of a transaction without and with an open index, and of reading its changes back.
    fn transactions(&self, runs: usize) -> Result<[f64; 3], BenchError> {
        let mut firsts = (self.rows + NEW..).step_by(TRANSACTION as usize);
        let mut batch = || {
            let first = firsts.next().unwrap_or(u64::MAX);
            Ok((first..first.saturating_add(TRANSACTION)).map(record).collect::<Vec<_>>())
        };
        let add = |records| Ok(self.store.add(Some(self.space), records).map_err(EngineError::from)?);
        let alone = median_us(runs, &mut batch, add)?;
        let indexes = self.opened()?;
        let beside = median_us(runs, &mut batch, add)?;
        drop(indexes);
        let other = open(self.store.path())?;
        let head = other.head(self.space, LAYER).map_err(EngineError::from)?;
        let changes = |()| {
            let changes = other.changes_after(self.space, LAYER, head - TRANSACTION);
            Ok(changes.map_err(EngineError::from)?)
        };
        Ok([alone, beside, median_us(runs, || Ok(()), changes)?])
    }

    fn broken(&self, fault: &str) -> BenchError {
        BenchError::Broken { backend: self.options.backend.clone(), fault: fault.to_owned() }
    }
}

fn open(database: &Path) -> Result<Store, BenchError> {
    let options = StoreOptions { durability: Durability::Normal, ..StoreOptions::default() };
    Ok(Store::open(database, &options).map_err(EngineError::from)?)
}

/// The median CPU time of `work` in microseconds, on what `ready` makes before each run.
fn median_us<T, R>(
    runs: usize,
    mut ready: impl FnMut() -> Result<T, BenchError>,
    mut work: impl FnMut(T) -> Result<R, BenchError>,
) -> Result<f64, BenchError> {
    let mut times = Vec::new();
    for _ in 0..runs.max(1) {
        let with = ready()?;
        let mut spent = Spent::default();
        // What is left of it goes after the clock has stopped.
        let _done = spent.on(|| work(with))??;
        times.push(spent.cpu.as_secs_f64() * 1e6);
    }
    Ok(quantile(times, 0.5))
}

/// A direction that depends on the seed alone (xorshift, Marsaglia 2003).
fn vector(seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut number = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut vector: Vec<f32> = (0..DIM).map(|_| number()).collect();
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|v| *v /= length);
    vector
}

fn record(seed: u64) -> NewRecord {
    NewRecord { vector: Some(vector(seed)), ..NewRecord::new(LAYER, seed.to_string()) }
}
