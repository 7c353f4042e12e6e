//! Opens a plugin library in this process.
use super::{error::Refusal, file::PluginFile};
use libloading::Library;
use magray_plugin_api::{
    Host,
    host::{PluginHandle, ROOT_SYMBOL, RootError},
};
use std::{error::Error as _, mem::ManuallyDrop, path::Path};

/// Loads the library and starts the plugin. It stays loaded until the process ends: threads and
/// thread-locals of a plugin outlive any handle to it. `pinned` says that the file was allowed by
/// its hash.
pub(super) fn load(file: PluginFile, pinned: bool, host: &'static dyn Host) -> Result<PluginHandle, Refusal> {
    let library = ManuallyDrop::new(open(&file.linker_path(pinned))?);
    // Kept open for good: a second file must not be given the number that the linker knows this
    // one by.
    std::mem::forget(file);
    // SAFETY: only the symbol's address is taken.
    let symbol = unsafe { library.get::<*const ()>(ROOT_SYMBOL) }.map_err(|_| Refusal::NoEntryPoint)?;
    // SAFETY: it is the root symbol of a library that is never unloaded. Running a plugin's code is
    // what the user asked for by putting it into a plugin folder.
    let started =
        unsafe { PluginHandle::from_symbol(symbol.try_as_raw_ptr().unwrap_or_default().cast(), host) };
    match started {
        Ok(handle) => handle.map_err(Refusal::Start),
        Err(RootError::NotARoot) => Err(Refusal::NoEntryPoint),
        Err(RootError::Layout(report)) => Err(Refusal::Layout { report }),
    }
}

#[cfg(unix)]
fn open(path: &Path) -> Result<Library, Refusal> {
    use libloading::os::unix::{Library as UnixLibrary, RTLD_LOCAL, RTLD_NOW};
    // NOW: an unresolved symbol is an error here and not the end of the process in a later call.
    // SAFETY: the library's constructors run, which is the trust that a plugin folder gives.
    let library = unsafe { UnixLibrary::open(Some(path), RTLD_NOW | RTLD_LOCAL) };
    library.map(Library::from).map_err(refused)
}

#[cfg(not(unix))]
fn open(path: &Path) -> Result<Library, Refusal> {
    // SAFETY: as above.
    unsafe { Library::new(path) }.map_err(refused)
}

fn refused(error: libloading::Error) -> Refusal {
    Refusal::Open(error.source().map_or_else(|| error.to_string(), ToString::to_string))
}
