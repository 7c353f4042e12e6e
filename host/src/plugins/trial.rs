//! The first load of an unknown file runs in a child process, so that a library that crashes is a
//! finding and not an outage.
use super::{
    child::{self, End},
    error::Refusal,
    file::PluginFile,
    trust::write_json,
};
use serde::{Deserialize, Serialize};
use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

/// What the child prints at its end: this alone where the plugin has started, else with the reason
/// why not. A library that ends the process prints neither.
pub(super) const VERDICT: &str = "magray-trial:";
/// A constructor that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Remembers which files have passed.
#[derive(Debug)]
pub(super) struct Trials {
    /// `magray` itself, run as `magray plugin trial FILE`; none trusts every file.
    program: Option<PathBuf>,
    book: PathBuf,
}

/// Trials by path of the file.
#[derive(Default, Serialize, Deserialize)]
struct Book(BTreeMap<PathBuf, Trial>);

#[derive(Serialize, Deserialize)]
struct Trial {
    /// Of the file that was tried.
    stamp: String,
    /// Why it failed; none where it passed.
    refusal: Option<String>,
    /// Whether the child lived to say so. Then the fault may lie outside the file, as with a library
    /// that it needs and that is not installed yet, and another trial does no harm.
    #[serde(default)]
    explained: bool,
}

impl Trials {
    pub(super) fn new(program: Option<PathBuf>, data_dir: &Path) -> Self {
        Self { program, book: data_dir.join("plugins").join("trials.json") }
    }

    /// Loads the file in a child process, unless this very file has passed or crashed there before; one that is
    /// pinned by its hash as it is loaded later.
    pub(super) fn check(&self, file: &PluginFile, pinned: bool) -> Result<(), Refusal> {
        let Some(program) = &self.program else { return Ok(()) };
        let stamp = file.stamp()?;
        let mut book = self.read_book();
        if let Some(trial) = book.0.get(&file.path).filter(|trial| trial.stamp == stamp && !trial.explained) {
            return trial.refusal.clone().map_or(Ok(()), |refusal| Err(Refusal::Trial(refusal)));
        }
        let result = run(program, &file.linker_path(pinned));
        let refusal = result.as_ref().err().map(ToString::to_string);
        let explained = matches!(result, Err(Refusal::Trial(_)));
        book.0.insert(file.path.clone(), Trial { stamp, refusal, explained });
        self.write_book(&book);
        result
    }

    /// Why this very file failed its trial, if it had one.
    pub(super) fn known_failure(&self, file: &PluginFile) -> Option<String> {
        let stamp = file.stamp().ok()?;
        let trial = self.read_book().0.remove(&file.path)?;
        trial.refusal.filter(|_| trial.stamp == stamp)
    }

    fn read_book(&self) -> Book {
        // A missing or damaged book costs a trial, nothing else.
        fs::read(&self.book).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default()
    }

    fn write_book(&self, book: &Book) {
        if let Err(error) = write_json(&self.book, book) {
            tracing::debug!("cannot note plugin trials in {}: {error}", self.book.display());
        }
    }
}

fn run(program: &Path, path: &Path) -> Result<(), Refusal> {
    let mut command = Command::new(program);
    command.args(["plugin", "trial"]).arg(path);
    match child::run(command, VERDICT, PATIENCE) {
        End::Said(refusal) if refusal.is_empty() => Ok(()),
        End::Said(refusal) => Err(Refusal::Trial(refusal)),
        End::Crashed { how, .. } => Err(Refusal::Crashed { how }),
        End::Hung => Err(Refusal::Crashed { how: format!("it hung for {} s", PATIENCE.as_secs()) }),
    }
}
