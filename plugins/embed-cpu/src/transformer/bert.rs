//! Encoders of the BERT family: BERT, XLM-R, MPNet.
use super::{
    attention::{RelativeBias, Shape},
    linear::Out,
    network::{Engine, Workspace},
    norm::layer_norm,
    packed::{Block, LinearPart, Packed, Plan, VectorPart},
};
use magray_model::{Bert, Table, Weights};
use magray_plugin_api::{CallContext, Result};

#[derive(Debug)]
pub(crate) struct BertNetwork {
    config: Bert,
    shape: Shape,
    words: Table,
    /// Of the positions from the first on, `[positions, hidden]`; the token type is added to them.
    positions: VectorPart,
    norm: Norm,
    layers: Vec<Layer>,
    /// `[heads, 2 * positions - 1]`
    bias: Option<VectorPart>,
}

#[derive(Debug)]
struct Norm {
    gamma: VectorPart,
    beta: VectorPart,
}

#[derive(Debug)]
struct Layer {
    qkv: LinearPart,
    out: LinearPart,
    attention_norm: Norm,
    up: LinearPart,
    down: LinearPart,
    norm: Norm,
}

/// Distance from which on all positions share a bucket of the relative bias.
const MAX_DISTANCE: f32 = 128.0;

impl BertNetwork {
    /// Says in `plan` what is packed, for sequences of up to `max_tokens`.
    pub(crate) fn new(config: &Bert, max_tokens: usize, weights: &Weights, plan: &mut Plan) -> Result<Self> {
        let Bert { hidden, heads, intermediate, first_position, token_types, .. } = *config;
        let mpnet = config.relative_buckets.is_some();
        let norm = |plan: &mut Plan, name: String| Norm {
            gamma: plan.tensor(format!("{name}.weight"), hidden),
            beta: plan.tensor(format!("{name}.bias"), hidden),
        };
        let block = |name: String, outputs, scale| Block {
            weight: format!("{name}.weight"),
            bias: Some(format!("{name}.bias")),
            outputs,
            scale,
        };
        let table = config.positions;
        let positions = plan.vector((table - first_position) * hidden, move |weights| {
            let all = weights.f32("embeddings.position_embeddings.weight", &[table, hidden])?;
            let mut rows = all[first_position * hidden..].to_vec();
            if token_types {
                let name = "embeddings.token_type_embeddings.weight";
                let types = weights.shape(name).and_then(|shape| shape.first().copied()).unwrap_or(1);
                let types = weights.f32(name, &[types, hidden])?;
                for row in rows.chunks_exact_mut(hidden) {
                    row.iter_mut().zip(&types).for_each(|(x, added)| *x += added);
                }
            }
            Ok(rows)
        });
        let embedding_norm = norm(plan, "embeddings.LayerNorm".to_owned());
        let layers = (0..config.layers).map(|layer| {
            let layer = format!("encoder.layer.{layer}");
            let [query, key, value, out] = if mpnet {
                ["attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"]
            } else {
                [
                    "attention.self.query",
                    "attention.self.key",
                    "attention.self.value",
                    "attention.output.dense",
                ]
            }
            .map(|name| format!("{layer}.{name}"));
            let attention_norm = if mpnet { "attention.LayerNorm" } else { "attention.output.LayerNorm" };
            let scale = 1.0 / ((hidden / heads) as f32).sqrt();
            Layer {
                qkv: plan.linear(
                    hidden,
                    vec![block(query, hidden, scale), block(key, hidden, 1.0), block(value, hidden, 1.0)],
                ),
                out: plan.linear(hidden, vec![block(out, hidden, 1.0)]),
                attention_norm: norm(plan, format!("{layer}.{attention_norm}")),
                up: plan
                    .linear(hidden, vec![block(format!("{layer}.intermediate.dense"), intermediate, 1.0)]),
                down: plan.linear(intermediate, vec![block(format!("{layer}.output.dense"), hidden, 1.0)]),
                norm: norm(plan, format!("{layer}.output.LayerNorm")),
            }
        });
        let layers = layers.collect();
        let reach = config.positions - first_position;
        let bias = config.relative_buckets.map(|buckets| {
            plan.vector(heads * (2 * reach - 1), move |weights| {
                let table = weights.f32("encoder.relative_attention_bias.weight", &[buckets, heads])?;
                let distances = 1 - reach as isize..reach as isize;
                let of = |head: usize| {
                    let table = &table;
                    distances.clone().map(move |distance| table[bucket(distance, buckets) * heads + head])
                };
                Ok((0..heads).flat_map(of).collect())
            })
        });
        debug_assert!(max_tokens <= reach);
        let shape = Shape { heads, kv_heads: heads, dim: hidden / heads, causal: false };
        let words = weights.table("embeddings.word_embeddings.weight", [config.vocab, hidden])?;
        Ok(Self { config: config.clone(), shape, words, positions, norm: embedding_norm, layers, bias })
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
        let Bert { hidden, layer_norm_eps: eps, activation, .. } = self.config;
        let rows = texts.iter().map(|ids| ids.len()).sum();
        let isa = engine.isa;
        let positions = self.positions.of(packed);
        let norm = |part: &Norm, work: &mut Workspace, first: usize, rows: usize| {
            let x = &mut work.x.floats_mut()[first * work.encoded.stride..];
            layer_norm(
                isa,
                x,
                part.gamma.of(packed),
                part.beta.of(packed),
                eps,
                first,
                rows,
                &mut work.encoded,
            );
        };
        let stride = work.encoded.stride;
        let mut at = work.x.floats_mut();
        for ids in texts {
            for (&id, position) in ids.iter().zip(positions.chunks_exact(hidden)) {
                let row;
                (row, at) = at.split_at_mut(stride);
                self.words.read(id as usize, &mut row[..hidden]);
                row.iter_mut().zip(position).for_each(|(x, position)| *x += position);
            }
        }
        norm(&self.norm, work, 0, rows);

        let reach = self.config.positions - self.config.first_position;
        let bias = self.bias.as_ref().map(|part| RelativeBias { numbers: part.of(packed), reach });
        for layer in &self.layers {
            cx.check()?;
            engine.attention(&self.shape, bias, layer.qkv.of(packed), texts, work);
            // What follows is done chunk by chunk, so that the wide rows between stay in the cache.
            for (first, rows) in engine.chunks(rows) {
                let x = &mut work.x.floats_mut()[first * stride..];
                engine.linear(&work.context, first, rows, layer.out.of(packed), None, Out::Add(x), stride);
                norm(&layer.attention_norm, work, first, rows);
                engine.up(first, rows, layer.up.of(packed), activation, work);
                let x = &mut work.x.floats_mut()[first * stride..];
                engine.linear(&work.inner, 0, rows, layer.down.of(packed), None, Out::Add(x), stride);
                norm(&layer.norm, work, first, rows);
            }
        }
        Ok(())
    }
}

/// The bucket of the relative bias for a key `distance` tokens behind the query, by T5's scheme.
fn bucket(distance: isize, buckets: usize) -> usize {
    let half = buckets / 2;
    let (side, far) = (if distance > 0 { half } else { 0 }, distance.unsigned_abs());
    let exact = half / 2;
    if far < exact {
        return side + far;
    }
    let wide = (far as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln() * (half - exact) as f32;
    side + (exact + wide as usize).min(half - 1)
}
