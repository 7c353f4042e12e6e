use super::elementwise;
use crate::batch::Batch;
use candle_core::{DType, Device, Result, Tensor};

/// Queries that are scored at once, so that the scores of a long text do not fill the memory:
/// `heads * BLOCK * tokens` numbers.
const BLOCK: usize = 256;

/// Heads and their width.
pub(super) struct Heads {
    /// Of queries.
    pub(super) queries: usize,
    /// Of keys and values; divides `queries`.
    pub(super) keys: usize,
    /// Numbers of each.
    pub(super) width: usize,
}

/// What is added to the scores besides the mask of padding.
pub(super) enum Bias {
    /// Nothing: every token sees every token.
    None,
    /// A number for each head and pair of positions, `[heads, n, n]`.
    Positions(Tensor),
    /// A token sees itself and what is before it. Holds that for `BLOCK` tokens, `[1, BLOCK, BLOCK]`.
    Causal(Tensor),
}

impl Bias {
    /// What makes attention causal.
    pub(super) fn causal(device: &Device, dtype: DType) -> Result<Self> {
        let pair = |at: usize| if at % BLOCK > at / BLOCK { f32::NEG_INFINITY } else { 0.0 };
        let triangle: Vec<f32> = (0..BLOCK * BLOCK).map(pair).collect();
        Ok(Self::Causal(Tensor::from_vec(triangle, (1, BLOCK, BLOCK), device)?.to_dtype(dtype)?))
    }

    /// How many keys matter to the queries below `end`.
    fn keys(&self, end: usize, length: usize) -> usize {
        if matches!(self, Self::Causal(_)) { end } else { length }
    }

    /// `scores`, `[batch, rows, keys]`, of the queries from `start` on, with the bias.
    fn add(&self, scores: Tensor, start: usize, rows: usize, keys: usize) -> Result<Tensor> {
        match self {
            Self::None => Ok(scores),
            Self::Positions(bias) => {
                let bias = bias.narrow(1, start, rows)?.narrow(2, 0, keys)?;
                let (batch, heads) = (scores.dim(0)?, bias.dim(0)?);
                scores
                    .reshape((batch / heads, heads, rows, keys))?
                    .broadcast_add(&bias)?
                    .reshape((batch, rows, keys))
            }
            Self::Causal(triangle) => {
                let mut seen = triangle.narrow(1, 0, rows)?.narrow(2, 0, rows)?;
                if start > 0 {
                    let before = Tensor::zeros((1, rows, start), scores.dtype(), scores.device())?;
                    seen = Tensor::cat(&[&before, &seen], 2)?;
                }
                scores.broadcast_add(&seen)
            }
        }
    }
}

/// Attention within each text of `batch`: from queries, `[rows, heads.queries * heads.width]` and
/// already scaled, keys and values, `[rows, heads.keys * heads.width]`, to `[rows, heads.queries *
/// heads.width]`.
pub(super) fn attend(
    [queries, keys, values]: [Tensor; 3],
    heads: &Heads,
    batch: &Batch,
    bias: &Bias,
) -> Result<Tensor> {
    let width = heads.queries * heads.width;
    if let Some(length) = batch.padded {
        let texts = batch.lengths.len();
        let split = |states: &Tensor, count: usize| {
            states.reshape((texts, length, count, heads.width))?.transpose(1, 2)?.contiguous()?.reshape((
                texts * count,
                length,
                heads.width,
            ))
        };
        let (queries, keys, values) =
            (split(&queries, heads.queries)?, split(&keys, heads.keys)?, split(&values, heads.keys)?);
        let mask = batch.mask.as_ref().map(|mask| mask.to_dtype(queries.dtype())).transpose()?;
        return one_length(&queries, &keys, &values, heads, mask.as_ref(), bias)?
            .reshape((texts, heads.queries, length, heads.width))?
            .transpose(1, 2)?
            .reshape((texts * length, width));
    }
    let texts = batch.texts().map(|rows| {
        // Views: the product takes any strides.
        let split = |states: &Tensor, count: usize| {
            states
                .narrow(0, rows.start, rows.len())?
                .reshape((rows.len(), count, heads.width))?
                .transpose(0, 1)
        };
        let (queries, keys, values) =
            (split(&queries, heads.queries)?, split(&keys, heads.keys)?, split(&values, heads.keys)?);
        one_length(&queries, &keys, &values, heads, None, bias)?.transpose(0, 1)?.reshape((rows.len(), width))
    });
    Tensor::cat(&texts.collect::<Result<Vec<_>>>()?, 0)
}

/// Attention among texts of one length: `[texts * heads, length, width]` of each.
fn one_length(
    queries: &Tensor,
    keys: &Tensor,
    values: &Tensor,
    heads: &Heads,
    mask: Option<&Tensor>,
    bias: &Bias,
) -> Result<Tensor> {
    let (batch, length, width) = queries.dims3()?;
    let blocks = (0..length).step_by(BLOCK).map(|start| {
        let rows = BLOCK.min(length - start);
        let seen = bias.keys(start + rows, length);
        let queries = queries.narrow(1, start, rows)?;
        let (keys, values) = (keys.narrow(1, 0, seen)?, values.narrow(1, 0, seen)?);
        // The queries of all heads that share keys are one matrix.
        let shared = heads.queries / heads.keys;
        let group = |tensor: Tensor, columns: usize| match shared {
            1 => Ok(tensor),
            _ => tensor.reshape((batch / shared, shared * rows, columns)),
        };
        let scores = group(queries, width)?.matmul(&keys.transpose(1, 2)?)?.reshape((batch, rows, seen))?;
        let mut scores = bias.add(scores, start, rows, seen)?;
        if let Some(mask) = mask {
            let texts = mask.dim(0)?;
            scores = scores
                .reshape((texts, batch / texts, rows, seen))?
                .broadcast_add(&mask.narrow(3, 0, seen)?)?
                .reshape((batch, rows, seen))?;
        }
        let weights = elementwise::softmax(scores)?;
        group(weights, seen)?.matmul(&values)?.reshape((batch, rows, width))
    });
    let blocks = blocks.collect::<Result<Vec<_>>>()?;
    if let [block] = &blocks[..] { Ok(block.clone()) } else { Tensor::cat(&blocks, 1) }
}
