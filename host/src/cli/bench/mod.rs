//! `magray bench`.
mod cache;
mod embed;
mod governor;
mod index;
mod matrix;
mod quality;
mod retrieval;
mod search;
mod sync;
mod workload;

use super::{
    Failure, Outcome,
    args::Global,
    setup,
    terminal::{DIM, Terminal},
    view,
};
use crate::{
    bench::{Contestant, Machine},
    engine::{Setup, now_ms},
};
use clap::{Args, Subcommand};
use serde::{Serialize, de::DeserializeOwned};
use std::{
    env,
    ffi::OsString,
    io::{self, BufRead as _},
    num::NonZero,
    thread,
};

/// Measure backends, indexes, caches and the whole system, on data of your own or of others
#[derive(Debug, Subcommand)]
pub(super) enum Bench {
    Quality(quality::QualityCommand),
    Retrieval(retrieval::RetrievalCommand),
    Embed(embed::EmbedCommand),
    Index(index::IndexCommand),
    Cache(cache::CacheCommand),
    Governor(governor::GovernorCommand),
    Matrix(matrix::MatrixCommand),
    Search(search::SearchCommand),
    Sync(sync::SyncCommand),
    Workload(workload::WorkloadCommand),
    Soak(workload::SoakCommand),
    #[command(hide = true)]
    Worker(embed::WorkerCommand),
    #[command(hide = true)]
    IndexWorker(index::WorkerCommand),
    #[command(hide = true)]
    CacheWorker(matrix::CacheWorkerCommand),
}

impl Bench {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        terminal.stop_gently();
        match self {
            Self::Quality(quality) => quality.run(global, terminal),
            Self::Retrieval(retrieval) => retrieval.run(global, terminal),
            Self::Embed(embed) => embed.run(global, terminal),
            Self::Index(index) => index.run(global, terminal),
            Self::Cache(cache) => cache.run(global, terminal),
            Self::Governor(governor) => governor.run(global, terminal),
            Self::Matrix(matrix) => matrix.run(global, terminal),
            Self::Search(search) => search.run(global, terminal),
            Self::Sync(sync) => sync.run(global, terminal),
            Self::Workload(workload) => workload.run(global, terminal),
            Self::Soak(soak) => soak.run(global, terminal),
            Self::Worker(worker) => worker.run(global, terminal),
            Self::IndexWorker(worker) => worker.run(global, terminal),
            Self::CacheWorker(worker) => worker.run(global, terminal),
        }
    }
}

/// What is measured.
#[derive(Debug, Args)]
struct Subject {
    /// Embedding profiles of the config, or backends of plugins, separated by commas [default: the one in force]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    backends: Vec<String>,
}

impl Subject {
    /// The setup, and the names of the backends.
    fn resolve(self, global: &Global, terminal: &Terminal) -> Result<(Setup, Vec<String>), Failure> {
        let setup = setup(global, terminal)?;
        let in_force = || vec![setup.config.ai.embedding.profile.clone()];
        let backends = if self.backends.is_empty() { in_force() } else { self.backends };
        Ok((setup, backends))
    }
}

/// A backend of ours, chosen by a flag, as a process that a hidden command of `bench` serves.
fn own(
    global: &Global,
    setup: &Setup,
    (flag, name): (&str, String),
    command: &str,
) -> Result<Contestant, Failure> {
    let program = env::current_exe().map_err(Failure::io("cannot find this program"))?;
    let mut line = vec![program.into_os_string(), flag.into(), (&name).into()];
    if let Some(config) = &global.config {
        line.extend(["--config".into(), config.into()]);
    }
    // All of them, since some depend on the data folder, which a measurement may have one of its own for.
    for folder in setup.plugin_folders() {
        line.extend(["--plugin-dir".into(), folder.into()]);
    }
    let mut worker = line.clone();
    worker.extend(["--data-dir".into(), setup.data_dir.clone().into(), "bench".into(), command.into()]);
    Ok(Contestant { name, worker, program: Some(line), env: Vec::new() })
}

/// Parses `--peer`.
fn peer(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, command)) if !name.is_empty() && !command.trim().is_empty() => {
            Ok((name.to_owned(), command.to_owned()))
        }
        _ => Err("it must be NAME=COMMAND".into()),
    }
}

/// A program of others.
fn foreign(name: String, command: String) -> Contestant {
    let worker: Vec<OsString> = if cfg!(windows) {
        vec!["cmd".into(), "/C".into(), command.into()]
    } else {
        // So that the shell makes room for the program, and ending it ends that.
        vec!["sh".into(), "-c".into(), format!("exec {command}").into()]
    };
    Contestant { name, worker, program: None, env: Vec::new() }
}

/// What gives a worker its next request from standard input.
fn receive<R: DeserializeOwned>() -> impl FnMut() -> Result<Option<R>, Failure> {
    let mut lines = io::stdin().lock().lines();
    move || {
        let line = lines.next().transpose().map_err(Failure::io("cannot read standard input"))?;
        let parse = |line: String| {
            serde_json::from_str(&line).map_err(|error| Failure::Usage(format!("no request: {error}")))
        };
        line.map(parse).transpose()
    }
}

/// What was measured, and where, when and how, as JSON.
#[derive(Serialize)]
struct ReportJson<'a, T> {
    machine: &'a Machine,
    date: String,
    command: Vec<String>,
    version: &'static str,
    #[serde(flatten)]
    measured: T,
}

impl<'a, T: Serialize> ReportJson<'a, T> {
    fn new(machine: &'a Machine, measured: T) -> Self {
        let (date, command) = (view::time(now_ms()), env::args().collect());
        Self { machine, date, command, version: env!("CARGO_PKG_VERSION"), measured }
    }
}

/// Says so where there are more threads than cores.
fn warn_of_threads(terminal: &Terminal, threads: &[usize]) {
    let cores = cores();
    if let Some(threads) = threads.iter().find(|&&threads| threads > cores) {
        terminal.warn(&format!("{threads} threads share {}", view::counted(cores as u64, "core")));
    }
}

fn cores() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}

fn print_machine(terminal: &Terminal, machine: &Machine) -> Result<(), Failure> {
    let Machine { cpu, flags, cores, kernel, load } = machine;
    terminal.print(format_args!(
        "{DIM}{cpu}, {}, {}, kernel {kernel}, load {load}{DIM:#}",
        view::counted(*cores as u64, "core"),
        flags.join(" ")
    ))
}
