//! Rows side by side in blocks, for comparing a query with one after the other: a register then has four bytes of
//! each of many rows, and no sum over a row's own register is needed.

use super::{
    Query,
    kernel::{Kernel, ROWS},
};
use crate::candidates::Candidates;
use std::ops::Range;

/// Blocks that are compared before the best of their rows are picked.
const STRIP: usize = 16;

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
    half: &'a [i32],
    block_bytes: usize,
}

impl<'a> Blocks<'a> {
    /// `bytes` as [`interleave`] wrote them, and `half` of each row as [`super::Quantizer::encode`] did; `None` where
    /// the lengths do not fit. What a damaged file says makes wrong scores and nothing worse.
    pub(crate) fn new(dim: usize, bytes: &'a [u8], half: &'a [i32]) -> Option<Self> {
        let block_bytes = block_bytes(dim);
        let fits = block_bytes > 0
            && half.len().is_multiple_of(ROWS)
            && (half.len() / ROWS).checked_mul(block_bytes) == Some(bytes.len());
        fits.then_some(Self { bytes, half, block_bytes })
    }

    /// Offers each row of `blocks` by its place, counted from the begin of the codes, where `accept` lets it
    /// through: by its distance from the query where that is asked for, else by the dot product.
    ///
    /// # Panics
    /// Where the blocks are none of these, or the query is narrower.
    pub(crate) fn scan(
        &self,
        kernel: Kernel,
        blocks: Range<usize>,
        query: Query<'_>,
        distance: bool,
        accept: impl Fn(usize) -> bool,
        found: &mut Candidates,
    ) {
        let mut scores = [0; STRIP * ROWS];
        let mut any = [false; STRIP];
        for begin in blocks.clone().step_by(STRIP) {
            let strip = begin..blocks.end.min(begin + STRIP);
            let bytes = &self.bytes[strip.start * self.block_bytes..strip.end * self.block_bytes];
            let half = if distance { &self.half[strip.start * ROWS..strip.end * ROWS] } else { &[] };
            let (scores, any) = (&mut scores[..strip.len() * ROWS], &mut any[..strip.len()]);
            // Scores are whole numbers; those that f32 rounds are off by less than the codes are.
            let least = found.threshold() as i32;
            kernel.strip(bytes, query, half, least, scores, any);
            for (block, scores) in scores.chunks_exact(ROWS).enumerate().filter(|&(block, _)| any[block]) {
                for (row, &score) in scores.iter().enumerate() {
                    let place = (begin + block) * ROWS + row;
                    if score >= least && score as f32 >= found.threshold() && accept(place) {
                        found.push(score as f32, place);
                    }
                }
            }
        }
    }
}
