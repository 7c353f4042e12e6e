//! Passing over blocks with several queries at once.

use super::{Factors, Kernel, Query, ROWS, Word, scalar::Scalar};
use crate::{candidates::Candidates, int8::prefetch};
use std::ops::Range;

/// Blocks whose estimates are made together.
const STRIP: usize = 4;

/// Bytes of codes that all queries pass over before the next ones are read: half a second-level cache.
const CHUNK_BYTES: usize = 256 << 10;

/// Tells which places may be found.
pub(crate) type Accept<'a> = &'a (dyn Fn(usize) -> bool + Sync);

/// The codes to scan.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scan<'a> {
    pub(crate) kernel: Kernel,
    /// Words of a code.
    pub(crate) words: usize,
    /// `[blocks, words]` row-major.
    pub(crate) bits: &'a [Word],
    /// One a block.
    pub(crate) factors: &'a [Factors],
}

/// A query, the term of its estimates that is the same for all rows of the scan, and what it found.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) query: &'a Query,
    pub(crate) base: f32,
    pub(crate) found: &'a mut Candidates,
}

/// Estimates of `B` blocks for `Q` queries at once.
pub(super) trait Strip {
    /// Writes `out[q][b][row]` and returns for each query the mask of those at least `least[q]`, block
    /// after block. `bits` are `[B, words]`.
    ///
    /// # Safety
    /// The processor has the registers.
    unsafe fn strip<const Q: usize, const B: usize>(
        bits: &[Word],
        factors: &[Factors],
        queries: [&Query; Q],
        base: [f32; Q],
        least: [f32; Q],
        out: &mut [[[f32; ROWS]; B]; Q],
    ) -> [u64; Q];
}

impl Scan<'_> {
    /// Asks memory for the first of `blocks`; what comes after them is asked for as they are scanned.
    pub(crate) fn prefetch(&self, blocks: Range<usize>) {
        let blocks = blocks.start..blocks.end.min(blocks.start + STRIP);
        prefetch(self.bits.get(blocks.start * self.words..blocks.end * self.words).unwrap_or_default());
        prefetch(self.factors.get(blocks).unwrap_or_default());
    }

    /// Offers each row of the blocks to every target by its place, counted from the begin of the codes.
    /// Only places that `accept` lets through are taken.
    ///
    /// # Panics
    /// Where the blocks are none of these codes or a query is of another width.
    pub(crate) fn run(&self, blocks: Range<usize>, targets: &mut [Target<'_>], accept: Option<Accept<'_>>) {
        assert!(blocks.end <= self.factors.len() && self.bits.len() == self.factors.len() * self.words);
        assert!(targets.iter().all(|target| target.query.tables.len() == self.words));
        // One query passes over everything once.
        let chunk = match targets.len() {
            1 => blocks.len().max(1),
            _ => (CHUNK_BYTES / (self.words * size_of::<Word>())).next_multiple_of(STRIP),
        };
        for begin in blocks.clone().step_by(chunk) {
            let chunk = begin..blocks.end.min(begin + chunk);
            for targets in targets.chunks_mut(4) {
                let sift = Sift { scan: self, accept };
                match self.kernel {
                    // SAFETY: `Kernel::detect` has seen the features.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Avx512 => unsafe { super::avx512::scan(&sift, chunk.clone(), targets) },
                    // SAFETY: as above.
                    #[cfg(target_arch = "x86_64")]
                    Kernel::Avx2 => unsafe { super::avx2::scan(&sift, chunk.clone(), targets) },
                    #[cfg(target_arch = "aarch64")]
                    Kernel::Neon => super::neon::scan(&sift, chunk.clone(), targets),
                    // SAFETY: it needs no registers.
                    Kernel::Scalar => unsafe { sift.each_strip::<Scalar>(chunk.clone(), targets) },
                }
            }
        }
    }
}

/// What is done with the estimates of a chunk.
pub(super) struct Sift<'a> {
    scan: &'a Scan<'a>,
    accept: Option<Accept<'a>>,
}

impl Sift<'_> {
    /// # Safety
    /// The processor has the registers of `S`; what [`Scan::run`] asserts holds.
    #[inline(always)]
    pub(super) unsafe fn each_strip<S: Strip>(&self, blocks: Range<usize>, targets: &mut [Target<'_>]) {
        // SAFETY: the caller's.
        unsafe {
            match targets {
                [a, b, c, d] => self.strips::<S, 4>(blocks, [a, b, c, d]),
                targets => {
                    for target in targets {
                        self.strips::<S, 1>(blocks.clone(), [target]);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Sift::each_strip`].
    #[inline(always)]
    unsafe fn strips<S: Strip, const Q: usize>(
        &self,
        blocks: Range<usize>,
        mut targets: [&mut Target<'_>; Q],
    ) {
        // Four queries with four blocks would not fit the registers.
        let mut at = blocks.start;
        // SAFETY: the caller's.
        unsafe {
            if Q == 1 {
                while at + STRIP <= blocks.end {
                    self.strip::<S, Q, STRIP>(at, &mut targets);
                    at += STRIP;
                }
            }
            while at + STRIP / 2 <= blocks.end {
                self.strip::<S, Q, { STRIP / 2 }>(at, &mut targets);
                at += STRIP / 2;
            }
            while at < blocks.end {
                self.strip::<S, Q, 1>(at, &mut targets);
                at += 1;
            }
        }
    }

    /// # Safety
    /// As [`Sift::each_strip`].
    #[inline(always)]
    unsafe fn strip<S: Strip, const Q: usize, const B: usize>(
        &self,
        at: usize,
        targets: &mut [&mut Target<'_>; Q],
    ) {
        let Scan { words, bits, factors, .. } = *self.scan;
        let mut estimates = [[[0.0; ROWS]; B]; Q];
        let queries = std::array::from_fn(|q| targets[q].query);
        let base = std::array::from_fn(|q| targets[q].base);
        let least = std::array::from_fn(|q| targets[q].found.threshold());
        let (bits, factors) = (&bits[at * words..(at + B) * words], &factors[at..at + B]);
        // SAFETY: the caller's.
        let masks = unsafe { S::strip::<Q, B>(bits, factors, queries, base, least, &mut estimates) };
        for q in 0..Q {
            let mut mask = masks[q];
            while mask != 0 {
                let row = mask.trailing_zeros() as usize;
                mask &= mask - 1;
                let (place, estimate) = (at * ROWS + row, estimates[q][row / ROWS][row % ROWS]);
                // The threshold rises while the strip is worked off.
                if estimate >= targets[q].found.threshold() && self.accept.is_none_or(|accept| accept(place))
                {
                    targets[q].found.push(estimate, place);
                }
            }
        }
    }
}
