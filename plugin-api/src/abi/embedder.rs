use super::{
    AbiResult, catch,
    context::{ContextFromAbi, ContextRef, ContextToAbi},
    panic::Guarded,
};
use crate::{
    CallContext, DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Health, HealthLevel, MemoryUse,
    Result, Role,
};
use abi_stable::{
    StableAbi, sabi_trait,
    sabi_trait::TD_Opaque,
    std_types::{
        RBox,
        RResult::{RErr, ROk},
        RSlice, RSliceMut, RStr, RString,
    },
};

#[repr(C)]
#[derive(StableAbi)]
pub struct EmbedderInfoAbi {
    dim: u64,
    max_tokens: u64,
    max_batch: u64,
    model: RString,
    space: [u8; 32],
}

#[repr(C)]
#[derive(StableAbi)]
pub struct DeviceReportAbi {
    device: RString,
    engine: RString,
    precision: RString,
    fallback_reason: RString,
}

#[repr(C)]
#[derive(StableAbi)]
pub struct HealthAbi {
    level: HealthLevel,
    message: RString,
}

impl From<Health> for HealthAbi {
    fn from(health: Health) -> Self {
        Self { level: health.level, message: health.message.into() }
    }
}

impl From<HealthAbi> for Health {
    fn from(health: HealthAbi) -> Self {
        Self { level: health.level, message: health.message.into() }
    }
}

/// What a component that panicked when it was asked for its health is.
pub(super) fn health_or_failed(health: AbiResult<HealthAbi>) -> Health {
    match health.into_result() {
        Ok(health) => health.into(),
        Err(error) => Health { level: HealthLevel::Failed, message: error.to_string() },
    }
}

#[sabi_trait]
pub trait EmbedderAbi: Send + Sync {
    fn info(&self) -> AbiResult<EmbedderInfoAbi>;
    fn device(&self) -> AbiResult<DeviceReportAbi>;
    fn count_tokens(&self, texts: RSlice<'_, RStr<'_>>, out: RSliceMut<'_, u32>) -> AbiResult<()>;
    fn embed(
        &self,
        cx: ContextRef<'_>,
        texts: RSlice<'_, RStr<'_>>,
        role: Role,
        out: RSliceMut<'_, f32>,
    ) -> AbiResult<()>;
    fn health(&self) -> AbiResult<HealthAbi>;
    fn memory_use(&self) -> AbiResult<MemoryUse>;
    fn tune(&self, name: RStr<'_>, value: RStr<'_>) -> AbiResult<()>;
    #[sabi(last_prefix_field)]
    fn describe(&self) -> AbiResult<RString>;
    /// Since 1.1.
    fn warm_up(&self, _cx: ContextRef<'_>) -> AbiResult<()> {
        ROk(())
    }
    /// Since 1.2.
    fn rerank(
        &self,
        _cx: ContextRef<'_>,
        _query: RStr<'_>,
        _passages: RSlice<'_, RStr<'_>>,
        _scores: RSliceMut<'_, f32>,
    ) -> AbiResult<()> {
        RErr(Error::new(ErrorCode::UNSUPPORTED, "the plugin is older than reranking"))
    }
}
pub type EmbedderBox = EmbedderAbi_TO<'static, RBox<()>>;

pub struct EmbedderToAbi(Guarded<Box<dyn Embedder>>);

impl EmbedderToAbi {
    pub fn boxed(embedder: Box<dyn Embedder>) -> EmbedderBox {
        EmbedderAbi_TO::from_value(Self(Guarded::new(embedder)), TD_Opaque)
    }
}

fn strs<'a>(texts: &'a [RStr<'_>]) -> Vec<&'a str> {
    texts.iter().map(|text| text.as_str()).collect()
}

impl EmbedderAbi for EmbedderToAbi {
    fn info(&self) -> AbiResult<EmbedderInfoAbi> {
        catch(|| {
            let info = self.0.info();
            Ok(EmbedderInfoAbi {
                dim: info.dim as u64,
                max_tokens: info.max_tokens as u64,
                max_batch: info.max_batch as u64,
                model: info.model.as_str().into(),
                space: info.space,
            })
        })
    }
    fn device(&self) -> AbiResult<DeviceReportAbi> {
        catch(|| {
            let report = self.0.device();
            Ok(DeviceReportAbi {
                device: report.device.into(),
                engine: report.engine.into(),
                precision: report.precision.into(),
                fallback_reason: report.fallback_reason.into(),
            })
        })
    }
    fn count_tokens(&self, texts: RSlice<'_, RStr<'_>>, mut out: RSliceMut<'_, u32>) -> AbiResult<()> {
        catch(|| self.0.count_tokens(&strs(texts.as_slice()), out.as_mut_slice()))
    }
    fn embed(
        &self,
        cx: ContextRef<'_>,
        texts: RSlice<'_, RStr<'_>>,
        role: Role,
        mut out: RSliceMut<'_, f32>,
    ) -> AbiResult<()> {
        catch(|| self.0.embed(&ContextFromAbi(cx), &strs(texts.as_slice()), role, out.as_mut_slice()))
    }
    fn health(&self) -> AbiResult<HealthAbi> {
        catch(|| Ok(self.0.health().into()))
    }
    fn memory_use(&self) -> AbiResult<MemoryUse> {
        catch(|| Ok(self.0.memory_use()))
    }
    fn tune(&self, name: RStr<'_>, value: RStr<'_>) -> AbiResult<()> {
        catch(|| self.0.tune(name.as_str(), value.as_str()))
    }
    fn describe(&self) -> AbiResult<RString> {
        catch(|| Ok(self.0.describe().into()))
    }
    fn warm_up(&self, cx: ContextRef<'_>) -> AbiResult<()> {
        catch(|| self.0.warm_up(&ContextFromAbi(cx)))
    }
    fn rerank(
        &self,
        cx: ContextRef<'_>,
        query: RStr<'_>,
        passages: RSlice<'_, RStr<'_>>,
        mut scores: RSliceMut<'_, f32>,
    ) -> AbiResult<()> {
        let passages = strs(passages.as_slice());
        catch(|| self.0.rerank(&ContextFromAbi(cx), query.as_str(), &passages, scores.as_mut_slice()))
    }
}

pub(crate) struct EmbedderFromAbi {
    inner: EmbedderBox,
    info: EmbedderInfo,
}

impl EmbedderFromAbi {
    pub(crate) fn new(inner: EmbedderBox) -> Result<Self> {
        let info = inner.info().into_result()?;
        let size = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let info = EmbedderInfo {
            dim: size(info.dim),
            max_tokens: size(info.max_tokens),
            max_batch: size(info.max_batch),
            model: info.model.into(),
            space: info.space,
        };
        Ok(Self { inner, info })
    }
}

fn rstrs<'a>(texts: &[&'a str]) -> Vec<RStr<'a>> {
    texts.iter().map(|&text| text.into()).collect()
}

impl Embedder for EmbedderFromAbi {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }
    fn device(&self) -> DeviceReport {
        self.inner.device().into_result().map_or_else(
            |error| DeviceReport { device: error.to_string(), ..DeviceReport::default() },
            |report| DeviceReport {
                device: report.device.into(),
                engine: report.engine.into(),
                precision: report.precision.into(),
                fallback_reason: report.fallback_reason.into(),
            },
        )
    }
    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        self.inner.count_tokens(rstrs(texts).as_slice().into(), out.into()).into_result()
    }
    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()> {
        let cx = ContextToAbi(cx);
        let texts = rstrs(texts);
        self.inner.embed(cx.as_ref(), texts.as_slice().into(), role, out.into()).into_result()
    }
    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        let cx = ContextToAbi(cx);
        self.inner.warm_up(cx.as_ref()).into_result()
    }
    fn rerank(&self, cx: &dyn CallContext, query: &str, passages: &[&str], scores: &mut [f32]) -> Result<()> {
        let cx = ContextToAbi(cx);
        let passages = rstrs(passages);
        self.inner.rerank(cx.as_ref(), query.into(), passages.as_slice().into(), scores.into()).into_result()
    }
    fn health(&self) -> Health {
        health_or_failed(self.inner.health())
    }
    fn memory_use(&self) -> MemoryUse {
        self.inner.memory_use().into_result().unwrap_or_default()
    }
    fn tune(&self, name: &str, value: &str) -> Result<()> {
        self.inner.tune(name.into(), value.into()).into_result()
    }
    fn describe(&self) -> String {
        self.inner.describe().into_result().map_or_else(|_| "{}".to_owned(), Into::into)
    }
}
