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

use super::{BenchError, Conditions, Contestant, Replayed, throughput::interruptible};
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

/// A cache policy that replayed a trace in so large a cache.
struct CacheCell {
    share: f64,
    capacity: usize,
    replayed: Replayed,
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
    let journal = Journal::open(resume, &request.fingerprint())?;
    let files = Files { folder };
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
    let cached = run.cache(&embedded)?;
    let Run { files, journal, faults, .. } = run;
    Ok(combine::matrix(request, &files, (embedded, indexed, cached), faults, (before, &journal.conditions)))
}

impl MatrixRequest {
    fn fingerprint(&self) -> String {
        let Self { threads, batch, recall, requests, settings, .. } = self;
        let what = format!("{} {threads} {batch} {recall} {requests} {settings}", self.set.digest());
        blake3::hash(what.as_bytes()).to_string()
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

impl Run<'_> {
    /// The runs of each backend that can be measured.
    fn embed(&mut self) -> Result<Runs<String, EmbedCell>, BenchError> {
        let mut measured: Runs<String, EmbedCell> = Vec::new();
        let backends = &self.request.backends;
        backends.iter().for_each(|backend| measured.push((backend.name.clone(), Vec::new())));
        for round in 0..self.request.runs {
            for (backend, (_, cells)) in backends.iter().zip(&mut measured) {
                if cells.len() < round {
                    // It failed before.
                    self.done += 1;
                    continue;
                }
                let (name, whole) = (&backend.name, round == 0);
                let cell = format!("embedding/{name}/{round}");
                let known = self.journal.get::<EmbedCell>(&cell);
                let known = known.filter(|cell| !whole || self.files.read_space(&cell.space).is_some());
                let found = self.measured(cell, known, ("embedding", name), |run| {
                    cells::embed(run.cx, run.request, backend, run.plugins, &run.files, whole)
                })?;
                cells.extend(found);
            }
        }
        measured.retain(|(_, cells)| !cells.is_empty());
        Ok(measured)
    }

    /// The runs of each index over each space.
    fn index(&mut self, spaces: &[String]) -> Result<Runs<(String, String), IndexCell>, BenchError> {
        let mut measured: Runs<(String, String), IndexCell> = Vec::new();
        let indexes = &self.request.indexes;
        let of = |space: &String| {
            indexes.iter().map(|index| ((space.clone(), index.name.clone()), Vec::new())).collect::<Vec<_>>()
        };
        measured.extend(spaces.iter().flat_map(of));
        for round in 0..self.request.runs {
            for (((space, name), cells), index) in measured.iter_mut().zip(indexes.iter().cycle()) {
                if cells.len() < round {
                    self.done += 1;
                    continue;
                }
                let cell = format!("index/{space}/{name}/{round}");
                let known = self.journal.get(&cell);
                let found = self.measured(cell, known, ("index", name), |run| {
                    cells::index(run.cx, run.request, index, run.plugins, (&run.files, space))
                })?;
                cells.extend(found);
            }
        }
        measured.retain(|(_, cells)| !cells.is_empty());
        Ok(measured)
    }

    /// The runs of each cache policy at each size. How wide vectors are changes little, so those of the first
    /// backend stand for all.
    fn cache(
        &mut self,
        embedded: &[(String, Vec<EmbedCell>)],
    ) -> Result<Runs<String, CacheCell>, BenchError> {
        let (documents, questions) = self.request.set.counts();
        let texts = documents + questions;
        let dim = embedded.first().and_then(|(_, cells)| cells.first()?.dim).unwrap_or(1);
        let mut measured: Runs<(String, f64), Replayed> = Vec::new();
        let caches = &self.request.caches;
        let of = |&share: &f64| {
            caches.iter().map(|cache| ((cache.name.clone(), share), Vec::new())).collect::<Vec<_>>()
        };
        measured.extend(self.request.shares.iter().flat_map(of));
        let capacity = |share: f64| ((texts as f64 * share) as usize).max(1);
        for round in 0..self.request.runs {
            for (((name, share), cells), cache) in measured.iter_mut().zip(caches.iter().cycle()) {
                if cells.len() < round {
                    self.done += 1;
                    continue;
                }
                let cell = format!("cache/{name}/{share}/{dim}/{round}");
                let known = self.journal.get(&cell);
                let found = self.measured(cell, known, ("cache", name), |run| {
                    cells::cache(run.request, cache, capacity(*share), dim)
                })?;
                cells.extend(found);
            }
        }
        measured.retain(|(_, cells)| !cells.is_empty());
        let cell = |share, replayed| CacheCell { share, capacity: capacity(share), replayed };
        let runs = measured.into_iter().map(|((name, share), cells)| {
            (name, cells.into_iter().map(|replayed| cell(share, replayed)).collect())
        });
        Ok(runs.collect())
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
