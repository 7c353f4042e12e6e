//! A plugin whose library ends the process while it is being loaded.
#![expect(missing_debug_implementations, reason = "a test plugin")]
use magray_plugin_api::{CachePolicy, CreateCachePolicy, Host, Result};

magray_plugin_api::export_plugin! {
    id: "crash",
    summary: "ends the process that loads it",
    cache_policies: { "crash" => Crash },
}

// SAFETY: the linker calls it as a function without arguments, which it is.
#[used]
#[cfg_attr(target_os = "linux", unsafe(link_section = ".init_array"))]
#[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__mod_init_func"))]
#[cfg_attr(windows, unsafe(link_section = ".CRT$XCU"))]
static AT_LOAD: extern "C" fn() = crash;

extern "C" fn crash() {
    std::process::abort();
}

#[derive(serde::Deserialize)]
pub struct NoOptions {}

pub struct Crash;

impl CreateCachePolicy for Crash {
    type Options = NoOptions;
    fn create(_: NoOptions, _: &'static dyn Host) -> Result<Self> {
        Ok(Self)
    }
}

impl CachePolicy for Crash {
    fn on_insert(&mut self, _: u64, _: u64, _: u64) {}
    fn on_hit(&mut self, _: u64, _: u64) {}
    fn on_remove(&mut self, _: u64) {}
    fn evict(&mut self, _: u64, _: u64, _: &mut Vec<u64>) {}
}
