//! One backend of the chain: made when it is needed, watched while it works, made anew when it broke.
use super::{
    EmbeddingError, MAX_DIM,
    batch::{Abandoned, Call, CallersContext},
    breaker::Breaker,
    chain::Chain,
    check_vectors,
    metrics::{FailureCounts, Metrics},
};
use crate::{plugins::PluginError, resources::gpu};
use magray_plugin_api::{
    CallContext, DeviceReport, Embedder, Error as ApiError, ErrorCode, Health, MemoryUse, Role,
};
use serde::Serialize;
use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

/// Makes a backend; called again where the one that it made has broken.
pub type Make = Box<dyn Fn() -> Result<Made, PluginError> + Send + Sync>;

/// A backend, fresh from its plugin.
#[expect(missing_debug_implementations, reason = "a backend has nothing to show")]
pub struct Made {
    /// The backend.
    pub embedder: Box<dyn Embedder>,
    /// Plugin, version, component and options that it was made by: two of the same origin that report
    /// the same device compute the same.
    pub origin: String,
}

/// A backend that can be had.
#[expect(missing_debug_implementations, reason = "a backend has nothing to show")]
pub struct Candidate {
    /// Its name in messages and answers: that of the profile.
    pub profile: String,
    /// How to have it.
    pub make: Make,
}

/// How a backend of the chain is.
#[derive(Clone, Debug, Serialize)]
pub struct MemberStatus {
    /// Its profile.
    pub profile: String,
    /// `closed` while it is asked; `open` while it is left alone after failures, `half-open` while it is
    /// being tried again; `hung` while a call that was given up has not returned; `not loaded`, `loading`,
    /// `failed to load`; `refused` where its vectors do not belong to this space.
    pub state: &'static str,
    /// What it failed with last, if it ever did.
    pub last_error: Option<String>,
    /// Where it computes; none while it is not loaded, or hangs.
    #[serde(serialize_with = "device")]
    pub device: Option<DeviceReport>,
    /// What it says of itself, where that is not that all is well.
    pub health: Option<String>,
    /// Texts in one call at most, where it was learnt that memory holds no more.
    pub learnt_batch: Option<usize>,
    /// Its failures by kind.
    pub failures: BTreeMap<&'static str, u64>,
}

fn device<S: serde::Serializer>(report: &Option<DeviceReport>, serializer: S) -> Result<S::Ok, S::Error> {
    let words = report.as_ref().map(|report| {
        [("device", &report.device), ("engine", &report.engine), ("precision", &report.precision)]
    });
    words.map(BTreeMap::from).serialize(serializer)
}

/// A backend of the chain.
pub(super) struct Member {
    pub(super) profile: Arc<str>,
    make: Make,
    slot: Mutex<Slot>,
    loaded: Condvar,
    breaker: Mutex<Breaker>,
    batch: Mutex<LearntBatch>,
    /// Calls that were given up and have not returned.
    stuck: AtomicUsize,
    last_error: Mutex<Option<Arc<str>>>,
    counts: FailureCounts,
}

/// A backend that is loaded.
#[derive(Clone)]
pub(super) struct Backend {
    pub(super) embedder: Arc<dyn Embedder>,
    /// Bytes of memory of the GPU that it computed on when it was loaded, 0 where that is unknown; none on a CPU.
    pub(super) gpu_memory: Option<u64>,
}

enum Slot {
    Empty,
    /// A thread makes it; `given_up` where nobody waits for that any more.
    Loading {
        given_up: bool,
    },
    Ready(Backend),
    Failed,
    /// It does not belong into this chain; for good.
    Refused(EmbeddingError),
}

impl fmt::Debug for Member {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Member").field("profile", &self.profile).finish_non_exhaustive()
    }
}

/// How long one thread waits for another to make a backend before it looks up.
const LOOK_UP: Duration = Duration::from_millis(10);

impl Member {
    pub(super) fn new(candidate: Candidate, breaker: Breaker) -> Self {
        Self {
            profile: candidate.profile.into(),
            make: candidate.make,
            slot: Mutex::new(Slot::Empty),
            loaded: Condvar::new(),
            breaker: Mutex::new(breaker),
            batch: Mutex::default(),
            stuck: AtomicUsize::new(0),
            last_error: Mutex::default(),
            counts: FailureCounts::default(),
        }
    }

    fn slot(&self) -> MutexGuard<'_, Slot> {
        self.slot.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn breaker(&self) -> MutexGuard<'_, Breaker> {
        self.breaker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The backend, where it is loaded.
    pub(super) fn ready(&self) -> Option<Backend> {
        match &*self.slot() {
            Slot::Ready(backend) => Some(backend.clone()),
            _ => None,
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(*self.slot(), Slot::Empty)
    }

    /// Whether it may be asked at all, even though it has failed of late.
    pub(super) fn can_be_asked(&self) -> bool {
        self.stuck.load(Ordering::Acquire) == 0 && !matches!(*self.slot(), Slot::Refused(_))
    }

    /// Whether it works, as far as is known.
    pub(super) fn is_well(&self) -> bool {
        self.can_be_asked() && self.breaker().is_closed()
    }

    pub(super) fn last_error(&self) -> Option<Arc<str>> {
        self.last_error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The backend; makes it where that is due, or waits while another thread does, until `give_up` says so.
    pub(super) fn load(&self, chain: &Chain, give_up: impl Fn() -> bool) -> Result<Backend, EmbeddingError> {
        let mut slot = self.slot();
        loop {
            match &*slot {
                Slot::Ready(backend) => return Ok(backend.clone()),
                Slot::Refused(error) => return Err(error.clone()),
                Slot::Loading { .. } if give_up() => {
                    return Err(EmbeddingError::Hung { backend: self.profile.to_string() });
                }
                Slot::Loading { .. } => {
                    slot = self.loaded.wait_timeout(slot, LOOK_UP).unwrap_or_else(PoisonError::into_inner).0;
                }
                Slot::Empty | Slot::Failed => break,
            }
        }
        *slot = Slot::Loading { given_up: false };
        drop(slot);
        let made = self.make(chain);
        let mut slot = self.slot();
        if matches!(*slot, Slot::Loading { given_up: true }) {
            self.returned();
        }
        *slot = match &made {
            Ok(backend) => Slot::Ready(backend.clone()),
            Err(error @ (EmbeddingError::OtherSpace { .. } | EmbeddingError::Disagrees { .. })) => {
                Slot::Refused(error.clone())
            }
            Err(_) => Slot::Failed,
        };
        self.loaded.notify_all();
        made
    }

    /// Leaves the thread that loads it behind: it hangs.
    pub(super) fn give_up_loading(&self) -> EmbeddingError {
        if let Slot::Loading { given_up } = &mut *self.slot() {
            *given_up = true;
            self.stuck.fetch_add(1, Ordering::AcqRel);
        }
        EmbeddingError::Hung { backend: self.profile.to_string() }
    }

    fn make(&self, chain: &Chain) -> Result<Backend, EmbeddingError> {
        let made = (self.make)().map_err(|error| EmbeddingError::Start(Arc::new(error)))?;
        let info = made.embedder.info();
        if !(1..=MAX_DIM).contains(&info.dim) || info.max_batch == 0 {
            let fault = format!("it reports a width of {} and batches of {}", info.dim, info.max_batch);
            return Err(self.broken(fault));
        }
        let first = chain.space_or(info, &self.profile);
        if (first.info.space, first.info.dim) != (info.space, info.dim) {
            return Err(EmbeddingError::OtherSpace {
                backend: self.profile.to_string(),
                model: info.model.clone(),
                first: first.profile.to_string(),
                first_model: first.info.model.clone(),
            });
        }
        if let Some(gate) = &chain.gate {
            gate.admit(&self.profile, &made)?;
        }
        let device = made.embedder.device().device;
        // The backend has started the driver, so that this is quick.
        let gpu_memory =
            (!device.starts_with("cpu")).then(|| gpu::probe().map_or(0, |gpus| gpus.memory_of(&device)));
        Ok(Backend { embedder: made.embedder.into(), gpu_memory })
    }

    /// The vectors of the call's texts, `[texts, dim]`. Where memory runs out, fewer are asked for at a time.
    pub(super) fn embed(
        &self,
        chain: &Chain,
        place: usize,
        embedder: &dyn Embedder,
        call: &Call,
    ) -> Result<Result<Vec<f32>, EmbeddingError>, Abandoned> {
        let (texts, dim) = (call.batch.texts(), embedder.info().dim);
        // What the backend does not write stays NaN, and is found.
        let mut vectors = vec![f32::NAN; texts.len() * dim];
        let mut done = 0;
        while done < texts.len() {
            let size = self.batch().texts.min(embedder.info().max_batch).min(texts.len() - done);
            let out = &mut vectors[done * dim..][..size * dim];
            let deadline = chain.deadline();
            call.begin(place, deadline)?;
            let cx = CallersContext { call, deadline, clock: &chain.clock };
            let result = embedder.embed(&cx, &texts[done..][..size], call.batch.role, out);
            call.end()?;
            match result {
                Ok(()) => {
                    if let Err(error) = check_vectors(&self.profile, out, dim) {
                        return Ok(Err(error));
                    }
                    self.batch().succeeded(size);
                    done += size;
                }
                Err(error) if error.code() == ErrorCode::OUT_OF_MEMORY && size > 1 => {
                    out.fill(f32::NAN);
                    self.batch().halve(size);
                    Metrics::add(&chain.metrics.halvings, 1);
                    tracing::debug!(
                        "'{}' ran out of memory at {size} texts: {}",
                        self.profile,
                        error.message()
                    );
                }
                Err(error) => return Ok(Err(self.failed_with(error))),
            }
        }
        Ok(Ok(vectors))
    }

    /// Asks it for the vector of a short text, to see whether it works.
    pub(super) fn probe(&self, cx: &dyn CallContext, embedder: &dyn Embedder) -> Result<(), EmbeddingError> {
        let mut vector = vec![f32::NAN; embedder.info().dim];
        embedder
            .embed(cx, &["Does it work again?"], Role::Query, &mut vector)
            .map_err(|error| self.failed_with(error))?;
        check_vectors(&self.profile, &vector, vector.len())
    }

    fn broken(&self, fault: String) -> EmbeddingError {
        EmbeddingError::Broken { backend: self.profile.to_string(), fault }
    }

    pub(super) fn failed_with(&self, error: ApiError) -> EmbeddingError {
        EmbeddingError::Backend { backend: self.profile.to_string(), error }
    }

    fn batch(&self) -> MutexGuard<'_, LearntBatch> {
        self.batch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a failure, and decides what it means for the next call.
    pub(super) fn failed(&self, error: &EmbeddingError, now: Instant) {
        let counter = match error {
            EmbeddingError::Backend { error, .. } => self.counts.code(error.code()),
            EmbeddingError::Broken { .. } => &self.counts.bad_answer,
            EmbeddingError::Hung { .. } => &self.counts.hung,
            EmbeddingError::OtherSpace { .. } | EmbeddingError::Disagrees { .. } => &self.counts.refused,
            _ => &self.counts.not_started,
        };
        Metrics::add(counter, 1);
        *self.last_error.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.to_string().into());
        let panicked =
            matches!(error, EmbeddingError::Backend { error, .. } if error.code() == ErrorCode::PANICKED);
        match error {
            // What was left half done by a panic is not asked again.
            EmbeddingError::Backend { .. } if panicked => {
                self.close();
                self.breaker().trip(now);
            }
            EmbeddingError::Backend { .. } | EmbeddingError::Broken { .. } => self.breaker().failed(now),
            _ => self.breaker().trip(now),
        }
    }

    /// A call of it was given up and has not returned.
    pub(super) fn hangs(&self, now: Instant) -> EmbeddingError {
        self.stuck.fetch_add(1, Ordering::AcqRel);
        let error = EmbeddingError::Hung { backend: self.profile.to_string() };
        self.failed(&error, now);
        error
    }

    /// A call that was given up has returned.
    pub(super) fn returned(&self) {
        self.stuck.fetch_sub(1, Ordering::AcqRel);
    }

    /// Drops the backend, so that the next use makes it anew.
    pub(super) fn close(&self) {
        let mut slot = self.slot();
        if let Slot::Ready(_) = &*slot {
            let old = std::mem::replace(&mut *slot, Slot::Empty);
            drop(slot);
            drop(old);
        }
    }

    /// Memory that it says it holds; none while it is not loaded, or hangs.
    pub(super) fn memory(&self) -> Option<MemoryUse> {
        let hangs = self.stuck.load(Ordering::Acquire) > 0;
        Some(self.ready().filter(|_| !hangs)?.embedder.memory_use())
    }

    pub(super) fn status(&self) -> MemberStatus {
        let hangs = self.stuck.load(Ordering::Acquire) > 0;
        let (state, embedder) = match &*self.slot() {
            _ if hangs => ("hung", None),
            Slot::Loading { .. } => ("loading", None),
            Slot::Refused(_) => ("refused", None),
            Slot::Failed => ("failed to load", None),
            Slot::Empty if self.breaker().is_closed() => ("not loaded", None),
            Slot::Empty => (self.breaker().name(), None),
            Slot::Ready(backend) => (self.breaker().name(), Some(backend.embedder.clone())),
        };
        let learnt = self.batch().texts;
        let health =
            embedder.as_ref().map(|embedder| embedder.health()).filter(|health| *health != Health::ok());
        MemberStatus {
            profile: self.profile.to_string(),
            state,
            last_error: self.last_error().map(|error| error.to_string()),
            device: embedder.as_ref().map(|embedder| embedder.device()),
            health: health.map(|health| health.message),
            learnt_batch: Some(learnt).filter(|learnt| *learnt < usize::MAX),
            failures: self.counts.snapshot(),
        }
    }
}

/// Calls of the full size that must succeed before a little more is tried.
const CALLS_BEFORE_MORE: u32 = 32;

/// How many texts memory holds at once, as far as is known.
#[derive(Debug)]
struct LearntBatch {
    texts: usize,
    /// Calls of this size that succeeded one after the other.
    succeeded: u32,
}

impl Default for LearntBatch {
    fn default() -> Self {
        Self { texts: usize::MAX, succeeded: 0 }
    }
}

impl LearntBatch {
    fn halve(&mut self, size: usize) {
        *self = Self { texts: (size / 2).max(1), succeeded: 0 };
    }

    fn succeeded(&mut self, size: usize) {
        if size < self.texts {
            return;
        }
        self.succeeded += 1;
        if self.succeeded == CALLS_BEFORE_MORE {
            *self = Self { texts: self.texts + self.texts / 8 + 1, succeeded: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_memory_does_not_hold_is_halved_and_slowly_raised_again() {
        let mut batch = LearntBatch::default();
        batch.succeeded(1000);
        assert_eq!(batch.texts, usize::MAX);
        batch.halve(100);
        assert_eq!(batch.texts, 50);
        batch.halve(1);
        assert_eq!(batch.texts, 1);
        batch.halve(100);
        for _ in 0..100 {
            batch.succeeded(49);
        }
        assert_eq!(batch.texts, 50, "smaller calls say nothing");
        (0..CALLS_BEFORE_MORE).for_each(|_| batch.succeeded(50));
        assert_eq!(batch.texts, 57);
    }
}
