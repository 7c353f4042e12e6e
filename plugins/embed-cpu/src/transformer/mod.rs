//! Transformer models: the networks of `magray-model` on kernels of our own.
//!
//! The tokens of some texts stand packed, without padding, `[tokens, hidden]`; only attention looks at
//! one text at a time. `gemm` multiplies, `linear` does in one pass over the sums what follows a
//! product, `packed` keeps the weights in the form that the kernels read.

mod attention;
mod bert;
mod buffer;
mod cpu;
mod embedder;
mod gemm;
mod linear;
mod math;
mod network;
mod norm;
mod packed;
mod qwen3;
mod text;

pub(crate) use embedder::TransformerEmbedder;
