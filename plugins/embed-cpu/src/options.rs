use crate::static_model::EMBEDDED;
use serde::Deserialize;

/// The options of [`CpuEmbedder`](crate::CpuEmbedder).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuOptions {
    /// Name of the model: the embedded one, or a folder in the folder of models. With a path
    /// separator in it: a folder.
    pub model: String,
    /// The most texts that one call takes, at least 1.
    pub batch_size: usize,
    /// How a transformer's products are computed.
    pub precision: WantedPrecision,
    /// Fewer tokens than a transformer takes.
    pub max_tokens: Option<usize>,
    /// Only so many of the first numbers of a transformer's vectors (Matryoshka).
    pub dim: Option<usize>,
    /// What goes before queries, instead of what the model says.
    pub query_prefix: Option<String>,
    /// What goes before passages, instead of what the model says.
    pub passage_prefix: Option<String>,
}

/// How a transformer's products are computed. The space is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum WantedPrecision {
    /// The fastest whose vectors stay within a cosine of 0.999 of those by f32.
    #[default]
    Auto,
    /// 32-bit floats.
    F32,
    /// Products of bf16, summed in f32.
    Bf16,
    /// Products of 8-bit integers.
    Int8,
}

impl Default for CpuOptions {
    fn default() -> Self {
        Self {
            model: EMBEDDED.to_owned(),
            batch_size: 4096,
            precision: WantedPrecision::Auto,
            max_tokens: None,
            dim: None,
            query_prefix: None,
            passage_prefix: None,
        }
    }
}

/// JSON Schema of [`CpuOptions`].
pub(crate) const SCHEMA: &str = r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "model": {
      "type": "string",
      "minLength": 1,
      "default": "potion-base-8M-int8",
      "description": "The embedded model by its name, a folder in the folder of models by its name, or the path of a folder. Its config.json says whether it is a static (model2vec-type) model or a transformer: BERT family, XLM-R, MPNet or Qwen3."
    },
    "batch_size": {
      "type": "integer",
      "minimum": 1,
      "default": 4096,
      "description": "The most texts in one call."
    },
    "precision": {
      "enum": ["auto", "f32", "bf16", "int8"],
      "default": "auto",
      "description": "How a transformer's products are computed: auto is the fastest with a cosine of at least 0.999 to f32."
    },
    "max_tokens": {
      "type": "integer",
      "minimum": 3,
      "description": "Transformers: fewer tokens of a text than the model takes."
    },
    "dim": {
      "type": "integer",
      "minimum": 1,
      "description": "Transformers: only so many of the first numbers of a vector (Matryoshka)."
    },
    "query_prefix": {
      "type": "string",
      "description": "Transformers: what goes before queries, instead of what the model says."
    },
    "passage_prefix": {
      "type": "string",
      "description": "Transformers: what goes before passages, instead of what the model says."
    }
  }
}"#;
