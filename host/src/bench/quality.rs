//! How right the vectors of a backend are.
use super::{
    Backend, BenchError, DataSets, Limit,
    data::{self, Document, Pair, References, Retrieval},
    metrics::{Ranking, dot, nearest, spearman},
};
use magray_plugin_api::{CallContext, DeviceReport, Role};
use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

/// The data to measure on, in memory.
#[derive(Clone, Debug)]
pub struct QualityData {
    pairs: Vec<(String, Vec<Pair>)>,
    retrieval: Vec<Retrieval>,
    references: Vec<(String, References)>,
    /// Only a part of each set, so published figures do not apply.
    partial: bool,
}

impl QualityData {
    /// Reads the sets.
    ///
    /// # Errors
    /// [`BenchError::Data`] for the first that is not as it should be.
    pub fn read(sets: &DataSets, limit: Limit) -> Result<Self, BenchError> {
        let named = |path: &PathBuf| data::stem(path);
        let pairs =
            sets.pairs.iter().map(|path| data::read_pairs(path, limit).map(|pairs| (named(path), pairs)));
        let retrieval = sets.retrieval.iter().map(|dir| data::read_retrieval(dir, limit));
        let references = sets
            .references
            .iter()
            .map(|path| data::read_references(path, limit).map(|read| (named(path), read)));
        Ok(Self {
            pairs: pairs.collect::<Result<_, _>>()?,
            retrieval: retrieval.collect::<Result<_, _>>()?,
            references: references.collect::<Result<_, _>>()?,
            partial: limit.0.is_some(),
        })
    }

    /// How many texts a backend has to embed, at most.
    pub fn texts(&self) -> usize {
        let pairs = self.pairs.iter().map(|(_, pairs)| pairs.len() * 2);
        let retrieval = self.retrieval.iter().map(|set| {
            set.documents.len() + set.splits.iter().map(|(_, questions)| questions.len()).sum::<usize>()
        });
        let references = self.references.iter().map(|(_, references)| references.items.len());
        pairs.chain(retrieval).chain(references).sum()
    }
}

/// What was found out about one backend.
#[derive(Clone, Debug)]
pub struct Quality {
    /// The profile.
    pub backend: String,
    /// Name of the model.
    pub model: String,
    /// Width of the vectors.
    pub dim: usize,
    /// What ran.
    pub device: DeviceReport,
    /// The figures.
    pub measurements: Vec<Measurement>,
    /// Reference vectors that are of another model, so that they say nothing here.
    pub skipped: Vec<String>,
    /// Texts that were embedded.
    pub texts: usize,
    /// Tokens of these texts.
    pub tokens: u64,
    /// How long embedding them took, data in memory and the backend loaded.
    pub took: Duration,
}

/// One figure.
#[derive(Clone, Debug, PartialEq)]
pub struct Measurement {
    /// The data set, with its split where it has some.
    pub set: String,
    /// What was measured.
    pub metric: &'static str,
    /// The figure.
    pub value: f64,
    /// What is known of this model on this set.
    pub reference: Option<f64>,
    /// How far from it the figure may be at the precision of the backend.
    pub tolerance: f64,
}

impl Measurement {
    /// How far the figure is from the reference; none where there is none.
    pub fn difference(&self) -> Option<f64> {
        Some(self.value - self.reference?)
    }

    /// Whether it is farther off than it may be.
    pub fn is_off(&self) -> bool {
        self.difference().is_some_and(|difference| difference.is_nan() || difference.abs() > self.tolerance)
    }
}

/// Figures of the whole sets that the model's authors and the sets' authors publish, reproduced by
/// sentence-transformers in f32: model, set, metric, figure.
const PUBLISHED: &[(&str, &str, &str, f64)] = &[
    ("all-MiniLM-L6-v2", "stsb-en-test", SPEARMAN, 0.82032),
    ("all-MiniLM-L6-v2", "stsb-en-dev", SPEARMAN, 0.86716),
    ("all-MiniLM-L6-v2", "stsb-ru-dev", SPEARMAN, 0.61999),
    ("all-MiniLM-L6-v2", "scifact/test", NDCG_10, 0.64508),
    ("all-MiniLM-L6-v2", "scifact/test", RECALL_10, 0.78333),
    ("all-MiniLM-L6-v2", "scifact/test", RECALL_100, 0.92500),
    ("all-MiniLM-L6-v2", "scifact/test", MRR_10, 0.60472),
    ("all-MiniLM-L6-v2", "scifact/train", NDCG_10, 0.66020),
];

const SPEARMAN: &str = "Spearman";
const NDCG_10: &str = "nDCG@10";
const RECALL_10: &str = "R@10";
const RECALL_100: &str = "R@100";
const MRR_10: &str = "MRR@10";

/// Texts in one call. Texts of like length stand together, so more would gain little.
const BATCH: usize = 32;

/// Measures one backend on all sets. `done` is told how many texts have a vector.
///
/// # Errors
/// [`BenchError`].
pub fn measure_quality(
    cx: &dyn CallContext,
    backend: &Backend,
    data: &QualityData,
    done: &mut dyn FnMut(usize),
) -> Result<Quality, BenchError> {
    let info = backend.embedder().info();
    let mut run =
        Run { cx, backend, data, done, measurements: Vec::new(), texts: 0, tokens: 0, took: Duration::ZERO };
    let mut skipped = Vec::new();
    for (name, references) in &data.references {
        if base_name(&references.model) == base_name(&info.model) {
            run.references(name, references)?;
        } else {
            skipped.push(format!("{name}: vectors of {}, not of {}", references.model, info.model));
        }
    }
    for (name, pairs) in &data.pairs {
        run.pairs(name, pairs)?;
    }
    for set in &data.retrieval {
        run.retrieval(set)?;
    }
    let Run { measurements, texts, tokens, took, .. } = run;
    Ok(Quality {
        backend: backend.name().to_owned(),
        model: info.model.clone(),
        dim: info.dim,
        device: backend.embedder().device(),
        measurements,
        skipped,
        texts,
        tokens,
        took,
    })
}

struct Run<'a> {
    cx: &'a dyn CallContext,
    backend: &'a Backend,
    data: &'a QualityData,
    done: &'a mut dyn FnMut(usize),
    measurements: Vec<Measurement>,
    texts: usize,
    tokens: u64,
    took: Duration,
}

impl Run<'_> {
    fn pairs(&mut self, set: &str, pairs: &[Pair]) -> Result<(), BenchError> {
        let texts: Vec<&str> = pairs.iter().flat_map(|pair| [pair.first.as_str(), &pair.second]).collect();
        // Both sentences of a pair play the same part; models with prefixes take that of a query then.
        let vectors = self.embed(&texts, Role::Query)?;
        let dim = self.dim();
        let found: Vec<f64> =
            vectors.chunks_exact(2 * dim).map(|pair| f64::from(cosine(&pair[..dim], &pair[dim..]))).collect();
        let wanted: Vec<f64> = pairs.iter().map(|pair| pair.score).collect();
        self.found(set, SPEARMAN, spearman(&found, &wanted));
        Ok(())
    }

    fn retrieval(&mut self, set: &Retrieval) -> Result<(), BenchError> {
        let texts: Vec<String> = set.documents.iter().map(Document::whole).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let ids: Vec<&str> = set.documents.iter().map(|document| document.id.as_str()).collect();
        let documents = self.embed(&texts, Role::Passage)?;
        for (split, questions) in &set.splits {
            let texts: Vec<&str> = questions.iter().map(|question| question.text.as_str()).collect();
            let vectors = self.embed(&texts, Role::Query)?;
            let rankings = nearest(self.dim(), &vectors, &documents, &ids);
            let scored = questions
                .iter()
                .zip(&rankings)
                .map(|(question, rows)| question.rank(rows.iter().map(|&row| ids[row])));
            let mean = Ranking::mean(&scored.collect::<Vec<_>>());
            let name = format!("{}/{split}", set.name);
            self.found(&name, NDCG_10, mean.ndcg_10);
            self.found(&name, RECALL_10, mean.recall_10);
            self.found(&name, RECALL_100, mean.recall_100);
            self.found(&name, MRR_10, mean.mrr_10);
        }
        Ok(())
    }

    fn references(&mut self, set: &str, references: &References) -> Result<(), BenchError> {
        let dim = self.dim();
        let items = &references.items;
        if let Some(other) = items.iter().find(|item| item.embedding.len() != dim) {
            let fault =
                format!("its vectors are {dim} wide where the reference is {}", other.embedding.len());
            return Err(BenchError::Broken { backend: self.backend.name().to_owned(), fault });
        }
        let texts: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
        let vectors = self.embed(&texts, Role::Passage)?;
        let counts = self.backend.count_tokens(&texts)?;
        let rows = || items.iter().zip(vectors.chunks_exact(dim));
        let differences =
            rows().flat_map(|(item, row)| item.embedding.iter().zip(row).map(|(a, b)| (a - b).abs()));
        let farthest = differences.fold(0.0, f32::max);
        let cosines = rows().map(|(item, row)| agreement(&item.embedding, row));
        let lowest = cosines.fold(1.0, f32::min);
        let miscounted = items.iter().zip(&counts).filter(|(item, count)| item.n_tokens != **count).count();
        let (reference, tolerance) = match self.precision() {
            Precision::Full => (Some(0.0), 1e-4),
            _ => (None, 0.0),
        };
        self.push(set, "max |difference|", farthest.into(), reference, tolerance);
        let tolerance = match self.precision() {
            Precision::Full => 1e-5,
            Precision::Half => 1e-3,
            Precision::Quantized => 1e-2,
        };
        self.push(set, "min cosine", lowest.into(), Some(1.0), tolerance);
        self.push(set, "texts with a wrong token count", miscounted as f64, Some(0.0), 0.0);
        Ok(())
    }

    fn found(&mut self, set: &str, metric: &'static str, value: f64) {
        let model = base_name(&self.backend.embedder().info().model);
        let published = PUBLISHED.iter().find(|known| (known.0, known.1, known.2) == (model, set, metric));
        let reference = published.map(|known| known.3).filter(|_| !self.data.partial);
        let tolerance = if self.precision() == Precision::Full { 0.0005 } else { 0.005 };
        self.push(set, metric, value, reference, tolerance);
    }

    fn push(&mut self, set: &str, metric: &'static str, value: f64, reference: Option<f64>, tolerance: f64) {
        self.measurements.push(Measurement { set: set.to_owned(), metric, value, reference, tolerance });
    }

    /// The vectors of `texts`, computed in the order of their length, since a backend that pads a batch to its
    /// longest text would take long otherwise.
    fn embed(&mut self, texts: &[&str], role: Role) -> Result<Vec<f32>, BenchError> {
        let dim = self.dim();
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&at| texts[at].len());
        let sorted: Vec<&str> = order.iter().map(|&at| texts[at]).collect();
        let start = Instant::now();
        let computed = self.backend.embed(self.cx, &sorted, role, BATCH, self.done)?;
        self.took += start.elapsed();
        self.texts += texts.len();
        self.tokens += self.backend.count_tokens(texts)?.into_iter().map(u64::from).sum::<u64>();
        let mut vectors = vec![0.0; computed.len()];
        for (&at, row) in order.iter().zip(computed.chunks_exact(dim)) {
            vectors[at * dim..][..dim].copy_from_slice(row);
        }
        Ok(vectors)
    }

    fn dim(&self) -> usize {
        self.backend.embedder().info().dim
    }

    fn precision(&self) -> Precision {
        Precision::of(&self.backend.embedder().device().precision)
    }
}

/// How exact the arithmetic of a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Precision {
    Full,
    Half,
    Quantized,
}

impl Precision {
    fn of(name: &str) -> Self {
        match name {
            "f32" | "fp32" | "f64" => Self::Full,
            "bf16" | "f16" | "fp16" | "tf32" => Self::Half,
            _ => Self::Quantized,
        }
    }
}

/// `all-MiniLM-L6-v2` of `sentence-transformers/all-MiniLM-L6-v2`.
fn base_name(model: &str) -> &str {
    model.rsplit('/').next().unwrap_or(model)
}

/// How far two backends agree on a text: the cosine, and 1 where both give it no direction.
pub(super) fn agreement(a: &[f32], b: &[f32]) -> f32 {
    if a == b { 1.0 } else { cosine(a, b) }
}

/// Cosine; 0 where one of them has no direction.
fn cosine(a: &[f32], b: &[f32]) -> f32 {
    let norms = (dot(a, a) * dot(b, b)).sqrt();
    if norms == 0.0 { 0.0 } else { dot(a, b) / norms }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_figure_is_off_beyond_its_tolerance_only_where_there_is_a_reference() {
        let found = |value: f64, reference: Option<f64>| Measurement {
            set: "s".to_owned(),
            metric: SPEARMAN,
            value,
            reference,
            tolerance: 0.005,
        };
        assert!(!found(0.1, None).is_off());
        assert!(!found(0.824, Some(0.82)).is_off());
        assert!(found(0.826, Some(0.82)).is_off());
        assert!(found(0.814, Some(0.82)).is_off());
        assert!(found(f64::NAN, Some(0.82)).is_off());
    }

    #[test]
    fn a_model_is_known_with_or_without_its_owner() {
        assert_eq!(base_name("sentence-transformers/all-MiniLM-L6-v2"), "all-MiniLM-L6-v2");
        assert_eq!(base_name("all-MiniLM-L6-v2"), "all-MiniLM-L6-v2");
    }

    #[test]
    fn a_zero_vector_is_like_nothing_and_agrees_with_itself() {
        assert_eq!(cosine(&[0.0, 0.0], &[1.0, 0.0]), 0.0);
        assert_eq!(cosine(&[0.0, 0.0], &[0.0, 0.0]), 0.0);
        assert_eq!(agreement(&[0.0, 0.0], &[0.0, 0.0]), 1.0);
        assert!((cosine(&[2.0, 0.0], &[3.0, 0.0]) - 1.0).abs() < 1e-6);
    }
}
