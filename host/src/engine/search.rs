use super::{Engine, EngineError, Reranking, Vectors, now_ms};
use crate::{
    config::{FusionKind, Search as Settings, SearchMode},
    embedding::{Embedded, EmbeddingError},
    memory::{
        Fused, Fusion, LegScore, Passage, RankFactor, add_documents, best_passages, fuse, passage_with_terms,
    },
    plugins::PluginError,
    store::{Filter, IdSet, Layer, Record, RecordId, Standing, query_terms},
};
use magray_plugin_api::{CallContext, DeviceReport, Role, SearchParams};
use std::{
    collections::{HashMap, HashSet},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
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
    /// When they must be true.
    pub validity: Validity,
    /// Results below this score are left out: the cosine in a vector search, BM25 in a keyword search, and in a hybrid
    /// one the fused score of 0 to 1. The factor of age and use is not in it.
    pub min_score: Option<f32>,
    /// How records are found and ranked.
    pub settings: Settings,
}

impl SearchRequest {
    /// What is true now of all records, found and ranked as the settings say.
    pub fn new(query: impl Into<String>, k: usize, settings: Settings) -> Self {
        Self {
            query: query.into(),
            k,
            filter: Filter::default(),
            validity: Validity::Now,
            min_score: None,
            settings,
        }
    }
}

/// When records must be true to count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Validity {
    /// Now.
    #[default]
    Now,
    /// At this time, in milliseconds since 1970.
    At(u64),
    /// At any time, so that those that were replaced count too.
    Any,
}

/// The answer, and who gave it.
#[derive(Clone, Debug)]
pub struct SearchResponse {
    /// Best first.
    pub hits: Vec<SearchHit>,
    /// What was searched.
    pub mode: SearchMode,
    /// What the words found, where they were searched.
    pub keyword: Option<KeywordLeg>,
    /// What the meaning found, where it was searched.
    pub vector: Option<VectorLeg>,
    /// Why a hybrid search did without its vectors; none where it did not.
    pub without_vectors: Option<String>,
    /// What the reranker did, where there is one.
    pub reranking: Option<Reranking>,
    /// From the query to the answer; loading of backends is in it only where words were searched meanwhile.
    pub took: Duration,
}

/// The search by words.
#[derive(Clone, Debug)]
pub struct KeywordLeg {
    /// What was looked for.
    pub terms: Vec<String>,
    /// Records that it handed over.
    pub found: usize,
    /// How long it took.
    pub took: Duration,
}

/// The search by meaning.
#[derive(Clone, Debug)]
pub struct VectorLeg {
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
    /// Records, whether they match the filter or not, that this model has not embedded yet, so that
    /// no search by meaning finds them.
    pub unembedded: u64,
    /// The model knows no word of the query, so nothing can be near it.
    pub unknown_words: bool,
    /// Records that it handed over.
    pub found: usize,
    /// How long it took, without loading of backends.
    pub took: Duration,
}

/// A record that answers.
#[derive(Clone, Debug)]
pub struct SearchHit {
    /// Where it stands in the order.
    pub ranked: Ranked,
    /// The record.
    pub record: Record,
    /// The part of it that answers best.
    pub passage: Passage,
}

/// A record in the order of an answer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ranked {
    /// The record.
    pub id: RecordId,
    /// What it is ordered by: `found` and `factor`.
    pub score: f32,
    /// How well it answers: the cosine in a vector search, BM25 in a keyword search, and in a hybrid one 0 to 1.
    pub found: f32,
    /// What age and use make of that, 0.3 to 1.5.
    pub factor: f32,
    /// What the keyword leg says, where it has one of the words.
    pub keyword: Option<LegScore>,
    /// What the vector leg says, where it has a vector.
    pub vector: Option<LegScore>,
    /// What the reranker says, where it judged it; then that times `factor` is the score.
    pub reranked: Option<f32>,
}

/// Records in their order, before any is read.
#[derive(Clone, Debug)]
pub struct Ranking {
    /// Best first.
    pub order: Vec<Ranked>,
    keyword: Option<KeywordLeg>,
    vector: Option<VectorLeg>,
    without_vectors: Option<String>,
    reranking: Option<Reranking>,
}

/// What a leg found, best first.
type Found = Vec<(RecordId, f32)>;

/// A query as a vector, and the model that it is of: another one may answer before the search is over.
struct Asked<'a> {
    vectors: &'a Vectors,
    query: Vec<f32>,
}

impl Asked<'_> {
    /// Whether the model knows no word of it.
    fn is_unknown(&self) -> bool {
        self.query.iter().all(|&v| v == 0.0)
    }
}

/// A search that runs, and counts while it does.
struct Searching<'a> {
    count: &'a AtomicUsize,
    /// How many there were with it when it began.
    of_all: usize,
}

impl<'a> Searching<'a> {
    fn begin(count: &'a AtomicUsize) -> Self {
        Self { count, of_all: count.fetch_add(1, Ordering::Relaxed) + 1 }
    }
}

impl Drop for Searching<'_> {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Engine {
    /// The `k` records that answer the query best, over everything committed before the call.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for an empty query, or another [`EngineError`]. A hybrid search whose embedding
    /// backend or index fails is answered by its words alone, and says so.
    pub fn search(
        &self,
        cx: &dyn CallContext,
        request: &SearchRequest,
    ) -> Result<SearchResponse, EngineError> {
        if request.settings.mode == SearchMode::Vector {
            self.vectors()?;
        }
        let start = Instant::now();
        let (ranking, asked) = self.asked_and_ranked(cx, request)?;
        let Ranking { order, keyword, vector, without_vectors, reranking } = ranking;
        let hits = self.fetch(cx, &order, asked.as_ref(), keyword.as_ref())?;
        let shown: Vec<RecordId> = hits.iter().map(|hit| hit.record.id).collect();
        self.count_accesses(request.filter.session.as_deref(), &shown)?;
        let mode = request.settings.mode;
        Ok(SearchResponse { hits, mode, keyword, vector, without_vectors, reranking, took: start.elapsed() })
    }

    /// The same without the records themselves, which counts no access.
    ///
    /// # Errors
    /// As [`Engine::search`].
    pub fn rank(&self, cx: &dyn CallContext, request: &SearchRequest) -> Result<Ranking, EngineError> {
        Ok(self.asked_and_ranked(cx, request)?.0)
    }

    fn asked_and_ranked(
        &self,
        cx: &dyn CallContext,
        request: &SearchRequest,
    ) -> Result<(Ranking, Option<Asked<'_>>), EngineError> {
        let query = request.query.trim();
        if query.is_empty() {
            return Err(EngineError::Invalid("the query is empty".into()));
        }
        let searching = Searching::begin(&self.searching);
        let within = self.scope(request)?;
        let (settings, within) = (&request.settings, within.as_ref());
        let depth = settings.candidates.max(request.k);
        let by_words = || self.by_words(query, within, depth);
        let by_meaning = || self.by_meaning(cx, query, &request.filter.layers, within, depth);
        let (keyword, vector) = match settings.mode {
            SearchMode::Keyword => (Some(by_words()?), None),
            SearchMode::Vector => (None, Some(by_meaning())),
            // A thread more is a gain only where a core has nothing to do.
            SearchMode::Hybrid if searching.of_all > self.setup.config.plugins.thread_budget() / 2 => {
                (Some(by_words()?), Some(by_meaning()))
            }
            SearchMode::Hybrid => thread::scope(|scope| {
                let by_words = scope.spawn(by_words);
                let vector = by_meaning();
                let keyword = by_words.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
                Ok::<_, EngineError>((Some(keyword), Some(vector)))
            })?,
        };
        let (keyword, words) = keyword.unzip();
        let mut words = words.unwrap_or_default();
        let vector = match vector {
            Some(Ok((asked, leg, found))) if settings.mode == SearchMode::Hybrid => {
                let first = &words[..depth.min(words.len())];
                let found = with_missing(cx, &asked, &request.filter.layers, first, found);
                Some(found.map(|found| (asked, leg, found)))
            }
            vector => vector,
        };
        let (vector, without_vectors) = match vector {
            Some(Err(error)) if settings.mode == SearchMode::Hybrid && can_do_without(&error) => {
                (None, Some(error.to_string()))
            }
            vector => (vector.transpose()?, None),
        };
        let (asked, vector, meaning) = match vector {
            Some((asked, leg, found)) => (Some(asked), Some(leg), found),
            None => (None, None, Vec::new()),
        };
        keep_candidates(&mut words, &meaning, depth);
        let mut order = self.order(request, &words, &meaning)?;
        let reranking = self.rerank(cx, &request.query, &settings.rerank, &mut order)?;
        order.truncate(request.k);
        Ok((Ranking { order, keyword, vector, without_vectors, reranking }, asked))
    }

    /// Which records count; `None` where all do.
    fn scope(&self, request: &SearchRequest) -> Result<Option<IdSet>, EngineError> {
        let (now, filter) = (now_ms(), &request.filter);
        let valid_at_ms = match request.validity {
            Validity::Now => Some(now),
            Validity::At(time) => Some(time),
            Validity::Any => None,
        };
        // Vectors are searched layer by layer, so there layers alone need no set of ids.
        let only_layers = Filter { layers: filter.layers.clone(), ..Filter::default() };
        let by_layer = filter.layers.is_empty() || request.settings.mode == SearchMode::Vector;
        if by_layer && *filter == only_layers {
            return Ok(self.store.present_ids(now, valid_at_ms)?);
        }
        let filter = Filter { not_expired_at_ms: Some(now), valid_at_ms, ..filter.clone() };
        Ok(Some(self.store.matching_ids(&filter)?))
    }

    /// All that has one of the words, the `depth` best first.
    fn by_words(
        &self,
        query: &str,
        within: Option<&IdSet>,
        depth: usize,
    ) -> Result<(KeywordLeg, Found), EngineError> {
        let start = Instant::now();
        let terms = query_terms(query);
        let found = self.store.find_words(&terms, within, depth)?;
        Ok((KeywordLeg { terms, found: found.len().min(depth), took: start.elapsed() }, found))
    }

    fn by_meaning(
        &self,
        cx: &dyn CallContext,
        query: &str,
        layers: &[Layer],
        within: Option<&IdSet>,
        depth: usize,
    ) -> Result<(Asked<'_>, VectorLeg, Found), EngineError> {
        let vectors = self.vectors()?;
        let start = Instant::now();
        let Embedded { vectors: query, backend, device, fallback, cached } =
            vectors.embedding.answer(cx, &[query], Role::Query)?;
        let asked = Asked { vectors, query };
        let unknown_words = asked.is_unknown();
        let found = if unknown_words { Vec::new() } else { self.nearest(cx, &asked, layers, within, depth)? };
        let leg = VectorLeg {
            backend,
            model: vectors.embedding.info().model.clone(),
            device,
            fallback,
            cached,
            index: vectors.index_backend.clone(),
            unembedded: self.store.count_without_vector(vectors.space)?,
            unknown_words,
            found: found.len(),
            took: start.elapsed(),
        };
        Ok((asked, leg, found))
    }

    fn nearest(
        &self,
        cx: &dyn CallContext,
        Asked { vectors, query }: &Asked<'_>,
        layers: &[Layer],
        within: Option<&IdSet>,
        depth: usize,
    ) -> Result<Found, EngineError> {
        let mut hits = Vec::new();
        for layer in searched(layers) {
            let params = SearchParams::with_ef(self.ef_search(layer));
            hits.extend(vectors.indexes.search(
                cx,
                layer,
                query,
                depth,
                params,
                within.map(IdSet::as_filter),
            )?);
        }
        let mut found: Found = hits.iter().map(|hit| (RecordId::from_index_id(hit.id), hit.score)).collect();
        best_first(&mut found);
        found.truncate(depth);
        Ok(found)
    }

    /// One list of what the legs found, best first: fused, then with the documents, then by age and use.
    fn order(
        &self,
        request: &SearchRequest,
        words: &[(RecordId, f32)],
        meaning: &[(RecordId, f32)],
    ) -> Result<Vec<Ranked>, EngineError> {
        let settings = &request.settings;
        let fusion = match settings.fusion {
            FusionKind::Convex => Fusion::Convex { keyword_weight: settings.keyword_weight as f32 },
            FusionKind::Rrf => Fusion::Rrf,
        };
        let mut found = fuse(fusion, words, meaning);
        let standings = self.store.standings(found.iter().map(|fused| fused.id))?;
        let standings: HashMap<RecordId, Standing> =
            standings.into_iter().map(|standing| (standing.id, standing)).collect();
        // One that another process has just forgotten is not there any more.
        found.retain(|fused| standings.contains_key(&fused.id));
        match settings.mode {
            SearchMode::Hybrid => add_documents(&mut found, &standings, settings.document_weight as f32),
            SearchMode::Vector => found.iter_mut().for_each(|fused| fused.score = leg_score(fused.vector)),
            SearchMode::Keyword => found.iter_mut().for_each(|fused| fused.score = leg_score(fused.keyword)),
        }
        found.retain(|fused| request.min_score.is_none_or(|least| fused.score >= least));
        let (rank_factor, now) = (self.rank_factor(settings), now_ms());
        let ranked = |fused: Fused| {
            let factor = standings.get(&fused.id).map_or(1.0, |standing| rank_factor.of(standing, now));
            let Fused { id, score: found, keyword, vector } = fused;
            // What is below zero gets worse by becoming more of it.
            let score = if found < 0.0 { found / factor } else { found * factor };
            Ranked { id, score, found, factor, keyword, vector, reranked: None }
        };
        let mut order: Vec<Ranked> = found.into_iter().map(ranked).collect();
        order.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
        Ok(order)
    }

    fn rank_factor(&self, settings: &Settings) -> RankFactor {
        let half_lives = self.setup.config.memory.half_lives();
        let Settings { age_weight, access_weight, .. } = *settings;
        RankFactor { age_weight, access_weight, half_lives }
    }

    fn fetch(
        &self,
        cx: &dyn CallContext,
        order: &[Ranked],
        asked: Option<&Asked<'_>>,
        keyword: Option<&KeywordLeg>,
    ) -> Result<Vec<SearchHit>, EngineError> {
        let ids: Vec<RecordId> = order.iter().map(|ranked| ranked.id).collect();
        let mut records: HashMap<RecordId, Record> =
            self.store.records(&ids)?.into_iter().map(|record| (record.id, record)).collect();
        let found: Vec<(Ranked, Record)> =
            order.iter().filter_map(|ranked| Some((*ranked, records.remove(&ranked.id)?))).collect();
        let borrowed: Vec<&Record> = found.iter().map(|(_, record)| record).collect();
        let by_words = || {
            let terms = keyword.map_or(&[][..], |leg| &leg.terms);
            borrowed.iter().map(|record| passage_with_terms(record, terms)).collect()
        };
        let passages = match asked.filter(|asked| !asked.is_unknown()) {
            None => by_words(),
            Some(Asked { vectors, query }) => {
                let nearest = best_passages(cx, &vectors.embedding, query, &borrowed);
                match nearest.map_err(EngineError::from) {
                    Ok(passages) => passages,
                    // The query came from the cache, and no backend is to be had.
                    Err(error) if keyword.is_some() && can_do_without(&error) => {
                        tracing::warn!("which part of a record is shown was decided by words alone: {error}");
                        by_words()
                    }
                    Err(error) => return Err(error),
                }
            }
        };
        let hits = found.into_iter().zip(passages);
        Ok(hits.map(|((ranked, record), passage)| SearchHit { ranked, record, passage }).collect())
    }
}

fn searched(layers: &[Layer]) -> impl Iterator<Item = Layer> {
    Layer::ALL.into_iter().filter(|layer| layers.is_empty() || layers.contains(layer))
}

/// What the meaning found, and with it what it says of those that only the words found.
fn with_missing(
    cx: &dyn CallContext,
    asked: &Asked<'_>,
    layers: &[Layer],
    words: &[(RecordId, f32)],
    mut meaning: Found,
) -> Result<Found, EngineError> {
    let near: HashSet<RecordId> = meaning.iter().map(|found| found.0).collect();
    let missing = words.iter().filter(|found| !near.contains(&found.0));
    let mut missing: Vec<u64> = missing.map(|found| found.0.index_id()).collect();
    missing.sort_unstable();
    if !missing.is_empty() && !asked.is_unknown() {
        for layer in searched(layers) {
            let hits = asked.vectors.indexes.cosines(cx, layer, &asked.query, &missing)?;
            meaning.extend(hits.iter().map(|hit| (RecordId::from_index_id(hit.id), hit.score)));
        }
        best_first(&mut meaning);
    }
    Ok(meaning)
}

fn best_first(found: &mut Found) {
    found.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
}

/// Keeps the first `depth` of what the words found, and what they say of the others that the meaning found.
fn keep_candidates(words: &mut Found, meaning: &[(RecordId, f32)], depth: usize) {
    let others = words.split_off(depth.min(words.len()));
    if !others.is_empty() {
        let near: HashSet<RecordId> = meaning.iter().map(|found| found.0).collect();
        words.extend(others.into_iter().filter(|found| near.contains(&found.0)));
        best_first(words);
    }
}

fn leg_score(leg: Option<LegScore>) -> f32 {
    leg.map_or(0.0, |leg| leg.score)
}

/// Whether the words alone can answer in spite of it. A name that nobody knows is a mistake of who wrote it.
fn can_do_without(error: &EngineError) -> bool {
    match error {
        EngineError::Plugin(error) => !matches!(error, PluginError::Unknown { .. }),
        EngineError::Embedding(EmbeddingError::Start(error)) => {
            !matches!(**error, PluginError::Unknown { .. })
        }
        EngineError::Embedding(_) | EngineError::Index(_) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests;
