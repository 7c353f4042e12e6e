//! Callers, faults and recoveries, with backends that do as the test says. Their panics are contained as those
//! of any plugin, and time is told by the test.
use super::*;
use crate::{
    plugins::{PluginOptions, Plugins},
    store::{Store, StoreOptions},
};
use magray_plugin_api::{Component, CreateEmbedder, ErrorCode, Host, Plugin, Result as ApiResult};
use proptest::prelude::*;
use serde::Deserialize;
use std::{
    collections::HashMap,
    sync::{Condvar, LazyLock, Mutex, MutexGuard, PoisonError, atomic::AtomicBool, mpsc},
    thread,
};

const PLUGIN: Plugin = Plugin {
    id: "scripted",
    version: "1.0.0",
    summary: "does as the test says",
    components: &[Component::embedder::<Scripted>("scripted")],
};

const DIM: usize = 8;
const TIMEOUT: Duration = Duration::from_secs(100);
const COOL_DOWN: Duration = Duration::from_secs(10);

/// What a backend does with a call.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Work,
    /// Returns when the act is another one, with vectors of something else.
    Hang,
    /// Goes on when the act is another one, or the callers are gone.
    Wait,
    Fail(ErrorCode),
    /// Where the batch holds this text's first letter.
    RefuseText(char),
    /// Above so many texts.
    OutOfMemory(usize),
    Nan,
    Long,
    Panic,
    /// Turns all vectors by this much.
    Skew(f32),
    FailToStart,
}

/// What the test says, and what it sees.
#[derive(Default)]
struct Script(Mutex<Seen>, Condvar);

struct Seen {
    act: Act,
    space: u8,
    precision: &'static str,
    max_batch: usize,
    max_tokens: usize,
    made: usize,
    warmed: usize,
    calls: usize,
    batches: Vec<Vec<String>>,
    waiting: usize,
    cancelled: usize,
}

impl Default for Seen {
    fn default() -> Self {
        Self {
            act: Act::Work,
            space: 1,
            precision: "f32",
            max_batch: 16,
            max_tokens: usize::MAX,
            made: 0,
            warmed: 0,
            calls: 0,
            batches: Vec::new(),
            waiting: 0,
            cancelled: 0,
        }
    }
}

static SCRIPTS: LazyLock<Mutex<HashMap<usize, Arc<Script>>>> = LazyLock::new(Mutex::default);

impl Script {
    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn with(self: Arc<Self>, set: impl FnOnce(&mut Seen)) -> Arc<Self> {
        set(&mut self.seen());
        self
    }

    /// How often it was made, and called.
    fn made_and_called(&self) -> (usize, usize) {
        let seen = self.seen();
        (seen.made, seen.calls)
    }

    fn act(&self, act: Act) {
        self.seen().act = act;
        self.1.notify_all();
    }

    /// Waits until it has seen something.
    fn until(&self, seen: impl Fn(&Seen) -> bool) {
        drop(self.1.wait_while(self.seen(), |now| !seen(now)).unwrap());
    }

    /// A backend that does as it says.
    fn candidate(self: &Arc<Self>, profile: &str) -> Candidate {
        let id = Arc::as_ptr(self).addr();
        SCRIPTS.lock().unwrap().insert(id, self.clone());
        let plugins = Plugins::discover(PluginOptions::default(), &[&PLUGIN]);
        let make = move || {
            let embedder = plugins.embedder("scripted", &format!("{{\"script\": {id}}}"))?;
            Ok(Made { embedder, origin: format!("scripted {id}") })
        };
        Candidate { profile: profile.to_owned(), make: Box::new(make) }
    }
}

#[derive(Deserialize)]
struct ScriptedOptions {
    script: usize,
}

struct Scripted {
    script: Arc<Script>,
    info: EmbedderInfo,
}

impl CreateEmbedder for Scripted {
    type Options = ScriptedOptions;
    fn create(options: ScriptedOptions, _: &'static dyn Host) -> ApiResult<Self> {
        let script = SCRIPTS.lock().unwrap()[&options.script].clone();
        let mut seen = script.seen();
        if seen.act == Act::FailToStart {
            return Err(ApiError::new(ErrorCode::UNAVAILABLE, "asked not to start"));
        }
        seen.made += 1;
        let info = EmbedderInfo {
            dim: DIM,
            max_tokens: seen.max_tokens,
            max_batch: seen.max_batch,
            model: "scripted".into(),
            space: [seen.space; 32],
        };
        drop(seen);
        Ok(Self { script, info })
    }
}

impl Embedder for Scripted {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }
    fn device(&self) -> DeviceReport {
        let precision = self.script.seen().precision.to_owned();
        DeviceReport { device: "cpu".into(), engine: "script".into(), precision, ..DeviceReport::default() }
    }
    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> ApiResult<()> {
        texts.iter().zip(out).for_each(|(text, out)| *out = text.len() as u32);
        Ok(())
    }
    fn warm_up(&self, _: &dyn CallContext) -> ApiResult<()> {
        self.script.seen().warmed += 1;
        Ok(())
    }
    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> ApiResult<()> {
        let mut seen = self.script.seen();
        seen.calls += 1;
        seen.batches.push(texts.iter().map(|&text| text.to_owned()).collect());
        seen.waiting += 1;
        self.script.1.notify_all();
        let began_as = seen.act;
        while seen.act == Act::Hang || seen.act == Act::Wait {
            if seen.act == Act::Wait && cx.is_cancelled() {
                seen.cancelled += 1;
                self.script.1.notify_all();
                return cx.check();
            }
            seen = self.script.1.wait_timeout(seen, Duration::from_millis(1)).unwrap().0;
        }
        seen.waiting -= 1;
        let act = if began_as == Act::Hang { Act::Skew(1.0) } else { seen.act };
        drop(seen);
        match act {
            Act::Fail(code) => return Err(ApiError::new(code, "asked to fail")),
            Act::RefuseText(c) if texts.iter().any(|text| text.starts_with(c)) => {
                return Err(ApiError::invalid_input("asked to refuse"));
            }
            Act::OutOfMemory(most) if texts.len() > most => {
                return Err(ApiError::new(ErrorCode::OUT_OF_MEMORY, "asked to run out"));
            }
            Act::Panic => panic!("asked to panic"),
            _ => {}
        }
        for (text, row) in texts.iter().zip(out.chunks_exact_mut(DIM)) {
            row.copy_from_slice(&vector(text, role));
            match act {
                Act::Nan => row[3] = f32::NAN,
                Act::Long => row.iter_mut().for_each(|v| *v *= 3.0),
                Act::Skew(angle) => {
                    let (sin, cos) = angle.sin_cos();
                    let (a, b) = (row[0], row[1]);
                    (row[0], row[1]) = (a * cos - b * sin, a * sin + b * cos);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// What every backend that works computes.
fn vector(text: &str, role: Role) -> [f32; DIM] {
    let hash = blake3::hash(format!("{role:?}{text}").as_bytes());
    let mut row: [f32; DIM] = std::array::from_fn(|at| f32::from(hash.as_bytes()[at]) - 127.5);
    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
    row.iter_mut().for_each(|v| *v /= norm);
    row
}

fn direct(texts: &[&str], role: Role) -> Vec<f32> {
    texts.iter().flat_map(|text| vector(text, role)).collect()
}

/// A caller.
#[derive(Default)]
struct Caller {
    cancelled: AtomicBool,
    deadline: Option<Duration>,
}

impl CallContext for Caller {
    fn is_cancelled(&self) -> bool {
        self.cancelled.load(std::sync::atomic::Ordering::Relaxed)
    }
    fn remaining(&self) -> Option<Duration> {
        self.deadline
    }
    fn progress(&self, _: u64, _: u64) {}
}

/// A chain with the clock in the hands of the test.
struct Bed {
    embedding: Embedding,
    now: Arc<Mutex<Instant>>,
}

impl std::ops::Deref for Bed {
    type Target = Embedding;
    fn deref(&self) -> &Embedding {
        &self.embedding
    }
}

fn options() -> EmbeddingOptions {
    EmbeddingOptions {
        pipeline: PipelineOptions {
            max_wait_interactive: Duration::from_millis(5),
            max_wait_bulk: Duration::from_millis(50),
            queue_texts: 1000,
            queue_bytes: 1 << 20,
            token_budget: 0,
            workers: 1,
            threads: 1,
            gpu_texts: 128,
        },
        breaker: BreakerOptions {
            failures: 3,
            error_rate: 1.0,
            window: 100,
            cool_down: COOL_DOWN,
            max_cool_down: COOL_DOWN * 4,
        },
        call_timeout: TIMEOUT,
    }
}

/// A cache that holds nothing, so that every text is computed.
fn no_cache() -> EmbeddingCache {
    let plugins = Plugins::discover(PluginOptions::default(), &[&magray_cache_lru::PLUGIN]);
    let policy = plugins.cache_policy("lru", "{}").unwrap();
    EmbeddingCache::new(policy, CacheLimits { max_bytes: 0, max_entries: 0 })
}

impl Bed {
    fn new(scripts: &[&Arc<Script>]) -> Self {
        Self::with(scripts, &options(), None).unwrap()
    }

    fn with(
        scripts: &[&Arc<Script>],
        options: &EmbeddingOptions,
        gate: Option<Gate>,
    ) -> Result<Self, EmbeddingError> {
        let names = ["first", "second", "third"];
        let candidates = scripts.iter().zip(names).map(|(script, name)| script.candidate(name)).collect();
        let now = Arc::new(Mutex::new(Instant::now()));
        let clock = now.clone();
        let clock: Clock = Arc::new(move || *clock.lock().unwrap());
        Ok(Self { embedding: Embedding::with_clock(candidates, gate, no_cache(), options, clock)?, now })
    }

    fn pass(&self, time: Duration) {
        *self.now.lock().unwrap() += time;
    }

    /// Embeds one text and expects the right vector.
    #[track_caller]
    fn works(&self) {
        let answer = self.answer(&Caller::default(), &["a text"], Role::Query).unwrap();
        assert_eq!(answer.vectors, vector("a text", Role::Query));
    }

    fn states(&self) -> Vec<&'static str> {
        self.status().members.iter().map(|member| member.state).collect()
    }

    fn wait_for_helpers(&self) {
        self.chain.wait_for_helpers();
    }
}

fn script() -> Arc<Script> {
    Arc::default()
}

/// Runs `work` on a thread and returns how to wait for its result.
fn spawn<'s, T: Send + 's>(
    scope: &'s thread::Scope<'s, '_>,
    work: impl FnOnce() -> T + Send + 's,
) -> mpsc::Receiver<T> {
    let (sender, receiver) = mpsc::channel();
    scope.spawn(move || sender.send(work()).unwrap());
    receiver
}

#[test]
fn the_first_backend_answers_and_is_named() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    let answer = bed.answer(&Caller::default(), &["a", "b"], Role::Query).unwrap();
    assert_eq!(answer.vectors, direct(&["a", "b"], Role::Query));
    assert_eq!((answer.backend.as_str(), answer.fallback), ("first", None));
    assert_eq!((answer.device.engine.as_str(), answer.device.precision.as_str()), ("script", "f32"));
    assert_eq!(bed.states(), ["closed", "not loaded"]);
    assert_eq!(second.seen().made, 0, "nobody pays for a stand-in that is not needed");
}

#[test]
fn whatever_a_backend_does_the_next_one_answers_and_says_why() {
    let faults = [
        (Act::Fail(ErrorCode::INTERNAL), "asked to fail"),
        (Act::Fail(ErrorCode::CANCELLED), "asked to fail"),
        (Act::Fail(ErrorCode::DEADLINE), "asked to fail"),
        (Act::OutOfMemory(0), "asked to run out"),
        (Act::Nan, "NaN"),
        (Act::Long, "length 3"),
        (Act::Panic, "asked to panic"),
    ];
    for (act, says) in faults {
        let (first, second) = (script(), script());
        let bed = Bed::new(&[&first, &second]);
        first.act(act);
        let answer = bed.answer(&Caller::default(), &["a", "b"], Role::Passage).unwrap();
        assert_eq!(answer.vectors, direct(&["a", "b"], Role::Passage), "{act:?}");
        assert_eq!(answer.backend, "second");
        assert!(answer.fallback.as_ref().unwrap().contains(says), "{answer:?}");
        let status = bed.status();
        assert_eq!(status.counters.fallbacks, 1, "{status:?}");
        assert_eq!(status.members[0].failures.values().sum::<u64>(), 1, "{status:?}");
        assert!(status.members[0].last_error.as_ref().unwrap().contains(says), "{status:?}");
    }
}

#[test]
fn a_backend_that_cannot_start_is_stood_in_for_and_tried_again() {
    let (first, second) = (script().with(|seen| seen.act = Act::FailToStart), script());
    let bed = Bed::new(&[&first, &second]);
    assert_eq!(bed.backend(), "first");
    let answer = bed.answer(&Caller::default(), &["a"], Role::Query).unwrap();
    assert!(answer.fallback.unwrap().contains("asked not to start"));
    assert_eq!(bed.states(), ["failed to load", "closed"]);
    first.act(Act::Work);
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(bed.states(), ["closed", "closed"]);
    assert_eq!(bed.answer(&Caller::default(), &["a"], Role::Query).unwrap().backend, "first");
}

#[test]
fn where_none_works_the_error_tells_of_each() {
    let scripts = [script(), script()];
    let bed = Bed::new(&[&scripts[0], &scripts[1]]);
    scripts[0].act(Act::Fail(ErrorCode::IO));
    scripts[1].act(Act::Nan);
    for _ in 0..5 {
        let error = bed.embed(&Caller::default(), &["a"], Role::Query).unwrap_err().to_string();
        assert!(error.contains("'first' failed") && error.contains("'second' is broken"), "{error}");
    }
    // A breaker never turns a text away where nobody else is left.
    scripts[1].act(Act::Work);
    bed.works();
}

#[test]
fn a_backend_that_keeps_failing_is_left_alone_until_a_trial_succeeds() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Fail(ErrorCode::INTERNAL));
    (0..3).for_each(|_| bed.works());
    assert_eq!((bed.states()[0], first.seen().calls), ("open", 3));
    (0..10).for_each(|_| bed.works());
    assert_eq!(first.seen().calls, 3, "it is not asked while it is open");

    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!((bed.states()[0], first.seen().calls), ("open", 4), "the trial failed");
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(first.seen().calls, 4, "the cool-down has doubled");

    first.act(Act::Work);
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(bed.states()[0], "closed");
    assert_eq!(bed.answer(&Caller::default(), &["a"], Role::Query).unwrap().backend, "first");
    assert_eq!(first.seen().made, 1, "it is the same backend");
}

#[test]
fn a_backend_that_panicked_is_made_anew() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Panic);
    bed.works();
    assert_eq!(bed.states()[0], "open", "one panic is enough");
    first.act(Act::Work);
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!((bed.states()[0], first.seen().made), ("closed", 2));
}

#[test]
fn a_call_that_hangs_is_left_behind_and_its_late_answer_is_void() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Hang);
    thread::scope(|scope| {
        let answers: Vec<_> = (0..4)
            .map(|n| {
                let (bed, text) = (&bed, format!("text {n}"));
                spawn(scope, move || bed.answer(&Caller::default(), &[&text], Role::Query).map(|a| (text, a)))
            })
            .collect();
        first.until(|seen| seen.waiting == 1);
        bed.pass(TIMEOUT);
        for answer in answers {
            let (text, answer) = answer.recv().unwrap().unwrap();
            assert_eq!(answer.vectors, vector(&text, Role::Query));
            assert_eq!(answer.backend, "second");
            assert!(answer.fallback.unwrap().contains("hangs"));
        }
    });
    assert_eq!(bed.states()[0], "hung");
    bed.pass(COOL_DOWN);
    bed.works();
    assert_eq!(first.seen().calls, 1, "not even a trial while it hangs");

    first.act(Act::Work);
    while bed.states()[0] == "hung" {
        thread::yield_now();
    }
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(bed.states()[0], "closed");
    bed.works();
}

#[test]
fn where_the_only_backend_hangs_callers_are_told_so_and_served_again_later() {
    let only = script();
    let bed = Bed::new(&[&only]);
    only.act(Act::Hang);
    thread::scope(|scope| {
        let answer = spawn(scope, || bed.embed(&Caller::default(), &["a"], Role::Query));
        only.until(|seen| seen.waiting == 1);
        bed.pass(TIMEOUT);
        assert!(answer.recv().unwrap().unwrap_err().to_string().contains("hangs"));
    });
    assert!(bed.embed(&Caller::default(), &["a"], Role::Query).unwrap_err().to_string().contains("hangs"));
    only.act(Act::Work);
    while bed.states()[0] == "hung" {
        thread::yield_now();
    }
    bed.works();
}

#[test]
fn out_of_memory_halves_the_batch_and_the_limit_is_kept() {
    let only = script();
    let bed = Bed::new(&[&only]);
    only.act(Act::OutOfMemory(3));
    let texts: Vec<String> = (0..40).map(|n| format!("text {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(bed.embed(&Caller::default(), &texts, Role::Passage).unwrap(), direct(&texts, Role::Passage));
    let status = bed.status();
    assert_eq!(status.counters.halvings, 3, "16 to 8 to 4 to 2, and never again");
    assert_eq!((status.members[0].learnt_batch, status.members[0].state), (Some(2), "closed"));
}

#[test]
fn one_bad_text_spoils_its_own_request_only() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Wait);
    thread::scope(|scope| {
        let ahead = spawn(scope, || bed.embed(&Caller::default(), &["ahead"], Role::Query));
        first.until(|seen| seen.waiting == 1);
        let others = ["good", "bad", "fine"].map(|text| {
            let bed = &bed;
            (text, spawn(scope, move || bed.embed(&Caller::default(), &[text], Role::Query)))
        });
        bed.until_waiting(3);
        first.act(Act::RefuseText('b'));
        ahead.recv().unwrap().unwrap();
        for (text, answer) in others {
            match answer.recv().unwrap() {
                Ok(vectors) => {
                    assert_eq!((vectors.as_slice(), text != "bad"), (&vector(text, Role::Query)[..], true))
                }
                Err(error) => {
                    assert!(text == "bad" && error.to_string().contains("asked to refuse"), "{error}")
                }
            }
        }
    });
    assert_eq!((bed.states()[0], second.seen().made), ("closed", 0), "it is no fault of the backend");
}

impl Bed {
    /// Waits until so many texts are in no batch yet.
    fn until_waiting(&self, texts: usize) {
        while self.embedding.pipeline.waiting_texts() < texts {
            thread::yield_now();
        }
    }
}

#[test]
fn a_standby_is_made_and_warm_before_it_is_needed() {
    let (first, second, third) = (script(), script(), script());
    let bed = Bed::new(&[&first, &second, &third]);
    bed.keep_standby();
    bed.wait_for_helpers();
    assert_eq!((second.made_and_called(), third.made_and_called()), ((1, 1), (0, 0)));
    assert_eq!(second.seen().warmed, 1);
    first.act(Act::Panic);
    bed.works();
    assert_eq!(second.seen().made, 1, "it was there");
    bed.wait_for_helpers();
    assert_eq!(third.seen().made, 1, "now the third is the standby");
    let switch = bed.status().counters;
    assert!(switch.switch_last_ms > 0.0 && switch.switch_max_ms >= switch.switch_last_ms, "{switch:?}");
}

#[test]
fn a_standby_that_does_not_work_makes_room_for_the_next() {
    let (first, second, third) = (script(), script(), script());
    second.act(Act::Nan);
    let bed = Bed::new(&[&first, &second, &third]);
    bed.keep_standby();
    while third.seen().made == 0 {
        bed.wait_for_helpers();
    }
    assert_eq!(bed.states()[1], "open");
}

#[test]
fn who_cancels_leaves_the_queue_at_once_and_the_backend_hears_of_it() {
    let only = script();
    let bed = Bed::new(&[&only]);
    only.act(Act::Wait);
    let (running, queued) = (Caller::default(), Caller::default());
    thread::scope(|scope| {
        let first = spawn(scope, || bed.embed(&running, &["a"], Role::Query));
        only.until(|seen| seen.waiting == 1);
        let second = spawn(scope, || bed.embed(&queued, &["b"], Role::Query));
        bed.until_waiting(1);
        queued.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        let error = second.recv().unwrap().unwrap_err();
        assert!(
            matches!(&error, EmbeddingError::Backend { error, .. } if error.code() == ErrorCode::CANCELLED)
        );
        assert_eq!(bed.embedding.pipeline.waiting_texts(), 0);
        running.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        first.recv().unwrap().unwrap_err();
        only.until(|seen| seen.cancelled == 1);
    });
    only.act(Act::Work);
    bed.works();
    let status = bed.status();
    assert_eq!((status.members[0].state, status.members[0].failures.len()), ("closed", 0), "{status:?}");
    assert!(only.seen().batches.iter().flatten().all(|text| text != "b"));
}

#[test]
fn a_deadline_is_the_callers_and_no_fault_of_the_backend() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Wait);
    let hurried = Caller { deadline: Some(Duration::from_millis(20)), ..Caller::default() };
    thread::scope(|scope| {
        let answer = spawn(scope, || {
            let until = Instant::now() + Duration::from_millis(20);
            bed.embed(&UntilThen(until), &["a"], Role::Query)
        });
        let error = answer.recv().unwrap().unwrap_err();
        assert!(
            matches!(&error, EmbeddingError::Backend { error, .. } if error.code() == ErrorCode::DEADLINE)
        );
        first.until(|seen| seen.cancelled == 1);
    });
    let late = Caller { deadline: Some(Duration::ZERO), ..hurried };
    bed.embed(&late, &["a"], Role::Query).unwrap_err();
    first.act(Act::Work);
    bed.works();
    assert_eq!((bed.states()[0], second.seen().made), ("closed", 0));
}

struct UntilThen(Instant);

impl CallContext for UntilThen {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        Some(self.0.saturating_duration_since(Instant::now()))
    }
    fn progress(&self, _: u64, _: u64) {}
}

#[test]
fn above_the_bound_searches_are_turned_away_and_bulk_work_waits() {
    let only = script();
    let mut options = options();
    options.pipeline.queue_texts = 2;
    let bed = Bed::with(&[&only], &options, None).unwrap();
    only.act(Act::Wait);
    let free = Caller::default();
    thread::scope(|scope| {
        let mut answers = vec![spawn(scope, || bed.answer(&free, &["a"], Role::Query).map(drop))];
        only.until(|seen| seen.waiting == 1);
        answers.push(spawn(scope, || bed.answer(&free, &["b", "c"], Role::Query).map(drop)));
        bed.until_waiting(2);
        let error = bed.answer(&free, &["d"], Role::Query).unwrap_err();
        assert!(matches!(error, EmbeddingError::Overloaded { waiting: 2, .. }), "{error}");
        for _ in 0..4 {
            answers.push(spawn(scope, || bed.embed(&free, &["e", "f"], Role::Query).map(drop)));
        }
        bed.until_waiting(4);
        assert_eq!(bed.embedding.pipeline.waiting_texts(), 4, "bulk work has a bound of its own");
        // A request that is larger than the bound is taken when nothing else waits.
        answers.push(spawn(scope, || bed.embed(&free, &["g"; 5], Role::Query).map(drop)));
        only.act(Act::Work);
        answers.iter().for_each(|answer| answer.recv().unwrap().unwrap());
    });
    assert_eq!(bed.status().counters.overloads, 1);
}

#[test]
fn a_search_goes_before_all_bulk_work_but_the_batch_in_progress() {
    let only = script();
    let bed = Bed::new(&[&only]);
    only.act(Act::Wait);
    let free = Caller::default();
    let bulk: Vec<String> = (0..40).map(|n| format!("bulk {n}")).collect();
    let bulk: Vec<&str> = bulk.iter().map(String::as_str).collect();
    thread::scope(|scope| {
        let first = spawn(scope, || bed.embed(&free, &bulk, Role::Passage));
        only.until(|seen| seen.waiting == 1);
        let search = spawn(scope, || bed.answer(&free, &["search"], Role::Query));
        bed.until_waiting(25);
        only.act(Act::Work);
        search.recv().unwrap().unwrap();
        assert_eq!(first.recv().unwrap().unwrap(), direct(&bulk, Role::Passage));
    });
    let batches = &only.seen().batches;
    assert_eq!(batches[1], ["search"]);
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [16, 1, 16, 8]);
}

#[test]
fn requests_that_wait_share_batches_of_like_length_within_the_budget() {
    let only = script().with(|seen| seen.max_tokens = 512);
    let mut options = options();
    options.pipeline.token_budget = 100;
    let bed = Bed::with(&[&only], &options, None).unwrap();
    only.act(Act::Wait);
    let free = Caller::default();
    let texts: Vec<String> = (0..24).map(|n| "x".repeat(1 + n * 7 % 24)).collect();
    thread::scope(|scope| {
        let ahead = spawn(scope, || bed.embed(&free, &["ahead"], Role::Passage));
        only.until(|seen| seen.waiting == 1);
        let answers: Vec<_> = texts
            .chunks(3)
            .map(|texts| {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let (bed, free) = (&bed, &free);
                spawn(scope, move || {
                    let vectors = bed.embed(free, &texts, Role::Passage).unwrap();
                    assert_eq!(vectors, direct(&texts, Role::Passage));
                })
            })
            .collect();
        bed.until_waiting(24);
        only.act(Act::Work);
        ahead.recv().unwrap().unwrap();
        answers.iter().for_each(|answer| answer.recv().unwrap());
    });
    let seen = only.seen();
    assert!(seen.batches.iter().any(|batch| batch.len() > 3), "texts of several requests share a batch");
    for batch in &seen.batches {
        let longest = batch.iter().map(String::len).max().unwrap();
        assert!(batch.len() == 1 || batch.len() * longest <= 100, "{batch:?}");
    }
}

#[test]
fn a_backend_of_another_space_is_never_mixed_in() {
    let (first, second) = (script(), script().with(|seen| seen.space = 2));
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Nan);
    for _ in 0..2 {
        let error = bed.embed(&Caller::default(), &["a"], Role::Query).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
        assert!(error.contains("'second' cannot stand in for 'first'"), "{error}");
    }
    assert_eq!((bed.states()[1], second.made_and_called()), ("refused", (1, 0)));
}

mod parity {
    use super::*;

    fn store(folder: &tempfile::TempDir, read_only: bool) -> Arc<Store> {
        let options = StoreOptions { read_only, ..StoreOptions::default() };
        Arc::new(Store::open(&folder.path().join("magray.db"), &options).unwrap())
    }

    fn open(scripts: &[&Arc<Script>], store: &Arc<Store>) -> Result<Bed, EmbeddingError> {
        Bed::with(scripts, &options(), Some(Gate::new(store.clone())))
    }

    #[test]
    fn a_backend_that_computes_something_else_is_refused_and_named() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder, false);
        let (first, second) = (script(), script());
        drop(open(&[&first], &store).unwrap());
        second.act(Act::Skew(0.3));
        let bed = open(&[&second, &first], &store).unwrap();
        assert_eq!(bed.states(), ["refused", "closed"]);
        let why = bed.status().members[0].last_error.clone().unwrap();
        assert!(why.contains("'first'") && why.contains("cosine is 0.9") && why.contains("0.999"), "{why}");
        bed.works();
        let error = open(&[&second], &store).err().unwrap();
        assert!(matches!(error, EmbeddingError::Disagrees { .. }), "{error}");
    }

    #[test]
    fn eight_bits_may_differ_a_little_more() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder, false);
        drop(open(&[&script()], &store).unwrap());
        let skewed = |precision| {
            let script = script().with(|seen| seen.precision = precision);
            script.act(Act::Skew(0.1));
            script
        };
        assert!(matches!(open(&[&skewed("f32")], &store), Err(EmbeddingError::Disagrees { .. })));
        assert!(matches!(open(&[&skewed("bf16")], &store), Err(EmbeddingError::Disagrees { .. })));
        assert!(open(&[&skewed("int8")], &store).is_ok());
    }

    #[test]
    fn a_verdict_is_remembered_until_the_backend_is_another() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder, false);
        let only = script();
        drop(open(&[&only], &store).unwrap());
        let calls = only.seen().calls;
        assert!(calls > 0);
        drop(open(&[&only], &store).unwrap());
        assert_eq!(only.seen().calls, calls, "no probe is embedded");
        only.seen().precision = "bf16";
        drop(open(&[&only], &store).unwrap());
        assert_eq!(only.seen().calls, 2 * calls);
    }

    #[test]
    fn a_database_that_may_only_be_read_is_compared_with() {
        let folder = tempfile::tempdir().unwrap();
        let (first, second, third) = (script(), script(), script());
        drop(open(&[&first], &store(&folder, false)).unwrap());
        let store = store(&folder, true);
        drop(open(&[&second], &store).unwrap());
        third.act(Act::Skew(0.3));
        assert!(matches!(open(&[&third], &store), Err(EmbeddingError::Disagrees { .. })));
    }

    #[test]
    fn a_broken_backend_leaves_no_reference() {
        let folder = tempfile::tempdir().unwrap();
        let store = store(&folder, false);
        let broken = script();
        broken.act(Act::Nan);
        assert!(matches!(open(&[&broken], &store), Err(EmbeddingError::Broken { .. })));
        assert!(open(&[&script()], &store).is_ok());
    }
}

/// What goes wrong under load.
fn under_load(spoil: impl Fn(&Bed, &Script) + Sync) -> Bed {
    let (first, second) = (script(), script());
    let mut options = options();
    options.pipeline.workers = 2;
    let bed = Bed::with(&[&first, &second], &options, None).unwrap();
    bed.keep_standby();
    bed.wait_for_helpers();
    thread::scope(|scope| {
        for caller in 0..8 {
            let (bed, first, spoil) = (&bed, &first, &spoil);
            scope.spawn(move || {
                for round in 0..40 {
                    if (caller, round) == (0, 10) {
                        spoil(bed, first);
                    }
                    let texts: Vec<String> =
                        (0..1 + round % 5 * 7).map(|n| format!("{caller} {round} {n}")).collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let free = Caller::default();
                    let (vectors, role) = if caller % 2 == 0 {
                        (bed.embed(&free, &texts, Role::Passage).unwrap(), Role::Passage)
                    } else {
                        (bed.answer(&free, &texts, Role::Query).unwrap().vectors, Role::Query)
                    };
                    assert_eq!(vectors, direct(&texts, role), "caller {caller}, round {round}");
                }
            });
        }
    });
    first.act(Act::Work);
    assert_eq!(second.seen().made, 1, "the standby");
    bed
}

#[test]
fn under_load_a_backend_that_dies_loses_no_request() {
    let bed = under_load(|_, first| first.act(Act::Panic));
    assert_eq!(bed.states()[0], "open");
    assert!(bed.status().counters.fallbacks > 0);
}

#[test]
fn under_load_a_backend_that_runs_out_of_memory_loses_no_request() {
    let bed = under_load(|_, first| first.act(Act::OutOfMemory(5)));
    assert_eq!(bed.status().counters.fallbacks, 0);
    assert!(bed.status().counters.halvings > 0);
    let bed = under_load(|_, first| first.act(Act::OutOfMemory(0)));
    assert_eq!(bed.states()[0], "open");
}

#[test]
fn under_load_a_backend_that_hangs_loses_no_request() {
    let bed = under_load(|bed, first| {
        first.act(Act::Hang);
        first.until(|seen| seen.waiting > 0);
        bed.pass(TIMEOUT);
    });
    while bed.states()[0] == "hung" {
        thread::yield_now();
    }
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(bed.states()[0], "closed");
}

#[derive(Clone, Debug)]
struct Ask {
    lengths: Vec<usize>,
    role: Role,
    urgency: Urgency,
    cancels: bool,
}

fn ask() -> impl Strategy<Value = Ask> {
    let role = prop_oneof![Just(Role::Passage), Just(Role::Query)];
    let urgency = prop_oneof![Just(Urgency::Interactive), Just(Urgency::Bulk)];
    (prop::collection::vec(0_usize..60, 0..50), role, urgency, prop::bool::weighted(0.2))
        .prop_map(|(lengths, role, urgency, cancels)| Ask { lengths, role, urgency, cancels })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whoever_asks_whatever_meanwhile_gets_the_vectors_of_its_texts_in_order(
        callers in prop::collection::vec(prop::collection::vec(ask(), 1..5), 1..6),
        max_batch in 1_usize..20,
        token_budget in 1_usize..300,
        workers in 1_usize..4,
        counts: bool,
    ) {
        let only = script().with(|seen| {
            seen.max_batch = max_batch;
            seen.max_tokens = if counts { 512 } else { usize::MAX };
        });
        let mut options = options();
        options.pipeline = PipelineOptions { token_budget, workers, ..options.pipeline };
        let bed = Bed::with(&[&only], &options, None).unwrap();
        thread::scope(|scope| {
            for (caller, asks) in callers.iter().enumerate() {
                let bed = &bed;
                scope.spawn(move || {
                    for (n, ask) in asks.iter().enumerate() {
                        let text = |(at, length): (usize, &usize)| format!("{caller} {n} {at} {}", "x".repeat(*length));
                        let texts: Vec<String> = ask.lengths.iter().enumerate().map(text).collect();
                        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                        let cx = CancelsWhenAsked(std::sync::atomic::AtomicUsize::new(if ask.cancels { 2 } else { usize::MAX }));
                        match bed.embed_by(&cx, &texts, ask.role, ask.urgency) {
                            Ok((vectors, _)) => assert_eq!(vectors, direct(&texts, ask.role)),
                            Err(error) => assert!(ask.cancels, "{error}"),
                        }
                    }
                });
            }
        });
        assert_eq!(bed.embedding.pipeline.waiting_texts(), 0);
        assert!(only.seen().batches.iter().all(|batch| batch.len() <= max_batch));
    }
}

/// Cancels once it was asked so many times.
struct CancelsWhenAsked(std::sync::atomic::AtomicUsize);

impl CallContext for CancelsWhenAsked {
    fn is_cancelled(&self) -> bool {
        let left = self.0.load(std::sync::atomic::Ordering::Relaxed);
        self.0
            .store(left.saturating_sub(usize::from(left < usize::MAX)), std::sync::atomic::Ordering::Relaxed);
        left == 0
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _: u64, _: u64) {
        self.is_cancelled();
    }
}
