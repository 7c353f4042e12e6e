//! The networks, from token ids to pooled states.
mod attention;
mod bert;
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
