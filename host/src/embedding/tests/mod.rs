//! Callers, faults and recoveries, with backends that do as the test says. Their panics are contained as those
//! of any plugin, and time is told by the test.
mod faults;
mod load;
mod parity;
mod queue;

use super::*;
use crate::plugins::{PluginOptions, Plugins};
use magray_plugin_api::{Component, CreateEmbedder, ErrorCode, Host, Plugin, Result as ApiResult};
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
            gpu_mem_limit: 0,
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

impl Bed {
    /// Waits until so many texts are in no batch yet.
    fn until_waiting(&self, texts: usize) {
        while self.embedding.pipeline.waiting_texts() < texts {
            thread::yield_now();
        }
    }
}
