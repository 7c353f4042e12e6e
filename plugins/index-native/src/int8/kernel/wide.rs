//! What runs on registers. Loops instead of closures: a closure has not the features of the function
//! around it.

use super::{super::LANE, AHEAD, COLUMNS, Codes, Lanes, Query, ROWS, ask, plain};

/// # Safety
/// The CPU has the registers, and the query is as wide as the rows.
#[inline(always)]
pub(super) unsafe fn dots<V: Lanes>(codes: &Codes<'_>, query: Query<'_>, ids: &[u32], out: &mut [i32]) {
    // SAFETY: `row` gives slices as wide as the query; any address may be asked for.
    unsafe {
        for &id in ids.iter().take(AHEAD) {
            super::prefetch(codes.row(id as usize));
        }
        for (at, (&id, out)) in ids.iter().zip(out).enumerate() {
            if let Some(&next) = ids.get(at + AHEAD) {
                super::prefetch(codes.row(next as usize));
            }
            *out = dot::<V>(codes.row(id as usize), query);
        }
    }
}

/// Adds the products of a line of codes of four bits with as many values.
///
/// # Safety
/// The CPU has the registers, and there are 64 bytes of codes and 128 values.
#[inline(always)]
unsafe fn add_line<V: Lanes>(sums: &mut [V; 2], codes: *const u8, values: *const i8) {
    for part in (0..LANE).step_by(4 * V::SUMS) {
        // SAFETY: the caller's, and a line is a multiple of registers long.
        unsafe {
            let [low, high] = V::nibbles(codes.add(part));
            sums[0] = sums[0].add_products(low, V::values(values.add(part)));
            sums[1] = sums[1].add_products(high, V::values(values.add(LANE + part)));
        }
    }
}

/// # Safety
/// The CPU has the registers, and the values are a multiple of 128.
#[inline(always)]
pub(super) unsafe fn nibble_dots<V: Lanes>(codes: &[u8], values: &[i8], ids: &[u32], out: &mut [i32]) {
    let stride = values.len() / 2;
    let row = |id: u32| &codes[id as usize * stride..][..stride];
    for &id in ids.iter().take(AHEAD) {
        super::prefetch(row(id));
    }
    for (at, (&id, out)) in ids.iter().zip(out).enumerate() {
        if let Some(&next) = ids.get(at + AHEAD) {
            super::prefetch(row(next));
        }
        let (row, values) = (row(id).as_ptr(), values.as_ptr());
        // SAFETY: a row has a line of bytes for each two lines of values, and a line is a multiple of registers
        // long.
        unsafe {
            let (mut even, mut odd) = ([V::all(0); 2], [V::all(0); 2]);
            let mut line = 0;
            while line < stride {
                add_line(&mut even, row.add(line), values.add(2 * line));
                if line + LANE < stride {
                    add_line(&mut odd, row.add(line + LANE), values.add(2 * (line + LANE)));
                }
                line += 2 * LANE;
            }
            *out = even[0].add(even[1]).add(odd[0].add(odd[1])).sum();
        }
    }
}

/// # Safety
/// The CPU has the registers, and the row is as wide as the query, a multiple of 64.
#[inline(always)]
unsafe fn dot<V: Lanes>(row: &[u8], query: Query<'_>) -> i32 {
    debug_assert!(row.len() == query.values.len() && row.len().is_multiple_of(4 * V::SUMS));
    let (row, values, len) = (row.as_ptr(), query.values.as_ptr(), row.len());
    let width = 4 * V::SUMS;
    // SAFETY: `at` stays a register short of the end, of which row and query have a multiple.
    unsafe {
        let mut sums = [V::all(0); 4];
        let mut at = 0;
        while at + 4 * width <= len {
            for (part, sum) in sums.iter_mut().enumerate() {
                let at = at + part * width;
                *sum = sum.add_products(V::codes(row.add(at)), V::values(values.add(at)));
            }
            at += 4 * width;
        }
        let mut part = 0;
        while at < len {
            sums[part] = sums[part].add_products(V::codes(row.add(at)), V::values(values.add(at)));
            at += width;
            part += 1;
        }
        let sum = sums[0].add(sums[1]).add(sums[2].add(sums[3])).sum();
        if V::BIASED { sum.wrapping_sub(query.offset) } else { sum }
    }
}

/// # Safety
/// The CPU has the registers, and the lengths are as [`super::Kernel::against`] says.
#[inline(always)]
pub(super) unsafe fn against<V: Lanes>(code: &[u8], values: &[i8], offsets: &[i32], out: &mut [i32]) {
    let (m, stride, width) = (offsets.len(), code.len(), 4 * V::SUMS);
    let mut row = 0;
    // SAFETY: `row + 4 <= m` rows of values, and `at` stays a register short of the end of each,
    // which is a multiple of registers long.
    unsafe {
        while row + 4 <= m {
            let mut sums = [V::all(0); 4];
            for at in (0..stride).step_by(width) {
                let codes = V::codes(code.as_ptr().add(at));
                for (next, sum) in sums.iter_mut().enumerate() {
                    let values = V::values(values.as_ptr().add((row + next) * stride + at));
                    *sum = sum.add_products(codes, values);
                }
            }
            for (next, sum) in sums.iter().enumerate() {
                let offset = if V::BIASED { offsets[row + next] } else { 0 };
                out[row + next] = sum.sum().wrapping_sub(offset);
            }
            row += 4;
        }
    }
    for row in row..m {
        let query = Query { values: &values[row * stride..][..stride], offset: offsets[row] };
        // SAFETY: the query is as wide as the code.
        out[row] = unsafe { dot::<V>(code, query) };
    }
}

/// # Safety
/// The CPU has the registers, and the lengths are as [`super::Kernel::multiply`] says.
#[inline(always)]
pub(super) unsafe fn multiply<V: Lanes>(
    panel: &[u8],
    values: &[i8],
    offsets: &[i32],
    out: &mut [i32],
    step: usize,
) {
    let (m, stride) = (offsets.len(), panel.len() / COLUMNS);
    for column in (0..COLUMNS).step_by(2 * V::SUMS) {
        let mut row = 0;
        while row < m {
            let rows = if m - row >= V::ROWS { V::ROWS } else { 1 };
            // SAFETY: `row + rows <= m` rows of values and offsets, and two registers of columns
            // from `column` on are inside the panel and a row of `out`.
            unsafe {
                let panel = panel.as_ptr().add(4 * column);
                let values = values.as_ptr().add(row * stride);
                let offsets = offsets.as_ptr().add(row);
                let out = out.as_mut_ptr().add(row * step + column);
                match rows {
                    8 => tile::<V, 8>(panel, values, offsets, out, stride, step),
                    4 => tile::<V, 4>(panel, values, offsets, out, stride, step),
                    _ => tile::<V, 1>(panel, values, offsets, out, stride, step),
                }
            }
            row += rows;
        }
    }
}

/// `R` rows of values with two registers of columns.
///
/// # Safety
/// The CPU has the registers; `panel` has `stride / 4` groups of four bytes of each of 32 columns,
/// of which those of two registers are read; `values` has `R` rows of `stride`, `offsets` `R`
/// numbers, and `out` room for two registers at each of `R` steps.
#[inline(always)]
unsafe fn tile<V: Lanes, const R: usize>(
    panel: *const u8,
    values: *const i8,
    offsets: *const i32,
    out: *mut i32,
    stride: usize,
    step: usize,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut sums = [[V::all(0); 2]; R];
        if V::BIASED {
            for (row, sums) in sums.iter_mut().enumerate() {
                *sums = [V::all((*offsets.add(row)).wrapping_neg()); 2];
            }
        }
        for group in 0..stride / 4 {
            let at = panel.add(group * 4 * COLUMNS);
            let columns = [V::codes(at), V::codes(at.add(4 * V::SUMS))];
            for (row, sums) in sums.iter_mut().enumerate() {
                let value = V::splat(values.add(row * stride + group * 4));
                sums[0] = sums[0].add_products(columns[0], value);
                sums[1] = sums[1].add_products(columns[1], value);
            }
        }
        for (row, sums) in sums.iter().enumerate() {
            let out = out.add(row * step);
            sums[0].store(out);
            sums[1].store(out.add(V::SUMS));
        }
    }
}

/// # Safety
/// The CPU has the registers, and the lengths are as [`super::Kernel::block_dots`] says.
#[inline(always)]
pub(super) unsafe fn block_dots<V: Lanes>(blocks: &[u8], query: Query<'_>, dots: &mut [i32]) {
    let bytes = blocks.len() / (dots.len() / ROWS).max(1);
    // SAFETY: the caller's; each strip has as many blocks as sixteens of numbers to write.
    unsafe {
        let mut strips = dots.chunks_exact_mut(4 * ROWS);
        let mut block = blocks.as_ptr();
        for dots in &mut strips {
            self::blocks::<V, 4>(block, bytes, query, dots);
            block = block.wrapping_add(4 * bytes);
        }
        for dots in strips.into_remainder().chunks_exact_mut(ROWS) {
            self::blocks::<V, 1>(block, bytes, query, dots);
            block = block.wrapping_add(bytes);
        }
    }
}

/// The products of `B` blocks of `bytes` each: several, for each sum waits for the one before.
///
/// # Safety
/// The CPU has the registers, the query is as wide as the rows, and `dots` are those of the blocks.
#[inline(always)]
unsafe fn blocks<V: Lanes, const B: usize>(
    blocks: *const u8,
    bytes: usize,
    query: Query<'_>,
    dots: &mut [i32],
) {
    let offset = if V::BIASED { query.offset } else { 0 };
    // SAFETY: a block has four bytes of each of its rows in each of its groups, and the query has as many
    // groups; the registers of a block are those of its rows, sixteen numbers in `dots`.
    unsafe {
        let mut sums = [[V::all(offset.wrapping_neg()); 4]; B];
        for group in 0..bytes / (4 * ROWS) {
            let value = V::splat(query.values.as_ptr().add(4 * group));
            for (block, sums) in sums.iter_mut().enumerate() {
                let codes = blocks.add(block * bytes + 4 * group * ROWS);
                ask(codes.wrapping_add(B * bytes));
                for (part, sum) in sums.iter_mut().enumerate().take(ROWS / V::SUMS) {
                    *sum = sum.add_products(V::codes(codes.add(4 * part * V::SUMS)), value);
                }
            }
        }
        for (sums, dots) in sums.iter().zip(dots.chunks_exact_mut(ROWS)) {
            for (part, sum) in sums.iter().enumerate().take(ROWS / V::SUMS) {
                sum.store(dots.as_mut_ptr().add(part * V::SUMS));
            }
        }
    }
}

/// # Safety
/// The CPU has the registers, and the code is a multiple of 64 bytes long, as the values are.
#[inline(always)]
pub(super) unsafe fn signed<V: Lanes>(code: &[u8], values: &mut [i8]) -> i32 {
    for (value, &code) in values.iter_mut().zip(code) {
        *value = (code.max(1) ^ 0x80) as i8;
    }
    // The code of 1 in each lane: products with it add up to the sum of the values.
    let one = [if V::BIASED { 1 } else { 129 }; 64];
    // SAFETY: `at` is a register short of the end, which is a multiple of registers long.
    unsafe {
        let mut sum = V::all(0);
        for at in (0..values.len()).step_by(4 * V::SUMS) {
            sum = sum.add_products(V::codes(one.as_ptr()), V::values(values.as_ptr().add(at)));
        }
        sum.sum()
    }
}

/// The compiler makes registers of this one.
#[inline(always)]
pub(super) unsafe fn encode<V: Lanes>(row: &[f32], center: &[f32], scale: f32, code: &mut [u8]) -> i32 {
    plain::encode(row, center, scale, code)
}

/// The compiler makes registers of this one.
#[inline(always)]
pub(super) unsafe fn nearest<V: Lanes>(
    dots: &[i32],
    half: &[i32],
    count: usize,
    skip: usize,
    nearest: &mut [(i32, u32)],
) {
    // SAFETY: the caller's.
    unsafe { V::nearest(dots, half, count, skip, nearest) }
}

/// As [`nearest`].
#[inline(always)]
pub(super) unsafe fn within<V: Lanes>(
    dots: &[i32],
    half: &[i32],
    count: usize,
    limit: i32,
    near: &mut Vec<(i32, u32)>,
) {
    plain::within(dots, half, count, limit, near);
}
