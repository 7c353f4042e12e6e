//! `magray plugin`.
mod check;
mod install;
mod new;

use super::{
    Failure, Outcome,
    args::Global,
    setup,
    terminal::{BOLD, CYAN, DIM, Terminal},
};
use crate::{
    engine,
    plugins::{PluginStatus, Plugins},
};
use clap::Subcommand;
use magray_plugin_api::manifest::{ComponentManifest, Manifest};
use serde::Serialize;
use std::path::PathBuf;

/// See, check, write, install and trust plugins
#[derive(Debug, Subcommand)]
pub(super) enum Plugin {
    /// List plugins, built in and from the plugin folders, with their components
    List,
    /// Show a plugin whole: where it comes from, how it was built, what options it takes
    Info {
        /// Id of the plugin, or name of a component
        name: String,
    },
    Check(check::Check),
    New(new::New),
    Install(install::Install),
    Remove(install::Remove),
    Trust(install::Trust),
    #[command(hide = true)]
    RunCheck(check::RunCheck),
    /// Load a plugin and start it, and nothing else: how an unknown file is tried
    #[command(hide = true)]
    Trial {
        /// The library
        path: PathBuf,
    },
}

#[derive(Serialize)]
struct StatusJson<'a> {
    path: Option<&'a PathBuf>,
    built_in: bool,
    sha256: Option<&'a String>,
    usable: bool,
    refusal: Option<&'a String>,
    #[serde(flatten)]
    manifest: Option<&'a Manifest>,
}

impl<'a> From<&'a PluginStatus> for StatusJson<'a> {
    fn from(status: &'a PluginStatus) -> Self {
        Self {
            path: status.path.as_ref(),
            built_in: status.path.is_none(),
            sha256: status.sha256.as_ref(),
            usable: status.refusal.is_none(),
            refusal: status.refusal.as_ref(),
            manifest: status.manifest.as_ref(),
        }
    }
}

impl Plugin {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        match self {
            Self::List => {
                let setup = setup(global, terminal)?;
                list(terminal, &setup.plugins(), &setup.plugin_folders())
            }
            Self::Info { name } => info(terminal, &setup(global, terminal)?.plugins(), &name),
            Self::Check(check) => check.run(global, terminal),
            Self::New(new) => new.run(terminal),
            Self::Install(install) => install.run(global, terminal),
            Self::Remove(remove) => remove.run(global, terminal),
            Self::Trust(trust) => trust.run(global, terminal),
            // No config is read by these: what this process is told does not change what the file is.
            Self::RunCheck(check) => check.run(&data_dir(global), terminal),
            Self::Trial { path } => {
                let data_dir = data_dir(global);
                terminal.print(format_args!("{}", Plugins::try_library(&path, &data_dir)))?;
                Ok(Outcome::Done)
            }
        }
    }
}

fn data_dir(global: &Global) -> PathBuf {
    global.data_dir.clone().or_else(engine::default_data_dir).unwrap_or_else(std::env::temp_dir)
}

fn list(terminal: &Terminal, plugins: &Plugins, folders: &[PathBuf]) -> Result<Outcome, Failure> {
    for status in plugins.list() {
        if terminal.json {
            terminal.print_json(&StatusJson::from(&status))?;
            continue;
        }
        let place =
            status.path.as_ref().map_or_else(|| "built in".to_owned(), |path| path.display().to_string());
        match (&status.manifest, &status.refusal) {
            (_, Some(refusal)) => {
                terminal.print(format_args!("{BOLD}{place}{BOLD:#}\n    not usable: {refusal}"))?
            }
            (Some(manifest), None) => {
                let Manifest { id, version, summary, .. } = manifest;
                let digest = status
                    .sha256
                    .as_ref()
                    .map_or(String::new(), |digest| format!("  sha256 {}", &digest[..16]));
                terminal.print(format_args!(
                    "{BOLD}{id}{BOLD:#} {version}  {summary}\n    {DIM}{place}{digest}{DIM:#}"
                ))?;
                for ComponentManifest { kind, name, .. } in &manifest.components {
                    terminal.print(format_args!("    {kind:<10} {CYAN}{name}{CYAN:#}"))?;
                }
            }
            (None, None) => {}
        }
    }
    let folders: Vec<_> = folders.iter().map(|folder| folder.display().to_string()).collect();
    terminal.hint(&format!("looked in: {}", folders.join(", ")));
    Ok(Outcome::Done)
}

fn info(terminal: &Terminal, plugins: &Plugins, name: &str) -> Result<Outcome, Failure> {
    let mut outcome = Outcome::NothingFound;
    for status in plugins.list() {
        let Some(manifest) = &status.manifest else { continue };
        if manifest.id != name && manifest.components.iter().all(|component| component.name != name) {
            continue;
        }
        outcome = Outcome::Done;
        if terminal.json {
            terminal.print_json(&StatusJson::from(&status))?;
            continue;
        }
        let Manifest { id, version, summary, api, abi_epoch, rustc, target, panic, components } = manifest;
        terminal.print(format_args!("{BOLD}{id}{BOLD:#} {version}  {summary}"))?;
        match &status.path {
            Some(path) => terminal.print(format_args!("  file     {}", path.display()))?,
            None => terminal.print(format_args!("  file     built in"))?,
        }
        if let Some(digest) = &status.sha256 {
            terminal.print(format_args!("  sha256   {digest}"))?;
        }
        terminal.print(format_args!("  api      {api} (ABI epoch {abi_epoch})"))?;
        terminal.print(format_args!("  built    by {rustc} for {target}, panic={panic}"))?;
        for ComponentManifest { kind, name, options } in components {
            terminal.print(format_args!("  {kind:<8} {CYAN}{name}{CYAN:#}"))?;
            for (option, schema) in options["properties"].as_object().into_iter().flatten() {
                let kind = schema["type"].as_str().unwrap_or("any");
                let about = schema["description"].as_str().unwrap_or_default();
                terminal.print(format_args!("             {option} ({kind})  {DIM}{about}{DIM:#}"))?;
            }
        }
    }
    if matches!(outcome, Outcome::NothingFound) {
        terminal.hint(&format!("there is no plugin or component '{name}'; see `magray plugin list`"));
    }
    Ok(outcome)
}
