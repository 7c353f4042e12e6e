use super::{ReportJson, foreign, peer, print_machine, receive, warn_of_threads};
use crate::{
    bench::{
        Build, Contestant, Curve, Filtered, IndexBackend, IndexFigures, IndexRequest, Machine, Point,
        Searched, Setting, Speed, Sweep, VectorSet, measure_index, metric_named, serve_index,
    },
    cli::{
        Failure, Outcome,
        args::Global,
        setup,
        terminal::{BOLD, DIM, Terminal, UntilInterrupted},
        view,
    },
    engine::Setup,
};
use clap::Args;
use std::path::PathBuf;

/// Shares of the vectors that filters let through.
const SHARES: [f64; 3] = [0.01, 0.1, 0.5];

/// Measure how fast index backends are at which recall, and what they cost to build and to hold
#[derive(Debug, Args)]
#[command(after_help = "\
DIR has base.f16.npy and query.f16.npy (or .f32.npy, or .npy): tables of vectors, one a row. Where
gt100.i32.npy is there too, it names the nearest rows of each query, best first; else they are
computed. scripts/ann-data.py makes such folders of public data and of any size.

Each backend runs in processes of its own, bound to as many cores as it has threads: one builds the
index and saves it, another opens it and is searched with every setting of its knobs. All are
measured in turn, run by run; a figure is the median of its runs. Speed is queries by CPU-second,
which other work on the machine spoils least. At a given recall it is interpolated between the
settings that no other one is superior to. Recall is the share of the ten nearest vectors.

A peer is any program that speaks the protocol of the workers (lines of JSON):
scripts/bench-index-peers.py runs hnswlib, usearch, faiss, ScaNN and turbovec.

Examples:
  magray bench index --data data/minilm --indexes flat,hnsw
  magray bench index --data data/fashion --metric l2 --indexes hnsw --ef 20,50,100,200 --json
  magray bench index --data data/minilm --indexes hnsw --threads 1,2 --batch 1,64 \\
      --peer \"hnswlib=python3 scripts/bench-index-peers.py hnswlib\"")]
pub(in crate::cli) struct IndexCommand {
    /// Folder of the vectors
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Index profiles of the config, or backends of plugins, separated by commas [default: the one in force]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    indexes: Vec<String>,
    /// How near two vectors are
    #[arg(long, value_name = "METRIC", default_value = "cosine", value_parser = ["cosine", "dot", "l2"])]
    metric: String,
    /// Use the first N queries only
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    queries: Option<u32>,
    /// Numbers of threads, separated by commas; the indexes are built with the first
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Numbers of queries in one call, separated by commas; latency and filters are measured with the first
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,256", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// The recall at which latency and filtered search are measured
    #[arg(long, value_name = "RECALL", default_value_t = 0.99, value_parser = share)]
    recall: f64,
    /// How often each figure is measured, after a first round that shows the recall
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    #[command(flatten)]
    knobs: Knobs,
    /// Another program to measure in the same run; may be given several times
    #[arg(long, value_name = "NAME=COMMAND", value_parser = peer)]
    peer: Vec<(String, String)>,
}

/// The knobs of the index backends.
#[derive(Clone, Debug, Args)]
pub(super) struct Knobs {
    /// Breadths of a search to try: candidates of a graph, or lists to look into
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..),
        default_values_t = [4, 10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024])]
    pub(super) ef: Vec<u32>,
    /// Numbers of candidates to try that are scored again with the original vectors
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..),
        default_values_t = [10, 20, 40, 80, 160, 320, 640, 1600])]
    pub(super) rescore: Vec<u32>,
    /// An option to change between searches, with the values to try; may be given several times
    #[arg(long, value_name = "NAME=VALUES", value_parser = tuned)]
    pub(super) tune: Vec<(String, Vec<String>)>,
}

impl Knobs {
    fn sweep(mut self) -> Sweep {
        for values in [&mut self.ef, &mut self.rescore] {
            values.sort_unstable();
            values.dedup();
        }
        Sweep { ef: self.ef, rescore: self.rescore, tune: self.tune }
    }

    /// The arguments that give the same.
    pub(super) fn arguments(&self) -> Vec<String> {
        let numbers = |values: &[u32]| values.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let mut arguments =
            vec!["--ef".into(), numbers(&self.ef), "--rescore".into(), numbers(&self.rescore)];
        for (name, values) in &self.tune {
            arguments.extend(["--tune".into(), format!("{name}={}", values.join(","))]);
        }
        arguments
    }
}

pub(super) fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "it is a number from 0 to 1".into())
}

pub(super) fn tuned(text: &str) -> Result<(String, Vec<String>), String> {
    match text.split_once('=') {
        Some((name, values)) if !name.is_empty() && !values.is_empty() => {
            Ok((name.to_owned(), values.split(',').map(str::to_owned).collect()))
        }
        _ => Err("it must be NAME=VALUE,VALUE...".into()),
    }
}

impl IndexCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let metric = metric_named(&self.metric)
            .ok_or_else(|| Failure::Usage(format!("'{}' is no metric", self.metric)))?;
        let mut set = VectorSet::open(&self.data, metric, self.queries.map(|queries| queries as usize))?;
        let mut names = self.indexes;
        if names.is_empty() && self.peer.is_empty() {
            names.push(setup.config.memory.index.profile.clone());
        }
        let own = names.into_iter().map(|name| own(global, &setup, &self.knobs, name));
        let peers = self.peer.into_iter().map(|(name, command)| Ok(foreign(name, command)));
        let request = IndexRequest {
            contestants: own.chain(peers).collect::<Result<_, Failure>>()?,
            threads: self.threads.into_iter().map(usize::from).collect(),
            batches: self.batch.into_iter().map(|batch| batch as usize).collect(),
            recall: self.recall,
            runs: usize::from(self.runs),
            shares: SHARES.to_vec(),
            judged: None,
        };
        warn_of_threads(terminal, &request.threads);
        let machine = Machine::here();
        let folder = tempfile::tempdir().map_err(Failure::io("cannot make a temporary folder"))?;
        let measured = {
            let progress = terminal.progress("measurements");
            let plugins = setup.plugins();
            measure_index(
                &UntilInterrupted,
                &request,
                &mut set,
                &plugins,
                folder.path(),
                &mut |done, of, name| {
                    progress.0.set_length(of as u64);
                    progress.0.set_position(done as u64);
                    progress.0.set_message(name.to_owned());
                },
            )?
        };
        if terminal.json {
            terminal.print_json(&ReportJson::new(&machine, &measured))?;
        } else {
            print_machine(terminal, &machine)?;
            Table { terminal, measured: &measured, recall: request.recall }.print()?;
        }
        Ok(Outcome::Done)
    }
}

/// An index of ours, as a process.
pub(super) fn own(
    global: &Global,
    setup: &Setup,
    knobs: &Knobs,
    name: String,
) -> Result<Contestant, Failure> {
    let mut contestant = super::own(global, setup, ("--index", name), "index-worker")?;
    contestant.worker.extend(knobs.arguments().into_iter().map(Into::into));
    Ok(contestant)
}

struct Table<'a> {
    terminal: &'a Terminal,
    measured: &'a IndexFigures,
    /// The one that latency is of.
    recall: f64,
}

impl Table<'_> {
    fn print(&self) -> Result<(), Failure> {
        let IndexFigures { set, metric, rows, dim, queries, builds, searches, .. } = self.measured;
        self.terminal.print(format_args!("{set}: {rows} x {dim}, {metric}, {queries} queries"))?;
        self.builds(builds)?;
        let mut threads: Vec<usize> = searches.iter().map(|searched| searched.threads).collect();
        threads.dedup();
        for threads in threads {
            let searches: Vec<&Searched> =
                searches.iter().filter(|searched| searched.threads == threads).collect();
            let curves = searches.first().map_or(0, |searched| searched.curves.len());
            (0..curves).try_for_each(|place| self.curves(threads, &searches, place))?;
            self.latencies(threads, &searches)?;
            self.filters(threads, &searches)?;
        }
        Ok(())
    }

    fn heading(
        &self,
        title: std::fmt::Arguments<'_>,
        columns: std::fmt::Arguments<'_>,
    ) -> Result<(), Failure> {
        let width = self.width();
        self.terminal.print(format_args!("\n{BOLD}{title}{BOLD:#}\n  {:<width$} {columns}", ""))
    }

    fn row(&self, name: &str, columns: std::fmt::Arguments<'_>) -> Result<(), Failure> {
        let width = self.width();
        self.terminal.print(format_args!("  {name:<width$} {columns}"))
    }

    fn width(&self) -> usize {
        self.measured.builds.iter().map(|build| build.name.len()).max().unwrap_or(0)
    }

    fn builds(&self, builds: &[Build]) -> Result<(), Failure> {
        let threads = builds.first().map_or(0, |build| build.threads);
        self.heading(
            format_args!("build, {}", view::counted(threads as u64, "thread")),
            format_args!("{:>13} {:>9} {:>14}", "vectors/CPU-s", "seconds", "bytes/vector"),
        )?;
        for Build { name, engine, options, vectors_per_cpu_s, seconds, file_bytes_per_vector, .. } in builds {
            self.row(
                name,
                format_args!(
                    "{vectors_per_cpu_s:>13.0} {seconds:>9.1} {file_bytes_per_vector:>14.0}  {DIM}{engine} {options}{DIM:#}"
                ),
            )?;
        }
        Ok(())
    }

    fn curves(&self, threads: usize, searches: &[&Searched], place: usize) -> Result<(), Failure> {
        let curves = || searches.iter().filter_map(|searched| Some((searched, searched.curves.get(place)?)));
        let Some((_, Curve { batch, at, .. })) = curves().next() else { return Ok(()) };
        let recalls: String = at
            .iter()
            .map(|at| format!(" {:>7}", format!("{:.3}", at.recall).trim_start_matches('0')))
            .collect();
        self.heading(
            format_args!(
                "queries a CPU-second by recall@{}, {}, {}",
                self.measured.k,
                view::counted(threads as u64, "thread"),
                calls_of(*batch)
            ),
            format_args!("{recalls} {:>8} {:>8}", "highest", "spread"),
        )?;
        for (searched, curve) in curves() {
            let speed =
                |speed: Option<f64>| speed.map_or_else(|| "-".to_owned(), |speed| format!("{speed:.0}"));
            let speeds: String =
                curve.at.iter().map(|at| format!(" {:>7}", speed(at.queries_per_cpu_s))).collect();
            let highest = curve.points.iter().map(|point| point.recall).fold(0.0, f64::max);
            let spread = curve.points.iter().map(|point| point.speed.spread).fold(0.0, f64::max);
            self.row(&searched.name, format_args!("{speeds} {highest:>8.4} {:>7.0}%", spread * 100.0))?;
        }
        Ok(())
    }

    fn latencies(&self, threads: usize, searches: &[&Searched]) -> Result<(), Failure> {
        let first = |searched: &Searched| searched.curves.first().map_or(1, |curve| curve.batch);
        self.heading(
            format_args!(
                "the cheapest setting of recall {} or more, {}, {}",
                self.recall,
                view::counted(threads as u64, "thread"),
                calls_of(searches.first().map_or(1, |searched| first(searched)))
            ),
            format_args!(
                "{:>7} {:>9} {:>8} {:>8} {:>8} {:>9} {:>9} {:>13}",
                "recall", "queries/s", "p50 ms", "p95 ms", "p99 ms", "open ms", "first ms", "bytes/vector"
            ),
        )?;
        for searched in searches {
            let Searched { name, open_ms, first_ms, memory_bytes_per_vector, curves, .. } = searched;
            let Some(point) = curves.first().and_then(|curve| curve.points.get(curve.chosen)) else {
                continue;
            };
            let Point { setting, recall, speed, .. } = point;
            let Speed { queries_per_s, p50_ms, p95_ms, p99_ms, .. } = speed;
            let memory = memory_bytes_per_vector.map_or_else(String::new, |bytes| format!("{bytes:.0}"));
            self.row(
                name,
                format_args!(
                    "{recall:>7.4} {queries_per_s:>9.0} {p50_ms:>8.3} {p95_ms:>8.3} {p99_ms:>8.3} {open_ms:>9.1} {first_ms:>9.2} {memory:>13}  {DIM}{}{DIM:#}",
                    knobs_of(setting)
                ),
            )?;
        }
        Ok(())
    }

    fn filters(&self, threads: usize, searches: &[&Searched]) -> Result<(), Failure> {
        let Some(shown) = searches.iter().find(|searched| !searched.filtered.is_empty()) else {
            return Ok(());
        };
        let columns: String = shown
            .filtered
            .iter()
            .map(|filtered| format!(" {:>20}", format!("{}%", filtered.share * 100.0)))
            .collect();
        self.heading(
            format_args!(
                "the same where a filter lets a part of the vectors through, {}: queries a CPU-second (recall)",
                view::counted(threads as u64, "thread")
            ),
            format_args!("{columns}"),
        )?;
        for searched in searches.iter().filter(|searched| !searched.filtered.is_empty()) {
            let cell = |Filtered { recall, speed, .. }: &Filtered| {
                format!(" {:>20}", format!("{:.0} ({recall:.4})", speed.queries_per_cpu_s))
            };
            let cells: String = searched.filtered.iter().map(cell).collect();
            self.row(&searched.name, format_args!("{cells}"))?;
        }
        Ok(())
    }
}

fn calls_of(batch: usize) -> String {
    match batch {
        1 => "one query a call".to_owned(),
        batch => format!("{batch} queries a call"),
    }
}

pub(super) fn knobs_of(setting: &Setting) -> String {
    setting.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
}

/// Build and search an index on request: what `bench index` measures
#[derive(Debug, Args)]
pub(in crate::cli) struct WorkerCommand {
    #[command(flatten)]
    knobs: Knobs,
}

impl WorkerCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let mut setup = setup(global, terminal)?;
        let open = |threads| {
            setup.config.plugins.threads = threads;
            IndexBackend::open(&setup)
        };
        let sweep = self.knobs.sweep();
        serve_index(&UntilInterrupted, &sweep, open, receive(), |reply| terminal.print_json(reply))?;
        Ok(Outcome::Done)
    }
}
