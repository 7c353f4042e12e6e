//! The registers of x86-64.
// SAFETY of every block below: the caller vouches for the registers and for what is read and written.
#![expect(clippy::undocumented_unsafe_blocks, reason = "argued once, above")]

use super::kernel::Lanes;
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
}

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
