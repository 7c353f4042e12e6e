//! Texts to vectors: the cache, then one pipeline that batches the texts of all callers, then a chain of
//! backends that stand in for one another. Their answers are checked.
mod batch;
mod breaker;
mod cache;
mod chain;
mod member;
mod metrics;
mod parity;
mod pipeline;
mod queue;
#[cfg(test)]
mod tests;

pub use batch::Urgency;
pub use breaker::BreakerOptions;
pub use cache::{CacheLimits, EmbeddingCache, MemoryCacheStats};
pub use member::{Candidate, Made, Make, MemberStatus};
pub use metrics::Counters;
pub use parity::Gate;
pub use pipeline::PipelineOptions;

use crate::{
    config::Config,
    plugins::PluginError,
    store::{Lookups, StoreError},
};
use chain::{Chain, Clock};
use magray_plugin_api::{
    CallContext, DeviceReport, Embedder, EmbedderInfo, Error as ApiError, MemoryUse, Role,
};
use metrics::Metrics;
use pipeline::Pipeline;
use serde::Serialize;
use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

/// The widest vector that is believed; models have some thousand numbers at most.
const MAX_DIM: usize = 1 << 16;

/// Why texts have no vectors.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum EmbeddingError {
    #[error("the embedding backend '{backend}' failed: {error}")]
    Backend { backend: String, error: ApiError },
    #[error(
        "the embedding backend '{backend}' is broken: {fault}; run `magray plugin list` to see where it comes from"
    )]
    Broken { backend: String, fault: String },
    #[error(
        "the embedding backend '{backend}' hangs: a call has not returned in [ai.embedding.pipeline] call_timeout_ms"
    )]
    Hung { backend: String },
    #[error("{0}")]
    Start(Arc<PluginError>),
    #[error(
        "the embedding backend '{backend}' cannot stand in for '{first}': its vectors are of another space (model {model}, not {first_model}); give both the same model, or take it out of `fallback`"
    )]
    OtherSpace { backend: String, model: String, first: String, first_model: String },
    #[error(
        "the embedding backend '{backend}' does not compute what '{reference}' computes with the model {model}: for \"{probe}\" the cosine is {cosine:.4}, and {least} is the least; use one of the two only"
    )]
    Disagrees { backend: String, reference: String, model: String, probe: String, cosine: f32, least: f32 },
    #[error("no embedding backend is left: {failures}")]
    NoneLeft { failures: String },
    #[error("too busy: {waiting} texts wait to be embedded; try again in {:.1} s", retry_after.as_secs_f32())]
    Overloaded { waiting: usize, retry_after: Duration },
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// How an [`Embedding`] works.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddingOptions {
    /// How texts are batched.
    pub pipeline: PipelineOptions,
    /// When a backend is left alone.
    pub breaker: BreakerOptions,
    /// How long a call of a backend may take before it counts as hung.
    pub call_timeout: Duration,
}

impl From<&Config> for EmbeddingOptions {
    fn from(config: &Config) -> Self {
        let settings = &config.ai.embedding;
        let (pipeline, breaker) = (&settings.pipeline, &settings.breaker);
        Self {
            pipeline: PipelineOptions {
                max_wait_interactive: Duration::from_millis(pipeline.max_wait_interactive_ms),
                max_wait_bulk: Duration::from_millis(pipeline.max_wait_bulk_ms),
                queue_texts: pipeline.queue_texts,
                queue_bytes: pipeline.queue_bytes,
                token_budget: pipeline.token_budget,
                workers: pipeline.workers,
                threads: config.plugins.thread_budget(),
                gpu_mem_limit: settings.gpu_config.gpu_mem_limit,
            },
            breaker: BreakerOptions {
                failures: breaker.failures,
                error_rate: f64::from(breaker.error_rate_percent) / 100.0,
                window: breaker.window,
                cool_down: Duration::from_millis(breaker.cool_down_ms),
                max_cool_down: Duration::from_millis(breaker.max_cool_down_ms),
            },
            call_timeout: Duration::from_millis(pipeline.call_timeout_ms),
        }
    }
}

/// Embedding backends of one space with the pipeline and the cache in front of them.
///
/// Threads: any number of calls at once. Backends are called on threads of the pipeline, one unless the
/// options say otherwise.
#[expect(missing_debug_implementations, reason = "a backend has nothing to show")]
pub struct Embedding {
    info: EmbedderInfo,
    chain: Arc<Chain>,
    pipeline: Pipeline,
    cache: EmbeddingCache,
}

/// Vectors, and who computed them.
#[expect(missing_docs, reason = "Served's")]
#[derive(Debug)]
pub struct Embedded {
    /// `[texts, dim]` row-major: unit vectors, or zero where the model knows no word of the text.
    pub vectors: Vec<f32>,
    pub backend: String,
    /// The device that ran.
    pub device: DeviceReport,
    /// Why it was not the backend or the device that was asked for; none where it was.
    pub fallback: Option<String>,
    /// Whether the cache knew all of them, so that no backend ran. Who would have is named all the same:
    /// what the cache holds was computed by one that agrees with it.
    pub cached: bool,
}

/// How the backends are, and what they have done.
#[derive(Clone, Debug, Serialize)]
pub struct EmbeddingStatus {
    /// The profile that the next call will ask; none where all hang.
    pub serving: Option<String>,
    /// The backends, in the order in which they are asked.
    pub members: Vec<MemberStatus>,
    /// What was counted since the start.
    #[serde(flatten)]
    pub counters: Counters,
}

/// Who computed vectors.
#[derive(Clone)]
struct Served {
    profile: Arc<str>,
    /// Why it was not the first of the chain.
    fallback: Option<Arc<str>>,
    embedder: Arc<dyn Embedder>,
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Served").field("profile", &self.profile).finish_non_exhaustive()
    }
}

impl Embedding {
    /// Loads the first of `candidates` that can be had; the others stand in for it where it fails. The
    /// `gate` is asked before any of them is used.
    ///
    /// # Errors
    /// Why none can be had.
    pub fn new(
        candidates: Vec<Candidate>,
        gate: Option<Gate>,
        cache: EmbeddingCache,
        options: &EmbeddingOptions,
    ) -> Result<Self, EmbeddingError> {
        Self::with_clock(candidates, gate, cache, options, Arc::new(Instant::now))
    }

    fn with_clock(
        candidates: Vec<Candidate>,
        gate: Option<Gate>,
        cache: EmbeddingCache,
        options: &EmbeddingOptions,
        clock: Clock,
    ) -> Result<Self, EmbeddingError> {
        let chain = Chain::new(candidates, gate, options.breaker, options.call_timeout, clock);
        let info = chain.start()?;
        let pipeline = Pipeline::new(chain.clone(), options.pipeline);
        let cache = cache.of(&info);
        Ok(Self { info, chain, pipeline, cache })
    }

    /// Width, limits and space.
    pub fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    /// The name that it was chosen by: that of the first backend.
    pub fn backend(&self) -> &str {
        self.chain.members.first().map_or("", |member| &member.profile)
    }

    /// The cache in front of it.
    pub fn cache(&self) -> &EmbeddingCache {
        &self.cache
    }

    /// The device of the backend that the next call will ask.
    pub fn device(&self) -> DeviceReport {
        self.chain.serving().map(|(_, backend)| backend.embedder.device()).unwrap_or_default()
    }

    /// Memory that each backend says it holds, of those that are loaded, by its profile.
    pub fn memory(&self) -> Vec<(String, MemoryUse)> {
        let members = self.chain.members.iter();
        members.filter_map(|member| Some((member.profile.to_string(), member.memory()?))).collect()
    }

    /// How the backends are, and what they have done.
    pub fn status(&self) -> EmbeddingStatus {
        let serving = self.chain.serving().map(|(place, _)| self.chain.members[place].profile.to_string());
        let members = self.chain.members.iter().map(member::Member::status).collect();
        EmbeddingStatus { serving, members, counters: self.chain.metrics.snapshot() }
    }

    /// From now on the next backend of the chain is loaded and warm before it is needed. For programs that
    /// live long enough to need it.
    pub fn keep_standby(&self) {
        self.chain.keep_standby();
    }

    /// The vectors of `texts`, `[texts.len(), dim]` row-major: unit vectors, or zero where the
    /// model knows no word of the text. For bulk work, see [`Urgency`].
    ///
    /// # Errors
    /// [`EmbeddingError`].
    pub fn embed(
        &self,
        cx: &dyn CallContext,
        texts: &[&str],
        role: Role,
    ) -> Result<Vec<f32>, EmbeddingError> {
        Ok(self.embed_by(cx, texts, role, Urgency::Bulk)?.0)
    }

    /// As [`Self::embed`], for somebody who waits for it, and says who answered.
    ///
    /// # Errors
    /// [`EmbeddingError`], among them `Overloaded`.
    pub fn answer(
        &self,
        cx: &dyn CallContext,
        texts: &[&str],
        role: Role,
    ) -> Result<Embedded, EmbeddingError> {
        let (vectors, served) = self.embed_by(cx, texts, role, Urgency::Interactive)?;
        let cached = served.is_none();
        let served = served
            .or_else(|| self.chain.serving().map(|(place, backend)| self.chain.served_by(place, &backend)));
        let device = served.as_ref().map(|served| served.embedder.device()).unwrap_or_default();
        let of_device = (!device.fallback_reason.is_empty()).then(|| device.fallback_reason.clone());
        Ok(Embedded {
            vectors,
            backend: served.as_ref().map_or(self.backend(), |served| &served.profile).to_owned(),
            fallback: served.and_then(|served| Some(served.fallback?.to_string())).or(of_device),
            device,
            cached,
        })
    }

    fn embed_by(
        &self,
        cx: &dyn CallContext,
        texts: &[&str],
        role: Role,
        urgency: Urgency,
    ) -> Result<(Vec<f32>, Option<Served>), EmbeddingError> {
        let dim = self.info.dim;
        let keys: Vec<_> = texts.iter().map(|text| cache::key(&self.info.space, role, text)).collect();
        let mut vectors = vec![0.0; texts.len() * dim];
        let mut missing = Vec::new();
        for (row, (key, out)) in keys.iter().zip(vectors.chunks_exact_mut(dim)).enumerate() {
            if !self.cache.get(key, out) {
                missing.push(row);
            }
        }
        Metrics::add(&self.chain.metrics.cache_hits, texts.len() - missing.len());
        let lookups = Lookups { asked: texts.len() as u64, answered: (texts.len() - missing.len()) as u64 };
        if missing.is_empty() {
            self.cache.note_lookups(role, lookups);
            return Ok((vectors, None));
        }
        let texts: Vec<&str> = missing.iter().map(|&row| texts[row]).collect();
        let mut served = None;
        for part in self.pipeline.embed(cx, &texts, role, urgency)? {
            self.cache.note_cost(part.text_time);
            let computed = part.vectors[part.first * dim..].chunks_exact(dim);
            for (&at, vector) in part.rows.iter().zip(computed) {
                let row = missing[at as usize];
                vectors[row * dim..][..dim].copy_from_slice(vector);
                self.cache.insert(&keys[row], vector);
            }
            served = Some(part.served);
        }
        // Now it is known what a text costs, and with that whether the disk is worth it.
        self.cache.note_lookups(role, lookups);
        Ok((vectors, served))
    }
}

/// Whether each of the vectors, `[n, dim]`, is written and of length 1, or zero.
fn check_vectors(backend: &str, vectors: &[f32], dim: usize) -> Result<(), EmbeddingError> {
    for vector in vectors.chunks_exact(dim) {
        let norm = norm(vector);
        if norm.is_finite() && (norm == 0.0 || (norm - 1.0).abs() < 0.01) {
            continue;
        }
        let fault = if norm.is_finite() {
            format!("it returned a vector of length {norm:.3} where 1 is due")
        } else {
            "it returned a vector with NaN, or left some of it unwritten".to_owned()
        };
        return Err(EmbeddingError::Broken { backend: backend.to_owned(), fault });
    }
    Ok(())
}

/// Eight sums beside one another, which a compiler makes one vector of; a single one would wait for each addition.
fn norm(vector: &[f32]) -> f32 {
    let (chunks, rest) = vector.as_chunks::<8>();
    let mut sums = [0.0_f32; 8];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, v)| *sum += v * v);
    }
    let rest: f32 = rest.iter().map(|v| v * v).sum();
    (sums.iter().sum::<f32>() + rest).sqrt()
}
