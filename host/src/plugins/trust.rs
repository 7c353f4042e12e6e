//! Which plugin files the user vouches for: those that were installed, by name, and those that a project brings,
//! by digest.
use super::error::{PluginError, Refusal};
use magray_plugin_api::manifest::ComponentManifest;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

/// `plugins/trust.json` in the data folder.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct TrustBook {
    /// SHA-256 digests of the files that a config outside the user's own folder may make the host load, each
    /// with the path that it had.
    #[serde(default)]
    pub trusted: BTreeMap<String, PathBuf>,
    /// Installed files by their names, each with the SHA-256 that it had.
    #[serde(default)]
    pub installed: BTreeMap<String, String>,
}

impl TrustBook {
    fn path(data_dir: &Path) -> PathBuf {
        data_dir.join("plugins").join("trust.json")
    }

    /// Reads the book of a data folder; an empty one where there is none.
    ///
    /// # Errors
    /// [`Refusal::Book`]: what cannot be read vouches for nothing.
    pub fn read(data_dir: &Path) -> Result<Self, Refusal> {
        let path = Self::path(data_dir);
        let failed = |error: io::Error| Refusal::Book { path: path.clone(), error: error.to_string() };
        match fs::read(&path) {
            Ok(json) => serde_json::from_slice(&json).map_err(|error| failed(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(failed(error)),
        }
    }

    /// Writes it whole or not at all.
    ///
    /// # Errors
    /// As the system says.
    pub fn write(&self, data_dir: &Path) -> io::Result<()> {
        write_json(&Self::path(data_dir), self)
    }

    /// That a file of the data folder's `plugins` is the one that was installed; one that was put there by hand
    /// has no entry and passes.
    pub(super) fn installed(&self, path: &Path, found: &str) -> Result<(), Refusal> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match self.installed.get(&*name) {
            Some(pinned) if pinned != found => Err(Refusal::Changed { path: path.to_owned() }),
            _ => Ok(()),
        }
    }

    /// That a file which `config` brings was trusted.
    pub(super) fn trusted(&self, path: &Path, found: &str, config: &Path) -> Result<(), Refusal> {
        if self.trusted.contains_key(found) {
            return Ok(());
        }
        Err(Refusal::Untrusted { path: path.to_owned(), config: config.to_owned() })
    }
}

/// Writes a file whole or not at all, and its folder where there is none.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    serde_json::to_writer_pretty(&mut file, value)?;
    file.persist(path)?;
    Ok(())
}

/// A config file that is not in the user's own config folder, as that of a cloned repository.
#[derive(Clone, Debug)]
pub struct Project {
    /// The config file.
    pub config: PathBuf,
    /// The plugin folders that only it names.
    pub folders: Vec<PathBuf>,
}

impl Project {
    /// That the options, a JSON object, which it gives a component name nothing that is reserved to the user, by the
    /// format of the schema. A `library` that a plugin loads by itself passes no gate, and loads others from its
    /// folder, which no digest of it covers. To a `uri` a plugin sends the user's texts, and perhaps a key.
    ///
    /// # Errors
    /// [`PluginError::Reserved`].
    pub fn check_options(&self, component: &ComponentManifest, options: &str) -> Result<(), PluginError> {
        let options: Value = serde_json::from_str(options).unwrap_or_default();
        let is_given =
            |option: &str| options.get(option).is_some_and(|value| *value != "" && !value.is_null());
        for (option, schema) in component.options["properties"].as_object().into_iter().flatten() {
            let what = match schema["format"].as_str() {
                Some("library") => "a library",
                Some("uri") => "an address",
                _ => continue,
            };
            if is_given(option) {
                return Err(PluginError::Reserved {
                    kind: component.kind,
                    name: component.name.clone(),
                    option: option.clone(),
                    what,
                    config: self.config.clone(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_api::ComponentKind;

    #[test]
    fn a_projects_config_names_no_library_and_no_address() {
        let project = Project { config: "repo/magray.toml".into(), folders: Vec::new() };
        let component = ComponentManifest {
            kind: ComponentKind::Embedder,
            name: "http".to_owned(),
            options: serde_json::json!({ "properties": {
                "url": { "type": "string", "format": "uri" },
                "runtime": { "type": "string", "format": "library" },
                "model": { "type": "string" },
            }}),
        };
        for fine in ["{}", r#"{"model": "http://model"}"#, r#"{"url": "", "runtime": null, "model": "m"}"#] {
            project.check_options(&component, fine).expect(fine);
        }
        for (options, says) in [
            (r#"{"model": "m", "url": "http://elsewhere"}"#, ["an address", "'url'"]),
            (r#"{"runtime": "libevil.so"}"#, ["a library", "'runtime'"]),
        ] {
            let error = project.check_options(&component, options).expect_err(options).to_string();
            assert!(says.iter().all(|word| error.contains(word)), "{error}");
            assert!(error.contains("magray.toml") && error.contains("'http'"), "{error}");
        }
    }
}
