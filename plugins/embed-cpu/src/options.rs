use crate::static_model::EMBEDDED;
use magray_model::Overrides;
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
    /// What is set beside a transformer's files.
    #[serde(flatten)]
    pub overrides: Overrides,
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
            overrides: Overrides::default(),
        }
    }
}

/// JSON Schema of [`CpuOptions`].
pub(crate) const SCHEMA: &str = concat!(
    r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "model": {
      "type": "string",
      "minLength": 1,
      "default": "potion-base-8M-int8",
      "description": "The embedded model by its name, a folder in the folder of models by its name, or the path of a folder. Its config.json says whether it is a static (model2vec-type) model or a transformer: BERT family, XLM-R, MPNet or Qwen3. Options other than model and batch_size are for transformers."
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
    },"#,
    magray_model::overrides_schema!(),
    r#"
  }
}"#
);
