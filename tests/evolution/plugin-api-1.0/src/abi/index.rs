use super::{
    AbiResult, catch,
    context::{ContextFromAbi, ContextRef, ContextToAbi},
    embedder::{HealthAbi, health_or_failed},
    panic::Guarded,
};
use crate::{
    CallContext, Capabilities, Error, ErrorCode, Health, Hit, IdFilter, IndexSpec, IndexStats, MemoryUse,
    Metric, Result, SearchParams, VectorIndex,
};
use abi_stable::{
    StableAbi, sabi_trait,
    sabi_trait::TD_Opaque,
    std_types::{RBox, ROption, RSlice, RSliceMut, RStr, RString},
};
use std::path::Path;

#[repr(C)]
#[derive(StableAbi, Clone, Copy)]
pub struct IndexSpecAbi {
    dim: u64,
    metric: Metric,
}

impl From<IndexSpec> for IndexSpecAbi {
    fn from(spec: IndexSpec) -> Self {
        Self { dim: spec.dim as u64, metric: spec.metric }
    }
}

impl From<IndexSpecAbi> for IndexSpec {
    fn from(spec: IndexSpecAbi) -> Self {
        Self { dim: usize::try_from(spec.dim).unwrap_or(usize::MAX), metric: spec.metric }
    }
}

#[sabi_trait]
pub trait IndexAbi: Send + Sync {
    fn spec(&self) -> AbiResult<IndexSpecAbi>;
    fn capabilities(&self) -> AbiResult<Capabilities>;
    fn stats(&self) -> AbiResult<IndexStats>;
    fn upsert(&self, cx: ContextRef<'_>, ids: RSlice<'_, u64>, vectors: RSlice<'_, f32>) -> AbiResult<()>;
    fn remove(&self, cx: ContextRef<'_>, ids: RSlice<'_, u64>) -> AbiResult<usize>;
    fn search(
        &self,
        cx: ContextRef<'_>,
        queries: RSlice<'_, f32>,
        k: usize,
        params: SearchParams,
        filter: ROption<IdFilter<'_>>,
        out: RSliceMut<'_, Hit>,
    ) -> AbiResult<()>;
    fn save(&self, cx: ContextRef<'_>, dir: RStr<'_>) -> AbiResult<()>;
    fn health(&self) -> AbiResult<HealthAbi>;
    fn memory_use(&self) -> AbiResult<MemoryUse>;
    fn tune(&self, name: RStr<'_>, value: RStr<'_>) -> AbiResult<()>;
    #[sabi(last_prefix_field)]
    fn describe(&self) -> AbiResult<RString>;
}
pub type IndexBox = IndexAbi_TO<'static, RBox<()>>;

pub struct IndexToAbi(Guarded<Box<dyn VectorIndex>>);

impl IndexToAbi {
    pub fn boxed(index: Box<dyn VectorIndex>) -> IndexBox {
        IndexAbi_TO::from_value(Self(Guarded::new(index)), TD_Opaque)
    }
}

impl IndexAbi for IndexToAbi {
    fn spec(&self) -> AbiResult<IndexSpecAbi> {
        catch(|| Ok(self.0.spec().into()))
    }
    fn capabilities(&self) -> AbiResult<Capabilities> {
        catch(|| Ok(self.0.capabilities()))
    }
    fn stats(&self) -> AbiResult<IndexStats> {
        catch(|| Ok(self.0.stats()))
    }
    fn upsert(&self, cx: ContextRef<'_>, ids: RSlice<'_, u64>, vectors: RSlice<'_, f32>) -> AbiResult<()> {
        catch(|| self.0.upsert(&ContextFromAbi(cx), ids.as_slice(), vectors.as_slice()))
    }
    fn remove(&self, cx: ContextRef<'_>, ids: RSlice<'_, u64>) -> AbiResult<usize> {
        catch(|| self.0.remove(&ContextFromAbi(cx), ids.as_slice()))
    }
    fn search(
        &self,
        cx: ContextRef<'_>,
        queries: RSlice<'_, f32>,
        k: usize,
        params: SearchParams,
        filter: ROption<IdFilter<'_>>,
        mut out: RSliceMut<'_, Hit>,
    ) -> AbiResult<()> {
        catch(|| {
            let cx = ContextFromAbi(cx);
            self.0.search(&cx, queries.as_slice(), k, params, filter.into_option(), out.as_mut_slice())
        })
    }
    fn save(&self, cx: ContextRef<'_>, dir: RStr<'_>) -> AbiResult<()> {
        catch(|| self.0.save(&ContextFromAbi(cx), Path::new(dir.as_str())))
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
}

pub(crate) struct IndexFromAbi {
    inner: IndexBox,
    spec: IndexSpec,
    capabilities: Capabilities,
}

impl IndexFromAbi {
    pub(crate) fn new(inner: IndexBox) -> Result<Self> {
        let spec = inner.spec().into_result()?.into();
        let capabilities = inner.capabilities().into_result()?;
        Ok(Self { inner, spec, capabilities })
    }
}

impl VectorIndex for IndexFromAbi {
    fn spec(&self) -> IndexSpec {
        self.spec
    }
    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }
    fn stats(&self) -> IndexStats {
        self.inner.stats().into_result().unwrap_or_default()
    }
    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        let cx = ContextToAbi(cx);
        self.inner.upsert(cx.as_ref(), ids.into(), vectors.into()).into_result()
    }
    fn remove(&self, cx: &dyn CallContext, ids: &[u64]) -> Result<usize> {
        let cx = ContextToAbi(cx);
        self.inner.remove(cx.as_ref(), ids.into()).into_result()
    }
    fn search(
        &self,
        cx: &dyn CallContext,
        queries: &[f32],
        k: usize,
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        let cx = ContextToAbi(cx);
        let filter = filter.into();
        self.inner.search(cx.as_ref(), queries.into(), k, params, filter, out.into()).into_result()
    }
    fn save(&self, cx: &dyn CallContext, dir: &Path) -> Result<()> {
        let cx = ContextToAbi(cx);
        self.inner.save(cx.as_ref(), utf8(dir)?.into()).into_result()
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

/// Paths cross the boundary as UTF-8.
pub(crate) fn utf8(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        let message = format!("the path {} is not UTF-8; move the data folder", path.display());
        Error::new(ErrorCode::IO, message)
    })
}
