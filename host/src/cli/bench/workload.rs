use super::{ReportJson, cores, matrix::own_records, print_machine};
use crate::{
    bench::{
        BenchTexts, Machine, MatrixSet, Operations, Quantiles, Sla, Verdict, Workload, WorkloadRequest,
        link_models, run_workload,
    },
    cli::{
        Failure, Outcome,
        args::Global,
        setup,
        terminal::{BOLD, DIM, GREEN, RED, Terminal, UntilInterrupted},
        view,
    },
    engine::Engine,
};
use clap::Args;
use indicatif::{HumanBytes, HumanDuration};
use serde::Serialize;
use std::{path::PathBuf, time::Duration};

/// Put a steady load on the whole system and judge it
#[derive(Debug, Args)]
#[command(after_help = "\
The load is an open loop: each query and each call that adds has a time at which it is due, and its latency
counts from then, whatever held it up. It goes through the engine itself, with the backends of the
configuration, in a data folder that is made for it and removed. Queries are the beginnings of texts, asked
by Zipf's law. Each size of a call that adds has an equal part of the time.

Fails where a limit is missed: search p95 20 ms, p99 50 ms, 500 items/s, 85% of the queries' vectors from
the cache, 0.1% of errors.

Examples:
  magray bench workload
  magray bench workload --texts notes.txt --seconds 30 --searches 200
  magray --index native bench workload --data data/scifact --batch 1,100 --json")]
pub(in crate::cli) struct WorkloadCommand {
    #[command(flatten)]
    load: LoadArgs,
    /// Seconds of the load
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u32).range(1..))]
    seconds: u32,
    /// Records in one call that adds, separated by commas
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "1,10,50,100", value_parser = clap::value_parser!(u32).range(1..=10_000))]
    batch: Vec<u32>,
}

/// Keep a load on the whole system for long and see whether memory grows
#[derive(Debug, Args)]
#[command(after_help = "\
As `bench workload`, but as much is forgotten as is added, so that what is stored stays as much, and what is
judged is the growth of memory, by the median of the slopes between all pairs of looks at it (Theil and Sen),
and errors. The cache of embeddings fills first, until it has twice the records' texts: give it minutes.

Examples:
  magray bench soak --minutes 60
  magray bench soak --minutes 5 --texts notes.txt --max-growth 1 --json")]
pub(in crate::cli) struct SoakCommand {
    #[command(flatten)]
    load: LoadArgs,
    /// Minutes of the load
    #[arg(long, value_name = "N", default_value_t = 60.0, value_parser = positive)]
    minutes: f64,
    /// Growth of memory that is a failure, in MiB an hour
    #[arg(long, value_name = "MIB", default_value_t = 64.0, value_parser = positive)]
    max_growth: f64,
}

/// What both loads have.
#[derive(Debug, Args)]
struct LoadArgs {
    /// File with one text a line, or JSON objects with a `text` [default: the records of the data folder]
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    texts: Option<PathBuf>,
    /// Folder of a retrieval set in BEIR's layout to take texts from
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Records that are added in a second
    #[arg(long, value_name = "RATE", default_value_t = 100.0, value_parser = rate)]
    inserts: f64,
    /// Queries in a second
    #[arg(long, value_name = "RATE", default_value_t = 1000.0, value_parser = rate)]
    searches: f64,
    /// Records that are stored before
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    records: u32,
    /// Different queries
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    queries: u32,
    /// Seconds of the load before anything counts
    #[arg(long, value_name = "N", default_value_t = 5)]
    warm_up: u32,
    /// Threads that search [default: 8 a core]; a quarter as many add
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|rate| (0.0..=1e6).contains(rate));
    rate.ok_or_else(|| "it is a number from 0 to 1000000".into())
}

fn positive(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|number: &f64| *number > 0.0 && number.is_finite());
    number.ok_or_else(|| "it is a number above 0".into())
}

/// The report as JSON.
#[derive(Serialize)]
struct LoadJson<'a> {
    #[serde(flatten)]
    load: &'a Workload,
    backend: &'a str,
    index: &'a str,
    cache: &'a str,
    verdicts: &'a [Verdict],
}

impl WorkloadCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let batches = self.batch.iter().map(|&batch| batch as usize).collect();
        let time = Duration::from_secs(u64::from(self.seconds));
        self.load.run(global, terminal, time, batches, None)
    }
}

impl SoakCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let time = Duration::from_secs_f64((self.minutes * 60.0).min(1e9));
        self.load.run(global, terminal, time, vec![10], Some(self.max_growth))
    }
}

impl LoadArgs {
    /// A load of which the latency is judged, or with `max_growth` the memory.
    fn run(
        self,
        global: &Global,
        terminal: &Terminal,
        time: Duration,
        batches: Vec<usize>,
        max_growth: Option<f64>,
    ) -> Result<Outcome, Failure> {
        let mut setup = setup(global, terminal)?;
        let texts = match (&self.texts, &self.data) {
            (Some(file), _) => BenchTexts::from_lines(file, None)?.into_texts(),
            (None, Some(dir)) => MatrixSet::from_data(dir, None)?.texts(),
            (None, None) => own_records(global, terminal, &setup, Some(1))?.texts(),
        };
        let request = WorkloadRequest {
            time,
            warm_up: Duration::from_secs(u64::from(self.warm_up)),
            inserts: self.inserts,
            searches: self.searches,
            batches,
            k: 10,
            threads: self.threads.map_or(8 * cores(), usize::from),
            records: self.records as usize,
            steady: max_growth.is_some(),
            texts,
            queries: self.queries as usize,
        };
        let folder = tempfile::tempdir().map_err(Failure::io("cannot make a temporary folder"))?;
        link_models(&setup.data_dir, folder.path())?;
        // Plugins of the data folder are found all the same.
        setup.plugin_dirs = setup.plugin_folders();
        setup.data_dir = folder.path().to_owned();
        let machine = Machine::here();
        let engine = std::sync::Arc::new(Engine::open(setup)?);
        let load = {
            let progress = terminal.progress("seconds");
            run_workload(&UntilInterrupted, &engine, &request, &|second, of| {
                progress.0.set_length(of);
                progress.0.set_position(second);
            })?
        };
        let mut verdicts = Sla::default().judge(&load);
        if let Some(limit) = max_growth {
            let measured = load.memory.bytes_per_s * 3600.0 / f64::from(1 << 20);
            verdicts.retain(|verdict| verdict.what == "error rate");
            verdicts.push(Verdict { what: "growth, MiB an hour", measured, limit, met: measured < limit });
        }
        let config = &engine.setup().config;
        let json = LoadJson {
            load: &load,
            backend: &config.ai.embedding.profile,
            index: &config.memory.index.profile,
            cache: &config.memory.cache.profile,
            verdicts: &verdicts,
        };
        if terminal.json {
            terminal.print_json(&ReportJson::new(&machine, json))?;
        } else {
            print_machine(terminal, &machine)?;
            print(terminal, &json)?;
        }
        let missed = verdicts.iter().filter(|verdict| !verdict.met).count();
        if missed > 0 {
            let limits = view::counted(missed as u64, "limit");
            return Err(Failure::Partly(format!("{limits} missed")));
        }
        Ok(Outcome::Done)
    }
}

pub(super) fn heading(terminal: &Terminal) -> Result<(), Failure> {
    terminal.print(format_args!(
        "\n{BOLD}{:<22} {:>9} {:>9} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}{BOLD:#}",
        "", "calls", "a second", "failed", "mean ms", "p50", "p95", "p99", "p99.9", "max"
    ))
}

pub(super) fn line(
    terminal: &Terminal,
    name: &str,
    of: &Operations,
    times: &Quantiles,
) -> Result<(), Failure> {
    let Operations { calls, failed, per_s, .. } = of;
    let Quantiles { mean, p50, p95, p99, p999, max, .. } = times;
    terminal.print(format_args!(
        "{name:<22} {calls:>9} {per_s:>9.1} {failed:>7} {mean:>9.3} {p50:>9.3} {p95:>9.3} {p99:>9.3} {p999:>9.3} {max:>9.3}"
    ))
}

fn print(terminal: &Terminal, of: &LoadJson<'_>) -> Result<(), Failure> {
    let LoadJson { load, backend, index, cache, verdicts } = of;
    terminal.print(format_args!(
        "backend {backend}, index {index}, cache {cache}; {} at the end; {} of load",
        view::counted(load.records, "record"),
        HumanDuration(Duration::from_secs_f64(load.seconds))
    ))?;
    heading(terminal)?;
    line(terminal, "search, from when due", &load.search, &load.search.latency)?;
    line(terminal, "  from its beginning", &load.search, &load.search.service)?;
    for inserts in &load.inserts {
        let name = format!("add {}, from when due", inserts.batch);
        line(terminal, &name, &inserts.calls, &inserts.calls.latency)?;
    }
    let memory = &load.memory;
    let used = load
        .memory_used
        .map_or_else(String::new, |used| format!("; {:.0}% of the machine's in use", used * 100.0));
    terminal.print(format_args!(
        "\nmemory: {} at first, {} at the end, {} at most, {:+.2} MiB an hour{used}",
        HumanBytes(memory.start_bytes),
        HumanBytes(memory.end_bytes),
        HumanBytes(memory.peak_bytes),
        memory.bytes_per_s * 3600.0 / f64::from(1 << 20)
    ))?;
    if let Some(error) = &load.first_error {
        terminal.print(format_args!("the first error: {error}"))?;
    }
    terminal.print(format_args!(""))?;
    for Verdict { what, measured, limit, met } in *verdicts {
        let (style, word) = if *met { (GREEN, "met") } else { (RED, "missed") };
        terminal.print(format_args!(
            "{what:<22} {measured:>10.4}  {DIM}limit {limit}{DIM:#}  {style}{word}{style:#}"
        ))?;
    }
    Ok(())
}
