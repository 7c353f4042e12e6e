use super::{Engine, EngineError, Setup};
use crate::store::{Layer, SpaceId, free_where_short};
use std::{path::Path, sync::atomic::Ordering::Relaxed};

/// Bytes that a record takes on disk beside text and vector.
const RECORD_BYTES: u64 = 1024;
/// Times that a text is written: as a record, into the keywords, and once more into the log of both.
const TEXT_COPIES: u64 = 4;

/// About what records take on disk: so many of them, with so many bytes of text, with vectors `dim` wide.
pub(super) fn record_bytes(records: u64, text_bytes: u64, dim: usize) -> u64 {
    // A vector is f16, and is written to the log too.
    records * (RECORD_BYTES + 4 * dim as u64) + TEXT_COPIES * text_bytes
}

impl Setup {
    /// Refuses a large write before it begins, where it would leave less free than
    /// `[store] min_free_bytes`. Where that is 0, the disk itself says when it is full.
    ///
    /// # Errors
    /// [`EngineError::NoRoom`].
    pub(super) fn ensure_room(&self, dir: &Path, needed: u64, what: &str) -> Result<(), EngineError> {
        let reserve = self.config.store.min_free_bytes;
        match free_where_short(dir, needed, reserve) {
            Some(free) => Err(EngineError::NoRoom {
                dir: dir.to_path_buf(),
                what: what.to_owned(),
                needed,
                free,
                reserve,
            }),
            None => Ok(()),
        }
    }
}

impl Engine {
    /// Refuses a write of `new` records that would store more vectors than `scaling_max_vectors`.
    ///
    /// # Errors
    /// [`EngineError::Full`].
    pub(super) fn ensure_capacity(&self, space: SpaceId, new: u64) -> Result<(), EngineError> {
        let most = self.setup.config.memory.resource_manager.scaling_max_vectors;
        let last = self.store.last_record()?;
        // There are no more records than ids, so they need not be counted until there are many.
        if last.saturating_add(new) <= self.counted_to.load(Relaxed).max(most) {
            return Ok(());
        }
        let layers = Layer::ALL.into_iter();
        let counts = layers.map(|layer| self.store.vector_count(space, layer));
        let stored = counts.sum::<Result<u64, _>>()?;
        if stored.saturating_add(new) > most {
            return Err(EngineError::Full { stored, new, most });
        }
        // Each record that comes takes an id at least.
        self.counted_to.store(last + (most - stored), Relaxed);
        Ok(())
    }
}
