//! The host's side: what a loader makes of a library's root symbol.
use crate::{
    Embedder, Error, ErrorCode, Host, IndexSpec, MemoryUse, Plugin, Result, VectorIndex,
    abi::{
        CacheBox, CacheToAbi, EmbedderFromAbi, EmbedderToAbi, HostToAbi, IndexFromAbi, IndexToAbi,
        PluginRootRef, catch, utf8,
    },
};
use abi_stable::{
    StableAbi,
    abi_stability::abi_checking::check_layout_compatibility,
    library::{AbiHeaderRef, LibHeader},
    std_types::{ROption, RStr},
};
use std::{fmt, path::Path};

pub use crate::abi::keep_panic_messages;

/// The symbol that every plugin of this epoch exports.
pub const ROOT_SYMBOL: &[u8] = b"MAGRAY_PLUGIN_ROOT_1\0";

/// Why a library's root symbol is not usable.
#[derive(Debug)]
pub enum RootError {
    /// The symbol is not what its name says.
    NotARoot,
    /// The layouts of the two sides differ. The report is abi_stable's, hundreds of lines long.
    Layout(String),
}

/// The plugin of a loaded library, or one that is linked in: the same calls, with the same
/// containment of panics.
#[derive(Clone, Copy)]
pub struct PluginHandle(Origin);

#[derive(Clone, Copy)]
enum Origin {
    Library(PluginRootRef),
    Linked(&'static Plugin, &'static dyn Host),
}

impl fmt::Debug for PluginHandle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Origin::Library(_) => "PluginHandle(library)",
            Origin::Linked(..) => "PluginHandle(linked in)",
        })
    }
}

impl PluginHandle {
    /// A plugin that is linked into the host.
    pub fn linked(plugin: &'static Plugin, host: &'static dyn Host) -> Self {
        Self(Origin::Linked(plugin, host))
    }

    /// Checks a library's root and starts the plugin.
    ///
    /// # Errors
    /// [`RootError`] where the library does not fit this host; the inner error where the plugin's
    /// own start failed.
    ///
    /// # Safety
    /// `symbol` is the address of [`ROOT_SYMBOL`] in a library that stays loaded until the process
    /// ends. Runs the library's code.
    pub unsafe fn from_symbol(symbol: *const (), host: &'static dyn Host) -> Result<Result<Self>, RootError> {
        if symbol.is_null() || !symbol.cast::<usize>().is_aligned() {
            return Err(RootError::NotARoot);
        }
        // SAFETY: a plugin's root symbol is a `LibHeader`, which starts with the header that
        // `upgrade` verifies by its magic bytes before anything else of it is read.
        let header: AbiHeaderRef = unsafe { std::mem::transmute(symbol) };
        let header = header.upgrade().map_err(|_| RootError::NotARoot)?;
        check_layout(header)?;
        // SAFETY: the layout has just been checked.
        let root: PluginRootRef =
            unsafe { header.unchecked_layout() }.map_err(|error| RootError::Layout(error.to_string()))?;
        let started = root.init()(HostToAbi::leak(host)).into_result();
        Ok(started.map(|()| Self(Origin::Library(root))))
    }

    /// Makes the embedding backend `name`; `options` is a JSON object.
    ///
    /// # Errors
    /// As [`Plugin::embedder`].
    pub fn embedder(&self, name: &str, options: &str) -> Result<Box<dyn Embedder>> {
        let made = match self.0 {
            Origin::Library(root) => root.create_embedder()(name.into(), options.into()),
            Origin::Linked(plugin, host) => {
                catch(|| Ok(EmbedderToAbi::boxed(plugin.embedder(name, options, host)?)))
            }
        };
        Ok(Box::new(EmbedderFromAbi::new(made.into_result()?)?))
    }

    /// Makes the index backend `name`, empty or from the files in `dir`.
    ///
    /// # Errors
    /// As [`Plugin::index`].
    pub fn index(
        &self,
        name: &str,
        options: &str,
        spec: IndexSpec,
        dir: Option<&Path>,
    ) -> Result<Box<dyn VectorIndex>> {
        let made = match self.0 {
            Origin::Library(root) => {
                let dir: ROption<RStr<'_>> = dir.map(utf8).transpose()?.map(RStr::from).into();
                root.create_index()(name.into(), options.into(), spec.into(), dir)
            }
            Origin::Linked(plugin, host) => {
                catch(|| Ok(IndexToAbi::boxed(plugin.index(name, options, spec, dir, host)?)))
            }
        };
        let index = IndexFromAbi::new(made.into_result()?)?;
        if index.spec() != spec {
            let message = format!("asked for {spec:?}, the index backend '{name}' made {:?}", index.spec());
            return Err(Error::new(ErrorCode::INTERNAL, message));
        }
        Ok(Box::new(index))
    }

    /// Makes the cache policy `name`.
    ///
    /// # Errors
    /// As [`Plugin::cache_policy`].
    pub fn cache_policy(&self, name: &str, options: &str) -> Result<ContainedPolicy> {
        let made = match self.0 {
            Origin::Library(root) => root.create_cache_policy()(name.into(), options.into()),
            Origin::Linked(plugin, host) => {
                catch(|| Ok(CacheToAbi::boxed(plugin.cache_policy(name, options, host)?)))
            }
        };
        Ok(ContainedPolicy(made.into_result()?))
    }
}

/// Accepts a plugin that is newer than the host within the epoch, and one that is older.
///
/// abi_stable's own check is one-way: it takes a library with more methods than the host knows and
/// refuses one with fewer. Fewer is what every plugin has once the host gains a method, and the
/// vtables are made for it (a missing method runs its default), so the check is done the other way
/// round too.
fn check_layout(header: &'static LibHeader) -> Result<(), RootError> {
    let theirs = header.layout().ok_or_else(|| RootError::Layout("the library carries no layout".into()))?;
    let ours = PluginRootRef::LAYOUT;
    let Err(report) = check_layout_compatibility(ours, theirs) else { return Ok(()) };
    check_layout_compatibility(theirs, ours).map_err(|_| RootError::Layout(report.to_string()))
}

/// A [`CachePolicy`](crate::CachePolicy) whose panics are errors: each method is that of the trait, and one that
/// failed leaves a policy whose books no longer fit the host's, so drop it.
#[expect(missing_debug_implementations, reason = "a vtable has nothing to show")]
pub struct ContainedPolicy(CacheBox);

#[expect(missing_docs, reason = "the trait's")]
#[expect(clippy::missing_errors_doc, reason = "PANICKED where the policy panicked")]
impl ContainedPolicy {
    pub fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) -> Result<()> {
        self.0.on_insert(key, weight, now_ms).into_result()
    }
    pub fn on_hit(&mut self, key: u64, now_ms: u64) -> Result<()> {
        self.0.on_hit(key, now_ms).into_result()
    }
    pub fn on_remove(&mut self, key: u64) -> Result<()> {
        self.0.on_remove(key).into_result()
    }
    pub fn evict(&mut self, weight: u64, now_ms: u64, mut victim: impl FnMut(u64)) -> Result<()> {
        let victims = self.0.evict(weight, now_ms).into_result()?;
        // `RVec::into_vec` would copy what another library allocated.
        victims.iter().for_each(|&key| victim(key));
        Ok(())
    }
    pub fn memory_use(&self) -> MemoryUse {
        self.0.memory_use().into_result().unwrap_or_default()
    }
    pub fn tune(&mut self, name: &str, value: &str) -> Result<()> {
        self.0.tune(name.into(), value.into()).into_result()
    }
    pub fn describe(&self) -> String {
        self.0.describe().into_result().map_or_else(|_| "{}".to_owned(), Into::into)
    }
}
