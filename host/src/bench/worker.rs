//! A process that embeds on request, so that figures of one backend are not those of another one's threads, and so
//! that programs other than this one can be measured in the same run.
//!
//! Requests and replies are lines of JSON on its standard input and output. Any program that speaks them is a peer;
//! `scripts/bench-embed-peers.py` is one.
use super::{
    Backend, BenchError,
    data::read_lines,
    npy::write_floats,
    texts::{BenchTexts, ShapedText},
};
use cpu_time::ProcessTime;
use magray_plugin_api::{CallContext, MemoryUse, Role};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    collections::BTreeMap,
    fmt, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

/// What a worker is asked.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// The first: load with so many threads, and read the texts of this file.
    #[expect(missing_docs, reason = "as said")]
    Start { threads: usize, texts: PathBuf },
    /// Embed all texts of a kind by calls of `batch` texts, in the order of their length where they are to be
    /// `sorted`. As often as fits into `PASSES`, at least once. The reply is the seconds of each pass.
    #[expect(missing_docs, reason = "as said")]
    Run { shape: String, sorted: bool, batch: usize },
    /// Embed one query so many times. The reply is the seconds of each.
    #[expect(missing_docs, reason = "as said")]
    Latency { text: String, times: usize },
    /// Embed the first `count` texts of a kind. The reply is their vectors.
    #[expect(missing_docs, reason = "as said")]
    Vectors { shape: String, count: usize },
    /// Embed all texts of a kind as what a search looks for or as what it finds, by calls of `batch` texts in the
    /// order of their length, and write the vectors into this file, in the order of the texts (.npy, f32).
    /// Only backends of this program are asked so.
    #[expect(missing_docs, reason = "as said")]
    Table { shape: String, as_queries: bool, batch: usize, file: PathBuf },
    /// What the backend says that it holds in memory.
    Memory,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reply {
    /// To the start.
    Ready(Ready),
    /// To what takes time.
    Seconds(Vec<f64>),
    /// To the question for vectors.
    Vectors(Vec<Vec<f32>>),
    /// To the question for memory.
    Memory(Held),
    /// It cannot.
    Error(String),
}

/// What a worker runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Ready {
    pub model: String,
    pub device: String,
    pub engine: String,
    pub precision: String,
    /// The most texts that it takes in one call.
    pub max_batch: usize,
    /// Tokens of the texts of each kind, as the model computes them.
    pub tokens: BTreeMap<String, u64>,
    /// The space of its vectors; empty where it has none that it knows.
    #[serde(default)]
    pub space: String,
    /// Why it did not run on the device that it was asked to; empty where it did.
    #[serde(default)]
    pub fallback_reason: String,
}

/// Bytes of memory that a plugin says that it holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Main memory that it allocated.
    pub resident: u64,
    /// Files that it maps.
    pub mapped: u64,
    /// Memory of an accelerator.
    pub device: u64,
}

impl From<MemoryUse> for Held {
    fn from(memory: MemoryUse) -> Self {
        Self { resident: memory.resident, mapped: memory.mapped, device: memory.device }
    }
}

/// Time of this process.
#[derive(Default)]
pub(super) struct Spent {
    pub(super) cpu: Duration,
    pub(super) wall: Duration,
}

impl Spent {
    /// Adds what `work` takes.
    pub(super) fn on<T>(&mut self, work: impl FnOnce() -> T) -> Result<T, BenchError> {
        let unknown = |error: io::Error| unfit(format!("the system does not tell its CPU time: {error}"));
        let (cpu, wall) = (ProcessTime::try_now().map_err(unknown)?, Instant::now());
        let done = work();
        self.cpu += cpu.try_elapsed().map_err(unknown)?;
        self.wall += wall.elapsed();
        Ok(done)
    }
}

pub(super) fn unfit(fault: String) -> BenchError {
    BenchError::Worker { name: "the worker".into(), fault }
}

/// How long a run goes on with texts that are embedded sooner.
pub(super) const PASSES: Duration = Duration::from_millis(200);

/// Serves one backend. `receive` gives the next request, or none where there are no more.
///
/// # Errors
/// Only what `receive` and `send` return: faults of the backend are replies.
pub fn serve<E>(
    cx: &dyn CallContext,
    open: impl FnOnce(usize) -> Result<Backend, BenchError>,
    mut receive: impl FnMut() -> Result<Option<Request>, E>,
    mut send: impl FnMut(&Reply) -> Result<(), E>,
) -> Result<(), E> {
    let (mut open, mut state) = (Some(open), None);
    while let Some(request) = receive()? {
        let answered = match (request, &state) {
            (Request::Start { threads, texts }, _) => match open.take() {
                Some(open) => State::start(open, threads, texts).map(|(started, ready)| {
                    state = Some(started);
                    Reply::Ready(ready)
                }),
                None => Ok(Reply::Error("it has started".into())),
            },
            (_, None) => Ok(Reply::Error("it has not started".into())),
            (Request::Run { shape, sorted, batch }, Some(state)) => state.run(cx, &shape, sorted, batch),
            (Request::Latency { text, times }, Some(state)) => state.latency(cx, &text, times),
            (Request::Vectors { shape, count }, Some(state)) => state.vectors(cx, &shape, count),
            (Request::Table { shape, as_queries, batch, file }, Some(state)) => {
                let role = if as_queries { Role::Query } else { Role::Passage };
                state.table(cx, &shape, role, batch, &file)
            }
            (Request::Memory, Some(state)) => Ok(Reply::Memory(state.backend.embedder().memory_use().into())),
        };
        send(&answered.unwrap_or_else(|error| Reply::Error(error.to_string())))?;
    }
    Ok(())
}

struct State {
    backend: Backend,
    texts: BenchTexts,
}

impl State {
    fn start(
        open: impl FnOnce(usize) -> Result<Backend, BenchError>,
        threads: usize,
        texts: PathBuf,
    ) -> Result<(Self, Ready), BenchError> {
        let texts = BenchTexts(read_lines::<ShapedText>(&texts)?);
        let backend = open(threads)?;
        let mut tokens = BTreeMap::new();
        for shape in texts.shapes() {
            let counts = backend.count_tokens(&texts.of(&shape))?;
            tokens.insert(shape, counts.into_iter().map(u64::from).sum());
        }
        let device = backend.embedder().device();
        let ready = Ready {
            model: backend.embedder().info().model.clone(),
            device: device.device,
            engine: device.engine,
            precision: device.precision,
            max_batch: backend.embedder().info().max_batch,
            tokens,
            space: blake3::Hash::from(backend.embedder().info().space).to_string(),
            fallback_reason: device.fallback_reason,
        };
        Ok((Self { backend, texts }, ready))
    }

    fn run(
        &self,
        cx: &dyn CallContext,
        shape: &str,
        sorted: bool,
        batch: usize,
    ) -> Result<Reply, BenchError> {
        let mut texts = self.texts.of(shape);
        if sorted {
            texts.sort_by_key(|text| text.len());
        }
        let start = Instant::now();
        let mut seconds = Vec::new();
        while seconds.is_empty() || start.elapsed() < PASSES {
            let pass = Instant::now();
            self.backend.embed(cx, &texts, Role::Passage, batch, &mut |_| {})?;
            seconds.push(pass.elapsed().as_secs_f64());
        }
        Ok(Reply::Seconds(seconds))
    }

    fn latency(&self, cx: &dyn CallContext, text: &str, times: usize) -> Result<Reply, BenchError> {
        let calls = (0..times).map(|_| {
            let start = Instant::now();
            self.backend.embed(cx, &[text], Role::Query, 1, &mut |_| {})?;
            Ok(start.elapsed().as_secs_f64())
        });
        calls.collect::<Result<_, _>>().map(Reply::Seconds)
    }

    fn vectors(&self, cx: &dyn CallContext, shape: &str, count: usize) -> Result<Reply, BenchError> {
        let mut texts = self.texts.of(shape);
        texts.truncate(count);
        let vectors = self.backend.embed(cx, &texts, Role::Passage, count, &mut |_| {})?;
        let rows = vectors.chunks_exact(self.backend.embedder().info().dim);
        Ok(Reply::Vectors(rows.map(<[f32]>::to_vec).collect()))
    }

    fn table(
        &self,
        cx: &dyn CallContext,
        shape: &str,
        role: Role,
        batch: usize,
        file: &Path,
    ) -> Result<Reply, BenchError> {
        let texts = self.texts.of(shape);
        let mut order: Vec<usize> = (0..texts.len()).collect();
        order.sort_by_key(|&at| texts[at].len());
        let sorted: Vec<&str> = order.iter().map(|&at| texts[at]).collect();
        let start = Instant::now();
        let computed = self.backend.embed(cx, &sorted, role, batch, &mut |_| {})?;
        let seconds = start.elapsed().as_secs_f64();
        let dim = self.backend.embedder().info().dim;
        let mut vectors = vec![0.0; computed.len()];
        for (&at, row) in order.iter().zip(computed.chunks_exact(dim)) {
            vectors[at * dim..][..dim].copy_from_slice(row);
        }
        write_floats(file, dim, &vectors)?;
        Ok(Reply::Seconds(vec![seconds]))
    }
}

/// A worker process.
#[derive(Debug)]
pub(super) struct Worker {
    name: String,
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts a worker on so many cores.
    pub(super) fn spawn(name: &str, mut command: Command, cores: usize) -> Result<Self, BenchError> {
        pin(&mut command, cores);
        let failed = |fault: &dyn std::fmt::Display| BenchError::Worker {
            name: name.to_owned(),
            fault: format!("it does not start: {fault}"),
        };
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| failed(&error))?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(failed(&"no pipes"));
        };
        Ok(Self { name: name.to_owned(), child, stdin, stdout: BufReader::new(stdout) })
    }

    pub(super) fn start(&mut self, threads: usize, texts: PathBuf) -> Result<Ready, BenchError> {
        match self.ask(&Request::Start { threads, texts })? {
            Reply::Ready(ready) => Ok(ready),
            other => Err(self.odd(&other)),
        }
    }

    pub(super) fn seconds(&mut self, request: &Request) -> Result<Vec<f64>, BenchError> {
        match self.ask(request)? {
            Reply::Seconds(seconds) if !seconds.is_empty() => Ok(seconds),
            other => Err(self.odd(&other)),
        }
    }

    pub(super) fn memory(&mut self) -> Result<Held, BenchError> {
        match self.ask(&Request::Memory)? {
            Reply::Memory(held) => Ok(held),
            other => Err(self.odd(&other)),
        }
    }

    pub(super) fn vectors(&mut self, shape: &str, count: usize) -> Result<Vec<Vec<f32>>, BenchError> {
        match self.ask(&Request::Vectors { shape: shape.to_owned(), count })? {
            Reply::Vectors(vectors) => Ok(vectors),
            other => Err(self.odd(&other)),
        }
    }

    /// Sends a request and waits for the reply. One that says `{"error": ...}` is the worker's fault.
    pub(super) fn ask<R: DeserializeOwned>(&mut self, request: &impl Serialize) -> Result<R, BenchError> {
        let mut line = serde_json::to_string(request).map_err(|error| self.fault(error.to_string()))?;
        line.push('\n');
        let mut reply = String::new();
        let told = self.stdin.write_all(line.as_bytes()).and_then(|()| self.stdin.flush());
        // One that has ended says so by an empty answer.
        let heard = told.and_then(|()| self.stdout.read_line(&mut reply));
        match heard {
            Ok(0) | Err(_) => return Err(self.fault("it has ended".into())),
            Ok(_) => {}
        }
        if let Ok(Refusal { error }) = serde_json::from_str(&reply) {
            return Err(self.fault(error));
        }
        serde_json::from_str(&reply)
            .map_err(|error| self.fault(format!("an odd answer ({error}): {}", beginning(&reply))))
    }

    /// Bytes of memory that it has resident, mapped files with it; none where the system does not tell.
    pub(super) fn resident_bytes(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id())).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        line.trim().strip_suffix(" kB")?.parse().ok().map(|kib: u64| kib * 1024)
    }

    /// That it answered something else than was asked.
    pub(super) fn odd(&self, answer: &impl fmt::Debug) -> BenchError {
        self.fault(format!("an odd answer: {}", beginning(&format!("{answer:?}"))))
    }

    pub(super) fn fault(&self, fault: String) -> BenchError {
        BenchError::Worker { name: self.name.clone(), fault }
    }
}

/// The reply of a worker that cannot.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Refusal {
    error: String,
}

/// As much of an answer as is worth showing.
fn beginning(answer: &str) -> &str {
    let answer = answer.trim_end();
    answer.char_indices().nth(200).map_or(answer, |(end, _)| &answer[..end])
}

impl Drop for Worker {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Binds a process that is about to start, and so all threads of it, to the first `cores` cores that this one may
/// use: then every program has the same, whatever it makes of the number of threads that it is told.
#[cfg(target_os = "linux")]
pub(super) fn pin(command: &mut Command, cores: usize) {
    use std::os::unix::process::CommandExt as _;
    let size = size_of::<libc::cpu_set_t>();
    // SAFETY: the set is plain bits, for which all zero is a value.
    let (mut allowed, mut chosen): (libc::cpu_set_t, libc::cpu_set_t) = unsafe { std::mem::zeroed() };
    // SAFETY: `allowed` is a set of the given size, owned by this frame.
    if unsafe { libc::sched_getaffinity(0, size, &mut allowed) } != 0 {
        return;
    }
    // SAFETY: each number is below the set's capacity.
    let all = (0..libc::CPU_SETSIZE as usize).filter(|&cpu| unsafe { libc::CPU_ISSET(cpu, &allowed) });
    for cpu in all.take(cores) {
        // SAFETY: as above.
        unsafe { libc::CPU_SET(cpu, &mut chosen) };
    }
    let bind = move || {
        // SAFETY: `chosen` is a set of the given size, moved into this closure.
        match unsafe { libc::sched_setaffinity(0, size, &chosen) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    };
    // SAFETY: between fork and exec it makes one system call, and allocates nothing.
    unsafe { command.pre_exec(bind) };
}

#[cfg(not(target_os = "linux"))]
pub(super) fn pin(_command: &mut Command, _cores: usize) {}
