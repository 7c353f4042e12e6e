//! What travels through the pipeline: requests, the batches that are made of them, and the call of a
//! backend for a batch. All own what they need, so that a call that never returns can be left behind.
use super::{EmbeddingError, Served, chain::Clock};
use magray_plugin_api::{CallContext, Role};
use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// Whether somebody sits and waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Goes before all bulk work, and is turned away rather than kept waiting for long.
    Interactive,
    /// Waits for a full batch, and for its turn.
    Bulk,
}

/// Texts, one after the other in one allocation.
#[derive(Debug)]
pub(super) struct Texts {
    buffer: String,
    ends: Vec<usize>,
}

impl Texts {
    pub(super) fn new(texts: &[&str]) -> Self {
        let mut buffer = String::with_capacity(texts.iter().map(|text| text.len()).sum());
        let ends = texts.iter().map(|text| {
            buffer.push_str(text);
            buffer.len()
        });
        Self { ends: ends.collect(), buffer }
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn bytes(&self) -> usize {
        self.buffer.len()
    }

    fn get(&self, row: u32) -> &str {
        let row = row as usize;
        let start = row.checked_sub(1).map_or(0, |before| self.ends[before]);
        &self.buffer[start..self.ends[row]]
    }
}

/// One call of the pipeline. The caller waits for it; workers fill in the answer.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) texts: Texts,
    pub(super) role: Role,
    pub(super) urgency: Urgency,
    pub(super) deadline: Option<Instant>,
    pub(super) entered: Instant,
    /// The caller no longer waits.
    gone: AtomicBool,
    answer: Mutex<Answer>,
    arrived: Condvar,
}

/// What has come of a request so far.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) parts: Vec<Rows>,
    /// Texts without a vector yet.
    pub(super) missing: usize,
    pub(super) error: Option<EmbeddingError>,
}

/// Vectors of some texts of a request.
#[derive(Debug)]
pub(super) struct Rows {
    /// Which texts, in the order of the vectors.
    pub(super) rows: Vec<u32>,
    /// The vectors of a whole batch, `[texts, dim]` row-major; those of `rows` begin at text `first`.
    pub(super) vectors: Arc<Vec<f32>>,
    pub(super) first: usize,
    pub(super) served: Served,
    /// How long the backend took for a text.
    pub(super) text_time: Duration,
}

impl Request {
    pub(super) fn new(texts: &[&str], role: Role, urgency: Urgency, deadline: Option<Instant>) -> Self {
        let answer = Answer { parts: Vec::new(), missing: texts.len(), error: None };
        Self {
            texts: Texts::new(texts),
            role,
            urgency,
            deadline,
            entered: Instant::now(),
            gone: AtomicBool::new(false),
            answer: Mutex::new(answer),
            arrived: Condvar::new(),
        }
    }

    pub(super) fn leave(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    pub(super) fn answer(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for more of the answer, at most `time`.
    pub(super) fn wait<'a>(&self, answer: MutexGuard<'a, Answer>, time: Duration) -> MutexGuard<'a, Answer> {
        self.arrived.wait_timeout(answer, time).unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Texts of requests of one role that go to a backend together.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) role: Role,
    /// Requests with the numbers of their texts.
    pub(super) parts: Vec<(Arc<Request>, Vec<u32>)>,
}

impl Batch {
    pub(super) fn len(&self) -> usize {
        self.parts.iter().map(|(_, rows)| rows.len()).sum()
    }

    pub(super) fn texts(&self) -> Vec<&str> {
        let texts =
            self.parts.iter().flat_map(|(request, rows)| rows.iter().map(|&row| request.texts.get(row)));
        texts.collect()
    }

    /// Whether nobody waits for it any more.
    pub(super) fn is_deserted(&self) -> bool {
        self.parts.iter().all(|(request, _)| request.is_gone())
    }

    /// The time by which the last caller has given up; none where one waits for ever.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let deadlines = self.parts.iter().map(|(request, _)| request.deadline);
        deadlines.collect::<Option<Vec<_>>>().and_then(|deadlines| deadlines.into_iter().max())
    }

    /// Gives each request its vectors, of `vectors` `[texts, dim]`.
    pub(super) fn deliver(&self, vectors: Vec<f32>, served: &Served, text_time: Duration) {
        let vectors = Arc::new(vectors);
        let mut first = 0;
        for (request, rows) in &self.parts {
            let mut answer = request.answer();
            answer.missing -= rows.len();
            let (rows, vectors, served) = (rows.clone(), vectors.clone(), served.clone());
            let count = rows.len();
            answer.parts.push(Rows { rows, vectors, first, served, text_time });
            first += count;
            drop(answer);
            request.arrived.notify_one();
        }
    }

    /// Tells each request that it has no answer.
    pub(super) fn fail(&self, error: &EmbeddingError) {
        for (request, _) in &self.parts {
            request.answer().error.get_or_insert_with(|| error.clone());
            request.arrived.notify_one();
        }
    }
}

/// A batch in the hands of a worker.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) batch: Arc<Batch>,
    attempt: Mutex<Attempt>,
}

#[derive(Clone, Debug, Default)]
struct Attempt {
    /// The backend that works on it, by its place in the chain, and when it has taken too long.
    running: Option<(usize, Instant)>,
    /// Somebody has decided that it hangs: whatever it returns is void.
    is_abandoned: bool,
    /// The backends that have failed at it, by their place in the chain, and how.
    failures: Vec<(usize, EmbeddingError)>,
    /// When the last of them did.
    failed_at: Option<Instant>,
}

/// The call was given to somebody else; who hears of it goes away quietly.
#[derive(Debug)]
pub(super) struct Abandoned;

impl Call {
    pub(super) fn new(batch: Batch) -> Self {
        Self { batch: Arc::new(batch), attempt: Mutex::default() }
    }

    /// The same batch, for another worker.
    pub(super) fn again(&self) -> Self {
        let attempt = Attempt { running: None, is_abandoned: false, ..self.attempt().clone() };
        Self { batch: self.batch.clone(), attempt: Mutex::new(attempt) }
    }

    fn attempt(&self) -> MutexGuard<'_, Attempt> {
        self.attempt.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A backend begins; it has until `deadline`.
    pub(super) fn begin(&self, member: usize, deadline: Instant) -> Result<(), Abandoned> {
        let mut attempt = self.attempt();
        if attempt.is_abandoned {
            return Err(Abandoned);
        }
        attempt.running = Some((member, deadline));
        Ok(())
    }

    /// A backend has ended.
    pub(super) fn end(&self) -> Result<(), Abandoned> {
        let mut attempt = self.attempt();
        attempt.running = None;
        if attempt.is_abandoned { Err(Abandoned) } else { Ok(()) }
    }

    /// Notes that a backend has failed at it.
    pub(super) fn failed(&self, member: usize, error: EmbeddingError, now: Instant) {
        let mut attempt = self.attempt();
        attempt.failures.push((member, error));
        attempt.failed_at = Some(now);
    }

    /// The backends that have failed at it, and how.
    pub(super) fn failures(&self) -> Vec<(usize, EmbeddingError)> {
        self.attempt().failures.clone()
    }

    /// When the last backend failed, where another one has not begun since.
    pub(super) fn take_failure_time(&self) -> Option<Instant> {
        self.attempt().failed_at.take()
    }

    /// Abandons the call where its backend has taken too long, and returns which one that is.
    pub(super) fn abandon_if_late(&self, now: Instant) -> Option<usize> {
        let mut attempt = self.attempt();
        let (member, _) = attempt.running.filter(|(_, deadline)| *deadline <= now)?;
        attempt.running = None;
        attempt.is_abandoned = true;
        Some(member)
    }

    pub(super) fn is_abandoned(&self) -> bool {
        self.attempt().is_abandoned
    }
}

/// What a backend may ask of the callers of its batch.
pub(super) struct CallersContext<'a> {
    pub(super) call: &'a Call,
    /// By when the backend must have returned, whatever the callers say.
    pub(super) deadline: Instant,
    pub(super) clock: &'a Clock,
}

impl CallContext for CallersContext<'_> {
    fn is_cancelled(&self) -> bool {
        self.call.is_abandoned() || self.call.batch.is_deserted()
    }
    fn remaining(&self) -> Option<Duration> {
        let callers = self.call.batch.deadline();
        let callers = callers.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let own = self.deadline.saturating_duration_since((self.clock)());
        Some(callers.map_or(own, |callers| callers.min(own)))
    }
    // Progress is that of a request, and is told batch by batch.
    fn progress(&self, _done: u64, _total: u64) {}
}
