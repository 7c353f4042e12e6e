//! Zipf's law: a few are asked for often, and most of them seldom.

/// Draws ranks, of which r, from 0, comes in proportion to `(r + 1)^-skew`.
#[derive(Clone, Debug)]
pub(super) struct Zipf {
    /// The shares of the ranks, summed.
    sums: Vec<f64>,
}

impl Zipf {
    /// Of so many ranks, at least one.
    pub(super) fn new(ranks: usize, skew: f64) -> Self {
        let mut sum = 0.0;
        let sums = (1..=ranks.max(1)).map(|rank| {
            sum += (rank as f64).powf(-skew);
            sum
        });
        Self { sums: sums.collect() }
    }

    /// The n-th that is drawn; the same in every run.
    pub(super) fn rank(&self, n: u64) -> usize {
        // SplitMix64, which can begin anywhere (Steele, Lea, Flood, OOPSLA 2014).
        let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        let share = ((z ^ z >> 31) >> 11) as f64 / (1_u64 << 53) as f64;
        let wanted = share * self.sums.last().copied().unwrap_or(1.0);
        self.sums.partition_point(|&sum| sum <= wanted).min(self.sums.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_come_in_proportion() {
        let zipf = Zipf::new(1000, 1.0);
        let mut counts = vec![0_u32; 1000];
        (0..200_000).for_each(|n| counts[zipf.rank(n)] += 1);
        let harmonic: f64 = (1..=1000).map(|rank| 1.0 / f64::from(rank)).sum();
        for rank in [1, 2, 10] {
            let expected = 200_000.0 / harmonic / rank as f64;
            assert!((f64::from(counts[rank - 1]) / expected - 1.0).abs() < 0.05, "rank {rank}: {counts:?}");
        }
        assert_eq!(Zipf::new(0, 1.0).rank(7), 0);
    }
}
