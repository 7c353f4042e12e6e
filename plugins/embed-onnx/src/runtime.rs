//! Finds ONNX Runtime, loads it, and makes the one environment that a process may have.
use crate::error;
use libloading::Library;
use magray_plugin_api::{Error, ErrorCode, Host, Result};
use object::{Object as _, ObjectSegment as _, ReadCache};
use ort::{environment::Environment, logging::LogLevel};
use std::{
    env,
    ffi::{CStr, OsStr},
    fs::File,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

/// The library's name without a version.
const LIBRARY: &str = if cfg!(windows) {
    "onnxruntime.dll"
} else if cfg!(target_vendor = "apple") {
    "libonnxruntime.dylib"
} else {
    "libonnxruntime.so"
};

/// What to do where there is none that can be used.
const REMEDY: &str = "run scripts/fetch-models.sh, or name the library of the Python wheel 'onnxruntime' (1.24 or \
                      newer) by the option 'runtime' or by ORT_DYLIB_PATH";

/// A loaded ONNX Runtime.
#[derive(Clone, Debug)]
pub(crate) struct Runtime {
    pub(crate) environment: Environment,
    /// Where it was found.
    pub(crate) library: PathBuf,
    /// Such as `1.31.1`.
    pub(crate) version: String,
}

/// The first one that was loaded stays for the life of the process: a library cannot be unloaded
/// safely while its threads run, and ONNX Runtime allows one environment.
static LOADED: Mutex<Option<Runtime>> = Mutex::new(None);

impl Runtime {
    /// The one that is loaded, else the first that is found: `option`, `ORT_DYLIB_PATH`, the folder
    /// `runtime` beside the folder of models, the plugin's own folder, those of the system's linker.
    ///
    /// # Errors
    /// `UNAVAILABLE` where there is none, or it is damaged or too old.
    pub(crate) fn load(option: &str, host: &dyn Host) -> Result<Self> {
        let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(runtime) = &*loaded {
            if !option.is_empty() && Path::new(option) != runtime.library {
                tracing::warn!(
                    "ONNX Runtime of {} is loaded already and stays in use instead of {option}",
                    runtime.library.display()
                );
            }
            return Ok(runtime.clone());
        }
        let library = find(option, env::var_os("ORT_DYLIB_PATH").as_deref(), host);
        let unusable = |why: &dyn std::fmt::Display| {
            let library = library.display();
            Error::new(
                ErrorCode::UNAVAILABLE,
                format!("ONNX Runtime cannot be used: {library}: {why}; {REMEDY}"),
            )
        };
        check(&library).map_err(|why| unusable(&why))?;
        let environment = ort::init_from(&library)
            .map_err(|error| match error {
                ort::LoadDynamicError::Dlopen { error, .. } => {
                    // dlopen's own words, which name the file once more, without the loader's.
                    let mut cause: &dyn std::error::Error = &error;
                    while let Some(inner) = cause.source() {
                        cause = inner;
                    }
                    unusable(cause)
                }
                ort::LoadDynamicError::BadVersion { version_str, .. } => {
                    unusable(&format_args!("it is version {version_str}, which is too old"))
                }
                ort::LoadDynamicError::MissingApi { .. } => unusable(&"it is another library"),
                other => unusable(&other),
            })?
            .with_name("magray")
            .with_telemetry(false)
            .with_logger(Arc::new(log))
            .build()
            .map_err(|error| error::of_runtime("does not start", &error))?;
        environment.set_log_level(LogLevel::Warning);
        let runtime = Self { environment, version: version(&library), library };
        *loaded = Some(runtime.clone());
        Ok(runtime)
    }
}

/// The version of a library that is loaded, such as `1.31.1`; empty where it does not say.
fn version(library: &Path) -> String {
    // SAFETY: the library is loaded and started already, so that this starts nothing; ort looked up
    // the same function, of which this is the type, and checked what it gives.
    unsafe {
        let version = || -> Option<String> {
            let library = Library::new(library).ok()?;
            let base =
                library.get::<unsafe extern "C" fn() -> *const ort::sys::OrtApiBase>(b"OrtGetApiBase\0");
            let base = base.ok()?().as_ref()?;
            let version = (base.GetVersionString)();
            (!version.is_null()).then(|| CStr::from_ptr(version).to_string_lossy().into_owned())
        };
        version().unwrap_or_default()
    }
}

/// Only what is worth a warning comes here, and goes where the host's log goes.
fn log(level: LogLevel, _category: &str, _id: &str, _location: &str, message: &str) {
    match level {
        LogLevel::Error | LogLevel::Fatal => tracing::error!(target: "onnxruntime", "{message}"),
        LogLevel::Warning => tracing::warn!(target: "onnxruntime", "{message}"),
        LogLevel::Verbose | LogLevel::Info => tracing::debug!(target: "onnxruntime", "{message}"),
    }
}

/// What is named is taken, whether or not it is there; else what is there; else the bare name, which
/// the system's linker looks for.
fn find(option: &str, variable: Option<&OsStr>, host: &dyn Host) -> PathBuf {
    let named = [OsStr::new(option), variable.unwrap_or_default()];
    if let Some(named) = named.into_iter().find(|named| !named.is_empty()) {
        let path = Path::new(named);
        return if path.is_dir() {
            in_folder(path).unwrap_or_else(|| path.join(LIBRARY))
        } else {
            path.into()
        };
    }
    let beside_models = host.models_dir().parent().map(|data| data.join("runtime"));
    let folders = [beside_models, host.data_dir().ok()];
    folders.iter().flatten().find_map(|folder| in_folder(folder)).unwrap_or_else(|| LIBRARY.into())
}

/// The library in `folder`; by a name with a version, as wheels have it, where there is none without.
fn in_folder(folder: &Path) -> Option<PathBuf> {
    let plain = folder.join(LIBRARY);
    if plain.is_file() {
        return Some(plain);
    }
    let names = folder.read_dir().ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let version = |name: &str| -> Vec<u32> { name.split('.').filter_map(|part| part.parse().ok()).collect() };
    let newest =
        names.filter(|name| name.starts_with("libonnxruntime.so.")).max_by_key(|name| version(name))?;
    Some(folder.join(newest))
}

/// Refuses what the linker would die of: it maps segments without looking at the file's end.
fn check(library: &Path) -> std::result::Result<(), String> {
    if library == Path::new(LIBRARY) {
        return Ok(()); // the system's, if it has one
    }
    let file = File::open(library).map_err(|error| error.to_string())?;
    let metadata = file.metadata().map_err(|error| error.to_string())?;
    if !metadata.is_file() {
        return Err("it is no file".to_owned());
    }
    let bytes = ReadCache::new(file);
    let parsed = object::File::parse(&bytes).map_err(|error| format!("it is no library ({error})"))?;
    let ends =
        parsed.segments().map(|segment| segment.file_range()).map(|(at, size)| at.saturating_add(size));
    let expected = ends.max().unwrap_or(0);
    if expected > metadata.len() {
        return Err(format!("it has {} of {expected} bytes, so it was not copied whole", metadata.len()));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_api::LogLevel as HostLevel;
    use std::fs;
    use tempfile::TempDir;

    /// A host whose folders are in a folder of the test.
    struct Folders(TempDir);

    impl Host for Folders {
        fn log_enabled(&self, _level: HostLevel, _target: &str) -> bool {
            false
        }
        fn log(&self, _level: HostLevel, _target: &str, _message: &str) {}
        fn threads(&self) -> usize {
            1
        }
        fn memory_budget(&self) -> Option<u64> {
            None
        }
        fn data_dir(&self) -> Result<PathBuf> {
            Ok(self.0.path().join("plugins/onnx"))
        }
        fn models_dir(&self) -> PathBuf {
            self.0.path().join("models")
        }
        fn count(&self, _name: &str, _value: u64) {}
    }

    #[test]
    fn the_nearest_library_is_taken() {
        let host = Folders(TempDir::new().unwrap());
        let file = |path: &str| {
            let path = host.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, "").unwrap();
            path
        };
        assert_eq!(find("", None, &host), Path::new(LIBRARY));
        let own = file("plugins/onnx/libonnxruntime.so.1.9.0");
        assert_eq!(find("", None, &host), own);
        file("runtime/libonnxruntime.so.1.9.0");
        let newest = file("runtime/libonnxruntime.so.1.24.1");
        assert_eq!(find("", None, &host), newest);
        let plain = file(&format!("runtime/{LIBRARY}"));
        assert_eq!(find("", None, &host), plain);
        assert_eq!(find("", Some(OsStr::new("of/environment")), &host), Path::new("of/environment"));
        assert_eq!(find("of/option", Some(OsStr::new("of/environment")), &host), Path::new("of/option"));
        assert_eq!(find(host.0.path().join("runtime").to_str().unwrap(), None, &host), plain);
    }

    #[test]
    fn what_is_no_library_is_not_loaded() {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join(LIBRARY);
        assert!(check(&path).unwrap_err().contains("No such file"));
        fs::write(&path, "garbage").unwrap();
        assert!(check(&path).unwrap_err().contains("no library"));
        assert!(check(dir.path()).unwrap_err().contains("no file"));
        let this = fs::read(env::current_exe().unwrap()).unwrap();
        fs::write(&path, &this).unwrap();
        check(&path).unwrap();
        fs::write(&path, &this[..this.len() / 2]).unwrap();
        assert!(check(&path).is_err());
    }
}
