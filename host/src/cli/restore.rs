use super::{
    Failure, Outcome,
    args::Global,
    backup::{BackupJson, counts, nothing_changed, show},
    setup,
    terminal::{GREEN, Terminal, UntilInterrupted},
    view,
};
use clap::Args;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Put a backup in the place of what is stored
///
/// The backup is verified first, by its digest and its counts, then takes the place of the database at
/// once: whenever the machine stops, the old one or the new one is there, whole. The old one is kept
/// beside it. No other magray may have the data folder open. Indexes are made anew when next needed.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray restore notes.db                   into a data folder that has no database
  magray restore notes.db --force           in the place of what is stored there
  magray restore notes.db --dry-run         only verify it
  magray --data-dir /tmp/look restore notes.db")]
pub(super) struct Restore {
    /// A file that `magray backup` made
    #[arg(value_name = "FILE")]
    file: PathBuf,
    /// Replace the database that is there; it is kept under another name
    #[arg(long)]
    force: bool,
    /// Verify the backup and change nothing
    #[arg(long, conflicts_with = "force")]
    dry_run: bool,
}

#[derive(Serialize)]
struct RestoreJson<'a> {
    #[serde(flatten)]
    backup: BackupJson<'a>,
    restored: bool,
    kept: Option<PathBuf>,
}

impl Restore {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let start = Instant::now();
        let setup = setup(global, terminal)?;
        terminal.stop_gently();
        let (manifest, kept) = {
            let progress = terminal.progress_in_bytes();
            let mut show = |now| show(&progress, now);
            if self.dry_run {
                let manifest = setup.verify_backup(&UntilInterrupted, &self.file, &mut show);
                (manifest.map_err(nothing_changed)?, None)
            } else {
                let restored = setup.restore(&UntilInterrupted, &self.file, self.force, &mut show);
                let restored = restored.map_err(nothing_changed)?;
                (restored.manifest, restored.kept)
            }
        };
        if terminal.json {
            let backup = BackupJson::new(&self.file, &manifest, start);
            terminal.print_json(&RestoreJson { backup, restored: !self.dry_run, kept })?;
            return Ok(Outcome::Done);
        }
        let (did, made) =
            (if self.dry_run { "verified" } else { "restored" }, view::time(manifest.created_ms));
        terminal.print(format_args!("{GREEN}{did}{GREEN:#} {}, as of {made}", counts(&manifest)))?;
        if let Some(kept) = kept {
            terminal.hint(&format!(
                "what was stored before is kept as {}; remove it when all is right",
                kept.display()
            ));
        }
        Ok(Outcome::Done)
    }
}
