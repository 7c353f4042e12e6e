//! Builds networks in memory, out of the tensors of a model, by the operators that ONNX Runtime has
//! for them (com.microsoft/contrib operators). There is no file to write, to verify or to damage, and
//! it is as quick as reading one.
//!
//! Inputs of every network, for `batch` sequences of at most `seq` tokens:
//!
//! - `input_ids`: i32 `[batch, seq]`, padded on the right with any id;
//! - `lengths`: i32 `[batch]`, tokens of each sequence;
//! - `pooling`: f32 `[batch, 1, seq]`, how much each token's state counts;
//! - `token_types`: i32 `[batch, seq]`, only where the model judges pairs of texts and knows types.
//!
//! Output: `pooled`, f32 `[batch, 1, hidden]`, the sum of the states by these weights. Its length is
//! arbitrary.

mod bert;
mod builder;
mod int8;
mod qwen3;

use magray_model::{Architecture, Spec, Weights};
use magray_plugin_api::{Error, ErrorCode, Result};
use ort::editor::Model;

pub(crate) const INPUT_IDS: &str = "input_ids";
pub(crate) const LENGTHS: &str = "lengths";
pub(crate) const POOLING: &str = "pooling";
pub(crate) const TOKEN_TYPES: &str = "token_types";
pub(crate) const POOLED: &str = "pooled";

/// Whether the network of a model can be built.
pub(crate) fn is_known(architecture: &Architecture) -> bool {
    match architecture {
        Architecture::Bert(_) | Architecture::Qwen3(_) => true,
        Architecture::Static => false,
    }
}

/// Whether the network of a model takes `token_types`.
pub(crate) fn takes_types(spec: &Spec) -> bool {
    spec.judges_pairs && matches!(&spec.architecture, Architecture::Bert(bert) if bert.token_types)
}

/// Builds the network of a model from its tensors, in f32 or with its linear layers in int8. Tensors that are used as
/// they are stay in the files.
///
/// # Safety
/// `weights` outlives the model and the sessions that are made of it.
///
/// # Errors
/// `CORRUPT_DATA` where a tensor is missing or has another shape, `UNSUPPORTED` where the network is
/// not known.
pub(crate) unsafe fn build(spec: &Spec, weights: &Weights, int8: bool) -> Result<Model> {
    match &spec.architecture {
        Architecture::Bert(bert) => bert::bert(bert, spec.judges_pairs, weights, int8),
        Architecture::Qwen3(qwen) => qwen3::qwen3(qwen, spec.max_tokens, weights, int8),
        Architecture::Static => {
            Err(Error::new(ErrorCode::UNSUPPORTED, "a static model is no network; the backend cpu runs it"))
        }
    }
}
