//! Encoders of the BERT family: BERT, XLM-R, MPNet.
use super::{
    INPUT_IDS, LENGTHS, TOKEN_TYPES,
    builder::{Builder, CONTRIB, ONNX, attribute},
    int8::{Blocks, Columns, Quantizer},
};
use magray_model::{Activation, Bert, Weights};
use magray_plugin_api::Result;
use ort::editor::Model;

/// Distance from which on all positions share a bucket of the relative bias.
const MAX_DISTANCE: f32 = 128.0;

/// Names of a layer's tensors, below `encoder.layer.N.`.
struct Names {
    qkv: [&'static str; 3],
    out: &'static str,
    norm: &'static str,
}

const BERT: Names = Names {
    qkv: ["attention.self.query", "attention.self.key", "attention.self.value"],
    out: "attention.output.dense",
    norm: "attention.output.LayerNorm",
};
const MPNET: Names = Names {
    qkv: ["attention.attn.q", "attention.attn.k", "attention.attn.v"],
    out: "attention.attn.o",
    norm: "attention.LayerNorm",
};

/// Builds the network, in f32 or with its linear layers in int8; one that takes pairs of texts is told the types of
/// the tokens, where it knows any.
///
/// # Errors
/// `CORRUPT_DATA` where a tensor is missing or has another shape.
pub(super) fn bert(bert: &Bert, pairs: bool, weights: &Weights, int8: bool) -> Result<Model> {
    let mut builder = Builder::new(weights)?;
    let quantizer = if int8 { Some(Quantizer::new(&mut builder)?) } else { None };
    let mut network = Network { builder, bert, pairs, quantizer };
    let mut states = network.embeddings()?;
    let bias = network.relative_bias()?;
    for layer in 0..bert.layers {
        states = network.layer(&format!("encoder.layer.{layer}"), &states, bias.as_deref())?;
    }
    network.builder.finish(&states, bert.hidden, pairs && bert.token_types)
}

struct Network<'a> {
    builder: Builder<'a>,
    bert: &'a Bert,
    pairs: bool,
    /// In int8 networks.
    quantizer: Option<Quantizer>,
}

/// How a linear layer is quantized in an int8 network.
#[derive(Clone, Copy)]
enum Int8 {
    /// By blocks: what comes out of a layer norm has outliers.
    Blocks,
    /// By tokens and columns; where no number that goes in is below a bound, from there.
    Columns { least: Option<f32> },
}

/// A linear layer whose bias is still to be added.
struct Linear {
    product: String,
    bias: String,
}

impl Network<'_> {
    /// The normalised sum of the embeddings of word, position and token type, `[batch, seq, hidden]`.
    fn embeddings(&mut self) -> Result<String> {
        let Bert { hidden, vocab, positions, first_position, token_types, .. } = *self.bert;
        let words = self.builder.table("embeddings.word_embeddings.weight", [vocab, hidden])?;
        let weights = self.builder.weights;
        let mut table = weights.f32("embeddings.position_embeddings.weight", &[positions, hidden])?;
        // The operator counts positions from 0.
        table.drain(..first_position * hidden);
        let (mut types, mut type_table) = ("", String::new());
        if token_types {
            let name = "embeddings.token_type_embeddings.weight";
            let count = weights.shape(name).and_then(|shape| shape.first().copied()).unwrap_or(1).max(1);
            if self.pairs {
                types = TOKEN_TYPES;
                type_table = self.builder.tensor(name, &[count, hidden])?;
            } else {
                // Every token is of type 0.
                let added = weights.f32(name, &[count, hidden])?;
                for row in table.chunks_exact_mut(hidden) {
                    row.iter_mut().zip(&added).for_each(|(x, added)| *x += added);
                }
            }
        }
        let shape = [positions - first_position, hidden];
        let table = self.builder.constant("positions", &shape, &table)?;
        let [gamma, beta] = self.norm("embeddings.LayerNorm")?;
        let epsilon = attribute("epsilon", self.bert.layer_norm_eps)?;
        let inputs = [INPUT_IDS, types, &words, &table, &type_table, &gamma, &beta];
        // The second output is a mask that nothing reads; the operator insists on it.
        let outputs = ["embeddings", "embeddings.mask"];
        self.builder.node_of(CONTRIB, "EmbedLayerNormalization", &inputs, &outputs, [epsilon])?;
        Ok(outputs[0].to_owned())
    }

    /// MPNet's bias of the attention scores, `[1, heads, seq, seq]`: one number a head and distance.
    fn relative_bias(&mut self) -> Result<Option<String>> {
        let Bert { heads, positions, first_position, relative_buckets, .. } = *self.bert;
        let Some(buckets) = relative_buckets else { return Ok(None) };
        let table = self.builder.weights.f32("encoder.relative_attention_bias.weight", &[buckets, heads])?;
        let reach = (positions - first_position) as i64;
        let by_distance: Vec<f32> = (0..heads)
            .flat_map(|head| (1 - reach..reach).map(move |distance| (head, distance)))
            .map(|(head, distance)| table[bucket(distance, buckets) * heads + head])
            .collect();
        let build = &mut self.builder;
        let shape = [heads, by_distance.len() / heads];
        let by_distance = build.constant("bias.by_distance", &shape, &by_distance)?;
        let zero = build.constant("bias.zero", &[], &[0i64])?;
        let one = build.constant("bias.one", &[], &[1i64])?;
        let last = build.constant("bias.last", &[], &[reach - 1])?;
        let axes = build.constant("bias.axes", &[1], &[0i64])?;
        let column = build.constant("bias.column", &[1], &[1i64])?;
        // Row i, column j of the scores is the query i and the key j, at distance j - i.
        let ids = build.node(ONNX, "Shape", &[INPUT_IDS], "bias.shape", [])?;
        let seq = build.node(ONNX, "Gather", &[&ids, &one], "bias.seq", [])?;
        let keys = build.node(ONNX, "Range", &[&zero, &seq, &one], "bias.keys", [])?;
        let queries = build.node(ONNX, "Unsqueeze", &[&keys, &column], "bias.queries", [])?;
        let distance = build.node(ONNX, "Sub", &[&keys, &queries], "bias.distance", [])?;
        let index = build.node(ONNX, "Add", &[&distance, &last], "bias.index", [])?;
        let axis = attribute("axis", 1i64)?;
        let bias = build.node(ONNX, "Gather", &[&by_distance, &index], "bias.heads", [axis])?;
        build.node(ONNX, "Unsqueeze", &[&bias, &axes], "bias", []).map(Some)
    }

    /// One layer on the states, `[batch, seq, hidden]`.
    fn layer(&mut self, at: &str, states: &str, bias: Option<&str>) -> Result<String> {
        let Bert { hidden, intermediate, relative_buckets, activation, .. } = *self.bert;
        let names = if relative_buckets.is_some() { &MPNET } else { &BERT };
        let attention = self.attention(at, names, states, bias)?;
        let columns = |least| Int8::Columns { least };
        let out = format!("{at}.{}", names.out);
        let projected = self.linear(&out, &attention, [hidden, hidden], columns(None))?;
        let added = self.add_norm(&projected, states, &format!("{at}.{}", names.norm))?;

        let up = format!("{at}.intermediate.dense");
        let up = self.linear(&up, &added, [hidden, intermediate], Int8::Blocks)?;
        let inner = self.activate(&up, &format!("{at}.activated"))?;
        let down = format!("{at}.output.dense");
        let least = columns(Some(least(activation)));
        let down = self.linear(&down, &inner, [intermediate, hidden], least)?;
        self.add_norm(&down, &added, &format!("{at}.output.LayerNorm"))
    }

    /// Self-attention with its three projections, `[batch, seq, hidden]`.
    fn attention(&mut self, at: &str, names: &Names, states: &str, bias: Option<&str>) -> Result<String> {
        let hidden = self.bert.hidden;
        let weights = self.builder.weights;
        let mut biases = Vec::with_capacity(3 * hidden);
        for name in names.qkv {
            biases.extend_from_slice(&weights.view(&format!("{at}.{name}.bias"), &[hidden])?);
        }
        let rows = names.qkv.map(|name| weights.view(&format!("{at}.{name}.weight"), &[hidden, hidden]));
        let [query, key, value] = rows;
        let rows = [query?, key?, value?];
        let biases = self.builder.constant(&format!("{at}.qkv.bias"), &[3 * hidden], &biases)?;
        let heads = attribute("num_heads", self.bert.heads as i64)?;
        let output = format!("{at}.attention");
        if self.quantizer.is_some() {
            let qkv = Blocks::new(&rows.concat(), hidden).product(
                &mut self.builder,
                &format!("{at}.qkv"),
                states,
            )?;
            let parts = ["query", "key", "value"].map(|part| format!("{at}.{part}"));
            let [query, key, value] = parts.each_ref().map(String::as_str);
            let split = [attribute("axis", -1i64)?, attribute("num_outputs", 3i64)?];
            self.builder.node_of(ONNX, "Split", &[&qkv], &[query, key, value], split)?;
            let mut inputs = vec![query, key, value, &biases, LENGTHS];
            inputs.extend(bias);
            return self.builder.node(CONTRIB, "MultiHeadAttention", &inputs, &output, [heads]);
        }
        let shape = [hidden, 3 * hidden];
        let weight = self.builder.filled(&format!("{at}.qkv.weight"), &shape, |out| {
            rows.iter().enumerate().for_each(|(part, rows)| transpose(rows, hidden, part * hidden, out));
        })?;
        let mut inputs = vec![states, &weight, &biases, LENGTHS];
        if let Some(bias) = bias {
            inputs.extend(["", bias]);
        }
        self.builder.node(CONTRIB, "Attention", &inputs, &output, [heads])
    }

    /// The linear layer `name` from `k` to `n` numbers.
    fn linear(&mut self, name: &str, x: &str, [k, n]: [usize; 2], int8: Int8) -> Result<Linear> {
        let weight = format!("{name}.weight");
        let weights = self.builder.weights;
        let mut bias = weights.f32(&format!("{name}.bias"), &[n])?;
        let product = match (&mut self.quantizer, int8) {
            (Some(_), Int8::Blocks) => {
                Blocks::new(&weights.view(&weight, &[n, k])?, k).product(&mut self.builder, name, x)?
            }
            (Some(quantizer), Int8::Columns { least }) => {
                let columns = Columns::new(&weights.view(&weight, &[n, k])?, k);
                if let Some(least) = least {
                    columns.add_product_of(least, &mut bias);
                }
                quantizer.product(&mut self.builder, name, x, &columns, least)?
            }
            (None, _) => self.builder.product(x, &weight, [n, k], name)?,
        };
        let bias = self.builder.constant(&format!("{name}.bias"), &[n], &bias)?;
        Ok(Linear { product, bias })
    }

    /// What comes out of a linear layer, activated.
    fn activate(&mut self, linear: &Linear, output: &str) -> Result<String> {
        let inputs = [linear.product.as_str(), linear.bias.as_str()];
        match self.bert.activation {
            Activation::Gelu => self.builder.node(CONTRIB, "BiasGelu", &inputs, output, []),
            Activation::GeluTanh => self.builder.node(CONTRIB, "FastGelu", &inputs, output, []),
            Activation::Relu => {
                let sum = self.builder.node(ONNX, "Add", &inputs, &format!("{output}.sum"), [])?;
                self.builder.node(ONNX, "Relu", &[&sum], output, [])
            }
        }
    }

    /// The layer norm `norm` of what comes out of a linear layer and `skip`.
    fn add_norm(&mut self, linear: &Linear, skip: &str, norm: &str) -> Result<String> {
        let [gamma, beta] = self.norm(norm)?;
        let epsilon = attribute("epsilon", self.bert.layer_norm_eps)?;
        let inputs = [&*linear.product, skip, &gamma, &beta, &linear.bias];
        self.builder.node(CONTRIB, "SkipLayerNormalization", &inputs, norm, [epsilon])
    }

    fn norm(&mut self, name: &str) -> Result<[String; 2]> {
        let mut part = |part: &str| self.builder.tensor(&format!("{name}.{part}"), &[self.bert.hidden]);
        Ok([part("weight")?, part("bias")?])
    }
}

/// A bound that no result of an activation is below.
fn least(activation: Activation) -> f32 {
    match activation {
        Activation::Gelu | Activation::GeluTanh => -0.1701,
        Activation::Relu => 0.0,
    }
}

/// Writes `rows`, `[n, k]`, as columns into `out`, `[k, _]`, from the column `first` on.
fn transpose(rows: &[f32], k: usize, first: usize, out: &mut [f32]) {
    // In blocks, so that both sides stay in the cache.
    const BLOCK: usize = 16;
    let width = out.len() / k;
    for (block, rows) in rows.chunks(BLOCK * k).enumerate() {
        for (column, out) in out.chunks_exact_mut(width).enumerate() {
            let out = &mut out[first + block * BLOCK..];
            rows[column..].iter().step_by(k).zip(out).for_each(|(&x, out)| *out = x);
        }
    }
}

/// The bucket of the distance from a query to a key, of T5's bidirectional scheme: half of the
/// buckets for either direction, of these half for single distances and half by logarithm.
fn bucket(distance: i64, buckets: usize) -> usize {
    let (half, exact) = (buckets / 2, buckets / 4);
    let far = distance.unsigned_abs() as usize;
    let direction = if distance > 0 { half } else { 0 };
    let by_distance = if far < exact {
        far
    } else {
        let octaves = (far as f32 / exact as f32).ln() / (MAX_DISTANCE / exact as f32).ln();
        (exact + (octaves * (half - exact) as f32) as usize).min(half - 1)
    };
    direction + by_distance
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_columns() {
        let (n, k) = (37, 5);
        let rows: Vec<f32> = (0..n * k).map(|x| x as f32).collect();
        let (first, width) = (2, n + 3);
        let mut columns = vec![-1.0; k * width];
        transpose(&rows, k, first, &mut columns);
        for (at, &x) in columns.iter().enumerate() {
            let (row, column) = (at / width, at % width);
            let is_of_it = (first..first + n).contains(&column);
            assert_eq!(x, if is_of_it { rows[(column - first) * k + row] } else { -1.0 }, "{at}");
        }
    }

    #[test]
    fn buckets_are_those_of_transformers() {
        // MPNetEncoder.relative_position_bucket, 32 buckets.
        for (distance, expected) in
            [(0, 0), (-1, 1), (1, 17), (-7, 7), (-8, 8), (-20, 10), (100, 31), (-500, 15)]
        {
            assert_eq!(bucket(distance, 32), expected, "{distance}");
        }
    }
}
