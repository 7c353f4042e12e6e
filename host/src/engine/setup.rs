//! What an engine is made of: the configuration, the folders, the plugins.
use super::ModelOrigins;
use crate::{
    config::Config,
    models::Models,
    plugins::{PluginError, PluginOptions, Plugins, Project},
    resources::total_memory,
    store::{DiskCache, DiskCacheOptions},
};
use magray_plugin_api::{ComponentKind, Embedder, Plugin, host::ContainedPolicy};
use std::{env, path::PathBuf, time::Duration};

/// Everything that decides how an engine works.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The settings in force.
    pub config: Config,
    /// Who named the embedding profile and model in them.
    pub origins: ModelOrigins,
    /// Holds the database, indexes and models.
    pub data_dir: PathBuf,
    /// Plugin folders named by flag or environment, before those of the config.
    pub plugin_dirs: Vec<PathBuf>,
    /// The config file and the plugin folders that it names, where it is not in the user's own config folder.
    pub project: Option<Project>,
    /// `magray` itself: plugins beside it are found, and it is run to try unknown ones.
    pub executable: Option<PathBuf>,
}

impl Setup {
    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.data_dir.join("magray.db")
    }

    /// The folder of models, where plugins look for them too.
    pub fn models(&self) -> Models {
        Models::new(self.data_dir.join("models"))
    }

    /// Bytes that the cache of embeddings may take in memory.
    pub fn cache_bytes(&self) -> u64 {
        self.config.memory.cache.max_bytes(total_memory())
    }

    /// The cache of embeddings on disk, whether the settings use it or not; opens nothing yet.
    pub fn disk_cache(&self) -> DiskCache {
        let settings = &self.config.memory.cache;
        let options = DiskCacheOptions {
            ttl: Some(settings.ttl_seconds).filter(|&ttl| ttl > 0).map(Duration::from_secs),
            max_bytes: settings.disk_max_bytes,
            max_entries: Some(settings.disk_max_entries).filter(|&most| most > 0).unwrap_or(u64::MAX),
            lookups: settings.alert_lookups,
        };
        DiskCache::new(&self.data_dir.join("cache.db"), options)
    }

    /// Reads the manifests of all plugins; loads none.
    pub fn plugins(&self) -> Plugins {
        self.plugins_of(self.plugin_folders())
    }

    /// As [`Setup::plugins`], of other folders.
    pub fn plugins_of(&self, folders: Vec<PathBuf>) -> Plugins {
        let settings = &self.config.plugins;
        let project = self.project.clone().map(|mut project| {
            let usual = [self.plugin_dirs.clone(), self.usual_folders()].concat();
            project.folders.retain(|folder| !usual.contains(folder));
            project
        });
        let options = PluginOptions {
            project,
            folders,
            allow: settings.allow.iter().map(ToString::to_string).collect(),
            trial_program: self.executable.clone().filter(|_| settings.probe),
            data_dir: self.data_dir.clone(),
            threads: settings.thread_budget(),
        };
        Plugins::discover(options, LINKED)
    }

    /// Makes the embedding backend of a profile, or of the component of that name; loads its plugin.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn embedder(&self, plugins: &Plugins, profile: &str) -> Result<Box<dyn Embedder>, PluginError> {
        let selected = self.config.ai.embedding.profile(profile);
        let component = &selected.profile.plugin;
        let options = selected.options_json(&plugins.options_schema(ComponentKind::Embedder, component)?);
        plugins.embedder(component, &options)
    }

    /// Makes the cache policy of a profile, or of the component of that name; loads its plugin.
    ///
    /// # Errors
    /// [`PluginError`].
    pub fn cache_policy(&self, plugins: &Plugins, profile: &str) -> Result<ContainedPolicy, PluginError> {
        let selected = self.config.memory.cache.profile(profile);
        let component = &selected.profile.plugin;
        let options = selected.options_json(&plugins.options_schema(ComponentKind::CachePolicy, component)?);
        plugins.cache_policy(component, &options)
    }

    /// Where plugins are looked for, the most important first.
    pub fn plugin_folders(&self) -> Vec<PathBuf> {
        let settings = &self.config.plugins;
        let mut folders = self.plugin_dirs.clone();
        folders.extend(settings.path.iter().map(|folder| folder.as_path().to_owned()));
        if settings.search_defaults {
            folders.extend(self.usual_folders());
        }
        folders
    }

    fn usual_folders(&self) -> Vec<PathBuf> {
        let mut folders = Vec::new();
        if let Some(beside) = self.executable.as_ref().and_then(|program| program.parent()) {
            folders.extend([beside.join("plugins"), beside.to_owned()]);
        }
        folders.push(self.data_dir.join("plugins"));
        if cfg!(unix) {
            folders.push("/usr/lib/magray/plugins".into());
        }
        folders
    }
}

/// The plugins that are part of the program.
pub const LINKED: &[&Plugin] = &[
    #[cfg(feature = "cpu")]
    &magray_embed_cpu::PLUGIN,
    &magray_index_flat::PLUGIN,
    &magray_index_native::PLUGIN,
    &magray_cache_lru::PLUGIN,
    &magray_cache_s3fifo::PLUGIN,
    &magray_cache_tinylfu::PLUGIN,
];

/// The user's data folder: `$MAGRAY_HOME`, else `magray` in the system's folder for data.
pub fn default_data_dir() -> Option<PathBuf> {
    let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    var("MAGRAY_HOME").or_else(|| {
        let base = if cfg!(windows) {
            var("LOCALAPPDATA")
        } else {
            var("XDG_DATA_HOME")
                .filter(|folder| folder.is_absolute())
                .or_else(|| var("HOME").map(|home| home.join(".local").join("share")))
        };
        base.map(|base| base.join("magray"))
    })
}
