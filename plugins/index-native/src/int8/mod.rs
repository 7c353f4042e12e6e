//! Vectors as int8, one byte a number, so that a comparison is a few integer instructions.
//!
//! A row is centred, scaled by one factor for all rows, rounded to -127..=127, and kept with 128 added:
//! the instruction that multiplies bytes (`vpdpbusd`) takes one operand without sign. Half its squared
//! length is kept beside it, for `|a - b|² / 2 = half(a) + half(b) - dot(a, b)`. What is compared with
//! rows is kept with its sign, as [`Queries`].
//!
//! Centring changes no order: it leaves distances as they are, and a dot product with a query that is
//! not centred falls by `dot(center, query)` for every row.

mod blocks;
mod kernel;
#[cfg(target_arch = "aarch64")]
mod neon;
mod panels;
mod plain;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use blocks::{block_bytes, interleave};
pub(crate) use kernel::{COLUMNS, Kernel, prefetch};
pub(crate) use panels::Panels;
pub(crate) use plain::round;

use magray_plugin_api::Metric;

/// The width that rows are padded to with zeros: the widest register, and a line of the cache.
pub(crate) const LANE: usize = 64;

/// The widest vector: up to here `half(a) + half(b) - dot(a, b)` fits 32 bits.
pub(crate) const MAX_DIM: usize = 65_536;

/// Of so many rows [`Quantizer::fit`] should be shown a sample, for more change nothing.
pub(crate) const SAMPLE: usize = 20_000;

/// Bytes of a row of `dim` numbers.
pub(crate) const fn stride(dim: usize) -> usize {
    dim.next_multiple_of(LANE)
}

/// Makes codes of vectors.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Quantizer {
    /// What is subtracted from a vector, `[dim]`.
    center: Vec<f32>,
    /// What the rest is multiplied by.
    scale: f32,
}

impl Quantizer {
    /// As it was stored; `None` where the numbers cannot be those of [`Quantizer::fit`].
    pub(crate) fn new(center: Vec<f32>, scale: f32) -> Option<Self> {
        let sound = scale.is_finite() && scale > 0.0 && center.iter().all(|v| v.is_finite());
        (sound && (1..=MAX_DIM).contains(&center.len())).then_some(Self { center, scale })
    }

    /// For vectors like those of `sample`, `[n, dim]` row-major, of length 1 under cosine.
    ///
    /// # Panics
    /// Where `dim` is not in `1..=MAX_DIM`, or the sample is not of whole rows.
    pub(crate) fn fit(dim: usize, sample: &[f32]) -> Self {
        assert!((1..=MAX_DIM).contains(&dim) && sample.len().is_multiple_of(dim));
        let mut sums = vec![0.0f64; dim];
        for row in sample.chunks_exact(dim) {
            sums.iter_mut().zip(row).for_each(|(sum, &v)| *sum += f64::from(v));
        }
        let rows = (sample.len() / dim).max(1) as f64;
        let center: Vec<f32> = sums.iter().map(|sum| (sum / rows) as f32).collect();
        // One number in 10,000 is cut short, so that a single outlier does not cost all others their
        // precision. Where few numbers are not zero, that would cut what matters: never below what
        // half of the rows reach.
        let residual = |row: &[f32], at: usize| (row[at] - center[at]).abs();
        let mut longest: Vec<f32> = sample
            .chunks_exact(dim)
            .map(|row| (0..dim).map(|at| residual(row, at)).fold(0.0, f32::max))
            .collect();
        let step = sample.len().div_ceil(2_000_000).max(1);
        let mut sizes: Vec<f32> = (0..sample.len())
            .step_by(step)
            .map(|at| residual(&sample[at / dim * dim..][..dim], at % dim))
            .collect();
        let limit = quantile(&mut sizes, 0.9999).max(quantile(&mut longest, 0.5));
        let scale = 127.0 / limit;
        // All rows equal, or nothing to go by.
        let scale = if scale.is_finite() && scale > 0.0 { scale } else { 1.0 };
        Self { center, scale }
    }

    /// What is subtracted from every row, `[dim]`.
    pub(crate) fn center(&self) -> &[f32] {
        &self.center
    }

    /// Code units per unit of a vector.
    pub(crate) fn scale(&self) -> f32 {
        self.scale
    }

    /// Encodes `rows` `[n, dim]` into `codes` `[n, stride]` and `half` `[n]`.
    ///
    /// # Panics
    /// Where the lengths do not fit.
    pub(crate) fn encode(&self, kernel: Kernel, rows: &[f32], codes: &mut [u8], half: &mut [i32]) {
        let (dim, stride) = (self.center.len(), stride(self.center.len()));
        assert!(rows.len() == half.len() * dim && codes.len() == half.len() * stride);
        let codes = codes.chunks_exact_mut(stride);
        for ((row, code), half) in rows.chunks_exact(dim).zip(codes).zip(half) {
            *half = kernel.encode(row, &self.center, self.scale, code) / 2;
        }
    }

    /// Appends `query` `[dim]`, of length 1 under cosine, to `queries`. Returns what makes scores of what comes of its
    /// products with codes: `(half - dot)` times this is half a squared distance, or a dot product with its sign turned, but
    /// for what is the same for all rows.
    ///
    /// # Panics
    /// Where the widths differ.
    pub(crate) fn push_query(&self, metric: Metric, query: &[f32], queries: &mut Queries) -> f32 {
        let dim = self.center.len();
        assert!(query.len() == dim && queries.stride == stride(dim));
        let centred = metric == Metric::L2;
        let value = |at: usize| if centred { query[at] - self.center[at] } else { query[at] };
        // The order of dot products does not depend on the scale of the query, so it has its own.
        let scale = if centred {
            self.scale
        } else {
            let longest = query.iter().fold(0.0f32, |longest, v| longest.max(v.abs()));
            if longest > 0.0 { 127.0 / longest } else { 1.0 }
        };
        let begin = queries.values.len();
        queries.values.resize(begin + queries.stride, 0);
        let mut sum = 0;
        for at in 0..dim {
            let code = round(value(at) * scale);
            queries.values[begin + at] = code;
            sum += i32::from(code);
        }
        queries.offsets.push(sum * 128);
        1.0 / (scale * self.scale)
    }
}

/// The value below which lies `share` of the values; 0 for none.
fn quantile(values: &mut [f32], share: f64) -> f32 {
    let Some(last) = values.len().checked_sub(1) else { return 0.0 };
    let at = (values.len() as f64 * share) as usize;
    *values.select_nth_unstable_by(at.min(last), f32::total_cmp).1
}

/// Rows as codes. Borrowed, so that they may lie in a mapped file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    codes: &'a [u8],
    half: &'a [i32],
    stride: usize,
}

impl<'a> Codes<'a> {
    /// `codes` `[n, stride]` and `half` `[n]` as [`Quantizer::encode`] wrote them; `None` where the
    /// lengths do not fit. What a damaged file says makes wrong scores and nothing worse.
    pub(crate) fn new(stride: usize, codes: &'a [u8], half: &'a [i32]) -> Option<Self> {
        let fits = stride > 0
            && stride.is_multiple_of(LANE)
            && stride <= MAX_DIM
            && half.len().checked_mul(stride) == Some(codes.len());
        fits.then_some(Self { codes, half, stride })
    }

    /// The number of rows.
    pub(crate) fn len(&self) -> usize {
        self.half.len()
    }

    /// Bytes of a row.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Half of the squared length of each row.
    pub(crate) fn half(&self) -> &'a [i32] {
        self.half
    }

    /// One row.
    ///
    /// # Panics
    /// Where there is none of this number.
    #[inline]
    pub(crate) fn row(&self, at: usize) -> &'a [u8] {
        &self.codes[at * self.stride..][..self.stride]
    }

    /// Appends row `at` to `queries`, to compare other rows with it.
    ///
    /// # Panics
    /// Where there is none of this number, or the widths differ.
    pub(crate) fn push_query(&self, kernel: Kernel, at: usize, queries: &mut Queries) {
        assert!(queries.stride == self.stride);
        let begin = queries.values.len();
        queries.values.resize(begin + self.stride, 0);
        let sum = kernel.signed(self.row(at), &mut queries.values[begin..]);
        queries.offsets.push(sum * 128);
    }
}

/// What rows are compared with: numbers in -127..=127, `[n, stride]`, zeros beyond `dim`.
#[derive(Clone, Debug)]
pub(crate) struct Queries {
    values: Vec<i8>,
    /// What the 128 that was added to each code adds to a dot product: 128 times the sum of the values.
    offsets: Vec<i32>,
    stride: usize,
}

impl Queries {
    /// None yet, for rows of `stride` bytes.
    pub(crate) fn new(stride: usize) -> Self {
        Self { values: Vec::new(), offsets: Vec::new(), stride }
    }

    /// Forgets them and keeps the room.
    pub(crate) fn clear(&mut self) {
        self.values.clear();
        self.offsets.clear();
    }

    /// One of them.
    ///
    /// # Panics
    /// Where there is none of this number.
    #[inline]
    pub(crate) fn get(&self, at: usize) -> Query<'_> {
        Query { values: &self.values[at * self.stride..][..self.stride], offset: self.offsets[at] }
    }
}

/// One of [`Queries`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Query<'a> {
    values: &'a [i8],
    offset: i32,
}

impl Query<'_> {
    /// Half of its squared length.
    pub(crate) fn half(self) -> i32 {
        self.values.iter().map(|&value| i32::from(value) * i32::from(value)).sum::<i32>() / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Rows encoded by the first kernel.
    fn encode(quantizer: &Quantizer, rows: &[f32]) -> (Vec<u8>, Vec<i32>) {
        let n = rows.len() / quantizer.center().len();
        let (mut codes, mut half) = (vec![0; n * stride(quantizer.center().len())], vec![0; n]);
        quantizer.encode(Kernel::detect(), rows, &mut codes, &mut half);
        (codes, half)
    }

    proptest! {
        /// The order of dots and distances is that of the vectors, but for the rounding.
        #[test]
        fn scores_are_near_the_true_ones(
            (dim, rows, query) in (1usize..130, 1usize..12).prop_flat_map(|(dim, n)| {
                let numbers = |len| prop::collection::vec(-1.0f32..1.0, len);
                (Just(dim), numbers(n * dim), numbers(dim))
            })
        ) {
            // Off the origin, as the vectors of many models are.
            let rows: Vec<f32> = rows.iter().map(|v| v + 3.0).collect();
            let query: Vec<f32> = query.iter().map(|v| v + 3.0).collect();
            let quantizer = Quantizer::fit(dim, &rows);
            let (codes, half) = encode(&quantizer, &rows);
            let codes = Codes::new(stride(dim), &codes, &half).unwrap();
            let ids: Vec<u32> = (0..codes.len() as u32).collect();
            let mut queries = Queries::new(stride(dim));
            quantizer.push_query(Metric::Dot, &query, &mut queries);
            quantizer.push_query(Metric::L2, &query, &mut queries);
            let mut dots = vec![0; 2 * ids.len()];
            let (dot, l2) = dots.split_at_mut(ids.len());
            Kernel::detect().dots(&codes, queries.get(0), &ids, dot);
            Kernel::detect().dots(&codes, queries.get(1), &ids, l2);
            let longest = query.iter().fold(0.0f32, |a, v| a.max(v.abs()));
            // A rounded number is off by half a unit, and each unit of the one meets 127 of the other.
            let slack = dim as f32 * 130.0 + 2.0;
            let exact = |row: &[f32]| -> f32 {
                (0..dim).map(|at| (row[at] - quantizer.center()[at]) * query[at]).sum()
            };
            for (row, &got) in rows.chunks_exact(dim).zip(&*dot) {
                let want = exact(row) * quantizer.scale() * 127.0 / longest;
                prop_assert!((got as f32 - want).abs() <= slack, "dot {got}, not {want}");
            }
            // A query may lie outside of what the sample spans; then it is cut short.
            let reach = 127.0 / quantizer.scale();
            let inside = (0..dim).all(|at| (query[at] - quantizer.center()[at]).abs() <= reach);
            let cut = rows.iter().enumerate().any(|(at, v)| (v - quantizer.center()[at % dim]).abs() > reach);
            if inside && !cut {
                for (at, (row, &got)) in rows.chunks_exact(dim).zip(&*l2).enumerate() {
                    let distance: f32 = row.iter().zip(&query).map(|(a, b)| (a - b).powi(2)).sum();
                    let own: f32 = (0..dim).map(|at| (query[at] - quantizer.center()[at]).powi(2)).sum();
                    let want = (distance - own) / 2.0 * quantizer.scale().powi(2);
                    let got = (half[at] - got) as f32;
                    prop_assert!((got - want).abs() <= 2.0 * slack, "distance {got}, not {want}");
                }
            }
        }
    }

    #[test]
    fn a_scale_for_any_sample() {
        assert_eq!(Quantizer::fit(3, &[]).scale(), 1.0);
        assert_eq!(Quantizer::fit(3, &[0.5; 12]).scale(), 1.0);
        // One number in 200 is all there is: it must not be cut short.
        let mut sparse = vec![0.0; 200 * 20_000];
        (0..20_000).for_each(|row| sparse[row * 200 + row % 200] = 1.0);
        let scale = Quantizer::fit(200, &sparse).scale();
        assert!((127.0..130.0).contains(&scale), "{scale}");
        // One number in a million is large: it must not cost the others their precision.
        let mut spoiled: Vec<f32> = (0..1_000_000).map(|at| (at % 201) as f32 / 100.0 - 1.0).collect();
        spoiled[1234] = 100.0;
        let scale = Quantizer::fit(100, &spoiled).scale();
        assert!(scale > 100.0, "{scale}");
    }

    #[test]
    fn damaged_parts_are_refused() {
        assert!(Codes::new(64, &[0; 128], &[0; 2]).is_some());
        assert!(Codes::new(64, &[0; 127], &[0; 2]).is_none());
        assert!(Codes::new(0, &[], &[0; 2]).is_none());
        assert!(Codes::new(32, &[0; 64], &[0; 2]).is_none());
        assert!(Codes::new(MAX_DIM + LANE, &[], &[]).is_none());
        assert!(Quantizer::new(vec![0.0], f32::NAN).is_none());
        assert!(Quantizer::new(vec![0.0], 0.0).is_none());
        assert!(Quantizer::new(vec![f32::INFINITY], 1.0).is_none());
        assert!(Quantizer::new(vec![], 1.0).is_none());
    }
}
