use super::{EngineError, Setup};
use std::path::Path;

impl Setup {
    /// Refuses a large write before it begins, where it would leave less free than
    /// `[store] min_free_bytes`.
    ///
    /// # Errors
    /// [`EngineError::NoRoom`].
    pub(super) fn ensure_room(&self, dir: &Path, needed: u64, what: &str) -> Result<(), EngineError> {
        let reserve = self.config.store.min_free_bytes;
        // A system that does not say how much there is will say when there is no more.
        match fs4::available_space(dir) {
            Ok(free) if needed.saturating_add(reserve) > free => Err(EngineError::NoRoom {
                dir: dir.to_path_buf(),
                what: what.to_owned(),
                needed,
                free,
                reserve,
            }),
            _ => Ok(()),
        }
    }
}
