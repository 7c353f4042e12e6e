//! The loops over bytes, compiled for the instruction sets that a CPU may have and picked at run time.

mod wide;

use super::{Codes, Queries, Query, plain};
use std::ops::Range;

/// Rows of a block.
pub(super) const ROWS: usize = crate::rabitq::ROWS;

/// Which instructions do the work. All give the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// AVX-512 with VNNI: 64 products an instruction.
    #[cfg(target_arch = "x86_64")]
    Vnni,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    /// Plain loops: what the others are tested against.
    Portable,
}

impl Kernel {
    /// All that this CPU can run, the fastest first.
    pub(crate) fn available() -> impl Iterator<Item = Self> {
        [
            #[cfg(target_arch = "x86_64")]
            (Self::Vnni, vnni()),
            #[cfg(target_arch = "x86_64")]
            (Self::Avx2, is_x86_feature_detected!("avx2")),
            #[cfg(target_arch = "aarch64")]
            (Self::Neon, true),
            (Self::Portable, true),
        ]
        .into_iter()
        .filter_map(|(kernel, here)| here.then_some(kernel))
    }

    /// The fastest for this CPU.
    pub(crate) fn detect() -> Self {
        Self::available().next().unwrap_or(Self::Portable)
    }

    /// Writes the dot product of `query` with each row of `ids` into `out`. Rows are asked of memory
    /// ahead, so many ids at once are better than many calls.
    ///
    /// # Panics
    /// Where an id is no row, or the lengths or widths differ.
    #[inline]
    pub(crate) fn dots(self, codes: &Codes<'_>, query: Query<'_>, ids: &[u32], out: &mut [i32]) {
        assert!(ids.len() == out.len() && query.values.len() == codes.stride);
        // SAFETY: `available` found what the kernel needs, and the widths are equal.
        unsafe { dots(self, codes, query, ids, out) }
    }

    /// Writes the dot product of `values` with the codes of four bits of each row of `ids`, `[n, values.len() / 2]`, as
    /// [`int4`](crate::int4) lays them out, into `out`. A code is taken for a number from 0 to 15.
    ///
    /// # Panics
    /// Where an id is no row, or the lengths differ.
    #[inline]
    pub(crate) fn nibble_dots(self, codes: &[u8], values: &[i8], ids: &[u32], out: &mut [i32]) {
        assert!(ids.len() == out.len() && values.len().is_multiple_of(2 * super::LANE));
        // SAFETY: `available` found what the kernel needs, and the values are of whole lines.
        unsafe { nibble_dots(self, codes, values, ids, out) }
    }

    /// Writes the dot products of one row with the queries `range` into `out`.
    ///
    /// # Panics
    /// Where the queries are not there, or the lengths or widths differ.
    #[inline]
    pub(crate) fn against(self, code: &[u8], queries: &Queries, range: Range<usize>, out: &mut [i32]) {
        let stride = queries.stride;
        assert!(code.len() == stride && out.len() == range.len());
        let values = &queries.values[range.start * stride..range.end * stride];
        // SAFETY: `available` found what the kernel needs, and there are as many values as it takes.
        unsafe { against(self, code, values, &queries.offsets[range], out) }
    }

    /// Writes the values of a code into `values` and returns their sum.
    ///
    /// # Panics
    /// Where the lengths differ.
    #[inline]
    pub(super) fn signed(self, code: &[u8], values: &mut [i8]) -> i32 {
        assert!(code.len() == values.len() && code.len().is_multiple_of(super::LANE));
        // SAFETY: `available` found what the kernel needs.
        unsafe { signed(self, code, values) }
    }

    /// Writes the code of `row` and zeros up to its end; returns its squared length.
    ///
    /// # Panics
    /// Where `center` is not as wide as the row, or the code is narrower.
    pub(super) fn encode(self, row: &[f32], center: &[f32], scale: f32, code: &mut [u8]) -> i32 {
        assert!(row.len() == center.len() && row.len() <= code.len());
        // SAFETY: `available` found what the kernel needs.
        unsafe { encode(self, row, center, scale, code) }
    }

    /// Writes `out[r * 32 + c]`, the dot products of the rows of `values` `[m, stride]` with the 32
    /// columns of one panel.
    ///
    /// # Panics
    /// Where the lengths do not fit.
    #[inline]
    pub(super) fn multiply(self, panel: &[u8], values: &[i8], offsets: &[i32], out: &mut [i32], step: usize) {
        let m = offsets.len();
        let stride = panel.len() / COLUMNS;
        assert!(panel.len() == stride * COLUMNS && stride.is_multiple_of(super::LANE));
        assert!(values.len() == m * stride && step >= COLUMNS);
        assert!(m == 0 || out.len() >= (m - 1) * step + COLUMNS);
        // SAFETY: `available` found what the kernel needs, and the lengths fit.
        unsafe { multiply(self, panel, values, offsets, out, step) }
    }

    /// Writes the dot products of the rows of some blocks, as [`super::interleave`] wrote them.
    ///
    /// # Panics
    /// Where the lengths do not fit, or the query is narrower than the rows.
    #[inline]
    pub(crate) fn block_dots(self, blocks: &[u8], query: Query<'_>, dots: &mut [i32]) {
        let count = dots.len() / ROWS;
        let bytes = blocks.len() / count.max(1);
        assert!(dots.len() == count * ROWS && blocks.len() == count * bytes);
        assert!(bytes.is_multiple_of(4 * ROWS) && query.values.len() >= bytes / ROWS);
        // SAFETY: `available` found what the kernel needs, and the lengths fit.
        unsafe { block_dots(self, blocks, query, dots) }
    }

    /// Finds among the first `count` columns those with the smallest `half - dot`, but for column
    /// `skip`, and writes that and the column into `nearest`, sorted; `(i32::MAX, u32::MAX)` where
    /// there are fewer.
    ///
    /// # Panics
    /// Where the lengths do not fit, or are no multiple of 32.
    pub(crate) fn nearest(
        self,
        dots: &[i32],
        half: &[i32],
        count: usize,
        skip: usize,
        nearest: &mut [(i32, u32)],
    ) {
        assert!(dots.len() == half.len() && dots.len().is_multiple_of(32) && count <= dots.len());
        // SAFETY: `available` found what the kernel needs.
        unsafe { self::nearest(self, dots, half, count, skip, nearest) }
    }

    /// Appends those of the first `count` columns whose `half - dot` is at most `limit` to `near`: that, and the column.
    ///
    /// # Panics
    /// Where the lengths do not fit, or are no multiple of 32.
    pub(crate) fn within(
        self,
        dots: &[i32],
        half: &[i32],
        count: usize,
        limit: i32,
        near: &mut Vec<(i32, u32)>,
    ) {
        assert!(dots.len() == half.len() && dots.len().is_multiple_of(32) && count <= dots.len());
        // SAFETY: `available` found what the kernel needs.
        unsafe { within(self, dots, half, count, limit, near) }
    }
}

/// Columns of a panel.
pub(crate) const COLUMNS: usize = 32;

/// Rows that are asked of memory ahead of the one that is compared.
const AHEAD: usize = 16;

#[cfg(target_arch = "x86_64")]
fn vnni() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512vnni")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("popcnt")
}

/// Asks memory for what will be read soon.
#[inline(always)]
pub(crate) fn prefetch<T>(what: &[T]) {
    for line in (0..size_of_val(what)).step_by(64) {
        ask(what.as_ptr().cast::<u8>().wrapping_add(line));
    }
}

/// Asks memory for one line; any address will do. Into the second-level cache: the first has room for some twenty lines
/// under way, and waits where more are asked for (a fifth to a quarter fewer queries of MiniLM and fashion-mnist).
#[inline(always)]
fn ask(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: it reads nothing, and any CPU of this architecture has it.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = line;
}

/// A register of sums, each of which gains the products of four bytes at a time.
///
/// Every method is unsafe for one reason: the CPU must have the registers. `codes` and `values` read
/// four bytes a sum from the pointer, `splat` reads four bytes.
pub(super) trait Lanes: Copy {
    /// Sums in a register.
    const SUMS: usize;
    /// Whether `add_products` takes codes for what they are and not for what they stand for.
    const BIASED: bool;
    /// Rows of a tile: with two registers a row, as many as there are registers for.
    const ROWS: usize;
    /// Codes, made ready to be multiplied.
    type Codes: Copy;
    /// Values, made ready to be multiplied.
    type Values: Copy;
    /// A register of this sum.
    unsafe fn all(sum: i32) -> Self;
    unsafe fn codes(from: *const u8) -> Self::Codes;
    /// The lower and the upper halves of a register of bytes, as codes that stand for what they are.
    unsafe fn nibbles(from: *const u8) -> [Self::Codes; 2];
    unsafe fn values(from: *const i8) -> Self::Values;
    unsafe fn splat(from: *const i8) -> Self::Values;
    unsafe fn add_products(self, codes: Self::Codes, values: Self::Values) -> Self;
    unsafe fn add(self, other: Self) -> Self;
    unsafe fn sum(self) -> i32;
    unsafe fn store(self, to: *mut i32);
    /// As [`Kernel::nearest`].
    #[inline(always)]
    unsafe fn nearest(dots: &[i32], half: &[i32], count: usize, skip: usize, nearest: &mut [(i32, u32)]) {
        plain::nearest(dots, half, count, skip, nearest);
    }
}

/// Defines a function that runs `$wide` for the registers of a kernel, or `$portable`, each compiled
/// for the kernel's instructions.
///
/// The functions are unsafe for one reason more than their bodies: the CPU must have the kernel.
macro_rules! by_kernel {
    (fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $wide:path, $portable:path;) => {
        #[inline]
        unsafe fn $name(kernel: Kernel, $($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,popcnt")]
            unsafe fn vnni($($arg: $ty),*) $(-> $ret)? {
                use $wide as body;
                // SAFETY: the caller's.
                unsafe { body::<super::x86::Vnni>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2")]
            unsafe fn avx2($($arg: $ty),*) $(-> $ret)? {
                use $wide as body;
                // SAFETY: the caller's.
                unsafe { body::<super::x86::Avx2>($($arg),*) }
            }
            // SAFETY: the caller's.
            unsafe {
                match kernel {
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Vnni => vnni($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    Kernel::Neon => {
                        use $wide as body;
                        body::<super::neon::Neon>($($arg),*)
                    }
                    Kernel::Portable => $portable($($arg),*),
                }
            }
        }
    };
}

by_kernel! {
    fn dots(codes: &Codes<'_>, query: Query<'_>, ids: &[u32], out: &mut [i32]) = wide::dots, plain::dots;
}
by_kernel! {
    fn nibble_dots(codes: &[u8], values: &[i8], ids: &[u32], out: &mut [i32])
        = wide::nibble_dots, plain::nibble_dots;
}
by_kernel! {
    fn against(code: &[u8], values: &[i8], offsets: &[i32], out: &mut [i32]) = wide::against, plain::against;
}
by_kernel! {
    fn signed(code: &[u8], values: &mut [i8]) -> i32 = wide::signed, plain::signed;
}
by_kernel! {
    fn encode(row: &[f32], center: &[f32], scale: f32, code: &mut [u8]) -> i32 = wide::encode, plain::encode;
}
by_kernel! {
    fn multiply(panel: &[u8], values: &[i8], offsets: &[i32], out: &mut [i32], step: usize)
        = wide::multiply, plain::multiply;
}
by_kernel! {
    fn block_dots(blocks: &[u8], query: Query<'_>, dots: &mut [i32]) = wide::block_dots, plain::block_dots;
}
by_kernel! {
    fn nearest(dots: &[i32], half: &[i32], count: usize, skip: usize, nearest: &mut [(i32, u32)])
        = wide::nearest, plain::nearest;
}
by_kernel! {
    fn within(dots: &[i32], half: &[i32], count: usize, limit: i32, near: &mut Vec<(i32, u32)>)
        = wide::within, plain::within;
}

#[cfg(test)]
mod tests;
