//! Dot products of one query with rows in half precision, by the widest registers that the processor has.
use half::{f16, slice::HalfFloatSliceExt};

/// Writes `dot(query, rows[i])` to `out[i]`; `rows` is `[out.len(), query.len()]` row-major.
pub(super) fn dots(query: &[f32], rows: &[f16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_there() {
        // SAFETY: the processor has what the function is compiled for.
        return unsafe { x86::dots(query, rows, out) };
    }
    portable::each_row(query.len(), rows, out, |row| portable::dot(query, row));
}

/// Writes `1 / |rows[i]|` to `out[i]`, and 0 for a row of zeros.
pub(super) fn scales(dim: usize, rows: &[f16], out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if x86::is_there() {
        // SAFETY: as above.
        unsafe { x86::squares(dim, rows, out) };
        return out.iter_mut().for_each(|square| *square = scale(*square));
    }
    portable::each_row(dim, rows, out, |row| scale(portable::dot(row, row)));
}

fn scale(square: f32) -> f32 {
    if square > 0.0 { square.sqrt().recip() } else { 0.0 }
}

mod portable {
    use super::*;

    /// Numbers that are widened at a time; they stay in the first-level cache.
    const TILE: usize = 4096;
    /// Independent sums, which the compiler spreads over registers.
    const LANES: usize = 32;

    pub(super) fn each_row(dim: usize, rows: &[f16], out: &mut [f32], value: impl Fn(&[f32]) -> f32) {
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

    pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
        let ((a, rest_a), (b, rest_b)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
        let mut sums = [0.0f32; LANES];
        for (a, b) in a.iter().zip(b) {
            for lane in 0..LANES {
                sums[lane] += a[lane] * b[lane];
            }
        }
        let rest: f32 = rest_a.iter().zip(rest_b).map(|(a, b)| a * b).sum();
        sums.iter().sum::<f32>() + rest
    }
}

/// Widens in registers, so that rows are read once and no more than they are.
#[cfg(target_arch = "x86_64")]
mod x86 {
    use half::f16;
    use std::arch::x86_64::{
        __m256, _mm_loadu_si128, _mm256_add_ps, _mm256_cvtph_ps, _mm256_fmadd_ps, _mm256_loadu_ps,
        _mm256_setzero_ps, _mm256_storeu_ps,
    };

    /// Numbers of a register, and registers of sums.
    const WIDTH: usize = 8;
    const SUMS: usize = 4;
    /// Numbers of a round, which has every sum in a register of its own.
    const STEP: usize = WIDTH * SUMS;

    pub(super) fn is_there() -> bool {
        is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn dots(query: &[f32], rows: &[f16], out: &mut [f32]) {
        let (numbers, rest) = query.as_chunks::<STEP>();
        for (row, out) in rows.chunks_exact(query.len()).zip(out) {
            let (row, rest_of_row) = row.as_chunks::<STEP>();
            let mut sums = [_mm256_setzero_ps(); SUMS];
            for (a, b) in row.iter().zip(numbers) {
                let (a, b) = (a.as_chunks().0, b.as_chunks().0);
                for at in 0..SUMS {
                    sums[at] = _mm256_fmadd_ps(halves(&a[at]), floats(&b[at]), sums[at]);
                }
            }
            let rest: f32 = rest_of_row.iter().zip(rest).map(|(a, b)| a.to_f32() * b).sum();
            *out = total(sums) + rest;
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn squares(dim: usize, rows: &[f16], out: &mut [f32]) {
        for (row, out) in rows.chunks_exact(dim).zip(out) {
            let (row, rest) = row.as_chunks::<STEP>();
            let mut sums = [_mm256_setzero_ps(); SUMS];
            for a in row {
                let a = a.as_chunks().0;
                for at in 0..SUMS {
                    let wide = halves(&a[at]);
                    sums[at] = _mm256_fmadd_ps(wide, wide, sums[at]);
                }
            }
            let rest: f32 = rest.iter().map(|a| a.to_f32() * a.to_f32()).sum();
            *out = total(sums) + rest;
        }
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn total(sums: [__m256; SUMS]) -> f32 {
        let all = _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]));
        let mut lanes = [0.0; WIDTH];
        // SAFETY: `lanes` has room for the eight numbers that it writes.
        unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), all) };
        lanes.iter().sum()
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn halves(numbers: &[f16; WIDTH]) -> __m256 {
        // SAFETY: it reads 16 bytes, which eight f16 are; any address will do.
        _mm256_cvtph_ps(unsafe { _mm_loadu_si128(numbers.as_ptr().cast()) })
    }

    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    fn floats(numbers: &[f32; WIDTH]) -> __m256 {
        // SAFETY: it reads the eight numbers; any address will do.
        unsafe { _mm256_loadu_ps(numbers.as_ptr()) }
    }
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
            let mut portable = vec![0.0; count];
            portable::each_row(dim, &rows, &mut portable, |row| portable::dot(&query, row));
            for (found, portable) in found.iter().zip(&portable) {
                prop_assert!((found - portable).abs() < 1e-4);
            }
        }
    }
}
