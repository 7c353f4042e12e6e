//! Products by AVX-512. Up to 6 x 64 sums stand in 24 registers; four hold the numbers of the right
//! side, and those of the left side are broadcast from memory by the instruction itself.
use super::{ROWS, Tile, TileFn};
use std::arch::x86_64::{
    __m512bh, __m512i, _MM_HINT_T0, _mm_prefetch, _mm512_castps_si512, _mm512_castsi512_ps,
    _mm512_cvtepi32_ps, _mm512_dpbf16_ps, _mm512_dpbusd_epi32, _mm512_fmadd_ps, _mm512_loadu_si512,
    _mm512_set1_epi32, _mm512_setzero_si512, _mm512_store_ps,
};
use std::mem::transmute;

/// Bytes of the right side that are asked for before they are needed.
const AHEAD: usize = 1536;

macro_rules! tiles {
    ($tiles:ident, $tile:ident, $features:literal, |$sum:ident, $a:ident, $b:ident| $dot:expr, |$done:ident| $float:expr) => {
        #[target_feature(enable = $features)]
        unsafe fn $tile<const MR: usize, const NV: usize>(
            left: *const u32,
            stride: usize,
            right: *const u32,
            steps: usize,
            out: &mut Tile,
        ) {
            let mut sums = [[_mm512_setzero_si512(); NV]; MR];
            for step in 0..steps {
                let mut b = [_mm512_setzero_si512(); NV];
                for (v, b) in b.iter_mut().enumerate() {
                    // SAFETY: the caller gives `steps` times `16 * NV` units; a prefetch may point anywhere.
                    unsafe {
                        let at = right.add((step * NV + v) * 16);
                        _mm_prefetch::<_MM_HINT_T0>(at.cast::<i8>().wrapping_add(AHEAD));
                        *b = _mm512_loadu_si512(at.cast());
                    }
                }
                for (row, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: the caller gives `MR` rows of at least `steps` units.
                    let $a = _mm512_set1_epi32(unsafe { *left.add(row * stride + step) } as i32);
                    for ($sum, $b) in sums.iter_mut().zip(b) {
                        *$sum = {
                            let $sum: __m512i = *$sum;
                            $dot
                        };
                    }
                }
            }
            for (row, sums) in out.0.iter_mut().zip(sums) {
                for (out, $done) in row.chunks_exact_mut(16).zip(sums) {
                    // SAFETY: a chunk is 16 numbers, and a tile is aligned.
                    unsafe { _mm512_store_ps(out.as_mut_ptr(), $float) };
                }
            }
        }

        pub(super) static $tiles: [[TileFn; 4]; ROWS] = [
            [$tile::<1, 1>, $tile::<1, 2>, $tile::<1, 3>, $tile::<1, 4>],
            [$tile::<2, 1>, $tile::<2, 2>, $tile::<2, 3>, $tile::<2, 4>],
            [$tile::<3, 1>, $tile::<3, 2>, $tile::<3, 3>, $tile::<3, 4>],
            [$tile::<4, 1>, $tile::<4, 2>, $tile::<4, 3>, $tile::<4, 4>],
            [$tile::<5, 1>, $tile::<5, 2>, $tile::<5, 3>, $tile::<5, 4>],
            [$tile::<6, 1>, $tile::<6, 2>, $tile::<6, 3>, $tile::<6, 4>],
        ];
    };
}

tiles!(
    F32,
    f32_tile,
    "avx512f",
    |sum, a, b| _mm512_castps_si512(_mm512_fmadd_ps(
        _mm512_castsi512_ps(a),
        _mm512_castsi512_ps(b),
        _mm512_castsi512_ps(sum)
    )),
    |done| _mm512_castsi512_ps(done)
);

tiles!(
    BF16,
    bf16_tile,
    "avx512f,avx512bf16",
    |sum, a, b| {
        // SAFETY: both are 512 bits that mean nothing else.
        let (a, b) = unsafe { (transmute::<__m512i, __m512bh>(a), transmute::<__m512i, __m512bh>(b)) };
        _mm512_castps_si512(_mm512_dpbf16_ps(_mm512_castsi512_ps(sum), a, b))
    },
    |done| _mm512_castsi512_ps(done)
);

tiles!(INT8, int8_tile, "avx512f,avx512vnni", |sum, a, b| _mm512_dpbusd_epi32(sum, a, b), |done| {
    _mm512_cvtepi32_ps(done)
});
