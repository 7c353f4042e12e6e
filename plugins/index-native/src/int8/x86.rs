//! The registers of x86-64.
// SAFETY of every block below: the caller vouches for the registers and for what is read and written.
#![expect(clippy::undocumented_unsafe_blocks, reason = "argued once, above")]

use super::{kernel::Lanes, plain};
use std::arch::x86_64::*;

/// AVX-512 with VNNI. It multiplies codes as they are, without sign.
#[derive(Clone, Copy)]
pub(super) struct Vnni(__m512i);

impl Lanes for Vnni {
    const SUMS: usize = 16;
    const BIASED: bool = true;
    const ROWS: usize = 8;
    type Codes = __m512i;
    type Values = __m512i;
    #[inline(always)]
    unsafe fn all(sum: i32) -> Self {
        Self(unsafe { _mm512_set1_epi32(sum) })
    }
    #[inline(always)]
    unsafe fn codes(from: *const u8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [__m512i; 2] {
        unsafe {
            let (bytes, mask) = (_mm512_loadu_si512(from.cast()), _mm512_set1_epi8(15));
            [_mm512_and_si512(bytes, mask), _mm512_and_si512(_mm512_srli_epi16::<4>(bytes), mask)]
        }
    }
    #[inline(always)]
    unsafe fn values(from: *const i8) -> __m512i {
        unsafe { _mm512_loadu_si512(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i8) -> __m512i {
        unsafe { _mm512_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn add_products(self, codes: __m512i, values: __m512i) -> Self {
        Self(unsafe { _mm512_dpbusd_epi32(self.0, codes, values) })
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_epi32(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sum(self) -> i32 {
        unsafe { _mm512_reduce_add_epi32(self.0) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        unsafe { _mm512_storeu_si512(to.cast(), self.0) }
    }
    /// As [`plain::nearest`], without a branch: that one's take three quarters as long as the products themselves. The
    /// order of the few columns that are left is found by counting how many are nearer.
    #[inline(always)]
    unsafe fn nearest(dots: &[i32], half: &[i32], count: usize, skip: usize, nearest: &mut [(i32, u32)]) {
        let k = nearest.len();
        if !(1..=16).contains(&k) {
            return plain::nearest(dots, half, count, skip, nearest);
        }
        unsafe {
            let mut least = [_mm512_set1_epi32(i32::MAX); 2];
            for at in (0..count).step_by(32) {
                least[0] = _mm512_min_epi32(least[0], distances(dots, half, count, at));
                if at + 16 < count {
                    least[1] = _mm512_min_epi32(least[1], distances(dots, half, count, at + 16));
                }
            }
            // The column that is skipped may be one of them.
            let wanted = k + usize::from(skip < count);
            let mut numbers = [0i32; 32];
            _mm512_storeu_si512(numbers.as_mut_ptr().cast(), least[0]);
            _mm512_storeu_si512(numbers.as_mut_ptr().add(16).cast(), least[1]);
            let mut limit = i32::MIN;
            for number in numbers {
                let other = _mm512_set1_epi32(number);
                let below = least.map(|group| _mm512_cmplt_epi32_mask(group, other).count_ones() as usize);
                if below[0] + below[1] < wanted {
                    limit = limit.max(number);
                }
            }
            let (mut near, mut columns, mut len) = ([0i32; NEAR], [0i32; NEAR], 0);
            let mut column = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
            for at in (0..count).step_by(16) {
                if len + 16 > NEAR {
                    // Very many are as near.
                    return plain::nearest(dots, half, count, skip, nearest);
                }
                let distance = distances(dots, half, count, at);
                let is_near = _mm512_cmple_epi32_mask(distance, _mm512_set1_epi32(limit));
                let (to_near, to_columns) = (near.as_mut_ptr().add(len), columns.as_mut_ptr().add(len));
                _mm512_storeu_si512(to_near.cast(), _mm512_maskz_compress_epi32(is_near, distance));
                _mm512_storeu_si512(to_columns.cast(), _mm512_maskz_compress_epi32(is_near, column));
                column = _mm512_add_epi32(column, _mm512_set1_epi32(16));
                len += is_near.count_ones() as usize;
            }
            // Smaller is nearer, and among as near ones the first; what is no column to be found is `u64::MAX`.
            let mut keys = [u64::MAX; NEAR];
            for (key, (&distance, &column)) in keys.iter_mut().zip(near[..len].iter().zip(&columns)) {
                if column as usize != skip && distance < i32::MAX {
                    *key = u64::from(distance as u32 ^ 1 << 31) << 32 | column as u64;
                }
            }
            // Those beyond the `k` nearest go to the last place.
            let mut sorted = [(i32::MAX, u32::MAX); 17];
            for &key in keys[..len].iter().filter(|&&key| key != u64::MAX) {
                let mut place = 0;
                for at in (0..len).step_by(8) {
                    let others = _mm512_loadu_si512(keys.as_ptr().add(at).cast());
                    place +=
                        _mm512_cmplt_epu64_mask(others, _mm512_set1_epi64(key as i64)).count_ones() as usize;
                }
                sorted[place.min(16)] = (((key >> 32) as u32 ^ 1 << 31) as i32, key as u32);
            }
            nearest.copy_from_slice(&sorted[..k]);
        }
    }
}

/// The distances of 16 columns from column `at` on; `i32::MAX` beyond `count`.
#[inline(always)]
unsafe fn distances(dots: &[i32], half: &[i32], count: usize, at: usize) -> __m512i {
    let is_column = 0xffff >> (16 - (count - at).min(16));
    unsafe {
        let (half, dots) = (half.as_ptr().add(at).cast(), dots.as_ptr().add(at).cast());
        let (half, dots) = (_mm512_loadu_si512(half), _mm512_loadu_si512(dots));
        _mm512_mask_sub_epi32(_mm512_set1_epi32(i32::MAX), is_column, half, dots)
    }
}

/// Columns that may be looked at one by one: a multiple of 16, many more than are wanted.
const NEAR: usize = 128;

/// AVX2. Its product of bytes adds pairs in 16 bits and cuts them short at 32767, so it is given the
/// sizes of the codes and values with the sign of both: two products of at most 128 * 127 fit.
#[derive(Clone, Copy)]
pub(super) struct Avx2(__m256i);

/// Codes by size and with their sign.
#[derive(Clone, Copy)]
pub(super) struct Signed {
    size: __m256i,
    value: __m256i,
}

impl Lanes for Avx2 {
    const SUMS: usize = 8;
    const BIASED: bool = false;
    const ROWS: usize = 4;
    type Codes = Signed;
    type Values = __m256i;
    #[inline(always)]
    unsafe fn all(sum: i32) -> Self {
        Self(unsafe { _mm256_set1_epi32(sum) })
    }
    #[inline(always)]
    unsafe fn codes(from: *const u8) -> Signed {
        unsafe {
            let value = _mm256_xor_si256(_mm256_loadu_si256(from.cast()), _mm256_set1_epi8(-128));
            Signed { size: _mm256_abs_epi8(value), value }
        }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [Signed; 2] {
        unsafe {
            let (bytes, mask) = (_mm256_loadu_si256(from.cast()), _mm256_set1_epi8(15));
            let halves = [bytes, _mm256_srli_epi16::<4>(bytes)].map(|half| _mm256_and_si256(half, mask));
            halves.map(|value| Signed { size: value, value })
        }
    }
    #[inline(always)]
    unsafe fn values(from: *const i8) -> __m256i {
        unsafe { _mm256_loadu_si256(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i8) -> __m256i {
        unsafe { _mm256_set1_epi32(from.cast::<i32>().read_unaligned()) }
    }
    #[inline(always)]
    unsafe fn add_products(self, codes: Signed, values: __m256i) -> Self {
        unsafe {
            let pairs = _mm256_maddubs_epi16(codes.size, _mm256_sign_epi8(values, codes.value));
            Self(_mm256_add_epi32(self.0, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1))))
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { _mm256_add_epi32(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sum(self) -> i32 {
        unsafe {
            let four = _mm_add_epi32(_mm256_castsi256_si128(self.0), _mm256_extracti128_si256::<1>(self.0));
            let two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
            _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32::<1>(two)))
        }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        unsafe { _mm256_storeu_si256(to.cast(), self.0) }
    }
}
