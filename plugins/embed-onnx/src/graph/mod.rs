//! Builds networks in memory, out of the tensors of a model, by the operators that ONNX Runtime has
//! for them (com.microsoft/contrib operators). There is no file to write, to verify or to damage, and
//! it is as quick as reading one.
//!
//! Inputs of every network, for `batch` sequences of at most `seq` tokens:
//!
//! - `input_ids`: i32 `[batch, seq]`, padded on the right with any id;
//! - `lengths`: i32 `[batch]`, tokens of each sequence;
//! - `pooling`: f32 `[batch, 1, seq]`, how much each token's state counts.
//!
//! Output: `pooled`, f32 `[batch, 1, hidden]`, the sum of the states by these weights. Its length is
//! arbitrary.

mod bert;
mod builder;
mod int8;

pub(crate) use bert::bert;

pub(crate) const INPUT_IDS: &str = "input_ids";
pub(crate) const LENGTHS: &str = "lengths";
pub(crate) const POOLING: &str = "pooling";
pub(crate) const POOLED: &str = "pooled";
