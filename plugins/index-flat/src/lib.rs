//! Exact search over f32 vectors: a query is compared with every one of them.
//!
//! A saved index is mapped and used in place; what is written to it after that lies in memory until
//! the next save.

mod file;
mod kernel;
mod rows;
mod scan;
#[cfg(test)]
mod tests;
mod top;

use file::Mapped;
use kernel::Kernel;
use magray_plugin_api::{
    CallContext, Capabilities, Component, CreateVectorIndex, Error, ErrorCode, Hit, Host, IdFilter,
    IndexSpec, IndexStats, MemoryUse, Metric, Plugin, Result, SearchParams, VectorIndex,
};
use rows::{Rows, check_lengths, prepare};
use scan::Scan;
use serde::Deserialize;
use std::{
    fmt,
    path::Path,
    sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
};

/// The plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-index-flat",
    version: env!("CARGO_PKG_VERSION"),
    summary: "exact search: compares the query with every vector",
    components: &[Component::index::<Flat>("flat")],
};

/// The most that [`Options::batch`] may be: it bounds the memory for scores.
const LARGEST_BATCH: usize = 4096;

/// Queries for which the vectors are read once, in one or more batches; more of them go in turns.
const PASS: usize = 256;

/// Rows that are written at once, before searches get their turn.
const CHUNK: usize = 1024;

/// The options of the index in the user's TOML.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Queries that are compared with some rows together, where a call brings more of them. 1 to 4096; 0 chooses by
    /// the threads that the host grants, 32 up to 4 of them, 64 up to 8, 128 up to 16 and 256 beyond; 256 where rows
    /// are compared by products of matrices, which gain with their size.
    pub batch: usize,
}

/// Queries a batch where the options leave it open.
fn batch_for(threads: usize) -> usize {
    match threads {
        0..=4 => 32,
        5..=8 => 64,
        9..=16 => 128,
        _ => 256,
    }
}

/// An exact index.
///
/// Searches run beside each other; a writer holds them off for at most 1024 rows at a time.
pub struct Flat {
    spec: IndexSpec,
    kernel: Kernel,
    host: &'static dyn Host,
    /// [`Options::batch`].
    batch: usize,
    rows: RwLock<Rows>,
}

impl fmt::Debug for Flat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Flat").field("spec", &self.spec).field("kernel", &self.kernel).finish_non_exhaustive()
    }
}

impl Flat {
    fn new(
        options: Options,
        spec: IndexSpec,
        mapped: Option<Mapped>,
        host: &'static dyn Host,
    ) -> Result<Self> {
        let batch = options.batch;
        if batch > LARGEST_BATCH {
            return Err(Error::new(
                ErrorCode::INVALID_CONFIG,
                format!("batch is {batch}; it goes from 1 to {LARGEST_BATCH}, and 0 chooses by threads"),
            ));
        }
        Ok(Self { spec, kernel: Kernel::detect(), host, batch, rows: RwLock::new(Rows::new(spec, mapped)) })
    }

    /// Queries that are compared together.
    fn batch(&self) -> usize {
        match self.batch {
            0 if cfg!(feature = "gemm") => PASS,
            0 => batch_for(self.host.threads()),
            batch => batch,
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
}

impl CreateVectorIndex for Flat {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = r#"{
        "type": "object",
        "additionalProperties": false,
        "properties": {"batch": {"type": "integer", "minimum": 0, "maximum": 4096, "default": 0}}
    }"#;

    fn create(options: Options, spec: IndexSpec, host: &'static dyn Host) -> Result<Self> {
        Self::new(options, spec, None, host)
    }

    fn open(options: Options, spec: IndexSpec, dir: &Path, host: &'static dyn Host) -> Result<Self> {
        Self::new(options, spec, Some(Mapped::open(spec, dir)?), host)
    }
}

impl VectorIndex for Flat {
    fn spec(&self) -> IndexSpec {
        self.spec
    }

    fn capabilities(&self) -> Capabilities {
        Capabilities { exact: true, concurrent_write: true, filtered: true, mapped: true }
    }

    fn stats(&self) -> IndexStats {
        self.read().stats()
    }

    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        self.spec.check_upsert(ids, vectors)?;
        check_lengths(self.spec, vectors)?;
        let chunks = ids.chunks(CHUNK).zip(vectors.chunks(CHUNK * self.spec.dim));
        for (done, (chunk, vectors)) in chunks.enumerate() {
            cx.check()?;
            cx.progress((done * CHUNK) as u64, ids.len() as u64);
            let mut rows = self.write();
            for (&id, vector) in chunk.iter().zip(vectors.chunks_exact(self.spec.dim)) {
                rows.upsert(id, vector);
            }
        }
        Ok(())
    }

    fn remove(&self, cx: &dyn CallContext, ids: &[u64]) -> Result<usize> {
        let mut removed = 0;
        for ids in ids.chunks(CHUNK) {
            cx.check()?;
            let mut rows = self.write();
            removed += ids.iter().filter(|&&id| rows.remove(id)).count();
        }
        Ok(removed)
    }

    fn search(
        &self,
        cx: &dyn CallContext,
        queries: &[f32],
        k: usize,
        _params: SearchParams,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        self.spec.check_search(queries, k, out)?;
        check_lengths(self.spec, queries)?;
        cx.check()?;
        out.fill(Hit::NONE);
        let rows = self.read();
        if k == 0 || rows.live() == 0 {
            return Ok(());
        }
        let batch = self.batch();
        let pass = PASS.max(batch);
        for (queries, out) in queries.chunks(pass * self.spec.dim).zip(out.chunks_mut(pass * k)) {
            let (queries, norms): (Vec<_>, Vec<_>) =
                queries.chunks_exact(self.spec.dim).map(|query| prepare(self.spec, query)).unzip();
            let queries = queries.concat();
            let (kernel, queries) = (self.kernel, &queries[..]);
            let scan = Scan { rows: &rows, kernel, queries, norms: &norms, batch, k, filter };
            let found = scan.run(cx, self.host.threads())?;
            for ((mut hits, query), out) in
                found.into_iter().zip(queries.chunks_exact(self.spec.dim)).zip(out.chunks_exact_mut(k))
            {
                match self.spec.metric {
                    Metric::L2 => {
                        hits.iter_mut().for_each(|hit| *hit = rows.exact_l2(query, *hit));
                        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
                    }
                    Metric::Cosine => hits.iter_mut().for_each(|hit| hit.score = hit.score.clamp(-1.0, 1.0)),
                    Metric::Dot => {}
                }
                out[..hits.len()].copy_from_slice(&hits);
            }
        }
        Ok(())
    }

    fn save(&self, cx: &dyn CallContext, dir: &Path) -> Result<()> {
        self.read().save(cx, dir)
    }

    /// Reads a mapped file once, by searching it.
    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        let mut query = vec![0.0; self.spec.dim];
        query[0] = 1.0;
        self.search(cx, &query, 1, SearchParams::default(), None, &mut [Hit::NONE])
    }

    fn memory_use(&self) -> MemoryUse {
        self.read().memory_use()
    }

    fn describe(&self) -> String {
        let rows = self.read();
        let (kernel, batch, mapped) = (self.kernel.name(), self.batch(), rows.boundary());
        let written = rows.len() - mapped;
        format!(r#"{{"kernel":"{kernel}","batch":{batch},"mapped_rows":{mapped},"memory_rows":{written}}}"#)
    }
}
