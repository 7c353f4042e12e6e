//! Causal decoders of the Qwen3 family.
use super::{
    attention::Shape,
    buffer::Encoded,
    cpu::by_isa,
    linear::{Out, encode_row},
    math::{bf16, silu},
    network::{Engine, Workspace},
    norm::{rms_norm, rms_norm_row},
    packed::{Block, LinearPart, Packed, Plan, VectorPart},
};
use magray_model::{Qwen3, Table, Weights};
use magray_plugin_api::{CallContext, Result};

#[derive(Debug)]
pub(crate) struct Qwen3Network {
    config: Qwen3,
    shape: Shape,
    words: Table,
    /// Of each position, the cosines and the sines of its rotations, `[max_tokens, 2, head_dim / 2]`.
    rotations: VectorPart,
    layers: Vec<Layer>,
    norm: VectorPart,
}

#[derive(Debug)]
struct Layer {
    attention_norm: VectorPart,
    qkv: LinearPart,
    query_norm: VectorPart,
    key_norm: VectorPart,
    out: LinearPart,
    norm: VectorPart,
    /// Gate and up, one after the other.
    gated: LinearPart,
    down: LinearPart,
}

impl Qwen3Network {
    /// Says in `plan` what is packed, for sequences of up to `max_tokens`.
    pub(crate) fn new(config: &Qwen3, max_tokens: usize, weights: &Weights, plan: &mut Plan) -> Result<Self> {
        let Qwen3 { hidden, heads, kv_heads, head_dim, intermediate, rope_theta, .. } = *config;
        let block = |name: String, outputs| Block { weight: name, bias: None, outputs, scale: 1.0 };
        let rotations = plan.vector(max_tokens * head_dim, move |_| {
            let half = head_dim / 2;
            let angle =
                |position: usize, n: usize| position as f64 * rope_theta.powf(-(n as f64) / half as f64);
            let row = move |position| {
                let cosines = (0..half).map(move |n| angle(position, n).cos() as f32);
                cosines.chain((0..half).map(move |n| angle(position, n).sin() as f32))
            };
            Ok((0..max_tokens).flat_map(row).collect())
        });
        let layers = (0..config.layers).map(|layer| {
            let name = |name: &str| format!("layers.{layer}.{name}.weight");
            Layer {
                attention_norm: plan.tensor(name("input_layernorm"), hidden),
                qkv: plan.linear(
                    hidden,
                    vec![
                        block(name("self_attn.q_proj"), heads * head_dim),
                        block(name("self_attn.k_proj"), kv_heads * head_dim),
                        block(name("self_attn.v_proj"), kv_heads * head_dim),
                    ],
                ),
                query_norm: plan.tensor(name("self_attn.q_norm"), head_dim),
                key_norm: plan.tensor(name("self_attn.k_norm"), head_dim),
                out: plan.linear(heads * head_dim, vec![block(name("self_attn.o_proj"), hidden)]),
                norm: plan.tensor(name("post_attention_layernorm"), hidden),
                gated: plan.linear(
                    hidden,
                    vec![
                        block(name("mlp.gate_proj"), intermediate),
                        block(name("mlp.up_proj"), intermediate),
                    ],
                ),
                down: plan.linear(intermediate, vec![block(name("mlp.down_proj"), hidden)]),
            }
        });
        let layers = layers.collect();
        let norm = plan.tensor("norm.weight".to_owned(), hidden);
        let words = weights.table("embed_tokens.weight", [config.vocab, hidden])?;
        let shape = Shape { heads, kv_heads, dim: head_dim, causal: true };
        Ok(Self { config: config.clone(), shape, words, rotations, layers, norm })
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    pub(crate) fn words(&self) -> &Table {
        &self.words
    }

    /// Leaves the states of the last layer in `work.x`: those of `texts`, one after the other.
    pub(crate) fn forward(
        &self,
        engine: &Engine,
        packed: &Packed,
        cx: &dyn CallContext,
        texts: &[&[u32]],
        work: &mut Workspace,
    ) -> Result<()> {
        let Qwen3 { hidden, intermediate, rms_norm_eps: eps, .. } = self.config;
        let (rows, isa) = (texts.iter().map(|ids| ids.len()).sum(), engine.isa);
        let stride = work.encoded.stride;
        let ids = texts.iter().flat_map(|ids| ids.iter());
        for (&id, row) in ids.zip(work.x.floats_mut().chunks_exact_mut(stride)) {
            self.words.read(id as usize, &mut row[..hidden]);
        }
        let positions: Vec<u32> = texts.iter().flat_map(|ids| 0..ids.len() as u32).collect();
        for layer in &self.layers {
            cx.check()?;
            rms_norm(isa, work.x.floats(), layer.attention_norm.of(packed), eps, rows, &mut work.encoded);
            work.wide.reserve(rows * work.qkv_stride);
            let out = Out::F32(work.wide.floats_mut());
            engine.linear(&work.encoded, 0, rows, layer.qkv.of(packed), None, out, work.qkv_stride);
            let heads = Heads {
                shape: &self.shape,
                query_norm: layer.query_norm.of(packed),
                key_norm: layer.key_norm.of(packed),
                eps,
                rotations: self.rotations.of(packed),
            };
            let out = engine.qkv(&mut work.qkv);
            rotate(isa, heads, &positions, work.wide.floats_mut(), work.qkv_stride, out);
            engine.attend(&self.shape, None, texts, work);
            let x = Out::Add(work.x.floats_mut());
            engine.linear(&work.context, 0, rows, layer.out.of(packed), None, x, stride);

            rms_norm(isa, work.x.floats(), layer.norm.of(packed), eps, rows, &mut work.encoded);
            work.inner.reserve(rows);
            for (first, rows) in engine.chunks(rows) {
                cx.check()?;
                let gated = layer.gated.of(packed);
                let wide = (2 * intermediate).next_multiple_of(super::gemm::COLUMNS);
                work.wide.reserve(rows * wide);
                let out = Out::F32(work.wide.floats_mut());
                engine.linear(&work.encoded, first, rows, gated, None, out, wide);
                gate(isa, intermediate, rows, work.wide.floats_mut(), wide, &mut work.inner);
                let x = Out::Add(&mut work.x.floats_mut()[first * stride..]);
                engine.linear(&work.inner, 0, rows, layer.down.of(packed), None, x, stride);
            }
        }
        let gamma = self.norm.of(packed);
        work.x.floats_mut().chunks_exact_mut(stride).take(rows).for_each(|row| {
            rms_norm_row(&mut row[..hidden], gamma, eps);
        });
        Ok(())
    }
}

/// What is done with queries and keys before attention.
pub(crate) struct Heads<'a> {
    shape: &'a Shape,
    query_norm: &'a [f32],
    key_norm: &'a [f32],
    eps: f32,
    rotations: &'a [f32],
}

by_isa! {
    /// Normalises and rotates the queries and keys in `qkv`, a row a token of the given position, in
    /// place, and writes the rows into `out`. Queries are scaled for attention.
    fn rotate(
        heads: Heads<'_>,
        positions: &[u32],
        qkv: &mut [f32],
        stride: usize,
        out: Out<'_>,
    ) = rotate_body;
}

#[inline(always)]
fn rotate_body<const FUSED: bool>(
    heads: Heads<'_>,
    positions: &[u32],
    qkv: &mut [f32],
    stride: usize,
    mut out: Out<'_>,
) {
    let Heads { shape, query_norm, key_norm, eps, rotations } = heads;
    let (dim, half) = (shape.dim, shape.dim / 2);
    let scale = 1.0 / (dim as f32).sqrt();
    for (at, (&position, row)) in positions.iter().zip(qkv.chunks_exact_mut(stride)).enumerate() {
        let (cosines, sines) = rotations[position as usize * dim..][..dim].split_at(half);
        let heads = row.chunks_exact_mut(dim).take(shape.heads + shape.kv_heads);
        for (head, x) in heads.enumerate() {
            let query = head < shape.heads;
            rms_norm_row(x, if query { query_norm } else { key_norm }, eps);
            let factor = if query { scale } else { 1.0 };
            let (low, high) = x.split_at_mut(half);
            for (((low, high), cosine), sine) in low.iter_mut().zip(high).zip(cosines).zip(sines) {
                (*low, *high) =
                    ((*low * cosine - *high * sine) * factor, (*high * cosine + *low * sine) * factor);
            }
        }
        match &mut out {
            Out::Bf16(out) => {
                out[at * stride..][..stride].iter_mut().zip(row).for_each(|(out, x)| *out = bf16(*x));
            }
            Out::F32(out) | Out::Add(out) => out[at * stride..][..stride].copy_from_slice(row),
        }
    }
}

by_isa! {
    /// Writes `silu(gate) * up` of `rows` rows into `out`: a row of `x` holds both, `width` each.
    fn gate(width: usize, rows: usize, x: &mut [f32], stride: usize, out: &mut Encoded) = gate_body;
}

#[inline(always)]
fn gate_body<const FUSED: bool>(width: usize, rows: usize, x: &mut [f32], stride: usize, out: &mut Encoded) {
    let padded = out.stride;
    for (row, x) in x.chunks_exact_mut(stride).take(rows).enumerate() {
        let (gate, up) = x.split_at_mut(width);
        gate.iter_mut().zip(&*up).for_each(|(gate, up)| *gate = silu::<FUSED>(*gate) * up);
        // What lies behind is read as zeros.
        x[width..padded.min(stride)].fill(0.0);
        encode_row::<FUSED>(&x[..padded], row, out);
    }
}
