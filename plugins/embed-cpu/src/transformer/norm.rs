//! Normalisations of rows.
use super::{buffer::Encoded, cpu::by_isa, gemm::VECTOR, linear::encode_row, math::fma};

by_isa! {
    /// Layer norm of `rows` rows of `x`, `out.stride` apart, of which the first `gamma.len()` numbers
    /// count, in place; and each encoded, from row `first` of `out` on.
    fn layer_norm(
        x: &mut [f32],
        gamma: &[f32],
        beta: &[f32],
        eps: f32,
        first: usize,
        rows: usize,
        out: &mut Encoded,
    ) = layer_norm_body;
}

#[inline(always)]
fn layer_norm_body<const FUSED: bool>(
    x: &mut [f32],
    gamma: &[f32],
    beta: &[f32],
    eps: f32,
    first: usize,
    rows: usize,
    out: &mut Encoded,
) {
    for (row, x) in (first..first + rows).zip(x.chunks_exact_mut(out.stride)) {
        let values = &mut x[..gamma.len()];
        let scale = 1.0 / values.len() as f32;
        let mean = sum(values, |x| x) * scale;
        let variance = sum(values, |x| (x - mean) * (x - mean)) * scale;
        let inverse = 1.0 / (variance + eps).sqrt();
        for ((x, &gamma), &beta) in values.iter_mut().zip(gamma).zip(beta) {
            *x = fma::<FUSED>((*x - mean) * inverse, gamma, beta);
        }
        encode_row::<FUSED>(x, row, out);
    }
}

by_isa! {
    /// RMS norm of `rows` rows of `x`, `out.stride` apart, of which the first `gamma.len()` numbers
    /// count, each encoded; `x` stays.
    fn rms_norm(x: &[f32], gamma: &[f32], eps: f32, rows: usize, out: &mut Encoded) = rms_norm_body;
}

#[inline(always)]
fn rms_norm_body<const FUSED: bool>(x: &[f32], gamma: &[f32], eps: f32, rows: usize, out: &mut Encoded) {
    let mut scratch = vec![0.0; out.stride];
    for (row, x) in (0..rows).zip(x.chunks_exact(out.stride)) {
        scratch[..gamma.len()].copy_from_slice(&x[..gamma.len()]);
        rms_norm_row(&mut scratch[..gamma.len()], gamma, eps);
        encode_row::<FUSED>(&scratch, row, out);
    }
}

/// RMS norm of one row, in place.
#[inline(always)]
pub(crate) fn rms_norm_row(x: &mut [f32], gamma: &[f32], eps: f32) {
    let inverse = 1.0 / (sum(x, |x| x * x) / x.len() as f32 + eps).sqrt();
    x.iter_mut().zip(gamma).for_each(|(x, &gamma)| *x = *x * inverse * gamma);
}

/// The sum of `of` of each number, in 16 sums whose order is the same everywhere.
#[inline(always)]
pub(crate) fn sum(x: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let (chunks, rest) = x.as_chunks::<VECTOR>();
    let mut sums = [0.0; VECTOR];
    for chunk in chunks {
        sums.iter_mut().zip(chunk).for_each(|(sum, &x)| *sum += of(x));
    }
    sums.iter_mut().zip(rest).for_each(|(sum, &x)| *sum += of(x));
    sums.into_iter().sum()
}
