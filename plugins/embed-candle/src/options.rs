use crate::NAME;
use magray_model::{Architecture, Overrides};
use magray_plugin_api::{Error, ErrorCode, Result};
use serde::Deserialize;

/// The options of [`CandleEmbedder`](crate::CandleEmbedder).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// A folder in the folder of models by its name, or with a path separator in it a folder.
    pub model: String,
    /// The most texts that one call takes, at least 1.
    pub batch_size: usize,
    /// Whether to run on a GPU. The plugin decides it: this option only refuses the wrong one.
    pub use_gpu: Option<bool>,
    /// Which GPU, counted from 0.
    pub device_id: usize,
    /// Precision of the arithmetic.
    pub precision: Precision,
    /// What is set beside the model's files.
    #[serde(flatten)]
    pub overrides: Overrides,
}

/// Precision of the arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32 on the CPU; on a GPU what the network bears: f16 for encoders, bf16 for Qwen3, whose
    /// states are larger than f16 holds.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, 8 of them for the exponent.
    Bf16,
    /// 16 bits, 5 of them for the exponent.
    F16,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            model: String::new(),
            batch_size: 128,
            use_gpu: None,
            device_id: 0,
            precision: Precision::Auto,
            overrides: Overrides::default(),
        }
    }
}

/// The options that both plugins have, after those of one.
macro_rules! schema {
    ($own:literal) => {
        concat!(
            r#"{
  "type": "object",
  "additionalProperties": false,
  "required": ["model"],
  "properties": {
    "model": {
      "type": "string",
      "minLength": 1,
      "description": "A folder in the folder of models by its name, or the path of a folder: model.safetensors, config.json and tokenizer.json of a BERT, XLM-R, MPNet or Qwen3 model in Hugging Face layout."
    },
    "batch_size": {
      "type": "integer",
      "minimum": 1,
      "default": 128,
      "description": "The most texts in one call."
    },"#,
            $own,
            magray_model::overrides_schema!(),
            r#"
  }
}"#
        )
    };
}

#[cfg(not(feature = "cuda"))]
pub(crate) const SCHEMA: &str = schema!(
    r#"
    "use_gpu": {
      "type": "boolean",
      "default": false,
      "description": "Refused where it is true: this plugin runs on the CPU, the plugin candle-cuda on a GPU."
    },
    "precision": {
      "enum": ["auto", "f32"],
      "default": "auto",
      "description": "Precision of the arithmetic: f32."
    },"#
);

// Without `use_gpu`: whoever names this plugin wants the GPU, whatever is set for all of them.
#[cfg(feature = "cuda")]
pub(crate) const SCHEMA: &str = schema!(
    r#"
    "device_id": {
      "type": "integer",
      "minimum": 0,
      "default": 0,
      "description": "Which GPU, counted from 0."
    },
    "precision": {
      "enum": ["auto", "f32", "bf16", "f16"],
      "default": "auto",
      "description": "Precision of the arithmetic; auto is f16 for BERT, XLM-R and MPNet and bf16 for Qwen3."
    },"#
);

impl Options {
    /// Refuses what this build cannot do.
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |message: &str| Err(Error::new(ErrorCode::INVALID_CONFIG, message));
        if self.model.is_empty() {
            return wrong("'model' is empty; `magray model list` shows the models that are there");
        }
        if self.batch_size == 0 {
            return wrong("'batch_size' is 0; it is at least 1");
        }
        if cfg!(feature = "cuda") {
            if self.use_gpu == Some(false) {
                return wrong(
                    "'use_gpu' is false, and candle-cuda runs on a GPU; the backend candle does not",
                );
            }
            return Ok(());
        }
        if self.use_gpu == Some(true) {
            return Err(Error::new(
                ErrorCode::UNAVAILABLE,
                "'use_gpu' is true, and the backend candle runs on the CPU; use the backend candle-cuda, whose \
                 plugin file scripts/build-candle-cuda.sh builds, or set use_gpu = false",
            ));
        }
        if !matches!(self.precision, Precision::Auto | Precision::F32) {
            return wrong("'precision' is auto or f32 on the CPU; bf16 and f16 are for candle-cuda");
        }
        Ok(())
    }

    /// The type of numbers to compute `architecture` with.
    pub(crate) fn dtype(&self, architecture: &Architecture) -> candle_core::DType {
        use candle_core::DType::{BF16, F16, F32};
        match (self.precision, architecture) {
            (Precision::Auto, _) if NAME == "candle" => F32,
            (Precision::Auto, Architecture::Qwen3(_)) => BF16,
            (Precision::Auto, _) => F16,
            (Precision::F32, _) => F32,
            (Precision::Bf16, _) => BF16,
            (Precision::F16, _) => F16,
        }
    }
}
