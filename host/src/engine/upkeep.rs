use super::{Engine, EngineError, Vectors, now_ms};
use crate::{
    indexing::{Extent, LayerSync},
    resources::scheduler::Counts,
    store::RecordId,
};
use magray_plugin_api::CallContext;
use std::borrow::Cow;

/// Rows that one command may write to merge parts of an index after its answer. More waits for a process
/// that lives long, for `magray sync`, or until there are many parts.
const STEP_ROWS: u64 = 20_000;
/// Records embedded and stored at a time.
const BATCH: usize = 1024;

impl Engine {
    /// What a command leaves to be done after its answer, of what a process that lives long does in the
    /// background: promotes records that deserve it and drops those past their time, looks at a small part of the
    /// index files for damage, and seals what waits to be sealed.
    ///
    /// # Errors
    /// [`EngineError`]; whatever the command itself did is done.
    pub fn upkeep(&self, cx: &dyn CallContext) -> Result<(), EngineError> {
        self.promote_if_due(cx)?;
        self.tend_indexes(cx)
    }

    /// The part of it that is about indexes.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn tend_indexes(&self, cx: &dyn CallContext) -> Result<(), EngineError> {
        self.scrub()?;
        self.seal(cx)?;
        Ok(())
    }

    /// Looks at a part of an index file for damage. What is damaged is built anew by the next [`Self::seal`].
    pub(super) fn scrub(&self) -> Result<Counts, EngineError> {
        // By the clock, so that one command after the other comes to all of them.
        self.indexes()?.scrub(now_ms().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 16);
        Ok(Counts::new())
    }

    /// Seals what is due, and merges what is small.
    pub(super) fn seal(&self, cx: &dyn CallContext) -> Result<Counts, EngineError> {
        self.sync_due(cx, STEP_ROWS)
    }

    /// The same, and merges whatever is due, where memory is not short.
    pub(super) fn merge(&self, cx: &dyn CallContext) -> Result<Counts, EngineError> {
        self.sync_due(cx, self.indexes()?.step_rows())
    }

    fn sync_due(&self, cx: &dyn CallContext, step_rows: u64) -> Result<Counts, EngineError> {
        let layers = self.indexes()?.sync(cx, None, Extent::Due { step_rows })?;
        let sum = |count: fn(&LayerSync) -> u64| layers.iter().map(count).sum();
        Ok(vec![("change", sum(|layer| layer.changes)), ("row", sum(|layer| layer.rows_written))])
    }

    /// Does a search again that waits for it, to know how well searches find what is near.
    pub(super) fn recheck(&self, cx: &dyn CallContext) -> Result<Counts, EngineError> {
        Ok(vec![("answer", self.indexes()?.recheck(cx)?)])
    }

    /// Drops cached embeddings that are out of date.
    pub(super) fn trim_cache(&self, _: &dyn CallContext) -> Result<Counts, EngineError> {
        Ok(vec![("embedding", self.embedding()?.cache().trim())])
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
pub(super) fn embedding_text<'a>(title: Option<&str>, text: &'a str) -> Cow<'a, str> {
    match title {
        Some(title) => format!("{title}\n{text}").into(),
        None => text.into(),
    }
}
