//! The networks, from token ids to pooled states.
mod attention;
mod bert;
mod elementwise;
mod qwen3;

use crate::{batch::Batch, failed};
use bert::Bert;
use candle_core::{D, DType, Device, Tensor};
use magray_model::{Architecture, ModelFolder, Pooling, Weights};
use magray_plugin_api::{Error, ErrorCode, Result};
use qwen3::Qwen3;

/// Asked between layers whether to go on.
pub(crate) type Check<'a> = &'a dyn Fn() -> Result<()>;

/// A model's weights on their device.
pub(crate) struct Network {
    layers: Layers,
    pooling: Pooling,
    /// Bytes of the weights.
    pub(crate) bytes: u64,
}

enum Layers {
    Bert(Bert),
    Qwen3(Qwen3),
}

impl Network {
    /// Reads the weights of `folder`.
    ///
    /// # Errors
    /// `UNSUPPORTED` for a static model, and as [`Weights::f32`].
    pub(crate) fn load(folder: &ModelFolder, device: &Device, dtype: DType) -> Result<Self> {
        let source = Source { weights: Weights::open(folder)?, device, dtype, bytes: 0.into() };
        let layers = match &folder.spec.architecture {
            Architecture::Bert(config) => Layers::Bert(Bert::load(config, &source)?),
            Architecture::Qwen3(config) => Layers::Qwen3(Qwen3::load(config, &source)?),
            Architecture::Static => {
                let message = format!("'{}' is a static model; the backend cpu runs it", folder.name);
                return Err(Error::new(ErrorCode::UNSUPPORTED, message));
            }
        };
        Ok(Self { layers, pooling: folder.spec.pooling, bytes: source.bytes.get() })
    }

    /// The pooled states of the texts of `batch`, `[texts, hidden]` row-major, not scaled.
    pub(crate) fn run(&self, batch: &Batch, check: Check<'_>) -> Result<Vec<f32>> {
        let states = match &self.layers {
            Layers::Bert(bert) => bert.run(batch, check)?,
            Layers::Qwen3(qwen) => qwen.run(batch, check)?,
        };
        let pooled = || pool(&states, self.pooling, batch)?.flatten_all()?.to_vec1();
        pooled().map_err(|error| failed(&error))
    }
}

/// One state a text, `[texts, hidden]` f32, from `states`, `[rows, hidden]`.
fn pool(states: &Tensor, pooling: Pooling, batch: &Batch) -> candle_core::Result<Tensor> {
    let row = |rows: std::ops::Range<usize>| match pooling {
        Pooling::Last => rows.end - 1,
        Pooling::Cls | Pooling::Mean => rows.start,
    };
    if pooling != Pooling::Mean {
        let rows: Vec<u32> = batch.texts().map(|rows| row(rows) as u32).collect();
        let rows = Tensor::from_vec(rows, batch.lengths.len(), states.device())?;
        return states.index_select(&rows, 0)?.to_dtype(DType::F32);
    }
    // The mean as a product with ones, which is many times faster than a sum over rows.
    let states = states.to_dtype(DType::F32)?;
    if let Some(longest) = batch.padded {
        let (texts, hidden) = (batch.lengths.len(), states.dim(1)?);
        let weight =
            |&length: &usize| (0..longest).map(move |at| if at < length { 1.0 / length as f32 } else { 0.0 });
        let weights: Vec<f32> = batch.lengths.iter().flat_map(weight).collect();
        let weights = Tensor::from_vec(weights, (texts, 1, longest), states.device())?;
        return weights.matmul(&states.reshape((texts, longest, hidden))?)?.squeeze(1);
    }
    let means = batch.texts().map(|rows| {
        let length = rows.len();
        let weights = Tensor::full(1.0 / length as f32, (1, length), states.device())?;
        weights.matmul(&states.narrow(0, rows.start, length)?)
    });
    Tensor::cat(&means.collect::<candle_core::Result<Vec<_>>>()?, 0)
}

/// Where a network gets its weights.
struct Source<'a> {
    weights: Weights,
    device: &'a Device,
    dtype: DType,
    bytes: std::cell::Cell<u64>,
}

impl Source<'_> {
    /// A tensor by its name, in the precision of the arithmetic.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.place(self.weights.f32(name, shape)?, shape)
    }

    /// Numbers as a tensor on the device.
    fn place(&self, numbers: Vec<f32>, shape: &[usize]) -> Result<Tensor> {
        self.bytes.set(self.bytes.get() + (numbers.len() * self.dtype.size_in_bytes()) as u64);
        let place = || Tensor::from_vec(numbers, shape, self.device)?.to_dtype(self.dtype);
        place().map_err(|error| failed(&error))
    }

    /// Several products of the same states as one: `parts` are names with the width of what each
    /// gives and a factor for it; `bias` says whether they have one.
    fn fused(&self, parts: &[(String, usize, f32)], inputs: usize, bias: bool) -> Result<Linear> {
        let (mut weight, mut biases) = (Vec::new(), Vec::new());
        for (name, outputs, factor) in parts {
            let scaled = |numbers: Vec<f32>| numbers.into_iter().map(|number| number * factor);
            weight.extend(scaled(self.weights.f32(&format!("{name}.weight"), &[*outputs, inputs])?));
            if bias {
                biases.extend(scaled(self.weights.f32(&format!("{name}.bias"), &[*outputs])?));
            }
        }
        let outputs = parts.iter().map(|(_, outputs, _)| outputs).sum();
        Ok(Linear {
            weight: self.place(weight, &[outputs, inputs])?,
            bias: if bias { Some(self.place(biases, &[outputs])?) } else { None },
        })
    }

    /// One product.
    fn linear(&self, name: &str, inputs: usize, outputs: usize, bias: bool) -> Result<Linear> {
        self.fused(&[(name.to_owned(), outputs, 1.0)], inputs, bias)
    }

    /// A layer norm by its name.
    fn layer_norm(&self, name: &str, width: usize, eps: f32) -> Result<LayerNorm> {
        let weight = self.tensor(&format!("{name}.weight"), &[width])?;
        Ok(LayerNorm { weight, bias: self.tensor(&format!("{name}.bias"), &[width])?, eps })
    }
}

/// `x W^T + b`
struct Linear {
    /// `[outputs, inputs]`
    weight: Tensor,
    /// `[outputs]`
    bias: Option<Tensor>,
}

impl Linear {
    /// `states` are `[rows, inputs]`, the result is `[rows, outputs]`.
    fn run(&self, states: &Tensor) -> candle_core::Result<Tensor> {
        let product = states.matmul(&self.weight.t()?)?;
        match &self.bias {
            Some(bias) => product.broadcast_add(bias),
            None => Ok(product),
        }
    }
}

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
    eps: f32,
}

impl LayerNorm {
    fn run(&self, states: &Tensor) -> candle_core::Result<Tensor> {
        candle_nn::ops::layer_norm(states, &self.weight, &self.bias, self.eps)
    }
}

/// The columns `[start, start + width)` of `states`.
fn columns(states: &Tensor, start: usize, width: usize) -> candle_core::Result<Tensor> {
    states.narrow(D::Minus1, start, width)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Rows;
    use magray_model::Overrides;
    use std::path::Path;

    /// Padding is for GPUs, and computes the same on the CPU.
    #[test]
    fn padded_texts_get_the_states_of_packed_ones() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../model/tests/data/architectures");
        for name in ["bert", "bert-cls-f16", "xlm-roberta", "mpnet", "qwen3"] {
            let folder = ModelFolder::open(&models.join(name), &Overrides::default()).unwrap();
            let network = Network::load(&folder, &Device::Cpu, DType::F32).unwrap();
            let text = |length: u32| (0..length).map(|at| 4 + at * 7 % 30).collect::<Vec<u32>>();
            let texts = [text(9), text(1), text(20), text(9)];
            let texts: Vec<&[u32]> = texts.iter().map(Vec::as_slice).collect();
            let run = |rows| {
                let batch = Batch::new(&texts, rows, &Device::Cpu).unwrap();
                network.run(&batch, &|| Ok(())).unwrap()
            };
            let (packed, padded) = (run(Rows::Packed), run(Rows::Padded));
            assert_eq!(packed.len(), padded.len());
            let apart = packed.iter().zip(&padded).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(apart < 1e-4, "{name}: {apart}");
        }
    }

    /// More tokens than are scored at once: the blocks must add up to what one is.
    #[test]
    fn long_texts_are_attended_to_in_blocks() {
        use attention::{Bias, Heads, attend};
        let (length, heads) = (600, Heads { queries: 4, keys: 2, width: 8 });
        let random = |columns| Tensor::randn(0.0_f32, 1.0, (length, columns), &Device::Cpu).unwrap();
        let (queries, keys, values) = (random(32), random(16), random(16));
        let ids = vec![0; length];
        let batch = Batch::new(&[&ids], Rows::Packed, &Device::Cpu).unwrap();
        let causal = Bias::causal(&Device::Cpu, DType::F32).unwrap();
        for bias in [&Bias::None, &causal] {
            let inputs = [queries.clone(), keys.clone(), values.clone()];
            let found = attend(inputs, &heads, &batch, bias).unwrap().to_vec2::<f32>().unwrap();
            let [queries, keys, values] = [&queries, &keys, &values].map(|t| t.to_vec2::<f32>().unwrap());
            for (at, head) in [(0, 0), (255, 1), (256, 2), (599, 3)] {
                let seen = if matches!(bias, Bias::None) { length } else { at + 1 };
                let query = &queries[at][head * 8..][..8];
                let own = |row: &[f32]| row[head / 2 * 8..][..8].to_vec();
                let dot = |key: &Vec<f32>| query.iter().zip(own(key)).map(|(a, b)| a * b).sum::<f32>();
                let weights: Vec<f32> = keys[..seen].iter().map(|key| dot(key).exp()).collect();
                let sum: f32 = weights.iter().sum();
                for number in 0..8 {
                    let expected: f32 =
                        weights.iter().zip(&values).map(|(weight, row)| weight * own(row)[number]).sum();
                    let apart = (found[at][head * 8 + number] - expected / sum).abs();
                    assert!(apart < 1e-4, "token {at}, head {head}: {apart}");
                }
            }
        }
    }
}
