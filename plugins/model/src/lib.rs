//! Model folders in Hugging Face layout, as every transformer backend reads them: `cpu`, `onnx` and
//! `candle` share all that decides a vector but the arithmetic, so their spaces are the same.
//!
//! [`ModelFolder::open`] reads the configuration into a [`Spec`]; [`Tokenizer`] turns texts into
//! token ids; [`Weights`] maps the tensors; [`Pooling::pool`] makes a vector of the last layer's
//! states; [`ModelFolder::space`] is the digest of all of it. [`GpuTuning`] is how all begin on a GPU.

mod architecture;
mod folder;
mod gpu;
mod manifest;
mod pooling;
mod tokenizer;
mod weights;

pub use architecture::{Activation, Architecture, Bert, Qwen3};
pub use folder::{Digests, ModelFolder, Overrides, Prefixes, Spec, WeightFiles};
pub use gpu::{GPU_MEMORY_SHARE, GpuTuning};
pub use manifest::{MANIFEST, Manifest, ManifestFile};
pub use pooling::{Pooling, normalize};
pub use tokenizer::{Packed, Tokenizer};
pub use weights::{Table, Weights};

use magray_plugin_api::{Error, ErrorCode};

fn corrupt(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::CORRUPT_DATA, message)
}

fn unsupported(message: impl Into<String>) -> Error {
    Error::new(ErrorCode::UNSUPPORTED, message)
}
