//! How fast vectors come.
use super::{
    BenchError, BenchTexts,
    quality::cosine,
    worker::{Ready, Request, Worker, pin},
};
use magray_plugin_api::CallContext;
use serde::Serialize;
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
#[derive(Clone, Debug, Serialize)]
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
const WARM_UP: usize = 20;
/// One-shot searches of which the median is taken.
const SEARCHES: usize = 9;

/// Measures all contestants in turn, run by run, so that other work on the machine hits them alike. `done` is told
/// after each measurement whose turn it was. `folder` is an empty one for files of the run, `models` the folder
/// of the user's models.
///
/// # Errors
/// [`BenchError`] where any of them fails: a table that lacks one says nothing of it.
pub fn measure_throughput(
    cx: &dyn CallContext,
    request: &ThroughputRequest,
    folder: &Path,
    models: &Path,
    done: &mut dyn FnMut(&str),
) -> Result<Throughput, BenchError> {
    let texts = folder.join("texts.jsonl");
    request.texts.write(&texts).map_err(|error| write_failed(&texts, &error))?;
    let mut measured = Throughput::default();
    for &threads in &request.threads {
        let mut workers = Vec::new();
        for contestant in &request.contestants {
            let mut worker =
                Worker::spawn(&contestant.name, command(&contestant.worker, &contestant.env), threads)?;
            let ready = worker.start(threads, texts.clone())?;
            workers.push((contestant, worker, ready));
        }
        for shape in request.texts.shapes() {
            let count = request.texts.of(&shape).len();
            let cosines = interruptible(cx, parity(&mut workers, &shape))?;
            for (&sorted, &batch) in request
                .sorted
                .iter()
                .flat_map(|sorted| request.batches.iter().map(move |batch| (sorted, batch)))
            {
                let run = Request::Run { shape: shape.clone(), sorted, batch };
                let mut seconds = vec![Vec::new(); workers.len()];
                for round in 0..=request.runs {
                    for ((contestant, worker, _), seconds) in workers.iter_mut().zip(&mut seconds) {
                        let passes = interruptible(cx, worker.seconds(&run))?;
                        // The first round warms up.
                        if round > 0 {
                            seconds.push(quantile(passes, 0.5));
                        }
                        done(&contestant.name);
                    }
                }
                for (((contestant, _, ready), mut seconds), &min_cosine) in
                    workers.iter().zip(seconds).zip(&cosines)
                {
                    seconds.sort_by(f64::total_cmp);
                    let (fastest, slowest) = (seconds[0], seconds[seconds.len() - 1]);
                    let median = quantile(seconds, 0.5);
                    let tokens = ready.tokens.get(&shape).copied().unwrap_or(0);
                    measured.rates.push(Rate {
                        name: contestant.name.clone(),
                        ran: ready.into(),
                        threads,
                        shape: shape.clone(),
                        sorted,
                        batch: batch.min(ready.max_batch),
                        texts: count,
                        tokens,
                        texts_per_s: count as f64 / median,
                        tokens_per_s: tokens as f64 / median,
                        min_cosine,
                        spread: (slowest - fastest) / median,
                    });
                }
            }
        }
        for (contestant, worker, ready) in &mut workers {
            let ask = |times: usize| Request::Latency { text: QUERY.to_owned(), times };
            interruptible(cx, worker.seconds(&ask(WARM_UP)))?;
            let seconds = interruptible(cx, worker.seconds(&ask(request.queries)))?;
            let ms = |share: f64| quantile(seconds.clone(), share) * 1000.0;
            let start_to_answer_ms = match &contestant.program {
                Some(program) => {
                    let home = folder.join(format!("{}-{threads}", measured.latencies.len()));
                    Some(interruptible(cx, start_to_answer(contestant, program, &home, models, threads))?)
                }
                None => None,
            };
            measured.latencies.push(Latency {
                name: contestant.name.clone(),
                ran: (&*ready).into(),
                threads,
                p50_ms: ms(0.5),
                p95_ms: ms(0.95),
                p99_ms: ms(0.99),
                start_to_answer_ms,
            });
            done(&contestant.name);
        }
    }
    Ok(measured)
}

/// Texts by which vectors are compared.
const COMPARED: usize = 32;

/// For each worker the least cosine of its vectors to those of the first worker with the same model.
fn parity(workers: &mut [(&Contestant, Worker, Ready)], shape: &str) -> Result<Vec<Option<f32>>, BenchError> {
    let mut first: HashMap<String, Vec<Vec<f32>>> = HashMap::new();
    let compared = workers.iter_mut().map(|(_, worker, ready)| {
        let vectors = worker.vectors(shape, COMPARED)?;
        let Some(first) = first.get(&ready.model) else {
            first.insert(ready.model.clone(), vectors);
            return Ok(None);
        };
        let cosines = first.iter().zip(&vectors).map(|(a, b)| cosine(a, b));
        Ok(Some(cosines.fold(1.0, f32::min)))
    });
    compared.collect()
}

/// The median time of `magray search`, from the start of the process to its end, on a store of one record.
fn start_to_answer(
    contestant: &Contestant,
    program: &[OsString],
    home: &Path,
    models: &Path,
    cores: usize,
) -> Result<f64, BenchError> {
    fs::create_dir_all(home).map_err(|error| write_failed(home, &error))?;
    if models.is_dir() {
        let link = home.join("models");
        link_dir(models, &link).map_err(|error| write_failed(&link, &error))?;
    }
    let run = |args: &[&str]| {
        let mut command = command(program, &contestant.env);
        command.arg("--data-dir").arg(home).args(args);
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

fn command(line: &[OsString], env: &[(OsString, OsString)]) -> Command {
    let mut command = Command::new(line.first().map_or("".as_ref(), OsString::as_os_str));
    command.args(line.iter().skip(1)).envs(env.iter().map(|(name, value)| (name, value)));
    command
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
fn interruptible<T>(cx: &dyn CallContext, result: Result<T, BenchError>) -> Result<T, BenchError> {
    if cx.is_cancelled() { Err(BenchError::Interrupted) } else { result }
}

/// The value below which a share of the values lies, nearest rank.
fn quantile(mut values: Vec<f64>, share: f64) -> f64 {
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
