//! The last step of a search, where one is configured: a model orders the best answers anew.
use super::{Engine, EngineError, Ranked, Setup, upkeep::embedding_text};
use crate::{
    config::Rerank,
    plugins::{PluginError, Plugins},
    services::Once,
    store::Record,
};
use magray_plugin_api::{CallContext, ComponentKind, DeviceReport, Embedder, Error, ErrorCode};
use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

/// A model that reads the query and a record together.
struct Reranker {
    embedder: Box<dyn Embedder>,
    component: String,
}

/// What the reranker did for an answer.
#[derive(Clone, Debug)]
pub struct Reranking {
    /// The embedding profile that ran it.
    pub backend: String,
    /// Its model.
    pub model: String,
    /// The device that it ran on; empty where it did not run.
    pub device: DeviceReport,
    /// Records that it judged.
    pub judged: usize,
    /// How long that took, with loading where it was not loaded.
    pub took: Duration,
    /// Why it judged none, so that the order is that of the search; none where it did.
    pub failure: Option<String>,
}

/// Those that were wanted so far. The lock is never held while one is loaded: who wants another does not wait.
#[derive(Default)]
pub(super) struct Rerankers(Mutex<Places>);

/// By profile and model.
type Places = BTreeMap<(String, String), Arc<Once<Reranker>>>;

impl Rerankers {
    /// The place of the reranker of these settings, loaded or not.
    fn place(&self, settings: &Rerank) -> Arc<Once<Reranker>> {
        let key = (settings.profile.clone(), settings.model_name.clone());
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(places.entry(key).or_default())
    }
}

impl Reranker {
    fn load(settings: &Rerank, setup: &Setup, plugins: &Plugins) -> Result<Self, EngineError> {
        let mut setup = setup.clone();
        setup.config.ai.embedding.model_name.clone_from(&settings.model_name);
        let component = setup.config.ai.embedding.profile(&settings.profile).profile.plugin;
        let embedder = setup.embedder(plugins, &settings.profile)?;
        Ok(Self { embedder, component })
    }

    /// How well each record answers, from 0 to 1.
    fn scores(&self, cx: &dyn CallContext, query: &str, records: &[Record]) -> Result<Vec<f32>, EngineError> {
        let texts: Vec<_> =
            records.iter().map(|record| embedding_text(record.title.as_deref(), &record.text)).collect();
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let mut scores = vec![0.0; texts.len()];
        let failed = |error| PluginError::Call {
            kind: ComponentKind::Embedder,
            name: self.component.clone(),
            origin: "as a reranker".to_owned(),
            error,
        };
        let most = self.embedder.info().max_batch.max(1);
        for (texts, scores) in texts.chunks(most).zip(scores.chunks_mut(most)) {
            self.embedder.rerank(cx, query, texts, scores).map_err(failed)?;
        }
        if scores.iter().all(|score| score.is_finite()) {
            return Ok(scores);
        }
        Err(failed(Error::new(ErrorCode::INTERNAL, "it gave a score that is no number")).into())
    }
}

impl Engine {
    /// Orders the first of `order` anew by the reranker that the settings name, and says what it did; none where they
    /// name none. Where it fails the order stays. What it says takes the place of what the legs said; age and use count as
    /// before.
    ///
    /// # Errors
    /// [`EngineError::Interrupted`], and what the store says.
    pub(super) fn rerank(
        &self,
        cx: &dyn CallContext,
        query: &str,
        settings: &Rerank,
        order: &mut [Ranked],
    ) -> Result<Option<Reranking>, EngineError> {
        if settings.model_name.is_empty() || order.is_empty() {
            return Ok(None);
        }
        let start = Instant::now();
        let first = settings.candidates.min(order.len());
        let order = &mut order[..first];
        let ids: Vec<_> = order.iter().map(|ranked| ranked.id).collect();
        let records = self.store.records(&ids)?;
        let mut report = Reranking {
            backend: settings.profile.clone(),
            model: settings.model_name.clone(),
            device: DeviceReport::default(),
            judged: 0,
            took: Duration::ZERO,
            failure: None,
        };
        let judge = || {
            let place = self.services.get::<Rerankers>()?.place(settings);
            let reranker = place.get_or_try_make(|| Reranker::load(settings, &self.setup, &self.plugins))?;
            let scores = reranker.scores(cx, query, &records)?;
            Ok((scores, reranker.embedder.device()))
        };
        match judge() {
            Err(EngineError::Interrupted) => return Err(EngineError::Interrupted),
            Err(error) => report.failure = Some(error.to_string()),
            Ok((scores, device)) => {
                (report.device, report.judged) = (device, scores.len());
                let scores: HashMap<_, _> = records.iter().map(|record| record.id).zip(scores).collect();
                for ranked in order.iter_mut() {
                    ranked.reranked = scores.get(&ranked.id).copied();
                    ranked.score = ranked.reranked.unwrap_or(0.0) * ranked.factor;
                }
                order.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
            }
        }
        report.took = start.elapsed();
        Ok(Some(report))
    }
}
