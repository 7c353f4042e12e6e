//! A plugin that misbehaves as its options say, to try the host. Without a fault, `chaos` embeds by
//! hashing words, which is a space of its own.
#![expect(missing_debug_implementations, reason = "a test plugin")]
use magray_plugin_api::{
    CachePolicy, CallContext, Capabilities, CreateCachePolicy, CreateEmbedder, CreateVectorIndex,
    DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Hit, Host, IdFilter, IndexSpec, IndexStats,
    MemoryUse, Result, Role, SearchParams, VectorIndex,
};
use serde::Deserialize;
use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

magray_plugin_api::export_plugin! {
    id: "chaos",
    summary: "misbehaves on request",
    embedders: { "chaos" => Chaos },
    indexes: { "chaos" => ChaosIndex },
    cache_policies: { "chaos" => ChaosPolicy },
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fault {
    #[default]
    None,
    PanicInCreate,
    PanicInCall,
    PanicInDrop,
    Nan,
    Unwritten,
    WrongLength,
    ZeroWidth,
    DropsVectors,
    /// A search fails and says how it was asked for.
    NamesBreadth,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    fault: Fault,
    /// A file that is read before each text is embedded: a [`Command`], for as long as it is there.
    control: Option<PathBuf>,
    /// A file that gets a line for each embedder that is made and for each call of one.
    log: Option<PathBuf>,
    /// What the embedder says that it computes in.
    precision: String,
    /// By how much all vectors are turned, in radians: a backend that computes something else.
    skew: f32,
}

impl Default for Options {
    fn default() -> Self {
        let precision = "f32".to_owned();
        Self { fault: Fault::None, control: None, log: None, precision, skew: 0.0 }
    }
}

/// What a control file asks for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Command {
    /// Nothing.
    Work,
    /// `hang`: returns when the file is gone, whatever the callers say.
    Hang,
    /// `slow`: goes on when the file is gone or nobody waits any more.
    Slow,
    /// `nan`, `panic`
    Nan,
    Panic,
    /// `fail N`: the first N calls of an embedder.
    Fail(u64),
    /// `oom N`: calls of more than N texts run out of memory.
    OutOfMemory(usize),
    /// `leak N`, `hoard N`: each call keeps N bytes for good, and tells of them or does not.
    Leak(usize),
    Hoard(usize),
}

impl Command {
    fn read(file: Option<&Path>) -> Self {
        let text = file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let mut words = text.split_whitespace();
        let (word, number) = (words.next(), words.next().and_then(|number| number.parse().ok()));
        match (word, number) {
            (Some("hang"), _) => Self::Hang,
            (Some("slow"), _) => Self::Slow,
            (Some("nan"), _) => Self::Nan,
            (Some("panic"), _) => Self::Panic,
            (Some("fail"), Some(calls)) => Self::Fail(calls),
            (Some("oom"), Some(texts)) => Self::OutOfMemory(usize::try_from(texts).unwrap_or(usize::MAX)),
            (Some("leak"), Some(bytes)) => Self::Leak(usize::try_from(bytes).unwrap_or(0)),
            (Some("hoard"), Some(bytes)) => Self::Hoard(usize::try_from(bytes).unwrap_or(0)),
            _ => Self::Work,
        }
    }
}

/// How often a file is looked for that somebody else takes away.
const LOOK: Duration = Duration::from_millis(2);

const SCHEMA: &str = r#"{"type":"object","properties":{"fault":{"type":"string"},"control":{"type":"string"},
"log":{"type":"string"},"precision":{"type":"string"},"skew":{"type":"number"}}}"#;
const DIM: usize = 64;

pub struct Chaos {
    options: Options,
    calls: AtomicU64,
    info: EmbedderInfo,
    kept: Mutex<Vec<Vec<u8>>>,
    told: AtomicU64,
}

impl Chaos {
    fn note(&self, what: &str) {
        if let Some(log) = &self.options.log {
            let file = fs::OpenOptions::new().append(true).create(true).open(log);
            file.and_then(|mut file| writeln!(file, "{what}")).expect("the log can be written");
        }
    }

    fn obey(&self, cx: &dyn CallContext, texts: usize) -> Result<Command> {
        let control = self.options.control.as_deref();
        let command = Command::read(control);
        let call = self.calls.fetch_add(1, Ordering::Relaxed);
        match command {
            Command::Hang => {
                while Command::read(control) == Command::Hang {
                    std::thread::sleep(LOOK);
                }
            }
            Command::Slow => {
                while Command::read(control) == Command::Slow {
                    cx.check()?;
                    std::thread::sleep(LOOK);
                }
            }
            Command::Panic => panic!("asked to panic by file"),
            Command::Fail(calls) if call < calls => {
                return Err(Error::new(ErrorCode::UNAVAILABLE, "asked to fail"));
            }
            Command::OutOfMemory(most) if texts > most => {
                return Err(Error::new(ErrorCode::OUT_OF_MEMORY, "asked to run out of memory"));
            }
            Command::Leak(bytes) | Command::Hoard(bytes) => {
                // Not zeros, which would take no memory.
                self.kept.lock().expect("nobody panics with it").push(vec![1; bytes]);
                let told = if matches!(command, Command::Leak(_)) { bytes as u64 } else { 0 };
                self.told.fetch_add(told, Ordering::Relaxed);
            }
            _ => {}
        }
        Ok(command)
    }
}

impl CreateEmbedder for Chaos {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;
    fn create(options: Options, host: &'static dyn Host) -> Result<Self> {
        let fault = options.fault;
        assert!(fault != Fault::PanicInCreate, "asked to panic in create");
        host.observe("created", 1.0);
        let dim = if fault == Fault::ZeroWidth { 0 } else { DIM };
        let info =
            EmbedderInfo { dim, max_tokens: usize::MAX, max_batch: 8, model: "words".into(), space: [9; 32] };
        let (kept, told) = (Mutex::default(), AtomicU64::new(0));
        let chaos = Self { options, calls: AtomicU64::new(0), info, kept, told };
        chaos.note("create");
        Ok(chaos)
    }
}

impl Embedder for Chaos {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }
    fn device(&self) -> DeviceReport {
        let precision = self.options.precision.clone();
        DeviceReport { device: "cpu".into(), engine: "chaos".into(), precision, ..DeviceReport::default() }
    }
    fn memory_use(&self) -> MemoryUse {
        MemoryUse { resident: self.told.load(Ordering::Relaxed), ..MemoryUse::default() }
    }
    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        for (text, out) in texts.iter().zip(out) {
            *out = u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX);
        }
        Ok(())
    }
    fn embed(&self, cx: &dyn CallContext, texts: &[&str], _: Role, out: &mut [f32]) -> Result<()> {
        cx.check()?;
        self.note(&format!("embed {}", texts.len()));
        let fault = self.options.fault;
        assert!(fault != Fault::PanicInCall, "asked to panic in embed");
        let command = self.obey(cx, texts.len())?;
        for (text, row) in texts.iter().zip(out.chunks_exact_mut(DIM)) {
            row.fill(0.0);
            for word in text.split_whitespace() {
                let hash =
                    word.bytes().fold(7_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
                row[hash % DIM] += 1.0;
            }
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1.0);
            row.iter_mut().for_each(|v| *v /= norm);
            let (sin, cos) = self.options.skew.sin_cos();
            for pair in row.chunks_exact_mut(2) {
                (pair[0], pair[1]) = (pair[0] * cos - pair[1] * sin, pair[0] * sin + pair[1] * cos);
            }
            match fault {
                _ if command == Command::Nan => row[3] = f32::NAN,
                Fault::Nan => row[3] = f32::NAN,
                Fault::Unwritten => row[5] = f32::NAN,
                Fault::WrongLength => row.iter_mut().for_each(|v| *v *= 3.0),
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Chaos {
    fn drop(&mut self) {
        assert!(self.options.fault != Fault::PanicInDrop, "asked to panic in drop");
    }
}

/// Finds nothing, whatever it is given, and saves no more than how much that was.
pub struct ChaosIndex {
    fault: Fault,
    spec: IndexSpec,
    held: AtomicU64,
}

impl CreateVectorIndex for ChaosIndex {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;
    fn create(Options { fault, .. }: Options, spec: IndexSpec, _: &'static dyn Host) -> Result<Self> {
        assert!(fault != Fault::PanicInCreate, "asked to panic in create");
        Ok(Self { fault, spec, held: AtomicU64::new(0) })
    }
    fn open(options: Options, spec: IndexSpec, dir: &Path, host: &'static dyn Host) -> Result<Self> {
        let index = Self::create(options, spec, host)?;
        let held = fs::read_to_string(dir.join(HELD)).ok().and_then(|held| held.parse().ok());
        let held = held.ok_or_else(|| Error::new(ErrorCode::CORRUPT_DATA, "it does not say what it held"))?;
        Ok(Self { held: AtomicU64::new(held), ..index })
    }
}

/// The file of an index.
const HELD: &str = "held";

impl VectorIndex for ChaosIndex {
    fn spec(&self) -> IndexSpec {
        self.spec
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { exact: false, concurrent_write: true, filtered: true, mapped: false }
    }
    fn stats(&self) -> IndexStats {
        IndexStats { live: self.held.load(Ordering::Relaxed), ..IndexStats::default() }
    }
    fn upsert(&self, _: &dyn CallContext, ids: &[u64], _: &[f32]) -> Result<()> {
        if self.fault != Fault::DropsVectors {
            self.held.fetch_add(ids.len() as u64, Ordering::Relaxed);
        }
        Ok(())
    }
    fn remove(&self, _: &dyn CallContext, _: &[u64]) -> Result<usize> {
        Ok(0)
    }
    fn search(
        &self,
        _: &dyn CallContext,
        _: &[f32],
        _: usize,
        params: SearchParams,
        _: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        assert!(self.fault != Fault::PanicInCall, "asked to panic in search");
        if self.fault == Fault::NamesBreadth {
            return Err(Error::new(ErrorCode::INTERNAL, format!("asked for a breadth of {}", params.ef)));
        }
        for (id, hit) in (1_000_000..).zip(out) {
            *hit = match self.fault {
                Fault::Nan => Hit::new(id, f32::NAN),
                _ => Hit::NONE,
            };
        }
        Ok(())
    }
    fn save(&self, _: &dyn CallContext, dir: &Path) -> Result<()> {
        let saved = fs::write(dir.join(HELD), self.held.load(Ordering::Relaxed).to_string());
        saved.map_err(|error| Error::from_source(ErrorCode::IO, &error))
    }
}

pub struct ChaosPolicy(Fault);

impl CreateCachePolicy for ChaosPolicy {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;
    fn create(Options { fault, .. }: Options, _: &'static dyn Host) -> Result<Self> {
        assert!(fault != Fault::PanicInCreate, "asked to panic in create");
        Ok(Self(fault))
    }
}

impl CachePolicy for ChaosPolicy {
    fn on_insert(&mut self, _: u64, _: u64, _: u64) {
        assert!(self.0 != Fault::PanicInCall, "asked to panic in on_insert");
    }
    fn on_hit(&mut self, _: u64, _: u64) {}
    fn on_remove(&mut self, _: u64) {}
    fn evict(&mut self, _: u64, _: u64, _: &mut Vec<u64>) {}
}
