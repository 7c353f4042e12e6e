use crate::files;
use magray_plugin_api::{
    CallContext, Capabilities, CreateVectorIndex, Error, ErrorCode, Hit, Host, IdFilter, IndexSpec,
    IndexStats, MemoryUse, Metric, Result, SearchParams, VectorIndex,
};
use parking_lot::{Condvar, Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};
use serde::Deserialize;
use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};
use usearch::{Index, IndexOptions, MetricKind, ScalarKind};

/// Filters that let fewer ids through are answered by comparing with each of them.
const EXACT_BELOW: usize = 2048;

/// The graph is built anew when more than one in so many of its vectors was removed or replaced.
const REBUILT_BELOW: usize = 10;

/// Rows that a thread inserts between two looks at the caller's context.
const ROWS_A_THREAD: usize = 32;

/// How usearch stores a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scalar {
    /// 4 bytes.
    #[default]
    F32,
    /// 2 bytes, scored again.
    Bf16,
    /// 1 byte, under cosine only, scored again.
    I8,
}

/// The options of the index in the user's TOML. Their defaults are usearch's.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How numbers are stored.
    pub scalar: Scalar,
    /// Links of a vector in each upper level, twice as many in the lowest; 2 to 512.
    pub connectivity: usize,
    /// Candidates that an insertion chooses its links from; 1 to 10000.
    pub expansion_add: usize,
    /// Candidates that a search keeps; 1 to 10000. A search can override it.
    pub expansion_search: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { scalar: Scalar::F32, connectivity: 16, expansion_add: 128, expansion_search: 64 }
    }
}

impl Options {
    fn check(&self, spec: IndexSpec) -> Result<()> {
        spec.check()?;
        for (name, value, most) in [
            ("connectivity", self.connectivity, 512),
            ("expansion_add", self.expansion_add, 10_000),
            ("expansion_search", self.expansion_search, 10_000),
        ] {
            let least = if name == "connectivity" { 2 } else { 1 };
            if !(least..=most).contains(&value) {
                let message = format!("{name} is {value}; it goes from {least} to {most}");
                return Err(Error::new(ErrorCode::INVALID_CONFIG, message));
            }
        }
        if self.scalar == Scalar::I8 && spec.metric != Metric::Cosine {
            return Err(Error::new(
                ErrorCode::UNSUPPORTED,
                "i8 holds numbers from -1 to 1, so it needs the metric 'cosine'; use 'bf16'",
            ));
        }
        Ok(())
    }

    fn of_usearch(&self, spec: IndexSpec) -> IndexOptions {
        IndexOptions {
            dimensions: spec.dim,
            metric: match spec.metric {
                Metric::Cosine => MetricKind::Cos,
                Metric::Dot => MetricKind::IP,
                Metric::L2 => MetricKind::L2sq,
            },
            quantization: match self.scalar {
                Scalar::F32 => ScalarKind::F32,
                Scalar::Bf16 => ScalarKind::BF16,
                Scalar::I8 => ScalarKind::I8,
            },
            connectivity: self.connectivity,
            expansion_add: self.expansion_add,
            expansion_search: self.expansion_search,
            multi: false,
        }
    }
}

/// A graph of usearch.
///
/// Threads: searches run beside one another, writers alone.
pub struct Usearch {
    spec: IndexSpec,
    options: Options,
    expansion_search: AtomicUsize,
    host: &'static dyn Host,
    state: RwLock<State>,
    /// How many more threads may be inside usearch.
    free: Mutex<usize>,
    freed: Condvar,
}

pub(crate) struct State {
    pub(crate) index: Index,
    /// The originals; of length 1 under cosine.
    pub(crate) vectors: HashMap<u64, Box<[f32]>>,
    /// Vectors removed or replaced since the graph was built.
    removed: usize,
}

impl State {
    /// Whether `id` was there.
    fn remove(&mut self, id: u64) -> Result<bool> {
        if !self.vectors.contains_key(&id) {
            return Ok(false);
        }
        self.index.remove(id).map_err(failed)?;
        self.vectors.remove(&id);
        self.removed += 1;
        Ok(true)
    }
}

impl std::fmt::Debug for Usearch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Usearch")
            .field("spec", &self.spec)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

pub(crate) fn failed(error: impl std::fmt::Display) -> Error {
    Error::new(ErrorCode::INTERNAL, format!("usearch: {error}"))
}

impl CreateVectorIndex for Usearch {
    type Options = Options;

    const OPTIONS_SCHEMA: &'static str = r#"{
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "scalar": {"enum": ["f32", "bf16", "i8"], "default": "f32"},
            "connectivity": {"type": "integer", "minimum": 2, "maximum": 512, "default": 16},
            "expansion_add": {"type": "integer", "minimum": 1, "maximum": 10000, "default": 128},
            "expansion_search": {"type": "integer", "minimum": 1, "maximum": 10000, "default": 64}
        }
    }"#;

    fn create(options: Options, spec: IndexSpec, host: &'static dyn Host) -> Result<Self> {
        options.check(spec)?;
        let index = Index::new(&options.of_usearch(spec)).map_err(failed)?;
        Self::around(index, HashMap::new(), options, spec, host)
    }

    fn open(options: Options, spec: IndexSpec, dir: &Path, host: &'static dyn Host) -> Result<Self> {
        options.check(spec)?;
        let index = Index::new(&options.of_usearch(spec)).map_err(failed)?;
        let vectors = files::open(dir, spec, &index)?;
        Self::around(index, vectors, options, spec, host)
    }
}

impl Usearch {
    fn around(
        index: Index,
        vectors: HashMap<u64, Box<[f32]>>,
        options: Options,
        spec: IndexSpec,
        host: &'static dyn Host,
    ) -> Result<Self> {
        let threads = host.threads();
        index.reserve_capacity_and_threads(vectors.len().max(64), threads).map_err(failed)?;
        Ok(Self {
            spec,
            options,
            expansion_search: AtomicUsize::new(options.expansion_search),
            host,
            state: RwLock::new(State { index, vectors, removed: 0 }),
            free: Mutex::new(threads),
            freed: Condvar::new(),
        })
    }

    /// Runs `call` when usearch has room for another thread.
    fn inside<R>(&self, call: impl FnOnce() -> R) -> R {
        let mut free = self.free.lock();
        self.freed.wait_while(&mut free, |free| *free == 0);
        *free -= 1;
        drop(free);
        let _leave = Leave(self);
        call()
    }

    /// The state with this breadth in force.
    fn read(&self, ef: usize) -> RwLockReadGuard<'_, State> {
        loop {
            let state = self.state.read();
            if state.index.expansion_search() == ef {
                return state;
            }
            drop(state);
            let state = self.state.write();
            state.index.change_expansion_search(ef);
            let state = RwLockWriteGuard::downgrade(state);
            if state.index.expansion_search() == ef {
                return state;
            }
        }
    }

    /// Adds vectors that `index` has room for, on every thread that the host grants.
    fn add(&self, index: &Index, rows: &[(u64, &[f32])]) -> Result<()> {
        let share = rows.len().div_ceil(self.host.threads()).max(ROWS_A_THREAD);
        let add = |rows: &[(u64, &[f32])]| {
            rows.iter().try_for_each(|(id, vector)| self.inside(|| index.add(*id, vector)))
        };
        std::thread::scope(|scope| {
            let running: Vec<_> = rows.chunks(share).map(|rows| scope.spawn(move || add(rows))).collect();
            running.into_iter().try_for_each(|thread| match thread.join() {
                Ok(added) => added.map_err(failed),
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    /// usearch puts new vectors in the places of removed ones, whose links to others then lead
    /// astray: where many are removed a search misses even vectors that are its query.
    fn rebuild(&self, state: &mut State) -> Result<()> {
        let index = Index::new(&self.options.of_usearch(self.spec)).map_err(failed)?;
        let capacity = state.vectors.len().next_power_of_two().max(64);
        index.reserve_capacity_and_threads(capacity, self.host.threads()).map_err(failed)?;
        let rows: Vec<(u64, &[f32])> = state.vectors.iter().map(|(&id, vector)| (id, &**vector)).collect();
        self.add(&index, &rows)?;
        (state.index, state.removed) = (index, 0);
        Ok(())
    }

    /// A vector as it is kept and searched for.
    fn prepared(&self, vector: &[f32]) -> Box<[f32]> {
        if self.spec.metric != Metric::Cosine {
            return vector.into();
        }
        // In f64, where no square of an f32 overflows or vanishes.
        let norm = vector.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        vector.iter().map(|&v| (f64::from(v) / norm) as f32).collect()
    }

    fn score(&self, a: &[f32], b: &[f32]) -> f32 {
        let terms = a.iter().zip(b);
        match self.spec.metric {
            Metric::L2 => -terms.map(|(a, b)| (a - b) * (a - b)).sum::<f32>(),
            Metric::Cosine | Metric::Dot => terms.map(|(a, b)| a * b).sum(),
        }
    }

    fn scan(&self, state: &State, query: &[f32], filter: Option<IdFilter<'_>>) -> Vec<Hit> {
        let hit = |id: u64, vector: &[f32]| Hit::new(id, self.score(query, vector));
        match filter {
            Some(filter) if filter.count() < state.vectors.len() as u64 => {
                filter.iter().filter_map(|id| Some(hit(id, state.vectors.get(&id)?))).collect()
            }
            _ => {
                let passes = |id: u64| filter.is_none_or(|filter| filter.contains(id));
                let vectors = state.vectors.iter().filter(|&(&id, _)| passes(id));
                vectors.map(|(&id, vector)| hit(id, vector)).collect()
            }
        }
    }

    fn walk(
        &self,
        state: &State,
        query: &[f32],
        k: usize,
        ef: usize,
        filter: Option<IdFilter<'_>>,
    ) -> Result<Vec<Hit>> {
        let exact = self.options.scalar == Scalar::F32;
        // Rounded numbers order what is near one another wrongly; so more are taken and scored again.
        let wanted = if exact { k } else { k.max(ef).min(state.vectors.len()) };
        let matches = self.inside(|| match filter {
            None => state.index.search(query, wanted),
            Some(filter) => state.index.filtered_search(query, wanted, |id| filter.contains(id)),
        });
        let matches = matches.map_err(failed)?;
        let hits = matches.keys.into_iter().zip(matches.distances).filter_map(|(id, distance)| {
            let vector = state.vectors.get(&id)?;
            let score = match self.spec.metric {
                _ if !exact => self.score(query, vector),
                Metric::L2 => -distance,
                Metric::Cosine | Metric::Dot => 1.0 - distance,
            };
            Some(Hit::new(id, score))
        });
        Ok(hits.collect())
    }

    fn answer(
        &self,
        state: &State,
        query: &[f32],
        ef: usize,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        let query = self.prepared(query);
        let live = state.vectors.len();
        let most = filter.map_or(live, |filter| live.min(usize::try_from(filter.count()).unwrap_or(live)));
        let wanted = out.len().min(most);
        let mut hits = Vec::new();
        if wanted > 0 && !(filter.is_some() && most < EXACT_BELOW) {
            hits = self.walk(state, &query, wanted, ef, filter)?;
        }
        // The filter may name ids that are not here, and the graph may have lost some that are.
        if hits.len() < wanted {
            hits = self.scan(state, &query, filter);
        }
        hits.sort_unstable_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        hits.truncate(out.len());
        out.fill(Hit::NONE);
        out[..hits.len()].copy_from_slice(&hits);
        Ok(())
    }
}

/// Gives a place inside usearch back.
struct Leave<'a>(&'a Usearch);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        *self.0.free.lock() += 1;
        self.0.freed.notify_one();
    }
}

impl VectorIndex for Usearch {
    fn spec(&self) -> IndexSpec {
        self.spec
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exact: false, concurrent_write: true, filtered: true, mapped: false }
    }

    fn stats(&self) -> IndexStats {
        IndexStats { live: self.state.read().vectors.len() as u64, dead: 0, file_bytes: 0 }
    }

    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        self.spec.check_upsert(ids, vectors)?;
        cx.check()?;
        let last: HashMap<u64, &[f32]> =
            ids.iter().copied().zip(vectors.chunks_exact(self.spec.dim)).collect();
        let batch: Vec<(u64, Box<[f32]>)> =
            last.into_iter().map(|(id, vector)| (id, self.prepared(vector))).collect();
        let threads = self.host.threads();
        for part in batch.chunks(ROWS_A_THREAD * threads) {
            cx.check()?;
            let state = &mut *self.state.write();
            for (id, _) in part {
                state.remove(*id)?;
            }
            if state.removed > state.vectors.len() / REBUILT_BELOW {
                self.rebuild(state)?;
            }
            let needed = state.vectors.len() + part.len();
            if needed > state.index.capacity() {
                let capacity = needed.next_power_of_two();
                state.index.reserve_capacity_and_threads(capacity, threads).map_err(failed)?;
            }
            let rows: Vec<(u64, &[f32])> = part.iter().map(|(id, vector)| (*id, &**vector)).collect();
            let added = self.add(&state.index, &rows);
            // An id is here exactly while usearch has it.
            let taken = part.iter().filter(|(id, _)| added.is_ok() || state.index.contains(*id));
            state.vectors.extend(taken.cloned());
            added?;
        }
        Ok(())
    }

    fn remove(&self, cx: &dyn CallContext, ids: &[u64]) -> Result<usize> {
        cx.check()?;
        let state = &mut *self.state.write();
        let mut removed = 0;
        for &id in ids {
            removed += usize::from(state.remove(id)?);
        }
        Ok(removed)
    }

    fn search(
        &self,
        cx: &dyn CallContext,
        queries: &[f32],
        k: usize,
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        let n = self.spec.check_search(queries, k, out)?;
        cx.check()?;
        if k == 0 {
            return Ok(());
        }
        let ef = match params.ef {
            0 => self.expansion_search.load(Ordering::Relaxed),
            ef => (ef as usize).min(self.state.read().vectors.len().max(16)),
        };
        let state = self.read(ef);
        let threads = self.host.threads().min(n.div_ceil(8)).max(1);
        let share = n.div_ceil(threads).max(1);
        let parts = queries.chunks(share * self.spec.dim).zip(out.chunks_mut(share * k));
        let answer = |queries: &[f32], out: &mut [Hit]| {
            for (query, out) in queries.chunks_exact(self.spec.dim).zip(out.chunks_exact_mut(k)) {
                cx.check()?;
                self.answer(&state, query, ef, filter, out)?;
            }
            Ok(())
        };
        if threads == 1 {
            return parts.into_iter().try_for_each(|(queries, out)| answer(queries, out));
        }
        std::thread::scope(|scope| {
            let running: Vec<_> = parts.map(|(queries, out)| scope.spawn(|| answer(queries, out))).collect();
            running.into_iter().try_for_each(|thread| match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            })
        })
    }

    fn save(&self, cx: &dyn CallContext, dir: &Path) -> Result<()> {
        cx.check()?;
        files::save(dir, self.spec, &self.state.read())
    }

    fn memory_use(&self) -> MemoryUse {
        let state = self.state.read();
        let originals = state.vectors.len() * (self.spec.dim * size_of::<f32>() + 64);
        MemoryUse { resident: (state.index.memory_usage() + originals) as u64, ..MemoryUse::default() }
    }

    fn tune(&self, name: &str, value: &str) -> Result<()> {
        if name != "expansion_search" {
            let message = format!("'{name}' cannot be changed while the index runs; 'expansion_search' can");
            return Err(Error::new(ErrorCode::UNSUPPORTED, message));
        }
        let value = value.trim().parse().map_err(|_| {
            let message = format!("expansion_search is '{value}'; it is a whole number");
            Error::new(ErrorCode::INVALID_CONFIG, message)
        })?;
        Options { expansion_search: value, ..self.options }.check(self.spec)?;
        self.expansion_search.store(value, Ordering::Relaxed);
        Ok(())
    }

    fn describe(&self) -> String {
        let state = self.state.read();
        serde_json::json!({
            "engine": format!("usearch {}", usearch::version()),
            "scalar": format!("{:?}", self.options.scalar).to_lowercase(),
            "connectivity": self.options.connectivity,
            "expansion_add": self.options.expansion_add,
            "expansion_search": self.expansion_search.load(Ordering::Relaxed),
            "graph_bytes": state.index.memory_usage(),
            "simd": state.index.hardware_acceleration(),
        })
        .to_string()
    }
}
