//! Vectors as four bits a number: half of what int8 takes, for codes that are read here and there, where what a
//! comparison costs is the lines of memory that it reads.
//!
//! A row is centred, and each number rounded to one of sixteen at even distances, `(n - 7.5) * step`. Of a line of 64
//! bytes the lower halves are 64 numbers and the upper halves the 64 numbers after them. Half the squared length of
//! what a row is rounded to is kept beside it, for `|a - b|² / 2 = half(a) + half(b) - dot(a, b)`.
//!
//! Numbers far from the mean are cut short. [`fit`] says where that costs too much.

use crate::int8::{self, Kernel};
use magray_plugin_api::Metric;

/// Numbers in a line of the cache.
const LANE: usize = 128;

/// Vectors narrower than this keep eight bits a number: over few numbers the errors do not even out.
const LEAST_DIM: usize = 128;

/// The share of its squared length that a row may lose on average. Numbers with a normal distribution lose .013.
const LOSS: f32 = 0.02;

/// Rows of a sample that [`fit`] looks at: more change nothing.
const SAMPLE: usize = 2_000;

/// Bytes of a row of `dim` numbers.
pub(crate) const fn stride(dim: usize) -> usize {
    dim.div_ceil(LANE) * LANE / 2
}

/// The step for vectors like those of `sample`, `[n, dim]` row-major, of length 1 under cosine; `None` where four bits
/// are too few for them.
pub(crate) fn fit(center: &[f32], sample: &[f32]) -> Option<f32> {
    let dim = center.len();
    if dim < LEAST_DIM {
        return None;
    }
    let every = (sample.len() / dim).div_ceil(SAMPLE).max(1);
    let rows = sample.chunks_exact(dim).step_by(every);
    let residuals: Vec<f32> = rows.flat_map(|row| row.iter().zip(center).map(|(v, c)| v - c)).collect();
    let square: f32 = residuals.iter().map(|v| v * v).sum();
    let deviation = (square / residuals.len().max(1) as f32).sqrt();
    if !(deviation > 0.0 && deviation.is_finite()) {
        return None;
    }
    // How many deviations the sixteen numbers span on either side: 2.4, 2.8, ... 4.
    let losses = (6..=10).map(|span| {
        let step = 0.4 * span as f32 * deviation / 8.0;
        let rounded = |v: f32| 0.5 * f32::from(odd(code(v, 1.0 / step))) * step;
        let lost: f32 = residuals.iter().map(|&v| (v - rounded(v)).powi(2)).sum();
        (lost / square, step)
    });
    losses.min_by(|a, b| a.0.total_cmp(&b.0)).filter(|best| best.0 <= LOSS).map(|best| best.1)
}

/// The number of the one of the sixteen that is nearest.
#[inline(always)]
fn code(v: f32, inverse: f32) -> u8 {
    // Not `floor`, which is a call on a CPU without SSE4: to cut off is the same from 0 on.
    (v * inverse + 8.0).clamp(0.0, 15.0) as u8
}

/// Twice what a code stands for, in steps.
#[inline(always)]
fn odd(code: u8) -> i16 {
    2 * i16::from(code) - 15
}

/// Writes the code of `row`, `[stride]`, and returns half of its squared length.
///
/// # Panics
/// Where the widths differ.
pub(crate) fn encode(row: &[f32], center: &[f32], step: f32, out: &mut [u8]) -> f32 {
    assert!(row.len() == center.len() && out.len() == stride(row.len()));
    let inverse = 1.0 / step;
    let mut square = 0;
    for ((line, row), center) in out.chunks_exact_mut(LANE / 2).zip(row.chunks(LANE)).zip(center.chunks(LANE))
    {
        // What is beyond the row meets zeros of a query.
        let mut numbers = [0u8; LANE];
        for ((number, v), center) in numbers.iter_mut().zip(row).zip(center) {
            *number = code(v - center, inverse);
            square += i32::from(odd(*number)).pow(2);
        }
        let (low, high) = numbers.split_at(LANE / 2);
        line.iter_mut().zip(low).zip(high).for_each(|((byte, low), high)| *byte = low | high << 4);
    }
    0.125 * square as f32 * step * step
}

/// What rows are compared with.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    /// In -127..=127, as many as a row has with what it is filled up with.
    values: Vec<i8>,
    /// What taking a code for `n` and not for `n - 7.5` adds to twice a product.
    offset: i32,
    /// What makes a score of a doubled product.
    scale: f32,
}

impl Query {
    /// Of `query`, of length 1 under cosine.
    pub(crate) fn new(metric: Metric, query: &[f32], center: &[f32], step: f32) -> Self {
        // As with int8, centring changes no order.
        let centred = |(v, c): (&f32, &f32)| if metric == Metric::L2 { v - c } else { *v };
        let row: Vec<f32> = query.iter().zip(center).map(centred).collect();
        let longest = row.iter().fold(0.0f32, |longest, v| longest.max(v.abs()));
        let scale = if longest > 0.0 { 127.0 / longest } else { 1.0 };
        let mut values = vec![0; 2 * stride(query.len())];
        values.iter_mut().zip(row).for_each(|(value, v)| *value = int8::round(v * scale));
        let sum: i32 = values.iter().map(|&value| i32::from(value)).sum();
        Self { values, offset: 15 * sum, scale: 0.5 * step / scale }
    }
}

/// Rows as codes. Borrowed, so that they may lie in a mapped file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Codes<'a> {
    codes: &'a [u8],
    half: &'a [f32],
    stride: usize,
}

impl<'a> Codes<'a> {
    /// `codes` `[n, stride]` and `half` `[n]` as [`encode`] wrote them; `None` where the lengths do not fit. What a
    /// damaged file says makes wrong scores and nothing worse.
    pub(crate) fn new(dim: usize, codes: &'a [u8], half: &'a [f32]) -> Option<Self> {
        let stride = stride(dim);
        let fits = stride > 0 && half.len().checked_mul(stride) == Some(codes.len());
        fits.then_some(Self { codes, half, stride })
    }

    /// Bytes of a row.
    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// Writes for each of `rows` a number that is the less the nearer it is to the query: by distance where that is
    /// asked for, else by the dot product. `dots` is room.
    ///
    /// # Panics
    /// Where there is no such row, or the lengths or widths differ.
    #[inline]
    pub(crate) fn score(
        &self,
        kernel: Kernel,
        query: &Query,
        distance: bool,
        rows: &[u32],
        dots: &mut Vec<i32>,
        out: &mut [f32],
    ) {
        dots.resize(rows.len(), 0);
        if distance {
            for &row in rows {
                int8::prefetch(&self.half[row as usize..=row as usize]);
            }
        }
        kernel.nibble_dots(self.codes, &query.values, rows, dots);
        for ((out, &dot), &row) in out.iter_mut().zip(&*dots).zip(rows) {
            let half = if distance { self.half[row as usize] } else { 0.0 };
            // A damaged half may be no number, which has no place in an order.
            let half = if half.is_finite() { half } else { f32::MAX };
            *out = half - (2 * dot).wrapping_sub(query.offset) as f32 * query.scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(n: usize, seed: u64) -> Vec<f32> {
        let mut random = crate::rotation::Random(seed);
        // The sum of four is near enough to a normal distribution.
        (0..n).map(|_| (0..4).map(|_| random.next() as f32 / u64::MAX as f32 - 0.5).sum()).collect()
    }

    proptest! {
        /// Every kernel gives what the numbers that the codes stand for give.
        #[test]
        fn scores_are_those_of_the_rounded_rows(dim in 1usize..600, n in 1usize..12, seed: u64, distance: bool) {
            let (rows, query, center) = (numbers(n * dim, seed), numbers(dim, !seed), numbers(dim, seed / 2));
            let step = 0.1;
            let (mut codes, mut half) = (vec![0; n * stride(dim)], vec![0.0; n]);
            for ((row, code), half) in rows.chunks(dim).zip(codes.chunks_mut(stride(dim))).zip(&mut half) {
                *half = encode(row, &center, step, code);
            }
            let rounded: Vec<f32> = rows
                .iter()
                .zip(center.iter().cycle())
                .map(|(v, c)| 0.5 * f32::from(odd(code(v - c, 1.0 / step))) * step)
                .collect();
            let metric = if distance { Metric::L2 } else { Metric::Dot };
            let asked = Query::new(metric, &query, &center, step);
            let codes = Codes::new(dim, &codes, &half).unwrap();
            let ids: Vec<u32> = (0..n as u32).rev().collect();
            for kernel in Kernel::available() {
                let mut out = vec![0.0; n];
                codes.score(kernel, &asked, distance, &ids, &mut Vec::new(), &mut out);
                for (&id, got) in ids.iter().zip(out) {
                    let row = &rounded[id as usize * dim..][..dim];
                    let value = |at: usize| if distance { query[at] - center[at] } else { query[at] };
                    let dot: f32 = (0..dim).map(|at| row[at] * value(at)).sum();
                    let own: f32 = if distance { row.iter().map(|v| v * v / 2.0).sum() } else { 0.0 };
                    // The query is rounded to a 127th of its largest number, and the rows are at most .75.
                    let slack = dim as f32 * 0.75 * 4.0 / 254.0 + 1e-3;
                    prop_assert!((got - (own - dot)).abs() <= slack, "{kernel:?}: {got}, not {}", own - dot);
                }
            }
        }
    }

    #[test]
    fn kernels_agree() {
        for dim in [128, 384, 768, 784, 1000] {
            let (rows, query, center) = (numbers(40 * dim, 1), numbers(dim, 2), vec![0.0; dim]);
            let (mut codes, mut half) = (vec![0; 40 * stride(dim)], vec![0.0; 40]);
            for ((row, code), half) in rows.chunks(dim).zip(codes.chunks_mut(stride(dim))).zip(&mut half) {
                *half = encode(row, &center, 0.1, code);
            }
            let (query, codes) =
                (Query::new(Metric::L2, &query, &center, 0.1), Codes::new(dim, &codes, &half).unwrap());
            let ids: Vec<u32> = (0..40).collect();
            let scores = |kernel| {
                let mut out = vec![0.0; ids.len()];
                codes.score(kernel, &query, true, &ids, &mut Vec::new(), &mut out);
                out
            };
            Kernel::available()
                .for_each(|kernel| assert_eq!(scores(kernel), scores(Kernel::Portable), "{kernel:?}"));
        }
    }

    #[test]
    fn four_bits_are_used_where_they_are_enough() {
        let center = vec![0.0; 384];
        let step = fit(&center, &numbers(100 * 384, 3)).unwrap();
        assert!((0.15..0.3).contains(&step), "{step}");
        // Narrow vectors, rows that are all the same, and such with few numbers that are not zero.
        assert_eq!(fit(&center[..64], &numbers(100 * 64, 3)), None);
        assert_eq!(fit(&center, &vec![0.0; 3840]), None);
        let mut sparse = vec![0.0; 384 * 384];
        (0..384).for_each(|row| sparse[row * 384 + row] = 1.0);
        assert_eq!(fit(&center, &sparse), None);
    }
}
