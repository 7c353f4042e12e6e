//! The registers of AArch64, which every such CPU has.
// SAFETY of every block below: the caller vouches for what is read and written.
#![expect(clippy::undocumented_unsafe_blocks, reason = "argued once, above")]

use super::kernel::Lanes;
use std::arch::aarch64::*;

/// Products in 16 bits: two of at most 128 * 127 fit.
#[derive(Clone, Copy)]
pub(super) struct Neon(int32x4_t);

impl Lanes for Neon {
    const SUMS: usize = 4;
    const BIASED: bool = false;
    const ROWS: usize = 8;
    type Codes = int8x16_t;
    type Values = int8x16_t;
    #[inline(always)]
    unsafe fn all(sum: i32) -> Self {
        Self(unsafe { vdupq_n_s32(sum) })
    }
    #[inline(always)]
    unsafe fn codes(from: *const u8) -> int8x16_t {
        unsafe { vreinterpretq_s8_u8(veorq_u8(vld1q_u8(from), vdupq_n_u8(0x80))) }
    }
    #[inline(always)]
    unsafe fn nibbles(from: *const u8) -> [int8x16_t; 2] {
        unsafe {
            let bytes = vld1q_u8(from);
            [vandq_u8(bytes, vdupq_n_u8(15)), vshrq_n_u8::<4>(bytes)].map(|half| vreinterpretq_s8_u8(half))
        }
    }
    #[inline(always)]
    unsafe fn values(from: *const i8) -> int8x16_t {
        unsafe { vld1q_s8(from) }
    }
    #[inline(always)]
    unsafe fn splat(from: *const i8) -> int8x16_t {
        unsafe { vreinterpretq_s8_s32(vdupq_n_s32(from.cast::<i32>().read_unaligned())) }
    }
    #[inline(always)]
    unsafe fn add_products(self, codes: int8x16_t, values: int8x16_t) -> Self {
        unsafe {
            let low = vmull_s8(vget_low_s8(codes), vget_low_s8(values));
            let high = vmull_high_s8(codes, values);
            Self(vpadalq_s16(self.0, vpaddq_s16(low, high)))
        }
    }
    #[inline(always)]
    unsafe fn add(self, other: Self) -> Self {
        Self(unsafe { vaddq_s32(self.0, other.0) })
    }
    #[inline(always)]
    unsafe fn sum(self) -> i32 {
        unsafe { vaddvq_s32(self.0) }
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut i32) {
        unsafe { vst1q_s32(to, self.0) }
    }
}
