use super::{AbiResult, catch, panic::Guarded};
use crate::{CachePolicy, MemoryUse};
use abi_stable::{
    sabi_trait,
    sabi_trait::TD_Opaque,
    std_types::{RBox, RStr, RString, RVec},
};

#[sabi_trait]
pub trait CacheAbi: Send {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) -> AbiResult<()>;
    fn on_hit(&mut self, key: u64, now_ms: u64) -> AbiResult<()>;
    fn on_remove(&mut self, key: u64) -> AbiResult<()>;
    fn evict(&mut self, weight: u64, now_ms: u64) -> AbiResult<RVec<u64>>;
    fn memory_use(&self) -> AbiResult<MemoryUse>;
    fn tune(&mut self, name: RStr<'_>, value: RStr<'_>) -> AbiResult<()>;
    #[sabi(last_prefix_field)]
    fn describe(&self) -> AbiResult<RString>;
}
pub type CacheBox = CacheAbi_TO<'static, RBox<()>>;

pub struct CacheToAbi(Guarded<Box<dyn CachePolicy>>);

impl CacheToAbi {
    pub fn boxed(policy: Box<dyn CachePolicy>) -> CacheBox {
        CacheAbi_TO::from_value(Self(Guarded::new(policy)), TD_Opaque)
    }
}

impl CacheAbi for CacheToAbi {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) -> AbiResult<()> {
        catch(|| {
            self.0.on_insert(key, weight, now_ms);
            Ok(())
        })
    }
    fn on_hit(&mut self, key: u64, now_ms: u64) -> AbiResult<()> {
        catch(|| {
            self.0.on_hit(key, now_ms);
            Ok(())
        })
    }
    fn on_remove(&mut self, key: u64) -> AbiResult<()> {
        catch(|| {
            self.0.on_remove(key);
            Ok(())
        })
    }
    fn evict(&mut self, weight: u64, now_ms: u64) -> AbiResult<RVec<u64>> {
        catch(|| {
            let mut victims = Vec::new();
            self.0.evict(weight, now_ms, &mut victims);
            Ok(victims.into())
        })
    }
    fn memory_use(&self) -> AbiResult<MemoryUse> {
        catch(|| Ok(self.0.memory_use()))
    }
    fn tune(&mut self, name: RStr<'_>, value: RStr<'_>) -> AbiResult<()> {
        catch(|| self.0.tune(name.as_str(), value.as_str()))
    }
    fn describe(&self) -> AbiResult<RString> {
        catch(|| Ok(self.0.describe().into()))
    }
}
