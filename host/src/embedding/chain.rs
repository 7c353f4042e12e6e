//! The backends of a profile in the order in which they are asked, all of one space. The first that works
//! answers; one that fails is left alone for a while and then tried again beside the work.
use super::{
    EmbeddingError, Served,
    batch::{Abandoned, Call},
    breaker::{Breaker, BreakerOptions},
    member::{Backend, Candidate, Member},
    metrics::Metrics,
    parity::Gate,
};
use magray_plugin_api::{CallContext, EmbedderInfo, ErrorCode};
use std::{
    fmt,
    sync::{
        Arc, Condvar, Mutex, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

/// Tells the time by which calls are given up and breakers opened.
pub(super) type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// How long the end of the program waits for threads that try or prepare backends.
const PATIENCE_AT_END: Duration = Duration::from_secs(5);

/// What the vectors of a chain are.
#[derive(Debug)]
pub(super) struct ChainSpace {
    pub(super) info: EmbedderInfo,
    /// The backend that said so first.
    pub(super) profile: String,
}

pub(super) struct Chain {
    pub(super) members: Vec<Member>,
    pub(super) gate: Option<Gate>,
    pub(super) clock: Clock,
    pub(super) metrics: Metrics,
    call_timeout: Duration,
    space: OnceLock<ChainSpace>,
    /// Whether the next backend is to be ready before it is needed.
    standby: AtomicBool,
    /// Threads that try or prepare backends.
    helpers: Mutex<usize>,
    helper_ended: Condvar,
}

impl fmt::Debug for Chain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Chain").field("members", &self.members).finish_non_exhaustive()
    }
}

impl Chain {
    pub(super) fn new(
        candidates: Vec<Candidate>,
        gate: Option<Gate>,
        breaker: BreakerOptions,
        call_timeout: Duration,
        clock: Clock,
    ) -> Arc<Self> {
        let members = candidates.into_iter();
        Arc::new(Self {
            members: members.map(|candidate| Member::new(candidate, Breaker::new(breaker))).collect(),
            gate,
            clock,
            metrics: Metrics::default(),
            call_timeout,
            space: OnceLock::new(),
            standby: AtomicBool::new(false),
            helpers: Mutex::new(0),
            helper_ended: Condvar::new(),
        })
    }

    /// Loads the first backend that can be had, and returns what it says of its vectors.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn start(self: &Arc<Self>) -> Result<EmbedderInfo, EmbeddingError> {
        let mut failures: Vec<(usize, EmbeddingError)> = Vec::new();
        for (place, member) in self.members.iter().enumerate() {
            self.warn_of_switch(&failures, member);
            // On a thread of its own, since it may never return.
            let (sender, receiver) = mpsc::channel();
            self.help(place, move |chain, member| {
                let loaded = member.load(chain, || false);
                // Nobody waits any more for a load that was given up.
                let _ = sender.send(loaded);
            });
            let loaded = receiver.recv_timeout(self.call_timeout).unwrap_or_else(|error| match error {
                RecvTimeoutError::Timeout => Err(member.give_up_loading()),
                // There was no thread to be had.
                RecvTimeoutError::Disconnected => member.load(self, || false),
            });
            match loaded {
                Ok(backend) => return Ok(backend.embedder.info().clone()),
                Err(error) => {
                    member.failed(&error, self.now());
                    failures.push((place, error));
                }
            }
        }
        Err(self.none_left(failures))
    }

    /// What the vectors are; `info` of the backend `profile` says so, where none was loaded before.
    pub(super) fn space_or(&self, info: &EmbedderInfo, profile: &str) -> &ChainSpace {
        self.space.get_or_init(|| ChainSpace { info: info.clone(), profile: profile.to_owned() })
    }

    pub(super) fn now(&self) -> Instant {
        (self.clock)()
    }

    /// By when a call that begins now must have returned.
    pub(super) fn deadline(&self) -> Instant {
        self.now() + self.call_timeout
    }

    /// The backend that the next call will ask, with its place.
    pub(super) fn serving(&self) -> Option<(usize, Backend)> {
        let ready = |well: bool| {
            let mut members = self
                .members
                .iter()
                .enumerate()
                .filter(move |(_, member)| if well { member.is_well() } else { member.can_be_asked() });
            members.find_map(|(place, member)| Some((place, member.ready()?)))
        };
        ready(true).or_else(|| ready(false))
    }

    /// Who answers where the backend at `place` does.
    pub(super) fn served_by(&self, place: usize, backend: &Backend) -> Served {
        let fallback = self.members[..place].iter().find_map(Member::last_error);
        Served { profile: self.members[place].profile.clone(), fallback, embedder: backend.embedder.clone() }
    }

    /// The vectors of the call's batch, `[texts, dim]`, and who computed them.
    pub(super) fn run(
        self: &Arc<Self>,
        call: &Call,
    ) -> Result<Result<(Vec<f32>, Served), EmbeddingError>, Abandoned> {
        self.try_again();
        loop {
            let failures = call.failures();
            let Some(place) = self.next(&failures) else { return Ok(Err(self.none_left(failures))) };
            let member = &self.members[place];
            self.warn_of_switch(&failures, member);
            match self.attempt(place, call)? {
                Ok((vectors, backend)) => {
                    member.breaker().succeeded();
                    Metrics::add(&self.metrics.fallbacks, usize::from(place > 0));
                    if place > 0 {
                        self.prepare_standby();
                    }
                    return Ok(Ok((vectors, self.served_by(place, &backend))));
                }
                Err(error) if is_the_callers(&error, call) => return Ok(Err(error)),
                Err(error) => {
                    member.failed(&error, self.now());
                    call.failed(place, error, Instant::now());
                }
            }
        }
    }

    /// One backend tries it.
    fn attempt(
        &self,
        place: usize,
        call: &Call,
    ) -> Result<Result<(Vec<f32>, Backend), EmbeddingError>, Abandoned> {
        let member = &self.members[place];
        let attempt = || {
            let backend = match member.ready() {
                Some(backend) => backend,
                None => {
                    call.begin(place, self.deadline())?;
                    let loaded = member.load(self, || call.is_abandoned());
                    call.end()?;
                    match loaded {
                        Ok(backend) => backend,
                        Err(error) => return Ok(Err(error)),
                    }
                }
            };
            if let Some(failed_at) = call.take_failure_time() {
                self.metrics.switched(failed_at.elapsed());
            }
            Ok(member.embed(self, place, &*backend.embedder, call)?.map(|vectors| (vectors, backend)))
        };
        let result = attempt();
        if result.is_err() {
            member.returned();
        }
        result
    }

    /// The next backend to ask after these failures: the first that works, else the first that may be asked.
    fn next(&self, failures: &[(usize, EmbeddingError)]) -> Option<usize> {
        let places =
            || (0..self.members.len()).filter(|place| failures.iter().all(|(tried, _)| tried != place));
        let well = places().find(|&place| self.members[place].is_well());
        well.or_else(|| places().find(|&place| self.members[place].can_be_asked()))
    }

    fn none_left(&self, mut failures: Vec<(usize, EmbeddingError)>) -> EmbeddingError {
        if self.members.len() == 1
            && let Some((_, only)) = failures.pop()
        {
            return only;
        }
        let describe = |(place, member): (usize, &Member)| {
            let failed =
                failures.iter().find(|(failed, _)| *failed == place).map(|(_, error)| error.to_string());
            failed.or_else(|| Some(member.last_error()?.to_string()))
        };
        let all: Vec<String> = self.members.iter().enumerate().filter_map(describe).collect();
        EmbeddingError::NoneLeft { failures: all.join("; ") }
    }

    fn warn_of_switch(&self, failures: &[(usize, EmbeddingError)], next: &Member) {
        if let Some((_, error)) = failures.last() {
            tracing::warn!("{error}; the embedding backend '{}' goes on", next.profile);
        }
    }

    /// Begins to try the backends whose time it is, each on a thread of its own.
    fn try_again(self: &Arc<Self>) {
        for (place, member) in self.members.iter().enumerate() {
            if !member.can_be_asked() || !member.breaker().begins_probe(self.now()) {
                continue;
            }
            self.help(place, |chain, member| {
                let cx = Until { deadline: chain.deadline(), clock: chain.clock.clone() };
                let tried =
                    member.load(chain, || false).and_then(|backend| member.probe(&cx, &*backend.embedder));
                member.breaker().probed(tried.is_ok(), chain.now());
                match tried {
                    Ok(()) => tracing::warn!("the embedding backend '{}' works again", member.profile),
                    Err(error) => member.failed(&error, chain.now()),
                }
            });
        }
    }

    /// From now on the backend after the one that serves is made ready before it is needed.
    pub(super) fn keep_standby(self: &Arc<Self>) {
        self.standby.store(true, Ordering::Relaxed);
        self.prepare_standby();
    }

    fn prepare_standby(self: &Arc<Self>) {
        if !self.standby.load(Ordering::Relaxed) {
            return;
        }
        let Some((serving, _)) = self.serving() else { return };
        let mut after =
            self.members.iter().enumerate().skip(serving + 1).filter(|(_, member)| member.is_well());
        let Some((place, _)) = after.next().filter(|(_, member)| member.is_empty()) else { return };
        self.help(place, |chain, member| {
            let cx = Until { deadline: chain.deadline(), clock: chain.clock.clone() };
            let prepared = member.load(chain, || false).and_then(|backend| {
                backend.embedder.warm_up(&cx).map_err(|error| member.failed_with(error))?;
                member.probe(&cx, &*backend.embedder)
            });
            if let Err(error) = prepared {
                tracing::warn!("no standby: {error}");
                member.failed(&error, chain.now());
                member.breaker().trip(chain.now());
                chain.prepare_standby();
            }
        });
    }

    /// Runs `work` for a backend beside everything else.
    fn help(self: &Arc<Self>, place: usize, work: impl FnOnce(&Arc<Self>, &Member) + Send + 'static) {
        *self.helpers.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        let chain = self.clone();
        let ended = move |chain: &Self| {
            *chain.helpers.lock().unwrap_or_else(PoisonError::into_inner) -= 1;
            chain.helper_ended.notify_all();
        };
        let started = thread::Builder::new().name("embed-helper".into()).spawn(move || {
            work(&chain, &chain.members[place]);
            ended(&chain);
        });
        if let Err(error) = started {
            tracing::warn!("no thread for the embedding backend: {error}");
            ended(self);
            self.members[place].breaker().probed(false, self.now());
        }
    }

    #[cfg(test)]
    pub(super) fn wait_for_helpers(&self) {
        let helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.helper_ended.wait_while(helpers, |helpers| *helpers > 0));
    }

    /// Drops the backends, after the threads that use them.
    pub(super) fn close(&self) {
        let helpers = self.helpers.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.helper_ended.wait_timeout_while(helpers, PATIENCE_AT_END, |helpers| *helpers > 0);
        drop(waited);
        self.members.iter().for_each(Member::close);
    }
}

/// Whether an error is no fault of the backend.
fn is_the_callers(error: &EmbeddingError, call: &Call) -> bool {
    let EmbeddingError::Backend { error, .. } = error else { return false };
    match error.code() {
        ErrorCode::INVALID_INPUT => true,
        ErrorCode::CANCELLED => call.batch.is_deserted(),
        ErrorCode::DEADLINE => call.batch.deadline().is_some_and(|deadline| deadline <= Instant::now()),
        _ => false,
    }
}

/// The context of calls that no caller waits for.
struct Until {
    deadline: Instant,
    clock: Clock,
}

impl CallContext for Until {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        Some(self.deadline.saturating_duration_since((self.clock)()))
    }
    fn progress(&self, _done: u64, _total: u64) {}
}
