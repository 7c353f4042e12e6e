//! Linear layers: a product, its bias, and what is done with the sums while they are in the cache.
use super::{
    buffer::Encoded,
    cpu::by_isa,
    gemm::{COLUMNS, GROUP, Kernel, Left, Panels, Place, Precision, ROWS, Tile, VECTOR},
    math::{bf16, fma, gelu, gelu_tanh},
};
use magray_model::Activation;

/// A linear layer as it lies among the packed weights. Bias, scales and sums have one number a column,
/// up to a multiple of [`COLUMNS`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Linear<'a> {
    pub(crate) right: Panels<'a>,
    pub(crate) bias: &'a [f32],
    /// For int8: what a column's integers are multiplied by, `[groups, columns]`.
    pub(crate) scales: &'a [f32],
    /// For int8: the sum of a column's numbers, which the offset of a row is multiplied by,
    /// `[groups, columns]`.
    pub(crate) sums: &'a [f32],
}

/// Where the rows of a product go, each `stride` numbers after the last, a multiple of [`VECTOR`].
#[derive(Debug)]
pub(crate) enum Out<'a> {
    /// Added to what is there.
    Add(&'a mut [f32]),
    F32(&'a mut [f32]),
    Bf16(&'a mut [u16]),
}

/// Numbers of a group of int8.
const NUMBERS: usize = GROUP * 4;

/// Bytes of left rows that are multiplied by one panel after the other; with a panel they fit into
/// the L2 cache.
const LEFT_BYTES: usize = 256 << 10;

by_isa! {
    /// Computes `rows` rows: `out = activation(left * right + bias)`. For int8, `ranges` has the range
    /// of each group of steps of each row of `left`.
    fn linear(
        kernel: Kernel,
        left: Left<'_>,
        ranges: &[[f32; 2]],
        rows: usize,
        layer: Linear<'_>,
        activation: Option<Activation>,
        out: Out<'_>,
        stride: usize,
    ) = linear_body;
}

#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "it is the body of `linear`")]
fn linear_body<const FUSED: bool>(
    kernel: Kernel,
    left: Left<'_>,
    ranges: &[[f32; 2]],
    rows: usize,
    layer: Linear<'_>,
    activation: Option<Activation>,
    mut out: Out<'_>,
    stride: usize,
) {
    let Linear { right, bias, scales, sums } = layer;
    let (mut tile, mut total) = (Tile::ZERO, Tile::ZERO);
    let (padded, groups) = (right.columns.next_multiple_of(COLUMNS), right.steps.div_ceil(GROUP));
    let int8 = kernel.precision() == Precision::Int8;
    let chunk = (LEFT_BYTES / (right.steps.max(1) * 4)).next_multiple_of(ROWS);
    for start in (0..rows).step_by(chunk) {
        let part = Left { units: &left.units[start * left.stride..], stride: left.stride };
        let mut product = kernel.product(part, (rows - start).min(chunk), right);
        while let Some(Place { row, tall, column, group, last }) = product.next(&mut tile) {
            let wide = (right.columns - column).min(COLUMNS).next_multiple_of(VECTOR);
            let bias = &bias[column..][..wide];
            if int8 {
                let at = group * padded + column;
                let (scales, sums) = (&scales[at..][..wide], &sums[at..][..wide]);
                for (row, (tile, total)) in (start + row..).zip(tile.0.iter().zip(&mut total.0)).take(tall) {
                    let total = &mut total[..wide];
                    if group == 0 {
                        total.copy_from_slice(bias);
                    }
                    let [scale, offset] = ranges[row * groups + group];
                    for (((total, &value), &factor), &sum) in total.iter_mut().zip(tile).zip(scales).zip(sums)
                    {
                        *total = fma::<FUSED>(value, scale * factor, fma::<FUSED>(offset, sum, *total));
                    }
                }
                if !last {
                    continue;
                }
            }
            let sums = if int8 { &mut total } else { &mut tile };
            for (row, tile) in (start + row..).zip(&mut sums.0[..tall]) {
                let tile = &mut tile[..wide];
                if !int8 {
                    for (value, &bias) in tile.iter_mut().zip(bias) {
                        *value += bias;
                    }
                }
                activate::<FUSED>(activation, tile);
                let at = row * stride + column;
                match &mut out {
                    Out::Add(out) => {
                        for (out, x) in out[at..][..wide].iter_mut().zip(tile) {
                            *out += *x;
                        }
                    }
                    Out::F32(out) => out[at..][..wide].copy_from_slice(tile),
                    Out::Bf16(out) => {
                        for (out, x) in out[at..][..wide].iter_mut().zip(tile) {
                            *out = bf16(*x);
                        }
                    }
                }
            }
        }
    }
}

#[inline(always)]
fn activate<const FUSED: bool>(activation: Option<Activation>, values: &mut [f32]) {
    match activation {
        None => {}
        Some(Activation::Gelu) => {
            for x in values {
                *x = gelu::<FUSED>(*x);
            }
        }
        Some(Activation::GeluTanh) => {
            for x in values {
                *x = gelu_tanh::<FUSED>(*x);
            }
        }
        Some(Activation::Relu) => {
            for x in values {
                *x = if *x > 0.0 { *x } else { 0.0 };
            }
        }
    }
}

by_isa! {
    /// Writes `rows` rows of `x`, [`Encoded::stride`] apart, into `out`, from row `first` of it on.
    fn encode(x: &[f32], first: usize, rows: usize, out: &mut Encoded) = encode_body;
}

#[inline(always)]
fn encode_body<const FUSED: bool>(x: &[f32], first: usize, rows: usize, out: &mut Encoded) {
    for (row, x) in (first..first + rows).zip(x.chunks_exact(out.stride)) {
        encode_row::<FUSED>(x, row, out);
    }
}

/// Writes one row, whose numbers beyond the width are 0.
#[inline(always)]
pub(crate) fn encode_row<const FUSED: bool>(x: &[f32], row: usize, out: &mut Encoded) {
    let (units, groups) = (out.units(), out.groups());
    let to = &mut out.buffer.units_mut()[row * units..][..units];
    match out.precision {
        Precision::F32 => to.copy_from_slice(bytemuck::cast_slice(x)),
        Precision::Bf16 => {
            let to: &mut [u16] = bytemuck::cast_slice_mut(to);
            for (to, &x) in to.iter_mut().zip(x) {
                *to = bf16(x);
            }
        }
        Precision::Int8 => {
            /// Rounds as in `exp`: the integer is in the low bits.
            const ROUND: f32 = 12_582_912.0;
            let to: &mut [u8] = bytemuck::cast_slice_mut(to);
            let parts = to.chunks_mut(NUMBERS).zip(x.chunks(NUMBERS));
            for ((to, x), range) in parts.zip(&mut out.ranges[row * groups..][..groups]) {
                let (low, high) = extremes(x);
                let scale = (high - low) * (1.0 / 255.0);
                let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
                for (to, &x) in to.iter_mut().zip(x) {
                    let n = (x - low) * inverse;
                    let n = if n < 255.0 { n } else { 255.0 };
                    *to = (n + ROUND).to_bits() as u8;
                }
                *range = [scale, low];
            }
        }
    }
}

/// The least and the greatest number.
#[inline(always)]
fn extremes(x: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; VECTOR], [f32::NEG_INFINITY; VECTOR]);
    for chunk in x.as_chunks::<VECTOR>().0 {
        for ((low, high), &x) in low.iter_mut().zip(&mut high).zip(chunk) {
            *low = if x < *low { x } else { *low };
            *high = if x > *high { x } else { *high };
        }
    }
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}
