//! Products without any special instruction: what the others are tested against.
use super::{Precision, Tile};

/// What the tiles of the other files do, for `rows` x `16 * vectors` sums.
///
/// # Safety
/// As [`super::TileFn`].
pub(super) unsafe fn tile(
    precision: Precision,
    (rows, vectors): (usize, usize),
    left: *const u32,
    stride: usize,
    right: *const u32,
    steps: usize,
    out: &mut Tile,
) {
    for (row, out) in out.0.iter_mut().enumerate().take(rows) {
        let out = &mut out[..vectors * 16];
        // SAFETY: the caller gives `rows` rows of at least `steps` units, and `steps` times
        // `16 * vectors` units.
        let (left, right) = unsafe {
            let right = std::slice::from_raw_parts(right, steps * out.len());
            (std::slice::from_raw_parts(left.add(row * stride), steps), right)
        };
        match precision {
            Precision::F32 => {
                out.fill(0.0);
                for (&a, b) in left.iter().zip(right.chunks_exact(out.len())) {
                    let a = f32::from_bits(a);
                    out.iter_mut().zip(b).for_each(|(sum, &b)| *sum += a * f32::from_bits(b));
                }
            }
            Precision::Bf16 => {
                out.fill(0.0);
                let halves = |unit: u32| [unit << 16, unit & 0xffff_0000].map(f32::from_bits);
                for (&a, b) in left.iter().zip(right.chunks_exact(out.len())) {
                    let [low, high] = halves(a);
                    for (sum, &b) in out.iter_mut().zip(b) {
                        let b = halves(b);
                        *sum += low * b[0] + high * b[1];
                    }
                }
            }
            Precision::Int8 => {
                let mut sums = [0_i32; super::COLUMNS];
                for (&a, b) in left.iter().zip(right.chunks_exact(out.len())) {
                    let a = a.to_le_bytes().map(i32::from);
                    for (sum, &b) in sums.iter_mut().zip(b) {
                        let b = b.to_le_bytes().map(|byte| i32::from(byte as i8));
                        *sum += a.iter().zip(b).map(|(a, b)| a * b).sum::<i32>();
                    }
                }
                out.iter_mut().zip(sums).for_each(|(out, sum)| *out = sum as f32);
            }
        }
    }
}
