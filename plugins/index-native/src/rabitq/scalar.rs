//! The definition, and the oracle of the other kernels.

use super::{Factors, Query, ROWS, Word, scan::Strip};

pub(super) struct Scalar;

impl Strip for Scalar {
    #[inline(always)]
    unsafe fn strip<const Q: usize, const B: usize>(
        bits: &[Word],
        factors: &[Factors],
        base: f32,
        queries: [&Query; Q],
        least: [f32; Q],
        out: &mut [[[f32; ROWS]; B]; Q],
    ) -> [u64; Q] {
        let mut masks = [0; Q];
        let words = bits.len() / B;
        for (q, query) in queries.iter().enumerate() {
            for (b, (code, factors)) in bits.chunks_exact(words).zip(factors).enumerate() {
                let mut sums = [0u32; ROWS];
                for (word, table) in code.iter().zip(&query.tables) {
                    for (sum, row) in sums.iter_mut().zip(word) {
                        for (byte, value) in row.to_le_bytes().into_iter().enumerate() {
                            *sum += u32::from(table.low[16 * byte + usize::from(value & 15)]);
                            *sum += u32::from(table.high[16 * byte + usize::from(value >> 4)]);
                        }
                    }
                }
                for row in 0..ROWS {
                    // Fused, as the others do it: the same estimates on every machine.
                    let product = query.mul.mul_add(sums[row] as f32, query.add);
                    let estimate = factors.scale[row].mul_add(product, factors.add[row] + base);
                    out[q][b][row] = estimate;
                    masks[q] |= u64::from(estimate >= least[q]) << (b * ROWS + row);
                }
            }
        }
        masks
    }
}
