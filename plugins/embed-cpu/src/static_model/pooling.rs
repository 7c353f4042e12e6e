//! Sums rows of the weight matrix. This is compiled once for each engine, so that one binary uses
//! what the CPU has; the compiler vectorises it.
//!
//! Every engine gives the same bits: an int8 weight times an f16 scale is exact in f32, so fused and
//! separate arithmetic agree, and no engine changes the order of the additions.

use super::weights::{Precision, Weights};

/// The instructions that sum the rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Engine {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What every CPU of the target has.
    Portable,
}

/// So many sums fit into the registers at once; a cache line of int8 weights.
const BLOCK: usize = 64;

impl Engine {
    /// The fastest that this CPU has.
    pub(crate) fn detect() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// All that this CPU has, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        [
            #[cfg(target_arch = "x86_64")]
            (Self::Avx512, is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512bw")),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, is_x86_feature_detected!("avx2")),
            (Self::Portable, true),
        ]
        .into_iter()
        .filter_map(|(engine, here)| here.then_some(engine))
    }

    /// The name for reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Adds the rows `ids` of `weights` to `sum`, `[dim]`, in the order of `ids`. Every id is below
    /// the number of rows.
    pub(crate) fn add_rows(self, weights: &Weights, ids: &[u32], sum: &mut [f32]) {
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: `available`, the only source of this engine, found the features.
            Self::Avx512 => unsafe { add_rows_avx512(weights, ids, sum) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Self::Avx2 => unsafe { add_rows_avx2(weights, ids, sum) },
            Self::Portable => add_rows(weights, ids, sum),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw")]
fn add_rows_avx512(weights: &Weights, ids: &[u32], sum: &mut [f32]) {
    add_rows(weights, ids, sum);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn add_rows_avx2(weights: &Weights, ids: &[u32], sum: &mut [f32]) {
    add_rows(weights, ids, sum);
}

#[inline(always)]
fn add_rows(weights: &Weights, ids: &[u32], sum: &mut [f32]) {
    let rows = weights.rows();
    match weights.precision {
        Precision::Int8 => {
            add_scaled(rows.as_chunks().0, |id| weights.scales[id], |[w]| f32::from(w as i8), ids, sum);
        }
        Precision::F16 => add_scaled(rows.as_chunks().0, |_| 1.0, f16_to_f32, ids, sum),
        Precision::F32 => add_scaled(rows.as_chunks().0, |_| 1.0, f32::from_le_bytes, ids, sum),
    }
}

/// `weights` is `[rows, sum.len()]`, each number `N` bytes that `decode` reads.
#[inline(always)]
fn add_scaled<const N: usize>(
    weights: &[[u8; N]],
    scale: impl Fn(usize) -> f32,
    decode: impl Fn([u8; N]) -> f32,
    ids: &[u32],
    sum: &mut [f32],
) {
    let dim = sum.len();
    for (block, sum) in sum.chunks_mut(BLOCK).enumerate() {
        let first = block * BLOCK;
        if let Ok(sum) = <&mut [f32; BLOCK]>::try_from(&mut *sum) {
            let mut sums = *sum;
            for &id in ids {
                let (at, scale) = (id as usize * dim + first, scale(id as usize));
                for (sum, &weight) in sums.iter_mut().zip(&weights[at..at + BLOCK]) {
                    *sum += decode(weight) * scale;
                }
            }
            *sum = sums;
        } else {
            for &id in ids {
                let (at, scale) = (id as usize * dim + first, scale(id as usize));
                for (sum, &weight) in sum.iter_mut().zip(&weights[at..]) {
                    *sum += decode(weight) * scale;
                }
            }
        }
    }
}

/// Asks the CPU to load the rows `ids` of `weights` into its cache. Every id is below the number of
/// rows.
pub(crate) fn prefetch(weights: &Weights, ids: &[u32]) {
    #[cfg(target_arch = "x86_64")]
    for &id in ids {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        const CACHE_LINE: usize = 64;
        let len = weights.dim * weights.precision.bytes();
        for line in weights.rows()[id as usize * len..][..len].chunks(CACHE_LINE) {
            // SAFETY: a prefetch is a hint; it neither faults nor changes what a program can see.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (weights, ids);
}

/// The number that two little-endian bytes hold, for finite ones.
#[inline(always)]
pub(crate) fn f16_to_f32(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    // Exponent and mantissa at their places in an f32, whose exponent counts from 112 lower.
    let magnitude = f32::from_bits((bits & 0x7fff) << 13) * f32::from_bits((112 + 127) << 23);
    f32::from_bits(magnitude.to_bits() | (bits & 0x8000) << 16)
}

/// Scales `vector` to length 1. One too short for that (below 1e-19) becomes zero: it has no direction.
pub(crate) fn normalize(vector: &mut [f32]) {
    // Sixteen sums, so that the compiler may use every lane; their order is the same everywhere.
    let mut squares = [0.0_f32; 16];
    for chunk in vector.chunks(squares.len()) {
        for (square, &value) in squares.iter_mut().zip(chunk) {
            *square += value * value;
        }
    }
    let square = squares.iter().sum::<f32>();
    let scale = if square >= f32::MIN_POSITIVE { 1.0 / square.sqrt() } else { 0.0 };
    for value in vector {
        *value *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::static_model::weights::tests::weights;
    use proptest::prelude::*;

    #[test]
    fn f16_is_read_as_half_floats_are() {
        for (bits, value) in [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x3555, 0.333_251_95),
            (0x7bff, 65504.0),
            (0x0001, 2.0_f32.powi(-24)),
            (0x83ff, -1023.0 * 2.0_f32.powi(-24)),
            (0x0400, 2.0_f32.powi(-14)),
        ] {
            assert_eq!(f16_to_f32(u16::to_le_bytes(bits)), value, "{bits:#x}");
        }
    }

    proptest! {
        #[test]
        fn every_engine_gives_the_same_bits(
            ids in prop::collection::vec(0_u32..20, 0..30),
            dim in prop_oneof![1_usize..200, Just(256)],
            seed in any::<u64>(),
        ) {
            for precision in [Precision::Int8, Precision::F16, Precision::F32] {
                let weights = weights(precision, 20, dim, seed);
                // One number after the other, without blocks.
                let mut expected = vec![0.5_f32; dim];
                for &id in &ids {
                    for (at, sum) in expected.iter_mut().enumerate() {
                        *sum += weights.get(id as usize, at);
                    }
                }
                for engine in Engine::available() {
                    let mut sum = vec![0.5; dim];
                    engine.add_rows(&weights, &ids, &mut sum);
                    prop_assert_eq!(&sum, &expected, "{:?} {:?}", engine, precision);
                }
            }
        }

        #[test]
        fn vectors_get_length_1_or_0(
            vector in prop::collection::vec(-1.0_f32..1.0, 1..300),
            exponent in -45..15,
        ) {
            let size = 10_f32.powi(exponent);
            let mut unit: Vec<f32> = vector.iter().map(|value| value * size).collect();
            let before = unit.iter().map(|value| value.abs()).fold(0.0, f32::max);
            normalize(&mut unit);
            let length = unit.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            prop_assert!((length - 1.0).abs() < 1e-5 || (length == 0.0 && before < 2e-19), "{}", length);
        }
    }
}
