use super::{
    cpu::Isa,
    gemm::Precision,
    network::{Engine, Network, Workspace},
    packed::{Packed, Plan, file_name},
    text::{TextEncoder, count},
};
use crate::{
    options::{CpuOptions, WantedPrecision},
    workers,
};
use magray_model::{Architecture, ModelFolder, Packed as Ids, Spec, Weights};
use magray_plugin_api::{
    CallContext, DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Host, LogLevel, MemoryUse, Result,
    Role,
};
use std::{
    path::Path,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

/// Tokens that go through the network together, but for a text that is longer. Enough that each weight
/// that comes from memory is used often, and few enough that the states stay in the cache.
const MICRO_BATCH: usize = 512;
/// Bytes of text from which on a second thread tokenizes.
const THREAD_BYTES: usize = 64 << 10;
/// Texts that a thread tokenizes at once.
const CHUNK_TEXTS: usize = 32;
/// Tokens from which on a second thread is worth its start.
const THREAD_TOKENS: usize = 64;

/// Embeds texts by a transformer model. The vector of a text does not depend on its neighbours, to the
/// bit.
pub(crate) struct TransformerEmbedder {
    info: EmbedderInfo,
    spec: Spec,
    encoder: TextEncoder,
    network: Network,
    packed: Packed,
    engine: Engine,
    /// Memory of forward passes that no thread uses now.
    spare: Mutex<Vec<Workspace>>,
    host: &'static dyn Host,
}

/// Some texts that go through the network together, and where their vectors go.
#[derive(Default)]
struct MicroBatch<'a> {
    texts: Vec<&'a [u32]>,
    rows: Vec<&'a mut [f32]>,
    tokens: usize,
}

impl TransformerEmbedder {
    /// Opens the model in `dir`.
    ///
    /// # Errors
    /// As `CreateEmbedder::create`.
    pub(crate) fn open(dir: &Path, options: CpuOptions, host: &'static dyn Host) -> Result<Self> {
        let folder = ModelFolder::open(dir, &options.overrides)?;
        folder.check_makes_vectors()?;
        let engine = engine(options.precision, head_dim(&folder.spec.architecture))?;
        let digests = folder.digests()?;
        let weights = Weights::open(&folder)?;
        let mut plan = Plan::new(engine.precision());
        let network = Network::new(&folder.spec, &weights, &mut plan)?;
        let warn = |message: String| host.log(LogLevel::Warn, "magray_embed_cpu", &message);
        let file = match host.data_dir() {
            Ok(dir) => Some(dir.join(file_name(&folder.name, &digests.weights, engine.precision()))),
            Err(error) => {
                warn(format!("the packed weights of {} are not kept: {error}", folder.name));
                None
            }
        };
        let packed = Packed::open(&plan, digests.weights, &weights, file.as_deref(), warn)?;
        let info = EmbedderInfo {
            dim: folder.spec.dim,
            max_tokens: folder.spec.max_tokens,
            max_batch: options.batch_size,
            model: folder.name.clone(),
            space: digests.space,
        };
        let encoder = TextEncoder::open(&folder)?;
        let spare = Mutex::default();
        Ok(Self { info, spec: folder.spec, encoder, network, packed, engine, spare, host })
    }

    /// The ids of all texts.
    fn tokens(&self, cx: &dyn CallContext, texts: &[&str], role: Role) -> Result<Ids> {
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        let mut chunks = vec![Ids::default(); texts.len().div_ceil(CHUNK_TEXTS)];
        let threads = (bytes / THREAD_BYTES).min(chunks.len()).min(self.host.threads());
        workers::run(threads, texts.chunks(CHUNK_TEXTS).zip(&mut chunks), |next| {
            while let Some((texts, chunk)) = next() {
                for text in texts {
                    cx.check()?;
                    self.encoder.encode(text, role, &mut chunk.ids)?;
                    chunk.ends.push(chunk.ids.len());
                }
            }
            Ok(())
        })?;
        let mut all = Ids::default();
        for chunk in chunks {
            let first = all.ids.len();
            all.ids.extend(chunk.ids);
            all.ends.extend(chunk.ends.iter().map(|end| first + end));
        }
        Ok(all)
    }
}

/// Cuts texts into micro-batches of about `target` tokens, the longest first, so that threads end
/// together. A text without tokens gets the zero vector.
fn micro_batches<'a>(ids: &'a Ids, out: &'a mut [f32], dim: usize, target: usize) -> Vec<MicroBatch<'a>> {
    let mut texts: Vec<_> = ids.texts().zip(out.chunks_exact_mut(dim)).collect();
    texts.sort_by_key(|(ids, _)| std::cmp::Reverse(ids.len()));
    let mut batches: Vec<MicroBatch> = Vec::new();
    for (ids, row) in texts {
        if ids.is_empty() {
            row.fill(0.0);
            continue;
        }
        let batch = match batches.last_mut() {
            Some(batch) if batch.tokens + ids.len() <= target => batch,
            _ => batches.push_mut(MicroBatch::default()),
        };
        batch.texts.push(ids);
        batch.rows.push(row);
        batch.tokens += ids.len();
    }
    batches
}

/// The engine for `wanted`. `Auto` takes the fastest that stays within a cosine of 0.999 of f32.
fn engine(wanted: WantedPrecision, dim: usize) -> Result<Engine> {
    let isa = Isa::available().next().unwrap_or(Isa::Portable);
    let precisions = match wanted {
        WantedPrecision::Auto if isa == Isa::Portable => &[Precision::F32][..],
        WantedPrecision::Auto => &[Precision::Bf16, Precision::F32],
        WantedPrecision::F32 => &[Precision::F32],
        WantedPrecision::Bf16 => &[Precision::Bf16],
        WantedPrecision::Int8 => &[Precision::Int8],
    };
    precisions.iter().find_map(|&precision| Engine::new(isa, precision, dim)).ok_or_else(|| {
        let needs = match wanted {
            WantedPrecision::Bf16 => "'bf16' needs AVX512-BF16",
            _ => "'int8' needs AVX512-VNNI or AVX-VNNI",
        };
        let message = format!("precision {needs}, which this CPU lacks; use 'auto'");
        Error::new(ErrorCode::UNAVAILABLE, message)
    })
}

fn head_dim(architecture: &Architecture) -> usize {
    match architecture {
        Architecture::Bert(bert) => bert.hidden / bert.heads,
        Architecture::Qwen3(qwen) => qwen.head_dim,
        Architecture::Static => 1,
    }
}

impl Embedder for TransformerEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn device(&self) -> DeviceReport {
        DeviceReport {
            device: "cpu".to_owned(),
            engine: self.engine.name().to_owned(),
            precision: self.engine.precision().name().to_owned(),
            fallback_reason: String::new(),
        }
    }

    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        count(&self.encoder, texts, out)
    }

    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()> {
        let dim = self.info.dim;
        self.info.check_call(texts, out)?;
        cx.check()?;
        let ids = self.tokens(cx, texts, role)?;
        let tokens = ids.ids.len();
        let most = self.host.threads();
        let threads = (tokens / THREAD_TOKENS).clamp(1, most);
        let target = tokens.div_ceil(threads).min(MICRO_BATCH);
        let batches = micro_batches(&ids, out, dim, target);
        let (total, done) = (texts.len() as u64, AtomicU64::new(0));
        workers::run(threads.min(batches.len()), batches.into_iter(), |next| {
            let spare = || self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            let work = spare().pop();
            let mut work =
                work.unwrap_or_else(|| self.network.workspace(&self.engine, &self.spec.architecture));
            let mut result = Ok(());
            while let Some(MicroBatch { texts, mut rows, .. }) = next() {
                result = self.network.embed(
                    &self.engine,
                    &self.packed,
                    cx,
                    &texts,
                    self.spec.pooling,
                    &mut work,
                    &mut rows,
                );
                if result.is_err() {
                    break;
                }
                let count = texts.len() as u64;
                cx.progress(done.fetch_add(count, Ordering::Relaxed) + count, total);
            }
            let mut spare = spare();
            if spare.len() < most {
                spare.push(work);
            }
            result
        })
    }

    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        // Reads the weights, and makes the memory of one pass.
        self.embed(cx, &["warm"], Role::Query, &mut vec![0.0; self.info.dim])
    }

    fn memory_use(&self) -> MemoryUse {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        let work: usize = spare.iter().map(Workspace::bytes).sum();
        let packed = self.packed.bytes().len();
        let (own, mapped) = if self.packed.is_mapped() { (0, packed) } else { (packed, 0) };
        MemoryUse {
            resident: (self.encoder.memory() + work + own) as u64,
            mapped: mapped as u64 + self.network.words().mapped(),
            device: 0,
        }
    }

    fn describe(&self) -> String {
        serde_json::json!({
            "model": self.info.model,
            "kind": "transformer",
            "architecture": self.spec.architecture.label(),
            "dim": self.info.dim,
            "max_tokens": self.info.max_tokens,
            "engine": self.engine.name(),
            "precision": self.engine.precision().name(),
            "pooling": self.spec.pooling,
            "tokenizer": self.encoder.name(),
            "micro_batch_tokens": MICRO_BATCH,
            "packed_weights": self.packed.bytes().len(),
            "packed_weights_mapped": self.packed.is_mapped(),
        })
        .to_string()
    }
}
