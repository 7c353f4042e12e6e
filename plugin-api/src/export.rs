use crate::{
    Error, ErrorCode, Host, Plugin, Result,
    abi::{
        self, AbiResult, CacheBox, CacheToAbi, EmbedderBox, EmbedderToAbi, HostFromAbi, HostRef, IndexBox,
        IndexSpecAbi, IndexToAbi, PluginRoot, PluginRootRef,
    },
};
use abi_stable::{
    library::{CheckTypeLayout, LibHeader, RootModuleResult},
    prefix_type::PrefixTypeTrait,
    std_types::{ROption, RStr},
};
use std::{path::Path, sync::OnceLock};

/// Makes a `cdylib` a magray plugin.
///
/// The library must be of `crate-type = ["cdylib"]`, and one library exports one plugin. Either
/// describe it here, and the macro defines `pub const PLUGIN` as well:
///
/// ```
/// # use magray_plugin_api::{CachePolicy, CreateCachePolicy, Host, Result};
/// # pub struct Keep;
/// # impl CachePolicy for Keep {
/// #     fn on_insert(&mut self, _: u64, _: u64, _: u64) {}
/// #     fn on_hit(&mut self, _: u64, _: u64) {}
/// #     fn on_remove(&mut self, _: u64) {}
/// #     fn evict(&mut self, _: u64, _: u64, _: &mut Vec<u64>) {}
/// # }
/// # #[derive(serde::Deserialize)]
/// # pub struct NoOptions {}
/// # impl CreateCachePolicy for Keep {
/// #     type Options = NoOptions;
/// #     fn create(_: NoOptions, _: &'static dyn Host) -> Result<Self> {
/// #         Ok(Self)
/// #     }
/// # }
/// magray_plugin_api::export_plugin! {
///     id: "acme-cache",
///     summary: "Acme's cache policy; embedders and indexes go into lists of their own",
///     cache_policies: { "keep" => Keep },
/// }
/// # fn main() {}
/// ```
///
/// or name a [`Plugin`](crate::Plugin) that a library crate defines:
///
/// ```
/// mod acme {
///     use magray_plugin_api::Plugin;
///     pub const PLUGIN: Plugin = Plugin { id: "acme", version: "1.0.0", summary: "", components: &[] };
/// }
/// magray_plugin_api::export_plugin!(acme::PLUGIN);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export_plugin {
    (
        id: $id:expr,
        summary: $summary:expr
        $(, embedders: { $($ename:literal => $ety:ty),* $(,)? } )?
        $(, indexes: { $($iname:literal => $ity:ty),* $(,)? } )?
        $(, cache_policies: { $($cname:literal => $cty:ty),* $(,)? } )?
        $(,)?
    ) => {
        /// This plugin, for use without a library boundary.
        pub const PLUGIN: $crate::Plugin = $crate::Plugin {
            id: $id,
            version: env!("CARGO_PKG_VERSION"),
            summary: $summary,
            components: &[
                $($( $crate::Component::embedder::<$ety>($ename), )*)?
                $($( $crate::Component::index::<$ity>($iname), )*)?
                $($( $crate::Component::cache_policy::<$cty>($cname), )*)?
            ],
        };
        $crate::export_plugin!(PLUGIN);
    };
    ($plugin:path) => {
        const _: () = {
            use $crate::{__private as sdk, manifest};

            struct Exported;
            impl sdk::ExportedPlugin for Exported {
                const PLUGIN: $crate::Plugin = $plugin;
            }

            #[unsafe(no_mangle)]
            #[used]
            #[cfg_attr(not(target_vendor = "apple"), unsafe(link_section = ".magray"))]
            #[cfg_attr(target_vendor = "apple", unsafe(link_section = "__DATA,__magray"))]
            static MAGRAY_PLUGIN_MANIFEST: [u8; manifest::encoded_len(&$plugin)] = manifest::encode(&$plugin);

            // The name is ours and not abi_stable's, so that an author needs no dependency on it.
            #[unsafe(no_mangle)]
            static MAGRAY_PLUGIN_ROOT_1: sdk::LibHeader = sdk::header::<Exported>();
        };
    };
}

/// Carries the plugin's value into the exported functions.
pub trait ExportedPlugin: 'static {
    /// What the library exports.
    const PLUGIN: Plugin;
}

/// The root symbol's value.
pub const fn header<P: ExportedPlugin>() -> LibHeader {
    // SAFETY: `erased_root::<P>` makes a `PluginRootRef`, the type named here.
    unsafe { LibHeader::from_constructor::<PluginRootRef>(erased_root::<P>, CheckTypeLayout::Yes) }
}

extern "C" fn erased_root<P: ExportedPlugin>() -> RootModuleResult {
    abi_stable::library::__call_root_module_loader(root::<P>)
}

fn root<P: ExportedPlugin>() -> PluginRootRef {
    PluginRoot {
        init: init::<P>,
        create_embedder: create_embedder::<P>,
        create_index: create_index::<P>,
        create_cache_policy: create_cache_policy::<P>,
    }
    .leak_into_prefix()
}

static HOST: OnceLock<HostFromAbi> = OnceLock::new();

extern "C" fn init<P: ExportedPlugin>(host: HostRef) -> AbiResult<()> {
    abi::keep_panic_messages(|message| tracing::error!("{}: a thread panicked: {message}", P::PLUGIN.id));
    abi::catch(|| {
        // A library that is opened under two names is one library: the first host stays.
        let host = HOST.get_or_init(|| HostFromAbi(host));
        let _ = tracing::subscriber::set_global_default(abi::LogToHost(host));
        Ok(())
    })
}

fn host() -> Result<&'static dyn Host> {
    HOST.get()
        .map(|host| host as &dyn Host)
        .ok_or_else(|| Error::new(ErrorCode::INTERNAL, "the host did not call init"))
}

extern "C" fn create_embedder<P: ExportedPlugin>(
    name: RStr<'_>,
    options: RStr<'_>,
) -> AbiResult<EmbedderBox> {
    abi::catch(|| {
        let embedder = P::PLUGIN.embedder(name.as_str(), options.as_str(), host()?)?;
        Ok(EmbedderToAbi::boxed(embedder))
    })
}

extern "C" fn create_index<P: ExportedPlugin>(
    name: RStr<'_>,
    options: RStr<'_>,
    spec: IndexSpecAbi,
    dir: ROption<RStr<'_>>,
) -> AbiResult<IndexBox> {
    abi::catch(|| {
        let dir = dir.into_option();
        let dir = dir.as_ref().map(|dir| Path::new(dir.as_str()));
        let index = P::PLUGIN.index(name.as_str(), options.as_str(), spec.into(), dir, host()?)?;
        Ok(IndexToAbi::boxed(index))
    })
}

extern "C" fn create_cache_policy<P: ExportedPlugin>(
    name: RStr<'_>,
    options: RStr<'_>,
) -> AbiResult<CacheBox> {
    abi::catch(|| {
        let policy = P::PLUGIN.cache_policy(name.as_str(), options.as_str(), host()?)?;
        Ok(CacheToAbi::boxed(policy))
    })
}
