use crate::{
    CachePolicy, CreateCachePolicy, CreateEmbedder, CreateVectorIndex, Embedder, Error, ErrorCode, Host,
    IndexSpec, Result, VectorIndex,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{fmt, path::Path};

/// What a component is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ComponentKind {
    /// An [`Embedder`].
    Embedder,
    /// A [`VectorIndex`].
    Index,
    /// A [`CachePolicy`].
    CachePolicy,
}

impl ComponentKind {
    /// The kind as the manifest writes it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Embedder => "embedder",
            Self::Index => "index",
            Self::CachePolicy => "cache_policy",
        }
    }
}

impl fmt::Display for ComponentKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Embedder => "embedding",
            Self::Index => "index",
            Self::CachePolicy => "cache",
        })
    }
}

/// A plugin as its author describes it, usable without any library boundary: the host links its
/// default plugins through this very value, and `export_plugin!` exports it from a library.
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    /// Unique name, kebab-case: the name of the crate is a good one.
    pub id: &'static str,
    /// Version of the plugin, by semver.
    pub version: &'static str,
    /// One line for `magray plugin list`.
    pub summary: &'static str,
    /// What it offers.
    pub components: &'static [Component],
}

/// One thing that a plugin offers, by name.
#[derive(Clone, Copy, Debug)]
pub struct Component {
    /// The name that a user's TOML gives.
    pub name: &'static str,
    /// JSON Schema of its options.
    pub options_schema: &'static str,
    /// How to make one.
    pub maker: Maker,
}

/// How to make a component from its options as JSON.
#[derive(Clone, Copy)]
#[expect(missing_docs, reason = "each is what Component says")]
pub enum Maker {
    Embedder(fn(&str, &'static dyn Host) -> Result<Box<dyn Embedder>>),
    Index(MakeIndex),
    CachePolicy(fn(&str, &'static dyn Host) -> Result<Box<dyn CachePolicy>>),
}

/// Makes an index from its options as JSON; the path is where to open it from, none makes an empty
/// one.
pub type MakeIndex = fn(&str, IndexSpec, Option<&Path>, &'static dyn Host) -> Result<Box<dyn VectorIndex>>;

impl fmt::Debug for Maker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().name())
    }
}

impl Maker {
    /// What it makes.
    pub const fn kind(&self) -> ComponentKind {
        match self {
            Self::Embedder(_) => ComponentKind::Embedder,
            Self::Index(_) => ComponentKind::Index,
            Self::CachePolicy(_) => ComponentKind::CachePolicy,
        }
    }
}

impl Plugin {
    /// Makes the embedding backend `name`; `options` is a JSON object.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is none, else as [`CreateEmbedder::create`].
    pub fn embedder(&self, name: &str, options: &str, host: &'static dyn Host) -> Result<Box<dyn Embedder>> {
        match self.maker(ComponentKind::Embedder, name)? {
            Maker::Embedder(make) => make(options, host),
            _ => unreachable!("maker() compares the kind"),
        }
    }

    /// Makes the index backend `name`, empty or from the files in `dir`.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is none, else as [`CreateVectorIndex::create`] and
    /// [`CreateVectorIndex::open`].
    pub fn index(
        &self,
        name: &str,
        options: &str,
        spec: IndexSpec,
        dir: Option<&Path>,
        host: &'static dyn Host,
    ) -> Result<Box<dyn VectorIndex>> {
        match self.maker(ComponentKind::Index, name)? {
            Maker::Index(make) => make(options, spec, dir, host),
            _ => unreachable!("maker() compares the kind"),
        }
    }

    /// Makes the cache policy `name`.
    ///
    /// # Errors
    /// `UNSUPPORTED` where there is none, else as [`CreateCachePolicy::create`].
    pub fn cache_policy(
        &self,
        name: &str,
        options: &str,
        host: &'static dyn Host,
    ) -> Result<Box<dyn CachePolicy>> {
        match self.maker(ComponentKind::CachePolicy, name)? {
            Maker::CachePolicy(make) => make(options, host),
            _ => unreachable!("maker() compares the kind"),
        }
    }

    fn maker(&self, kind: ComponentKind, name: &str) -> Result<Maker> {
        self.components
            .iter()
            .find(|component| component.name == name && component.maker.kind() == kind)
            .map(|component| component.maker)
            .ok_or_else(|| {
                let message = format!("the plugin {} has no {kind} backend '{name}'", self.id);
                Error::new(ErrorCode::UNSUPPORTED, message)
            })
    }
}

impl Component {
    /// An embedding backend.
    pub const fn embedder<E: CreateEmbedder>(name: &'static str) -> Self {
        let maker =
            Maker::Embedder(|json, host| Ok(Box::new(E::create(options(json, E::OPTIONS_SCHEMA)?, host)?)));
        Self { name, options_schema: E::OPTIONS_SCHEMA, maker }
    }

    /// An index backend.
    pub const fn index<I: CreateVectorIndex>(name: &'static str) -> Self {
        let maker = Maker::Index(|json, spec, dir, host| {
            let options = options(json, I::OPTIONS_SCHEMA)?;
            spec.check()?;
            Ok(Box::new(match dir {
                Some(dir) => I::open(options, spec, dir, host)?,
                None => I::create(options, spec, host)?,
            }))
        });
        Self { name, options_schema: I::OPTIONS_SCHEMA, maker }
    }

    /// A cache policy.
    pub const fn cache_policy<P: CreateCachePolicy>(name: &'static str) -> Self {
        let maker = Maker::CachePolicy(|json, host| {
            Ok(Box::new(P::create(options(json, P::OPTIONS_SCHEMA)?, host)?))
        });
        Self { name, options_schema: P::OPTIONS_SCHEMA, maker }
    }
}

fn options<O: DeserializeOwned>(json: &str, schema: &str) -> Result<O> {
    serde_json::from_str(json).map_err(|error| {
        // The place in the JSON means nothing to a user, who wrote TOML.
        let message = error.to_string();
        let mut message = message.split(" at line ").next().unwrap_or_default().to_owned();
        // serde does not say which fields there are where one structure flattens another.
        if message.starts_with("unknown field") && !message.contains(", expected") {
            let schema: serde_json::Value = serde_json::from_str(schema).unwrap_or_default();
            let known = schema["properties"].as_object().into_iter().flat_map(serde_json::Map::keys);
            let known: Vec<String> = known.map(|name| format!("`{name}`")).collect();
            message += &format!(", expected one of {}", known.join(", "));
        }
        Error::new(ErrorCode::INVALID_CONFIG, message)
    })
}
