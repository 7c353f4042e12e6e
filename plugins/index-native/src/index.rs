use crate::{
    best::Best,
    build::{Source, build},
    container::Part,
    exact::{Exact, check_lengths, prepare},
    int8::MAX_DIM,
    options::{Layout, Options},
    rabitq::Kernel,
    sealed::{self, Request, Sealed},
    staged::Staged,
};
use magray_plugin_api::{
    CallContext, Capabilities, CreateVectorIndex, Error, ErrorCode, Hit, Host, IdFilter, IndexSpec,
    IndexStats, MemoryUse, Result, SearchParams, VectorIndex,
};
use std::{
    fmt,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError},
};

/// Rows that are written at once, before searches get their turn.
const CHUNK: usize = 1024;

/// Fewer staged rows are never sealed by a search.
const SEAL: usize = 8192;

/// To compare each row that passes a filter is quicker than a scan where no more of them pass than one in so many of those
/// that it would go through. Measured: of all codes of 100,000 x 384 and 60,000 x 784 5, of lists of 400,000 x 50 and
/// 1,000,000 x 768 3.5.
const SPARSE: f64 = 5.0;

/// To compare each row that passes a filter is quicker than a walk where no more of them pass than the root of so many
/// times all rows times those in view: the fewer pass, the more of the others a walk meets. Measured: of 100,000 x 384 86,
/// of 60,000 x 784 37, of 1,000,000 x 768 31.
const WALKED: f64 = 40.0;

/// Rows that a walk of a graph keeps in view. Measured on 100,000 MiniLM vectors: 98 of 100 are found.
const BREADTH: usize = 128;

/// Vectors as codes of one or two bits a dimension that are scanned whole or in part, codes of four or eight bits by
/// which the best of them are scored again, or which are walked themselves, and originals for the last few.
///
/// A write goes to staged rows, which are compared exactly; a removed or replaced row is marked. A search
/// that finds the staged rows to be as many as half of the sealed ones seals them first, in the layout that
/// is quick to make, so that an index which is only filled and saved is built once; the layout of the
/// options is made by [`VectorIndex::save`] and [`VectorIndex::warm_up`].
///
/// Threads: searches run beside one another and beside a writer; writers take turns.
pub struct Native {
    spec: IndexSpec,
    kernel: Kernel,
    host: &'static dyn Host,
    options: RwLock<Options>,
    rows: RwLock<Rows>,
    /// Held by whoever changes the rows or needs them to stay as they are.
    writer: Mutex<()>,
}

/// What is in the index.
#[derive(Debug)]
struct Rows {
    sealed: Option<Sealed>,
    /// Bit `place % 64` of word `place / 64`: a sealed row that was removed or replaced since.
    dead: Vec<u64>,
    dead_count: usize,
    staged: Staged,
}

impl Rows {
    fn new(spec: IndexSpec, sealed: Option<Sealed>) -> Self {
        let words = sealed.as_ref().map_or(0, |sealed| sealed.places().div_ceil(64));
        Self { sealed, dead: vec![0; words], dead_count: 0, staged: Staged::new(spec) }
    }

    fn sealed_rows(&self) -> usize {
        self.sealed.as_ref().map_or(0, Sealed::rows)
    }

    fn live(&self) -> usize {
        self.sealed_rows() - self.dead_count + self.staged.len()
    }

    fn is_dead(&self, place: usize) -> bool {
        self.dead[place / 64] >> (place % 64) & 1 == 1
    }

    /// The place of `id` among the sealed rows that are left.
    fn find_sealed(&self, id: u64) -> Option<usize> {
        self.sealed.as_ref()?.find(id).filter(|&place| !self.is_dead(place))
    }

    /// Marks the sealed row of `id` as dead; whether there was a live one.
    fn kill(&mut self, id: u64) -> bool {
        let Some(place) = self.find_sealed(id) else { return false };
        self.dead[place / 64] |= 1 << (place % 64);
        self.dead_count += 1;
        true
    }

    fn source(&self, spec: IndexSpec) -> Source<'_> {
        Source::new(spec, self.sealed.as_ref(), |place| self.is_dead(place), &self.staged)
    }

    /// Whether everything is sealed.
    fn is_compact(&self) -> bool {
        self.dead_count == 0 && self.staged.len() == 0 && self.sealed.is_some()
    }
}

impl fmt::Debug for Native {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Native")
            .field("spec", &self.spec)
            .field("kernel", &self.kernel)
            .finish_non_exhaustive()
    }
}

impl CreateVectorIndex for Native {
    type Options = Options;

    const OPTIONS_SCHEMA: &'static str = Options::SCHEMA;

    fn create(options: Options, spec: IndexSpec, host: &'static dyn Host) -> Result<Self> {
        check_width(spec)?;
        Ok(Self::around(None, options.checked()?, spec, host))
    }

    /// The layout, the lists and the seed are those that the index was built with until it is built
    /// anew; the other options count at once.
    fn open(options: Options, spec: IndexSpec, dir: &Path, host: &'static dyn Host) -> Result<Self> {
        check_width(spec)?;
        let options = options.checked()?;
        let sealed = Sealed::open(spec, Kernel::detect(), dir)?;
        Ok(Self::around(Some(sealed), options, spec, host))
    }
}

fn check_width(spec: IndexSpec) -> Result<()> {
    spec.check()?;
    if spec.dim > MAX_DIM {
        let message = format!("vectors of {} numbers are too wide: {MAX_DIM} are the most", spec.dim);
        return Err(Error::new(ErrorCode::UNSUPPORTED, message));
    }
    Ok(())
}

impl Native {
    fn around(sealed: Option<Sealed>, options: Options, spec: IndexSpec, host: &'static dyn Host) -> Self {
        Self {
            spec,
            kernel: Kernel::detect(),
            host,
            options: RwLock::new(options),
            rows: RwLock::new(Rows::new(spec, sealed)),
            writer: Mutex::new(()),
        }
    }

    // The host sets an instance aside in which a call panicked, so what a poisoned lock guards is
    // answered from only until then.
    fn read(&self) -> RwLockReadGuard<'_, Rows> {
        self.rows.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Rows> {
        self.rows.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn writer(&self) -> MutexGuard<'_, ()> {
        self.writer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn options(&self) -> Options {
        *self.options.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Seals every live row. The caller holds `writer`; searches go on meanwhile.
    fn seal(&self, cx: &dyn CallContext, options: &Options) -> Result<()> {
        let sealed = build(cx, self.host.threads(), self.kernel, options, &self.read().source(self.spec))?;
        let old = std::mem::replace(&mut *self.write(), Rows::new(self.spec, Some(sealed)));
        // Not under the lock: it takes a while.
        drop(old);
        Ok(())
    }

    /// Seals where so much is staged that searches would be slow. A writer that is at work will leave it to
    /// the next search.
    fn seal_in_time(&self, cx: &dyn CallContext) -> Result<()> {
        let is_due = || {
            let rows = self.read();
            rows.staged.len() >= SEAL.max((rows.sealed_rows() - rows.dead_count) / 2)
        };
        if !is_due() {
            return Ok(());
        }
        let _writer = match self.writer.try_lock() {
            Ok(writer) => writer,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return Ok(()),
        };
        // Another search may just have done it.
        if is_due() {
            self.seal(cx, &Options { layout: Layout::Flat, ..self.options() })?;
        }
        Ok(())
    }
}

impl VectorIndex for Native {
    fn spec(&self) -> IndexSpec {
        self.spec
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exact: false, concurrent_write: true, filtered: true, mapped: true }
    }

    fn stats(&self) -> IndexStats {
        let rows = self.read();
        let file_bytes = match &rows.sealed {
            Some(sealed) if rows.is_compact() => sealed.container().length() as u64,
            _ => 0,
        };
        IndexStats { live: rows.live() as u64, dead: rows.dead_count as u64, file_bytes }
    }

    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        self.spec.check_upsert(ids, vectors)?;
        check_lengths(self.spec, vectors)?;
        let _writer = self.writer();
        let chunks = ids.chunks(CHUNK).zip(vectors.chunks(CHUNK * self.spec.dim));
        for (done, (chunk, vectors)) in chunks.enumerate() {
            cx.check()?;
            cx.progress((done * CHUNK) as u64, ids.len() as u64);
            let mut rows = self.write();
            for (&id, vector) in chunk.iter().zip(vectors.chunks_exact(self.spec.dim)) {
                rows.kill(id);
                rows.staged.upsert(id, vector);
            }
        }
        Ok(())
    }

    fn remove(&self, cx: &dyn CallContext, ids: &[u64]) -> Result<usize> {
        let _writer = self.writer();
        let mut removed = 0;
        for ids in ids.chunks(CHUNK) {
            cx.check()?;
            let mut rows = self.write();
            removed += ids.iter().filter(|&&id| rows.staged.remove(id) || rows.kill(id)).count();
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
        self.spec.check_search(queries, k, out)?;
        check_lengths(self.spec, queries)?;
        cx.check()?;
        out.fill(Hit::NONE);
        self.seal_in_time(cx)?;
        let rows = self.read();
        let wanted = k.min(rows.live());
        if wanted == 0 {
            return Ok(());
        }
        let queries: Vec<Vec<f32>> =
            queries.chunks_exact(self.spec.dim).map(|query| prepare(self.spec, query)).collect();
        let staged = self.search_staged(cx, &rows, &queries, wanted, filter)?;
        let sealed = self.search_sealed(cx, &rows, &queries, wanted, params, filter)?;
        for ((mut staged, sealed), out) in staged.into_iter().zip(sealed).zip(out.chunks_exact_mut(k)) {
            sealed.into_iter().for_each(|hit| staged.push(hit));
            let hits = staged.into_sorted();
            out[..hits.len()].copy_from_slice(&hits);
        }
        Ok(())
    }

    fn save(&self, cx: &dyn CallContext, dir: &Path) -> Result<()> {
        let _writer = self.writer();
        let options = self.options();
        let rows = self.read();
        match &rows.sealed {
            Some(sealed) if rows.is_compact() && sealed.is_as(&options) => sealed.container().save(dir),
            _ => {
                let threads = self.host.threads();
                let sealed = build(cx, threads, self.kernel, &options, &rows.source(self.spec))?;
                sealed.container().save(dir)
            }
        }
    }

    /// Seals what is staged, in the layout of the options, and brings the codes of a mapped file into
    /// memory. A process that searches once does without.
    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        let _writer = self.writer();
        let options = self.options();
        let (staged, live) = (self.read().staged.len(), self.read().live());
        if live > options.exact_below
            && (staged > 0 || !self.read().sealed.as_ref().is_some_and(|sealed| sealed.is_as(&options)))
        {
            self.seal(cx, &options)?;
        }
        match &mut self.write().sealed {
            Some(sealed) => sealed.container_mut().heat(),
            None => Ok(()),
        }
    }

    fn memory_use(&self) -> MemoryUse {
        let rows = self.read();
        let (owned, mapped) = rows.sealed.as_ref().map_or((0, 0), Sealed::memory);
        let resident = owned + rows.dead.capacity() * 8 + rows.staged.bytes();
        MemoryUse { resident: resident as u64, mapped: mapped as u64, ..MemoryUse::default() }
    }

    fn tune(&self, name: &str, value: &str) -> Result<()> {
        self.options.write().unwrap_or_else(PoisonError::into_inner).tune(name, value)
    }

    fn describe(&self) -> String {
        let (rows, options) = (self.read(), self.options());
        let mut shown = serde_json::json!({
            "kernel": self.kernel.name(),
            "sealed_rows": rows.sealed_rows(),
            "staged_rows": rows.staged.len(),
            "exact_below": options.exact_below,
        });
        if let Some(sealed) = &rows.sealed {
            let bytes = Part::ALL.map(|part| {
                let each = sealed.container().part_bytes(part) as f64 / sealed.rows().max(1) as f64;
                (part.name().to_owned(), serde_json::json!((each * 10.0).round() / 10.0))
            });
            shown["layout"] = match (sealed.bits(), sealed.lists()) {
                (0, _) => "graph",
                (_, 0) => "flat",
                _ => "ivf",
            }
            .into();
            shown["bits"] = sealed.bits().into();
            shown["lists"] = sealed.lists().into();
            shown["probes"] = self.probes(&options, sealed, SearchParams::default()).into();
            shown["breadth"] = self.breadth(&options, SearchParams::default()).into();
            shown["rescore"] = self.rescore(&options, sealed, 10, SearchParams::default()).into();
            shown["originals"] = if sealed.is_wide() { "f32" } else { "f16" }.into();
            shown["bytes_per_vector"] = bytes.into_iter().collect::<serde_json::Map<_, _>>().into();
        }
        shown.to_string()
    }
}

impl Native {
    fn rescore(&self, options: &Options, sealed: &Sealed, k: usize, params: SearchParams) -> usize {
        let asked = if params.rescore > 0 { params.rescore as usize } else { options.rescore };
        let width = match sealed.bits() {
            _ if asked > 0 => asked,
            0 => sealed::doubtful(k),
            // A code says less the fewer dimensions there are; each bit more halves what an estimate is off by, as four
            // times the dimensions do. Measured: recall@10 is .996 for 100 at width 384 and .999 at 784.
            bits => {
                let dims = (self.spec.dim << (2 * (bits - 1))) as f64;
                ((100.0 * (384.0 / dims).powf(1.5).max(1.0)) as usize).max(8 * k)
            }
        };
        width.max(k)
    }

    fn breadth(&self, options: &Options, params: SearchParams) -> usize {
        let breadth = if options.breadth > 0 { options.breadth } else { BREADTH };
        // As with probes.
        let scale = if params.ef > 0 { params.ef as usize } else { 100 };
        (breadth * scale).div_ceil(100)
    }

    fn probes(&self, options: &Options, sealed: &Sealed, params: SearchParams) -> usize {
        let probes = if options.probes > 0 { options.probes } else { sealed.container().shape().probes };
        // As users know it from a graph: 100 is what is usual, half of it half the work.
        let scale = if params.ef > 0 { params.ef as usize } else { 100 };
        (probes * scale).div_ceil(100).clamp(1, sealed.lists().max(1))
    }

    fn search_sealed(
        &self,
        cx: &dyn CallContext,
        rows: &Rows,
        queries: &[Vec<f32>],
        k: usize,
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
    ) -> Result<Vec<Vec<Hit>>> {
        let Some(sealed) = rows.sealed.as_ref().filter(|sealed| sealed.rows() > rows.dead_count) else {
            return Ok(vec![Vec::new(); queries.len()]);
        };
        let options = self.options();
        let passing = filter.map_or(u64::MAX, |filter| filter.count()).min(sealed.rows() as u64) as usize;
        let ids = sealed.ids();
        let accept =
            |place: usize| !rows.is_dead(place) && filter.is_none_or(|filter| filter.contains(ids[place]));
        // Of the rows that a filter lets through few may be in the nearest lists.
        let probes = self.probes(&options, sealed, params) * sealed.rows() / passing.max(1);
        let request = Request {
            queries,
            k,
            rescore: self.rescore(&options, sealed, k, params).min(sealed.places()),
            probes,
            breadth: self.breadth(&options, params),
            passing,
            accept: (filter.is_some() || rows.dead_count > 0).then_some(&accept),
            threads: self.host.threads(),
        };
        let is_small = sealed.rows() <= options.exact_below || passing <= request.rescore;
        let few = match sealed.bits() {
            1.. => sealed.scanned_rows(probes) / SPARSE,
            0 => (WALKED * sealed.rows() as f64 * request.breadth as f64).sqrt(),
        };
        let are_few = filter.is_some() && passing as f64 <= few;
        if !is_small && !are_few {
            return sealed.search(cx, &request);
        }
        let places = match filter {
            Some(filter) if passing < sealed.rows() => {
                let mut places = sealed.find_all(filter.iter());
                places.retain(|&place| !rows.is_dead(place as usize));
                places
            }
            _ => {
                let passes = |place| request.accept.is_none_or(|accept| accept(place));
                let is_row = |place: usize| ids[place] != u64::MAX && passes(place);
                (0..sealed.places() as u32).filter(|&place| is_row(place as usize)).collect()
            }
        };
        if is_small { sealed.exact(cx, &request, &places) } else { sealed.among(cx, &request, &places) }
    }

    fn search_staged(
        &self,
        cx: &dyn CallContext,
        rows: &Rows,
        queries: &[Vec<f32>],
        k: usize,
        filter: Option<IdFilter<'_>>,
    ) -> Result<Vec<Best>> {
        let staged = &rows.staged;
        // More than 2^32 rows are not staged: they would be sealed before.
        let all = 0..staged.len() as u32;
        let listed: Vec<u32> = match filter {
            Some(filter) if filter.count() < staged.len() as u64 => {
                filter.iter().filter_map(|id| staged.find(id)).map(|row| row as u32).collect()
            }
            Some(filter) => all.filter(|&row| filter.contains(staged.id(row as usize))).collect(),
            None => all.collect(),
        };
        let exact = Exact { kernel: self.kernel, spec: self.spec, threads: self.host.threads(), queries, k };
        exact.among(cx, &listed, |row, _, score| {
            let (vector, scale) = staged.row(row);
            score(staged.id(row), vector, scale);
        })
    }
}
