use super::{
    ReportJson, embed, foreign,
    index::{self, Knobs, knobs_of},
    own, peer, print_machine, receive, warn_of_threads,
};
use crate::{
    bench::{
        Constraints, Contestant, EmbedFigures, Machine, Matrix, MatrixRequest, MatrixSet, Names, Objective,
        OwnRecord, Recommendation, Row, html, measure_matrix, recommend, serve_replay, with_model,
    },
    cli::{
        Failure, Outcome,
        args::Global,
        memory, open_to_read, setup,
        terminal::{BOLD, DIM, Terminal, UntilInterrupted},
        view,
        whole_file::WholeFile,
    },
    config::Profiles,
    engine::Setup,
    plugins::Plugins,
    store::Filter,
};
use clap::Args;
use indicatif::HumanBytes;
use magray_plugin_api::ComponentKind;
use serde::Serialize;
use std::{ffi::OsString, io::Write as _, ops::ControlFlow, path::PathBuf};

/// Measure every embedding backend with every index and every cache on your own data, and say what to take
#[derive(Debug, Args)]
#[command(after_help = "\
DIR is a retrieval set in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv), as for `bench
quality`. Without it the records of the data folder are taken, with questions whose answer is known: a
title, or a sentence of a text, asks for its record.

The parts do not act on each other, so each is measured by itself, in a process of its own bound to as
many cores as it has threads: a backend once, an index once for each space of vectors with every setting
of its knobs, a cache policy once for each size on requests drawn by Zipf's law. All are measured in turn,
round by round; figures are medians of the rounds. What combinations do is computed from that: the time of
a query is that of its embedding and of the search, and in the mean the cache answers its part.

A matrix that was interrupted goes on with the same command and --resume FILE: each cell is a line of that
file as soon as it is measured, and FILE.work keeps the vectors. More backends, indexes, caches and runs may
be added to one that is done.

Examples:
  magray bench matrix
  magray bench matrix --data data/scifact --backends cpu,onnx,candle --model all-MiniLM-L6-v2 \\
      --indexes flat,hnsw,native --html report.html
  magray bench matrix --backends cpu,onnx@multilingual-e5-small --resume run.jsonl --json
  magray bench matrix --data data/scifact --recommend --objective balanced --min-recall 0.95 \\
      --max-memory 500MiB > magray.toml")]
pub(in crate::cli) struct MatrixCommand {
    /// Folder of a retrieval set [default: the records of the data folder]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// At most so many questions; of a set in a folder also only the documents that are judged for them and about as
    /// many others
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(2..))]
    limit: Option<u32>,
    /// Embedding profiles or backends, separated by commas, each with a model where it is PROFILE@MODEL [default: all
    /// profiles whose plugin is there]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    backends: Vec<String>,
    /// Index profiles or backends, separated by commas [default: all profiles whose plugin is there]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    indexes: Vec<String>,
    /// Cache profiles or policies, separated by commas [default: all profiles whose plugin is there]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    caches: Vec<String>,
    /// Threads and cores of each
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: u16,
    /// Texts in one call of an embedding backend
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    batch: u16,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// The recall that the setting of an index in the table of combinations must reach
    #[arg(long, value_name = "RECALL", default_value_t = 0.95, value_parser = index::share)]
    recall: f64,
    /// Breadths of a search to try
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..),
        default_values_t = [16, 50, 100, 200, 400])]
    ef: Vec<u32>,
    /// Numbers of candidates to try that are scored again with the original vectors
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..),
        default_values_t = [20, 80, 320])]
    rescore: Vec<u32>,
    /// An option of an index to change between searches, with the values to try; may be given several times
    #[arg(long, value_name = "NAME=VALUES", value_parser = index::tuned)]
    tune: Vec<(String, Vec<String>)>,
    /// Sizes of the caches, as shares of all texts, separated by commas
    #[arg(long, value_name = "SHARES", value_delimiter = ',', default_value = "0.1", value_parser = index::share)]
    cache_share: Vec<f64>,
    /// Requests that the caches are measured on
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Another program to measure as an index, as for `bench index`; may be given several times
    #[arg(long, value_name = "NAME=COMMAND", value_parser = peer)]
    peer: Vec<(String, String)>,
    /// Keep what is measured in this file, and go on from what it has
    #[arg(long, value_name = "FILE")]
    resume: Option<PathBuf>,
    /// Write a report with plots that needs no network
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Print the configuration to take, with the reasons, instead of the tables
    #[arg(long)]
    recommend: bool,
    /// What matters most to the recommendation
    #[arg(long, default_value = "balanced")]
    objective: Objective,
    /// Recommend only what finds this share of the nearest
    #[arg(long, value_name = "RECALL", default_value_t = 0.95, value_parser = index::share)]
    min_recall: f64,
    /// Recommend only what takes no more memory, such as 500MiB
    #[arg(long, value_name = "BYTES", value_parser = memory::bytes)]
    max_memory: Option<u64>,
}

/// The report as JSON.
#[derive(Serialize)]
struct MatrixJson<'a> {
    #[serde(flatten)]
    matrix: &'a Matrix,
    /// None where nothing fits.
    recommendation: Option<&'a Recommendation>,
}

impl MatrixCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let plugins = setup.plugins();
        let request = self.request(global, terminal, &setup, &plugins)?;
        warn_of_threads(terminal, &[request.threads]);
        let machine = Machine::here();
        let scratch = tempfile::tempdir().map_err(Failure::io("cannot make a temporary folder"))?;
        let folder = self.resume.as_ref().map(|file| {
            let mut name = file.clone().into_os_string();
            name.push(".work");
            PathBuf::from(name)
        });
        let folder = folder.as_deref().unwrap_or(scratch.path());
        let matrix = {
            let progress = terminal.progress("measurements");
            let told = &mut |step: crate::bench::Step<'_>| {
                progress.0.set_length(step.of as u64);
                progress.0.set_position(step.done as u64);
                progress.0.set_message(step.now.to_owned());
            };
            measure_matrix(&UntilInterrupted, &request, &plugins, folder, self.resume.as_deref(), told)?
        };
        for fault in &matrix.faults {
            terminal.warn(&format!("not measured: {} {}", fault.part, fault.fault));
        }
        let indexes = &setup.config.memory.index;
        let component = |name: &str| indexes.profile(name).profile.plugin;
        let takes = |name: &str, option: &str| {
            let schema = plugins.options_schema(ComponentKind::Index, &component(name)).unwrap_or_default();
            let schema: serde_json::Value = serde_json::from_str(&schema).unwrap_or_default();
            schema["properties"].get(option).is_some()
        };
        let names =
            Names { model: &setup.config.ai.embedding.model_name, component: &component, takes: &takes };
        let constraints = Constraints { min_recall: self.min_recall, max_memory: self.max_memory };
        let chosen = recommend(&matrix, self.objective, constraints, &names);
        let json = MatrixJson { matrix: &matrix, recommendation: chosen.as_ref() };
        let report = ReportJson::new(&machine, json);
        if let Some(path) = &self.html {
            let text = serde_json::to_string(&report)
                .map_err(|error| Failure::io("cannot write the report")(error.into()))?;
            let mut file = WholeFile::create(path)?;
            file.write_all(html(&text).as_bytes())
                .map_err(Failure::io(format!("cannot write {}", path.display())))?;
            file.finish(&[])?;
            terminal.hint(&format!("the report is {}", path.display()));
        }
        if terminal.json {
            terminal.print_json(&report)?;
        } else if !self.recommend {
            print_machine(terminal, &machine)?;
            print(terminal, &matrix)?;
        }
        match chosen {
            None if self.recommend => {
                let most =
                    self.max_memory.map_or_else(String::new, |most| format!(" in {}", HumanBytes(most)));
                terminal.warn(&format!("nothing finds {} of the nearest{most}", self.min_recall));
                return Ok(Outcome::NothingFound);
            }
            Some(chosen) if self.recommend && !terminal.json => {
                terminal.print(format_args!("{}", chosen.toml.trim_end()))?;
            }
            _ => {}
        }
        Ok(Outcome::Done)
    }

    fn request(
        &self,
        global: &Global,
        terminal: &Terminal,
        setup: &Setup,
        plugins: &Plugins,
    ) -> Result<MatrixRequest, Failure> {
        let knobs = Knobs { ef: self.ef.clone(), rescore: self.rescore.clone(), tune: self.tune.clone() };
        let config = &setup.config;
        let there = |named: &[String], profiles: &Profiles, kind| {
            let mut names = named.to_vec();
            if names.is_empty() {
                let there = profiles.iter().filter(|(_, profile)| plugins.offers(kind, &profile.plugin));
                names.extend(there.map(|(name, _)| name.clone()));
            }
            names
        };
        let embedding = &config.ai.embedding;
        let backends = there(&self.backends, &embedding.profiles, ComponentKind::Embedder).into_iter();
        let backends = backends.map(|name| self.backend(global, setup, name));
        let indexes = there(&self.indexes, &config.memory.index.profiles, ComponentKind::Index).into_iter();
        let indexes = indexes.map(|name| index::own(global, setup, &knobs, name));
        let peers = self.peer.iter().map(|(name, command)| Ok(foreign(name.clone(), command.clone())));
        let caches =
            there(&self.caches, &config.memory.cache.profiles, ComponentKind::CachePolicy).into_iter();
        let caches = caches.map(|name| own(global, setup, ("--cache", name), "cache-worker"));
        let collected = |contestants: Vec<Contestant>, what: &str| match contestants.is_empty() {
            true => Err(Failure::Usage(format!("there is no {what} to measure; name some"))),
            false => Ok(contestants),
        };
        Ok(MatrixRequest {
            backends: collected(backends.collect::<Result<_, _>>()?, "embedding backend")?,
            indexes: collected(indexes.chain(peers).collect::<Result<_, _>>()?, "index")?,
            caches: collected(caches.collect::<Result<_, _>>()?, "cache policy")?,
            threads: usize::from(self.threads),
            batch: usize::from(self.batch),
            runs: usize::from(self.runs),
            recall: self.recall,
            shares: self.cache_share.clone(),
            requests: self.requests as usize,
            settings: format!(
                "{} {:?} {}",
                env!("CARGO_PKG_VERSION"),
                knobs.arguments(),
                serde_json::to_string(config).unwrap_or_default()
            ),
            set: self.set(global, terminal, setup)?,
        })
    }

    fn set(&self, global: &Global, terminal: &Terminal, setup: &Setup) -> Result<MatrixSet, Failure> {
        let limit = self.limit.map(|limit| limit as usize);
        match &self.data {
            Some(dir) => Ok(MatrixSet::from_data(dir, limit)?),
            None => own_records(global, terminal, setup, limit),
        }
    }

    /// A backend with its model, as a process.
    fn backend(&self, global: &Global, setup: &Setup, name: String) -> Result<Contestant, Failure> {
        let (profile, model) = with_model(&name);
        let model = model.unwrap_or(&setup.config.ai.embedding.model_name);
        let env: [(OsString, OsString); 2] = [
            ("MAGRAY_AI__EMBEDDING__BATCH_SIZE".into(), self.batch.to_string().into()),
            ("MAGRAY_AI__EMBEDDING__MODEL_NAME".into(), model.into()),
        ];
        let contestant = embed::own(global, setup, &env, profile.to_owned())?;
        Ok(Contestant { name, ..contestant })
    }
}

/// The records of the data folder, with questions that ask for them.
pub(super) fn own_records(
    global: &Global,
    terminal: &Terminal,
    setup: &Setup,
    limit: Option<usize>,
) -> Result<MatrixSet, Failure> {
    let mut records = Vec::new();
    if let Some(engine) = open_to_read(global, terminal)? {
        engine.store().export(&Filter::default(), None, &mut |_, record| {
            let id = record.id.unwrap_or_default();
            records.push(OwnRecord { id, title: record.title, text: record.text });
            ControlFlow::Continue(())
        })?;
    }
    Ok(MatrixSet::from_records(&setup.data_dir, records, limit)?)
}

fn print(terminal: &Terminal, matrix: &Matrix) -> Result<(), Failure> {
    let Matrix { set, questions_from, documents, threads, runs, noise, .. } = matrix;
    terminal.print(format_args!(
        "{set}: {documents} texts, {questions_from}\n{}, {}; {}",
        view::counted(*threads as u64, "thread"),
        view::counted(*runs as u64, "run"),
        noise.note
    ))?;
    backends(terminal, &matrix.backends)?;
    indexes(terminal, matrix)?;
    caches(terminal, matrix)?;
    rows(terminal, &matrix.rows, matrix.recall)
}

fn width<'a>(names: impl Iterator<Item = &'a String>) -> usize {
    names.map(|name| name.chars().count()).max().unwrap_or(0)
}

fn heading(terminal: &Terminal, title: &str, width: usize, columns: &[&str]) -> Result<(), Failure> {
    let columns: String = columns.iter().map(|column| format!(" {column:>10}")).collect();
    terminal.print(format_args!("\n{BOLD}{title}{BOLD:#}\n  {:width$}{columns}", ""))
}

/// A number with three digits or more.
fn short(number: f64) -> String {
    match number.abs() {
        100.0.. => format!("{number:.0}"),
        10.0.. => format!("{number:.1}"),
        1.0.. => format!("{number:.2}"),
        _ => format!("{number:.3}"),
    }
}

fn mib(bytes: f64) -> String {
    short(bytes / f64::from(1 << 20))
}

fn row(terminal: &Terminal, name: &str, width: usize, cells: &[String], rest: &str) -> Result<(), Failure> {
    let cells: String = cells.iter().map(|cell| format!(" {cell:>10}")).collect();
    terminal.print(format_args!("  {name:<width$}{cells}  {DIM}{rest}{DIM:#}"))
}

fn backends(terminal: &Terminal, backends: &[EmbedFigures]) -> Result<(), Failure> {
    let width = width(backends.iter().map(|backend| &backend.name));
    let columns = ["texts/s", "spread", "p50 ms", "p95 ms", "p99 ms", "start s", "MiB", "nDCG@10", "R@10"];
    heading(terminal, "embedding, and its vectors compared one by one", width, &columns)?;
    backends.iter().try_for_each(|of| {
        let cells = [
            short(of.texts_per_s.median),
            format!("{:.0}%", of.texts_per_s.spread() * 100.0),
            short(of.p50_ms.median),
            short(of.p95_ms.median),
            short(of.p99_ms.median),
            short(of.start_s.median),
            of.resident_bytes.map_or_else(String::new, mib),
            format!("{:.4}", of.exact.ndcg_10),
            format!("{:.4}", of.exact.recall_10),
        ];
        let ran = &of.ran;
        let rest =
            format!("{}, {} wide, on {} ({}, {})", ran.model, of.dim, ran.device, ran.engine, ran.precision);
        row(terminal, &of.name, width, &cells, &rest)
    })
}

fn indexes(terminal: &Terminal, matrix: &Matrix) -> Result<(), Failure> {
    let width = width(matrix.indexes.iter().map(|index| &index.name));
    let mut space = None;
    for of in &matrix.indexes {
        if space != Some(&of.space) {
            space = Some(&of.space);
            let columns = [
                "recall",
                "nDCG@10",
                "q/s",
                "q/CPU-s",
                "spread",
                "p50 ms",
                "p95 ms",
                "p99 ms",
                "vectors/s",
                "open ms",
                "MiB",
                "file MiB",
            ];
            let title = format!(
                "index of the vectors of {}, with the cheapest setting of recall {} or more",
                of.vectors_of, matrix.recall
            );
            heading(terminal, &title, width, &columns)?;
        }
        let Some(point) = of.points.get(of.chosen) else { continue };
        let cells = [
            format!("{:.4}", point.recall),
            format!("{:.4}", point.ndcg_10),
            short(point.queries_per_s.median),
            short(point.queries_per_cpu_s.median),
            format!("{:.0}%", point.queries_per_cpu_s.spread() * 100.0),
            short(point.p50_ms.median),
            short(point.p95_ms.median),
            short(point.p99_ms.median),
            short(of.build_per_s.median),
            short(of.open_ms.median),
            of.resident_bytes.map_or_else(String::new, mib),
            mib(of.disk_bytes),
        ];
        row(terminal, &of.name, width, &cells, &knobs_of(&point.setting))?;
    }
    Ok(())
}

fn caches(terminal: &Terminal, matrix: &Matrix) -> Result<(), Failure> {
    let width = width(matrix.caches.iter().map(|cache| &cache.name));
    let columns = ["room", "vectors", "hits", "ns", "spread", "MiB"];
    heading(terminal, "cache, on requests by Zipf's law", width, &columns)?;
    matrix.caches.iter().try_for_each(|of| {
        let cells = [
            format!("{}%", short(of.share * 100.0)),
            of.capacity.to_string(),
            format!("{:.2}%", of.hit_ratio * 100.0),
            short(of.ns.median),
            format!("{:.0}%", of.ns.spread() * 100.0),
            mib(of.bytes + of.held.resident as f64),
        ];
        row(terminal, &of.name, width, &cells, "")
    })
}

fn rows(terminal: &Terminal, rows: &[Row], recall: f64) -> Result<(), Failure> {
    let name =
        |of: &Row| format!("{} + {} + {} {}%", of.backend, of.index, of.cache, short(of.cache_share * 100.0));
    let mut named: Vec<(String, &Row)> = rows.iter().map(|of| (name(of), of)).collect();
    named.sort_by(|a, b| a.1.mean_ms.total_cmp(&b.1.mean_ms));
    let width = width(named.iter().map(|(name, _)| name));
    let columns = ["nDCG@10", "recall", "mean ms", "p50 ms", "p95 ms", "p99 ms", "q/s", "MiB", "file MiB"];
    let title = format!("together, computed from the parts, at recall {recall} or more: the quickest first");
    heading(terminal, &title, width, &columns)?;
    named.iter().try_for_each(|(name, of)| {
        let cells = [
            format!("{:.4}", of.ndcg_10),
            format!("{:.4}", of.recall),
            short(of.mean_ms),
            short(of.p50_ms),
            short(of.p95_ms),
            short(of.p99_ms),
            short(of.queries_per_s),
            mib(of.memory_bytes),
            mib(of.disk_bytes),
        ];
        row(terminal, name, width, &cells, &knobs_of(&of.setting))
    })
}

/// Replay requests in a cache on request: what `bench matrix` measures
#[derive(Debug, Args)]
pub(in crate::cli) struct CacheWorkerCommand {}

impl CacheWorkerCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        serve_replay(&setup, receive(), |reply| terminal.print_json(reply))?;
        Ok(Outcome::Done)
    }
}
