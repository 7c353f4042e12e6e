//! Distances between rows, by the widest vector unit that the processor has.
//!
//! `hnsw_rs` asks for a distance that is never negative and never NaN, and its own are scalar.
use crate::rows::Rows;
use hnsw_rs::anndists::dist::Distance;
use magray_plugin_api::Metric;
use std::sync::Arc;

/// Cache lines of a row that are asked for ahead.
#[cfg(target_arch = "x86_64")]
const PREFETCHED_LINES: usize = 24;

/// The distance that orders a graph: `1 - dot` of normalised vectors under [`Metric::Cosine`],
/// `|a - b|²` under [`Metric::L2`].
#[derive(Clone)]
pub(crate) struct RowDistance {
    rows: Arc<Rows>,
    metric: Metric,
    simd: Simd,
}

impl RowDistance {
    pub(crate) fn new(rows: Arc<Rows>, metric: Metric) -> Self {
        Self { rows, metric, simd: Simd::detect() }
    }

    pub(crate) fn simd(&self) -> &'static str {
        self.simd.name()
    }

    /// The distance of two vectors of one width; finite and at least 0 for finite numbers.
    #[inline]
    pub(crate) fn between(&self, a: &[f32], b: &[f32]) -> f32 {
        match self.metric {
            Metric::L2 => self.simd.sum::<true>(a, b).min(f32::MAX),
            Metric::Cosine | Metric::Dot => (1.0 - self.simd.sum::<false>(a, b)).max(0.0),
        }
    }

    /// The score of [`magray_plugin_api::Hit`] for a distance.
    pub(crate) fn score(&self, distance: f32) -> f32 {
        match self.metric {
            Metric::L2 => -distance,
            Metric::Cosine | Metric::Dot => 1.0 - distance,
        }
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// Asks for a row before it is compared with. The processor goes on by itself after the first
    /// lines, so those are enough.
    #[inline]
    pub(crate) fn prefetch(&self, row: u32) {
        #[cfg(target_arch = "x86_64")]
        for line in self.rows.get(row).chunks(64 / size_of::<f32>()).take(PREFETCHED_LINES) {
            // SAFETY: every x86_64 has SSE, and a prefetch reads nothing that the program sees.
            unsafe {
                std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(line.as_ptr().cast())
            };
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = row;
    }
}

/// Between rows that the graph holds as their numbers.
impl Distance<u32> for RowDistance {
    #[inline]
    fn eval(&self, a: &[u32], b: &[u32]) -> f32 {
        self.between(self.rows.get(a[0]), self.rows.get(b[0]))
    }
}

/// `vector` with length 1. The norm is taken in f64, where no square of an f32 overflows or
/// vanishes.
pub(crate) fn normalised(vector: &[f32]) -> Box<[f32]> {
    let norm = vector.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    vector.iter().map(|&v| (f64::from(v) / norm) as f32).collect()
}

/// What the processor can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Simd {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// What the compiler makes of it for every processor of the target.
    Baseline,
}

impl Simd {
    fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Baseline
    }

    fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            Self::Baseline => "baseline",
        }
    }

    /// `|a - b|²` where `L2`, else `dot(a, b)`.
    #[inline]
    fn sum<const L2: bool>(self, a: &[f32], b: &[f32]) -> f32 {
        match self {
            // SAFETY: `detect` is the only maker of this value and has found the feature.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { sum_avx512::<L2>(a, b) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { sum_avx2::<L2>(a, b) },
            // Every aarch64 has a fused multiply-add; elsewhere `mul_add` may be a call.
            Self::Baseline => sum::<L2, { cfg!(target_arch = "aarch64") }>(a, b),
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512<const L2: bool>(a: &[f32], b: &[f32]) -> f32 {
    sum::<L2, true>(a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn sum_avx2<const L2: bool>(a: &[f32], b: &[f32]) -> f32 {
    sum::<L2, true>(a, b)
}

/// Compiled once for each set of features above; 64 independent sums fill the vector registers and
/// hide the latency of the multiply-add.
#[inline(always)]
fn sum<const L2: bool, const FUSED: bool>(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 64;
    let (a_blocks, a_rest) = a.as_chunks::<LANES>();
    let (b_blocks, b_rest) = b.as_chunks::<LANES>();
    let mut sums = [0.0; LANES];
    for (a, b) in a_blocks.iter().zip(b_blocks) {
        for lane in 0..LANES {
            sums[lane] = add_term::<L2, FUSED>(sums[lane], a[lane], b[lane]);
        }
    }
    for (lane, (a, b)) in a_rest.iter().zip(b_rest).enumerate() {
        sums[lane] = add_term::<L2, FUSED>(sums[lane], *a, *b);
    }
    let mut width = LANES;
    while width > 1 {
        width /= 2;
        for lane in 0..width {
            sums[lane] += sums[lane + width];
        }
    }
    sums[0]
}

#[inline(always)]
fn add_term<const L2: bool, const FUSED: bool>(sum: f32, a: f32, b: f32) -> f32 {
    let (x, y) = if L2 { (a - b, a - b) } else { (a, b) };
    if FUSED { x.mul_add(y, sum) } else { x * y + sum }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// All that this processor can run.
    fn every_simd() -> Vec<Simd> {
        [
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx512, is_x86_feature_detected!("avx512f")),
            #[cfg(target_arch = "x86_64")]
            (Simd::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            (Simd::Baseline, true),
        ]
        .into_iter()
        .filter_map(|(simd, here)| here.then_some(simd))
        .collect()
    }

    proptest! {
        #[test]
        fn every_unit_agrees_with_the_definition(
            pairs in prop::collection::vec((-10.0f32..10.0, -10.0f32..10.0), 0..300),
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let dot: f64 = a.iter().zip(&b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
            let l2: f64 = a.iter().zip(&b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
            let tolerance = 1e-3 * (1.0 + a.len() as f64);
            for simd in every_simd() {
                prop_assert!((f64::from(simd.sum::<false>(&a, &b)) - dot).abs() < tolerance, "{simd:?}");
                prop_assert!((f64::from(simd.sum::<true>(&a, &b)) - l2).abs() < tolerance, "{simd:?}");
            }
        }
    }

    #[test]
    fn a_distance_is_finite_and_not_negative_for_the_worst_numbers() {
        let rows = Arc::new(Rows::new(2));
        let l2 = RowDistance::new(Arc::clone(&rows), Metric::L2);
        assert_eq!(l2.between(&[f32::MAX, 0.0], &[f32::MIN, 0.0]), f32::MAX);
        let cosine = RowDistance::new(rows, Metric::Cosine);
        for vector in [[1e-40, 3e-41], [f32::MAX, f32::MAX], [0.3, 0.4], [1e-45, 0.0]] {
            let unit = normalised(&vector);
            assert!((0.0..1e-6).contains(&cosine.between(&unit, &unit)), "{vector:?}");
        }
    }

    #[test]
    fn a_point_is_a_row() {
        let rows = Arc::new(Rows::new(1));
        rows.reserve(2).unwrap();
        rows.push(&[3.0]);
        rows.push(&[5.0]);
        assert_eq!(RowDistance::new(rows, Metric::L2).eval(&[0], &[1]), 4.0);
    }
}
