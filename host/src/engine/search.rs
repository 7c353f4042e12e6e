use super::{Engine, EngineError, Vectors, now_ms};
use crate::{
    embedding::Embedded,
    memory::{Passage, best_passages},
    store::{Filter, Layer, Record, RecordId},
};
use magray_plugin_api::{CallContext, DeviceReport, Hit, Role, SearchParams};
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

/// A question.
#[derive(Clone, Debug)]
pub struct SearchRequest {
    /// What is looked for, in words.
    pub query: String,
    /// How many results.
    pub k: usize,
    /// Which records count.
    pub filter: Filter,
    /// Results below this cosine similarity are left out.
    pub min_score: Option<f32>,
}

/// The answer, and who gave it.
#[derive(Clone, Debug)]
pub struct SearchResponse {
    /// Best first.
    pub hits: Vec<SearchHit>,
    /// The embedding profile that answered.
    pub backend: String,
    /// The model that it ran.
    pub model: String,
    /// The device that it ran on.
    pub device: DeviceReport,
    /// Why it was not the profile or the device that was asked for; none where it was.
    pub fallback: Option<String>,
    /// Whether the vector of the query came from the cache, so that no backend ran.
    pub cached: bool,
    /// The index profile that was used.
    pub index: String,
    /// From the query to the answer, without loading of backends.
    pub took: Duration,
    /// Records, whether they match the filter or not, that this model has not embedded yet, so that
    /// no search by meaning finds them.
    pub unembedded: u64,
    /// The model knows no word of the query, so nothing can be near it.
    pub unknown_words: bool,
}

/// A record that answers.
#[derive(Clone, Debug)]
pub struct SearchHit {
    /// Cosine similarity of record and query, -1 to 1.
    pub score: f32,
    /// The record.
    pub record: Record,
    /// The part of it that answers best.
    pub passage: Passage,
}

impl Engine {
    /// The `k` records nearest in meaning to the query, over everything committed before the call.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for an empty query, or another [`EngineError`].
    pub fn search(
        &self,
        cx: &dyn CallContext,
        request: &SearchRequest,
    ) -> Result<SearchResponse, EngineError> {
        let query = request.query.trim();
        if query.is_empty() {
            return Err(EngineError::Invalid("the query is empty".into()));
        }
        let vectors = self.vectors()?;
        let start = Instant::now();
        let Embedded { vectors: vector, backend, device, fallback, cached } =
            vectors.embedding.answer(cx, &[query], Role::Query)?;
        let unknown_words = vector.iter().all(|&v| v == 0.0);
        let hits = if unknown_words {
            Vec::new()
        } else {
            self.nearest(cx, vectors, &vector, request.k, &request.filter)?
        };
        let hits = self.fetch(cx, vectors, &vector, &hits, request.min_score)?;
        let shown: Vec<RecordId> = hits.iter().map(|hit| hit.record.id).collect();
        self.count_accesses(request.filter.session.as_deref(), &shown)?;
        Ok(SearchResponse {
            hits,
            backend,
            model: vectors.embedding.info().model.clone(),
            device,
            fallback,
            cached,
            index: vectors.index_backend.clone(),
            took: start.elapsed(),
            unembedded: self.store.count_without_vector(vectors.space)?,
            unknown_words,
        })
    }

    fn nearest(
        &self,
        cx: &dyn CallContext,
        vectors: &Vectors,
        query: &[f32],
        k: usize,
        filter: &Filter,
    ) -> Result<Vec<Hit>, EngineError> {
        // Layers are searched one by one, so they alone need no set of ids.
        let only_layers = Filter { layers: filter.layers.clone(), ..Filter::default() };
        let now = now_ms();
        let filter = Filter { not_expired_at_ms: self.store.any_due(now)?.then_some(now), ..filter.clone() };
        let matching = if filter == only_layers { None } else { Some(self.store.matching_ids(&filter)?) };
        let matching = matching.as_ref().map(crate::store::IdSet::as_filter);
        let layers =
            Layer::ALL.into_iter().filter(|layer| filter.layers.is_empty() || filter.layers.contains(layer));
        let mut hits = Vec::new();
        for layer in layers {
            let params = SearchParams::with_ef(self.ef_search(layer));
            hits.extend(vectors.indexes.search(cx, layer, query, k, params, matching)?);
        }
        hits.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        hits.truncate(k);
        Ok(hits)
    }

    fn fetch(
        &self,
        cx: &dyn CallContext,
        vectors: &Vectors,
        query: &[f32],
        hits: &[Hit],
        min_score: Option<f32>,
    ) -> Result<Vec<SearchHit>, EngineError> {
        let hits: Vec<&Hit> =
            hits.iter().filter(|hit| min_score.is_none_or(|least| hit.score >= least)).collect();
        let ids: Vec<RecordId> = hits.iter().map(|hit| RecordId::from_index_id(hit.id)).collect();
        let mut records: HashMap<RecordId, Record> =
            self.store.records(&ids)?.into_iter().map(|record| (record.id, record)).collect();
        // One that another process has just forgotten is not there any more.
        let found: Vec<(f32, Record)> = hits
            .iter()
            .filter_map(|hit| Some((hit.score, records.remove(&RecordId::from_index_id(hit.id))?)))
            .collect();
        let borrowed: Vec<&Record> = found.iter().map(|(_, record)| record).collect();
        let passages = best_passages(cx, &vectors.embedding, query, &borrowed)?;
        let hits = found.into_iter().zip(passages);
        Ok(hits.map(|((score, record), passage)| SearchHit { score, record, passage }).collect())
    }
}
