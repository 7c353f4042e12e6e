//! One cell: an embedding backend, an index over the vectors of a space, or a cache policy, measured once in a
//! process of its own.
use super::{
    super::{
        BenchError, BenchTexts, Build, Contestant, Held, IndexRequest, Judged, Ran, Replay, ReplayReply,
        Replayed, Searched, VectorSet,
        data::{fault_of, read},
        index::measure_index,
        metrics::{Ranking, nearest},
        npy::{Npy, write_floats, write_row_numbers},
        texts::ShapedText,
        throughput::{WARM_UP, command, interruptible, quantile},
        worker::{Request, Worker},
    },
    MatrixRequest, MatrixSet,
};
use crate::plugins::Plugins;
use magray_plugin_api::{CallContext, Metric};
use serde::{Deserialize, Serialize};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
    time::Instant,
};

/// Documents whose embedding is timed in each round.
const SAMPLE: usize = 128;
/// How often one question is embedded, for its latency.
const QUERIES: usize = 50;

/// What one run of an embedding backend gave.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct EmbedCell {
    pub(super) ran: Ran,
    pub(super) space: String,
    /// From the start of the process to a model that has counted the tokens of the texts.
    pub(super) start_s: f64,
    pub(super) texts_per_s: f64,
    pub(super) tokens_per_s: f64,
    /// Of one question: median, 95th and 99th percentile.
    pub(super) ms: [f64; 3],
    pub(super) resident_bytes: Option<u64>,
    pub(super) held: Held,
    /// By comparing each question with every document; of the first run only.
    pub(super) exact: Option<Ranking>,
    pub(super) dim: Option<usize>,
}

/// What one run of an index gave: it was built and searched with every setting.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct IndexCell {
    pub(super) build: Build,
    pub(super) searched: Searched,
}

/// Vectors of a space, with which indexes are measured.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Space {
    /// The matrix that they are of: a folder may have those of another one.
    matrix: String,
    /// The backend that made them.
    pub(super) backend: String,
    /// Those documents and questions that have a direction, by their places.
    documents: Vec<usize>,
    questions: Vec<usize>,
}

/// The files of a matrix.
pub(super) struct Files<'a> {
    pub(super) folder: &'a Path,
    /// Of the data and of all that decides what is measured.
    pub(super) matrix: String,
}

impl Files<'_> {
    fn texts(&self) -> PathBuf {
        self.folder.join("texts.jsonl")
    }

    fn sample(&self) -> PathBuf {
        self.folder.join("sample.jsonl")
    }

    pub(super) fn space(&self, space: &str) -> PathBuf {
        self.folder.join(format!("space-{}", space.get(..16).unwrap_or(space)))
    }

    /// Writes the texts for the workers.
    pub(super) fn write_texts(&self, set: &MatrixSet) -> Result<(), BenchError> {
        fs::create_dir_all(self.folder).map_err(|error| fault_of(self.folder, error.to_string()))?;
        let shaped = |shape: &str, text: &str| ShapedText { shape: shape.to_owned(), text: text.to_owned() };
        let count = set.documents.len().min(SAMPLE);
        let drawn = (0..count).map(|at| &set.documents[at * set.documents.len() / count]);
        let sample = drawn.map(|document| shaped("sample", &document.whole()));
        let documents = set.documents.iter().map(|document| shaped("documents", &document.whole()));
        let questions = set.questions.iter().map(|question| shaped("questions", &question.text));
        let all = BenchTexts(sample.clone().chain(documents).chain(questions).collect());
        for (path, texts) in [(self.sample(), BenchTexts(sample.collect())), (self.texts(), all)] {
            texts.write(&path).map_err(|error| fault_of(&path, error.to_string()))?;
        }
        Ok(())
    }

    /// The vectors of a space, where all files of it are there.
    pub(super) fn read_space(&self, space: &str) -> Option<Space> {
        let kept: Space = serde_json::from_str(&read(&self.space(space).join(SPACE)).ok()?).ok()?;
        (kept.matrix == self.matrix).then_some(kept)
    }
}

/// Written last, so a space that has it is whole.
const SPACE: &str = "space.json";

/// Measures an embedding backend. `whole` has it embed all texts too, and judges its vectors; those of the first
/// backend of a space are kept for the indexes.
pub(super) fn embed(
    cx: &dyn CallContext,
    request: &MatrixRequest,
    contestant: &Contestant,
    plugins: &Plugins,
    files: &Files<'_>,
    whole: bool,
) -> Result<EmbedCell, BenchError> {
    let program = command(&contestant.worker, &contestant.env);
    let start = Instant::now();
    let mut worker = Worker::spawn(&contestant.name, program, request.threads)?;
    let texts = if whole { files.texts() } else { files.sample() };
    let ready = worker.start(request.threads, texts)?;
    let start_s = start.elapsed().as_secs_f64();
    if !ready.fallback_reason.is_empty() {
        return Err(worker.fault(format!("it ran on {} only: {}", ready.device, ready.fallback_reason)));
    }
    let run = Request::Run { shape: "sample".into(), sorted: false, batch: request.batch };
    worker.seconds(&run)?;
    let seconds = quantile(worker.seconds(&run)?, 0.5);
    let question = request.set.questions.first().map_or("", |question| &question.text);
    let ask = |times| Request::Latency { text: question.to_owned(), times };
    worker.seconds(&ask(WARM_UP))?;
    let calls = worker.seconds(&ask(QUERIES))?;
    let sample = request.set.documents.len().min(SAMPLE) as f64;
    let tokens = ready.tokens.get("sample").copied().unwrap_or(0) as f64;
    let mut cell = EmbedCell {
        ran: (&ready).into(),
        space: ready.space.clone(),
        start_s,
        texts_per_s: sample / seconds,
        tokens_per_s: tokens / seconds,
        ms: [0.5, 0.95, 0.99].map(|share| quantile(calls.clone(), share) * 1000.0),
        // Before all texts go through it, which nobody does to a program that answers.
        resident_bytes: worker.resident_bytes(),
        held: worker.memory()?,
        exact: None,
        dim: None,
    };
    if whole {
        let vectors = vectors(request, &mut worker, files)?;
        drop(worker);
        cell.dim = Some(vectors.dim);
        cell.exact = Some(vectors.judge(&request.set));
        if files.read_space(&cell.space).is_none() {
            vectors.keep(cx, &contestant.name, plugins, (files, &cell.space))?;
        }
    }
    Ok(cell)
}

/// What a backend makes of all texts, `[n, dim]` row-major.
struct Vectors {
    dim: usize,
    documents: Vec<f32>,
    questions: Vec<f32>,
}

fn vectors(request: &MatrixRequest, worker: &mut Worker, files: &Files<'_>) -> Result<Vectors, BenchError> {
    let file = files.folder.join("table.npy");
    let mut table = |shape: &str, as_queries| -> Result<_, BenchError> {
        let (shape, file) = (shape.to_owned(), file.clone());
        worker.seconds(&Request::Table { shape, as_queries, batch: request.batch, file: file.clone() })?;
        let mut table = Npy::open(&file)?;
        let numbers = table.floats(0..table.rows())?;
        fs::remove_file(&file).map_err(|error| fault_of(&file, error.to_string()))?;
        Ok((table.width(), numbers))
    };
    let (dim, documents) = table("documents", false)?;
    let (_, questions) = table("questions", true)?;
    Ok(Vectors { dim, documents, questions })
}

impl Vectors {
    fn judge(&self, set: &MatrixSet) -> Ranking {
        let ids: Vec<&str> = set.documents.iter().map(|document| document.id.as_str()).collect();
        let rankings = nearest(self.dim, &self.questions, &self.documents, &ids);
        let scored = set
            .questions
            .iter()
            .zip(&rankings)
            .map(|(question, rows)| question.rank(rows.iter().map(|&row| ids[row])));
        Ranking::mean(&scored.collect::<Vec<_>>())
    }

    /// Writes the set of vectors on which indexes are measured. A text without a known word has no direction, and no
    /// index takes it.
    fn keep(
        &self,
        cx: &dyn CallContext,
        backend: &str,
        plugins: &Plugins,
        (files, space): (&Files<'_>, &str),
    ) -> Result<(), BenchError> {
        let folder = &files.space(space);
        let failed = |error: std::io::Error| fault_of(folder, error.to_string());
        fs::create_dir_all(folder).map_err(failed)?;
        let pointing = |vectors: &[f32]| {
            let rows = vectors.chunks_exact(self.dim).enumerate();
            let rows = rows.filter(|(_, row)| row.iter().any(|&number| number != 0.0));
            rows.map(|(at, row)| (at, row.to_vec())).unzip::<usize, Vec<f32>, Vec<_>, Vec<_>>()
        };
        let (documents, base) = pointing(&self.documents);
        let (questions, asked) = pointing(&self.questions);
        write_floats(&folder.join("base.f32.npy"), self.dim, &base.concat())?;
        write_floats(&folder.join("query.f32.npy"), self.dim, &asked.concat())?;
        let mut set = VectorSet::open(folder, Metric::Cosine, None)?;
        let truth = interruptible(cx, set.exact(cx, plugins, None))?;
        write_row_numbers(&folder.join("gt100.i32.npy"), &truth)?;
        let (matrix, backend) = (files.matrix.clone(), backend.to_owned());
        let space = Space { matrix, backend, documents, questions };
        let text = serde_json::to_string(&space).map_err(|error| failed(error.into()))?;
        fs::write(folder.join(SPACE), text).map_err(failed)
    }
}

impl Space {
    /// Which rows are relevant to which query. Documents without a vector are rows that no index has.
    fn judged(&self, set: &MatrixSet) -> Judged {
        let rows: HashMap<&str, u64> =
            self.documents.iter().zip(0..).map(|(&at, row)| (set.documents[at].id.as_str(), row)).collect();
        let of = |&at: &usize| {
            let judged = set.questions[at].judged.iter().zip(0..);
            let row = |((id, grade), place): ((&String, &u32), u64)| {
                (rows.get(id.as_str()).copied().unwrap_or(u64::MAX - place), *grade)
            };
            judged.map(row).collect()
        };
        Judged(self.questions.iter().map(of).collect())
    }
}

/// Measures an index over the vectors of a space.
pub(super) fn index(
    cx: &dyn CallContext,
    request: &MatrixRequest,
    contestant: &Contestant,
    plugins: &Plugins,
    (files, space): (&Files<'_>, &str),
) -> Result<IndexCell, BenchError> {
    let folder = files.space(space);
    let lost = || fault_of(&folder, "the vectors are gone");
    let kept = files.read_space(space).ok_or_else(lost)?;
    let mut set = VectorSet::open(&folder, Metric::Cosine, None)?;
    let one = IndexRequest {
        contestants: vec![contestant.clone()],
        threads: vec![request.threads],
        batches: vec![1],
        recall: request.recall,
        runs: 1,
        shares: Vec::new(),
        judged: Some(kept.judged(&request.set)),
    };
    let scratch = tempfile::tempdir_in(files.folder).map_err(|error| fault_of(&folder, error.to_string()))?;
    let mut figures = measure_index(cx, &one, &mut set, plugins, scratch.path(), &mut |_, _, _| {})?;
    let (Some(build), Some(mut searched)) = (figures.builds.pop(), figures.searches.pop()) else {
        return Err(lost());
    };
    // Questions without a vector find nothing.
    let asked = kept.questions.len() as f64 / request.set.questions.len() as f64;
    let points = searched.curves.iter_mut().flat_map(|curve| &mut curve.points);
    points.filter_map(|point| point.ndcg_10.as_mut()).for_each(|ndcg| *ndcg *= asked);
    Ok(IndexCell { build, searched })
}

/// Measures a cache policy.
pub(super) fn cache(
    threads: usize,
    contestant: &Contestant,
    replay: &Replay,
) -> Result<Replayed, BenchError> {
    let program = command(&contestant.worker, &contestant.env);
    let mut worker = Worker::spawn(&contestant.name, program, threads)?;
    match worker.ask(replay)? {
        ReplayReply::Replayed(replayed) => Ok(replayed),
        other => Err(worker.odd(&other)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::data::read_lines;

    #[test]
    fn a_document_is_embedded_with_its_title() {
        let data = tempfile::tempdir().expect("a folder");
        let put = |file: &str, text: &str| fs::write(data.path().join(file), text).expect("written");
        fs::create_dir(data.path().join("qrels")).expect("a folder");
        put("corpus.jsonl", r#"{"_id": "d", "title": "Tides", "text": "The moon draws the sea."}"#);
        put("queries.jsonl", r#"{"_id": "q", "text": "why is there ebb"}"#);
        put("qrels/test.tsv", "query-id\tcorpus-id\tscore\nq\td\t1\n");
        let set = MatrixSet::from_data(data.path(), None).expect("a set");
        let files = Files { folder: &data.path().join("work"), matrix: String::new() };
        files.write_texts(&set).expect("written");
        let texts: Vec<ShapedText> = read_lines(&files.texts()).expect("texts");
        let texts: Vec<_> = texts.iter().map(|text| (text.shape.as_str(), text.text.as_str())).collect();
        let whole = "Tides The moon draws the sea.";
        assert_eq!(texts, [("sample", whole), ("documents", whole), ("questions", "why is there ebb")]);
    }
}
