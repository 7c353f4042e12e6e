//! The whole database to a file and back.
use super::{Engine, EngineError, Setup, now_ms};
use crate::store::{
    self, BackupManifest, BackupProgress, Exclusive, OnBackupProgress, Store, StoreError, StoreOptions,
};
use magray_plugin_api::CallContext;
use std::{
    fs::{self, File},
    io::ErrorKind,
    ops::ControlFlow,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

/// Names of backups that are being made.
const PARTIAL: &str = ".magray-backup-";

/// Where a backup is, and what it holds.
#[derive(Clone, Debug)]
pub struct BackupReport {
    /// The file.
    pub path: PathBuf,
    /// What it holds.
    pub manifest: BackupManifest,
}

/// What a restore did.
#[derive(Clone, Debug)]
pub struct RestoreReport {
    /// What was restored.
    pub manifest: BackupManifest,
    /// The database that was there before, under its new name.
    pub kept: Option<PathBuf>,
}

impl Engine {
    /// Writes a backup to `target`, or into it under a name with the time where it is a folder. Others
    /// go on reading and writing. The file takes its name when it is whole and verified.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] where there is such a file and not `force`, `NoRoom`, `Interrupted`,
    /// and what the store says.
    pub fn backup(
        &self,
        cx: &dyn CallContext,
        target: &Path,
        force: bool,
        progress: &mut dyn FnMut(BackupProgress),
    ) -> Result<BackupReport, EngineError> {
        let path = match target.is_dir() {
            true => target.join(format!("magray-{}.db", stamp())),
            false => target.to_owned(),
        };
        let database = self.setup.database();
        if path.exists() && !force {
            return Err(EngineError::Invalid(format!(
                "{} is there already; --force writes over it",
                path.display()
            )));
        }
        if path.canonicalize().ok().is_some_and(|path| database.canonicalize().is_ok_and(|db| db == path)) {
            return Err(EngineError::Invalid("the database cannot be its own backup".into()));
        }
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let cannot = |error: std::io::Error| {
            EngineError::Invalid(format!("cannot write into {}: {error}", folder.display()))
        };
        remove_abandoned(folder);
        // The accesses of this process, too.
        match self.store.flush() {
            Err(StoreError::ReadOnly { .. }) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        self.setup.ensure_room(folder, self.store.stats()?.database_bytes, "the backup")?;
        let partial = tempfile::Builder::new().prefix(PARTIAL).tempfile_in(folder).map_err(cannot)?;
        // Until it has its name, so that nobody takes it for abandoned.
        partial.as_file().lock().map_err(cannot)?;
        let manifest = self.store.backup(partial.path(), &mut watch(cx, progress))?;
        let manifest = manifest.ok_or(EngineError::Interrupted)?;
        partial.persist(&path).map_err(|error| cannot(error.error))?;
        store::sync_folder(&path);
        Ok(BackupReport { path, manifest })
    }
}

impl Setup {
    /// Checks a backup, and changes nothing.
    ///
    /// # Errors
    /// [`StoreError::NotABackup`] and others about the file, `Interrupted`.
    pub fn verify_backup(
        &self,
        cx: &dyn CallContext,
        backup: &Path,
        progress: &mut dyn FnMut(BackupProgress),
    ) -> Result<BackupManifest, EngineError> {
        store::verify_backup(backup, &mut watch(cx, progress))?.ok_or(EngineError::Interrupted)
    }

    /// Puts the database of a backup in the place of the present one, at once, after it was verified.
    /// The present one is kept under another name. The indexes are dropped: they are made anew from the
    /// database when they are next needed.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] where there is a database and not `force`; [`StoreError::InUse`] where a
    /// process has it open; `NoRoom`, `Interrupted`, and what is wrong with the backup. Whatever it is,
    /// the present database is in its place.
    pub fn restore(
        &self,
        cx: &dyn CallContext,
        backup: &Path,
        force: bool,
        progress: &mut dyn FnMut(BackupProgress),
    ) -> Result<RestoreReport, EngineError> {
        let database = self.database();
        if database.exists() && !force {
            return Err(EngineError::Invalid(format!(
                "there is a database in {}; --force puts the backup in its place and keeps it under another name",
                self.data_dir.display()
            )));
        }
        let bytes = self.verify_backup(cx, backup, progress)?.bytes;
        store::create_folder(&database)?;
        let exclusive = Exclusive::take(&database)?;
        self.ensure_room(&self.data_dir, bytes, "the restored database")?;
        // Only one restore is under way, so one that was left is of nobody.
        let new = database.with_extension("db.restoring");
        let unpacked = store::unpack_backup(backup, &new, &mut watch(cx, progress));
        let manifest = match unpacked {
            Ok(Some(manifest)) => manifest,
            failed => {
                drop(fs::remove_file(&new));
                failed?;
                return Err(EngineError::Interrupted);
            }
        };
        let keep = free_name(&database);
        let kept = match store::replace_database(&database, &new, &keep) {
            Ok(kept) => kept.then_some(keep),
            Err(error) => {
                drop(fs::remove_file(&new));
                return Err(error.into());
            }
        };
        drop(exclusive);
        if let Err(error) = self.ensure_restored(&manifest) {
            if let Some(kept) = &kept {
                let _exclusive = Exclusive::take(&database)?;
                store::replace_database(&database, kept, &database.with_extension("db.refused"))?;
            }
            return Err(error);
        }
        // They name the former database, so nobody would take them for those of this one.
        let indexes = self.data_dir.join("index");
        match fs::remove_dir_all(&indexes) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                tracing::warn!("the former indexes in {} could not be removed: {error}", indexes.display());
            }
            _ => {}
        }
        Ok(RestoreReport { manifest, kept })
    }

    /// Opens what was restored as every command will.
    fn ensure_restored(&self, manifest: &BackupManifest) -> Result<(), EngineError> {
        let store = Store::open(&self.database(), &StoreOptions::default())?;
        let found = store.stats()?.layers;
        if found != manifest.layers {
            let (path, expected) = (self.database(), &manifest.layers);
            let reason = format!("it was restored with {found:?} instead of {expected:?}");
            return Err(StoreError::Damaged { path, reason }.into());
        }
        Ok(())
    }
}

/// Hands progress on, and ends the work when the caller wants it.
fn watch<'a>(
    cx: &'a dyn CallContext,
    progress: &'a mut dyn FnMut(BackupProgress),
) -> Box<OnBackupProgress<'a>> {
    Box::new(move |now| {
        progress(now);
        if cx.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
}

/// Removes what backups left that were killed while they were made.
fn remove_abandoned(folder: &Path) {
    for entry in folder.read_dir().into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_name().to_string_lossy().starts_with(PARTIAL) {
            continue;
        }
        // Who makes one holds its lock.
        if File::open(&path).is_ok_and(|file| file.try_lock().is_ok()) {
            drop(fs::remove_file(&path));
        }
    }
}

/// A name for the database that is replaced.
fn free_name(database: &Path) -> PathBuf {
    let name = database.with_extension(format!("db.replaced-{}", stamp()));
    let numbered = |n: u32| name.with_extension(format!("replaced-{}-{n}", stamp()));
    std::iter::once(name.clone()).chain((2..).map(numbered)).find(|path| !path.exists()).unwrap_or(name)
}

/// Now, as it may stand in the name of a file.
fn stamp() -> String {
    let now = UNIX_EPOCH + Duration::from_millis(now_ms());
    humantime::format_rfc3339_seconds(now).to_string().replace(':', "-")
}
