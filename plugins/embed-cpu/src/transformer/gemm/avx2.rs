//! Products by AVX2, 6 x 16 sums at a time. Int8 needs the VNNI form of AVX2, which newer CPUs have.
use super::{ROWS, Tile, TileFn};
use std::arch::x86_64::{
    __m256i, _mm256_castps_si256, _mm256_castsi256_ps, _mm256_cvtepi32_ps, _mm256_dpbusd_avx_epi32,
    _mm256_fmadd_ps, _mm256_loadu_si256, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_storeu_ps,
};

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
            for v in 0..NV {
                let mut sums = [[_mm256_setzero_si256(); 2]; MR];
                for step in 0..steps {
                    // SAFETY: the caller gives `steps` times `16 * NV` units.
                    let b: [__m256i; 2] = unsafe {
                        let at = right.add((step * NV + v) * 16);
                        [_mm256_loadu_si256(at.cast()), _mm256_loadu_si256(at.add(8).cast())]
                    };
                    for (row, sums) in sums.iter_mut().enumerate() {
                        // SAFETY: the caller gives `MR` rows of at least `steps` units.
                        let $a = _mm256_set1_epi32(unsafe { *left.add(row * stride + step) } as i32);
                        for ($sum, $b) in sums.iter_mut().zip(b) {
                            *$sum = {
                                let $sum: __m256i = *$sum;
                                $dot
                            };
                        }
                    }
                }
                for (row, sums) in out.0.iter_mut().zip(sums) {
                    for (out, $done) in row[v * 16..].chunks_exact_mut(8).zip(sums) {
                        // SAFETY: a chunk is 8 numbers.
                        unsafe { _mm256_storeu_ps(out.as_mut_ptr(), $float) };
                    }
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
    "avx2,fma",
    |sum, a, b| _mm256_castps_si256(_mm256_fmadd_ps(
        _mm256_castsi256_ps(a),
        _mm256_castsi256_ps(b),
        _mm256_castsi256_ps(sum)
    )),
    |done| _mm256_castsi256_ps(done)
);

tiles!(INT8, int8_tile, "avx2,avxvnni", |sum, a, b| _mm256_dpbusd_avx_epi32(sum, a, b), |done| {
    _mm256_cvtepi32_ps(done)
});
