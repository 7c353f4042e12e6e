use super::{ReportJson, Subject, cores, foreign, peer, print_machine, receive, warn_of_threads};
use crate::{
    bench::{
        Backend, BenchTexts, Contestant, Latency, Machine, Rate, Throughput, ThroughputRequest,
        measure_throughput, serve,
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
use clap::{Args, ValueEnum};
use std::{ffi::OsString, path::PathBuf};

/// Measure how fast embedding backends are: texts a second, latency, start to answer
#[derive(Debug, Args)]
#[command(after_help = "\
Each backend runs in a process of its own, bound to as many cores as it has threads, without cache.
All are measured in turn, run by run, on the same texts; a figure is the median of its runs. The
cosine is the least to the vectors of the first one with the same model.

A peer is any program that speaks the protocol of the workers (lines of JSON):
scripts/bench-embed-peers.py runs onnxruntime and sentence-transformers.

Examples:
  magray bench embed --texts my-notes.txt
  magray bench embed --data data --backends cpu,onnx --threads 1,2 --batch 8,32 --json
  magray bench embed --data data --model all-MiniLM-L6-v2 --shape mixed \\
      --peer \"onnxruntime=python3 scripts/bench-embed-peers.py onnx-fp32 models/all-MiniLM-L6-v2\"")]
pub(in crate::cli) struct EmbedCommand {
    #[command(flatten)]
    subject: Subject,
    /// Folder of data sets to take texts from, as for `bench quality`
    #[arg(long, value_name = "DIR", required_unless_present = "texts")]
    data: Option<PathBuf>,
    /// File with one text a line, instead
    #[arg(long, value_name = "FILE", conflicts_with = "data")]
    texts: Option<PathBuf>,
    /// Kinds of texts of the data sets: sentences, documents, or both as they come in real stores
    #[arg(long, value_name = "KINDS", value_delimiter = ',', value_parser = ["short", "mixed", "long"], conflicts_with = "texts")]
    shape: Vec<String>,
    /// How many texts of each kind [default: 512 short, 256 mixed, 128 long; all lines of a file]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(4..))]
    count: Option<u32>,
    /// Numbers of threads, separated by commas [default: one a core]
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Vec<u16>,
    /// Numbers of texts in one call, separated by commas
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "32", value_parser = clap::value_parser!(u32).range(1..))]
    batch: Vec<u32>,
    /// Whether texts come in the order of their length
    #[arg(long, default_value = "both")]
    order: Order,
    /// How often each figure is measured
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// How often one query is embedded, for its latency
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u16).range(1..))]
    queries: u16,
    /// Another program to measure in the same run; may be given several times
    #[arg(long, value_name = "NAME=COMMAND", value_parser = peer)]
    peer: Vec<(String, String)>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Order {
    Sorted,
    Unsorted,
    Both,
}

impl EmbedCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let count = self.count.map(|count| count as usize);
        let mut texts = match (&self.texts, &self.data) {
            (Some(file), _) => BenchTexts::from_lines(file, count)?,
            (None, Some(dir)) => BenchTexts::from_data(dir, count)?,
            (None, None) => return Err(Failure::Usage("give --data or --texts".into())),
        };
        if !self.shape.is_empty() {
            texts.retain(&self.shape);
        }
        let (setup, backends) = self.subject.resolve(global, terminal)?;
        // A backend takes as large batches as it is configured to, so it is told of the largest.
        let largest = self.batch.iter().max().copied().unwrap_or(1).min(4096);
        let env: [(OsString, OsString); 2] = [
            ("MAGRAY_AI__EMBEDDING__BATCH_SIZE".into(), largest.to_string().into()),
            ("MAGRAY_AI__EMBEDDING__MODEL_NAME".into(), setup.config.ai.embedding.model_name.clone().into()),
        ];
        let backends = backends.into_iter().map(|name| own(global, &setup, &env, name));
        let peers = self.peer.into_iter().map(|(name, command)| Ok(foreign(name, command)));
        let request = ThroughputRequest {
            contestants: backends.chain(peers).collect::<Result<_, Failure>>()?,
            texts,
            threads: if self.threads.is_empty() {
                vec![cores()]
            } else {
                self.threads.into_iter().map(usize::from).collect()
            },
            batches: self.batch.into_iter().map(|batch| batch as usize).collect(),
            sorted: match self.order {
                Order::Sorted => vec![true],
                Order::Unsorted => vec![false],
                Order::Both => vec![false, true],
            },
            runs: usize::from(self.runs),
            queries: usize::from(self.queries),
        };
        warn_of_threads(terminal, &request.threads);
        let machine = Machine::here();
        let folder = tempfile::tempdir().map_err(Failure::io("cannot make a temporary folder"))?;
        let measured = {
            let progress = terminal.progress("measurements");
            progress.0.set_length(request.steps() as u64);
            measure_throughput(&UntilInterrupted, &request, folder.path(), &setup.data_dir, &mut |name| {
                progress.0.inc(1);
                progress.0.set_message(name.to_owned());
            })?
        };
        if terminal.json {
            terminal.print_json(&ReportJson::new(&machine, &measured))?;
        } else {
            print(terminal, &machine, &measured)?;
        }
        Ok(Outcome::Done)
    }
}

/// A backend of ours, as a process.
pub(super) fn own(
    global: &Global,
    setup: &Setup,
    env: &[(OsString, OsString)],
    name: String,
) -> Result<Contestant, Failure> {
    let contestant = super::own(global, setup, ("--backend", name), "worker")?;
    Ok(Contestant { env: env.to_vec(), ..contestant })
}

fn print(terminal: &Terminal, machine: &Machine, measured: &Throughput) -> Result<(), Failure> {
    print_machine(terminal, machine)?;
    let names = measured.rates.iter().map(|rate| rate.name.len()).max().unwrap_or(0).max(7);
    let mut last = None;
    for rate in &measured.rates {
        let Rate {
            name,
            ran,
            threads,
            shape,
            sorted,
            batch,
            texts,
            tokens,
            texts_per_s,
            tokens_per_s,
            min_cosine,
            spread,
        } = rate;
        let what = (threads, shape, sorted, batch);
        if last != Some(what) {
            last = Some(what);
            terminal.print(format_args!(
                "\n{BOLD}{shape}, {}, batch {batch}, {}{BOLD:#}  {DIM}{texts} texts, {:.0} tokens each{DIM:#}\n  {:<names$} {:>10} {:>11} {:>7} {:>8}",
                if *sorted { "sorted" } else { "unsorted" },
                view::counted(*threads as u64, "thread"),
                *tokens as f64 / *texts as f64,
                "",
                "texts/s",
                "tokens/s",
                "spread",
                "cosine",
            ))?;
        }
        let cosine = min_cosine.map_or_else(String::new, |cosine| format!("{cosine:.5}"));
        terminal.print(format_args!(
            "  {name:<names$} {texts_per_s:>10.1} {tokens_per_s:>11.0} {:>6.1}% {cosine:>8}  {DIM}{} on {} ({}, {}){DIM:#}",
            spread * 100.0,
            ran.model,
            ran.device,
            ran.engine,
            ran.precision
        ))?;
    }
    terminal.print(format_args!(
        "\n{BOLD}one query, in ms{BOLD:#}\n  {:<names$} {:>7} {:>8} {:>8} {:>8} {:>16}",
        "", "threads", "p50", "p95", "p99", "start to answer"
    ))?;
    for Latency { name, threads, p50_ms, p95_ms, p99_ms, start_to_answer_ms, .. } in &measured.latencies {
        let start = start_to_answer_ms.map_or_else(String::new, |ms| format!("{ms:.1}"));
        terminal.print(format_args!(
            "  {name:<names$} {threads:>7} {p50_ms:>8.3} {p95_ms:>8.3} {p99_ms:>8.3} {start:>16}"
        ))?;
    }
    Ok(())
}

/// Embed on request: what `bench embed` measures
#[derive(Debug, Args)]
pub(in crate::cli) struct WorkerCommand {}

impl WorkerCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let mut setup = setup(global, terminal)?;
        let open = |threads| {
            setup.config.plugins.threads = threads;
            Backend::open(&setup, &setup.plugins(), &setup.config.ai.embedding.profile)
        };
        serve(&UntilInterrupted, open, receive(), |reply| terminal.print_json(reply))?;
        Ok(Outcome::Done)
    }
}
