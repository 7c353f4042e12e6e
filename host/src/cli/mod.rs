//! The command line. Only this module prints: answers on stdout, everything else on stderr.
mod add;
mod args;
mod backup;
mod bench;
mod cache;
mod config;
mod embed;
mod export;
mod forget;
mod get;
mod gpu;
mod import;
mod index;
mod list;
mod memory;
mod model;
mod plugin;
mod promote;
mod reembed;
mod restore;
mod search;
mod shell;
mod stats;
mod sync;
mod terminal;
mod view;
mod watch;
mod whole_file;

use crate::{
    bench::BenchError,
    config::{self as settings, Config, ConfigError, Origin, Resolved},
    embedding::EmbeddingError,
    engine::{self, Engine, EngineError, ModelOrigins, Setup},
    models::{HubError, ModelError},
    plugins::{PluginError, Project},
    resources::gpu::GpuError,
    store::StoreError,
};
use args::Global;
use clap::{Parser, Subcommand};
use std::{
    env, io,
    path::{Path, PathBuf},
    process::ExitCode,
};
use terminal::{Terminal, UntilInterrupted};

/// Exit codes: 0 found or done, 1 nothing found, 2 wrong usage, 3 failed, 130 interrupted.
const NOTHING_FOUND: u8 = 1;
const USAGE: u8 = 2;
const FAILED: u8 = 3;
const INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "\
Examples:
  magray index ~/notes ~/src/project       remember files and folders
  magray search \"how are backups made\"     ask in your own words
  magray add \"The staging key rotates on Mondays\" --tag ops
  magray --index hnsw search \"retry policy\" --json
  magray model pull multilingual-e5-small  get a model for other languages

Exit codes: 0 found or done, 1 nothing found, 2 wrong usage, 3 failed, 130 interrupted.
Data lives in $MAGRAY_HOME, else in the system's folder for data (~/.local/share/magray).";

/// Local semantic memory and vector search: remembers texts and finds them by words and meaning, offline.
#[derive(Debug, Parser)]
#[command(name = "magray", version, after_help = EXAMPLES, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Add(add::Add),
    Index(index::Index),
    Search(search::Search),
    Get(get::Get),
    List(list::List),
    Forget(forget::Forget),
    Promote(promote::Promote),
    Stats(stats::Stats),
    Sync(sync::Sync),
    Embed(embed::Embed),
    Reembed(reembed::Reembed),
    Backup(backup::Backup),
    Restore(restore::Restore),
    Export(export::Export),
    Import(import::Import),
    #[command(subcommand)]
    Cache(cache::Cache),
    #[command(subcommand)]
    Model(model::ModelCommand),
    #[command(subcommand)]
    Plugin(plugin::Plugin),
    #[command(subcommand)]
    Bench(bench::Bench),
    #[command(subcommand)]
    Gpu(gpu::GpuCommand),
    #[command(subcommand)]
    Config(config::ConfigCommand),
    Completions(shell::Completions),
    Man(shell::Man),
}

/// Why a command ended without doing its work.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Engine(#[from] EngineError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error(transparent)]
    Bench(#[from] BenchError),
    #[error(transparent)]
    Gpu(#[from] GpuError),
    #[error(transparent)]
    Model(#[from] ModelError),
    /// What the user wrote cannot be done.
    #[error("{0}")]
    Usage(String),
    /// Some of it was done.
    #[error("{0}")]
    Partly(String),
    /// The user stopped it.
    #[error("{0}")]
    Stopped(String),
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        Self::Engine(error.into())
    }
}

impl Failure {
    fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| Self::Io { what, error }
    }

    fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Config(_) | Self::Engine(EngineError::Invalid(_)) => USAGE,
            Self::Plugin(PluginError::Unknown { .. })
            | Self::Engine(EngineError::Plugin(PluginError::Unknown { .. })) => USAGE,
            Self::Engine(EngineError::Embedding(EmbeddingError::Start(error)))
                if matches!(**error, PluginError::Unknown { .. }) =>
            {
                USAGE
            }
            Self::Engine(EngineError::Store(
                StoreError::InvalidInput(_) | StoreError::AmbiguousId { .. },
            )) => USAGE,
            Self::Bench(BenchError::Plugin(PluginError::Unknown { .. }) | BenchError::Data { .. }) => USAGE,
            Self::Model(
                ModelError::BadName(_)
                | ModelError::NotKnown { .. }
                | ModelError::Exists { .. }
                | ModelError::Hub(HubError::Endpoint(_)),
            ) => USAGE,
            Self::Engine(EngineError::Interrupted)
            | Self::Bench(BenchError::Interrupted)
            | Self::Model(ModelError::Interrupted)
            | Self::Stopped(_) => INTERRUPTED,
            _ => FAILED,
        }
    }

    /// Whoever reads our output has gone, as `head` does: no failure.
    fn is_closed_pipe(&self) -> bool {
        matches!(self, Self::Io { error, .. } if error.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// What a command found.
enum Outcome {
    Done,
    NothingFound,
}

/// Runs the program: parses the arguments of this process, does what they say, prints.
pub fn run() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // It prints help and versions too, to stdout and with success.
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { USAGE } else { 0 });
        }
    };
    let terminal = Terminal::new(&cli.global);
    match cli.command.run(&cli.global, &terminal) {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::NothingFound) => ExitCode::from(NOTHING_FOUND),
        Err(failure) if failure.is_closed_pipe() => ExitCode::SUCCESS,
        Err(failure) => {
            terminal.error(&failure.to_string());
            ExitCode::from(failure.exit_code())
        }
    }
}

impl Command {
    fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        match self {
            Self::Add(add) => add.run(global, terminal),
            Self::Index(index) => index.run(global, terminal),
            Self::Search(search) => search.run(global, terminal),
            Self::Get(get) => get.run(global, terminal),
            Self::List(list) => list.run(global, terminal),
            Self::Forget(forget) => forget.run(global, terminal),
            Self::Promote(promote) => promote.run(global, terminal),
            Self::Stats(stats) => stats.run(global, terminal),
            Self::Sync(sync) => sync.run(global, terminal),
            Self::Embed(embed) => embed.run(global, terminal),
            Self::Reembed(reembed) => reembed.run(global, terminal),
            Self::Backup(backup) => backup.run(global, terminal),
            Self::Restore(restore) => restore.run(global, terminal),
            Self::Export(export) => export.run(global, terminal),
            Self::Import(import) => import.run(global, terminal),
            Self::Cache(cache) => cache.run(global, terminal),
            Self::Model(model) => model.run(global, terminal),
            Self::Plugin(plugin) => plugin.run(global, terminal),
            Self::Bench(bench) => bench.run(global, terminal),
            Self::Gpu(gpu) => gpu.run(global, terminal),
            Self::Config(config) => config.run(global, terminal),
            Self::Completions(completions) => completions.run(terminal),
            Self::Man(man) => man.run(terminal),
        }
    }
}

/// The settings in force; from here on log messages follow them.
fn resolve(global: &Global, terminal: &Terminal) -> Result<Resolved, Failure> {
    let resolved = Config::load(global.config.as_deref(), env::vars_os(), &global.overrides())?;
    terminal.log_from(resolved.config.log.level);
    Ok(resolved)
}

fn setup(global: &Global, terminal: &Terminal) -> Result<Setup, Failure> {
    let resolved = resolve(global, terminal)?;
    let origin = |key: &str| resolved.origin(key).cloned().unwrap_or(Origin::Default);
    let origins =
        ModelOrigins { profile: origin("ai.embedding.profile"), model: origin("ai.embedding.model_name") };
    let is_set = memory::is_set(&resolved);
    let own = settings::user_file(|name| env::var_os(name).map(PathBuf::from));
    let names_folders = matches!(resolved.origin("plugins.path"), Some(Origin::File { .. }));
    let config = resolved.config;
    let project = resolved.file.filter(|file| !is_beside(file, own.as_deref())).map(|file| {
        let folders = config.plugins.path.iter().filter(|_| names_folders);
        Project { config: file, folders: folders.map(|folder| folder.as_path().to_owned()).collect() }
    });
    let data_dir = global.data_dir.clone().or_else(engine::default_data_dir).ok_or_else(|| {
        Failure::Usage("there is no home folder to keep data in; give --data-dir or set MAGRAY_HOME".into())
    })?;
    let fit = is_set.then(|| memory::fit(&config, &data_dir.join("models"), None)).flatten();
    if let Some(fit) = fit.filter(|fit| !fit.fits()) {
        terminal.warn(&format!("[memory.resource_manager] {fit}"));
    }
    let mut plugin_dirs = global.plugin_dir.clone();
    if let Some(path) = env::var_os("MAGRAY_PLUGIN_PATH") {
        plugin_dirs.extend(env::split_paths(&path).filter(|folder| folder != &PathBuf::new()));
    }
    Ok(Setup { config, origins, data_dir, plugin_dirs, project, executable: env::current_exe().ok() })
}

/// Whether a file lies in the folder of another one, or below. Where a link in that folder leads does not matter.
fn is_beside(file: &Path, other: Option<&Path>) -> bool {
    let folder = |file: &Path| std::path::absolute(file).ok()?.parent()?.canonicalize().ok();
    let other = other.and_then(folder);
    other.is_some_and(|other| folder(file).is_some_and(|folder| folder.starts_with(other)))
}

/// The engine for a command that writes.
fn open(global: &Global, terminal: &Terminal) -> Result<Engine, Failure> {
    let engine = Engine::open(setup(global, terminal)?)?;
    hint_at_model(&engine, terminal)?;
    Ok(engine)
}

/// Says so where the configuration names another model than the one that answers.
fn hint_at_model(engine: &Engine, terminal: &Terminal) -> Result<(), Failure> {
    if let Some(hint) = engine.overruled_model()? {
        terminal.hint(&hint);
    }
    Ok(())
}

/// The engine for a command that can do without writing; none where nothing was ever stored.
fn open_to_read(global: &Global, terminal: &Terminal) -> Result<Option<Engine>, Failure> {
    let setup = setup(global, terminal)?;
    if !setup.database().exists() {
        terminal.hint(&format!(
            "nothing is stored in {} yet; begin with `magray add TEXT` or `magray index PATH`",
            setup.data_dir.display()
        ));
        return Ok(None);
    }
    let engine = match Engine::open(setup.clone()) {
        Err(EngineError::Store(StoreError::ReadOnly { .. })) => Engine::open_read_only(setup)?,
        opened => opened?,
    };
    hint_at_model(&engine, terminal)?;
    Ok(Some(engine))
}

/// Does what is left to be done after an answer. The answer stands whatever becomes of this.
fn upkeep(engine: &Engine) {
    warn_of(engine.upkeep(&UntilInterrupted), "the index could not be brought up to date");
}

/// Only the part of it that drops records past their time.
fn expire(engine: &Engine) {
    warn_of(engine.expire(&UntilInterrupted).map(drop), "records past their time could not be dropped");
}

fn warn_of(done: Result<(), EngineError>, what: &str) {
    match done {
        Ok(()) | Err(EngineError::Interrupted) => {}
        // Others who may write will do it.
        Err(EngineError::Store(StoreError::ReadOnly { .. })) => {}
        Err(error) => tracing::warn!("{what}: {error}"),
    }
}
