use magray_plugin_api::{ComponentKind, Error as ApiError, manifest};
use std::{io, path::PathBuf};

/// Why a plugin file is not loaded. Each message is one line: the reason and what to do.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    #[error("it cannot be read: {0}; check the file's permissions")]
    Read(io::Error),
    #[error("anyone on this machine may change {0}; run: chmod o-w '{0}'")]
    WorldWritable(PathBuf),
    #[error("it is no shared library ({0}); remove it from the plugin folder")]
    NotALibrary(String),
    #[error("the file is cut short at {len} of at least {expected} bytes; copy it again")]
    Truncated { len: u64, expected: u64 },
    #[error(
        "it is a shared library but no magray plugin (no '{}' section); remove it from the plugin folder",
        manifest::SECTION
    )]
    NotAPlugin,
    #[error("its manifest is unreadable ({0}); rebuild it with magray-plugin-api {api}", api = manifest::API)]
    BadManifest(serde_json::Error),
    #[error(
        "it was built for plugin ABI {found}, this host has {}; rebuild it with magray-plugin-api {}",
        manifest::ABI_EPOCH,
        manifest::API
    )]
    AbiEpoch { found: u32 },
    #[error("it was built for {found}, this host runs on {}; rebuild it for this target", manifest::TARGET)]
    Target { found: String },
    #[error(
        "it was built with panic=\"{found}\", so its first panic would end the host; rebuild it with panic=\"unwind\""
    )]
    PanicStrategy { found: String },
    #[error("its SHA-256 {found} is not among [plugins] allow; add it there if you trust the file")]
    NotAllowed { found: String },
    #[error(
        "the config {} names its folder, and you have not trusted the file; if you know it, run: magray plugin trust '{}'",
        config.display(),
        path.display()
    )]
    Untrusted { path: PathBuf, config: PathBuf },
    #[error(
        "it is not the file that was installed; if the new one is right, run: magray plugin install '{}'",
        path.display()
    )]
    Changed { path: PathBuf },
    #[error("{} cannot be read ({error}), so no plugin is vouched for; repair or remove it", path.display())]
    Book { path: PathBuf, error: String },
    #[error("{how} while it was being loaded in a trial process; rebuild it, or remove it")]
    Crashed { how: String },
    /// The trial process found a refusal of its own, and this is its text.
    #[error("{0}")]
    Trial(String),
    #[error("the system's linker refused it: {0}")]
    Open(String),
    #[error("it has a manifest but no entry point; export it with magray_plugin_api::export_plugin!")]
    NoEntryPoint,
    /// `report` is abi_stable's, hundreds of lines long: for the log, not for a terminal.
    #[error(
        "its ABI differs from this host's although the epoch agrees; rebuild it with magray-plugin-api {}",
        manifest::API
    )]
    Layout { report: String },
    #[error("its start failed: {0}")]
    Start(ApiError),
}

/// Why a component cannot be had.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages say it")]
pub enum PluginError {
    #[error("plugin {}: {refusal}", path.display())]
    Refused { path: PathBuf, refusal: Refusal },
    #[error("no {kind} backend '{name}'; there is {known}; `magray plugin list` shows where they come from")]
    Unknown { kind: ComponentKind, name: String, known: String },
    #[error(
        "the config {} is not in your own config folder, so it may not name {what} for the {kind} backend '{name}'; take out its option '{option}', or set it in your own config",
        config.display()
    )]
    Reserved { kind: ComponentKind, name: String, option: String, what: &'static str, config: PathBuf },
    #[error("the {kind} backend '{name}' of {origin}: {error}")]
    Call { kind: ComponentKind, name: String, origin: String, error: ApiError },
}
