//! The parts of a system, by type: each is made of others when it is first wanted, or all at the start.
//!
//! A part is a singleton, one of each scope (such as a session), or made anew for whoever asks. Its factory is
//! given the parts that it [`Needs`] and nothing else, so that who needs whom is known when the services are
//! put together: a cycle is an error then, and threads that make parts wait for one another along a graph
//! without one, so for ever none does. What is made is found without a lock.
mod error;
mod needs;
mod once;
mod scope;
#[cfg(test)]
mod tests;

pub use error::ServiceError;
pub use needs::{Key, Needs};
pub use once::Once;
pub use scope::Scope;

use scope::Scopes;
use std::{
    any::{Any, TypeId},
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

/// Of so many resolutions one is timed: reading a clock takes longer than most of them.
const TIMED: u64 = 64;

type Instance = Box<dyn Any + Send + Sync>;
type Make<E> = Box<dyn Fn(&Lookup<'_, E>) -> Result<Instance, E> + Send + Sync>;

/// How long a service lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// As long as the services; made by [`Builder::build_and_warm_up`].
    Singleton,
    /// As long as the services; made when it is first wanted.
    Lazy,
    /// As long as its scope; made when it is first wanted there.
    Scoped,
    /// As long as whoever asked likes.
    Transient,
}

/// How often a service was asked for, and what that took.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceMetrics {
    /// Its type.
    pub name: &'static str,
    /// How long it lives.
    pub life: Life,
    /// How often it was asked for.
    pub resolutions: u64,
    /// What that took when it was there already (of one that is transient, its making), as measured now and then.
    pub mean_ns: f64,
    /// How often it was made, how long that took in all, and how often it failed.
    pub made: u64,
    /// See `made`.
    pub making: Duration,
    /// See `made`.
    pub failed: u64,
}

#[derive(Default)]
struct Counters {
    resolutions: AtomicU64,
    timed: AtomicU64,
    timed_ns: AtomicU64,
    made: AtomicU64,
    making_ns: AtomicU64,
    failed: AtomicU64,
}

struct Service<E> {
    key: Key,
    life: Life,
    needs: Vec<Key>,
    make: Make<E>,
    /// Of a singleton.
    instance: Once<Instance>,
    counters: Counters,
}

/// A `TypeId` is a hash already.
#[derive(Default)]
struct ByType(u64);

impl Hasher for ByType {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            self.0 ^= chunk.iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
        }
    }
    fn write_u64(&mut self, number: u64) {
        self.0 ^= number;
    }
}

/// The parts of a system. `E` is what factories fail with.
///
/// Threads: any number of calls at once.
#[expect(missing_debug_implementations, reason = "factories have nothing to show")]
pub struct Services<E> {
    services: Vec<Service<E>>,
    places: HashMap<TypeId, usize, BuildHasherDefault<ByType>>,
    scopes: Scopes,
}

/// Where services are registered.
#[expect(missing_debug_implementations, reason = "factories have nothing to show")]
pub struct Builder<E> {
    services: Vec<Service<E>>,
    scope_life: Option<Duration>,
}

impl<E: From<ServiceError> + Send + 'static> Builder<E> {
    /// A service that lives as `life` says, made of `N`.
    #[must_use]
    pub fn register<T, N>(
        mut self,
        life: Life,
        make: impl for<'a> Fn(N::Found<'a>) -> Result<T, E> + Send + Sync + 'static,
    ) -> Self
    where
        T: Send + Sync + 'static,
        N: Needs,
    {
        let make: Make<E> = Box::new(move |lookup| Ok(Box::new(make(N::find(lookup)?)?)));
        let (instance, counters) = (Once::default(), Counters::default());
        self.services.push(Service { key: Key::of::<T>(), life, needs: N::keys(), make, instance, counters });
        self
    }

    /// How long a scope that nobody enters is kept; without it, for good.
    #[must_use]
    pub fn scope_life(mut self, life: Option<Duration>) -> Self {
        self.scope_life = life;
        self
    }

    /// Makes nothing yet.
    ///
    /// # Errors
    /// [`ServiceError`] where services need what is not there or is out of their reach, or one another.
    pub fn build(self) -> Result<Services<E>, ServiceError> {
        Ok(self.put_together()?.0)
    }

    /// Makes every singleton too, what others need first, and those that do not need one another side by side.
    ///
    /// # Errors
    /// As [`Builder::build`], or that of the first factory that fails.
    pub fn build_and_warm_up(self) -> Result<Services<E>, E> {
        let (services, levels) = self.put_together()?;
        for level in levels {
            services.warm_up(&level)?;
        }
        Ok(services)
    }

    /// The services, and their places: those in one list need only those in the lists before.
    fn put_together(self) -> Result<(Services<E>, Vec<Vec<usize>>), ServiceError> {
        let mut places = HashMap::default();
        for (place, service) in self.services.iter().enumerate() {
            if places.insert(service.key.id, place).is_some() {
                return Err(ServiceError::Twice(service.key.name));
            }
        }
        let mut needs = Vec::with_capacity(self.services.len());
        for service in &self.services {
            let mut needed = Vec::with_capacity(service.needs.len());
            for need in &service.needs {
                let &place = places.get(&need.id).ok_or(ServiceError::Unknown(need.name))?;
                let what = match (self.services[place].life, service.life) {
                    (Life::Transient, _) => Some("transient and nobody's to keep"),
                    (Life::Scoped, Life::Singleton | Life::Lazy | Life::Transient) => Some("of a scope only"),
                    _ => None,
                };
                if let Some(what) = what {
                    return Err(ServiceError::OutOfReach {
                        service: service.key.name,
                        needs: need.name,
                        what,
                    });
                }
                needed.push(place);
            }
            needs.push(needed);
        }
        let levels = levels(&needs).map_err(|cycle| {
            ServiceError::Cycle(cycle.into_iter().map(|place| self.services[place].key.name).collect())
        })?;
        let scoped = self.services.len();
        Ok((
            Services { services: self.services, places, scopes: Scopes::new(scoped, self.scope_life) },
            levels,
        ))
    }
}

/// Sorts by who needs whom; else a cycle, from one to itself.
fn levels(needs: &[Vec<usize>]) -> Result<Vec<Vec<usize>>, Vec<usize>> {
    let mut left: Vec<usize> = (0..needs.len()).collect();
    let mut levels: Vec<Vec<usize>> = Vec::new();
    while let Some(&first) = left.first() {
        let (ready, rest): (Vec<_>, Vec<_>) =
            left.iter().partition(|&&place| needs[place].iter().all(|need| !left.contains(need)));
        if ready.is_empty() {
            // Each of them needs another of them: whoever follows that comes by one twice.
            let mut way = vec![first];
            loop {
                let next = needs[way[way.len() - 1]].iter().find(|need| left.contains(need));
                let next = next.copied().unwrap_or(first);
                let start = way.iter().position(|&place| place == next);
                way.push(next);
                if let Some(start) = start {
                    return Err(way.split_off(start));
                }
            }
        }
        levels.push(ready);
        left = rest;
    }
    Ok(levels)
}

impl<E: From<ServiceError> + Send + 'static> Services<E> {
    /// Nothing is registered yet.
    pub fn builder() -> Builder<E> {
        Builder { services: Vec::new(), scope_life: None }
    }

    /// A singleton; made where it was not yet.
    ///
    /// # Errors
    /// Those of its factory, which is tried again by the next who asks; `Unknown`.
    pub fn get<T: Send + Sync + 'static>(&self) -> Result<&T, E> {
        Lookup { services: self, scope: None }.get()
    }

    /// A new one of a transient service.
    ///
    /// # Errors
    /// Those of its factory; `Unknown`.
    pub fn make<T: Send + Sync + 'static>(&self) -> Result<T, E> {
        let service = self.service::<T>(|life| life == Life::Transient)?;
        let lookup = Lookup { services: self, scope: None };
        let made = service.counters.resolve(|| service.make(&lookup))?;
        made.downcast().map(|made| *made).map_err(|_| ServiceError::Unknown(service.key.name).into())
    }

    /// The scope of this name, made where there is none, and used at `now`.
    pub fn scope(&self, name: &str, now: Instant) -> std::sync::Arc<Scope> {
        self.scopes.enter(name, now)
    }

    /// Drops the scopes that were not used for as long as they are kept. Whoever holds one goes on with it.
    /// Returns how many went.
    pub fn sweep(&self, now: Instant) -> usize {
        self.scopes.sweep(now)
    }

    /// What became of each service.
    pub fn metrics(&self) -> Vec<ServiceMetrics> {
        self.services.iter().map(Service::metrics).collect()
    }

    fn service<T: 'static>(&self, is_right: impl Fn(Life) -> bool) -> Result<&Service<E>, ServiceError> {
        let key = Key::of::<T>();
        let service = self.places.get(&key.id).map(|&place| &self.services[place]);
        service.filter(|service| is_right(service.life)).ok_or(ServiceError::Unknown(key.name))
    }

    fn warm_up(&self, level: &[usize]) -> Result<(), E> {
        let singletons = level.iter().map(|&place| &self.services[place]);
        let mut singletons = singletons.filter(|service| service.life == Life::Singleton);
        let Some(first) = singletons.next() else { return Ok(()) };
        let lookup = &Lookup { services: self, scope: None };
        thread::scope(|scope| {
            // Where the system has no thread to give, this one does all.
            let others: Vec<_> = singletons
                .map(|service| {
                    let make = move || lookup.instance(service, &service.instance).map(drop);
                    (service, thread::Builder::new().spawn_scoped(scope, make))
                })
                .collect();
            let mut made = lookup.instance(first, &first.instance).map(drop);
            for (service, other) in others {
                let other = match other {
                    Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)),
                    Err(_) => lookup.instance(service, &service.instance).map(drop),
                };
                made = made.and(other);
            }
            made
        })
    }
}

/// Where a service is looked for: among the singletons, and in a scope where there is one.
#[expect(missing_debug_implementations, reason = "services have nothing to show")]
pub struct Lookup<'a, E> {
    services: &'a Services<E>,
    scope: Option<&'a Scope>,
}

impl<'a, E: From<ServiceError>> Lookup<'a, E> {
    fn get<T: Send + Sync + 'static>(&self) -> Result<&'a T, E> {
        let key = Key::of::<T>();
        let place = self.services.places.get(&key.id).copied();
        let found = place.and_then(|place| {
            let service = &self.services.services[place];
            Some((
                service,
                match service.life {
                    Life::Singleton | Life::Lazy => &service.instance,
                    Life::Scoped => self.scope?.instance(place)?,
                    Life::Transient => return None,
                },
            ))
        });
        let (service, once) = found.ok_or(ServiceError::Unknown(key.name))?;
        let instance = service.counters.resolve(|| self.instance(service, once))?;
        Ok(instance.downcast_ref().ok_or(ServiceError::Unknown(key.name))?)
    }

    fn instance(&self, service: &'a Service<E>, once: &'a Once<Instance>) -> Result<&'a Instance, E> {
        match once.get() {
            Some(instance) => Ok(instance),
            None => once.get_or_try_make(|| service.make(self)),
        }
    }
}

impl<E> Service<E> {
    fn make(&self, lookup: &Lookup<'_, E>) -> Result<Instance, E> {
        let started = Instant::now();
        let made = (self.make)(lookup);
        let counters = &self.counters;
        counters.making_ns.fetch_add(nanoseconds(started), Ordering::Relaxed);
        let count = if made.is_ok() { &counters.made } else { &counters.failed };
        count.fetch_add(1, Ordering::Relaxed);
        made
    }

    fn metrics(&self) -> ServiceMetrics {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.counters;
        ServiceMetrics {
            name: self.key.name,
            life: self.life,
            resolutions: read(&counters.resolutions),
            mean_ns: read(&counters.timed_ns) as f64 / read(&counters.timed).max(1) as f64,
            made: read(&counters.made),
            making: Duration::from_nanos(read(&counters.making_ns)),
            failed: read(&counters.failed),
        }
    }
}

impl Counters {
    /// Counts a resolution, and times it now and then; never the first, which makes the service.
    fn resolve<T>(&self, resolve: impl FnOnce() -> T) -> T {
        if self.resolutions.fetch_add(1, Ordering::Relaxed) % TIMED != TIMED - 1 {
            return resolve();
        }
        let started = Instant::now();
        let resolved = resolve();
        self.timed.fetch_add(1, Ordering::Relaxed);
        self.timed_ns.fetch_add(nanoseconds(started), Ordering::Relaxed);
        resolved
    }
}

fn nanoseconds(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_nanos()).unwrap_or(u64::MAX)
}
