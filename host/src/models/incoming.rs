//! A model folder that is being made: beside the others until it is whole, then renamed into its place.
use super::{
    ModelError,
    digest::{Digest, Hashed, hash_file},
    error::io_error,
    layout,
};
use magray_model::{MANIFEST, Manifest, ManifestFile, ModelFolder, Overrides};
use magray_plugin_api::{CallContext, ErrorCode};
use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

/// Below the folder of models; no model can be called so.
pub(super) const INCOMING: &str = ".incoming";
/// How names of files end that are not whole.
const PART: &str = ".part";

/// A folder that will be a model. Only one process has it at a time. What is in it stays until it is finished or
/// discarded, so that the next one goes on from there.
#[derive(Debug)]
pub struct Incoming {
    models: PathBuf,
    dir: PathBuf,
    manifest: Manifest,
    /// Released when this is dropped.
    _lock: File,
}

impl Incoming {
    /// Opens the folder for `key`, or waits until no other process has it, after calling `waiting`.
    pub(super) fn open(models: &Path, key: &str, waiting: &mut dyn FnMut()) -> Result<Self, ModelError> {
        let dir = models.join(INCOMING).join(key);
        fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
        let path = models.join(INCOMING).join(format!("{key}.lock"));
        let lock = File::create(&path).map_err(io_error("make", &path))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                waiting();
                lock.lock().map_err(io_error("lock", &path))?;
                // Whoever had it may have finished, and taken the folder away.
                fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
            }
            Err(TryLockError::Error(error)) => return Err(io_error("lock", &path)(error)),
        }
        let manifest = Manifest::read(&dir).unwrap_or_default();
        Ok(Self { models: models.to_owned(), dir, manifest, _lock: lock })
    }

    /// Forgets what an earlier attempt left.
    pub(super) fn clear(&mut self) -> Result<(), ModelError> {
        self.manifest = Manifest::default();
        remove_dir(&self.dir)?;
        fs::create_dir_all(&self.dir).map_err(io_error("make", &self.dir))
    }

    pub(super) fn dir(&self) -> &Path {
        &self.dir
    }

    /// Where a file of the model goes; its folder is made.
    pub(super) fn place(&self, name: &str) -> Result<PathBuf, ModelError> {
        let path = self.dir.join(name);
        let folder = path.parent().unwrap_or(&self.dir);
        fs::create_dir_all(folder).map_err(io_error("make", folder))?;
        Ok(path)
    }

    /// Where a file goes that is to have this digest, until it is whole.
    pub(super) fn part(&self, name: &str, digest: &Digest) -> Result<PathBuf, ModelError> {
        let digits = digest.hex().get(..16).unwrap_or_default();
        self.place(&format!("{name}.{digits}{PART}"))
    }

    /// Whether the file is there already, checked, with this digest.
    pub(super) fn has(&self, name: &str, digest: &Digest) -> Result<bool, ModelError> {
        let path = self.dir.join(name);
        let entry = self.manifest.files.iter().find(|file| file.path == name);
        let same = entry.filter(|entry| {
            path.metadata().is_ok_and(|there| {
                there.len() == entry.size && ManifestFile::mtime_ns(&there) == entry.mtime_ns
            })
        });
        same.map_or(Ok(false), |entry| digest.is_of(&path, &hashed(entry)))
    }

    /// Bytes of the file that an earlier attempt brought.
    pub(super) fn brought(&self, name: &str, digest: &Digest) -> Result<u64, ModelError> {
        let part = self.part(name, digest)?;
        Ok(part.metadata().map_or(0, |part| part.len()))
    }

    /// Hashes the file at its place and enters it into the manifest.
    pub(super) fn enter(
        &mut self,
        cx: &dyn CallContext,
        name: &str,
        on: &mut dyn FnMut(u64),
    ) -> Result<&ManifestFile, ModelError> {
        let path = self.dir.join(name);
        let hashed = hash_file(cx, &path, on)?;
        self.enter_hashed(name, hashed)
    }

    /// Enters a file that was hashed, and saves the manifest, so that this is not done again.
    pub(super) fn enter_hashed(&mut self, name: &str, hashed: Hashed) -> Result<&ManifestFile, ModelError> {
        let path = self.dir.join(name);
        let file = File::open(&path).map_err(io_error("open", &path))?;
        // A manifest must not outlive a loss of power that its files do not.
        file.sync_all().map_err(io_error("write", &path))?;
        let metadata = file.metadata().map_err(io_error("read", &path))?;
        let Hashed { size, sha256, blake3 } = hashed;
        let mtime_ns = ManifestFile::mtime_ns(&metadata);
        let entry = ManifestFile { path: name.to_owned(), size, mtime_ns, sha256, blake3 };
        let files = &mut self.manifest.files;
        files.retain(|file| file.path != name);
        let place = files.partition_point(|file| file.path.as_str() < name);
        files.insert(place, entry);
        write_manifest(&self.dir, &self.manifest)?;
        Ok(&self.manifest.files[place])
    }

    /// The digest of the weights, where the file that holds them is entered.
    pub(super) fn weights_sha256(&self) -> Option<&str> {
        let weights = self.manifest.files.iter().find(|file| file.path == "model.safetensors");
        weights.map(|file| file.sha256.as_str())
    }

    /// Fails where the disk has less room than `bytes`.
    pub(super) fn check_room(&self, what: &str, bytes: u64) -> Result<(), ModelError> {
        match fs4::available_space(&self.dir).ok() {
            Some(free) if free < bytes => Err(ModelError::NoSpace {
                what: what.to_owned(),
                dir: self.models.clone(),
                need: bytes,
                free,
            }),
            _ => Ok(()),
        }
    }

    /// Makes it the model `name`: drops all that is not in `files`, checks that it is a model, and renames it.
    /// `force` takes a model that none of magray's own backends runs.
    pub(super) fn finish(
        mut self,
        name: &str,
        files: &[&str],
        describe: impl FnOnce(&mut Manifest),
        force: bool,
    ) -> Result<PathBuf, ModelError> {
        self.manifest.files.retain(|file| files.contains(&file.path.as_str()));
        describe(&mut self.manifest);
        write_manifest(&self.dir, &self.manifest)?;
        for there in files_below(&self.dir)? {
            if there != MANIFEST && !files.contains(&there.as_str()) {
                let path = self.dir.join(there);
                fs::remove_file(&path).map_err(io_error("remove", &path))?;
            }
        }
        let from = self.manifest.source.clone();
        match ModelFolder::open(&self.dir, &Overrides::default()) {
            Ok(_) => {}
            Err(error) if error.code() == ErrorCode::UNSUPPORTED && force => {}
            Err(error) => {
                let reason = reason(&error);
                self.discard()?;
                return Err(match error.code() {
                    ErrorCode::UNSUPPORTED => ModelError::Unsupported { from, reason },
                    _ => ModelError::Unusable { from, reason },
                });
            }
        }
        let target = self.models.join(name);
        match fs::rename(&self.dir, &target) {
            Ok(()) => Ok(target),
            Err(_) if target.exists() => {
                self.discard()?;
                Err(exists(&target, name))
            }
            Err(error) => Err(io_error("make", &target)(error)),
        }
    }

    /// Takes it away with all that is in it.
    pub(super) fn discard(self) -> Result<(), ModelError> {
        remove_dir(&self.dir)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        // Only an empty folder can be removed so.
        let _ = fs::remove_dir(&self.dir);
    }
}

/// What an error of `magray-model` says of a model, without the folder, which is not the one that it will have.
fn reason(error: &magray_plugin_api::Error) -> String {
    let message = error.message();
    let rest = message.strip_prefix("model ").and_then(|rest| rest.split_once(": "));
    rest.map_or(message, |(_, reason)| reason).to_owned()
}

pub(super) fn exists(dir: &Path, name: &str) -> ModelError {
    let source = Manifest::read(dir).map(|manifest| manifest.source).filter(|source| !source.is_empty());
    ModelError::Exists {
        name: name.to_owned(),
        source_of: source.unwrap_or_else(|| "a place that is not known".to_owned()),
    }
}

pub(super) fn hashed(file: &ManifestFile) -> Hashed {
    Hashed { size: file.size, sha256: file.sha256.clone(), blake3: file.blake3.clone() }
}

/// Replaces the manifest in `dir`.
pub(super) fn write_manifest(dir: &Path, manifest: &Manifest) -> Result<(), ModelError> {
    let path = dir.join(MANIFEST);
    let part = dir.join(format!("{MANIFEST}{PART}"));
    let write = || -> io::Result<()> {
        let mut file = File::create(&part)?;
        file.write_all(&serde_json::to_vec_pretty(manifest)?)?;
        file.sync_all()?;
        fs::rename(&part, &path)
    };
    write().map_err(io_error("write", &path))
}

/// Removes a folder; one that is not there is fine.
pub(super) fn remove_dir(dir: &Path) -> Result<(), ModelError> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", dir)(error)),
        _ => Ok(()),
    }
}

/// The files below a folder, by their paths with `/`, sorted. Links are followed to files, not to folders.
pub(super) fn files_below(dir: &Path) -> Result<Vec<String>, ModelError> {
    /// Far deeper than a model lies in any archive, cache or package.
    const DEEPEST: usize = 12;
    const MOST: usize = 100_000;
    let mut files = Vec::new();
    let mut folders = vec![(dir.to_owned(), String::new(), 0)];
    while let Some((folder, prefix, depth)) = folders.pop() {
        if files.len() > MOST {
            return Err(io_error("list", dir)(io::Error::other(
                "it has too many files; name the folder of a model",
            )));
        }
        let entries = fs::read_dir(&folder).map_err(io_error("read", &folder))?;
        for entry in entries {
            let entry = entry.map_err(io_error("read", &folder))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            let kind = entry.file_type().map_err(io_error("read", &entry.path()))?;
            if kind.is_dir() && depth < DEEPEST {
                folders.push((entry.path(), format!("{prefix}{name}/"), depth + 1));
            } else if kind.is_file() || (kind.is_symlink() && entry.path().is_file()) {
                files.push(format!("{prefix}{name}"));
            }
        }
    }
    files.sort();
    Ok(files)
}

/// What earlier attempts have left: names and bytes.
pub(super) fn unfinished(models: &Path) -> Vec<(String, u64)> {
    let Ok(entries) = fs::read_dir(models.join(INCOMING)) else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let files = files_below(&entry.path()).unwrap_or_default();
        let size = |file: &String| entry.path().join(file).metadata().map_or(0, |file| file.len());
        let bytes = files.iter().map(size).sum();
        if bytes > 0 && layout::is_name(&name) {
            found.push((name, bytes));
        }
    }
    found.sort();
    found
}
