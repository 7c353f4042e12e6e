//! Finds plugins, decides which to trust, loads them, and makes components by name.
//!
//! Discovery reads manifests only; a library is opened when a component of it is first asked for.
//! A library wins over a linked-in component of the same kind and name, and folders win in the
//! order in which they are given.
mod check;
mod child;
mod error;
mod file;
mod load;
mod services;
mod trial;
mod trust;

pub use check::{Candidate, CheckOptions, CheckRequest};
pub use error::{PluginError, Refusal};
pub use services::limit_threads;
pub use trust::{Project, TrustBook};

use file::PluginFile;
use magray_plugin_api::{
    ComponentKind, Embedder, ErrorCode, IndexSpec, Plugin, VectorIndex,
    host::{ContainedPolicy, PluginHandle},
    manifest::{ComponentManifest, Manifest},
};
use services::Services;
use std::{
    collections::BTreeSet,
    env::consts::{DLL_PREFIX, DLL_SUFFIX},
    ffi::OsStr,
    fs::File,
    io,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard},
};
use trial::Trials;

/// Where plugins come from and which of them are trusted.
#[derive(Debug, Default)]
pub struct PluginOptions {
    /// Folders to look in, the most important first. One that does not exist is skipped.
    pub folders: Vec<PathBuf>,
    /// Lower-case SHA-256 digests; where there are any, no other library is loaded.
    pub allow: Vec<String>,
    /// Where a config that is not the user's own names plugin folders: their files must be trusted.
    pub project: Option<Project>,
    /// `magray` itself, for the trial of unknown files in a child process; none trusts them.
    pub trial_program: Option<PathBuf>,
    /// The user's data folder.
    pub data_dir: PathBuf,
    /// Threads that each plugin may keep busy.
    pub threads: usize,
}

/// All plugins that were found.
#[derive(Debug)]
pub struct Plugins {
    options: PluginOptions,
    trials: Trials,
    entries: Vec<Entry>,
}

#[derive(Debug)]
struct Entry {
    origin: Origin,
    manifest: Option<Manifest>,
    state: Mutex<State>,
}

#[derive(Debug)]
enum Origin {
    Linked(&'static Plugin),
    Library(PathBuf),
}

#[derive(Debug)]
enum State {
    /// Its manifest fits; nothing of it has run.
    Found(Option<Box<PluginFile>>),
    Loaded(PluginHandle),
    Refused(String),
}

/// A plugin as `magray plugin list` shows it.
#[derive(Debug)]
pub struct PluginStatus {
    /// The file; none where the plugin is linked in.
    pub path: Option<PathBuf>,
    /// What the file says of itself; none where it cannot be read.
    pub manifest: Option<Manifest>,
    /// SHA-256 of the file.
    pub sha256: Option<String>,
    /// Why it is not usable.
    pub refusal: Option<String>,
}

impl Plugins {
    /// Reads the manifests of every library in the folders. Nothing of them runs.
    pub fn discover(options: PluginOptions, linked: &[&'static Plugin]) -> Self {
        let mut entries = Vec::new();
        let mut seen = BTreeSet::new();
        for path in options.folders.iter().flat_map(|folder| libraries(folder)) {
            if seen.insert(path.canonicalize().unwrap_or_else(|_| path.clone())) {
                entries.push(Entry::library(path));
            }
        }
        entries.extend(linked.iter().map(|plugin| Entry {
            origin: Origin::Linked(plugin),
            manifest: Manifest::of(plugin).ok(),
            state: Mutex::new(State::Found(None)),
        }));
        let trials = Trials::new(options.trial_program.clone(), &options.data_dir);
        Self { options, trials, entries }
    }

    /// Every plugin, libraries first; loads none. Hashes each library.
    pub fn list(&self) -> impl Iterator<Item = PluginStatus> + '_ {
        self.entries.iter().map(|entry| {
            let mut status =
                PluginStatus { path: None, manifest: entry.manifest.clone(), sha256: None, refusal: None };
            if let State::Refused(refusal) = &*entry.state() {
                status.refusal = Some(refusal.clone());
            }
            if let Origin::Library(path) = &entry.origin {
                status.path = Some(path.clone());
                if let Ok(file) = PluginFile::inspect(path) {
                    status.sha256 = file.sha256().ok();
                    let forbidden = self.vouched(&file).err().map(|refusal| refusal.to_string());
                    status.refusal =
                        status.refusal.or(forbidden).or_else(|| self.trials.known_failure(&file));
                }
            }
            status
        })
    }

    /// The libraries that are refused because nobody has trusted them; loads none.
    pub fn untrusted(&self) -> Vec<PathBuf> {
        let paths = self.entries.iter().filter_map(|entry| match &entry.origin {
            Origin::Library(path) => Some(path),
            Origin::Linked(_) => None,
        });
        let waits = |path: &&PathBuf| {
            let refusal = PluginFile::inspect(path).and_then(|file| self.vouched(&file));
            matches!(refusal, Err(Refusal::Untrusted { .. }))
        };
        paths.filter(waits).cloned().collect()
    }

    /// Loads the library at `path` and starts it, which is what the trial process is for. Returns
    /// what that process has to print.
    pub fn try_library(path: &Path, data_dir: &Path) -> String {
        let load = || {
            let file = PluginFile::inspect(path)?;
            let (plugin, data_dir) = (file.manifest.id.clone(), data_dir.to_owned());
            let services = Services { plugin, data_dir, threads: 1 };
            load::load(file, false, services.leak())
        };
        match load() {
            Ok(_) => trial::VERDICT.to_owned(),
            Err(refusal) => format!("{} {refusal}", trial::VERDICT),
        }
    }

    /// Whether some plugin offers the component, by its manifest; whether it can be loaded, loading tells.
    pub fn offers(&self, kind: ComponentKind, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.offers(kind, name))
    }

    /// Makes the embedding backend `name`; `options` is a JSON object.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn embedder(&self, name: &str, options: &str) -> Result<Box<dyn Embedder>, PluginError> {
        self.make(ComponentKind::Embedder, name, options, |handle| handle.embedder(name, options))
    }

    /// Makes the index backend `name`, empty or from the files in `dir`.
    ///
    /// # Errors
    /// [`PluginError`]; `CORRUPT_DATA` inside it where the files cannot be used.
    pub fn index(
        &self,
        name: &str,
        options: &str,
        spec: IndexSpec,
        dir: Option<&Path>,
    ) -> Result<Box<dyn VectorIndex>, PluginError> {
        self.make(ComponentKind::Index, name, options, |handle| handle.index(name, options, spec, dir))
    }

    /// Makes an empty index by a backend that is linked in, whatever libraries there are.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn linked_index(&self, name: &str, spec: IndexSpec) -> Result<Box<dyn VectorIndex>, PluginError> {
        let offers = |entry: &&Entry| {
            matches!(entry.origin, Origin::Linked(_)) && entry.offers(ComponentKind::Index, name)
        };
        let unknown = || self.unknown(ComponentKind::Index, name);
        let entry = self.entries.iter().find(offers).ok_or_else(unknown)?;
        let handle = self.handle(entry).map_err(|error| error.unwrap_or_else(unknown))?;
        let (kind, name, origin) = (ComponentKind::Index, name.to_owned(), entry.describe());
        handle.index(&name, "{}", spec, None).map_err(|error| PluginError::Call {
            kind,
            name: name.clone(),
            origin,
            error,
        })
    }

    /// Makes the cache policy `name`.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn cache_policy(&self, name: &str, options: &str) -> Result<ContainedPolicy, PluginError> {
        self.make(ComponentKind::CachePolicy, name, options, |handle| handle.cache_policy(name, options))
    }

    /// The manifest of the plugin that a component is made by; loads it.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn provider(&self, kind: ComponentKind, name: &str) -> Result<&Manifest, PluginError> {
        let (entry, _) = self.choose(kind, name)?;
        entry.manifest.as_ref().ok_or_else(|| self.unknown(kind, name))
    }

    /// JSON Schema of a component's options; loads its plugin.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn options_schema(&self, kind: ComponentKind, name: &str) -> Result<String, PluginError> {
        let (entry, _) = self.choose(kind, name)?;
        let component = entry.component(kind, name);
        Ok(component.map_or_else(|| "{}".to_owned(), |component| component.options.to_string()))
    }

    /// What the plugins offer of a kind, by their manifests; loads none.
    pub fn offered(&self, kind: ComponentKind) -> impl Iterator<Item = &ComponentManifest> {
        self.entries.iter().flat_map(Entry::components).filter(move |component| component.kind == kind)
    }

    /// That there is no such component.
    pub fn unknown(&self, kind: ComponentKind, name: &str) -> PluginError {
        let known: BTreeSet<_> = self.offered(kind).map(|component| component.name.as_str()).collect();
        let known = if known.is_empty() { "none".to_owned() } else { Vec::from_iter(known).join(", ") };
        PluginError::Unknown { kind, name: name.to_owned(), known }
    }

    fn make<T>(
        &self,
        kind: ComponentKind,
        name: &str,
        options: &str,
        make: impl Fn(&PluginHandle) -> magray_plugin_api::Result<T>,
    ) -> Result<T, PluginError> {
        let (entry, handle) = self.choose(kind, name)?;
        if let (Some(project), Some(component)) = (&self.options.project, entry.component(kind, name)) {
            project.check_options(component, options)?;
        }
        let failed =
            |error| PluginError::Call { kind, name: name.to_owned(), origin: entry.describe(), error };
        make(&handle).map_err(failed)
    }

    /// The first plugin that offers a component and can be loaded. One that cannot is passed over
    /// with a warning, and is the error where there is no other.
    fn choose(&self, kind: ComponentKind, name: &str) -> Result<(&Entry, PluginHandle), PluginError> {
        let mut refused = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.offers(kind, name)) {
            match self.handle(entry) {
                Ok(handle) => {
                    refused.iter().for_each(|error| tracing::warn!("{error}"));
                    return Ok((entry, handle));
                }
                Err(error) => refused.extend(error),
            }
        }
        Err(refused.pop().unwrap_or_else(|| self.unknown(kind, name)))
    }

    /// The loaded plugin; `Err(None)` where it was refused, and reported, before.
    fn handle(&self, entry: &Entry) -> Result<PluginHandle, Option<PluginError>> {
        let mut state = entry.state();
        let file = match &mut *state {
            State::Loaded(handle) => return Ok(*handle),
            State::Refused(_) => return Err(None),
            State::Found(file) => file.take(),
        };
        let services = |plugin: &str| {
            let PluginOptions { data_dir, threads, .. } = &self.options;
            Services { plugin: plugin.to_owned(), data_dir: data_dir.clone(), threads: *threads }.leak()
        };
        let loaded = match (&entry.origin, file) {
            (Origin::Linked(plugin), _) => Ok(PluginHandle::linked(plugin, services(plugin.id))),
            (Origin::Library(_), Some(file)) => self.trust(&file).and_then(|pinned| {
                let host = services(&file.manifest.id);
                load::load(*file, pinned, host)
            }),
            (Origin::Library(_), None) => return Err(None),
        };
        match loaded {
            Ok(handle) => {
                *state = State::Loaded(handle);
                Ok(handle)
            }
            Err(refusal) => {
                if let Refusal::Layout { report } = &refusal {
                    tracing::debug!("{}: {report}", entry.describe());
                }
                *state = State::Refused(refusal.to_string());
                let path = PathBuf::from(entry.describe());
                Err(Some(PluginError::Refused { path, refusal }))
            }
        }
    }

    /// Whether to load exactly the file that was hashed.
    fn trust(&self, file: &PluginFile) -> Result<bool, Refusal> {
        let pinned = self.vouched(file)?;
        self.trials.check(file, pinned)?;
        Ok(pinned)
    }

    /// That the file is one that the user lets in; whether it had to be known by its digest, and may be
    /// exchanged by somebody else.
    fn vouched(&self, file: &PluginFile) -> Result<bool, Refusal> {
        let PluginOptions { allow, project, data_dir, .. } = &self.options;
        let folder = file.path.parent();
        let project =
            project.as_ref().filter(|project| project.folders.iter().any(|own| same(Some(own), folder)));
        let installed = same(Some(&data_dir.join("plugins")), folder);
        if !allow.is_empty() {
            let found = file.sha256()?;
            if !allow.contains(&found) {
                return Err(Refusal::NotAllowed { found });
            }
        }
        if let Some(project) = project {
            TrustBook::read(data_dir)?.trusted(&file.path, &file.sha256()?, &project.config)?;
        } else if installed {
            let book = TrustBook::read(data_dir)?;
            if !book.installed.is_empty() {
                book.installed(&file.path, &file.sha256()?)?;
            }
        }
        Ok(!allow.is_empty() || project.is_some())
    }
}

/// Whether two paths are of one folder.
fn same(one: Option<&Path>, other: Option<&Path>) -> bool {
    let real = |path: &Path| path.canonicalize().ok();
    one.and_then(real).is_some_and(|one| other.and_then(real) == Some(one))
}

impl Entry {
    fn library(path: PathBuf) -> Self {
        let (manifest, state) = match PluginFile::inspect(&path) {
            Ok(file) => (Some(file.manifest.clone()), State::Found(Some(Box::new(file)))),
            Err(refusal) => {
                // Any library may lie beside the program; one that was meant as a plugin is news.
                match refusal {
                    Refusal::NotAPlugin => tracing::debug!("plugin {}: {refusal}", path.display()),
                    _ => tracing::warn!("plugin {}: {refusal}", path.display()),
                }
                (None, State::Refused(refusal.to_string()))
            }
        };
        Self { origin: Origin::Library(path), manifest, state: Mutex::new(state) }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn components(&self) -> impl Iterator<Item = &ComponentManifest> {
        self.manifest.iter().flat_map(|manifest| &manifest.components)
    }

    fn component(&self, kind: ComponentKind, name: &str) -> Option<&ComponentManifest> {
        self.components().find(|component| component.kind == kind && component.name == name)
    }

    fn offers(&self, kind: ComponentKind, name: &str) -> bool {
        self.component(kind, name).is_some()
    }

    fn describe(&self) -> String {
        match &self.origin {
            Origin::Linked(plugin) => format!("{} {} (built in)", plugin.id, plugin.version),
            Origin::Library(path) => path.display().to_string(),
        }
    }
}

/// Whether making an index failed because its files cannot be used.
pub fn is_corrupt(error: &PluginError) -> bool {
    matches!(error, PluginError::Call { error, .. } if error.code() == ErrorCode::CORRUPT_DATA)
}

/// Whether a file of this name is looked at in a plugin folder.
pub fn is_library_name(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name.starts_with(DLL_PREFIX) && name.ends_with(DLL_SUFFIX)
}

/// SHA-256 of a file in lower-case hexadecimal digits.
///
/// # Errors
/// As the system says.
pub fn sha256(path: &Path) -> io::Result<String> {
    file::sha256(&File::open(path)?)
}

/// The libraries of a folder, sorted by name.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let Ok(files) = folder.read_dir() else { return Vec::new() };
    let mut paths: Vec<PathBuf> = files
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| is_library_name(path.file_name().unwrap_or_default()))
        .collect();
    paths.sort();
    paths
}
