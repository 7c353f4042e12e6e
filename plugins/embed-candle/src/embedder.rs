use crate::{
    NAME,
    batch::{Batch, Rows, plan},
    failed,
    lanes::Lanes,
    network::Network,
    options::{Options, SCHEMA},
};
use candle_core::{DType, Device};
use magray_model::{ModelFolder, Packed, Tokenizer, normalize};
use magray_plugin_api::{
    CallContext, CreateEmbedder, DeviceReport, Embedder, EmbedderInfo, ErrorCode, Health, HealthLevel, Host,
    MemoryUse, Result, Role,
};
use std::{
    fmt,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Rows of a batch on the CPU, unless one text has more: enough for the products to run at full
/// speed, and their results (6 MB at 1536 columns) still in the caches.
const CPU_ROWS: usize = 1024;
/// Texts are not spread over threads in batches of fewer rows than this.
const LEAST_ROWS: usize = 64;
/// Rows of a batch on a GPU, unless one text has more: a few hundred MB of states.
const GPU_ROWS: usize = 16 << 10;

/// Embeds texts by transformer models (BERT, XLM-R, MPNet, Qwen3-Embedding).
pub struct CandleEmbedder {
    folder: ModelFolder,
    tokenizer: Tokenizer,
    network: Network,
    device: Device,
    dtype: DType,
    info: EmbedderInfo,
    lanes: Lanes,
    /// What the last call failed with, where it was the device's or the network's fault.
    fault: Mutex<Option<String>>,
    host: &'static dyn Host,
}

impl fmt::Debug for CandleEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CandleEmbedder").field("info", &self.info).finish_non_exhaustive()
    }
}

impl CreateEmbedder for CandleEmbedder {
    type Options = Options;

    const OPTIONS_SCHEMA: &'static str = SCHEMA;

    fn create(options: Options, host: &'static dyn Host) -> Result<Self> {
        options.check()?;
        let dir = ModelFolder::locate(&options.model, &host.models_dir());
        let folder = ModelFolder::open(&dir, &options.overrides)?;
        folder.check_makes_vectors()?;
        let device = device(&options)?;
        let dtype = options.dtype(&folder.spec.architecture);
        let network = Network::load(&folder, &device, dtype)?;
        device.synchronize().map_err(|error| failed(&error))?;
        let info = EmbedderInfo {
            dim: folder.spec.dim,
            max_tokens: folder.spec.max_tokens,
            max_batch: options.batch_size,
            model: folder.name.clone(),
            space: folder.space()?,
        };
        let (tokenizer, lanes, fault) = (folder.tokenizer()?, Lanes::new(), Mutex::default());
        Ok(Self { folder, tokenizer, network, device, dtype, info, lanes, fault, host })
    }
}

#[cfg(not(feature = "cuda"))]
fn device(_: &Options) -> Result<Device> {
    Ok(Device::Cpu)
}

#[cfg(feature = "cuda")]
fn device(options: &Options) -> Result<Device> {
    // A stream of our own: that of candle's `new_cuda` is another one in every thread.
    Device::new_cuda_with_stream(options.device_id).map_err(|error| {
        let error = failed(&error);
        let message = format!("cannot use GPU {} (device_id): {}", options.device_id, error.message());
        let code = if error.code() == ErrorCode::INTERNAL { ErrorCode::UNAVAILABLE } else { error.code() };
        magray_plugin_api::Error::new(code, message)
    })
}

impl CandleEmbedder {
    /// Writes the vectors of the texts in `packed` into `out`, `[texts, dim]`.
    fn embed_packed(&self, cx: &dyn CallContext, packed: &Packed, out: &mut [f32]) -> Result<()> {
        let texts: Vec<&[u32]> = packed.texts().collect();
        let (rows, most, threads) = if self.device.is_cpu() {
            let threads = self.host.threads().max(1);
            (Rows::Packed, packed.ids.len().div_ceil(threads).clamp(LEAST_ROWS, CPU_ROWS), threads)
        } else {
            // The stream takes one batch after the other.
            (Rows::Padded, GPU_ROWS, 1)
        };
        let (total, done) = (texts.len() as u64, AtomicU64::new(0));
        out.fill(0.0);
        let out = Mutex::new(out);
        let work = |batch: Vec<usize>| {
            cx.check()?;
            let ids: Vec<&[u32]> = batch.iter().map(|&text| texts[text]).collect();
            let states = Batch::new(&ids, rows, &self.device).map_err(|error| failed(&error))?;
            let states = self.network.run(&states, &|| cx.check())?;
            let hidden = states.len() / batch.len();
            let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
            for (&text, state) in batch.iter().zip(states.chunks_exact(hidden)) {
                let row = &mut out[text * self.info.dim..][..self.info.dim];
                row.copy_from_slice(&state[..self.info.dim]);
                normalize(row);
            }
            let count = batch.len() as u64;
            cx.progress(done.fetch_add(count, Ordering::Relaxed) + count, total);
            Ok(())
        };
        self.lanes.run(threads, plan(packed, most, rows), || cx.check(), work)
    }
}

impl Embedder for CandleEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn device(&self) -> DeviceReport {
        let device = match self.device.location() {
            candle_core::DeviceLocation::Cpu => "cpu".to_owned(),
            candle_core::DeviceLocation::Cuda { gpu_id } => format!("cuda:{gpu_id}"),
            candle_core::DeviceLocation::Metal { gpu_id } => format!("metal:{gpu_id}"),
        };
        let precision = self.dtype.as_str().to_owned();
        DeviceReport { device, engine: "candle".to_owned(), precision, fallback_reason: String::new() }
    }

    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        self.tokenizer.count(texts, out)
    }

    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()> {
        self.info.check_call(texts, out)?;
        cx.check()?;
        let mut packed = Packed::default();
        for text in texts {
            self.tokenizer.encode(text, role, &mut packed.ids)?;
            packed.ends.push(packed.ids.len());
            cx.check()?;
        }
        let result = self.embed_packed(cx, &packed, out);
        let fault = match &result {
            Err(error) if [ErrorCode::CANCELLED, ErrorCode::DEADLINE].contains(&error.code()) => {
                return result;
            }
            Err(error) => Some(error.message().to_owned()),
            Ok(()) => None,
        };
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        result
    }

    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        let mut out = vec![0.0; self.info.dim];
        self.embed(cx, &["warm up"], Role::Query, &mut out)
    }

    fn health(&self) -> Health {
        match &*self.fault.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(fault) => {
                Health { level: HealthLevel::Failed, message: format!("the last call failed: {fault}") }
            }
            None => Health::ok(),
        }
    }

    fn memory_use(&self) -> MemoryUse {
        let weights = self.network.bytes;
        let on_cpu = self.device.is_cpu();
        // The files are not mapped any more once the weights are read.
        MemoryUse {
            resident: if on_cpu { weights } else { 0 },
            mapped: 0,
            device: if on_cpu { 0 } else { weights },
        }
    }

    fn describe(&self) -> String {
        let spec = &self.folder.spec;
        serde_json::json!({
            "component": NAME,
            "model": self.info.model,
            "architecture": spec.architecture.label(),
            "dim": spec.dim,
            "max_tokens": spec.max_tokens,
            "pooling": spec.pooling,
            "prefixes": spec.prefixes,
            "precision": self.dtype.as_str(),
        })
        .to_string()
    }
}
