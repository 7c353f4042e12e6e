use super::{Engine, EngineError, Vectors, now_ms};
use crate::{
    indexing::Extent,
    store::{Record, RecordId},
};
use magray_plugin_api::CallContext;

/// Rows that one command may write to merge parts of an index after its answer. More waits for a process
/// that lives long, for `magray sync`, or until there are many parts.
const STEP_ROWS: u64 = 20_000;
/// Records embedded and stored at a time.
const BATCH: usize = 1024;

impl Engine {
    /// What a command leaves to be done after its answer: promotes records that deserve it and drops
    /// those past their time, seals what waits to be sealed, and looks at a small part of the index files
    /// for damage.
    ///
    /// # Errors
    /// [`EngineError`]; whatever the command itself did is done.
    pub fn upkeep(&self, cx: &dyn CallContext) -> Result<(), EngineError> {
        self.promote_if_due(cx)?;
        self.tend_indexes(cx)
    }

    /// Seals what waits to be sealed, and looks at a small part of the index files for damage.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn tend_indexes(&self, cx: &dyn CallContext) -> Result<(), EngineError> {
        let indexes = self.indexes()?;
        // By the clock, so that one command after the other comes to all of them.
        indexes.scrub(now_ms().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16);
        indexes.sync(cx, None, Extent::Due { step_rows: STEP_ROWS })?;
        Ok(())
    }

    /// How many records have no vector of the present model.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn unembedded(&self) -> Result<u64, EngineError> {
        Ok(self.store.count_without_vector(self.vectors()?.space)?)
    }

    /// Embeds every record that has no vector of the present model. Returns how many got one; what
    /// is done stays done when it is interrupted.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn embed_missing(&self, cx: &dyn CallContext) -> Result<u64, EngineError> {
        self.embed_missing_in(cx, self.vectors()?, &mut |_| {})
    }

    /// The same for any model; `progress` is told how many got one so far.
    pub(super) fn embed_missing_in(
        &self,
        cx: &dyn CallContext,
        vectors: &Vectors,
        progress: &mut dyn FnMut(u64),
    ) -> Result<u64, EngineError> {
        let (mut embedded, mut after) = (0, RecordId(0));
        loop {
            let ids = self.store.without_vector(vectors.space, after, BATCH)?;
            let Some(&last) = ids.last() else { return Ok(embedded) };
            after = last;
            let rows = self.embed_records(cx, vectors, &ids)?;
            embedded += self.store.put_vectors(vectors.space, &rows)? as u64;
            progress(embedded);
        }
    }
}

/// What is embedded of a record, whether it comes from a file or was added.
pub(super) fn embedding_text(record: &Record) -> String {
    match &record.title {
        Some(title) => format!("{title}\n{}", record.text),
        None => record.text.clone(),
    }
}
