//! Attention of one sequence: for each head, `softmax(Q K^T) V`.
use super::{
    buffer::Buffer,
    cpu::by_isa,
    gemm::{COLUMNS, Kernel, Left, Panels, Place, Precision, ROWS, Tile, VECTOR, pack},
    math::{bf16, exp},
};

/// Sizes of the attention of a network.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Heads of the queries.
    pub(crate) heads: usize,
    /// Heads of keys and values, which groups of query heads share.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) dim: usize,
    /// Whether a token sees only those before it.
    pub(crate) causal: bool,
}

impl Shape {
    /// Width of the queries, keys and values of a token, one after the other.
    pub(crate) fn qkv(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    /// Width of what attention gives for a token.
    pub(crate) fn out(&self) -> usize {
        self.heads * self.dim
    }
}

/// What is added to the scores of a head by how far the key stands behind the query.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RelativeBias<'a> {
    /// `[heads, 2 * reach - 1]`: the middle is the token itself.
    pub(crate) numbers: &'a [f32],
    /// Longest sequence.
    pub(crate) reach: usize,
}

/// Memory for the work of one thread.
#[derive(Debug, Default)]
pub(crate) struct Scratch {
    keys: Buffer,
    values: Buffer,
    /// Of up to [`ROWS`] queries.
    scores: Buffer,
    /// The scores after softmax, but for its division, as the left side of a product.
    shares: Buffer,
}

impl Scratch {
    pub(crate) fn bytes(&self) -> usize {
        [&self.keys, &self.values, &self.scores, &self.shares].map(Buffer::bytes).iter().sum()
    }
}

by_isa! {
    /// Writes the attention of a sequence of `len` tokens into `out`, `[len, shape.out()]` with
    /// `out_stride` numbers from row to row. `qkv` holds the queries (scaled), keys and values in the
    /// precision of `kernel`, with `stride` units from token to token; for bf16, `shape.dim` is even.
    fn attention(
        kernel: Kernel,
        shape: &Shape,
        bias: Option<RelativeBias<'_>>,
        qkv: &[u32],
        stride: usize,
        len: usize,
        out: &mut [f32],
        out_stride: usize,
        scratch: &mut Scratch,
    ) = attention_body;
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "it is the body of `attention`")]
fn attention_body<const FUSED: bool>(
    kernel: Kernel,
    shape: &Shape,
    bias: Option<RelativeBias<'_>>,
    qkv: &[u32],
    stride: usize,
    len: usize,
    out: &mut [f32],
    out_stride: usize,
    scratch: &mut Scratch,
) {
    let per_unit = kernel.precision().per_unit();
    let (dim, steps) = (shape.dim / per_unit, len.div_ceil(per_unit));
    let score_stride = len.next_multiple_of(COLUMNS);
    scratch.keys.reserve(Panels::len(dim, len));
    scratch.values.reserve(Panels::len(steps, shape.dim));
    scratch.scores.reserve(ROWS * score_stride);
    scratch.shares.reserve(ROWS * score_stride);
    let (mut packed, mut tile) = (None, Tile::ZERO);
    for head in 0..shape.heads {
        let kv = head / (shape.heads / shape.kv_heads);
        if packed != Some(kv) {
            packed = Some(kv);
            let at = (shape.heads + kv) * dim;
            pack(dim, len, |column, step| qkv[column * stride + at + step], scratch.keys.units_mut());
            let at = at + shape.kv_heads * dim;
            pack_values(kernel.precision(), shape.dim, len, &qkv[at..], stride, scratch.values.units_mut());
        }
        for row in (0..len).step_by(ROWS) {
            let tall = (len - row).min(ROWS);
            // The keys that one of these queries sees, and those that their panels hold.
            let seen = if shape.causal { row + tall } else { len };
            let columns = seen.next_multiple_of(COLUMNS).min(len);
            let queries = Left { units: &qkv[row * stride + head * dim..], stride };
            let keys = Panels { units: scratch.keys.units(), steps: dim, columns };
            let scores = scratch.scores.floats_mut();
            let mut product = kernel.product(queries, tall, keys);
            while let Some(Place { column, .. }) = product.next(&mut tile) {
                let wide = (columns - column).min(COLUMNS).next_multiple_of(VECTOR);
                for (at, tile) in tile.0.iter().enumerate().take(tall) {
                    scores[at * score_stride + column..][..wide].copy_from_slice(&tile[..wide]);
                }
            }
            let mut factors = [0.0; ROWS];
            for (at, factor) in factors.iter_mut().enumerate().take(tall) {
                let sees = if shape.causal { row + at + 1 } else { len };
                let scores = &mut scores[at * score_stride..][..columns.next_multiple_of(VECTOR)];
                if let Some(RelativeBias { numbers, reach }) = bias {
                    let from = head * (2 * reach - 1) + reach - 1 - (row + at);
                    for (score, bias) in scores.iter_mut().zip(&numbers[from..][..len]) {
                        *score += bias;
                    }
                }
                *factor = 1.0 / softmax::<FUSED>(scores, sees);
            }
            let part = seen.div_ceil(per_unit);
            let shares = match kernel.precision() {
                Precision::F32 => Left { units: bytemuck::cast_slice(scores), stride: score_stride },
                _ => {
                    for at in 0..tall {
                        let scores = &scores[at * score_stride..][..seen.next_multiple_of(VECTOR)];
                        let shares = &mut scratch.shares.halves_mut()[at * score_stride..];
                        for (share, &score) in shares.iter_mut().zip(scores) {
                            *share = bf16(score);
                        }
                    }
                    Left { units: scratch.shares.units(), stride: score_stride / per_unit }
                }
            };
            // Panel by panel, because only the first steps of each are read.
            for first in (0..shape.dim).step_by(COLUMNS) {
                let columns = (shape.dim - first).min(COLUMNS);
                let values = Panels { units: &scratch.values.units()[first * steps..], steps: part, columns };
                if kernel.product(shares, tall, values).next(&mut tile).is_none() {
                    continue;
                }
                for (at, (tile, factor)) in tile.0.iter().zip(factors).enumerate().take(tall) {
                    let out = &mut out[(row + at) * out_stride + head * shape.dim + first..][..columns];
                    for (out, sum) in out.iter_mut().zip(tile) {
                        *out = sum * factor;
                    }
                }
            }
        }
    }
}

/// Packs the values of one head: a column a number of the head, a step a unit of tokens.
#[inline(always)]
fn pack_values(precision: Precision, dim: usize, len: usize, values: &[u32], stride: usize, out: &mut [u32]) {
    match precision {
        Precision::F32 => pack(len, dim, |column, step| values[step * stride + column], out),
        _ => {
            let halves: &[u16] = bytemuck::cast_slice(values);
            let half = |token: usize, column: usize| {
                if token < len { u32::from(halves[token * stride * 2 + column]) } else { 0 }
            };
            let unit = |column, step| half(2 * step, column) | half(2 * step + 1, column) << 16;
            pack(len.div_ceil(2), dim, unit, out);
        }
    }
}

/// Turns the first `len` scores into `e^(score - greatest)`, the others into 0, and returns the sum.
/// There are a multiple of [`VECTOR`].
#[inline(always)]
fn softmax<const FUSED: bool>(scores: &mut [f32], len: usize) -> f32 {
    scores[len..].fill(f32::MIN);
    let chunks = scores.as_chunks_mut::<VECTOR>().0;
    let mut most = [f32::MIN; VECTOR];
    for chunk in &*chunks {
        for (most, &x) in most.iter_mut().zip(chunk) {
            *most = if x > *most { x } else { *most };
        }
    }
    let most = most.into_iter().fold(f32::MIN, f32::max);
    let mut sums = [0.0; VECTOR];
    for chunk in &mut *chunks {
        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
            // What is not seen is e^-87, which is nothing beside the greatest, which is 1.
            *x = exp::<FUSED>(*x - most);
            *sum += *x;
        }
    }
    sums.into_iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::transformer::cpu::Isa;
    use proptest::prelude::*;

    /// Attention by its definition, in f64, of f32 `qkv`, `[len, shape.qkv()]`.
    fn oracle(shape: &Shape, bias: Option<RelativeBias>, qkv: &[f32], len: usize) -> Vec<f32> {
        let mut out = Vec::new();
        for query in 0..len {
            for head in 0..shape.heads {
                let kv = head / (shape.heads / shape.kv_heads);
                let of = |token: usize, place: usize| {
                    qkv[token * shape.qkv() + place * shape.dim..][..shape.dim].iter().map(|&x| f64::from(x))
                };
                let keys = if shape.causal { query + 1 } else { len };
                let shares: Vec<f64> = (0..keys)
                    .map(|key| {
                        let score: f64 =
                            of(query, head).zip(of(key, shape.heads + kv)).map(|(a, b)| a * b).sum();
                        let bias = bias.map_or(0.0, |bias| {
                            let at = head * (2 * bias.reach - 1) + bias.reach - 1 + key - query;
                            f64::from(bias.numbers[at])
                        });
                        (score + bias).exp()
                    })
                    .collect();
                let total: f64 = shares.iter().sum();
                let mut sums = vec![0.0; shape.dim];
                for (key, share) in shares.iter().enumerate() {
                    let values = of(key, shape.heads + shape.kv_heads + kv);
                    sums.iter_mut().zip(values).for_each(|(sum, value)| *sum += share / total * value);
                }
                out.extend(sums.iter().map(|&sum| sum as f32));
            }
        }
        out
    }

    proptest! {
        #[test]
        fn attention_is_what_its_definition_says(
            len in 1_usize..150,
            (kv_heads, group, dim) in (1_usize..3, 1_usize..3, prop_oneof![1_usize..40, Just(128)]),
            causal in any::<bool>(),
            biased in any::<bool>(),
            mut seed in any::<u64>(),
        ) {
            let mut number = || {
                seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (seed >> 40) as f32 / (1 << 23) as f32 - 1.0
            };
            for precision in [Precision::F32, Precision::Bf16] {
                let dim = if precision == Precision::Bf16 { dim.next_multiple_of(2) } else { dim };
                let shape = Shape { heads: kv_heads * group, kv_heads, dim, causal };
                // Numbers that a bf16 holds, so that only sums and shares are rounded.
                let mut qkv = || f32::from_bits(number().to_bits() & 0xffff_0000);
                let numbers: Vec<f32> = (0..len * shape.qkv()).map(|_| qkv()).collect();
                let relative: Vec<f32> = (0..shape.heads * (2 * 160 - 1)).map(|_| number()).collect();
                let bias = biased.then_some(RelativeBias { numbers: &relative, reach: 160 });
                let units: Vec<u32> = match precision {
                    Precision::F32 => numbers.iter().map(|x| x.to_bits()).collect(),
                    _ => numbers
                        .as_chunks::<2>()
                        .0
                        .iter()
                        .map(|[low, high]| low.to_bits() >> 16 | high.to_bits())
                        .collect(),
                };
                let expected = oracle(&shape, bias, &numbers, len);
                for isa in Isa::available() {
                    let Some(kernel) = Kernel::new(precision, isa) else { continue };
                    let mut out = vec![f32::NAN; len * shape.out()];
                    let stride = shape.qkv() / precision.per_unit();
                    let mut scratch = Scratch::default();
                    attention(
                        isa, kernel, &shape, bias, &units, stride, len, &mut out, shape.out(), &mut scratch,
                    );
                    let close = if precision == Precision::F32 { 2e-5 } else { 1e-2 };
                    for (got, expected) in out.iter().zip(&expected) {
                        prop_assert!((got - expected).abs() <= close, "{isa:?} {got} {expected}");
                    }
                }
            }
        }
    }
}
