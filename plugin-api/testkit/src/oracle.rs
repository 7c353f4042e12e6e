use magray_plugin_api::{Hit, IdFilter, IndexSpec, Metric};
use std::collections::BTreeMap;

/// What an index ought to answer: compares the query with every vector, in f64.
#[derive(Clone, Debug)]
pub struct Oracle {
    spec: IndexSpec,
    rows: BTreeMap<u64, Vec<f32>>,
}

impl Oracle {
    /// Without vectors.
    pub fn new(spec: IndexSpec) -> Self {
        Self { spec, rows: BTreeMap::new() }
    }

    /// Stores `vectors`, `[ids.len(), dim]` row-major; the last of several rows of one id counts.
    pub fn upsert(&mut self, ids: &[u64], vectors: &[f32]) {
        for (&id, vector) in ids.iter().zip(vectors.chunks_exact(self.spec.dim)) {
            self.rows.insert(id, vector.to_vec());
        }
    }

    /// Removes `ids`; returns how many were there.
    pub fn remove(&mut self, ids: &[u64]) -> usize {
        ids.iter().filter(|&id| self.rows.remove(id).is_some()).count()
    }

    /// The ids that it holds, ascending.
    pub fn ids(&self) -> Vec<u64> {
        self.rows.keys().copied().collect()
    }

    /// How near the vector of `id` is to `query`; `None` where it holds no such id.
    pub fn score(&self, query: &[f32], id: u64) -> Option<f32> {
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
        let row = self.rows.get(&id)?;
        let score: f64 = match self.spec.metric {
            Metric::Dot => dot(query, row),
            Metric::Cosine => {
                let lengths: [f64; 2] = [dot(query, query), dot(row, row)];
                dot(query, row) / lengths[0].sqrt() / lengths[1].sqrt()
            }
            Metric::L2 => {
                -query.iter().zip(row).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum::<f64>()
            }
        };
        Some(score as f32)
    }

    /// The at most `k` best hits for one query, best first, the lower id first among equals.
    pub fn search(&self, query: &[f32], k: usize, filter: Option<IdFilter<'_>>) -> Vec<Hit> {
        let ids = self.rows.keys().filter(|&&id| filter.is_none_or(|filter| filter.contains(id)));
        let mut hits: Vec<Hit> = ids.filter_map(|&id| Some(Hit::new(id, self.score(query, id)?))).collect();
        hits.sort_by(|a, b| b.score.total_cmp(&a.score));
        hits.truncate(k);
        hits
    }

    /// The share of what [`Oracle::search`] returns that `hits` found, 0 to 1. A hit that is as near
    /// as the last of them counts, whichever id it has.
    pub fn recall(&self, query: &[f32], filter: Option<IdFilter<'_>>, hits: &[Hit]) -> f64 {
        let best = self.search(query, hits.len(), filter);
        let Some(last) = best.last() else { return 1.0 };
        let enough = last.score - 1e-4 * last.score.abs().max(1.0);
        let near = |hit: &&Hit| self.score(query, hit.id).is_some_and(|score| score >= enough);
        hits.iter().filter(near).count() as f64 / best.len() as f64
    }
}
