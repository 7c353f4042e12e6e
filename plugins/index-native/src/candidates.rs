/// The places of the best `limit` rows so far; of rows with equal scores the lower places, so that what
/// is found does not depend on how the work was cut up.
///
/// More are taken in than are kept, and now and then those below a threshold are thrown out together, which costs a
/// few steps a row where a heap costs its depth. The threshold need not be the score of the last that is kept: one that
/// leaves a few more is found by counting, without a branch a row.
#[derive(Clone, Debug)]
pub(crate) struct Candidates {
    limit: usize,
    threshold: f32,
    scores: Vec<f32>,
    places: Vec<u32>,
}

/// The most rows that are taken at once.
pub(crate) const STRIP: usize = 64;

/// How often a threshold is guessed by halving before it is looked for exactly.
const GUESSES: usize = 12;

/// How many are sorted at first.
const SORTED: usize = 32;

impl Candidates {
    /// `limit` is at least 1.
    pub(crate) fn new(limit: usize) -> Self {
        let room = full(limit) + STRIP;
        let (scores, places) = (Vec::with_capacity(room), Vec::with_capacity(room));
        Self { limit, threshold: f32::MIN, scores, places }
    }

    /// How many it keeps.
    pub(crate) fn limit(&self) -> usize {
        self.limit
    }

    /// A score below this is not among the best; one that is equal only with a lower place than one
    /// of them.
    #[inline]
    pub(crate) fn threshold(&self) -> f32 {
        self.threshold
    }

    /// Takes rows, as many as there are scores.
    pub(crate) fn offer(&mut self, scores: impl Iterator<Item = f32>, places: &[u32]) {
        self.scores.extend(scores);
        self.places.extend(places);
        assert!(self.scores.len() == self.places.len());
        self.shrink_where_full();
    }

    /// Takes those of up to [`STRIP`] rows whose bits are set in `mask`, each of which is at least the threshold. The place
    /// of the first is `first`.
    #[inline(always)]
    pub(crate) fn take(&mut self, scores: &[f32], mut mask: u64, first: usize) {
        while mask != 0 {
            let row = mask.trailing_zeros() as usize;
            mask &= mask - 1;
            self.scores.push(scores[row]);
            self.places.push((first + row) as u32);
        }
        self.shrink_where_full();
    }

    /// Where scores and places of up to [`STRIP`] rows may be written, of which [`Candidates::grow`] is told.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn room(&mut self) -> (*mut f32, *mut u32) {
        self.scores.reserve(STRIP);
        self.places.reserve(STRIP);
        (
            self.scores.spare_capacity_mut().as_mut_ptr().cast(),
            self.places.spare_capacity_mut().as_mut_ptr().cast(),
        )
    }

    /// Takes rows, each of which is at least the threshold.
    ///
    /// # Safety
    /// So many, [`STRIP`] at most, were written where [`Candidates::room`] said.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) unsafe fn grow(&mut self, written: usize) {
        let held = self.scores.len();
        // SAFETY: both have as many, and the caller vouches for what was written.
        unsafe {
            self.scores.set_len(held + written);
            self.places.set_len(held + written);
        }
        self.shrink_where_full();
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.scores.extend(other.scores);
        self.places.extend(other.places);
        self.shrink_where_full();
    }

    #[inline(always)]
    fn shrink_where_full(&mut self) {
        if self.scores.len() >= full(self.limit) {
            self.shrink();
        }
    }

    /// Throws out rows that are not among the best, until a few more than these are left.
    #[cold]
    fn shrink(&mut self) {
        #[cfg(target_arch = "x86_64")]
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
            /// # Safety
            /// The processor has the registers.
            #[target_feature(enable = "avx512f,avx512vl")]
            unsafe fn shrink(candidates: &mut Candidates) {
                // SAFETY: the caller's.
                candidates
                    .shrink_with(|scores, places, least| unsafe { keep_by_avx512(scores, places, least) });
            }
            // SAFETY: as seen.
            unsafe { shrink(self) };
            return;
        }
        self.shrink_with(keep);
    }

    /// As [`Candidates::shrink`]; `keep` moves the rows with at least a score to the begin and says how many these are.
    #[inline(always)]
    fn shrink_with(&mut self, keep: impl FnOnce(&mut [f32], &mut [u32], f32) -> usize) {
        let few = few(self.limit);
        let (mut low, mut high) = extremes(&self.scores);
        let mut left = self.scores.len();
        for _ in 0..GUESSES {
            let middle = low + (high - low) / 2.0;
            let count = self.scores.iter().map(|&score| u32::from(score >= middle)).sum::<u32>() as usize;
            if count < self.limit {
                high = middle;
            } else {
                (low, left) = (middle, count);
                if count <= few {
                    break;
                }
            }
        }
        if left > few {
            // Outliers, or many that are equal.
            self.keep_exactly();
            return;
        }
        let kept = keep(&mut self.scores, &mut self.places, low);
        self.scores.truncate(kept);
        self.places.truncate(kept);
        self.threshold = low;
    }

    #[cold]
    fn keep_exactly(&mut self) {
        let held = self.held();
        self.scores = held.iter().map(|held| score((held >> 32) as u32)).collect();
        self.places = held.iter().map(|&held| held as u32).collect();
        self.threshold = extremes(&self.scores).0;
    }

    /// Score and place of the best as one number each, the best the lowest: quicker to compare than the pair.
    fn held(&self) -> Vec<u64> {
        let rows = self.scores.iter().zip(&self.places);
        let mut held: Vec<u64> =
            rows.map(|(&score, &place)| u64::from(descending(score)) << 32 | u64::from(place)).collect();
        if held.len() > self.limit {
            held.select_nth_unstable(self.limit - 1);
            held.truncate(self.limit);
        }
        held
    }

    /// A few more than the best, in no order.
    pub(crate) fn into_about_places(mut self) -> Vec<u32> {
        if self.scores.len() > few(self.limit) {
            self.shrink();
        }
        self.places
    }

    /// In no order.
    pub(crate) fn into_places(self) -> Vec<u32> {
        self.held().into_iter().map(|held| held as u32).collect()
    }

    /// Scores and places, best first, each pair once. Only as many are sorted as are asked for.
    pub(crate) fn into_sorted(self) -> impl Iterator<Item = (f32, u32)> {
        let mut held = self.held();
        let (mut at, mut sorted) = (0, 0);
        let next = move || {
            if at == sorted {
                let rest = &mut held[sorted..];
                let count = sorted.max(SORTED).min(rest.len());
                if count < rest.len() {
                    rest.select_nth_unstable(count);
                }
                rest[..count].sort_unstable();
                sorted += count;
            }
            at += 1;
            held.get(at - 1).copied()
        };
        let mut last = None;
        std::iter::from_fn(next)
            .filter(move |&held| last.replace(held) != Some(held))
            .map(|held| (score((held >> 32) as u32), held as u32))
    }
}

/// Moves the rows with at least a score to the begin; how many these are.
fn keep(scores: &mut [f32], places: &mut [u32], least: f32) -> usize {
    let mut kept = 0;
    for at in 0..scores.len() {
        (scores[kept], places[kept]) = (scores[at], places[at]);
        kept += usize::from(scores[kept] >= least);
    }
    kept
}

/// As [`keep`].
///
/// # Safety
/// The processor has the registers.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512vl")]
unsafe fn keep_by_avx512(scores: &mut [f32], places: &mut [u32], least: f32) -> usize {
    use std::arch::x86_64::*;
    assert!(scores.len() == places.len());
    let (len, mut kept) = (scores.len(), 0);
    let (scores, places) = (scores.as_mut_ptr(), places.as_mut_ptr());
    for at in (0..len).step_by(16) {
        let rows = u16::MAX >> (16 - (len - at).min(16));
        // SAFETY: only rows that are there are read, and no more are written than were read so far.
        unsafe {
            let read = _mm512_maskz_loadu_ps(rows, scores.add(at));
            let mask = _mm512_mask_cmp_ps_mask::<_CMP_GE_OQ>(rows, read, _mm512_set1_ps(least));
            let left = ((1u32 << mask.count_ones()) - 1) as u16;
            _mm512_mask_storeu_ps(scores.add(kept), left, _mm512_maskz_compress_ps(mask, read));
            let read = _mm512_maskz_loadu_epi32(rows, places.add(at).cast());
            _mm512_mask_storeu_epi32(places.add(kept).cast(), left, _mm512_maskz_compress_epi32(mask, read));
            kept += mask.count_ones() as usize;
        }
    }
    kept
}

/// How many may be left when the worst are thrown out.
fn few(limit: usize) -> usize {
    limit + limit / 8
}

/// How many are taken in before the worst are thrown out.
fn full(limit: usize) -> usize {
    limit + limit / 2 + STRIP
}

/// The lowest and the highest.
#[inline(always)]
fn extremes(scores: &[f32]) -> (f32, f32) {
    let (mut low, mut high) = ([f32::INFINITY; 16], [f32::NEG_INFINITY; 16]);
    let (chunks, rest) = scores.as_chunks::<16>();
    let mut look = |lanes: &[f32]| {
        for ((low, high), &score) in low.iter_mut().zip(&mut high).zip(lanes) {
            *low = if score < *low { score } else { *low };
            *high = if score > *high { score } else { *high };
        }
    };
    chunks.iter().for_each(|chunk| look(chunk));
    look(rest);
    (low.into_iter().fold(f32::INFINITY, f32::min), high.into_iter().fold(f32::NEG_INFINITY, f32::max))
}

/// Bits that are the lower the higher the number is.
fn descending(score: f32) -> u32 {
    let bits = score.to_bits();
    // Of negative numbers the bits ascend as they descend.
    if bits >> 31 == 1 { bits } else { !bits & (u32::MAX >> 1) }
}

fn score(descending: u32) -> f32 {
    let bits = if descending >> 31 == 1 { descending } else { !descending & (u32::MAX >> 1) };
    f32::from_bits(bits)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_the_best(
            scores in prop::collection::vec(prop_oneof![-20i8..20, Just(0)], 0..900),
            odd in prop::collection::vec(prop_oneof![Just(f32::MAX), Just(f32::MIN), Just(f32::INFINITY), -1e9f32..1e9], 0..40),
            limit in 1usize..20,
            strip in 1usize..65,
            cut in 0usize..900,
        ) {
            // Whole thirds, so that many are equal, and outliers.
            let all: Vec<f32> = scores.iter().map(|&s| f32::from(s) / 3.0).chain(odd).collect();
            let places: Vec<u32> = (0..all.len() as u32).collect();
            let cut = cut.min(all.len());
            let [mut best, rest] = [0..cut, cut..all.len()].map(|part| {
                let mut best = Candidates::new(limit);
                for (scores, places) in all[part.clone()].chunks(strip).zip(places[part].chunks(strip)) {
                    // By turns as what is offered and as what passes the threshold.
                    if places[0] % 2 == 0 {
                        best.offer(scores.iter().copied(), places);
                    } else {
                        let passes = |at: usize| u64::from(scores[at] >= best.threshold()) << at;
                        let mask = (0..scores.len()).map(passes).sum();
                        best.take(scores, mask, places[0] as usize);
                    }
                }
                best
            });
            best.merge(rest);
            let mut expected: Vec<u32> = places;
            expected.sort_by_key(|&row| (descending(all[row as usize]), row));
            expected.truncate(limit);
            let mut kept = best.clone().into_places();
            prop_assert_eq!(best.into_sorted().map(|(_, place)| place).collect::<Vec<_>>(), expected.clone());
            kept.sort_unstable();
            expected.sort_unstable();
            prop_assert_eq!(kept, expected);
        }

        #[test]
        #[cfg(target_arch = "x86_64")]
        fn registers_keep_the_same(scores in prop::collection::vec(-1.0f32..1.0, 0..100), least in -1.0f32..1.0) {
            let kept = |avx512: bool| {
                let (mut scores, mut places) = (scores.clone(), (0..scores.len() as u32).collect::<Vec<_>>());
                let kept = if avx512 {
                    // SAFETY: as seen below.
                    unsafe { keep_by_avx512(&mut scores, &mut places, least) }
                } else {
                    keep(&mut scores, &mut places, least)
                };
                (scores[..kept].to_vec(), places[..kept].to_vec())
            };
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vl") {
                prop_assert_eq!(kept(true), kept(false));
            }
            prop_assert!(kept(false).1.iter().all(|&place| scores[place as usize] >= least));
        }

        #[test]
        fn descends(a: f32, b: f32) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(score(descending(a)).to_bits(), a.to_bits());
            prop_assert_eq!(a.total_cmp(&b), descending(b).cmp(&descending(a)));
        }
    }
}
