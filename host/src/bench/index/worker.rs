//! What a worker process does with an index: build it, open it, search it.
//!
//! Tasks and replies are lines of JSON on its standard input and output, and any program that speaks them is a peer;
//! `scripts/bench-index-peers.py` is one. A process that has built an index ends, and another one opens it, so that
//! the memory that is seen is that of searching.
use super::{
    super::{
        BenchError,
        data::fault_of,
        npy::Npy,
        worker::{Held, PASSES, Spent, unfit},
    },
    metric_named,
};
use crate::{engine::Setup, plugins::Plugins, store::IdSet};
use magray_plugin_api::{
    CallContext, ComponentKind, ErrorCode, Hit, IdFilter, IndexSpec, Metric, SearchParams, VectorIndex,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// What a worker is asked. Paths are absolute.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexTask {
    /// The first: read the first `query_count` rows of the table `queries` (.npy, f16 or f32) and be ready for the
    /// vectors of the table `base`, whose row numbers are their ids. `metric` is cosine, dot or l2, and `k` the
    /// number of neighbours of each search. Nothing of the base need be read yet.
    #[expect(missing_docs, reason = "as said")]
    Start { threads: usize, base: PathBuf, queries: PathBuf, query_count: usize, metric: String, k: usize },
    /// Build an index of the whole base, and save it in this folder, which is empty. What is counted is the index's
    /// work and not the reading of the base.
    #[expect(missing_docs, reason = "as said")]
    Build { folder: PathBuf },
    /// Open what another process has saved there.
    #[expect(missing_docs, reason = "as said")]
    Open { folder: PathBuf },
    /// Search all queries by calls of `batch` of them, with the knobs set so, as often as fits into 0.2 s and at
    /// least once. `filter` is a file of the ids that may be found, ascending u32, little-endian.
    #[expect(missing_docs, reason = "as said")]
    Search { setting: Setting, batch: usize, filter: Option<PathBuf> },
}

/// The values of the knobs that were set.
pub type Setting = BTreeMap<String, String>;

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IndexReply {
    /// To the start: what runs, and with which options.
    #[expect(missing_docs, reason = "as said")]
    Ready { engine: String, options: String },
    /// CPU-seconds of the whole process by its own clock, and seconds by the wall's.
    #[expect(missing_docs, reason = "as said")]
    Built { cpu_s: f64, seconds: f64 },
    /// Seconds of opening and of the first search thereafter; whether it takes filters; the settings to sweep, the
    /// cheapest first.
    #[expect(missing_docs, reason = "as said")]
    Opened { seconds: f64, first_s: f64, filters: bool, settings: Vec<Setting> },
    /// CPU-seconds of one pass over the queries, by the mean; seconds of each call of all passes; the ids that were
    /// found for each query, best first.
    #[expect(missing_docs, reason = "as said")]
    Found {
        cpu_s: f64,
        seconds: Vec<f64>,
        ids: Vec<Vec<u64>>,
        /// What the plugin says that it holds; peers need not tell.
        #[serde(default)]
        held: Option<Held>,
    },
    /// It cannot.
    Error(String),
}

/// The knobs of our own index backends that are turned, and their values, ascending.
#[derive(Clone, Debug)]
pub struct Sweep {
    /// Of [`SearchParams::ef`].
    pub ef: Vec<u32>,
    /// Of [`SearchParams::rescore`].
    pub rescore: Vec<u32>,
    /// Of [`VectorIndex::tune`], by name.
    pub tune: Vec<(String, Vec<String>)>,
}

/// Rows that are given to an index in one call.
const CHUNK: usize = 8192;
/// Queries by which it is seen whether a knob does anything.
const PROBED: usize = 64;

/// An index backend of the config.
#[expect(missing_debug_implementations, reason = "plugins have nothing to show")]
pub struct IndexBackend {
    plugins: Plugins,
    component: String,
    /// As JSON.
    options: String,
}

impl IndexBackend {
    /// The one in force; loads its plugin.
    ///
    /// # Errors
    /// [`BenchError::Plugin`].
    pub fn open(setup: &Setup) -> Result<Self, BenchError> {
        let plugins = setup.plugins();
        let selected = setup.config.memory.index.selected();
        let component = selected.profile.plugin.clone();
        let options = selected.options_json(&plugins.options_schema(ComponentKind::Index, &component)?);
        Ok(Self { plugins, component, options })
    }

    fn make(&self, spec: IndexSpec, folder: Option<&Path>) -> Result<Box<dyn VectorIndex>, BenchError> {
        Ok(self.plugins.index(&self.component, &self.options, spec, folder)?)
    }
}

/// Serves one index backend. `open` makes it for so many threads; `receive` gives the next task, or none where there
/// are no more.
///
/// # Errors
/// Only what `receive` and `send` return: faults of the backend are replies.
pub fn serve_index<E>(
    cx: &dyn CallContext,
    sweep: &Sweep,
    mut open: impl FnMut(usize) -> Result<IndexBackend, BenchError>,
    mut receive: impl FnMut() -> Result<Option<IndexTask>, E>,
    mut send: impl FnMut(&IndexReply) -> Result<(), E>,
) -> Result<(), E> {
    let (mut started, mut opened) = (None, None);
    while let Some(task) = receive()? {
        let answered = match (task, &started, &opened) {
            (IndexTask::Start { threads, base, queries, query_count, metric, k }, ..) => open(threads)
                .and_then(|backend| Worker::start(backend, &base, &queries, query_count, &metric, k))
                .and_then(|worker| {
                    let ready = worker.ready()?;
                    started = Some(worker);
                    Ok(ready)
                }),
            (IndexTask::Build { folder }, Some(worker), _) => worker.build(cx, &folder),
            (IndexTask::Open { folder }, Some(worker), _) => {
                worker.open(cx, &folder, sweep).map(|(index, reply)| {
                    opened = Some(index);
                    reply
                })
            }
            (IndexTask::Search { setting, batch, filter }, Some(worker), Some(index)) => {
                worker.search(cx, &**index, &setting, batch, filter.as_deref())
            }
            _ => Ok(IndexReply::Error("it has not started, or opened nothing".into())),
        };
        send(&answered.unwrap_or_else(|error| IndexReply::Error(error.to_string())))?;
    }
    Ok(())
}

struct Worker {
    backend: IndexBackend,
    spec: IndexSpec,
    base: PathBuf,
    /// `[n, dim]` row-major.
    queries: Vec<f32>,
    k: usize,
}

impl Worker {
    fn start(
        backend: IndexBackend,
        base: &Path,
        queries: &Path,
        query_count: usize,
        metric: &str,
        k: usize,
    ) -> Result<Self, BenchError> {
        let metric = metric_named(metric).ok_or_else(|| fault_of(base, "of a metric that is not known"))?;
        let spec = IndexSpec { dim: Npy::open(base)?.width(), metric };
        let mut queries = Npy::open(queries)?;
        let queries = queries.floats(0..query_count)?;
        Ok(Self { backend, spec, base: base.to_owned(), queries, k })
    }

    /// Loads the plugin, so that its code is not counted as memory of the index, and finds out whether it takes the
    /// options.
    fn ready(&self) -> Result<IndexReply, BenchError> {
        let IndexBackend { plugins, component, options } = &self.backend;
        let manifest = plugins.provider(ComponentKind::Index, component)?;
        let engine = format!("{} {}", manifest.id, manifest.version);
        self.backend.make(self.spec, None)?;
        Ok(IndexReply::Ready { engine, options: options.clone() })
    }

    fn build(&self, cx: &dyn CallContext, folder: &Path) -> Result<IndexReply, BenchError> {
        let mut base = Npy::open(&self.base)?;
        let mut spent = Spent::default();
        let index = spent.on(|| self.backend.make(self.spec, None))??;
        let failed = |error| BenchError::failed(&self.backend.component, error);
        for start in (0..base.rows()).step_by(CHUNK) {
            let rows = start..base.rows().min(start + CHUNK);
            let ids: Vec<u64> = rows.clone().map(|row| row as u64).collect();
            let vectors = base.floats(rows)?;
            spent.on(|| index.upsert(cx, &ids, &vectors))?.map_err(failed)?;
        }
        spent.on(|| index.save(cx, folder))?.map_err(failed)?;
        Ok(IndexReply::Built { cpu_s: spent.cpu.as_secs_f64(), seconds: spent.wall.as_secs_f64() })
    }

    fn open(
        &self,
        cx: &dyn CallContext,
        folder: &Path,
        sweep: &Sweep,
    ) -> Result<(Box<dyn VectorIndex>, IndexReply), BenchError> {
        let start = Instant::now();
        let index = self.backend.make(self.spec, Some(folder))?;
        let seconds = start.elapsed().as_secs_f64();
        let start = Instant::now();
        self.answer(cx, &*index, &self.queries[..self.spec.dim], SearchParams::default(), None)?;
        let first_s = start.elapsed().as_secs_f64();
        let settings = self.settings(cx, &*index, sweep)?;
        let filters = index.capabilities().filtered;
        Ok((index, IndexReply::Opened { seconds, first_s, filters, settings }))
    }

    /// All combinations of the knobs that change what is found.
    fn settings(
        &self,
        cx: &dyn CallContext,
        index: &dyn VectorIndex,
        sweep: &Sweep,
    ) -> Result<Vec<Setting>, BenchError> {
        let mut settings = vec![Setting::new()];
        if index.capabilities().exact {
            return Ok(settings);
        }
        let mut knobs: Vec<(&str, Vec<String>)> = Vec::new();
        let probed = &self.queries[..self.queries.len().min(PROBED * self.spec.dim)];
        for (name, values) in [(EF, &sweep.ef), (RESCORE, &sweep.rescore)] {
            let found = |value: &u32| {
                let params = self.set(index, &Setting::from([(name.to_owned(), value.to_string())]))?;
                self.answer(cx, index, probed, params, None)
            };
            if let (Some(least), Some(most)) = (values.first(), values.last())
                && (least == most || found(least)? != found(most)?)
            {
                knobs.push((name, values.iter().map(ToString::to_string).collect()));
            }
        }
        for (name, values) in &sweep.tune {
            let Some(value) = values.first() else { continue };
            match index.tune(name, value) {
                Ok(()) => knobs.push((name, values.clone())),
                Err(error) if error.code() == ErrorCode::UNSUPPORTED => {}
                Err(error) => return Err(BenchError::failed(&self.backend.component, error)),
            }
        }
        for (name, values) in knobs {
            let with = |setting: &Setting| {
                let values = values.iter();
                values
                    .map(|value| {
                        let mut setting = setting.clone();
                        setting.insert(name.to_owned(), value.clone());
                        setting
                    })
                    .collect::<Vec<_>>()
            };
            settings = settings.iter().flat_map(with).collect();
        }
        Ok(settings)
    }

    fn search(
        &self,
        cx: &dyn CallContext,
        index: &dyn VectorIndex,
        setting: &Setting,
        batch: usize,
        filter: Option<&Path>,
    ) -> Result<IndexReply, BenchError> {
        let params = self.set(index, setting)?;
        let allowed = filter.map(read_ids).transpose()?;
        let filter = allowed.as_ref().map(IdSet::as_filter);
        let batches = || self.queries.chunks(batch.max(1) * self.spec.dim);
        let (mut spent, mut passes) = (Spent::default(), 0);
        let (mut seconds, mut hits) = (Vec::new(), Vec::new());
        let start = Instant::now();
        while passes == 0 || start.elapsed() < PASSES {
            hits = spent.on(|| {
                let call = |queries: &[f32]| {
                    let start = Instant::now();
                    let hits = self.answer(cx, index, queries, params, filter)?;
                    seconds.push(start.elapsed().as_secs_f64());
                    Ok(hits)
                };
                batches().map(call).collect::<Result<Vec<_>, BenchError>>()
            })??;
            passes += 1;
        }
        let ids = hits.iter().flatten().collect::<Vec<_>>();
        let row = |hits: &[&Hit]| hits.iter().filter(|hit| !hit.is_none()).map(|hit| hit.id).collect();
        let ids = ids.chunks(self.k).map(row).collect();
        let held = Some(index.memory_use().into());
        Ok(IndexReply::Found { cpu_s: spent.cpu.as_secs_f64() / f64::from(passes), seconds, ids, held })
    }

    /// Turns the knobs: those that are no parameters of a search stay so.
    fn set(&self, index: &dyn VectorIndex, setting: &Setting) -> Result<SearchParams, BenchError> {
        let mut params = SearchParams::default();
        for (name, value) in setting {
            let number = || value.parse().map_err(|_| unfit(format!("{name} is '{value}' and no number")));
            match name.as_str() {
                EF => params.ef = number()?,
                RESCORE => params.rescore = number()?,
                _ => index
                    .tune(name, value)
                    .map_err(|error| BenchError::failed(&self.backend.component, error))?,
            }
        }
        Ok(params)
    }

    fn answer(
        &self,
        cx: &dyn CallContext,
        index: &dyn VectorIndex,
        queries: &[f32],
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
    ) -> Result<Vec<Hit>, BenchError> {
        let mut hits = vec![Hit::NONE; queries.len() / self.spec.dim * self.k];
        index
            .search(cx, queries, self.k, params, filter, &mut hits)
            .map_err(|error| BenchError::failed(&self.backend.component, error))?;
        Ok(hits)
    }
}

const EF: &str = "ef";
const RESCORE: &str = "rescore";

fn read_ids(path: &Path) -> Result<IdSet, BenchError> {
    let bytes = fs::read(path).map_err(|error| fault_of(path, error.to_string()))?;
    let (ids, rest) = bytes.as_chunks();
    if !rest.is_empty() {
        return Err(fault_of(path, "no file of u32"));
    }
    Ok(ids.iter().map(|&id| u64::from(u32::from_le_bytes(id))).collect())
}

/// As `--metric` and the tasks have it.
pub(super) fn name_of(metric: Metric) -> &'static str {
    match metric {
        Metric::Cosine => "cosine",
        Metric::Dot => "dot",
        Metric::L2 => "l2",
    }
}
