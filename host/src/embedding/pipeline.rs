//! Batches the texts of concurrent callers, and hands the batches to workers.
//!
//! Callers queue requests and wait; workers cut batches from what is queued, run them through the chain of
//! backends, and fill in the answers. There is no dispatcher: a worker that has nothing to do sleeps until a
//! caller wakes it, so a lone caller pays for two wake-ups and nothing else. Callers look up every
//! [`LOOK_UP`], and notice then that they were cancelled or that a call of a backend hangs; the worker in it
//! is left behind, another takes its place, and its batch goes to the next backend.
use super::{
    EmbeddingError,
    batch::{Batch, Call, Request, Rows, Urgency},
    chain::Chain,
    metrics::Metrics,
    queue::{Queue, Room, Waiting},
};
use magray_model::GpuTuning;
use magray_plugin_api::{CallContext, Error as ApiError, ErrorCode, Role};
use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, atomic::Ordering::Relaxed},
    thread,
    time::{Duration, Instant},
};

/// How often a waiting caller looks up. Cancelling is a question that is asked, never a message.
const LOOK_UP: Duration = Duration::from_millis(10);

/// How long bulk work lets interactive work go first.
const BULK_PATIENCE: Duration = Duration::from_secs(2);

/// How long the end of the program waits for workers.
const PATIENCE_AT_END: Duration = Duration::from_secs(5);

/// Tokens of a batch for each thread of a CPU: with batches of some 8 texts of 145 tokens a thread, ONNX
/// Runtime and candle were at their fastest on two cores.
const TOKENS_PER_THREAD: usize = 1024;

/// Tokens that a text of a full batch has on average, for the token budget of a GPU.
const TOKENS_PER_TEXT: usize = 256;

/// A single text of at most so many bytes is not worth counting.
const SHORT: usize = 256;

/// How texts are batched.
#[derive(Clone, Copy, Debug)]
pub struct PipelineOptions {
    /// How long an interactive request waits for others, at most, while others are about.
    pub max_wait_interactive: Duration,
    /// How long bulk requests wait for a full batch, at most, while other callers are about.
    pub max_wait_bulk: Duration,
    /// Texts that may wait; a single request may be larger.
    pub queue_texts: usize,
    /// Bytes of texts that may wait.
    pub queue_bytes: usize,
    /// Tokens of a batch, each text counted as the longest one; 0 goes by the device.
    pub token_budget: usize,
    /// Calls of one backend at once.
    pub workers: usize,
    /// Threads that a backend on the CPU computes with.
    pub threads: usize,
    /// Bytes of a GPU's memory to plan with; 0: all that it has.
    pub gpu_mem_limit: u64,
}

/// The queue of texts and the workers on it.
pub(super) struct Pipeline {
    shared: Arc<Shared>,
}

struct Shared {
    chain: Arc<Chain>,
    options: PipelineOptions,
    state: Mutex<State>,
    /// There is work, or an end to it.
    work: Condvar,
    /// There is room in the queue, or a worker has ended.
    room: Condvar,
}

#[derive(Default)]
struct State {
    interactive: Queue,
    bulk: Queue,
    /// Batches whose backend hung, and requests that are to be alone.
    again: VecDeque<Call>,
    running: Vec<Arc<Call>>,
    workers: usize,
    idle: usize,
    /// How many callers were about lately.
    crowd: usize,
    /// How long calls of backends take, and texts in them: recent means.
    call_time: Duration,
    text_time: Duration,
    is_closing: bool,
}

impl fmt::Debug for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pipeline").field("options", &self.shared.options).finish_non_exhaustive()
    }
}

impl Pipeline {
    pub(super) fn new(chain: Arc<Chain>, options: PipelineOptions) -> Self {
        let (state, work, room) = (Mutex::default(), Condvar::new(), Condvar::new());
        Self { shared: Arc::new(Shared { chain, options, state, work, room }) }
    }

    /// The vectors of `texts`, in parts that together have each text once.
    ///
    /// # Errors
    /// [`EmbeddingError`].
    pub(super) fn embed(
        &self,
        cx: &dyn CallContext,
        texts: &[&str],
        role: Role,
        urgency: Urgency,
    ) -> Result<Vec<Rows>, EmbeddingError> {
        let shared = &self.shared;
        shared.check(cx)?;
        let deadline = cx.remaining().map(|left| Instant::now() + left);
        let request = Arc::new(Request::new(texts, role, urgency, deadline));
        let tokens = shared.count(texts);
        let metrics = &shared.chain.metrics;
        Metrics::add(&metrics.requests, 1);
        Metrics::add(&metrics.texts, texts.len());
        Metrics::add(&metrics.tokens, tokens.iter().map(|&tokens| tokens as usize).sum());
        shared.enter(cx, Waiting::new(request.clone(), tokens))?;
        shared.wait_for(cx, &request)
    }
}

#[cfg(test)]
impl Pipeline {
    /// Texts that are in no batch yet.
    pub(super) fn waiting_texts(&self) -> usize {
        let state = self.shared.state();
        state.interactive.texts + state.bulk.texts
    }
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.is_closing = true;
        self.shared.work.notify_all();
        let ended = self.shared.room.wait_timeout_while(state, PATIENCE_AT_END, |state| state.workers > 0);
        drop(ended);
        self.shared.chain.close();
    }
}

impl State {
    fn queue(&mut self, urgency: Urgency) -> &mut Queue {
        match urgency {
            Urgency::Interactive => &mut self.interactive,
            Urgency::Bulk => &mut self.bulk,
        }
    }

    fn is_idle(&self) -> bool {
        self.interactive.waiting.is_empty() && self.bulk.waiting.is_empty() && self.again.is_empty()
    }

    /// How many callers wait for a batch or its end.
    fn callers(&self) -> usize {
        let running = self.running.iter().map(|call| call.batch.parts.len()).sum::<usize>();
        self.interactive.waiting.len() + self.bulk.waiting.len() + running
    }

    /// Which work is next, and from when on.
    fn next(&self, options: &PipelineOptions, room: Room, now: Instant) -> Option<(Urgency, Instant)> {
        let interactive = self.interactive.oldest().map(|request| request.entered);
        let bulk = self.bulk.oldest().map(|request| request.entered);
        let (urgency, queue, entered, wait) = match (interactive, bulk) {
            (Some(entered), bulk) if bulk.is_none_or(|bulk| now < bulk + BULK_PATIENCE) => {
                // Alone it has nobody to wait for.
                let wait = if self.callers() > 1 { options.max_wait_interactive } else { Duration::ZERO };
                (Urgency::Interactive, &self.interactive, entered, wait)
            }
            (_, Some(entered)) => (Urgency::Bulk, &self.bulk, entered, options.max_wait_bulk),
            _ => return None,
        };
        // As many callers as there were lately are all that will come. And company saves a call at most, so it
        // does not pay to wait for it longer than a call takes.
        let is_waiting = self.callers() < self.crowd && !queue.is_full(room);
        Some((urgency, if is_waiting { entered + wait.min(self.call_time) } else { now }))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails where the caller has given up.
    fn check(&self, cx: &dyn CallContext) -> Result<(), EmbeddingError> {
        cx.check().map_err(|error| self.for_caller(error))
    }

    fn for_caller(&self, error: ApiError) -> EmbeddingError {
        let backend = self.chain.serving().map_or(0, |(place, _)| place);
        EmbeddingError::Backend { backend: self.chain.members[backend].profile.to_string(), error }
    }

    /// What fits into a batch of the backend that serves. Where a model reads texts of any length it reads them
    /// one by one, and there is no padding to save: then tokens do not matter.
    fn room(&self) -> Room {
        let Some((_, backend)) = self.chain.serving() else { return Room { texts: 1, tokens: usize::MAX } };
        let (info, options) = (backend.embedder.info(), &self.options);
        let tokens = match options.token_budget {
            0 if info.max_tokens == usize::MAX => usize::MAX,
            0 => match backend.gpu_memory {
                None => options.threads.saturating_mul(TOKENS_PER_THREAD),
                Some(all) => {
                    let memory = if options.gpu_mem_limit > 0 { options.gpu_mem_limit } else { all };
                    GpuTuning::max_batch(memory) as usize * TOKENS_PER_TEXT
                }
            },
            budget => budget,
        };
        Room { texts: info.max_batch, tokens }
    }

    /// Tokens of each text, or nothing where nobody needs to know.
    fn count(&self, texts: &[&str]) -> Vec<u32> {
        let Some((_, backend)) = self.chain.serving().filter(|_| self.room().tokens < usize::MAX) else {
            return Vec::new();
        };
        let guess = |text: &&str| u32::try_from(text.len() / 3 + 2).unwrap_or(u32::MAX);
        if let [text] = texts
            && text.len() <= SHORT
        {
            return vec![guess(text)];
        }
        let mut tokens = vec![0; texts.len()];
        match backend.embedder.count_tokens(texts, &mut tokens) {
            Ok(()) => tokens,
            // A worse batch, and no reason to fail.
            Err(_) => texts.iter().map(guess).collect(),
        }
    }

    /// Puts a request into the queue, where there is room; bulk requests wait for it.
    fn enter(self: &Arc<Self>, cx: &dyn CallContext, waiting: Waiting) -> Result<(), EmbeddingError> {
        let (texts, bytes) = (waiting.rest.len(), waiting.request.texts.bytes());
        let urgency = waiting.request.urgency;
        let fits = |queue: &Queue| {
            queue.texts == 0
                || (queue.texts + texts <= self.options.queue_texts
                    && queue.bytes + bytes <= self.options.queue_bytes)
        };
        let mut state = self.state();
        while !fits(state.queue(urgency)) {
            if urgency == Urgency::Interactive {
                let waiting = state.interactive.texts;
                let wait = state.text_time.saturating_mul(u32::try_from(waiting).unwrap_or(u32::MAX));
                Metrics::add(&self.chain.metrics.overloads, 1);
                let retry_after = wait.clamp(Duration::from_millis(100), Duration::from_secs(60));
                return Err(EmbeddingError::Overloaded { waiting, retry_after });
            }
            state = self.room.wait_timeout(state, LOOK_UP).unwrap_or_else(PoisonError::into_inner).0;
            drop(state);
            self.check(cx)?;
            self.leave_hung_calls();
            state = self.state();
        }
        state.queue(urgency).push(waiting);
        state.crowd = state.crowd.max(state.callers());
        self.wake(&mut state);
        Ok(())
    }

    /// Sees to it that a worker looks at the queue.
    fn wake(self: &Arc<Self>, state: &mut State) {
        if state.idle > 0 {
            self.work.notify_one();
        } else if state.workers < self.options.workers.max(1) {
            state.workers += 1;
            let shared = self.clone();
            let started = thread::Builder::new().name("embed-worker".into()).spawn(move || shared.work());
            if let Err(error) = started {
                state.workers -= 1;
                tracing::error!("no thread to embed on: {error}");
            }
        }
    }

    fn wait_for(
        self: &Arc<Self>,
        cx: &dyn CallContext,
        request: &Arc<Request>,
    ) -> Result<Vec<Rows>, EmbeddingError> {
        let total = request.texts.len();
        let mut told = 0;
        let mut answer = request.answer();
        loop {
            if let Some(error) = answer.error.take() {
                drop(answer);
                self.leave(request);
                return Err(error);
            }
            if answer.missing == 0 {
                return Ok(std::mem::take(&mut answer.parts));
            }
            let done = total - answer.missing;
            if done > told {
                told = done;
                drop(answer);
                cx.progress(done as u64, total as u64);
                answer = request.answer();
                continue;
            }
            answer = request.wait(answer, cx.remaining().map_or(LOOK_UP, |left| left.min(LOOK_UP)));
            if answer.missing == 0 || answer.error.is_some() {
                continue;
            }
            drop(answer);
            if let Err(error) = self.check(cx) {
                self.leave(request);
                return Err(error);
            }
            self.leave_hung_calls();
            answer = request.answer();
        }
    }

    /// The caller of a request gives it up.
    fn leave(&self, request: &Arc<Request>) {
        request.leave();
        self.state().queue(request.urgency).forget(request);
        self.room.notify_all();
    }

    /// Gives batches whose backend has taken too long to the next backend.
    fn leave_hung_calls(self: &Arc<Self>) {
        let now = self.chain.now();
        let mut state = self.state();
        let mut at = 0;
        while let Some(call) = state.running.get(at) {
            let Some(place) = call.abandon_if_late(now) else {
                at += 1;
                continue;
            };
            let call = state.running.swap_remove(at);
            let error = self.chain.members[place].hangs(now);
            let again = call.again();
            again.failed(place, error, Instant::now());
            state.again.push_back(again);
            // Its worker is lost, until the backend lets it go.
            state.workers -= 1;
            self.wake(&mut state);
        }
    }

    /// The life of a worker.
    fn work(self: Arc<Self>) {
        while let Some(call) = self.take() {
            let started = Instant::now();
            let result = self.chain.run(&call);
            let Ok(result) = result else { return };
            let mut state = self.state();
            state.running.retain(|running| !Arc::ptr_eq(running, &call));
            let took = started.elapsed();
            let texts = u32::try_from(call.batch.len()).unwrap_or(u32::MAX).max(1);
            state.call_time = state.call_time.mul_f32(0.75) + took.mul_f32(0.25);
            let text_time = took / texts;
            state.text_time = state.text_time.mul_f32(0.75) + text_time.mul_f32(0.25);
            match result {
                Ok((vectors, served)) => {
                    drop(state);
                    call.batch.deliver(vectors, &served, text_time);
                }
                // One bad text spoils only the request that it is of.
                Err(EmbeddingError::Backend { error, .. })
                    if error.code() == ErrorCode::INVALID_INPUT && call.batch.parts.len() > 1 =>
                {
                    let alone =
                        call.batch.parts.iter().map(|part| {
                            Call::new(Batch { role: call.batch.role, parts: vec![part.clone()] })
                        });
                    state.again.extend(alone);
                }
                Err(error) => {
                    drop(state);
                    call.batch.fail(&error);
                }
            }
        }
    }

    /// The next call, when there is one; none at the end.
    fn take(self: &Arc<Self>) -> Option<Arc<Call>> {
        let mut state = self.state();
        loop {
            if state.is_closing {
                state.workers -= 1;
                self.room.notify_all();
                return None;
            }
            if let Some(call) = state.again.pop_front() {
                return Some(self.start(state, call));
            }
            let (now, room) = (Instant::now(), self.room());
            let next = state.next(&self.options, room, now);
            let callers = state.callers();
            if let Some((urgency, _)) = next.filter(|(_, from)| *from <= now)
                && let Some(batch) = state.queue(urgency).cut(room)
            {
                state.crowd = callers;
                self.measure(&batch, room, now);
                return Some(self.start(state, Call::new(batch)));
            }
            state.idle += 1;
            state = match next {
                Some((_, from)) => {
                    let wait = from.saturating_duration_since(now);
                    self.work.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0
                }
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.idle -= 1;
        }
    }

    fn start(self: &Arc<Self>, mut state: MutexGuard<'_, State>, call: Call) -> Arc<Call> {
        let call = Arc::new(call);
        state.running.push(call.clone());
        if !state.is_idle() {
            self.wake(&mut state);
        }
        self.room.notify_all();
        call
    }

    fn measure(&self, batch: &Batch, room: Room, now: Instant) {
        let metrics = &self.chain.metrics;
        let entered = batch.parts.iter().map(|(request, _)| request.entered).min().unwrap_or(now);
        metrics.waited(now.duration_since(entered));
        metrics.batches.fetch_add(1, Relaxed);
        Metrics::add(&metrics.batch_texts, batch.len());
        Metrics::add(&metrics.batch_room, room.texts);
    }
}
