//! Dot products of one query with rows in half precision, by the widest registers that the processor has.
use half::{f16, slice::HalfFloatSliceExt};

/// Numbers that are widened at a time; they stay in the first-level cache.
const TILE: usize = 4096;
/// Independent sums, which the compiler spreads over registers.
const LANES: usize = 32;

/// Writes `dot(query, rows[i])` to `out[i]`; `rows` is `[out.len(), query.len()]` row-major.
pub(super) fn dots(query: &[f32], rows: &[f16], out: &mut [f32]) {
    each_row(query.len(), rows, out, |row| dot(query, row));
}

/// Writes `1 / |rows[i]|` to `out[i]`, and 0 for a row of zeros.
pub(super) fn scales(dim: usize, rows: &[f16], out: &mut [f32]) {
    each_row(dim, rows, out, |row| {
        let square = dot(row, row);
        if square > 0.0 { square.sqrt().recip() } else { 0.0 }
    });
}

fn each_row(dim: usize, rows: &[f16], out: &mut [f32], value: impl Fn(&[f32]) -> f32) {
    let tile = (TILE / dim).max(1);
    let mut wide = vec![0.0; tile * dim];
    for (rows, out) in rows.chunks(tile * dim).zip(out.chunks_mut(tile)) {
        let wide = &mut wide[..rows.len()];
        rows.convert_to_f32_slice(wide);
        for (row, out) in wide.chunks_exact(dim).zip(out) {
            *out = value(row);
        }
    }
}

/// Of two rows of one width.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    #[cfg(target_arch = "x86_64")]
    if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { dot_avx2(a, b) };
    }
    sum_of_products::<false>(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dot_avx2(a: &[f32], b: &[f32]) -> f32 {
    sum_of_products::<true>(a, b)
}

/// Without `FUSED` a multiply-add is two operations: fused, it would be a call where there is no such
/// instruction.
#[inline(always)]
fn sum_of_products<const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for lane in 0..LANES {
            sums[lane] =
                if FUSED { a[lane].mul_add(b[lane], sums[lane]) } else { a[lane] * b[lane] + sums[lane] };
        }
    }
    let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn it_is_what_the_definition_says(dim in 1usize..200, count in 0usize..40, seed in any::<u64>()) {
            let mut x = seed | 1;
            let mut number = || {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                (x % 2001) as f32 / 1000.0 - 1.0
            };
            let query: Vec<f32> = (0..dim).map(|_| number()).collect();
            let rows: Vec<f16> = (0..dim * count).map(|_| f16::from_f32(number())).collect();
            let (mut found, mut lengths) = (vec![0.0; count], vec![0.0; count]);
            dots(&query, &rows, &mut found);
            scales(dim, &rows, &mut lengths);
            for (at, row) in rows.chunks(dim).enumerate() {
                let exact: f64 = row.iter().zip(&query).map(|(a, b)| a.to_f64() * f64::from(*b)).sum();
                prop_assert!((f64::from(found[at]) - exact).abs() < 1e-4, "{} is not {exact}", found[at]);
                let square: f64 = row.iter().map(|v| v.to_f64() * v.to_f64()).sum();
                let scale = if square > 0.0 { square.sqrt().recip() } else { 0.0 };
                prop_assert!((f64::from(lengths[at]) - scale).abs() <= scale * 1e-5);
            }
            let portable = sum_of_products::<false>(&query, &query);
            prop_assert!((dot(&query, &query) - portable).abs() <= portable * 1e-5);
        }
    }
}
