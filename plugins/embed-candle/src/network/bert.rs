//! BERT, XLM-R and MPNet: encoders with a norm after each part. Devlin et al. 2018
//! (arXiv:1810.04805), Song et al. 2020 (arXiv:2004.09297).
use super::{
    Check, LayerNorm, Linear, Source,
    attention::{Bias, Heads, attend},
    columns, elementwise,
};
use crate::{batch::Batch, failed};
use candle_core::Tensor;
use magray_model::{Activation, Bert as Config};
use magray_plugin_api::Result;

pub(super) struct Bert {
    /// `[vocabulary, hidden]`
    words: Tensor,
    /// What a token gets by its position, and for its type: `[positions, hidden]`.
    positions: Tensor,
    norm: LayerNorm,
    layers: Vec<Layer>,
    /// MPNet's: what a head adds to a score by the bucket of the distance, `[buckets, heads]`.
    distances: Option<Tensor>,
    hidden: usize,
    heads: Heads,
    activation: Activation,
}

struct Layer {
    /// Queries, keys and values.
    attention: Linear,
    attended: Linear,
    attended_norm: LayerNorm,
    inner: Linear,
    outer: Linear,
    outer_norm: LayerNorm,
}

impl Bert {
    pub(super) fn load(config: &Config, source: &Source<'_>) -> Result<Self> {
        let (hidden, eps) = (config.hidden, config.layer_norm_eps);
        let heads = Heads { queries: config.heads, keys: config.heads, width: config.hidden / config.heads };
        // MPNet names the parts of its attention differently.
        let names = match config.relative_buckets {
            None => ["self.query", "self.key", "self.value", "output.dense", "output.LayerNorm"],
            Some(_) => ["attn.q", "attn.k", "attn.v", "attn.o", "LayerNorm"],
        };
        let scale = 1.0 / (heads.width as f32).sqrt();
        let layer = |at: usize| {
            let name = |part: &str| format!("encoder.layer.{at}.{part}");
            let attention = |part: usize| name(&format!("attention.{}", names[part]));
            let inputs =
                [(attention(0), hidden, scale), (attention(1), hidden, 1.0), (attention(2), hidden, 1.0)];
            Ok(Layer {
                attention: source.fused(&inputs, hidden, true)?,
                attended: source.linear(&attention(3), hidden, hidden, true)?,
                attended_norm: source.layer_norm(&attention(4), hidden, eps)?,
                inner: source.linear(&name("intermediate.dense"), hidden, config.intermediate, true)?,
                outer: source.linear(&name("output.dense"), config.intermediate, hidden, true)?,
                outer_norm: source.layer_norm(&name("output.LayerNorm"), hidden, eps)?,
            })
        };
        let distances = config
            .relative_buckets
            .map(|buckets| source.tensor("encoder.relative_attention_bias.weight", &[buckets, config.heads]));
        Ok(Self {
            words: source.tensor("embeddings.word_embeddings.weight", &[config.vocab, hidden])?,
            positions: source
                .place(positions(config, source)?, &[config.positions - config.first_position, hidden])?,
            norm: source.layer_norm("embeddings.LayerNorm", hidden, eps)?,
            layers: (0..config.layers).map(layer).collect::<Result<_>>()?,
            distances: distances.transpose()?,
            hidden,
            heads,
            activation: config.activation,
        })
    }

    /// States of the last layer, `[rows, hidden]`.
    pub(super) fn run(&self, batch: &Batch, check: Check<'_>) -> Result<Tensor> {
        let embedded = || {
            let words = self.words.index_select(&batch.ids, 0)?;
            self.norm.run(&(words + self.positions.index_select(&batch.positions, 0)?)?)
        };
        let bias = || self.bias(batch.lengths.iter().copied().max().unwrap_or(0));
        let mut states = embedded().map_err(|error| failed(&error))?;
        let bias = bias().map_err(|error| failed(&error))?;
        for layer in &self.layers {
            check()?;
            states = self.layer(layer, &states, batch, &bias).map_err(|error| failed(&error))?;
        }
        Ok(states)
    }

    fn layer(
        &self,
        layer: &Layer,
        states: &Tensor,
        batch: &Batch,
        bias: &Bias,
    ) -> candle_core::Result<Tensor> {
        let inputs = layer.attention.run(states)?;
        let part = |at: usize| columns(&inputs, at * self.hidden, self.hidden);
        let attended = attend([part(0)?, part(1)?, part(2)?], &self.heads, batch, bias)?;
        let states = layer.attended_norm.run(&(layer.attended.run(&attended)? + states)?)?;
        let inner = layer.inner.run(&states)?;
        let inner = match self.activation {
            Activation::Gelu => elementwise::gelu(inner)?,
            Activation::GeluTanh => inner.gelu()?,
            Activation::Relu => inner.relu()?,
        };
        layer.outer_norm.run(&(layer.outer.run(&inner)? + states)?)
    }

    fn bias(&self, longest: usize) -> candle_core::Result<Bias> {
        let Some(distances) = &self.distances else { return Ok(Bias::None) };
        let bucket = |at: usize| bucket(at % longest, at / longest, distances.dims()[0]);
        let buckets: Vec<u32> = (0..longest * longest).map(bucket).collect();
        let buckets = Tensor::from_vec(buckets, longest * longest, distances.device())?;
        let bias = distances.index_select(&buckets, 0)?.t()?.contiguous()?;
        Ok(Bias::Positions(bias.reshape((self.heads.queries, longest, longest))?))
    }
}

/// The table of positions from the first that is used, with the row of the only type of token that
/// there is added to each.
fn positions(config: &Config, source: &Source<'_>) -> Result<Vec<f32>> {
    let hidden = config.hidden;
    let name = "embeddings.position_embeddings.weight";
    let mut positions = source.weights.f32(name, &[config.positions, hidden])?;
    positions.drain(..config.first_position * hidden);
    if config.token_types {
        let name = "embeddings.token_type_embeddings.weight";
        // BERT has two types, XLM-R one.
        let types =
            source.weights.f32(name, &[2, hidden]).or_else(|_| source.weights.f32(name, &[1, hidden]))?;
        for row in positions.chunks_exact_mut(hidden) {
            row.iter_mut().zip(&types).for_each(|(position, of_type)| *position += of_type);
        }
    }
    Ok(positions)
}

/// T5's bucket of the distance from the query to the key (Raffel et al. 2020, arXiv:1910.10683):
/// one half of the buckets for keys after the query; of each half one half for single distances
/// and the rest for logarithmic ranges up to 128.
fn bucket(key: usize, query: usize, buckets: usize) -> u32 {
    let half = buckets / 2;
    let exact = half / 2;
    let distance = key.abs_diff(query);
    let within = if distance < exact {
        distance
    } else {
        let part = (distance as f32 / exact as f32).ln() / (128.0 / exact as f32).ln();
        (exact + (part * (half - exact) as f32) as usize).min(half - 1)
    };
    (if key > query { half } else { 0 } + within) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_the_reference() {
        // transformers' MPNetEncoder.relative_position_bucket of key - query, 32 buckets.
        for (difference, expected) in [
            (0, 0),
            (-1, 1),
            (1, 17),
            (-7, 7),
            (7, 23),
            (-8, 8),
            (8, 24),
            (-20, 10),
            (20, 26),
            (-127, 15),
            (400, 31),
        ] {
            let query = 500;
            let key = (query as isize + difference) as usize;
            assert_eq!(bucket(key, query, 32), expected, "{difference}");
        }
    }
}
