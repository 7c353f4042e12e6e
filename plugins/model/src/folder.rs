use crate::{Architecture, Manifest, Pooling, Tokenizer, corrupt, unsupported};
use magray_plugin_api::{Error, ErrorCode, Result};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// A model in a folder of its own, in Hugging Face layout.
#[derive(Clone, Debug)]
pub struct ModelFolder {
    /// The folder.
    pub dir: PathBuf,
    /// The folder's name, for people.
    pub name: String,
    /// What decides a vector, but for weights and vocabulary.
    pub spec: Spec,
    /// The files that hold the weights.
    pub weights: WeightFiles,
    /// The ONNX form of the same model, by its path below `dir`, where the folder has one.
    pub onnx: Option<String>,
}

/// Where the weights are, by paths below the folder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightFiles {
    /// One file, or several shards in the order of their names.
    Safetensors(Vec<String>),
    /// Only an ONNX form.
    Onnx(String),
}

impl WeightFiles {
    /// The paths.
    pub fn paths(&self) -> &[String] {
        match self {
            Self::Safetensors(paths) => paths,
            Self::Onnx(path) => std::slice::from_ref(path),
        }
    }
}

/// What decides a vector, but for weights and vocabulary.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Spec {
    /// The network.
    pub architecture: Architecture,
    /// How tokens become one vector.
    pub pooling: Pooling,
    /// What goes before each text.
    pub prefixes: Prefixes,
    /// Tokens of a text beyond this many are cut off; special tokens count.
    pub max_tokens: usize,
    /// Width of the vectors: that of the network, or less (Matryoshka).
    pub dim: usize,
    /// Whether a classifier after the network judges pairs of texts (a cross-encoder), so that there are no vectors.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub judges_pairs: bool,
}

/// What goes before each text, by its role.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Prefixes {
    /// Before a text that asks.
    pub query: String,
    /// Before a text that is searched for.
    pub passage: String,
}

/// What a user sets beside the model's own files: options that every backend has, which flattens them into its own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Overrides {
    /// Fewer tokens of a text than the model takes.
    pub max_tokens: Option<usize>,
    /// Only so many of the first numbers of a vector (Matryoshka).
    pub dim: Option<usize>,
    /// What goes before a query, instead of what the model's files say.
    pub query_prefix: Option<String>,
    /// What goes before a passage, instead of what the model's files say.
    pub passage_prefix: Option<String>,
}

/// The part of a JSON Schema that names the options of [`Overrides`](crate::Overrides), for `concat!`.
#[macro_export]
macro_rules! overrides_schema {
    () => {
        r#"
    "max_tokens": {
      "type": "integer",
      "minimum": 3,
      "description": "Tokens of a text beyond this many are cut off; by default as many as the model takes."
    },
    "dim": {
      "type": "integer",
      "minimum": 1,
      "description": "Keep only so many of the first numbers of a vector, for models that are made for it (Matryoshka)."
    },
    "query_prefix": {
      "type": "string",
      "description": "What goes before a text that asks, instead of what the model's files say."
    },
    "passage_prefix": {
      "type": "string",
      "description": "What goes before a text that is searched for, instead of what the model's files say."
    }"#
    };
}

/// BLAKE3 digests of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Digests {
    /// Of everything that decides a vector: see [`ModelFolder::space`].
    pub space: [u8; 32],
    /// Of the network and its weights.
    pub weights: [u8; 32],
}

impl ModelFolder {
    /// The folder of a model that is named by an option: a name below `models`, or a path.
    pub fn locate(model: &str, models: &Path) -> PathBuf {
        if model.contains(std::path::is_separator) { model.into() } else { models.join(model) }
    }

    /// Reads the configuration of the model in `dir`. Weights are not touched.
    ///
    /// # Errors
    /// `UNAVAILABLE` where folder or files are missing, `CORRUPT_DATA` where they contradict each
    /// other, `UNSUPPORTED` for networks and modules that are not known, `INVALID_CONFIG` for
    /// overrides that cannot be. Every message names the folder.
    pub fn open(dir: &Path, overrides: &Overrides) -> Result<Self> {
        read(dir, overrides).map_err(|error| {
            Error::new(error.code(), format!("model {}: {}", dir.display(), error.message()))
        })
    }

    /// The tokenizer of the model.
    ///
    /// # Errors
    /// As [`Tokenizer::open`].
    pub fn tokenizer(&self) -> Result<Tokenizer> {
        let vocab = match &self.spec.architecture {
            Architecture::Bert(bert) => bert.vocab,
            Architecture::Qwen3(qwen) => qwen.vocab,
            Architecture::Static => usize::MAX,
        };
        Tokenizer::open(&self.dir, self.spec.prefixes.clone(), self.spec.max_tokens, vocab)
            .map_err(|error| Error::new(error.code(), format!("model {}: {}", self.name, error.message())))
    }

    /// Refuses a model that makes no vectors.
    ///
    /// # Errors
    /// `UNSUPPORTED` for a cross-encoder.
    pub fn check_makes_vectors(&self) -> Result<()> {
        if self.spec.judges_pairs {
            return Err(unsupported(format!(
                "the model {} judges pairs of texts and makes no vectors; it can rerank, by the backend onnx",
                self.name
            )));
        }
        Ok(())
    }

    /// Digest of everything that decides a vector: network, weights, vocabulary, pooling, prefixes,
    /// maximal length, width. Reads the weights, unless the folder's [`Manifest`] vouches for them.
    ///
    /// # Errors
    /// `IO` where a file cannot be read.
    pub fn space(&self) -> Result<[u8; 32]> {
        Ok(self.digests()?.space)
    }

    /// The space, and the digest of the weights alone. Reads the weights, unless the folder's
    /// [`Manifest`] vouches for them.
    ///
    /// # Errors
    /// `IO` where a file cannot be read.
    pub fn digests(&self) -> Result<Digests> {
        let manifest = Manifest::read(&self.dir);
        let json = |error| Error::new(ErrorCode::INTERNAL, format!("the model's settings: {error}"));
        let mut space = blake3::Hasher::new();
        space.update(b"magray transformer 1\n");
        space.update(&serde_json::to_vec(&self.spec).map_err(json)?);
        let mut weights = blake3::Hasher::new();
        weights.update(&serde_json::to_vec(&self.spec.architecture).map_err(json)?);
        for path in self.weights.paths() {
            let digest = self.digest(path, manifest.as_ref())?;
            space.update(digest.as_bytes());
            weights.update(digest.as_bytes());
        }
        space.update(self.digest("tokenizer.json", manifest.as_ref())?.as_bytes());
        Ok(Digests { space: space.finalize().into(), weights: weights.finalize().into() })
    }

    fn digest(&self, path: &str, manifest: Option<&Manifest>) -> Result<blake3::Hash> {
        let file = self.dir.join(path);
        let hash = || -> io::Result<blake3::Hash> {
            let known = manifest.and_then(|manifest| manifest.blake3(path, &fs::metadata(&file).ok()?));
            match known {
                Some(known) => Ok(known),
                None => Ok(blake3::Hasher::new().update_mmap(&file)?.finalize()),
            }
        };
        hash().map_err(|error| {
            Error::new(ErrorCode::IO, format!("model {}: cannot read {path}: {error}", self.name))
        })
    }
}

fn read(dir: &Path, overrides: &Overrides) -> Result<ModelFolder> {
    if !dir.is_dir() {
        return Err(Error::new(
            ErrorCode::UNAVAILABLE,
            "no such folder; `magray model list` shows the models that are there, `magray model pull` and \
             `magray model import` get others",
        ));
    }
    let config = json(dir, "config.json")?
        .ok_or_else(|| Error::new(ErrorCode::UNAVAILABLE, "config.json is missing"))?;
    let architecture = Architecture::from_config(&config)?;
    let (weights, onnx) = weight_files(dir)?;
    let hidden = match architecture.hidden() {
        Some(hidden) => hidden,
        None => size(&config["hidden_dim"]).unwrap_or(0),
    };
    let dim = match overrides.dim {
        None => hidden,
        Some(dim) if (1..=hidden).contains(&dim) => dim,
        Some(dim) => {
            let message = format!("'dim' is {dim}; the model has 1 to {hidden}");
            return Err(Error::new(ErrorCode::INVALID_CONFIG, message));
        }
    };
    let judges_pairs = judges_pairs(&config)?;
    let spec = Spec {
        pooling: if judges_pairs { Pooling::Cls } else { pooling(dir, &architecture)? },
        prefixes: prefixes(dir, overrides)?,
        max_tokens: max_tokens(dir, &architecture, overrides)?,
        architecture,
        dim,
        judges_pairs,
    };
    let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
    Ok(ModelFolder { dir: dir.to_owned(), name, spec, weights, onnx })
}

/// Whether the network ends in a classifier of one class, by the name of the class that saved it.
fn judges_pairs(config: &Value) -> Result<bool> {
    let classes = config["architectures"].as_array().into_iter().flatten().filter_map(Value::as_str);
    if !classes.into_iter().any(|class| class.ends_with("ForSequenceClassification")) {
        return Ok(false);
    }
    let labels = config["id2label"].as_object().map(serde_json::Map::len);
    // transformers assumes two classes where the file does not say.
    match labels.or_else(|| size(&config["num_labels"])).unwrap_or(2) {
        1 => Ok(true),
        labels => Err(unsupported(format!(
            "it sorts texts into {labels} classes; one that reranks has a single class"
        ))),
    }
}

fn weight_files(dir: &Path) -> Result<(WeightFiles, Option<String>)> {
    let there = |path: &str| dir.join(path).is_file();
    let onnx = ["onnx/model.onnx", "model.onnx"].into_iter().find(|path| there(path)).map(str::to_owned);
    if there("model.safetensors") {
        return Ok((WeightFiles::Safetensors(vec!["model.safetensors".to_owned()]), onnx));
    }
    if let Some(index) = json(dir, "model.safetensors.index.json")? {
        let map = index["weight_map"].as_object();
        let mut files: Vec<String> = map
            .into_iter()
            .flat_map(|map| map.values())
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect();
        files.sort();
        files.dedup();
        let inside = |file: &String| !file.contains(['/', '\\']) && file.ends_with(".safetensors");
        if files.is_empty() || !files.iter().all(inside) {
            return Err(corrupt("model.safetensors.index.json has no usable weight_map"));
        }
        return Ok((WeightFiles::Safetensors(files), onnx));
    }
    match onnx {
        Some(path) => Ok((WeightFiles::Onnx(path.clone()), Some(path))),
        None => Err(Error::new(
            ErrorCode::UNAVAILABLE,
            "there is no model.safetensors, model.safetensors.index.json or onnx/model.onnx",
        )),
    }
}

/// The pooling that `modules.json` names; where there is none, that which the network is made for.
fn pooling(dir: &Path, architecture: &Architecture) -> Result<Pooling> {
    let by_network = match architecture {
        Architecture::Qwen3(_) => Pooling::Last,
        Architecture::Bert(_) | Architecture::Static => Pooling::Mean,
    };
    let Some(modules) = json(dir, "modules.json")? else { return Ok(by_network) };
    let mut pooling = by_network;
    for module in modules.as_array().into_iter().flatten() {
        let kind = module["type"].as_str().unwrap_or_default();
        match kind.rsplit('.').next().unwrap_or_default() {
            "Transformer" | "Normalize" | "StaticEmbedding" => {}
            "Pooling" => {
                let path = module["path"].as_str().unwrap_or_default();
                if path.is_empty() || path.contains(['/', '\\', ':']) || path.starts_with('.') {
                    return Err(corrupt(format!("modules.json has the path '{path}'")));
                }
                let name = format!("{path}/config.json");
                let config = json(dir, &name)?.ok_or_else(|| {
                    Error::new(ErrorCode::UNAVAILABLE, format!("{name} is missing, which modules.json names"))
                })?;
                pooling = pooling_mode(&config, &name)?;
            }
            _ => {
                return Err(unsupported(format!(
                    "modules.json has a module '{kind}'; Transformer, Pooling and Normalize are known"
                )));
            }
        }
    }
    Ok(pooling)
}

fn pooling_mode(config: &Value, name: &str) -> Result<Pooling> {
    // Newer files have one key, older ones a flag a mode.
    if let Some(mode) = config["pooling_mode"].as_str() {
        return match mode {
            "mean" => Ok(Pooling::Mean),
            "cls" => Ok(Pooling::Cls),
            "lasttoken" => Ok(Pooling::Last),
            _ => Err(unsupported(format!("{name} has the pooling_mode '{mode}'"))),
        };
    }
    let flags = config.as_object().into_iter().flatten();
    let on: Vec<&str> = flags
        .filter(|(key, value)| key.starts_with("pooling_mode_") && **value == true)
        .map(|(key, _)| key.as_str())
        .collect();
    match on[..] {
        ["pooling_mode_mean_tokens"] => Ok(Pooling::Mean),
        ["pooling_mode_cls_token"] => Ok(Pooling::Cls),
        ["pooling_mode_lasttoken"] => Ok(Pooling::Last),
        _ => Err(unsupported(format!(
            "{name} has the pooling {on:?}; mean, cls or lasttoken alone is possible"
        ))),
    }
}

/// By precedence: the user's, those of the manifest, those of the model's own files, none.
fn prefixes(dir: &Path, overrides: &Overrides) -> Result<Prefixes> {
    let own = json(dir, "config_sentence_transformers.json")?.unwrap_or_default();
    let prompt =
        |names: &[&str]| names.iter().find_map(|&name| own["prompts"][name].as_str()).map(str::to_owned);
    let manifest = Manifest::read(dir).unwrap_or_default();
    let first = |choices: [Option<String>; 3]| choices.into_iter().flatten().next().unwrap_or_default();
    Ok(Prefixes {
        query: first([overrides.query_prefix.clone(), manifest.query_prefix, prompt(&["query"])]),
        passage: first([
            overrides.passage_prefix.clone(),
            manifest.passage_prefix,
            prompt(&["document", "passage"]),
        ]),
    })
}

/// The least of what the model's files and the user say.
fn max_tokens(dir: &Path, architecture: &Architecture, overrides: &Overrides) -> Result<usize> {
    let sentence = json(dir, "sentence_bert_config.json")?.unwrap_or_default();
    let tokenizer = json(dir, "tokenizer_config.json")?.unwrap_or_default();
    let stated = size(&sentence["max_seq_length"]).or_else(|| size(&tokenizer["model_max_length"]));
    let most = stated.unwrap_or(usize::MAX).min(architecture.max_positions());
    match overrides.max_tokens {
        None if most >= 3 => Ok(most),
        None => Err(corrupt(format!("the model takes {most} tokens at most"))),
        Some(asked) if (3..=most).contains(&asked) => Ok(asked),
        Some(asked) => {
            let message = format!("'max_tokens' is {asked}; the model takes 3 to {most}");
            Err(Error::new(ErrorCode::INVALID_CONFIG, message))
        }
    }
}

/// A size in JSON; some files write numbers such as 1e30 for "no limit".
fn size(value: &Value) -> Option<usize> {
    value.as_u64().map(|size| usize::try_from(size).unwrap_or(usize::MAX))
}

/// The JSON of a file; `None` where there is no such file.
fn json(dir: &Path, name: &str) -> Result<Option<Value>> {
    match fs::read(dir.join(name)) {
        Ok(bytes) => match serde_json::from_slice(&bytes) {
            Ok(value) => Ok(Some(value)),
            Err(error) => Err(corrupt(format!("{name} is no JSON: {error}"))),
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new(ErrorCode::IO, format!("cannot read {name}: {error}"))),
    }
}
