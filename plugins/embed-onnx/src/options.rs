use crate::cuda::Gpu;
use magray_model::{GPU_MEMORY_SHARE, GpuTuning, Overrides};
use magray_plugin_api::{Error, ErrorCode, Result};
use serde::Deserialize;

/// The options of [`OnnxEmbedder`](crate::OnnxEmbedder).
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Name of a folder in the folder of models; with a path separator in it: a folder.
    pub model: String,
    /// The most texts that one call takes, at least 1. On a GPU, also the most that run at once.
    pub batch_size: usize,
    /// Run on a CUDA GPU.
    pub use_gpu: bool,
    /// Where the GPU cannot be used, run on the CPU and say so, instead of failing.
    pub allow_cpu: bool,
    /// Which GPU, counted from 0.
    pub device_id: u32,
    /// Bytes of GPU memory to use at most, shared by the streams; 0: no limit.
    pub gpu_mem_limit: u64,
    /// Precision of the arithmetic.
    pub precision: Precision,
    /// What is set beside the model's files.
    #[serde(flatten)]
    pub overrides: Overrides,
    /// The library of ONNX Runtime, or the folder that holds it; empty: it is looked for.
    pub runtime: String,
    /// Sessions, of which each runs one batch at a time; 0: one on a CPU, by its memory on a GPU.
    pub streams: usize,
    /// Whether copies to a GPU go through pinned memory; by default where it has 8 GB or more.
    pub use_pinned_memory: Option<bool>,
    /// Batches that are made ready while others run; by default 2 on a GPU of compute capability 7
    /// or later, else none.
    pub prefetch: Option<usize>,
}

/// Precision of the arithmetic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// That of the model's files.
    #[default]
    Auto,
    /// 32-bit floating point.
    Fp32,
    /// 8-bit integers for most products; vectors have a cosine of .995 or more to those of `fp32`.
    Int8,
}

/// Sessions are copies of the model in memory.
const MOST_STREAMS: usize = 64;

pub(crate) const SCHEMA: &str = concat!(
    r#"{
  "type": "object",
  "additionalProperties": false,
  "required": ["model"],
  "properties": {
    "model": {
      "type": "string",
      "minLength": 1,
      "description": "A folder in the folder of models by its name, or the path of a folder, in Hugging Face layout: config.json, tokenizer.json and model.safetensors (BERT, XLM-R, MPNet), or an ONNX file (model.onnx or onnx/model.onnx)."
    },
    "batch_size": {
      "type": "integer",
      "minimum": 1,
      "default": 128,
      "description": "The most texts in one call. On a GPU also the most that run at once; on a CPU few long ones run at once, which is quickest."
    },
    "use_gpu": {
      "type": "boolean",
      "default": false,
      "description": "Run on a CUDA GPU; needs a library of ONNX Runtime that is built for it."
    },
    "allow_cpu": {
      "type": "boolean",
      "default": false,
      "description": "Where the GPU cannot be used, run on the CPU and say so, instead of failing."
    },
    "device_id": {
      "type": "integer",
      "minimum": 0,
      "default": 0,
      "description": "Which GPU, counted from 0."
    },
    "gpu_mem_limit": {
      "type": "integer",
      "minimum": 0,
      "default": 0,
      "description": "Bytes of GPU memory to use at most, shared by the streams; 0 is no limit."
    },
    "precision": {
      "enum": ["auto", "fp32", "int8"],
      "default": "auto",
      "description": "int8 is faster on a CPU, and its vectors have a cosine of .995 or more to those of fp32. auto is fp32, unless the model has only an int8 file."
    },"#,
    magray_model::overrides_schema!(),
    r#",
    "runtime": {
      "type": "string",
      "format": "library",
      "default": "",
      "description": "The library of ONNX Runtime (1.24 or newer), or the folder that holds it. Empty: by ORT_DYLIB_PATH, in the folder 'runtime' beside the folder of models, in this plugin's folder, among the libraries of the system."
    },
    "streams": {
      "type": "integer",
      "minimum": 0,
      "maximum": 64,
      "default": 0,
      "description": "Batches that run at the same time; each stream holds a copy of the model. 0: one on a CPU; on a GPU 2 up to 4 GB of memory, 4 up to 8, 6 up to 16, else 8, but so few that the model takes half of the memory at most."
    },
    "use_pinned_memory": {
      "type": "boolean",
      "description": "Copy to a GPU through pinned memory; by default where it has 8 GB or more."
    },
    "prefetch": {
      "type": "integer",
      "minimum": 0,
      "description": "Batches that are made ready while others run; by default 2 on a GPU of compute capability 7 or later."
    }
  }
}"#
);

impl Default for Options {
    fn default() -> Self {
        Self {
            model: String::new(),
            batch_size: 128,
            use_gpu: false,
            allow_cpu: false,
            device_id: 0,
            gpu_mem_limit: 0,
            precision: Precision::Auto,
            overrides: Overrides::default(),
            runtime: String::new(),
            streams: 0,
            use_pinned_memory: None,
            prefetch: None,
        }
    }
}

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |message: &str| Err(Error::new(ErrorCode::INVALID_CONFIG, message));
        if self.model.is_empty() {
            return wrong("'model' is missing; `magray model list` shows which there are");
        }
        if self.batch_size == 0 {
            return wrong("'batch_size' is 0; it is at least 1");
        }
        if self.streams > MOST_STREAMS {
            return wrong("'streams' is larger than 64");
        }
        if self.use_gpu && self.precision == Precision::Int8 && !self.allow_cpu {
            return wrong(
                "'precision' is int8, which ONNX Runtime has for the CPU only; use fp32 with 'use_gpu'",
            );
        }
        Ok(())
    }

    /// Sessions on a GPU, or on the CPU where there is none, of a model of so many bytes.
    pub(crate) fn streams(&self, gpu: Option<&Gpu>, model: u64) -> usize {
        match gpu {
            _ if self.streams > 0 => self.streams,
            None => 1,
            Some(gpu) => {
                let copies = self.gpu_memory(gpu) / 2 / model.max(1);
                let usual = GpuTuning::streams(gpu.memory) as usize;
                usual.min(usize::try_from(copies).unwrap_or(usize::MAX)).max(1)
            }
        }
    }

    /// Bytes of a GPU's memory that are planned with.
    pub(crate) fn gpu_memory(&self, gpu: &Gpu) -> u64 {
        let planned = (gpu.memory as f64 * GPU_MEMORY_SHARE) as u64;
        if self.gpu_mem_limit > 0 { planned.min(self.gpu_mem_limit) } else { planned }
    }

    pub(crate) fn pins_memory(&self, gpu: &Gpu) -> bool {
        self.use_pinned_memory.unwrap_or_else(|| GpuTuning::pinned_memory(gpu.memory))
    }

    pub(crate) fn prefetch(&self, gpu: Option<&Gpu>) -> usize {
        self.prefetch.unwrap_or_else(|| gpu.map_or(0, |gpu| GpuTuning::prefetch(gpu.capability) as usize))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, Value};

    #[test]
    fn the_schema_names_the_options_and_their_defaults() {
        let schema: Value = serde_json::from_str(SCHEMA).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let defaults: Map<String, Value> = properties
            .iter()
            .filter_map(|(name, option)| Some((name.clone(), option.get("default")?.clone())))
            .collect();
        assert_eq!((properties.len(), defaults.len()), (15, 8));
        assert_eq!(serde_json::from_value::<Options>(defaults.into()).unwrap(), Options::default());
        // Every option that has no default is known, too.
        for (name, option) in properties {
            let value = match option["type"].as_str() {
                Some("integer") => "5".to_owned(),
                Some("boolean") => "true".to_owned(),
                _ => format!("\"{}\"", option["enum"][0].as_str().unwrap_or("x")),
            };
            serde_json::from_str::<Options>(&format!("{{\"{name}\": {value}}}")).unwrap();
        }
        assert!(serde_json::from_str::<Options>(r#"{"modle": "x"}"#).is_err());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let options = Options { model: "m".to_owned(), ..Options::default() };
        options.check().unwrap();
        for wrong in [
            Options::default(),
            Options { batch_size: 0, ..options.clone() },
            Options { streams: 65, ..options.clone() },
            Options { use_gpu: true, precision: Precision::Int8, ..options.clone() },
        ] {
            assert_eq!(wrong.check().unwrap_err().code(), ErrorCode::INVALID_CONFIG, "{wrong:?}");
        }
    }

    #[test]
    fn a_gpu_decides_what_is_not_set() {
        let gpu = Gpu { memory: 16 << 30, capability: 8 };
        let options = Options::default();
        assert_eq!((options.streams(None, 1 << 20), options.streams(Some(&gpu), 1 << 20)), (1, 6));
        assert_eq!(options.gpu_memory(&gpu), (16.0 * 0.7 * f64::from(1 << 30)) as u64);
        // Half of 11.2 GiB holds two models of 2.4; of 4 GiB none, and one is the least.
        assert_eq!(options.streams(Some(&gpu), 2_400_000_000), 2);
        let limited = Options { gpu_mem_limit: 4 << 30, ..Options::default() };
        assert_eq!(limited.streams(Some(&gpu), 2_400_000_000), 1);
        assert_eq!((options.prefetch(None), options.prefetch(Some(&gpu))), (0, 2));
        assert!(options.pins_memory(&gpu));
        let set = Options { streams: 3, prefetch: Some(0), use_pinned_memory: Some(false), ..options };
        assert_eq!(
            (set.streams(Some(&gpu), 1 << 40), set.prefetch(Some(&gpu)), set.pins_memory(&gpu)),
            (3, 0, false)
        );
    }
}
