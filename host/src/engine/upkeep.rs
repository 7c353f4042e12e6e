use super::{Engine, EngineError, add::direction, now_ms};
use magray_plugin_api::{CallContext, Role};

/// Records embedded and stored at a time.
const BATCH: usize = 1024;

impl Engine {
    /// What a command leaves to be done after its answer: drops records past their time, and
    /// writes snapshots of indexes whose tail has grown long.
    ///
    /// # Errors
    /// [`EngineError`]; whatever the command itself did is done.
    pub fn upkeep(&self, cx: &dyn CallContext) -> Result<(), EngineError> {
        self.store.expire(now_ms())?;
        self.indexes()?.seal(cx)?;
        Ok(())
    }

    /// Embeds every record that has no vector of the present model. Returns how many got one; what
    /// is done stays done when it is interrupted.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn embed_missing(&self, cx: &dyn CallContext) -> Result<u64, EngineError> {
        let vectors = self.vectors()?;
        let dim = vectors.embedding.info().dim;
        let (mut embedded, mut after) = (0, None);
        loop {
            let records = self.store.without_vector(vectors.space, after, BATCH)?;
            let Some(last) = records.last() else { return Ok(embedded) };
            after = Some(last.id);
            let texts: Vec<String> = records.iter().map(|record| {
                let title = record.title.as_deref().filter(|title| !title.is_empty());
                title.map_or_else(|| record.text.clone(), |title| format!("{title}\n{}", record.text))
            }).collect();
            let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
            let rows = vectors.embedding.embed(cx, &texts, Role::Passage)?;
            let found = records.iter().zip(rows.chunks_exact(dim));
            let rows: Vec<_> = found.filter_map(|(record, row)| Some((record.id, direction(row)?))).collect();
            embedded += rows.len() as u64;
            self.store.put_vectors(vectors.space, rows)?;
        }
    }
}
