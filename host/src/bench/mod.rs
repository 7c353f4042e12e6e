//! What `magray bench` measures: how right the vectors of an embedding backend are, on data with published
//! figures, and how fast they come; how fast indexes are, and how much of what is near they find; how much caches
//! answer; all of it together; what is granted while memory becomes short, how soon a commit is found, and how a whole
//! engine bears a load.
//!
//! Backends are called directly, without cache and fallback, so a figure belongs to the backend that it names.
mod batches;
mod cache;
mod data;
mod governor;
mod index;
mod machine;
mod matrix;
mod metrics;
mod npy;
mod quality;
mod retrieval;
mod sync;
mod texts;
mod throughput;
mod worker;
mod workload;
mod zipf;

pub use batches::{BatchRate, BatchRates, BatchRequest, measure_batches};
pub use cache::{
    Answered, CacheFigures, CacheSize, CacheTrace, OperationCost, PolicyFigures, Replay, ReplayReply,
    Replayed, SizeFigures, measure_cache, serve_replay,
};
pub use data::{DataSets, Limit};
pub use governor::{GovernorFigures, GovernorPoint, GovernorRequest, measure_governor};
pub use index::{
    At, Build, Curve, Filtered, Histogram, IndexBackend, IndexFigures, IndexReply, IndexRequest, IndexTask,
    Judged, Point, Searched, Setting, Speed, Sweep, VectorSet, measure_index, metric_named, serve_index,
};
pub use machine::{Conditions, Machine};
pub use matrix::{
    CacheSummary, Constraints, EmbedFigures, Fault, Figure, IndexSummary, Matrix, MatrixRequest, MatrixSet,
    Names, Objective, OwnRecord, PointSummary, Recommendation, Row, Step, html, measure_matrix, recommend,
    with_model,
};
pub use metrics::Ranking;
pub use quality::{Measurement, Quality, QualityData, measure_quality};
pub use retrieval::{Found, RetrievalData, Way, measure_retrieval};
pub use sync::{SyncCommit, SyncFigures, SyncStored, measure_sync, sync_steps};
pub use texts::BenchTexts;
pub use throughput::{
    Contestant, Latency, Ran, Rate, Throughput, ThroughputRequest, link_models, measure_throughput,
};
pub use worker::{Held, Ready, Reply, Request, serve};
pub use workload::{
    Inserts, MemoryTrend, Operations, Quantiles, Sample, Searches, Sla, Verdict, Workload, WorkloadRequest,
    measure_searches, run_workload,
};

use crate::{
    engine::{EngineError, Setup},
    plugins::{PluginError, Plugins},
};
use magray_plugin_api::{CallContext, Embedder, Error as ApiError, ErrorCode, Role};
use std::path::PathBuf;

/// Why something could not be measured.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum BenchError {
    #[error("{}: {fault}", path.display())]
    Data { path: PathBuf, fault: String },
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("the backend '{backend}' failed: {error}")]
    Backend { backend: String, error: ApiError },
    #[error("the backend '{backend}' is broken: {fault}")]
    Broken { backend: String, fault: String },
    #[error("{name}: {fault}")]
    Worker { name: String, fault: String },
    #[error(transparent)]
    Engine(EngineError),
    #[error("interrupted")]
    Interrupted,
}

impl From<EngineError> for BenchError {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::Interrupted => Self::Interrupted,
            error => Self::Engine(error),
        }
    }
}

impl BenchError {
    /// That a call of a backend failed.
    fn failed(backend: &str, error: ApiError) -> Self {
        match error.code() {
            ErrorCode::CANCELLED => Self::Interrupted,
            _ => Self::Backend { backend: backend.to_owned(), error },
        }
    }
}

/// An embedding backend under measurement.
#[expect(missing_debug_implementations, reason = "a backend has nothing to show")]
pub struct Backend {
    name: String,
    embedder: Box<dyn Embedder>,
}

impl Backend {
    /// Loads the backend of a profile, or of the component of that name.
    ///
    /// # Errors
    /// [`BenchError::Plugin`].
    pub fn open(setup: &Setup, plugins: &Plugins, name: &str) -> Result<Self, BenchError> {
        Ok(Self { name: name.to_owned(), embedder: setup.embedder(plugins, name)? })
    }

    /// The name that it was chosen by.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The backend itself.
    pub fn embedder(&self) -> &dyn Embedder {
        &*self.embedder
    }

    /// Tokens that it computes for each text.
    fn count_tokens(&self, texts: &[&str]) -> Result<Vec<u32>, BenchError> {
        let mut counts = vec![0; texts.len()];
        self.embedder.count_tokens(texts, &mut counts).map_err(|error| self.failed(error))?;
        Ok(counts)
    }

    /// The vectors of `texts`, `[texts.len(), dim]` row-major, by calls of `batch` texts in the order in which
    /// they stand. `done` is told how many texts have a vector.
    fn embed(
        &self,
        cx: &dyn CallContext,
        texts: &[&str],
        role: Role,
        batch: usize,
        done: &mut dyn FnMut(usize),
    ) -> Result<Vec<f32>, BenchError> {
        let info = self.embedder.info();
        let batch = batch.clamp(1, info.max_batch);
        // What the backend does not write stays NaN, and is found.
        let mut vectors = vec![f32::NAN; texts.len() * info.dim];
        for (texts, out) in texts.chunks(batch).zip(vectors.chunks_mut(batch * info.dim)) {
            cx.check()
                .and_then(|()| self.embedder.embed(cx, texts, role, out))
                .map_err(|error| self.failed(error))?;
            done(texts.len());
        }
        if vectors.iter().any(|v| !v.is_finite()) {
            let fault = "it returned a vector with NaN, or left some of it unwritten".to_owned();
            return Err(BenchError::Broken { backend: self.name.clone(), fault });
        }
        Ok(vectors)
    }

    fn failed(&self, error: ApiError) -> BenchError {
        BenchError::failed(&self.name, error)
    }
}
