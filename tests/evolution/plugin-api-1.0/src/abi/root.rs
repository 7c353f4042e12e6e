use super::{AbiResult, CacheBox, EmbedderBox, HostRef, IndexBox, IndexSpecAbi};
use abi_stable::{
    StableAbi,
    library::RootModule,
    sabi_types::VersionStrings,
    std_types::{ROption, RStr},
};

/// What a plugin library exports: how to make each kind of component by name.
#[repr(C)]
#[derive(StableAbi)]
#[sabi(kind(Prefix(prefix_ref = PluginRootRef)))]
#[sabi(missing_field(option))]
pub struct PluginRoot {
    pub init: extern "C" fn(HostRef) -> AbiResult<()>,
    pub create_embedder: extern "C" fn(name: RStr<'_>, options: RStr<'_>) -> AbiResult<EmbedderBox>,
    /// `dir` is where to open the index from; none makes an empty one.
    pub create_index: extern "C" fn(
        name: RStr<'_>,
        options: RStr<'_>,
        spec: IndexSpecAbi,
        dir: ROption<RStr<'_>>,
    ) -> AbiResult<IndexBox>,
    #[sabi(last_prefix_field)]
    pub create_cache_policy: extern "C" fn(name: RStr<'_>, options: RStr<'_>) -> AbiResult<CacheBox>,
}

impl RootModule for PluginRootRef {
    abi_stable::declare_root_module_statics! { PluginRootRef }
    const BASE_NAME: &'static str = "magray_plugin";
    const NAME: &'static str = "magray plugin";
    // Versions are compared by the manifest's epoch, and layouts by their own check.
    const VERSION_STRINGS: VersionStrings = VersionStrings::new("1.0.0");
}
