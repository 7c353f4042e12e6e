//! `magray plugin install`, `remove` and `trust`: which files the user vouches for.
use super::{
    super::{Failure, Outcome, args::Global, setup, terminal::Terminal},
    check::Check,
};
use crate::plugins::{self, Candidate, PluginError, PluginStatus, Refusal, TrustBook};
use clap::Args;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// Check a plugin file, copy it into the data folder, and pin its SHA-256
#[derive(Debug, Args)]
pub(in crate::cli) struct Install {
    /// The plugin file
    file: PathBuf,
    /// Install it without running the conformance kit
    #[arg(long)]
    no_check: bool,
    /// Options of its components as a JSON object, for the check
    #[arg(long, value_name = "JSON")]
    options: Option<String>,
}

/// Remove an installed plugin
#[derive(Debug, Args)]
pub(in crate::cli) struct Remove {
    /// Id of the plugin, name of a component of it, or name of its file
    name: String,
}

/// Let a project's config load plugin files: those given, or show those that wait for it
#[derive(Debug, Args)]
pub(in crate::cli) struct Trust {
    /// Plugin files; none shows what the config would load
    files: Vec<PathBuf>,
    /// Trust them no longer
    #[arg(long, requires = "files")]
    revoke: bool,
}

impl Install {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let candidate = Candidate::file(&self.file)?;
        let name = self.file.file_name().unwrap_or_default();
        if !plugins::is_library_name(name) {
            return Err(Failure::Usage(format!(
                "{} is not named as a library of this system is, so it would not be found",
                self.file.display()
            )));
        }
        let digest = sha256(&self.file)?;
        if !self.no_check {
            Check::of(&self.file, self.options).run(global, terminal)?;
        }
        let folder = setup.data_dir.join("plugins");
        let target = folder.join(name);
        copy(&self.file, &digest, &folder, &target)
            .map_err(Failure::io(format!("cannot install {}", target.display())))?;
        let mut book = TrustBook::read(&setup.data_dir).map_err(refused(&target))?;
        book.installed.insert(name.to_string_lossy().into_owned(), digest.clone());
        write(&book, &setup.data_dir)?;
        let id = &candidate.manifest.id;
        if terminal.json {
            terminal.print_json(&serde_json::json!({ "plugin": id, "path": target, "sha256": digest }))?;
        } else {
            terminal.print(format_args!(
                "{id} {} is installed: {}\n  sha256 {digest}",
                candidate.manifest.version,
                target.display()
            ))?;
        }
        Ok(Outcome::Done)
    }
}

/// Copies beside the target and renames, so that a process which has the old one open keeps it. A file of another
/// digest is not the one that was checked.
fn copy(file: &Path, digest: &str, folder: &Path, target: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    let copy = tempfile::Builder::new().prefix(".installing-").tempfile_in(folder)?;
    fs::copy(file, copy.path())?;
    #[cfg(unix)]
    fs::set_permissions(copy.path(), std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    copy.as_file().sync_all()?;
    if plugins::sha256(copy.path())? != digest {
        return Err(io::Error::other("the file changed while it was checked; install it again"));
    }
    copy.persist(target)?;
    Ok(())
}

impl Remove {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let folder = setup.data_dir.join("plugins");
        let mut book = TrustBook::read(&setup.data_dir).map_err(refused(&folder))?;
        let plugins = setup.plugins_of(vec![folder.clone()]);
        let named = |status: &PluginStatus| {
            let file = status.path.as_ref().and_then(|path| path.file_name()).unwrap_or_default();
            file == &*self.name
                || status.manifest.as_ref().is_some_and(|manifest| {
                    manifest.id == self.name || manifest.components.iter().any(|part| part.name == self.name)
                })
        };
        let found = plugins.list().find(|status| status.path.is_some() && named(status));
        let Some(path) = found.and_then(|status| status.path) else {
            terminal.hint(&format!("no plugin '{}' is installed in {}", self.name, folder.display()));
            return Ok(Outcome::NothingFound);
        };
        fs::remove_file(&path).map_err(Failure::io(format!("cannot remove {}", path.display())))?;
        book.installed.remove(&*path.file_name().unwrap_or_default().to_string_lossy());
        write(&book, &setup.data_dir)?;
        if terminal.json {
            terminal.print_json(&serde_json::json!({ "removed": path }))?;
        } else {
            terminal.print(format_args!("removed {}", path.display()))?;
        }
        Ok(Outcome::Done)
    }
}

impl Trust {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        if self.files.is_empty() {
            let waiting = setup.plugins().untrusted();
            for path in &waiting {
                if terminal.json {
                    terminal.print_json(&serde_json::json!({ "path": path }))?;
                } else {
                    terminal.print(format_args!("{}", path.display()))?;
                }
            }
            if waiting.is_empty() {
                terminal.hint("the config loads no plugin that waits for trust");
                return Ok(Outcome::NothingFound);
            }
            terminal.hint("look at where they come from, then run: magray plugin trust FILE");
            return Ok(Outcome::Done);
        }
        let mut book = TrustBook::read(&setup.data_dir).map_err(refused(&setup.data_dir))?;
        for file in &self.files {
            let file = &Candidate::file(file)?.path.unwrap_or_else(|| file.clone());
            let digest = sha256(file)?;
            let word = if self.revoke {
                book.trusted.remove(&digest);
                "not trusted any more"
            } else {
                book.trusted.insert(digest.clone(), file.clone());
                "trusted"
            };
            write(&book, &setup.data_dir)?;
            if terminal.json {
                let trusted = !self.revoke;
                terminal
                    .print_json(&serde_json::json!({ "path": file, "sha256": digest, "trusted": trusted }))?;
            } else {
                terminal.print(format_args!("{word}: {}\n  sha256 {digest}", file.display()))?;
            }
        }
        Ok(Outcome::Done)
    }
}

fn sha256(file: &Path) -> Result<String, Failure> {
    plugins::sha256(file).map_err(Failure::io(format!("cannot read {}", file.display())))
}

fn write(book: &TrustBook, data_dir: &Path) -> Result<(), Failure> {
    book.write(data_dir).map_err(Failure::io("cannot note which plugins are trusted"))
}

fn refused(path: &Path) -> impl FnOnce(Refusal) -> Failure {
    let path = path.to_owned();
    move |refusal| PluginError::Refused { path, refusal }.into()
}
