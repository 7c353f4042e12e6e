//! Qwen3: a decoder whose heads share keys, with norms before each part. Yang et al. 2025
//! (arXiv:2505.09388), Zhang et al. 2025 (arXiv:2506.05176).
use super::{
    Check, Linear, Source,
    attention::{Bias, Heads, attend},
    columns,
};
use crate::{batch::Batch, failed};
use candle_core::{DType, Device, Tensor};
use candle_nn::{ops::rms_norm, rotary_emb::rope_thd};
use magray_model::Qwen3 as Config;
use magray_plugin_api::Result;

pub(super) struct Qwen3 {
    /// `[vocabulary, hidden]`
    words: Tensor,
    layers: Vec<Layer>,
    /// `[hidden]`
    norm: Tensor,
    heads: Heads,
    causal: Bias,
    /// Angle of each pair of numbers of a head for one step of position.
    frequencies: Vec<f64>,
    eps: f32,
}

struct Layer {
    norm: Tensor,
    /// Queries, keys and values.
    attention: Linear,
    query_norm: Tensor,
    key_norm: Tensor,
    attended: Linear,
    inner_norm: Tensor,
    gate: Linear,
    inner: Linear,
    outer: Linear,
}

impl Qwen3 {
    pub(super) fn load(config: &Config, source: &Source<'_>) -> Result<Self> {
        let (hidden, inner) = (config.hidden, config.intermediate);
        let heads = Heads { queries: config.heads, keys: config.kv_heads, width: config.head_dim };
        let (queries, keys) = (heads.queries * heads.width, heads.keys * heads.width);
        // The norm of the queries comes after their product, so the scale goes there.
        let scale = 1.0 / (heads.width as f32).sqrt();
        let layer = |at: usize| {
            let name = |part: &str| format!("layers.{at}.{part}");
            let part = |part: &str, outputs| (name(&format!("self_attn.{part}_proj")), outputs, 1.0);
            let query_norm = source.weights.f32(&name("self_attn.q_norm.weight"), &[heads.width])?;
            let query_norm = query_norm.into_iter().map(|number| number * scale).collect();
            Ok(Layer {
                norm: source.tensor(&name("input_layernorm.weight"), &[hidden])?,
                attention: source.fused(
                    &[part("q", queries), part("k", keys), part("v", keys)],
                    hidden,
                    false,
                )?,
                query_norm: source.place(query_norm, &[heads.width])?,
                key_norm: source.tensor(&name("self_attn.k_norm.weight"), &[heads.width])?,
                attended: source.linear(&name("self_attn.o_proj"), queries, hidden, false)?,
                inner_norm: source.tensor(&name("post_attention_layernorm.weight"), &[hidden])?,
                gate: source.linear(&name("mlp.gate_proj"), hidden, inner, false)?,
                inner: source.linear(&name("mlp.up_proj"), hidden, inner, false)?,
                outer: source.linear(&name("mlp.down_proj"), inner, hidden, false)?,
            })
        };
        let frequency = |pair: usize| config.rope_theta.powf(-2.0 * pair as f64 / config.head_dim as f64);
        Ok(Self {
            words: source.tensor("embed_tokens.weight", &[config.vocab, hidden])?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            norm: source.tensor("norm.weight", &[hidden])?,
            causal: Bias::causal(source.device, source.dtype).map_err(|error| failed(&error))?,
            frequencies: (0..config.head_dim / 2).map(frequency).collect(),
            heads,
            eps: config.rms_norm_eps,
        })
    }

    /// Normed states of the last layer, `[rows, hidden]`.
    pub(super) fn run(&self, batch: &Batch, check: Check<'_>) -> Result<Tensor> {
        let start = || {
            let states = self.words.index_select(&batch.ids, 0)?;
            Ok((self.rotation(batch, states.dtype(), states.device())?, states))
        };
        let (rotation, mut states) = start().map_err(|error| failed(&error))?;
        for layer in &self.layers {
            check()?;
            states = self.layer(layer, &states, batch, &rotation).map_err(|error| failed(&error))?;
        }
        rms_norm(&states, &self.norm, self.eps).map_err(|error| failed(&error))
    }

    fn layer(
        &self,
        layer: &Layer,
        states: &Tensor,
        batch: &Batch,
        rotation: &[Tensor; 2],
    ) -> candle_core::Result<Tensor> {
        let inputs = layer.attention.run(&rms_norm(states, &layer.norm, self.eps)?)?;
        let (queries, keys) = (self.heads.queries * self.heads.width, self.heads.keys * self.heads.width);
        let rows = states.dim(0)?;
        let turned = |start: usize, width: usize, norm: &Tensor| {
            let heads =
                columns(&inputs, start, width)?.contiguous()?.reshape((1, rows, (), self.heads.width))?;
            // Every row has its own angles, so all rows are one text to the rotation.
            rope_thd(&rms_norm(&heads, norm, self.eps)?, &rotation[0], &rotation[1])?.reshape((rows, width))
        };
        let parts = [
            turned(0, queries, &layer.query_norm)?,
            turned(queries, keys, &layer.key_norm)?,
            columns(&inputs, queries + keys, keys)?,
        ];
        let attended = attend(parts, &self.heads, batch, &self.causal)?;
        let states = (layer.attended.run(&attended)? + states)?;
        let inner = rms_norm(&states, &layer.inner_norm, self.eps)?;
        let gated = (layer.gate.run(&inner)?.silu()? * layer.inner.run(&inner)?)?;
        layer.outer.run(&gated)? + states
    }

    /// Cosines and sines of each row's angles, `[rows, width of a head / 2]` of each.
    fn rotation(&self, batch: &Batch, dtype: DType, device: &Device) -> candle_core::Result<[Tensor; 2]> {
        let (mut cosines, mut sines) = (Vec::new(), Vec::new());
        for &length in &batch.lengths {
            for position in 0..batch.padded.unwrap_or(length) {
                for frequency in &self.frequencies {
                    let (sine, cosine) = (position as f64 * frequency).sin_cos();
                    cosines.push(cosine as f32);
                    sines.push(sine as f32);
                }
            }
        }
        let shape = ((), self.frequencies.len());
        let place = |numbers| Tensor::from_vec(numbers, shape, device)?.to_dtype(dtype);
        Ok([place(cosines)?, place(sines)?])
    }
}
