use super::{
    Failure, Outcome,
    args::Global,
    open_to_read,
    terminal::{GREEN, Progress, Terminal, UntilInterrupted},
    view,
};
use crate::{
    engine::{BackupReport, EngineError},
    store::{BackupManifest, BackupProgress, BackupStep, LayerStats},
};
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;
use std::{
    path::{Path, PathBuf},
    time::Instant,
};

/// Write everything that is stored to one file
///
/// The backup shows one moment, and others go on reading and writing while it is made. It is checked,
/// counted and given a digest before it takes its name, and is an SQLite database that other tools can
/// read. Models, plugins and the config are not in it, and neither are indexes, which are made anew.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray backup /mnt/usb/                into a folder, under a name with the time
  magray backup notes.db --force         over an earlier one
  magray restore /mnt/usb/magray-2027-01-31T08-00-00Z.db")]
pub(super) struct Backup {
    /// The file to write, or a folder to write it into
    #[arg(value_name = "FILE|DIR")]
    target: PathBuf,
    /// Write over a file that is there
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
pub(super) struct BackupJson<'a> {
    file: String,
    bytes: u64,
    blake3: &'a str,
    created: String,
    records: u64,
    layers: &'a [LayerStats],
    sources: u64,
    took_ms: f64,
}

impl<'a> BackupJson<'a> {
    pub(super) fn new(path: &Path, manifest: &'a BackupManifest, start: Instant) -> Self {
        Self {
            file: path.display().to_string(),
            bytes: manifest.bytes,
            blake3: &manifest.blake3,
            created: view::time(manifest.created_ms),
            records: manifest.records(),
            layers: &manifest.layers,
            sources: manifest.sources,
            took_ms: start.elapsed().as_secs_f64() * 1000.0,
        }
    }
}

impl Backup {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let start = Instant::now();
        let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
        terminal.stop_gently();
        let BackupReport { path, manifest } = {
            let progress = terminal.progress_in_bytes();
            let backup = engine.backup(&UntilInterrupted, &self.target, self.force, &mut |now| {
                show(&progress, now);
            });
            backup.map_err(nothing_changed)?
        };
        if terminal.json {
            terminal.print_json(&BackupJson::new(&path, &manifest, start))?;
        } else {
            terminal.print(format_args!(
                "{GREEN}backed up{GREEN:#} {} to {}, {} in {:.1} s, verified",
                counts(&manifest),
                path.display(),
                HumanBytes(manifest.bytes),
                start.elapsed().as_secs_f64()
            ))?;
            terminal.print(format_args!("blake3 {}", manifest.blake3))?;
        }
        Ok(Outcome::Done)
    }
}

/// Shows how far a backup or a restore is.
pub(super) fn show(progress: &Progress, now: BackupProgress) {
    progress.0.set_length(now.total);
    progress.0.set_position(now.done);
    progress.0.set_message(match now.step {
        BackupStep::Copy => "copying",
        BackupStep::Check => "checking",
        BackupStep::Digest => "digesting",
    });
}

/// What a backup holds, in words.
pub(super) fn counts(manifest: &BackupManifest) -> String {
    let vectors: u64 = manifest.layers.iter().map(|layer| layer.vectors).sum();
    format!("{} and {}", view::counted(manifest.records(), "record"), view::counted(vectors, "vector"))
}

/// A backup or a restore that was stopped did nothing.
pub(super) fn nothing_changed(error: EngineError) -> Failure {
    match error {
        EngineError::Interrupted => Failure::Stopped("interrupted; nothing was written".into()),
        error => error.into(),
    }
}
