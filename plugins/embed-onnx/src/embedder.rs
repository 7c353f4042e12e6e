use crate::{
    batch::{self, Batch},
    cuda::Gpu,
    error,
    options::{Options, Precision, SCHEMA},
    pool::{Outcome, Pool},
    runtime::Runtime,
    sessions::{Sessions, Target},
    source::Source,
};
use magray_model::{Architecture, ModelFolder, Packed, Tokenizer};
use magray_plugin_api::{
    CallContext, CreateEmbedder, DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Health, Host,
    MemoryUse, Result, Role,
};
use ort::session::{NoSelectedOutputs, RunOptions};
use std::{
    collections::VecDeque,
    panic,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::Duration,
};

/// Tokens that run at once on a CPU: what they need stays in its cache.
const CPU_TOKENS: usize = 512;
/// A call of more tokens can be cancelled in the middle of a run.
const WATCHED_TOKENS: usize = 256;
const WATCH: Duration = Duration::from_millis(10);
/// Texts between two questions whether to go on, while they are tokenized.
const TOKENIZED_TEXTS: usize = 32;

/// Embeds texts by transformer models on ONNX Runtime.
#[derive(Debug)]
pub struct OnnxEmbedder {
    folder: ModelFolder,
    info: EmbedderInfo,
    tokenizer: Tokenizer,
    runtime: Runtime,
    sessions: Sessions,
    streams: usize,
    prefetch: usize,
    device: DeviceReport,
    pool: Mutex<Pool>,
    /// Whether the next run is to give back memory that allocators keep.
    shrink: AtomicBool,
}

impl CreateEmbedder for OnnxEmbedder {
    type Options = Options;

    const OPTIONS_SCHEMA: &'static str = SCHEMA;

    fn create(options: Options, host: &'static dyn Host) -> Result<Self> {
        options.check()?;
        // Where there is no GPU that is said first: a host with another backend waits for it.
        let (gpu, no_gpu) = match find_gpu(&options) {
            Ok(gpu) => (gpu, String::new()),
            Err(why) if options.allow_cpu => (None, why),
            Err(why) => return Err(no_such_device(&why)),
        };
        let dir = ModelFolder::locate(&options.model, &host.models_dir());
        let folder = ModelFolder::open(&dir, &options.overrides)?;
        let source = Source::choose(&folder, options.precision)?;
        // Each takes a while, and none needs another.
        let (tokenizer, space, running) = thread::scope(|scope| {
            let tokenizer = scope.spawn(|| folder.tokenizer());
            let space = scope.spawn(|| folder.space());
            let running = Runtime::load(&options.runtime, host).and_then(|runtime| {
                let running = start(&runtime, &source, &folder, &options, gpu, no_gpu, host.threads())?;
                Ok((runtime, running))
            });
            (join(tokenizer), join(space), running)
        });
        let (runtime, running) = running?;
        let (tokenizer, space) = (tokenizer?, space?);
        let info = EmbedderInfo {
            dim: folder.spec.dim,
            max_tokens: folder.spec.max_tokens,
            max_batch: options.batch_size,
            model: folder.name.clone(),
            space,
        };
        let Running { sessions, gpu, no_gpu } = running;
        let streams = options.streams(gpu.as_ref(), source.size());
        let device = DeviceReport {
            device: if gpu.is_some() { format!("cuda:{}", options.device_id) } else { "cpu".to_owned() },
            engine: sessions.provider().to_owned(),
            precision: source.precision().to_owned(),
            fallback_reason: no_gpu,
        };
        let pool =
            gpu.map_or_else(|| Pool::new(None, CPU_TOKENS), |gpu| gpu_pool(&gpu, &options, &folder, streams));
        Ok(Self {
            info,
            tokenizer,
            runtime,
            sessions,
            streams,
            prefetch: options.prefetch(gpu.as_ref()),
            device,
            pool: Mutex::new(pool),
            shrink: AtomicBool::new(false),
            folder,
        })
    }
}

/// The GPU that was asked for, if any, or why it cannot be used.
fn find_gpu(options: &Options) -> std::result::Result<Option<Gpu>, String> {
    if !options.use_gpu {
        return Ok(None);
    }
    if options.precision == Precision::Int8 {
        return Err("int8 runs on the CPU only".to_owned());
    }
    Gpu::probe(options.device_id).map(Some)
}

fn no_such_device(why: &str) -> Error {
    let message =
        format!("'use_gpu' is set, and {why}; unset it, or set 'allow_cpu' to run on the CPU instead");
    Error::new(ErrorCode::UNAVAILABLE, message)
}

struct Running {
    sessions: Sessions,
    /// The GPU that they run on.
    gpu: Option<Gpu>,
    /// Why they do not run on a GPU where one was asked for; else empty.
    no_gpu: String,
}

/// Starts sessions on the GPU where there is one, else on the CPU.
fn start(
    runtime: &Runtime,
    source: &Source,
    folder: &ModelFolder,
    options: &Options,
    gpu: Option<Gpu>,
    no_gpu: String,
    threads: usize,
) -> Result<Running> {
    let streams = |gpu: Option<&Gpu>| options.streams(gpu, source.size());
    let sessions = |target: &Target, gpu: Option<&Gpu>| {
        Sessions::new(runtime, source, folder, target, streams(gpu), threads)
    };
    let on_cpu = |no_gpu: String| Ok(Running { sessions: sessions(&Target::Cpu, None)?, gpu: None, no_gpu });
    let Some(found) = gpu else { return on_cpu(no_gpu) };
    let target = Target::Cuda {
        device: options.device_id,
        mem_limit: options.gpu_mem_limit / streams(Some(&found)) as u64,
        pinned: options.pins_memory(&found),
    };
    match sessions(&target, Some(&found)) {
        Ok(sessions) => Ok(Running { sessions, gpu, no_gpu }),
        Err(error) if matches!(error.code(), ErrorCode::CORRUPT_DATA | ErrorCode::UNSUPPORTED) => Err(error),
        Err(error) if options.allow_cpu => on_cpu(error.message().to_owned()),
        Err(error) if error.code() == ErrorCode::OUT_OF_MEMORY => Err(error),
        Err(error) => Err(no_such_device(error.message())),
    }
}

/// A pool for the runs of each stream of a GPU, which are small enough for its share of the memory.
fn gpu_pool(gpu: &Gpu, options: &Options, folder: &ModelFolder, streams: usize) -> Pool {
    let each = options.gpu_memory(gpu) / streams as u64;
    let most = options.batch_size.saturating_mul(folder.spec.max_tokens);
    let fitting = each / activation_bytes(folder).max(1);
    Pool::new(Some(each), most.min(usize::try_from(fitting).unwrap_or(usize::MAX)))
}

/// About the bytes that a token needs while it runs: the widest layer with what goes into it and comes
/// out, and its share of the attention scores of the longest text.
fn activation_bytes(folder: &ModelFolder) -> u64 {
    let tokens = folder.spec.max_tokens;
    let numbers = match &folder.spec.architecture {
        Architecture::Bert(bert) => 2 * bert.intermediate + 6 * bert.hidden + 2 * bert.heads * tokens,
        Architecture::Qwen3(qwen) => 3 * qwen.intermediate + 6 * qwen.hidden + 2 * qwen.heads * tokens,
        Architecture::Static => 0,
    };
    (numbers * size_of::<f32>()) as u64
}

fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|payload| panic::resume_unwind(payload))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call while it runs.
struct Call<'a> {
    cx: &'a dyn CallContext,
    packed: &'a Packed,
    /// Tokens of type 0 of each text, where texts are pairs.
    firsts: Option<&'a [usize]>,
    waiting: Mutex<VecDeque<Batch>>,
    /// `[texts, width]`
    out: Mutex<&'a mut [f32]>,
    width: usize,
    options: RunOptions<NoSelectedOutputs>,
    done: AtomicU64,
}

impl OnnxEmbedder {
    /// Runs what waits until nothing does.
    fn work(&self, call: &Call<'_>) -> Result<()> {
        loop {
            let Some(batch) = lock(&call.waiting).pop_front() else { return Ok(()) };
            let ran = call.cx.check().and_then(|()| self.run(call, batch));
            if let Err(error) = ran {
                lock(&call.waiting).clear();
                return Err(error);
            }
        }
    }

    fn run(&self, call: &Call<'_>, batch: Batch) -> Result<()> {
        let ran = self.sessions.run(&self.folder, &batch, call.packed, call.firsts, &call.options);
        let (rows, usage) = match ran {
            Ok(result) => result,
            Err(error) => {
                // A run that was stopped is no failure of the device.
                call.cx.check()?;
                let memory = error.code() == ErrorCode::OUT_OF_MEMORY;
                let outcome = if memory { Outcome::OutOfMemory } else { Outcome::Failure };
                lock(&self.pool).ran(batch.tokens(), outcome);
                if !memory {
                    return Err(error);
                }
                let halves = batch.halve().map_err(|_| error)?;
                lock(&call.waiting).extend(halves);
                return Ok(());
            }
        };
        let needed = activation_bytes(&self.folder) * batch.tokens() as u64;
        let mut pool = lock(&self.pool);
        pool.ran(batch.tokens(), Outcome::Success);
        if pool.allocated(needed, usage) {
            self.shrink.store(true, Ordering::Relaxed);
        }
        drop(pool);
        let width = call.width;
        let mut out = lock(&call.out);
        for (row, &text) in rows.chunks_exact(width).zip(&batch.texts) {
            out[text * width..][..width].copy_from_slice(row);
        }
        drop(out);
        let count = batch.texts.len() as u64;
        let done = call.done.fetch_add(count, Ordering::Relaxed) + count;
        call.cx.progress(done, call.packed.ends.len() as u64);
        Ok(())
    }

    /// Computes the vectors of texts, `[texts, dim]`, or the scores of pairs, `[texts]`; texts without tokens get
    /// zeros.
    fn compute(
        &self,
        cx: &dyn CallContext,
        packed: &Packed,
        firsts: Option<&[usize]>,
        out: &mut [f32],
    ) -> Result<()> {
        let width = firsts.map_or(self.info.dim, |_| 1);
        out.fill(0.0);
        let lengths: Vec<usize> = packed.texts().map(<[u32]>::len).collect();
        let batches = batch::plan(&lengths, self.info.max_batch, lock(&self.pool).budget());
        let workers = batches.len().min(self.streams + self.prefetch);
        let options = self.run_options().map_err(|error| error::of_runtime("refuses a run", &error))?;
        let call = Call {
            cx,
            packed,
            firsts,
            waiting: Mutex::new(batches.into()),
            out: Mutex::new(out),
            width,
            options,
            done: AtomicU64::new(0),
        };
        let call = &call;
        thread::scope(|scope| {
            // The watcher ends when the sender is dropped, also by a panic.
            let (running, stopped) = mpsc::channel::<()>();
            if packed.ids.len() > WATCHED_TOKENS {
                let watch = move || {
                    while stopped.recv_timeout(WATCH) == Err(RecvTimeoutError::Timeout) {
                        if cx.check().is_err() {
                            // Where it fails, the call ends with the run.
                            let _ = call.options.terminate();
                            break;
                        }
                    }
                };
                // Where the system gives no thread, the call ends with the run, too.
                let _ = thread::Builder::new().spawn_scoped(scope, watch);
            }
            let start = |_| thread::Builder::new().spawn_scoped(scope, || self.work(call)).ok();
            let helpers: Vec<_> = (1..workers).filter_map(start).collect();
            let own = self.work(call);
            let result = helpers.into_iter().fold(own, |result, helper| result.and(join(helper)));
            drop(running);
            result
        })
    }

    fn run_options(&self) -> ort::Result<RunOptions<NoSelectedOutputs>> {
        let mut options = RunOptions::new()?;
        if self.shrink.swap(false, Ordering::Relaxed) {
            let device = self.device.device.strip_prefix("cuda:").map(|id| format!("gpu:{id}"));
            let arena = device.unwrap_or_else(|| "cpu:0".to_owned());
            options.set("memory.enable_memory_arena_shrinkage", arena)?;
        }
        Ok(options)
    }
}

impl Embedder for OnnxEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn device(&self) -> DeviceReport {
        self.device.clone()
    }

    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        self.tokenizer.count(texts, out)
    }

    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()> {
        self.folder.check_makes_vectors()?;
        self.info.check_call(texts, out)?;
        let mut packed = Packed::default();
        for texts in texts.chunks(TOKENIZED_TEXTS) {
            cx.check()?;
            for text in texts {
                self.tokenizer.encode(text, role, &mut packed.ids)?;
                packed.ends.push(packed.ids.len());
            }
        }
        self.compute(cx, &packed, None, out)
    }

    fn rerank(&self, cx: &dyn CallContext, query: &str, passages: &[&str], scores: &mut [f32]) -> Result<()> {
        if !self.folder.spec.judges_pairs {
            let message =
                format!("the model {} makes vectors and does not judge pairs of texts", self.info.model);
            return Err(Error::new(ErrorCode::UNSUPPORTED, message));
        }
        let (count, most) = (passages.len(), self.info.max_batch);
        if count > most || count != scores.len() {
            let message = format!("{count} passages, {} scores; at most {most} in one call", scores.len());
            return Err(Error::invalid_input(message));
        }
        let (mut packed, mut firsts) = (Packed::default(), Vec::with_capacity(count));
        for passages in passages.chunks(TOKENIZED_TEXTS) {
            cx.check()?;
            for passage in passages {
                firsts.push(self.tokenizer.encode_pair(query, passage, &mut packed.ids)?);
                packed.ends.push(packed.ids.len());
            }
        }
        self.compute(cx, &packed, Some(&firsts), scores)
    }

    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        // Kernels of a GPU are made ready with the first run.
        if self.folder.spec.judges_pairs {
            return self.rerank(cx, "warm", &["up"], &mut [0.0]);
        }
        self.embed(cx, &["warm up"], Role::Query, &mut vec![0.0; self.info.dim])
    }

    fn health(&self) -> Health {
        lock(&self.pool).health()
    }

    fn memory_use(&self) -> MemoryUse {
        let reserved = lock(&self.pool).usage().reserved * self.streams as u64;
        if self.device.device == "cpu" {
            MemoryUse { resident: reserved, ..MemoryUse::default() }
        } else {
            MemoryUse { device: reserved, ..MemoryUse::default() }
        }
    }

    /// `tokens_at_once`: tokens of one run, padding included; at least one text runs.
    fn tune(&self, name: &str, value: &str) -> Result<()> {
        if name != "tokens_at_once" {
            let message = format!("'{name}' cannot be changed while it runs; 'tokens_at_once' can");
            return Err(Error::new(ErrorCode::UNSUPPORTED, message));
        }
        let tokens = value.parse().ok().filter(|&tokens| tokens > 0).ok_or_else(|| {
            Error::new(
                ErrorCode::INVALID_CONFIG,
                format!("'tokens_at_once' is a number above 0, not '{value}'"),
            )
        })?;
        lock(&self.pool).set_budget(tokens);
        Ok(())
    }

    fn describe(&self) -> String {
        serde_json::json!({
            "model": self.info.model,
            "network": self.folder.spec.architecture.label(),
            "dim": self.info.dim,
            "max_tokens": self.info.max_tokens,
            "pooling": self.folder.spec.pooling,
            "precision": self.device.precision,
            "onnx_runtime": self.runtime.version,
            "library": self.runtime.library,
            "nodes": self.sessions.placement,
            "streams": self.streams,
            "prefetch": self.prefetch,
            "memory": lock(&self.pool).describe(),
        })
        .to_string()
    }
}
