//! Passing over blocks with several queries at once.

use super::{Factors, Kernel, Query, ROWS, Word, scalar::Scalar};
use crate::{candidates::Candidates, int8::prefetch};
use std::ops::Range;

/// Blocks whose estimates are made together.
const STRIP: usize = 4;

/// Strips of the runs to come that are asked of memory ahead: lists are short and lie apart, and without it their scan takes
/// a third longer.
const AHEAD: usize = 5;

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

/// Blocks that follow one another, and the term of an estimate that is the same for all of their rows.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    pub(crate) blocks: Range<usize>,
    pub(crate) base: f32,
}

/// A query and what it found.
#[derive(Debug)]
pub(crate) struct Target<'a> {
    pub(crate) query: &'a Query,
    pub(crate) found: &'a mut Candidates,
}

/// Estimates of `B` blocks for `Q` queries at once.
pub(super) trait Strip {
    /// Returns for each query the mask of the rows with estimates of at least `least[q]`, block after block, and where
    /// there are some writes `out[q][b][row]`. `bits` are `[B, words]`.
    ///
    /// # Safety
    /// The processor has the registers.
    unsafe fn strip<const Q: usize, const B: usize>(
        bits: &[Word],
        factors: &[Factors],
        base: f32,
        queries: [&Query; Q],
        least: [f32; Q],
        out: &mut [[[f32; ROWS]; B]; Q],
    ) -> [u64; Q];

    /// Offers the rows of `mask` with these estimates, of which the first has place `first`.
    ///
    /// # Safety
    /// The processor has the registers.
    #[inline(always)]
    unsafe fn offer<const B: usize>(
        found: &mut Candidates,
        estimates: &[[f32; ROWS]; B],
        mask: u64,
        first: usize,
    ) {
        found.take(estimates.as_flattened(), mask, first);
    }
}

impl Scan<'_> {
    /// Offers each row of the blocks to every target by its place, counted from the begin of the codes.
    /// Only places that `accept` lets through are taken.
    ///
    /// # Panics
    /// Where the blocks are none of these codes or a query is of another width.
    pub(crate) fn run(&self, runs: &[Run], targets: &mut [Target<'_>], accept: Option<Accept<'_>>) {
        assert!(targets.iter().all(|target| target.query.tables.len() == self.words));
        let sift = Sift { scan: self, accept };
        // One query passes over everything once.
        if let [_] = targets {
            sift.run(runs, targets);
            return;
        }
        let chunk = (CHUNK_BYTES / (self.words * size_of::<Word>())).max(1).next_multiple_of(STRIP);
        for Run { blocks, base } in runs {
            for begin in blocks.clone().step_by(chunk) {
                let chunk = Run { blocks: begin..blocks.end.min(begin + chunk), base: *base };
                for targets in targets.chunks_mut(4) {
                    sift.run(std::slice::from_ref(&chunk), targets);
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
    fn run(&self, runs: &[Run], targets: &mut [Target<'_>]) {
        match self.scan.kernel {
            // SAFETY: `Kernel::detect` has seen the features.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx512 => unsafe { super::avx512::scan(self, runs, targets) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Kernel::Avx2 => unsafe { super::avx2::scan(self, runs, targets) },
            #[cfg(target_arch = "aarch64")]
            Kernel::Neon => super::neon::scan(self, runs, targets),
            // SAFETY: it needs no registers.
            Kernel::Scalar => unsafe { self.each_strip::<Scalar>(runs, targets) },
        }
    }

    /// # Safety
    /// The processor has the registers of `S`.
    #[inline(always)]
    pub(super) unsafe fn each_strip<S: Strip>(&self, runs: &[Run], targets: &mut [Target<'_>]) {
        // SAFETY: the caller's.
        unsafe {
            match targets {
                [a, b, c, d] => self.strips::<S, 4>(runs, [a, b, c, d]),
                targets => {
                    for target in targets {
                        self.strips::<S, 1>(runs, [target]);
                    }
                }
            }
        }
    }

    /// # Safety
    /// As [`Sift::each_strip`].
    #[inline(always)]
    unsafe fn strips<S: Strip, const Q: usize>(&self, runs: &[Run], mut targets: [&mut Target<'_>; Q]) {
        // What lies in one run the processor reads ahead by itself.
        let mut ahead = Ahead { scan: self.scan, runs: if runs.len() > 1 { runs } else { &[] }, at: 0 };
        (0..AHEAD).for_each(|_| ahead.ask());
        for Run { blocks, base } in runs {
            let mut at = blocks.start;
            // SAFETY: the caller's.
            unsafe {
                // Four queries with four blocks would not fit the registers.
                if Q == 1 {
                    while at + STRIP <= blocks.end {
                        ahead.ask();
                        self.strip::<S, Q, STRIP>(at, *base, &mut targets);
                        at += STRIP;
                    }
                    if at < blocks.end {
                        ahead.ask();
                    }
                }
                while at + STRIP / 2 <= blocks.end {
                    self.strip::<S, Q, { STRIP / 2 }>(at, *base, &mut targets);
                    at += STRIP / 2;
                }
                if at < blocks.end {
                    self.strip::<S, Q, 1>(at, *base, &mut targets);
                }
            }
        }
    }

    /// # Safety
    /// As [`Sift::each_strip`].
    #[inline(always)]
    unsafe fn strip<S: Strip, const Q: usize, const B: usize>(
        &self,
        at: usize,
        base: f32,
        targets: &mut [&mut Target<'_>; Q],
    ) {
        let Scan { words, bits, factors, .. } = *self.scan;
        let mut estimates = [[[0.0; ROWS]; B]; Q];
        let queries = std::array::from_fn(|q| targets[q].query);
        let least = std::array::from_fn(|q| targets[q].found.threshold());
        let (bits, factors) = (&bits[at * words..(at + B) * words], &factors[at..at + B]);
        // SAFETY: the caller's.
        let masks = unsafe { S::strip::<Q, B>(bits, factors, base, queries, least, &mut estimates) };
        for q in 0..Q {
            let mut mask = masks[q];
            if mask == 0 {
                continue;
            }
            if let Some(accept) = self.accept {
                let passes = |row: usize| mask >> row & 1 == 1 && accept(at * ROWS + row);
                mask = (0..B * ROWS).filter(|&row| passes(row)).fold(0, |mask, row| mask | 1 << row);
            }
            // SAFETY: the caller's.
            unsafe { S::offer(targets[q].found, &estimates[q], mask, at * ROWS) };
        }
    }
}

/// Asks memory for the blocks of some runs, a strip after the other.
struct Ahead<'a> {
    scan: &'a Scan<'a>,
    /// Those that are not asked for as a whole.
    runs: &'a [Run],
    /// Blocks of the first of them that are.
    at: usize,
}

impl Ahead<'_> {
    #[inline(always)]
    fn ask(&mut self) {
        let [first, rest @ ..] = self.runs else { return };
        let begin = first.blocks.start + self.at;
        let Scan { words, bits, factors, .. } = *self.scan;
        let end = factors.len().min(begin + STRIP);
        prefetch(bits.get(begin * words..end * words).unwrap_or_default());
        prefetch(factors.get(begin..end).unwrap_or_default());
        self.at += STRIP;
        if self.at >= first.blocks.len() {
            (self.runs, self.at) = (rest, 0);
        }
    }
}
