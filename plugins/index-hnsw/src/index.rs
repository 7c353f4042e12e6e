use crate::{
    files,
    graph::thread_pool,
    options::{Options, Parameters, ef_search},
    segment::{Breadth, Segment},
};
use magray_plugin_api::{
    CallContext, Capabilities, CreateVectorIndex, Error, ErrorCode, Hit, Host, IdFilter, IndexSpec,
    IndexStats, MemoryUse, Metric, Result, SearchParams, VectorIndex,
};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
};

/// Rows that a thread inserts between two looks at the caller's context: some 10 ms of work.
const ROWS_A_THREAD: usize = 16;

/// Upserts of fewer rows are done before a pool of threads has started.
const PARALLEL_ROWS: usize = 128;

/// Batches of fewer queries are answered before a second thread has started.
const PARALLEL_QUERIES: usize = 8;

/// An approximate index over a hierarchical navigable small world graph (Malkov and Yashunin,
/// arXiv:1603.09320), as `hnsw_rs` builds it.
///
/// Removed and replaced vectors stay in the graph as stepping stones. So that they do not slow
/// every search, the graph is built anew from the live vectors by [`VectorIndex::save`] when more
/// than a fifth is dead, and by [`VectorIndex::upsert`] when more than half is.
///
/// Threads: searches run beside one another and beside a writer; writers take turns.
pub struct Hnsw {
    spec: IndexSpec,
    parameters: Parameters,
    ef_search: AtomicUsize,
    host: &'static dyn Host,
    /// Held exclusively only to put a rebuilt segment in its place.
    segment: RwLock<Segment>,
    /// Held by whoever changes the segment or needs it to stay as it is.
    writer: Mutex<()>,
}

impl std::fmt::Debug for Hnsw {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hnsw")
            .field("spec", &self.spec)
            .field("parameters", &self.parameters)
            .finish_non_exhaustive()
    }
}

impl CreateVectorIndex for Hnsw {
    type Options = Options;

    const OPTIONS_SCHEMA: &'static str = Options::SCHEMA;

    fn create(options: Options, spec: IndexSpec, host: &'static dyn Host) -> Result<Self> {
        let parameters = check(&options, spec)?;
        Ok(Self::around(Segment::new(spec, parameters, host), spec, parameters, host))
    }

    /// Maps the files; `hnsw_rs` comes in with the first vector that is added.
    fn open(options: Options, spec: IndexSpec, dir: &Path, host: &'static dyn Host) -> Result<Self> {
        let parameters = check(&options, spec)?;
        Ok(Self::around(files::open(dir, spec, &parameters, host)?, spec, parameters, host))
    }
}

fn check(options: &Options, spec: IndexSpec) -> Result<Parameters> {
    spec.check()?;
    if spec.metric == Metric::Dot {
        return Err(Error::new(
            ErrorCode::UNSUPPORTED,
            "the hnsw index needs a distance, and a dot product is none; use the metric 'cosine', which is \
             the same for normalised vectors, or the index 'flat'",
        ));
    }
    options.parameters()
}

impl Hnsw {
    fn around(segment: Segment, spec: IndexSpec, parameters: Parameters, host: &'static dyn Host) -> Self {
        Self {
            spec,
            parameters,
            ef_search: AtomicUsize::new(parameters.ef_search),
            host,
            segment: RwLock::new(segment),
            writer: Mutex::new(()),
        }
    }

    /// Inserts `batch`, no id twice, in parts between which the caller may stop it.
    fn insert(&self, cx: &dyn CallContext, segment: &Segment, batch: &[(u64, &[f32])]) -> Result<()> {
        let parallel =
            self.parameters.use_parallel && batch.len() >= PARALLEL_ROWS && self.host.threads() > 1;
        let pool = parallel.then(|| thread_pool(self.host)).transpose()?;
        let part = ROWS_A_THREAD * pool.as_ref().map_or(1, rayon::ThreadPool::current_num_threads);
        for (at, rows) in batch.chunks(part).enumerate() {
            cx.check()?;
            segment.insert(rows, pool.as_ref())?;
            cx.progress((at * part + rows.len()) as u64, batch.len() as u64);
        }
        Ok(())
    }

    /// Builds the graph anew from the live vectors. The caller holds `writer`; searches go on with
    /// the old graph until the new one is whole.
    fn rebuild(&self, cx: &dyn CallContext) -> Result<()> {
        let rebuilt = Segment::new(self.spec, self.parameters, self.host);
        self.insert(cx, &rebuilt, &self.segment.read().live())?;
        let old = std::mem::replace(&mut *self.segment.write(), rebuilt);
        // Not under the lock: it takes a while.
        drop(old);
        Ok(())
    }
}

impl VectorIndex for Hnsw {
    fn spec(&self) -> IndexSpec {
        self.spec
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exact: false, concurrent_write: true, filtered: true, mapped: true }
    }

    fn stats(&self) -> IndexStats {
        let (live, dead) = self.segment.read().with_ids(|ids| (ids.len(), ids.dead_rows()));
        IndexStats { live: live as u64, dead: dead as u64, file_bytes: 0 }
    }

    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        self.spec.check_upsert(ids, vectors)?;
        cx.check()?;
        let _writer = self.writer.lock();
        if self.segment.read().with_ids(|ids| ids.dead_rows() * 2 > ids.rows()) {
            self.rebuild(cx)?;
        }
        let last: HashMap<u64, usize> = ids.iter().enumerate().map(|(at, &id)| (id, at)).collect();
        let rows = ids.iter().zip(vectors.chunks_exact(self.spec.dim)).enumerate();
        let batch: Vec<_> =
            rows.filter(|(at, (id, _))| last[id] == *at).map(|(_, (&id, vector))| (id, vector)).collect();
        self.insert(cx, &self.segment.read(), &batch)
    }

    fn remove(&self, cx: &dyn CallContext, ids: &[u64]) -> Result<usize> {
        cx.check()?;
        let _writer = self.writer.lock();
        Ok(self.segment.read().remove(ids))
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
            0 => self.ef_search.load(Ordering::Relaxed),
            ef => ef as usize,
        };
        let breadth = Breadth { ef, exact_below: self.parameters.exact_below };
        let segment = self.segment.read();
        let places: Vec<_> = queries.chunks_exact(self.spec.dim).zip(out.chunks_exact_mut(k)).collect();
        let places = Mutex::new(places.into_iter());
        let answer = || {
            loop {
                // The lock goes before the search begins.
                let place = places.lock().next();
                let Some((query, out)) = place else { return Ok(()) };
                cx.check()?;
                segment.search(query, breadth, filter, out);
            }
        };
        let threads = if n < PARALLEL_QUERIES { 1 } else { self.host.threads().min(n) };
        std::thread::scope(|scope| {
            // Where the system has no thread to give, the others do the work.
            let spawn = |_| std::thread::Builder::new().spawn_scoped(scope, answer).ok();
            let helpers: Vec<_> = (1..threads).filter_map(spawn).collect();
            let mine = answer();
            helpers.into_iter().fold(mine, |result, helper| {
                result.and(helper.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            })
        })
    }

    fn save(&self, cx: &dyn CallContext, dir: &Path) -> Result<()> {
        cx.check()?;
        let _writer = self.writer.lock();
        if self.segment.read().with_ids(|ids| ids.dead_rows() * 5 > ids.rows()) {
            self.rebuild(cx)?;
        }
        files::save(cx, dir, self.spec, &self.segment.read())
    }

    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        cx.check()?;
        self.segment.read().warm_up();
        Ok(())
    }

    fn memory_use(&self) -> MemoryUse {
        self.segment.read().memory_use()
    }

    fn tune(&self, name: &str, value: &str) -> Result<()> {
        if name != "ef_search" {
            return Err(Error::new(
                ErrorCode::UNSUPPORTED,
                format!("'{name}' cannot be changed while the index runs; 'ef_search' can"),
            ));
        }
        let value = value.trim().parse().map_err(|_| {
            Error::new(ErrorCode::INVALID_CONFIG, format!("ef_search is '{value}'; it is a whole number"))
        })?;
        self.ef_search.store(ef_search(value)?, Ordering::Relaxed);
        Ok(())
    }

    fn describe(&self) -> String {
        let segment = self.segment.read();
        let (links, memory) = (segment.links(), segment.memory_use());
        let levels = links.points();
        serde_json::json!({
            "engine": "hnsw_rs",
            "max_connections": self.parameters.max_connections,
            "ef_construction": self.parameters.ef_construction,
            "ef_search": self.ef_search.load(Ordering::Relaxed),
            "exact_below": self.parameters.exact_below,
            "use_parallel": self.parameters.use_parallel,
            "max_level": levels.len().saturating_sub(1),
            "levels": levels,
            "mean_connections": links.mean_connections(),
            "memory_bytes": memory.resident,
            "mapped_bytes": memory.mapped,
            "simd": segment.simd(),
        })
        .to_string()
    }
}
