//! Rows side by side in blocks, for comparing a query with one after the other: a register then has four bytes of
//! each of many rows, and no sum over a row's own register is needed.

use super::{
    Query,
    kernel::{Kernel, ROWS},
};

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

/// Rows as codes in blocks. Borrowed, so that they may lie in a mapped file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Blocks<'a> {
    bytes: &'a [u8],
    rows: usize,
}

impl<'a> Blocks<'a> {
    /// `bytes` as [`interleave`] wrote them; `None` where the lengths do not fit. What a damaged file says makes wrong
    /// scores and nothing worse.
    pub(crate) fn new(dim: usize, bytes: &'a [u8], rows: usize) -> Option<Self> {
        let block_bytes = block_bytes(dim);
        let fits = block_bytes > 0
            && rows.is_multiple_of(ROWS)
            && (rows / ROWS).checked_mul(block_bytes) == Some(bytes.len());
        fits.then_some(Self { bytes, rows })
    }

    /// Writes the product of each row with the query into `dots`, as many as there are rows.
    ///
    /// # Panics
    /// Where the lengths do not fit, or the query is narrower.
    pub(crate) fn dots(&self, kernel: Kernel, query: Query<'_>, dots: &mut [i32]) {
        assert!(dots.len() == self.rows);
        kernel.strip(self.bytes, query, dots);
    }
}
