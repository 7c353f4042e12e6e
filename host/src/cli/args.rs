//! Arguments that several commands share.
use crate::store::{Filter, Layer};
use clap::{
    Args,
    builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser},
};
use std::path::PathBuf;

#[derive(Clone, Debug, Args)]
pub(super) struct Global {
    /// Config file; else $MAGRAY_CONFIG, else magray/config.toml in the user's config folder
    #[arg(long, global = true, value_name = "FILE", help_heading = "Global options")]
    pub(super) config: Option<PathBuf>,
    /// Folder of database, indexes and models; else $MAGRAY_HOME
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(super) data_dir: Option<PathBuf>,
    /// Look for plugins in this folder first; may be given several times
    #[arg(long, global = true, value_name = "DIR", help_heading = "Global options")]
    pub(super) plugin_dir: Vec<PathBuf>,
    /// Embedding profile of the config, or embedding backend of a plugin
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    backend: Option<String>,
    /// Embedding model: a name, or the path of a model folder
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    model: Option<String>,
    /// Index profile of the config, or index backend of a plugin
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    index: Option<String>,
    /// Cache profile of the config, or cache policy of a plugin
    #[arg(long, global = true, value_name = "NAME", help_heading = "Global options")]
    cache: Option<String>,
    /// Print JSON on stdout
    #[arg(long, global = true, help_heading = "Global options")]
    pub(super) json: bool,
    /// Print no progress, hints or warnings
    #[arg(long, short, global = true, conflicts_with = "verbose", help_heading = "Global options")]
    pub(super) quiet: bool,
    /// Print what happens inside; twice for everything
    #[arg(long, short, global = true, action = clap::ArgAction::Count, help_heading = "Global options")]
    pub(super) verbose: u8,
}

impl Global {
    /// The flags that stand for keys of the config.
    pub(super) fn overrides(&self) -> Vec<(String, toml::Value)> {
        let flags = [
            ("ai.embedding.profile", &self.backend),
            ("ai.embedding.model_name", &self.model),
            ("memory.index.profile", &self.index),
            ("memory.cache.profile", &self.cache),
        ];
        let given = flags.into_iter().filter_map(|(key, flag)| Some((key.to_owned(), flag.clone()?.into())));
        given.collect()
    }
}

impl Global {
    /// The embedding profile and the model that the flags name, taken out, for a command that asks
    /// for a change of them and does not run by them.
    pub(super) fn take_model(&mut self) -> (Option<String>, Option<String>) {
        (self.backend.take(), self.model.take())
    }
}

/// Which records a command is about.
#[derive(Debug, Default, Args)]
pub(super) struct Select {
    /// Only records of this layer; may be given several times
    #[arg(long, value_name = "LAYER", value_parser = layer())]
    layer: Vec<Layer>,
    /// Only records of this kind, such as note or chunk
    #[arg(long, value_name = "KIND", value_parser = NonEmptyStringValueParser::new())]
    kind: Option<String>,
    /// Only records with this tag; several must all be there
    #[arg(long, value_name = "TAG", value_parser = NonEmptyStringValueParser::new())]
    tag: Vec<String>,
    /// Only records of this project
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    project: Option<String>,
    /// Only records of this session
    #[arg(long, value_name = "NAME", value_parser = NonEmptyStringValueParser::new())]
    session: Option<String>,
    /// Only records from files at or below this path
    #[arg(long, value_name = "PATH")]
    source: Option<PathBuf>,
}

impl Select {
    pub(super) fn filter(&self) -> Filter {
        let absolute = |path: &PathBuf| path.canonicalize().or_else(|_| std::path::absolute(path));
        let source = self.source.as_ref().map(|path| absolute(path).unwrap_or_else(|_| path.clone()));
        Filter {
            layers: self.layer.clone(),
            kind: self.kind.clone(),
            tags: self.tag.clone(),
            project: self.project.clone(),
            session: self.session.clone(),
            source: source.map(|path| path.to_string_lossy().into_owned()),
            ..Filter::default()
        }
    }

    /// Whether any of its flags is given.
    pub(super) fn selects(&self) -> bool {
        self.filter() != Filter::default()
    }
}

/// Parses the name of a layer.
pub(super) fn layer() -> impl TypedValueParser<Value = Layer> {
    let names = PossibleValuesParser::new(Layer::ALL.map(Layer::name));
    names.try_map(|name| name.parse::<Layer>())
}
