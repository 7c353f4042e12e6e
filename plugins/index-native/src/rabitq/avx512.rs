//! AVX-512 with VBMI and VNNI: a register of 64 table entries is looked up 64 bytes at a time, and the
//! sums over the four bytes of a row's word cost nothing.

use super::{
    Factors, Query, ROWS, Word,
    scan::{Run, Sift, Strip, Target},
};
use crate::candidates::{Candidates, STRIP};
use std::arch::x86_64::*;

pub(super) fn detected() -> bool {
    super::avx2::detected()
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vbmi")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("popcnt")
}

/// # Safety
/// [`detected`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni,popcnt")]
pub(super) unsafe fn scan(sift: &Sift<'_>, runs: &[Run], targets: &mut [Target<'_>]) {
    // SAFETY: the caller's.
    unsafe { sift.each_strip::<Avx512>(runs, targets) }
}

pub(super) struct Avx512;

impl Strip for Avx512 {
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
        assert!(bits.len() == B * words && factors.len() == B);
        assert!(queries.iter().all(|query| query.tables.len() == words));
        let mut masks = [0; Q];
        // SAFETY: the caller vouches for the registers; the lengths are as asserted, and a `Word`, half a
        // `Table` and sixteen factors are 64 bytes each.
        unsafe {
            // An index of six bits: the nibble, and above it which byte of the word it is of.
            let nibble = _mm512_set1_epi32(0x0F0F_0F0F);
            let byte = _mm512_set1_epi32(0x3020_1000);
            let ones = _mm512_set1_epi8(1);
            let mut sums = [[_mm512_setzero_si512(); B]; Q];
            let tables = queries.map(|query| query.tables.as_ptr());
            for w in 0..words {
                let (mut low, mut high) = ([ones; B], [ones; B]);
                for b in 0..B {
                    let codes = bits.as_ptr().add(b * words + w);
                    // A strip is several streams of a few lines, which the processor does not foresee.
                    _mm_prefetch::<_MM_HINT_T0>(codes.wrapping_add(B * words).cast());
                    let codes = _mm512_loadu_si512(codes.cast());
                    // (codes & nibble) | byte
                    low[b] = _mm512_ternarylogic_epi32::<0xEA>(codes, nibble, byte);
                    high[b] = _mm512_ternarylogic_epi32::<0xEA>(_mm512_srli_epi32::<4>(codes), nibble, byte);
                }
                for q in 0..Q {
                    let table = tables[q].add(w);
                    let of_low = _mm512_load_si512((&raw const (*table).low).cast());
                    let of_high = _mm512_load_si512((&raw const (*table).high).cast());
                    for b in 0..B {
                        let entries = _mm512_add_epi8(
                            _mm512_permutexvar_epi8(low[b], of_low),
                            _mm512_permutexvar_epi8(high[b], of_high),
                        );
                        sums[q][b] = _mm512_dpbusd_epi32(sums[q][b], entries, ones);
                    }
                }
            }
            let mut estimates = [[_mm512_setzero_ps(); B]; Q];
            for b in 0..B {
                let add = _mm512_loadu_ps((&raw const factors[b].add).cast());
                let scale = _mm512_loadu_ps((&raw const factors[b].scale).cast());
                let add = _mm512_add_ps(add, _mm512_set1_ps(base));
                for q in 0..Q {
                    let product = _mm512_fmadd_ps(
                        _mm512_set1_ps(queries[q].mul),
                        _mm512_cvtepi32_ps(sums[q][b]),
                        _mm512_set1_ps(queries[q].add),
                    );
                    estimates[q][b] = _mm512_fmadd_ps(scale, product, add);
                    let mask = _mm512_cmp_ps_mask::<_CMP_GE_OQ>(estimates[q][b], _mm512_set1_ps(least[q]));
                    masks[q] |= u64::from(mask) << (b * ROWS);
                }
            }
            for q in 0..Q {
                if masks[q] != 0 {
                    for b in 0..B {
                        _mm512_storeu_ps((&raw mut out[q][b]).cast(), estimates[q][b]);
                    }
                }
            }
        }
        masks
    }

    #[inline(always)]
    unsafe fn offer<const B: usize>(
        found: &mut Candidates,
        estimates: &[[f32; ROWS]; B],
        mask: u64,
        first: usize,
    ) {
        const { assert!(B * ROWS <= STRIP) };
        let (scores, places) = found.room();
        let mut written = 0;
        // SAFETY: the caller vouches for the registers. A whole register is written for each block, from where the last one
        // ended, so never beyond the rows of the blocks.
        unsafe {
            let rows = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            for (b, estimates) in estimates.iter().enumerate() {
                let mask = (mask >> (b * ROWS)) as u16;
                let estimates = _mm512_loadu_ps(estimates.as_ptr());
                let all = _mm512_add_epi32(rows, _mm512_set1_epi32((first + b * ROWS) as i32));
                _mm512_storeu_ps(scores.add(written), _mm512_maskz_compress_ps(mask, estimates));
                _mm512_storeu_si512(places.add(written).cast(), _mm512_maskz_compress_epi32(mask, all));
                written += mask.count_ones() as usize;
            }
            found.grow(written);
        }
    }
}
