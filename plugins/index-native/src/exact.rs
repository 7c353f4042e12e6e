//! Scores by the definition, in f32.

use crate::{best::Best, parallel, rabitq::Kernel};
use half::{
    f16,
    slice::{HalfBitsSliceExt, HalfFloatSliceExt},
};
use magray_plugin_api::{CallContext, Error, Hit, IndexSpec, Metric, Result};

/// Queries that share a look at a row.
const GROUP: usize = 16;

/// A search that compares with every row that it is given.
pub(crate) struct Exact<'a> {
    pub(crate) kernel: Kernel,
    pub(crate) spec: IndexSpec,
    pub(crate) threads: usize,
    /// As [`prepare`] made them.
    pub(crate) queries: &'a [Vec<f32>],
    pub(crate) k: usize,
}

impl Exact<'_> {
    /// The best of `rows` for each query. `visit` hands the id, the vector and the scale of a row to what it is
    /// given; it has room for a vector.
    pub(crate) fn among(
        &self,
        cx: &dyn CallContext,
        rows: &[u32],
        visit: impl Fn(usize, &mut [f32], &mut dyn FnMut(u64, &[f32], f32)) + Sync,
    ) -> Result<Vec<Best>> {
        let Self { kernel, spec, queries, .. } = *self;
        // Some tens of nanoseconds a row and query.
        let threads = self.threads.min(rows.len() * queries.len() * spec.dim / (1 << 20)).max(1);
        let share = queries.len().div_ceil(threads).clamp(1, GROUP);
        let found = parallel::map(threads, queries.chunks(share).collect(), |queries: &[Vec<f32>]| {
            let mut best = vec![Best::new(self.k); queries.len()];
            let mut room = vec![0.0; spec.dim];
            for (at, &row) in rows.iter().enumerate() {
                if at % 1024 == 0 {
                    cx.check()?;
                }
                visit(row as usize, &mut room, &mut |id, vector, scale| {
                    for (best, query) in best.iter_mut().zip(queries) {
                        best.push(Hit::new(id, kernel.score(spec.metric, query, vector, scale)));
                    }
                });
            }
            Ok(best)
        })?;
        Ok(found.into_iter().flatten().collect())
    }
}

impl Kernel {
    /// The score of a row for a query that [`prepare`] made; `scale` makes the row's length 1 under
    /// cosine and is 1 else.
    ///
    /// # Panics
    /// Where the widths differ.
    pub(crate) fn score(self, metric: Metric, query: &[f32], row: &[f32], scale: f32) -> f32 {
        assert!(query.len() == row.len());
        let sum = match self {
            // SAFETY: `detect` has seen the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => unsafe { sum_avx512(metric, query, row) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => unsafe { sum_avx2(metric, query, row) },
            #[cfg(target_arch = "aarch64")]
            Self::Neon => sum::<true>(metric, query, row),
            Self::Scalar => sum::<false>(metric, query, row),
        };
        match metric {
            Metric::Cosine => (sum * scale).clamp(-1.0, 1.0),
            Metric::Dot => sum,
            Metric::L2 => -sum,
        }
    }

    /// Writes f16 numbers, given as their bits, as f32.
    ///
    /// # Panics
    /// Where the lengths differ.
    pub(crate) fn widen(self, halves: &[u16], out: &mut [f32]) {
        assert!(halves.len() == out.len());
        match self {
            // SAFETY: `detect` has seen the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 => unsafe { widen_f16c(halves, out) },
            // f16 is its bits without a promise to bytemuck.
            _ => halves.reinterpret_cast::<f16>().convert_to_f32_slice(out),
        }
    }
}

/// The crate `half` does this too, but calls a function for every eight numbers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx,f16c")]
fn widen_f16c(halves: &[u16], out: &mut [f32]) {
    use std::arch::x86_64::{_mm_loadu_si128, _mm256_cvtph_ps, _mm256_storeu_ps};
    let (whole, rest) = halves.as_chunks::<8>();
    let (out, out_rest) = out.as_chunks_mut::<8>();
    for (eight, out) in whole.iter().zip(out) {
        // SAFETY: eight numbers are read and written.
        unsafe {
            _mm256_storeu_ps(out.as_mut_ptr(), _mm256_cvtph_ps(_mm_loadu_si128(eight.as_ptr().cast())))
        };
    }
    for (&half, out) in rest.iter().zip(out_rest) {
        *out = f16::from_bits(half).to_f32();
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
unsafe fn sum_avx512(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    sum::<true>(metric, a, b)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn sum_avx2(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    sum::<true>(metric, a, b)
}

/// The sum of products, under l2 of squared differences. `FUSED` where the processor multiplies and
/// adds in one step.
#[inline(always)]
fn sum<const FUSED: bool>(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    // Narrow vectors would leave most lanes of the wide loop idle.
    if a.len() < 128 { lanes::<FUSED, 16>(metric, a, b) } else { lanes::<FUSED, 64>(metric, a, b) }
}

#[inline(always)]
fn lanes<const FUSED: bool, const LANES: usize>(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0f32; LANES];
    let (whole, rest) = a.as_chunks::<LANES>();
    let (other, other_rest) = b.as_chunks::<LANES>();
    // Loops instead of closures: a closure has not the features of the function around it.
    for (a, b) in whole.iter().zip(other) {
        add::<FUSED, LANES>(metric, a, b, &mut sums);
    }
    if !rest.is_empty() {
        let mut tails = [[0.0; LANES]; 2];
        tails[0][..rest.len()].copy_from_slice(rest);
        tails[1][..other_rest.len()].copy_from_slice(other_rest);
        add::<FUSED, LANES>(metric, &tails[0], &tails[1], &mut sums);
    }
    // Halves onto each other, as registers are added up.
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            sums[i] += sums[i + width];
        }
        width /= 2;
    }
    sums[0]
}

#[inline(always)]
fn add<const FUSED: bool, const LANES: usize>(
    metric: Metric,
    a: &[f32; LANES],
    b: &[f32; LANES],
    sums: &mut [f32; LANES],
) {
    for i in 0..LANES {
        let (a, b) = if metric == Metric::L2 { (a[i] - b[i], a[i] - b[i]) } else { (a[i], b[i]) };
        sums[i] = if FUSED { a.mul_add(b, sums[i]) } else { a * b + sums[i] };
    }
}

fn squared_length(vector: &[f32]) -> f64 {
    // One sum would wait for each addition.
    let (whole, rest) = vector.as_chunks::<16>();
    let mut sums = [0.0; 16];
    for numbers in whole {
        sums.iter_mut().zip(numbers).for_each(|(sum, &v)| *sum += f64::from(v) * f64::from(v));
    }
    sums.into_iter().chain(rest.iter().map(|&v| f64::from(v) * f64::from(v))).sum()
}

/// Refuses vectors so long that a dot product or a distance between two of them could overflow f32.
/// Under cosine there are none: they are normalised.
///
/// # Errors
/// `INVALID_INPUT`.
pub(crate) fn check_lengths(spec: IndexSpec, vectors: &[f32]) -> Result<()> {
    // (|a| + |b|)² is at most four times the greater square; an estimate goes through steps that are
    // wider by the root of the width.
    let limit = f64::from(f32::MAX) / 64.0 / spec.dim as f64;
    let too_long = |vector: &[f32]| spec.metric != Metric::Cosine && squared_length(vector) > limit;
    match vectors.chunks_exact(spec.dim).position(too_long) {
        None => Ok(()),
        Some(row) => Err(Error::invalid_input(format!(
            "vector {row} is longer than {:.1e}, too long to compare in f32; scale the vectors down",
            limit.sqrt()
        ))),
    }
}

/// A query as it is searched for, of length 1 under cosine.
pub(crate) fn prepare(spec: IndexSpec, query: &[f32]) -> Vec<f32> {
    if spec.metric != Metric::Cosine {
        return query.to_vec();
    }
    let scale = 1.0 / squared_length(query).sqrt();
    query.iter().map(|&v| (f64::from(v) * scale) as f32).collect()
}

/// Appends a vector to `rows` as it is stored, and returns what makes its length 1 under cosine, and
/// else 1. It is stored as it is given, for then f16 may hold it without a loss, unless its length is
/// such that products of it would leave f32.
pub(crate) fn store(spec: IndexSpec, vector: &[f32], rows: &mut Vec<f32>) -> f32 {
    if spec.metric != Metric::Cosine {
        rows.extend_from_slice(vector);
        return 1.0;
    }
    let length = squared_length(vector).sqrt();
    if (1e-15..1e15).contains(&length) {
        rows.extend_from_slice(vector);
        return (1.0 / length) as f32;
    }
    rows.extend(vector.iter().map(|&v| (f64::from(v) / length) as f32));
    1.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rabitq::kernels;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn scores_are_the_definitions(
            (query, row) in (1usize..200).prop_flat_map(|dim| {
                let numbers = || prop::collection::vec(-1.0f32..1.0, dim);
                (numbers(), numbers())
            })
        ) {
            for kernel in kernels() {
                for metric in [Metric::Cosine, Metric::Dot, Metric::L2] {
                    let spec = IndexSpec { dim: query.len(), metric };
                    let mut oracle = magray_plugin_testkit::Oracle::new(spec);
                    if spec.check_rows(&query).is_err() || spec.check_rows(&row).is_err() {
                        continue;
                    }
                    oracle.upsert(&[1], &row);
                    let expected = oracle.score(&query, 1).unwrap();
                    let mut stored = Vec::new();
                    let scale = store(spec, &row, &mut stored);
                    let got = kernel.score(metric, &prepare(spec, &query), &stored, scale);
                    prop_assert!((got - expected).abs() < 1e-4, "{kernel:?} {metric:?}: {got}, not {expected}");
                }
            }
        }
    }
}
