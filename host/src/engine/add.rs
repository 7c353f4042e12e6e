use super::{Engine, EngineError, room, upkeep::embedding_text};
use crate::store::{Added, Layer, NewRecord, RecordId};
use magray_plugin_api::{CallContext, Role};

/// A text to remember.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewMemory {
    /// The text.
    pub text: String,
    /// How long it matters; the configured default where none is given.
    pub layer: Option<Layer>,
    /// What it is, `note` where none is given.
    pub kind: Option<String>,
    /// Labels.
    pub tags: Vec<String>,
    /// The project that it belongs to.
    pub project: Option<String>,
    /// The session that it was made in.
    pub session: Option<String>,
    /// What it is called.
    pub title: Option<String>,
    /// Since when it is true, in milliseconds since 1970; now for one that replaces others, where none is given.
    pub valid_from_ms: Option<u64>,
    /// From when on it is not true any more.
    pub valid_to_ms: Option<u64>,
    /// Ids of the records that it replaces, or their first characters.
    pub supersedes: Vec<String>,
}

impl Engine {
    /// Stores `memories` with their vectors. When it returns they are durable, and any search, by
    /// this process or another, finds them.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for a text that is empty or longer than `[ingest] max_file_bytes`,
    /// or an id of no record, and then nothing is stored; or another [`EngineError`].
    pub fn add(&self, cx: &dyn CallContext, memories: Vec<NewMemory>) -> Result<Vec<Added>, EngineError> {
        let limit = self.setup.config.ingest.max_file_bytes;
        for memory in &memories {
            if memory.text.trim().is_empty() {
                return Err(EngineError::Invalid("the text is empty".into()));
            }
            if memory.text.len() as u64 > limit {
                return Err(EngineError::Invalid(format!(
                    "the text has {} bytes, and the limit is {limit}; raise [ingest] max_file_bytes, or use `magray index`, which splits files",
                    memory.text.len()
                )));
            }
        }
        let supersedes = memories.iter().map(|memory| self.ids(&memory.supersedes));
        let supersedes: Vec<Vec<RecordId>> = supersedes.collect::<Result<_, _>>()?;
        let vectors = self.vectors()?;
        let dim = vectors.embedding.info().dim;
        let texts: Vec<String> = memories
            .iter()
            .map(|memory| embedding_text(memory.title.as_deref(), memory.text.trim()).into_owned())
            .collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let bytes = texts.iter().map(|text| text.len() as u64).sum();
        let needed = room::record_bytes(texts.len() as u64, bytes, dim);
        self.setup.ensure_room(&self.setup.data_dir, needed, "what is to be added")?;
        self.ensure_capacity(vectors.space, memories.len() as u64)?;
        let embedded = vectors.embedding.embed(cx, &texts, Role::Passage)?;
        let records = memories.iter().zip(supersedes).zip(embedded.chunks_exact(dim));
        let records = records.map(|((memory, supersedes), vector)| {
            let layer = memory.layer.unwrap_or_else(|| self.default_layer());
            NewRecord {
                kind: memory.kind.clone().unwrap_or_else(|| "note".to_owned()),
                title: memory.title.clone(),
                tags: memory.tags.clone(),
                project: memory.project.clone(),
                session: memory.session.clone(),
                expires_ms: self.expiry(layer),
                valid_from_ms: memory.valid_from_ms,
                valid_to_ms: memory.valid_to_ms,
                supersedes,
                vector: Some(vector.to_vec()),
                ..NewRecord::new(layer, memory.text.trim())
            }
        });
        let added = self.store.add(Some(vectors.space), records.collect())?;
        // A switch to another model that came before them has not seen them; one that comes now does.
        if self.model()? != vectors.choice
            && let Err(error) = self.embed_missing(cx)
        {
            tracing::warn!("the new records have no vector of the model that answers now: {error}");
        }
        Ok(added)
    }

    fn ids(&self, ids: &[String]) -> Result<Vec<RecordId>, EngineError> {
        let id = |id: &String| {
            let record = self.store.get(id)?;
            record.map(|record| record.id).ok_or_else(|| {
                EngineError::Invalid(format!("there is no record {id} to be superseded; nothing was stored"))
            })
        };
        ids.iter().map(id).collect()
    }

    /// The layer of a record that names none.
    pub fn default_layer(&self) -> Layer {
        match self.setup.config.memory.default_layer {
            crate::config::DefaultLayer::Interact => Layer::Interact,
            crate::config::DefaultLayer::Insights => Layer::Insights,
            crate::config::DefaultLayer::Assets => Layer::Assets,
        }
    }
}
