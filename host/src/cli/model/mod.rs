mod get;
mod info;
mod list;
mod verify;

use super::{Failure, Outcome, args::Global, setup, terminal::Terminal};
use crate::{
    engine::Setup,
    models::{Model, ModelError, Models},
};
use clap::{Args, Subcommand};
use magray_model::{Manifest, ModelFolder};
use serde::Serialize;
use std::path::{Path, PathBuf};

/// Get embedding models, and see which are here
#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    List(list::List),
    Pull(get::Pull),
    Import(get::Import),
    Verify(verify::Verify),
    Info(info::Info),
    Remove(Remove),
}

/// Delete a model, or what is left of a download
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray model remove gte-base --yes")]
pub(super) struct Remove {
    /// The model
    #[arg(value_name = "NAME")]
    name: String,
    /// Delete it without asking
    #[arg(long, short)]
    yes: bool,
}

impl ModelCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let models = setup.models();
        let done = match self {
            Self::List(list) => list.run(terminal, &setup, &models),
            Self::Pull(pull) => pull.run(terminal, &setup, &models),
            Self::Import(import) => import.run(terminal, &models),
            Self::Verify(verify) => verify.run(terminal, &models),
            Self::Info(info) => info.run(terminal, &setup, &models),
            Self::Remove(remove) => remove.run(terminal, &setup, &models),
        };
        match done {
            Err(Failure::Model(error @ ModelError::Missing { .. })) => {
                terminal.hint(&format!("{error}; `magray model list` shows those that are"));
                Ok(Outcome::NothingFound)
            }
            done => done,
        }
    }
}

/// The folder of the model that the config names for the backend in force.
fn folder_in_use(setup: &Setup, models: &Models) -> Option<PathBuf> {
    let selected = setup.config.ai.embedding.selected();
    // As a plugin gets it that has this option.
    let options = selected.options_json(r#"{"properties": {"model": {}}}"#);
    let options: serde_json::Value = serde_json::from_str(&options).ok()?;
    Some(ModelFolder::locate(options["model"].as_str()?, models.dir()))
}

#[derive(Serialize)]
struct ModelJson<'a> {
    name: &'a str,
    path: &'a Path,
    in_use: bool,
    architecture: Option<String>,
    dim: Option<usize>,
    max_tokens: Option<usize>,
    bytes: u64,
    source: Option<&'a str>,
    revision: Option<&'a str>,
    /// Why none of magray's own backends runs it.
    refusal: Option<&'a str>,
}

impl<'a> ModelJson<'a> {
    fn new(model: &'a Model, in_use: Option<&PathBuf>) -> Self {
        let spec = model.folder.as_ref().ok().map(|folder| &folder.spec);
        let manifest = model.manifest.as_ref();
        Self {
            name: &model.name,
            path: &model.dir,
            in_use: in_use == Some(&model.dir),
            architecture: spec.map(|spec| spec.architecture.label()),
            // A static model does not always say.
            dim: spec.map(|spec| spec.dim).filter(|&dim| dim > 0),
            max_tokens: spec.map(|spec| spec.max_tokens).filter(|&most| most < usize::MAX),
            bytes: model.bytes,
            source: manifest.map(|manifest| manifest.source.as_str()),
            revision: manifest.and_then(|manifest| manifest.revision.as_deref()),
            refusal: model.folder.as_ref().err().map(magray_plugin_api::Error::message),
        }
    }
}

fn source(manifest: Option<&Manifest>) -> String {
    match manifest {
        Some(Manifest { source, revision: Some(revision), .. }) => {
            format!("from {source} at {}", revision.get(..12).unwrap_or(revision))
        }
        Some(Manifest { source, .. }) => format!("from {source}"),
        None => "put there by hand".to_owned(),
    }
}

#[derive(Serialize)]
struct RemovedJson<'a> {
    removed: Option<&'a str>,
}

impl Remove {
    fn run(self, terminal: &Terminal, setup: &Setup, models: &Models) -> Result<Outcome, Failure> {
        let name = &self.name;
        if !models.unfinished().iter().any(|(unfinished, _)| unfinished == name) {
            models.get(name)?;
        }
        let in_use = folder_in_use(setup, models) == Some(models.dir().join(name));
        let used = if in_use { ", which the config has in use" } else { "" };
        let removed = self.yes || terminal.confirm(&format!("remove the model {name}{used}"))?;
        if removed {
            models.remove(name)?;
        }
        if terminal.json {
            terminal.print_json(&RemovedJson { removed: removed.then_some(name) })?;
        } else if removed {
            terminal.print(format_args!("removed {name}"))?;
        }
        Ok(if removed { Outcome::Done } else { Outcome::NothingFound })
    }
}
