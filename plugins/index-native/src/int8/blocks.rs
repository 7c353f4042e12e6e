//! Rows side by side in blocks, for comparing a query with one after the other: a register then has four bytes of
//! each of many rows, and no sum over a row's own register is needed.

use super::kernel::ROWS;

/// Bytes of a block of rows of `dim` numbers.
pub(crate) const fn block_bytes(dim: usize) -> usize {
    dim.div_ceil(4) * 4 * ROWS
}

/// Lays the codes of the rows of a block, `[16, stride]`, side by side into `block`,
/// `[dim / 4 rounded up, 16, 4]`.
///
/// # Panics
/// Where the codes are no sixteen, or the block has more numbers than they have.
pub(crate) fn interleave(codes: &[u8], block: &mut [u8]) {
    let stride = codes.len() / ROWS;
    assert!(codes.len() == ROWS * stride && block.len() <= codes.len());
    for (group, out) in block.chunks_exact_mut(4 * ROWS).enumerate() {
        for (code, out) in codes.chunks_exact(stride).zip(out.chunks_exact_mut(4)) {
            out.copy_from_slice(&code[4 * group..][..4]);
        }
    }
}
