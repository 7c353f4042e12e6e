//! The configuration: built-in defaults, a TOML file, the environment and flags, each layer over the last.
//!
//! [`Config::load`] reads all of them and says of each value where it comes from. Each layer becomes a tree
//! (`tree`), keys that do not exist are taken out (`shape`), the trees are laid over one another and typed
//! (`decode`, `schema`).

mod background;
mod decode;
mod error;
mod overrides;
mod profile;
mod promotion;
mod render;
mod resource_manager;
mod schema;
mod search;
mod shape;
mod sync;
#[cfg(test)]
mod tests;
mod tree;
mod values;

pub use background::Background;
pub use error::{ConfigError, Problem};
pub use profile::{Profile, Profiles, Selected};
pub use promotion::{Preset, Promotion, Weights, recency_after};
pub use render::render_resolved;
pub use resource_manager::ResourceManager;
pub use schema::{
    Ai, Breaker, Cache, Choice, Config, DefaultLayer, Durability, Embedding, GpuConfig, Index, Ingest,
    LayerSettings, Layers, Log, LogLevel, Memory, Pipeline, Plugins, Store, default_cache_bytes,
};
pub use search::{FusionKind, Rerank, Search, SearchMode};
pub use sync::{Sync, Workload};
pub use tree::Origin;
pub use values::{Folder, Sha256, Ttl, Unfit};

use shape::Shape;
use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
    sync::Arc,
};
use tree::Node;

/// The defaults layer and, since it explains every key, what `magray config init` writes.
pub const DEFAULT_TOML: &str = include_str!("../../../config/default.toml");

/// A configuration, and where each part of it comes from.
#[derive(Debug, Clone)]
pub struct Resolved {
    /// The settings in force.
    pub config: Config,
    /// The config file that was read.
    pub file: Option<PathBuf>,
    tree: Node,
    defaults: Node,
}

impl Resolved {
    /// Where the value of a key such as `memory.cache.profile` comes from; for a table, where it is named
    /// first. `None`: there is no such key.
    pub fn origin(&self, key: &str) -> Option<&Origin> {
        let path: Vec<_> = key.split('.').collect();
        self.tree.get(&path).map(|node| &node.origin)
    }

    /// Whether a key was set to something else than its default, which a file by `magray config init` names too.
    pub fn is_set(&self, key: &str) -> bool {
        let path: Vec<_> = key.split('.').collect();
        let value = |tree: &Node| tree.get(&path).map(Node::to_value);
        value(&self.tree) != value(&self.defaults)
    }
}

impl Config {
    /// Reads all layers.
    ///
    /// `file` is what `--config` names; without it the file is `$MAGRAY_CONFIG`, or else
    /// `magray/config.toml` in the user's config folder if that exists. `env` is the whole environment, as
    /// [`std::env::vars_os`] gives it. `overrides` are flags, as dotted keys with values; a later one wins.
    ///
    /// # Errors
    /// Everything that is wrong in any layer, at once.
    pub fn load(
        file: Option<&Path>,
        env: impl Iterator<Item = (OsString, OsString)>,
        overrides: &[(String, toml::Value)],
    ) -> Result<Resolved, ConfigError> {
        let env: BTreeMap<_, _> = env.collect();
        let file = file.map(Path::to_owned).or_else(|| default_file(&env));
        let text = match &file {
            Some(path) => read(path).map_err(|problem| ConfigError { problems: vec![problem] })?,
            None => String::new(),
        };
        resolve(file, &text, &env, overrides)
    }

    /// Reads a file as [`Config::load`] would, with neither environment nor flags over it.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn check(file: &Path) -> Result<Resolved, ConfigError> {
        Self::load(Some(file), std::iter::empty(), &[])
    }
}

fn resolve(
    file: Option<PathBuf>,
    text: &str,
    env: &BTreeMap<OsString, OsString>,
    overrides: &[(String, toml::Value)],
) -> Result<Resolved, ConfigError> {
    let failed = |problems| ConfigError { problems };
    let defaults =
        Node::parse(DEFAULT_TOML, Path::new("default.toml"), &|_| Origin::Default).map_err(failed)?;
    let shape = Shape::of(&defaults);

    let path: Arc<Path> = file.clone().unwrap_or_default().into();
    let from_file = Node::parse(text, &path, &|line| Origin::File { path: path.clone(), line });
    let mut problems = Vec::new();
    let from_env = overrides::environment(env, &shape, &mut problems);
    let from_flags = overrides::flags(overrides, &shape, &mut problems);

    let mut tree = defaults.clone();
    for mut layer in [from_file.map_err(failed)?, from_env, from_flags] {
        shape.check(&mut layer, &mut problems);
        tree.overlay(layer);
    }
    let config = decode::decode(tree.clone(), &defaults, &mut problems);
    if let Some(config) = &config {
        problems.extend(config.contradictions().iter().map(|found| contradiction(found, &tree)));
        problems.extend(circles(config, &tree));
        problems.extend(promotion::unreachable(&config.memory, &tree));
    }
    match config {
        Some(config) if problems.is_empty() => Ok(Resolved { config, file, tree, defaults }),
        _ => Err(ConfigError { problems }),
    }
}

/// The file that is read when no flag names one.
fn default_file(env: &BTreeMap<OsString, OsString>) -> Option<PathBuf> {
    let var =
        |name: &str| env.get(&OsString::from(name)).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = var("MAGRAY_CONFIG") {
        return Some(path);
    }
    user_file(|name| var(name)).filter(|path| path.exists())
}

/// `magray/config.toml` in the user's config folder; `var` gives the value of an environment variable.
pub fn user_file(var: impl Fn(&str) -> Option<PathBuf>) -> Option<PathBuf> {
    let home = || if cfg!(windows) { var("APPDATA") } else { var("HOME").map(|home| home.join(".config")) };
    let folder = var("XDG_CONFIG_HOME").or_else(home).filter(|folder| folder.is_absolute())?;
    Some(folder.join("magray").join("config.toml"))
}

fn read(path: &Path) -> Result<String, Problem> {
    std::fs::read_to_string(path)
        .map_err(|error| Problem::new(path.display(), format!("cannot read the config file: {error}")))
}

/// Profiles that stand in for themselves. A list of stand-ins is taken as it is written, theirs are not added,
/// so no longer circle can be.
fn circles(config: &Config, tree: &Node) -> Vec<Problem> {
    let mut problems = Vec::new();
    for (name, profile) in &config.ai.embedding.profiles {
        let twice = |(at, other): (usize, &String)| other == name || profile.fallback[..at].contains(other);
        if let Some((_, other)) = profile.fallback.iter().enumerate().find(|&entry| twice(entry)) {
            let node = tree.get(&["ai", "embedding", "profiles", name, "fallback"]);
            let origin = node.map_or(Origin::Default, |node| node.origin.clone());
            let why = if other == name { "it is the profile itself" } else { "it is named twice" };
            problems.push(Problem::at(
                &origin,
                format!("take '{other}' out of 'fallback' of [ai.embedding.profiles.{name}]: {why}"),
            ));
        }
    }
    problems
}

/// Blames the setting that was made last.
fn contradiction(found: &schema::Contradiction, tree: &Node) -> Problem {
    let show = |key: &str| {
        let node = tree.get(&[found.table[0], found.table[1], key]);
        node.map(|node| (node.to_value(), node.origin.clone()))
    };
    let (Some((lower, lower_origin)), Some((upper, upper_origin))) = (show(found.lower), show(found.upper))
    else {
        return Problem::at(&Origin::Default, format!("'{}' is not set", found.lower));
    };
    let message = format!(
        "'{}' ({lower}, {lower_origin}) must be {} '{}' ({upper}, {upper_origin})",
        found.lower, found.relation, found.upper
    );
    let blamed = if lower_origin == Origin::Default { upper_origin } else { lower_origin };
    Problem::at(&blamed, message)
}
