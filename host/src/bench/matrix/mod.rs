//! Every embedding backend with every index and every cache policy, on the user's own data.
//!
//! The three do not act on each other, so each is measured by itself: a backend once, an index once for each space
//! of vectors, a cache policy once for each size. What they do together is computed from that.
mod cells;
mod combine;
mod journal;
mod recommend;
mod report;
mod set;

pub use combine::{CacheSummary, EmbedFigures, Figure, IndexSummary, Matrix, PointSummary, Row};
pub use recommend::{Constraints, Names, Objective, Recommendation, recommend, with_model};
pub use report::html;
pub use set::{MatrixSet, OwnRecord};

use super::{BenchError, Conditions, Contestant, Replay, Replayed, throughput::interruptible};
use crate::plugins::Plugins;
use cells::{EmbedCell, Files, IndexCell};
use journal::Journal;
use magray_plugin_api::CallContext;
use serde::Serialize;
use std::path::Path;

/// What to measure, and how.
#[derive(Clone, Debug)]
pub struct MatrixRequest {
    /// Texts and questions.
    pub set: MatrixSet,
    /// Embedding backends.
    pub backends: Vec<Contestant>,
    /// Index backends, and peers.
    pub indexes: Vec<Contestant>,
    /// Cache policies.
    pub caches: Vec<Contestant>,
    /// Threads and cores of each.
    pub threads: usize,
    /// Texts in one call of an embedding backend.
    pub batch: usize,
    /// How often each is measured.
    pub runs: usize,
    /// The recall that the setting of an index must reach.
    pub recall: f64,
    /// Sizes of the caches, as shares of all texts.
    pub shares: Vec<f64>,
    /// Requests of the trace that caches are measured on.
    pub requests: usize,
    /// What else decides the figures, such as the configuration: a file to resume from is of one of these.
    pub settings: String,
}

/// One that could not be measured.
#[derive(Clone, Debug, Serialize)]
pub struct Fault {
    /// `embedding`, `index` or `cache`.
    pub part: &'static str,
    /// Who.
    pub name: String,
    /// Why.
    pub fault: String,
}

/// How far a matrix is.
#[derive(Clone, Copy, Debug)]
pub struct Step<'a> {
    /// Cells that are done.
    pub done: usize,
    /// Of so many, as far as is known.
    pub of: usize,
    /// What is measured now.
    pub now: &'a str,
}

/// The runs of one part, by whose they are.
type Runs<K, C> = Vec<(K, Vec<C>)>;

/// Measures all cells, each in a process of its own, round by round, so that other work on the machine hits them
/// alike; cells that `resume` has are taken from there. `folder` has files of the run: one that is to go on needs the
/// same again. One that cannot be measured is a fault of the matrix and not the end of it.
///
/// # Errors
/// [`BenchError`] where nothing can be measured at all.
pub fn measure_matrix(
    cx: &dyn CallContext,
    request: &MatrixRequest,
    plugins: &Plugins,
    folder: &Path,
    resume: Option<&Path>,
    progress: &mut dyn FnMut(Step<'_>),
) -> Result<Matrix, BenchError> {
    let files = Files { folder, matrix: request.fingerprint() };
    let journal = Journal::open(resume, &files.matrix)?;
    files.write_texts(&request.set)?;
    let before = Conditions::now();
    let (faults, done, spaces) = (Vec::new(), 0, request.backends.len());
    let mut run = Run { cx, request, plugins, files, journal, faults, progress, done, spaces };
    let embedded = run.embed()?;
    if embedded.is_empty() {
        let fault = run.faults.first().map_or_else(String::new, |fault| fault.fault.clone());
        return Err(BenchError::Worker { name: "no backend could be measured".into(), fault });
    }
    let mut spaces: Vec<String> =
        embedded.iter().filter_map(|(_, cells)| Some(cells.first()?.space.clone())).collect();
    spaces.sort();
    spaces.dedup();
    run.spaces = spaces.len();
    let indexed = run.index(&spaces)?;
    let dim = embedded.first().and_then(|(_, cells)| cells.first()?.dim).unwrap_or(1);
    let cached = run.cache(dim)?;
    let Run { files, journal, faults, .. } = run;
    Ok(combine::matrix(request, &files, (embedded, indexed, cached), faults, (before, &journal.conditions)))
}

impl MatrixRequest {
    fn fingerprint(&self) -> String {
        let Self { threads, batch, recall, requests, settings, .. } = self;
        let what = format!("{} {threads} {batch} {recall} {requests} {settings}", self.set.digest());
        blake3::hash(what.as_bytes()).to_string()
    }

    /// How many texts there are that a cache may have the vectors of.
    fn texts(&self) -> usize {
        let (documents, questions) = self.set.counts();
        documents + questions
    }

    /// For how many vectors a cache has room that has it for a share of the texts.
    fn capacity(&self, share: f64) -> usize {
        ((self.texts() as f64 * share) as usize).max(1)
    }
}

struct Run<'a> {
    cx: &'a dyn CallContext,
    request: &'a MatrixRequest,
    plugins: &'a Plugins,
    files: Files<'a>,
    journal: Journal,
    faults: Vec<Fault>,
    progress: &'a mut dyn FnMut(Step<'_>),
    done: usize,
    /// As far as is known: at most one for each backend.
    spaces: usize,
}

impl<'a> Run<'a> {
    /// The runs of those that can be measured. `measure` is told which run it is.
    fn rounds<K, C>(
        &mut self,
        whose: impl IntoIterator<Item = K>,
        measure: impl Fn(&mut Self, &K, usize) -> Result<Option<C>, BenchError>,
    ) -> Result<Runs<K, C>, BenchError> {
        let mut measured: Runs<K, C> = whose.into_iter().map(|whose| (whose, Vec::new())).collect();
        for round in 0..self.request.runs {
            for (whose, cells) in &mut measured {
                if cells.len() < round {
                    // It failed before.
                    self.done += 1;
                } else {
                    cells.extend(measure(self, whose, round)?);
                }
            }
        }
        measured.retain(|(_, cells)| !cells.is_empty());
        Ok(measured)
    }

    fn embed(&mut self) -> Result<Runs<&'a Contestant, EmbedCell>, BenchError> {
        self.rounds(&self.request.backends, |run, backend, round| {
            let (name, whole) = (&backend.name, round == 0);
            let cell = format!("embedding/{name}/{round}");
            let known = run.journal.get::<EmbedCell>(&cell);
            let known = known.filter(|cell| !whole || run.files.read_space(&cell.space).is_some());
            run.measured(cell, known, ("embedding", name), |run| {
                cells::embed(run.cx, run.request, backend, run.plugins, &run.files, whole)
            })
        })
    }

    /// Each index over each space.
    fn index<'s>(
        &mut self,
        spaces: &'s [String],
    ) -> Result<Runs<(&'s str, &'a Contestant), IndexCell>, BenchError> {
        let indexes = &self.request.indexes;
        let all = spaces.iter().flat_map(|space| indexes.iter().map(|index| (space.as_str(), index)));
        self.rounds(all, |run, &(space, index), round| {
            let cell = format!("index/{space}/{}/{round}", index.name);
            let known = run.journal.get(&cell);
            run.measured(cell, known, ("index", &index.name), |run| {
                cells::index(run.cx, run.request, index, run.plugins, (&run.files, space))
            })
        })
    }

    /// Each cache policy at each size. How wide vectors are changes little, so those of one backend stand for all.
    fn cache(&mut self, dim: usize) -> Result<Runs<(&'a Contestant, f64), Replayed>, BenchError> {
        let request = self.request;
        let all = request.shares.iter().flat_map(|&share| request.caches.iter().map(move |of| (of, share)));
        self.rounds(all, |run, &(cache, share), round| {
            let cell = format!("cache/{}/{share}/{dim}/{round}", cache.name);
            let known = run.journal.get(&cell);
            let replay = Replay {
                keys: request.texts(),
                requests: request.requests,
                capacity: request.capacity(share),
                dim,
            };
            run.measured(cell, known, ("cache", &cache.name), |_| {
                cells::cache(request.threads, cache, &replay)
            })
        })
    }

    /// The cell as it is `known`, else as it is measured now; none where it cannot be.
    fn measured<C: Serialize>(
        &mut self,
        cell: String,
        known: Option<C>,
        (part, name): (&'static str, &str),
        measure: impl FnOnce(&Self) -> Result<C, BenchError>,
    ) -> Result<Option<C>, BenchError> {
        let MatrixRequest { backends, indexes, caches, shares, runs, .. } = self.request;
        let of = runs * (backends.len() + self.spaces * indexes.len() + shares.len() * caches.len());
        (self.progress)(Step { done: self.done, of, now: name });
        self.done += 1;
        if known.is_some() {
            return Ok(known);
        }
        match interruptible(self.cx, measure(self)) {
            Ok(figures) => {
                self.journal.put(&cell, &figures)?;
                Ok(Some(figures))
            }
            Err(BenchError::Interrupted) => Err(BenchError::Interrupted),
            Err(error) => {
                self.faults.push(Fault { part, name: name.to_owned(), fault: error.to_string() });
                Ok(None)
            }
        }
    }
}
