//! Texts to vectors: one embedding backend behind the cache, its answers checked.
mod cache;

pub use cache::{CacheLimits, EmbeddingCache, MemoryCacheStats};

use magray_plugin_api::{CallContext, Embedder, EmbedderInfo, Error as ApiError, Role};
use std::time::Instant;

/// The widest vector that is believed; models have some thousand numbers at most.
const MAX_DIM: usize = 1 << 16;

/// Why texts have no vectors.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum EmbeddingError {
    #[error("the embedding backend '{backend}' failed: {error}")]
    Backend { backend: String, error: ApiError },
    #[error(
        "the embedding backend '{backend}' is broken: {fault}; run `magray plugin list` to see where it comes from"
    )]
    Broken { backend: String, fault: String },
}

/// An embedding backend with the cache in front of it.
///
/// Threads: any number of calls at once.
#[expect(missing_debug_implementations, reason = "a backend has nothing to show")]
pub struct Embedding {
    backend: String,
    embedder: Box<dyn Embedder>,
    cache: EmbeddingCache,
}

impl Embedding {
    /// Puts `cache` in front of `embedder`; `backend` names it in messages.
    ///
    /// # Errors
    /// [`EmbeddingError::Broken`] where the backend contradicts its contract.
    pub fn new(
        backend: &str,
        embedder: Box<dyn Embedder>,
        cache: EmbeddingCache,
    ) -> Result<Self, EmbeddingError> {
        let info = embedder.info();
        if !(1..=MAX_DIM).contains(&info.dim) || info.max_batch == 0 {
            let fault = format!("it reports a width of {} and batches of {}", info.dim, info.max_batch);
            return Err(EmbeddingError::Broken { backend: backend.to_owned(), fault });
        }
        let cache = cache.of(info);
        Ok(Self { backend: backend.to_owned(), embedder, cache })
    }

    /// Width, limits and space.
    pub fn info(&self) -> &EmbedderInfo {
        self.embedder.info()
    }

    /// The name that it was chosen by.
    pub fn backend(&self) -> &str {
        &self.backend
    }

    /// The cache in front of it.
    pub fn cache(&self) -> &EmbeddingCache {
        &self.cache
    }

    /// The backend itself.
    pub fn embedder(&self) -> &dyn Embedder {
        &*self.embedder
    }

    /// The vectors of `texts`, `[texts.len(), dim]` row-major: unit vectors, or zero where the
    /// model knows no word of the text.
    ///
    /// # Errors
    /// [`EmbeddingError`].
    pub fn embed(
        &self,
        cx: &dyn CallContext,
        texts: &[&str],
        role: Role,
    ) -> Result<Vec<f32>, EmbeddingError> {
        let dim = self.info().dim;
        let keys: Vec<_> = texts.iter().map(|text| cache::key(&self.info().space, role, text)).collect();
        let mut vectors = vec![0.0; texts.len() * dim];
        let mut missing = Vec::new();
        for (row, (key, out)) in keys.iter().zip(vectors.chunks_exact_mut(dim)).enumerate() {
            if !self.cache.get(key, out) {
                missing.push(row);
            }
        }
        let texts: Vec<&str> = missing.iter().map(|&row| texts[row]).collect();
        let start = Instant::now();
        let computed = self.compute(cx, &texts, role)?;
        self.cache.note_cost(texts.len(), start.elapsed());
        for (&row, vector) in missing.iter().zip(computed.chunks_exact(dim)) {
            vectors[row * dim..][..dim].copy_from_slice(vector);
            self.cache.insert(&keys[row], vector);
        }
        Ok(vectors)
    }

    fn compute(&self, cx: &dyn CallContext, texts: &[&str], role: Role) -> Result<Vec<f32>, EmbeddingError> {
        let EmbedderInfo { dim, max_batch, .. } = *self.info();
        // What the backend does not write stays NaN, and is found.
        let mut vectors = vec![f32::NAN; texts.len() * dim];
        for (texts, out) in texts.chunks(max_batch).zip(vectors.chunks_mut(max_batch.saturating_mul(dim))) {
            self.embedder
                .embed(cx, texts, role, out)
                .map_err(|error| EmbeddingError::Backend { backend: self.backend.clone(), error })?;
            self.check(out)?;
        }
        Ok(vectors)
    }

    fn check(&self, vectors: &[f32]) -> Result<(), EmbeddingError> {
        for vector in vectors.chunks_exact(self.info().dim) {
            let norm = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
            if norm.is_finite() && (norm == 0.0 || (norm - 1.0).abs() < 0.01) {
                continue;
            }
            let fault = if norm.is_finite() {
                format!("it returned a vector of length {norm:.3} where 1 is due")
            } else {
                "it returned a vector with NaN, or left some of it unwritten".to_owned()
            };
            return Err(EmbeddingError::Broken { backend: self.backend.clone(), fault });
        }
        Ok(())
    }
}
