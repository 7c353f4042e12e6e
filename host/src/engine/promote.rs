use super::{Engine, EngineError, now_ms};
use crate::{
    memory::promotion::{self, Policy, PromotionOptions, PromotionReport},
    resources::scheduler::Counts,
    store::{CycleRecord, Layer, Record, RecordId, SpaceId, Undone},
};
use magray_plugin_api::CallContext;

impl Engine {
    /// One cycle of promotion: records that are used move to the next layer, and what is due and does not
    /// deserve to is deleted. In batches, each a transaction; where `cx` ends it between two of them,
    /// the report says so and has all that moved. Any number of processes may be at it at once. Needs no
    /// model: without it the vectors that are stored count.
    ///
    /// # Errors
    /// [`EngineError`]; the batches before that stand.
    pub fn promote(
        &self,
        cx: &dyn CallContext,
        options: &PromotionOptions,
    ) -> Result<PromotionReport, EngineError> {
        let space = self.promotion_space()?;
        Ok(promotion::promote(cx, &self.store, space, &self.promotion_policy(), options, now_ms())?)
    }

    /// The space of the vectors that count: that of the model in force. Where it cannot be had, records are
    /// past their time all the same, so it is the one that the store was switched to, or else the newest.
    /// None where nothing was ever embedded.
    fn promotion_space(&self) -> Result<Option<SpaceId>, EngineError> {
        let error = match self.vectors() {
            Ok(vectors) => return Ok(Some(vectors.space)),
            Err(error) => error,
        };
        tracing::debug!("records are promoted by the vectors that are stored: {error}");
        if let Some(active) = self.store.active_model()? {
            return Ok(Some(active.space));
        }
        Ok(self.store.spaces()?.last().map(|space| space.id))
    }

    /// The settings by which records are promoted.
    pub fn promotion_policy(&self) -> Policy {
        Policy::new(&self.setup.config.memory)
    }

    /// The records of these ids, which are fit to be promoted by hand.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for one that is not, with the reason; or another [`EngineError`].
    pub fn promotable(&self, ids: &[String]) -> Result<Vec<RecordId>, EngineError> {
        let mut promotable = Vec::with_capacity(ids.len());
        for id in ids {
            let reason = match self.store.get(id)? {
                None => format!("there is no record {id}"),
                Some(Record { layer: Layer::Assets, .. }) => format!("record {id} is in assets already"),
                Some(Record { source: Some(source), .. }) => format!(
                    "record {id} is of the file {}; index the file with --layer to move all of it",
                    source.path
                ),
                Some(Record { superseded_by: Some(_), .. }) => format!("record {id} is superseded"),
                Some(record) => {
                    promotable.push(record.id);
                    continue;
                }
            };
            return Err(EngineError::Invalid(reason));
        }
        Ok(promotable)
    }

    /// Takes back what a cycle moved, by default the last one of which something can be; see
    /// [`Store::undo_promotions`](crate::store::Store::undo_promotions).
    ///
    /// # Errors
    /// [`EngineError::Store`]; then nothing is taken back.
    pub fn undo_promotion(&self, cycle: Option<i64>) -> Result<Option<Undone>, EngineError> {
        self.store.flush()?;
        Ok(self.store.undo_promotions(cycle, now_ms())?)
    }

    /// The last `limit` cycles that moved something, newest first.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub fn promotion_history(&self, limit: usize) -> Result<Vec<CycleRecord>, EngineError> {
        Ok(self.store.promotion_history(limit)?)
    }

    /// What a command does of it: a cycle where it is time for one, else what is due.
    pub(super) fn promote_if_due(&self, cx: &dyn CallContext) -> Result<(), EngineError> {
        let settings = &self.setup.config.memory.promotion;
        let since = self.store.promotion_state()?.map(|(cycled_ms, _)| now_ms().saturating_sub(cycled_ms));
        if since.is_none_or(|since| since >= settings.every_seconds.saturating_mul(1000)) {
            self.promote_all(cx)?;
        } else {
            self.expire(cx)?;
        }
        Ok(())
    }

    /// Looks at records that are due: those that deserve it are promoted, the others deleted. Loads the model
    /// where there are any, and does without it where it cannot be had.
    pub(crate) fn expire(&self, cx: &dyn CallContext) -> Result<Counts, EngineError> {
        if self.store.any_due(now_ms())? { self.promote_all(cx) } else { Ok(Counts::new()) }
    }

    /// A cycle, or where promotion is off the part of it that deletes.
    pub(super) fn promote_all(&self, cx: &dyn CallContext) -> Result<Counts, EngineError> {
        if !self.setup.config.memory.promotion.enabled {
            return Ok(vec![("record", self.store.expire(now_ms())? as u64)]);
        }
        let report = self.promote(cx, &PromotionOptions::default())?;
        if let Some(cycle) = report.cycle {
            tracing::info!(
                "promoted {} records; `magray promote --undo {cycle}` takes that back",
                report.moves.len()
            );
        }
        Ok(vec![("record", report.expired), ("promotion", report.moves.len() as u64)])
    }
}
