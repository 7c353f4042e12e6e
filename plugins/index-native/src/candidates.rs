/// The places of the best `limit` rows so far; of rows with equal scores the lower places, so that what
/// is found does not depend on how the work was cut up.
///
/// More are taken in than are kept, and now and then the worst are thrown out together, which costs a
/// few steps a row where a heap costs its depth.
#[derive(Clone, Debug)]
pub(crate) struct Candidates {
    limit: usize,
    threshold: f32,
    /// Score and place as one number, the best the lowest: quicker to compare than the pair.
    held: Vec<u64>,
}

impl Candidates {
    /// `limit` is at least 1.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, threshold: f32::NEG_INFINITY, held: Vec::new() }
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

    /// Takes a row where it is among the best. Negative infinity is no score.
    #[inline]
    pub(crate) fn push(&mut self, score: f32, place: usize) {
        if score >= self.threshold && score > f32::NEG_INFINITY {
            // Places are below 2^32: a file with more is refused.
            self.held.push(u64::from(descending(score)) << 32 | place as u64);
            if self.held.len() >= 2 * self.limit + 64 {
                self.shrink();
            }
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.held.extend(other.held);
        self.shrink();
    }

    #[cold]
    fn shrink(&mut self) {
        if self.held.len() > self.limit {
            let (_, last, _) = self.held.select_nth_unstable(self.limit - 1);
            self.threshold = score((*last >> 32) as u32);
            self.held.truncate(self.limit);
        }
    }

    /// In no order.
    pub(crate) fn into_places(mut self) -> Vec<u32> {
        self.shrink();
        self.held.into_iter().map(|held| held as u32).collect()
    }

    /// Best first.
    pub(crate) fn into_sorted_places(self) -> Vec<u32> {
        self.into_sorted().map(|(_, place)| place).collect()
    }

    /// Scores and places, best first.
    pub(crate) fn into_sorted(mut self) -> impl Iterator<Item = (f32, u32)> {
        self.shrink();
        self.held.sort_unstable();
        self.held.into_iter().map(|held| (score((held >> 32) as u32), held as u32))
    }
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
        fn keeps_the_best(scores in prop::collection::vec(-20i8..20, 0..400), limit in 1usize..20, cut in 0usize..400) {
            let all: Vec<(f32, usize)> = scores.iter().map(|&s| f32::from(s) / 3.0).zip(0..).collect();
            let (one, other) = all.split_at(cut.min(all.len()));
            let [mut best, rest] = [one, other].map(|part| {
                let mut best = Candidates::new(limit);
                part.iter().for_each(|&(score, place)| best.push(score, place));
                best.push(f32::NEG_INFINITY, 1000);
                best.push(f32::NAN, 1001);
                best
            });
            best.merge(rest);
            let mut expected = all.clone();
            expected.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
            let expected: Vec<u32> = expected.iter().take(limit).map(|row| row.1 as u32).collect();
            prop_assert_eq!(best.into_sorted_places(), expected);
        }

        #[test]
        fn descends(a: f32, b: f32) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(score(descending(a)).to_bits(), a.to_bits());
            prop_assert_eq!(a.total_cmp(&b), descending(b).cmp(&descending(a)));
        }
    }
}
