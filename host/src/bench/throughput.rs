//! How fast vectors come.
use super::{
    BenchError, BenchTexts,
    quality::agreement,
    worker::{Ready, Request, Worker, pin},
};
use magray_plugin_api::CallContext;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct ThroughputRequest {
    /// Who takes part.
    pub contestants: Vec<Contestant>,
    /// The texts.
    pub texts: BenchTexts,
    /// Numbers of threads.
    pub threads: Vec<usize>,
    /// Numbers of texts in one call.
    pub batches: Vec<usize>,
    /// Whether texts come in the order of their length; one or both.
    pub sorted: Vec<bool>,
    /// How often each is measured.
    pub runs: usize,
    /// How often one query is embedded, for its latency.
    pub queries: usize,
}

/// One whose speed is measured.
#[derive(Clone, Debug)]
pub struct Contestant {
    /// Name in the table.
    pub name: String,
    /// The worker's program with its arguments.
    pub worker: Vec<OsString>,
    /// For a backend of this program: the program with the arguments that a command of it follows.
    pub program: Option<Vec<OsString>>,
    /// What both find in their environment besides.
    pub env: Vec<(OsString, OsString)>,
}

/// What was measured.
#[derive(Clone, Debug, Default, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Throughput {
    pub rates: Vec<Rate>,
    pub latencies: Vec<Latency>,
}

/// Texts a second of one contestant.
#[derive(Clone, Debug, Serialize)]
pub struct Rate {
    /// Who.
    pub name: String,
    /// What it ran.
    #[serde(flatten)]
    pub ran: Ran,
    /// Cores and threads that it had.
    pub threads: usize,
    /// The kind of texts.
    pub shape: String,
    /// Whether they came in the order of their length.
    pub sorted: bool,
    /// Texts in one call.
    pub batch: usize,
    /// Texts of the run.
    pub texts: usize,
    /// Tokens of the run.
    pub tokens: u64,
    /// Median over the runs.
    pub texts_per_s: f64,
    /// The same in tokens.
    pub tokens_per_s: f64,
    /// The least cosine to the vectors of the first contestant with this model, over the first texts; none for
    /// that one itself.
    pub min_cosine: Option<f32>,
    /// From the slowest run to the fastest, as a share of the median.
    pub spread: f64,
}

/// Time that one query takes.
#[derive(Clone, Debug, Serialize)]
pub struct Latency {
    /// Who.
    pub name: String,
    /// What it ran.
    #[serde(flatten)]
    pub ran: Ran,
    /// Cores and threads that it had.
    pub threads: usize,
    /// Milliseconds with the model loaded and warm: median, 95th and 99th percentile.
    pub p50_ms: f64,
    #[expect(missing_docs, reason = "as above")]
    pub p95_ms: f64,
    #[expect(missing_docs, reason = "as above")]
    pub p99_ms: f64,
    /// Milliseconds from the start of `magray search`, on a store of one record, to its end: the median. None for
    /// other programs.
    pub start_to_answer_ms: Option<f64>,
}

/// What a contestant ran.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Ran {
    pub model: String,
    pub device: String,
    pub engine: String,
    pub precision: String,
}

impl From<&Ready> for Ran {
    fn from(ready: &Ready) -> Self {
        let Ready { model, device, engine, precision, .. } = ready.clone();
        Self { model, device, engine, precision }
    }
}

impl ThroughputRequest {
    /// How many measurements it is, for a progress bar.
    pub fn steps(&self) -> usize {
        let rates = self.texts.shapes().len() * self.sorted.len() * self.batches.len() * (self.runs + 1);
        self.threads.len() * self.contestants.len() * (rates + 1)
    }
}

/// A query as people type it.
const QUERY: &str = "what happens when a plugin crashes";
/// Calls before those that are timed.
pub(super) const WARM_UP: usize = 20;
/// One-shot searches of which the median is taken.
const SEARCHES: usize = 9;

/// Measures all contestants in turn, run by run, so that other work on the machine hits them alike. `done` is told
/// after each measurement whose turn it was. `folder` is an empty one for files of the run, `data_dir` that of the
/// user, with models and runtime libraries.
///
/// # Errors
/// [`BenchError`] where any of them fails: a table that lacks one says nothing of it.
pub fn measure_throughput(
    cx: &dyn CallContext,
    request: &ThroughputRequest,
    folder: &Path,
    data_dir: &Path,
    done: &mut dyn FnMut(&str),
) -> Result<Throughput, BenchError> {
    let texts = folder.join("texts.jsonl");
    request.texts.write(&texts).map_err(|error| write_failed(&texts, &error))?;
    let mut measured = Throughput::default();
    for &threads in &request.threads {
        let start = |contestant| Running::start(contestant, threads, &texts);
        let mut running = request.contestants.iter().map(start).collect::<Result<Vec<_>, _>>()?;
        for shape in request.texts.shapes() {
            let cosines = interruptible(cx, parity(&mut running, &shape))?;
            for &sorted in &request.sorted {
                for &batch in &request.batches {
                    let run = Request::Run { shape: shape.clone(), sorted, batch };
                    let seconds = seconds_of_runs(cx, &mut running, &run, request.runs, done)?;
                    let rows = running.iter().zip(seconds).zip(&cosines);
                    measured.rates.extend(rows.map(|((running, seconds), &min_cosine)| {
                        let count = request.texts.of(&shape).len();
                        running.rate(&shape, sorted, batch, count, seconds, min_cosine)
                    }));
                }
            }
        }
        for (place, running) in running.iter_mut().enumerate() {
            let home = folder.join(format!("{place}-{threads}"));
            measured.latencies.push(interruptible(cx, running.latency(request.queries, &home, data_dir))?);
            done(&running.contestant.name);
        }
    }
    Ok(measured)
}

/// The seconds of each run of each contestant, all in turn.
fn seconds_of_runs(
    cx: &dyn CallContext,
    running: &mut [Running<'_>],
    run: &Request,
    runs: usize,
    done: &mut dyn FnMut(&str),
) -> Result<Vec<Vec<f64>>, BenchError> {
    let mut seconds = vec![Vec::new(); running.len()];
    for round in 0..=runs {
        for (running, seconds) in running.iter_mut().zip(&mut seconds) {
            let passes = interruptible(cx, running.worker.seconds(run))?;
            // The first round warms up.
            if round > 0 {
                seconds.push(quantile(passes, 0.5));
            }
            done(&running.contestant.name);
        }
    }
    Ok(seconds)
}

/// A contestant with its worker.
struct Running<'a> {
    contestant: &'a Contestant,
    threads: usize,
    worker: Worker,
    ready: Ready,
}

impl<'a> Running<'a> {
    fn start(contestant: &'a Contestant, threads: usize, texts: &Path) -> Result<Self, BenchError> {
        let program = command(&contestant.worker, &contestant.env);
        let mut worker = Worker::spawn(&contestant.name, program, threads)?;
        let ready = worker.start(threads, texts.to_owned())?;
        Ok(Self { contestant, threads, worker, ready })
    }

    fn rate(
        &self,
        shape: &str,
        sorted: bool,
        batch: usize,
        texts: usize,
        seconds: Vec<f64>,
        min_cosine: Option<f32>,
    ) -> Rate {
        let spread = quantile(seconds.clone(), 1.0) - quantile(seconds.clone(), 0.0);
        let median = quantile(seconds, 0.5);
        let tokens = self.ready.tokens.get(shape).copied().unwrap_or(0);
        Rate {
            name: self.contestant.name.clone(),
            ran: (&self.ready).into(),
            threads: self.threads,
            shape: shape.to_owned(),
            sorted,
            batch: batch.min(self.ready.max_batch),
            texts,
            tokens,
            texts_per_s: texts as f64 / median,
            tokens_per_s: tokens as f64 / median,
            min_cosine,
            spread: spread / median,
        }
    }

    fn latency(&mut self, queries: usize, home: &Path, data_dir: &Path) -> Result<Latency, BenchError> {
        let ask = |times| Request::Latency { text: QUERY.to_owned(), times };
        self.worker.seconds(&ask(WARM_UP))?;
        let seconds = self.worker.seconds(&ask(queries))?;
        let ms = |share: f64| quantile(seconds.clone(), share) * 1000.0;
        let program = self.contestant.program.as_deref();
        let searched =
            program.map(|program| start_to_answer(self.contestant, program, home, data_dir, self.threads));
        Ok(Latency {
            name: self.contestant.name.clone(),
            ran: (&self.ready).into(),
            threads: self.threads,
            p50_ms: ms(0.5),
            p95_ms: ms(0.95),
            p99_ms: ms(0.99),
            start_to_answer_ms: searched.transpose()?,
        })
    }
}

/// Texts by which vectors are compared.
const COMPARED: usize = 32;

/// For each contestant the least cosine of its vectors to those of the first one with the same model.
fn parity(running: &mut [Running<'_>], shape: &str) -> Result<Vec<Option<f32>>, BenchError> {
    let mut first: HashMap<String, Vec<Vec<f32>>> = HashMap::new();
    let compared = running.iter_mut().map(|Running { worker, ready, .. }| {
        let vectors = worker.vectors(shape, COMPARED)?;
        let Some(first) = first.get(&ready.model) else {
            first.insert(ready.model.clone(), vectors);
            return Ok(None);
        };
        let cosines = first.iter().zip(&vectors).map(|(a, b)| agreement(a, b));
        Ok(Some(cosines.fold(1.0, f32::min)))
    });
    compared.collect()
}

/// The median time of `magray search`, from the start of the process to its end, on a store of one record.
fn start_to_answer(
    contestant: &Contestant,
    program: &[OsString],
    home: &Path,
    data_dir: &Path,
    cores: usize,
) -> Result<f64, BenchError> {
    fs::create_dir_all(home).map_err(|error| write_failed(home, &error))?;
    link_models(data_dir, home)?;
    let run = |args: &[&str]| {
        let mut command = command(program, &contestant.env);
        command.arg("--data-dir").arg(home).args(args);
        // Else only the first search would embed its query.
        command.env("MAGRAY_MEMORY__CACHE__DISK", "false");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        pin(&mut command, cores);
        let start = Instant::now();
        let fault = |fault: String| BenchError::Worker { name: contestant.name.clone(), fault };
        let output = command.output().map_err(|error| fault(error.to_string()))?;
        match output.status.success() {
            true => Ok(start.elapsed().as_secs_f64() * 1000.0),
            false => Err(fault(format!(
                "`{}` failed: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim_end()
            ))),
        }
    };
    run(&["--quiet", "add", "Plugins that crash are refused"])?;
    let times = (0..SEARCHES).map(|_| run(&["--quiet", "search", QUERY])).collect::<Result<Vec<_>, _>>()?;
    Ok(quantile(times, 0.5))
}

pub(super) fn command(line: &[OsString], env: &[(OsString, OsString)]) -> Command {
    let mut command = Command::new(line.first().map_or("".as_ref(), OsString::as_os_str));
    command.args(line.iter().skip(1)).envs(env.iter().map(|(name, value)| (name, value)));
    command
}

/// Makes the models and runtime libraries of a data folder those of another one too.
///
/// # Errors
/// [`BenchError::Data`].
pub fn link_models(data_dir: &Path, home: &Path) -> Result<(), BenchError> {
    for name in ["models", "runtime"] {
        let (folder, link) = (data_dir.join(name), home.join(name));
        if folder.is_dir() {
            link_dir(&folder, &link).map_err(|error| write_failed(&link, &error))?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn link_dir(to: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(fs::canonicalize(to)?, link)
}

#[cfg(windows)]
fn link_dir(to: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_dir(fs::canonicalize(to)?, link)
}

fn write_failed(path: &Path, error: &io::Error) -> BenchError {
    BenchError::Data { path: PathBuf::from(path), fault: error.to_string() }
}

/// A worker hears Ctrl-C too, and its failure is then ours to explain.
pub(super) fn interruptible<T>(cx: &dyn CallContext, result: Result<T, BenchError>) -> Result<T, BenchError> {
    if cx.is_cancelled() { Err(BenchError::Interrupted) } else { result }
}

/// The value below which a share of the values lies, nearest rank.
pub(super) fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values[rank.clamp(1, values.len()) - 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_of_the_nearest_rank() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        assert_eq!(
            [0.5, 0.95, 0.99, 1.0].map(|share| quantile(values.clone(), share)),
            [50.0, 95.0, 99.0, 100.0]
        );
        assert_eq!(quantile(vec![3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(vec![7.0], 0.01), 7.0);
    }
}
