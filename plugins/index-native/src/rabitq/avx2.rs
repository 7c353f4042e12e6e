//! AVX2: a table of sixteen entries is looked up 16 bytes at a time. These are the same byte of sixteen
//! rows, so the words of a block are turned into bytes first, once for all queries.

use super::{
    Factors, Query, ROWS, Word,
    scan::{Run, Sift, Strip, Target},
};
use crate::rotation::{Lane, Rotation};
use std::arch::x86_64::*;

pub(super) fn detected() -> bool {
    is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c")
}

/// # Safety
/// [`detected`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn scan(sift: &Sift<'_>, runs: &[Run], targets: &mut [Target<'_>]) {
    // SAFETY: the caller's.
    unsafe { sift.each_strip::<Avx2>(runs, targets) }
}

/// # Safety
/// [`detected`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn encode(
    rotation: &Rotation,
    tile: &mut [Lane],
    shift: &[f32],
    half_square: f32,
    bits: &mut [Word],
) -> Factors {
    super::encode(rotation, tile, shift, half_square, bits)
}

/// # Safety
/// [`detected`].
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn rotate<const L: usize>(rotation: &Rotation, tile: &mut [[f32; L]]) {
    rotation.apply(tile);
}

pub(super) struct Avx2;

/// Words after which the sums of 16 bits are emptied: each adds at most twice 254 to one.
const FLUSH: usize = 128;

/// The row of each byte of half a register, as [`transpose`] leaves them.
const ROW: [usize; ROWS] = [0, 1, 2, 3, 8, 9, 10, 11, 4, 5, 6, 7, 12, 13, 14, 15];

impl Strip for Avx2 {
    #[inline(always)]
    unsafe fn strip<const Q: usize, const B: usize>(
        bits: &[Word],
        factors: &[Factors],
        base: f32,
        queries: [&Query; Q],
        least: [f32; Q],
        out: &mut [[[f32; ROWS]; B]; Q],
    ) -> [u64; Q] {
        let words = bits.len() / B;
        let mut masks = [0; Q];
        for b in 0..B {
            let mut sums = [[0u32; ROWS]; Q];
            for begin in (0..words).step_by(FLUSH) {
                let end = words.min(begin + FLUSH);
                let codes = &bits[b * words + begin..b * words + end];
                // SAFETY: the caller vouches for the registers.
                unsafe { add_words(codes, begin, queries, &mut sums) };
            }
            for q in 0..Q {
                // SAFETY: as above.
                let mask =
                    unsafe { estimate(&sums[q], &factors[b], queries[q], base, least[q], &mut out[q][b]) };
                masks[q] |= u64::from(mask) << (b * ROWS);
            }
        }
        masks
    }
}

/// Adds the entries of at most [`FLUSH`] words of a block, of which the first is word `at`.
///
/// # Safety
/// The processor has the registers.
#[inline(always)]
unsafe fn add_words<const Q: usize>(
    codes: &[Word],
    at: usize,
    queries: [&Query; Q],
    sums: &mut [[u32; ROWS]; Q],
) {
    // SAFETY: the caller vouches for the registers; every pointer is of an array of 32 bytes.
    unsafe {
        let nibble = _mm256_set1_epi8(15);
        // Sums of 16 bits: of both bytes of each pair with the wrong one's carry, and of the upper ones.
        let (mut pair, mut upper) = ([_mm256_setzero_si256(); Q], [_mm256_setzero_si256(); Q]);
        for (w, word) in codes.iter().enumerate() {
            let (first, second) = transpose(word);
            let halves = [(first, 0), (second, 32)];
            for (bytes, from) in halves {
                let low = _mm256_and_si256(bytes, nibble);
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(bytes), nibble);
                for q in 0..Q {
                    let table = &queries[q].tables[at + w];
                    let of_low = _mm256_loadu_si256(table.low[from..from + 32].as_ptr().cast());
                    let of_high = _mm256_loadu_si256(table.high[from..from + 32].as_ptr().cast());
                    let entries =
                        _mm256_add_epi8(_mm256_shuffle_epi8(of_low, low), _mm256_shuffle_epi8(of_high, high));
                    pair[q] = _mm256_add_epi16(pair[q], entries);
                    upper[q] = _mm256_add_epi16(upper[q], _mm256_srli_epi16::<8>(entries));
                }
            }
        }
        for q in 0..Q {
            let lower = _mm256_sub_epi16(pair[q], _mm256_slli_epi16::<8>(upper[q]));
            let (mut even, mut odd) = ([0u16; 16], [0u16; 16]);
            _mm256_storeu_si256((&raw mut even).cast(), lower);
            _mm256_storeu_si256((&raw mut odd).cast(), upper[q]);
            for i in 0..8 {
                sums[q][ROW[2 * i]] += u32::from(even[i]) + u32::from(even[i + 8]);
                sums[q][ROW[2 * i + 1]] += u32::from(odd[i]) + u32::from(odd[i + 8]);
            }
        }
    }
}

/// The first, second, third and fourth bytes of the words of sixteen rows, each in half a register.
///
/// # Safety
/// The processor has the registers.
#[inline(always)]
unsafe fn transpose(word: &Word) -> (__m256i, __m256i) {
    // SAFETY: the caller vouches for the registers; a word is 64 bytes.
    unsafe {
        let bytes = _mm256_setr_epi8(
            0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15, 0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3,
            7, 11, 15,
        );
        let from: *const __m256i = word.as_ptr().cast();
        let rows = _mm256_shuffle_epi8(_mm256_loadu_si256(from), bytes);
        let more = _mm256_shuffle_epi8(_mm256_loadu_si256(from.add(1)), bytes);
        let order = |halves| _mm256_permute4x64_epi64::<0b11_01_10_00>(halves);
        (order(_mm256_unpacklo_epi32(rows, more)), order(_mm256_unpackhi_epi32(rows, more)))
    }
}

/// Writes the estimates of a block; the mask of those that reach the limit.
///
/// # Safety
/// The processor has the registers.
#[inline(always)]
unsafe fn estimate(
    sums: &[u32; ROWS],
    factors: &Factors,
    query: &Query,
    base: f32,
    least: f32,
    out: &mut [f32; ROWS],
) -> u16 {
    let mut mask = 0;
    // SAFETY: the caller vouches for the registers; `at + 8 <= ROWS`.
    unsafe {
        for at in [0, 8] {
            let sum = _mm256_cvtepi32_ps(_mm256_loadu_si256(sums[at..at + 8].as_ptr().cast()));
            let product = _mm256_fmadd_ps(_mm256_set1_ps(query.mul), sum, _mm256_set1_ps(query.add));
            let add = _mm256_loadu_ps(factors.add[at..at + 8].as_ptr());
            let scale = _mm256_loadu_ps(factors.scale[at..at + 8].as_ptr());
            let estimate = _mm256_fmadd_ps(scale, product, _mm256_add_ps(add, _mm256_set1_ps(base)));
            _mm256_storeu_ps(out[at..at + 8].as_mut_ptr(), estimate);
            let passes = _mm256_cmp_ps::<_CMP_GE_OQ>(estimate, _mm256_set1_ps(least));
            mask |= (_mm256_movemask_ps(passes) as u16) << at;
        }
    }
    mask
}
