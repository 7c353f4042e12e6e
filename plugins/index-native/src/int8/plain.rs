//! The kernels that run anywhere, and the oracle of the others.

use super::{
    Codes, LANE, Query,
    kernel::{COLUMNS, ROWS},
};

pub(super) fn dots(codes: &Codes<'_>, query: Query<'_>, ids: &[u32], out: &mut [i32]) {
    for (&id, out) in ids.iter().zip(out) {
        let products = codes.row(id as usize).iter().zip(query.values);
        *out = products.map(|(&code, &value)| (i32::from(code) - 128) * i32::from(value)).sum();
    }
}

pub(super) fn nibble_dots(codes: &[u8], values: &[i8], ids: &[u32], out: &mut [i32]) {
    let stride = values.len() / 2;
    for (&id, out) in ids.iter().zip(out) {
        let row = &codes[id as usize * stride..][..stride];
        let lines = row.chunks_exact(LANE).zip(values.chunks_exact(2 * LANE));
        let products = lines.flat_map(|(line, values)| {
            let numbers = line.iter().map(|byte| byte & 15).chain(line.iter().map(|byte| byte >> 4));
            numbers.zip(values).map(|(number, &value)| i32::from(number) * i32::from(value))
        });
        *out = products.sum();
    }
}

pub(super) fn against(code: &[u8], values: &[i8], _offsets: &[i32], out: &mut [i32]) {
    for (values, out) in values.chunks_exact(code.len()).zip(out) {
        let products = code.iter().zip(values);
        *out = products.map(|(&code, &value)| (i32::from(code) - 128) * i32::from(value)).sum();
    }
}

pub(super) fn multiply(panel: &[u8], values: &[i8], offsets: &[i32], out: &mut [i32], step: usize) {
    let stride = panel.len() / COLUMNS;
    for row in 0..offsets.len() {
        let values = &values[row * stride..][..stride];
        let out = &mut out[row * step..][..COLUMNS];
        out.fill(0);
        for (group, values) in panel.chunks_exact(4 * COLUMNS).zip(values.chunks_exact(4)) {
            for (codes, out) in group.chunks_exact(4).zip(&mut *out) {
                for (&code, &value) in codes.iter().zip(values) {
                    *out += (i32::from(code) - 128) * i32::from(value);
                }
            }
        }
    }
}

pub(super) fn block_dots(blocks: &[u8], query: Query<'_>, dots: &mut [i32]) {
    let bytes = blocks.len() / (dots.len() / ROWS).max(1);
    for (block, dots) in blocks.chunks_exact(bytes.max(1)).zip(dots.chunks_exact_mut(ROWS)) {
        dots.fill(0);
        for (group, values) in block.chunks_exact(4 * ROWS).zip(query.values.chunks_exact(4)) {
            for (codes, dot) in group.chunks_exact(4).zip(&mut *dots) {
                let products = codes.iter().zip(values);
                *dot +=
                    products.map(|(&code, &value)| (i32::from(code) - 128) * i32::from(value)).sum::<i32>();
            }
        }
    }
}

/// The code 0, which no vector has, is taken for 1: values stay within -127..=127.
#[inline(always)]
pub(super) fn signed(code: &[u8], values: &mut [i8]) -> i32 {
    let mut sum = 0;
    for (value, &code) in values.iter_mut().zip(code) {
        *value = (code.max(1) ^ 0x80) as i8;
        sum += i32::from(*value);
    }
    sum
}

/// The nearest whole number in -127..=127. The library's function is a call for each number on a CPU that has no SSE4.
#[inline(always)]
pub(crate) fn round(v: f32) -> i8 {
    /// 1.5 * 2^23: added to a number below 2^22 it leaves the rounded number in the low bits.
    const ROUND: f32 = 12_582_912.0;
    (v.clamp(-127.0, 127.0) + ROUND).to_bits() as u8 as i8
}

#[inline(always)]
pub(super) fn encode(row: &[f32], center: &[f32], scale: f32, code: &mut [u8]) -> i32 {
    let mut square = 0;
    let (front, tail) = code.split_at_mut(row.len());
    for ((code, &v), &center) in front.iter_mut().zip(row).zip(center) {
        let value = round((v - center) * scale);
        *code = value as u8 ^ 0x80;
        square += i32::from(value) * i32::from(value);
    }
    tail.fill(0x80);
    square
}

/// Calls `each` with `half - dot` and the column, of those of the first `count` columns where that is at most `limit`.
#[inline(always)]
fn each_within(dots: &[i32], half: &[i32], count: usize, limit: i32, mut each: impl FnMut(i32, usize)) {
    let blocks = dots.as_chunks::<32>().0.iter().zip(half.as_chunks::<32>().0);
    for (block, (dots, half)) in blocks.enumerate() {
        let mut distances = [0; 32];
        let mut near = 0u32;
        for at in 0..32 {
            distances[at] = half[at].wrapping_sub(dots[at]);
            near |= u32::from(distances[at] <= limit) << at;
        }
        while near != 0 {
            let at = near.trailing_zeros() as usize;
            near &= near - 1;
            if 32 * block + at < count {
                each(distances[at], 32 * block + at);
            }
        }
    }
}

#[inline(always)]
pub(super) fn within(dots: &[i32], half: &[i32], count: usize, limit: i32, near: &mut Vec<(i32, u32)>) {
    each_within(dots, half, count, limit, |distance, column| near.push((distance, column as u32)));
}

#[inline(always)]
pub(super) fn nearest(dots: &[i32], half: &[i32], count: usize, skip: usize, nearest: &mut [(i32, u32)]) {
    nearest.fill((i32::MAX, u32::MAX));
    let Some(last) = nearest.len().checked_sub(1) else { return };
    let blocks = dots.as_chunks::<32>().0.iter().zip(half.as_chunks::<32>().0);
    // Of 32 groups of columns, the least distance of each: so many columns are at most as far as the greatest of so
    // many of these, and hardly any others have to be looked at one by one.
    let mut least = [i32::MAX; 32];
    for (dots, half) in blocks.take(count / 32) {
        for at in 0..32 {
            least[at] = least[at].min(half[at].wrapping_sub(dots[at]));
        }
    }
    // The one that is skipped is among them.
    let limit = match least.get_mut(last + usize::from(skip < count)..) {
        Some([]) | None => i32::MAX,
        Some(_) => *least.select_nth_unstable(last + usize::from(skip < count)).1,
    };
    each_within(dots, half, count, limit, |distance, column| {
        if distance < nearest[last].0 && column != skip {
            let mut place = last;
            while place > 0 && nearest[place - 1].0 > distance {
                nearest[place] = nearest[place - 1];
                place -= 1;
            }
            nearest[place] = (distance, column as u32);
        }
    });
}
