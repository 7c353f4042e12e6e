//! Decoders of the Qwen3 family (Qwen3-Embedding).
use super::{
    INPUT_IDS,
    builder::{Builder, CONTRIB, ONNX, attribute},
    int8::Blocks,
};
use magray_model::{Qwen3, Weights};
use magray_plugin_api::Result;
use ort::editor::Model;

/// Builds the network for sequences of up to `max_tokens`, in f32 or with its linear layers in int8.
///
/// Attention is causal and padding is on the right, so no token sees padding.
///
/// # Errors
/// `CORRUPT_DATA` where a tensor is missing or has another shape.
pub(super) fn qwen3(qwen: &Qwen3, max_tokens: usize, weights: &Weights, int8: bool) -> Result<Model> {
    let mut network = Network { builder: Builder::new(weights)?, qwen, int8 };
    let words = network.builder.table("embed_tokens.weight", [qwen.vocab, qwen.hidden])?;
    let mut states = network.builder.node(ONNX, "Gather", &[&words, INPUT_IDS], "embeddings", [])?;
    let shared = network.shared(max_tokens)?;
    for layer in 0..qwen.layers {
        states = network.layer(&format!("layers.{layer}"), &states, &shared)?;
    }
    let states = network.norm(&states, "norm", qwen.hidden)?;
    network.builder.finish(&states, qwen.hidden, false)
}

struct Network<'a> {
    builder: Builder<'a>,
    qwen: &'a Qwen3,
    int8: bool,
}

/// What the attention of every layer takes.
struct Shared {
    /// Cosines and sines of the rotary embedding, `[max_tokens, head_dim / 2]`.
    cosines: String,
    sines: String,
    /// Position of the first token: 0.
    start: String,
    /// Split states into heads and join them again.
    heads: String,
    kv_heads: String,
    joined: String,
    kv_joined: String,
    /// Shape by which each head of keys and values is repeated for the heads of queries that share it,
    /// and the axis that it is repeated on.
    repeated: String,
    repeat_axis: String,
}

impl Network<'_> {
    fn shared(&mut self, max_tokens: usize) -> Result<Shared> {
        let Qwen3 { heads, kv_heads, head_dim, rope_theta, .. } = *self.qwen;
        let half = head_dim / 2;
        let angles = (0..max_tokens).flat_map(|position| {
            (0..half).map(move |at| position as f64 * rope_theta.powf(-2.0 * at as f64 / head_dim as f64))
        });
        let cosines: Vec<f32> = angles.clone().map(|angle| angle.cos() as f32).collect();
        let sines: Vec<f32> = angles.map(|angle| angle.sin() as f32).collect();
        let build = &mut self.builder;
        let [heads, kv_heads, width] = [heads, kv_heads, head_dim].map(|size| size as i64);
        Ok(Shared {
            cosines: build.constant("cosines", &[max_tokens, half], &cosines)?,
            sines: build.constant("sines", &[max_tokens, half], &sines)?,
            start: build.constant("start", &[1], &[0i64])?,
            heads: build.constant("heads", &[4], &[0, 0, heads, width])?,
            kv_heads: build.constant("kv_heads", &[4], &[0, 0, kv_heads, width])?,
            joined: build.constant("joined", &[3], &[0, 0, heads * width])?,
            kv_joined: build.constant("kv_joined", &[3], &[0, 0, kv_heads * width])?,
            repeated: build.constant("repeated", &[5], &[1, 1, 1, heads / kv_heads, 1])?,
            repeat_axis: build.constant("repeat_axis", &[1], &[3i64])?,
        })
    }

    /// One layer on the states, `[batch, seq, hidden]`.
    fn layer(&mut self, at: &str, states: &str, shared: &Shared) -> Result<String> {
        let Qwen3 { hidden, heads, kv_heads, head_dim, intermediate, .. } = *self.qwen;
        let attention = format!("{at}.self_attn");
        let x = self.norm(states, &format!("{at}.input_layernorm"), hidden)?;
        let query = self.linear(&format!("{attention}.q_proj"), &x, [hidden, heads * head_dim])?;
        let key = self.linear(&format!("{attention}.k_proj"), &x, [hidden, kv_heads * head_dim])?;
        let value = self.linear(&format!("{attention}.v_proj"), &x, [hidden, kv_heads * head_dim])?;
        let name = format!("{attention}.q_norm");
        let query = self.turned(&query, &name, [&shared.heads, &shared.joined], heads, shared)?;
        let name = format!("{attention}.k_norm");
        let key = self.turned(&key, &name, [&shared.kv_heads, &shared.kv_joined], kv_heads, shared)?;

        let key = self.repeated(&key, shared)?;
        let value = self.repeated(&value, shared)?;
        // Grouped attention is there for CUDA in 16 bits only, so keys and values are repeated.
        let settings = [attribute("num_heads", heads as i64)?, attribute("unidirectional", 1i64)?];
        let inputs = [&*query, &key, &value];
        self.builder.node(CONTRIB, "MultiHeadAttention", &inputs, &attention, settings)?;
        let mixed = self.linear(&format!("{attention}.o_proj"), &attention, [heads * head_dim, hidden])?;
        let states = self.builder.node(ONNX, "Add", &[states, &mixed], &format!("{at}.attended"), [])?;

        let x = self.norm(&states, &format!("{at}.post_attention_layernorm"), hidden)?;
        let gate = self.linear(&format!("{at}.mlp.gate_proj"), &x, [hidden, intermediate])?;
        let up = self.linear(&format!("{at}.mlp.up_proj"), &x, [hidden, intermediate])?;
        // x * sigmoid(alpha x)
        let alpha = attribute("alpha", 1.0f32)?;
        let gate = self.builder.node(CONTRIB, "QuickGelu", &[&gate], &format!("{at}.mlp.gate"), [alpha])?;
        let inner = self.builder.node(ONNX, "Mul", &[&gate, &up], &format!("{at}.mlp.gated"), [])?;
        let outer = self.linear(&format!("{at}.mlp.down_proj"), &inner, [intermediate, hidden])?;
        self.builder.node(ONNX, "Add", &[&states, &outer], at, [])
    }

    /// Queries or keys with each head normalised and turned by its position.
    fn turned(
        &mut self,
        x: &str,
        norm: &str,
        [split, joined]: [&str; 2],
        heads: usize,
        shared: &Shared,
    ) -> Result<String> {
        let x = self.builder.node(ONNX, "Reshape", &[x, split], &format!("{norm}.heads"), [])?;
        let x = self.norm(&x, norm, self.qwen.head_dim)?;
        let x = self.builder.node(ONNX, "Reshape", &[&x, joined], &format!("{norm}.joined"), [])?;
        let count = attribute("num_heads", heads as i64)?;
        let inputs = [&*x, &shared.start, &shared.cosines, &shared.sines];
        self.builder.node(CONTRIB, "RotaryEmbedding", &inputs, &format!("{norm}.turned"), [count])
    }

    /// Keys or values, `[batch, seq, kv_heads * head_dim]`, once for each head of queries.
    fn repeated(&mut self, x: &str, shared: &Shared) -> Result<String> {
        if self.qwen.heads == self.qwen.kv_heads {
            return Ok(x.to_owned());
        }
        let build = &mut self.builder;
        let heads = build.node(ONNX, "Reshape", &[x, &shared.kv_heads], &format!("{x}.split"), [])?;
        let inputs = [&*heads, &shared.repeat_axis];
        let heads = build.node(ONNX, "Unsqueeze", &inputs, &format!("{x}.single"), [])?;
        let heads = build.node(ONNX, "Expand", &[&heads, &shared.repeated], &format!("{x}.repeated"), [])?;
        build.node(ONNX, "Reshape", &[&heads, &shared.joined], &format!("{x}.joined"), [])
    }

    /// The RMS norm `name` over the last `width` numbers.
    fn norm(&mut self, x: &str, name: &str, width: usize) -> Result<String> {
        let gamma = self.builder.tensor(&format!("{name}.weight"), &[width])?;
        let settings = [attribute("epsilon", self.qwen.rms_norm_eps)?, attribute("axis", -1i64)?];
        self.builder.node(ONNX, "SimplifiedLayerNormalization", &[x, &gamma], name, settings)
    }

    /// The linear layer `name` from `k` to `n` numbers, which has no bias.
    fn linear(&mut self, name: &str, x: &str, [k, n]: [usize; 2]) -> Result<String> {
        let weight = format!("{name}.weight");
        if self.int8 {
            let rows = self.builder.weights.view(&weight, &[n, k])?;
            return Blocks::new(&rows, k).product(&mut self.builder, name, x);
        }
        self.builder.product(x, &weight, [n, k], name)
    }
}
