//! What the engine remembers of a session while it goes on.
use super::{Engine, EngineError, now_ms};
use crate::{resources::scheduler::Counts, store::RecordId};
use magray_plugin_api::CallContext;
use std::{
    collections::HashSet,
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// The records that a session has been shown.
#[derive(Debug, Default)]
pub(super) struct Shown(Mutex<HashSet<RecordId>>);

impl Shown {
    /// Those that it has not been shown before.
    fn new_of(&self, ids: &[RecordId]) -> Vec<RecordId> {
        let mut shown = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter().copied().filter(|&id| shown.insert(id)).collect()
    }
}

impl Engine {
    /// Counts an access of each record; in a session once, however often it asks: who asks again does not make
    /// a record more important.
    pub(super) fn count_accesses(&self, session: Option<&str>, ids: &[RecordId]) -> Result<(), EngineError> {
        match session {
            None => self.store.touch(ids, now_ms()),
            Some(session) => {
                let scope = self.services.scope(session, Instant::now());
                let ids = scope.get::<Shown, _>(&self.services)?.new_of(ids);
                self.store.touch(&ids, now_ms());
            }
        }
        Ok(())
    }

    /// Forgets what sessions were shown that nobody has continued for `[memory] session_idle`.
    pub(super) fn end_sessions(&self, _: &dyn CallContext) -> Result<Counts, EngineError> {
        Ok(vec![("session", self.services.sweep(Instant::now()) as u64)])
    }
}
