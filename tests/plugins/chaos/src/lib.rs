//! A plugin that misbehaves as its options say, to try the host. Without a fault, `chaos` embeds by
//! hashing words, which is a space of its own.
#![expect(missing_debug_implementations, reason = "a test plugin")]
use magray_plugin_api::{
    CachePolicy, CallContext, Capabilities, CreateCachePolicy, CreateEmbedder, CreateVectorIndex,
    DeviceReport, Embedder, EmbedderInfo, Hit, Host, IdFilter, IndexSpec, IndexStats, Result, Role,
    SearchParams, VectorIndex,
};
use serde::Deserialize;
use std::{
    path::Path,
    sync::atomic::{AtomicU64, Ordering},
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
    UnknownIds,
    DropsVectors,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    #[serde(default)]
    fault: Fault,
}

const SCHEMA: &str = r#"{"type":"object","properties":{"fault":{"type":"string"}}}"#;
const DIM: usize = 64;

pub struct Chaos {
    fault: Fault,
    info: EmbedderInfo,
}

impl CreateEmbedder for Chaos {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;
    fn create(Options { fault }: Options, host: &'static dyn Host) -> Result<Self> {
        assert!(fault != Fault::PanicInCreate, "asked to panic in create");
        host.observe("created", 1.0);
        let dim = if fault == Fault::ZeroWidth { 0 } else { DIM };
        let info =
            EmbedderInfo { dim, max_tokens: usize::MAX, max_batch: 8, model: "words".into(), space: [9; 32] };
        Ok(Self { fault, info })
    }
}

impl Embedder for Chaos {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }
    fn device(&self) -> DeviceReport {
        DeviceReport { device: "cpu".into(), engine: "chaos".into(), ..DeviceReport::default() }
    }
    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        for (text, out) in texts.iter().zip(out) {
            *out = u32::try_from(text.split_whitespace().count()).unwrap_or(u32::MAX);
        }
        Ok(())
    }
    fn embed(&self, cx: &dyn CallContext, texts: &[&str], _: Role, out: &mut [f32]) -> Result<()> {
        cx.check()?;
        assert!(self.fault != Fault::PanicInCall, "asked to panic in embed");
        for (text, row) in texts.iter().zip(out.chunks_exact_mut(DIM)) {
            row.fill(0.0);
            for word in text.split_whitespace() {
                let hash =
                    word.bytes().fold(7_usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
                row[hash % DIM] += 1.0;
            }
            let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt().max(1.0);
            row.iter_mut().for_each(|v| *v /= norm);
            match self.fault {
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
        assert!(self.fault != Fault::PanicInDrop, "asked to panic in drop");
    }
}

/// Finds nothing, whatever it is given.
pub struct ChaosIndex {
    fault: Fault,
    spec: IndexSpec,
    held: AtomicU64,
}

impl CreateVectorIndex for ChaosIndex {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;
    fn create(Options { fault }: Options, spec: IndexSpec, _: &'static dyn Host) -> Result<Self> {
        assert!(fault != Fault::PanicInCreate, "asked to panic in create");
        Ok(Self { fault, spec, held: AtomicU64::new(0) })
    }
    fn open(options: Options, spec: IndexSpec, _: &Path, host: &'static dyn Host) -> Result<Self> {
        Self::create(options, spec, host)
    }
}

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
        _: SearchParams,
        _: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        assert!(self.fault != Fault::PanicInCall, "asked to panic in search");
        for (id, hit) in (1_000_000..).zip(out) {
            *hit = match self.fault {
                Fault::UnknownIds => Hit::new(id, 1.0),
                Fault::Nan => Hit::new(id, f32::NAN),
                _ => Hit::NONE,
            };
        }
        Ok(())
    }
    fn save(&self, _: &dyn CallContext, dir: &Path) -> Result<()> {
        let saved = std::fs::write(dir.join("nothing"), b"nothing");
        saved.map_err(|error| magray_plugin_api::Error::from_source(magray_plugin_api::ErrorCode::IO, &error))
    }
}

pub struct ChaosPolicy(Fault);

impl CreateCachePolicy for ChaosPolicy {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;
    fn create(Options { fault }: Options, _: &'static dyn Host) -> Result<Self> {
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
