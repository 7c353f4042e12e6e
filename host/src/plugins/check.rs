//! The conformance kit against a plugin: each check in a child process, so that a crash, a hang and a hunger for
//! memory are findings like any other.
use super::{
    PluginStatus, Plugins,
    child::{self, End},
    error::{PluginError, Refusal},
    file::PluginFile,
    load,
    services::Services,
};
use magray_plugin_api::{
    ComponentKind, Plugin,
    host::PluginHandle,
    manifest::{ComponentManifest, Manifest},
};
use magray_plugin_testkit::{Check, Component, Outcome, Report, Settings};
use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

/// What a child prints before the outcome of its check.
const OUTCOME: &str = "magray-check:";

/// A plugin that is to be checked; nothing of it has run.
#[derive(Debug)]
pub struct Candidate {
    /// The file; none where the plugin is linked in.
    pub path: Option<PathBuf>,
    /// What it says of itself.
    pub manifest: Manifest,
}

/// One component of a candidate, and how it is checked.
#[derive(Clone, Debug)]
pub struct CheckOptions {
    /// Its options as a JSON object.
    pub options: String,
    /// Of the check `fuzz`.
    pub seed: u64,
    /// A check that takes longer counts as hung.
    pub timeout: Duration,
    /// Bytes that the process of a check may allocate.
    pub memory: u64,
}

impl Candidate {
    /// The library at `path`, past the gates that do not run it.
    ///
    /// # Errors
    /// [`PluginError::Refused`].
    pub fn file(path: &Path) -> Result<Self, PluginError> {
        let refused = |refusal| PluginError::Refused { path: path.to_owned(), refusal };
        let file = PluginFile::inspect(path).map_err(refused)?;
        Ok(Self { path: Some(file.path), manifest: file.manifest })
    }

    /// Runs one check of a component in a child of `program`, which is `magray`.
    pub fn check(
        &self,
        program: &Path,
        data_dir: &Path,
        component: &ComponentManifest,
        (name, asks): (&'static str, &'static str),
        options: &CheckOptions,
    ) -> Check {
        let began = Instant::now();
        let mut command = Command::new(program);
        command.arg("--data-dir").arg(data_dir).args(["plugin", "run-check", name]);
        command.args([component.kind.name(), &component.name, &options.options]);
        command.args([options.seed.to_string(), options.memory.to_string()]);
        command.args(&self.path);
        let outcome = match child::run(command, OUTCOME, options.timeout) {
            End::Said(json) => serde_json::from_str(&json)
                .unwrap_or_else(|error| Outcome::Crashed(format!("its outcome cannot be read: {error}"))),
            End::Hung => Outcome::TimedOut(format!(
                "it did not end within {}; --timeout gives it more time",
                humantime::format_duration(options.timeout)
            )),
            End::Crashed { how, stderr } if stderr.starts_with("memory allocation of") => {
                let limit = options.memory >> 20;
                Outcome::Crashed(format!("{how}: {stderr}, beyond the {limit} MiB that a check may take"))
            }
            End::Crashed { how, stderr } if stderr.is_empty() => Outcome::Crashed(how),
            End::Crashed { how, stderr } => Outcome::Crashed(format!("{how}: {stderr}")),
        };
        Check { name, asks, outcome, elapsed: began.elapsed() }
    }
}

impl Plugins {
    /// The plugin of this id, or the first that offers a component of this name, of those that are not refused: a
    /// name runs nothing that the config alone brings.
    pub fn candidate(&self, name: &str) -> Option<Candidate> {
        let known = |manifest: &Manifest| {
            manifest.id == name || manifest.components.iter().any(|component| component.name == name)
        };
        let usable =
            |status: &PluginStatus| status.refusal.is_none() && status.manifest.as_ref().is_some_and(known);
        let status = self.list().find(usable)?;
        Some(Candidate { path: status.path, manifest: status.manifest? })
    }
}

/// What a child is asked: one check of one component.
#[derive(Debug)]
pub struct CheckRequest<'a> {
    /// The library; none where the component is of a linked-in plugin.
    pub path: Option<&'a Path>,
    /// What the component is.
    pub kind: ComponentKind,
    /// Its name.
    pub component: &'a str,
    /// Its options as a JSON object.
    pub options: &'a str,
    /// Name of the check.
    pub check: &'a str,
    /// Of the check `fuzz`.
    pub seed: u64,
    /// Bytes that this process may allocate.
    pub memory: u64,
}

impl CheckRequest<'_> {
    /// Runs the check in this process, and returns what the process has to print.
    pub fn run(&self, data_dir: &Path, linked: &[&'static Plugin]) -> String {
        let outcome = self.load(data_dir, linked).map(|handle| {
            limit_memory(self.memory);
            let component = Component::new(handle, self.kind, self.component, self.options);
            component.check(self.check, Settings { seed: self.seed, alone: true })
        });
        let outcome = match outcome {
            Ok(Report { mut checks }) => checks.pop().map_or_else(
                || Outcome::Skipped(format!("there is no check '{}' of its kind", self.check)),
                |check| check.outcome,
            ),
            Err(refusal) => Outcome::Failed(refusal),
        };
        format!("{OUTCOME} {}", serde_json::to_string(&outcome).unwrap_or_default())
    }

    fn load(&self, data_dir: &Path, linked: &[&'static Plugin]) -> Result<PluginHandle, String> {
        let services = |plugin: &str| {
            // Two threads, so that a plugin that has them runs them.
            Services { plugin: plugin.to_owned(), data_dir: data_dir.to_owned(), threads: 2 }.leak()
        };
        let Some(path) = self.path else {
            let offers = |plugin: &&&Plugin| {
                let mut components = plugin.components.iter();
                components.any(|offered| offered.maker.kind() == self.kind && offered.name == self.component)
            };
            let plugin = linked.iter().find(offers).ok_or("no linked-in plugin has this component")?;
            return Ok(PluginHandle::linked(plugin, services(plugin.id)));
        };
        let load = || -> Result<PluginHandle, Refusal> {
            let file = PluginFile::inspect(path)?;
            let host = services(&file.manifest.id);
            load::load(file, false, host)
        };
        load().map_err(|refusal| refusal.to_string())
    }
}

/// From now on an allocation beyond so many bytes fails, which ends the process with a message.
#[cfg(unix)]
fn limit_memory(bytes: u64) {
    let limit = libc::rlimit { rlim_cur: bytes as libc::rlim_t, rlim_max: bytes as libc::rlim_t };
    // SAFETY: it reads the structure that it is given. Where it fails there is no limit.
    unsafe { libc::setrlimit(libc::RLIMIT_DATA, &raw const limit) };
}

#[cfg(not(unix))]
fn limit_memory(_: u64) {}
