//! NEON: as AVX2, but that a load takes the bytes of sixteen words apart by itself.

use super::{
    Factors, Query, ROWS, Word,
    scan::{Run, Sift, Strip, Target},
};
use std::arch::aarch64::*;

/// NEON is part of every 64-bit ARM.
pub(super) fn scan(sift: &Sift<'_>, runs: &[Run], targets: &mut [Target<'_>]) {
    // SAFETY: as said.
    unsafe { sift.each_strip::<Neon>(runs, targets) }
}

pub(super) struct Neon;

/// Words after which the sums of 16 bits are emptied: each adds at most four times 254 to one.
const FLUSH: usize = 64;

impl Strip for Neon {
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
                add_words(codes, begin, queries, &mut sums);
            }
            for q in 0..Q {
                for row in 0..ROWS {
                    let product = queries[q].mul.mul_add(sums[q][row] as f32, queries[q].add);
                    let add = factors[b].add[row] + base;
                    let estimate = factors[b].scale[row].mul_add(product, add);
                    out[q][b][row] = estimate;
                    masks[q] |= u64::from(estimate >= least[q]) << (b * ROWS + row);
                }
            }
        }
        masks
    }
}

/// Adds the entries of at most [`FLUSH`] words of a block, of which the first is word `at`.
#[inline(always)]
fn add_words<const Q: usize>(codes: &[Word], at: usize, queries: [&Query; Q], sums: &mut [[u32; ROWS]; Q]) {
    // SAFETY: NEON is there; a word is 64 bytes, a half of a table too, and the sums are stored into
    // arrays of their size.
    unsafe {
        let mut low = [vdupq_n_u16(0); Q];
        let mut high = low;
        for (w, word) in codes.iter().enumerate() {
            let bytes = vld4q_u8(word.as_ptr().cast());
            for (byte, value) in [bytes.0, bytes.1, bytes.2, bytes.3].into_iter().enumerate() {
                let lower = vandq_u8(value, vdupq_n_u8(15));
                let upper = vshrq_n_u8::<4>(value);
                for q in 0..Q {
                    let table = &queries[q].tables[at + w];
                    let of_lower = vld1q_u8(table.low[16 * byte..][..16].as_ptr());
                    let of_upper = vld1q_u8(table.high[16 * byte..][..16].as_ptr());
                    let entries = vaddq_u8(vqtbl1q_u8(of_lower, lower), vqtbl1q_u8(of_upper, upper));
                    low[q] = vaddw_u8(low[q], vget_low_u8(entries));
                    high[q] = vaddw_high_u8(high[q], entries);
                }
            }
        }
        for q in 0..Q {
            let mut wide = [0u16; ROWS];
            vst1q_u16(wide[..8].as_mut_ptr(), low[q]);
            vst1q_u16(wide[8..].as_mut_ptr(), high[q]);
            for (sum, wide) in sums[q].iter_mut().zip(wide) {
                *sum += u32::from(wide);
            }
        }
    }
}
