use super::{Instance, Lookup, Once, ServiceError, Services};
use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// The scoped services of one name, such as a session's.
///
/// Threads: any number of calls at once.
#[expect(missing_debug_implementations, reason = "services have nothing to show")]
pub struct Scope(Vec<Once<Instance>>);

impl Scope {
    /// The one of this scope, or a singleton; made where it was not yet.
    ///
    /// # Errors
    /// Those of its factory, which is tried again by the next who asks; `Unknown`.
    pub fn get<'a, T, E>(&'a self, services: &'a Services<E>) -> Result<&'a T, E>
    where
        T: Send + Sync + 'static,
        E: From<ServiceError>,
    {
        Lookup { services, scope: Some(self) }.get()
    }

    pub(super) fn instance(&self, place: usize) -> Option<&Once<Instance>> {
        self.0.get(place)
    }
}

/// The scopes that are kept.
pub(super) struct Scopes {
    /// Places for instances in each.
    places: usize,
    life: Option<Duration>,
    /// With when each was used last.
    by_name: Mutex<HashMap<String, (Arc<Scope>, Instant)>>,
}

impl Scopes {
    pub(super) fn new(places: usize, life: Option<Duration>) -> Self {
        Self { places, life, by_name: Mutex::default() }
    }

    pub(super) fn enter(&self, name: &str, now: Instant) -> Arc<Scope> {
        let mut scopes = self.lock();
        if let Some((scope, used)) = scopes.get_mut(name) {
            *used = now.max(*used);
            return Arc::clone(scope);
        }
        let scope = Arc::new(Scope((0..self.places).map(|_| Once::default()).collect()));
        scopes.insert(name.to_owned(), (Arc::clone(&scope), now));
        scope
    }

    pub(super) fn sweep(&self, now: Instant) -> usize {
        let Some(life) = self.life else { return 0 };
        let mut scopes = self.lock();
        let idle: Vec<_> =
            scopes.extract_if(|_, (_, used)| now.saturating_duration_since(*used) >= life).collect();
        // What is in them is dropped when nobody waits for the lock.
        drop(scopes);
        idle.len()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, (Arc<Scope>, Instant)>> {
        self.by_name.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
