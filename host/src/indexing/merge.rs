//! Which segments to merge, and when: in tiers of like size, as log-structured merge trees do (O'Neil and
//! others, 1996), so that a row is written again some log(n) times.

/// When segments are merged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Policy {
    /// Rows of the smallest tier. A smaller segment is taken in by the next one that is sealed.
    pub(super) unit: u64,
    /// So many segments of one tier become one.
    pub(super) factor: usize,
    /// Rows of a segment at most.
    pub(super) partition_max: u64,
    /// A segment with so many dead rows of a hundred is written anew.
    pub(super) compact_percent: u64,
    /// Rows that one step may write, where that can wait.
    pub(super) step_rows: u64,
}

/// Rows of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) live: u64,
    pub(super) dead: u64,
}

/// Segments beyond which no merge waits, whatever it takes: every search visits all of them.
const MANY: usize = 48;

impl Policy {
    /// The segments to write anew as one, by position; none where all is well.
    pub(super) fn next(&self, segments: &[Size]) -> Option<Vec<usize>> {
        let dead_share =
            |percent: u64| move |size: &Size| size.dead * 100 > percent * (size.live + size.dead);
        // Beyond twice the share, waiting would let the disk fill with the dead.
        let urgent = dead_share((2 * self.compact_percent).min(45));
        let stale = dead_share(self.compact_percent);
        let rotten = segments
            .iter()
            .position(|size| size.dead > 0 && (urgent(size) || (stale(size) && size.live <= self.step_rows)));
        if let Some(rotten) = rotten {
            return Some(vec![rotten]);
        }
        let mut by_tier: Vec<Vec<usize>> = Vec::new();
        for (at, size) in segments.iter().enumerate() {
            let tier = self.tier(size.live);
            if by_tier.len() <= tier {
                by_tier.resize(tier + 1, Vec::new());
            }
            by_tier[tier].push(at);
        }
        for tier in &mut by_tier {
            tier.sort_by_key(|&at| segments[at].live);
            // As many of the smallest as fit into one segment.
            let (mut rows, mut group) = (0, Vec::new());
            for &at in tier.iter().take(self.factor) {
                if rows + segments[at].live > self.partition_max {
                    break;
                }
                rows += segments[at].live;
                group.push(at);
            }
            let is_full = group.len() == self.factor || group.len() < tier.len();
            if group.len() >= 2 && is_full && (rows <= self.step_rows || segments.len() > MANY) {
                return Some(group);
            }
        }
        None
    }

    /// Every segment that has to be written anew for the least number of them; none where they are.
    pub(super) fn compact(&self, segments: &[Size]) -> Option<Vec<usize>> {
        let live: u64 = segments.iter().map(|size| size.live).sum();
        let least = live.div_ceil(self.partition_max);
        if segments.iter().all(|size| size.dead == 0) && segments.len() as u64 <= least {
            return None;
        }
        // What is full already stays.
        let is_full = |size: &Size| size.dead == 0 && size.live == self.partition_max;
        Some((0..segments.len()).filter(|&at| !is_full(&segments[at])).collect())
    }

    fn tier(&self, live: u64) -> usize {
        let mut tier = 0;
        let mut limit = self.unit.saturating_mul(self.factor as u64);
        while live >= limit && tier < 64 {
            limit = limit.saturating_mul(self.factor as u64);
            tier += 1;
        }
        tier
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const POLICY: Policy =
        Policy { unit: 10, factor: 8, partition_max: 1000, compact_percent: 20, step_rows: u64::MAX };

    fn full(live: u64) -> Size {
        Size { live, dead: 0 }
    }

    #[test]
    fn eight_of_a_tier_become_one() {
        assert_eq!(POLICY.next(&[full(10); 7]), None);
        assert_eq!(POLICY.next(&[full(10); 8]), Some((0..8).collect()));
        let mut mixed = vec![full(100); 7];
        mixed.extend([full(10); 8]);
        assert_eq!(POLICY.next(&mixed), Some((7..15).collect()));
    }

    #[test]
    fn no_segment_outgrows_a_partition() {
        assert_eq!(POLICY.next(&[full(600), full(700)]), None);
        assert_eq!(POLICY.next(&[full(300), full(300), full(300), full(300)]), Some(vec![0, 1, 2]));
        assert_eq!(POLICY.next(&[full(1000); 20]), None);
    }

    #[test]
    fn the_dead_go_at_a_fifth_and_a_large_segment_may_wait_until_two_fifths() {
        assert_eq!(POLICY.next(&[full(10), Size { live: 80, dead: 20 }]), None);
        assert_eq!(POLICY.next(&[full(10), Size { live: 79, dead: 21 }]), Some(vec![1]));
        let hurried = Policy { step_rows: 50, ..POLICY };
        assert_eq!(hurried.next(&[Size { live: 79, dead: 21 }]), None);
        assert_eq!(hurried.next(&[Size { live: 59, dead: 41 }]), Some(vec![0]));
    }

    #[test]
    fn a_merge_that_takes_long_waits_until_there_are_many() {
        let hurried = Policy { step_rows: 50, ..POLICY };
        assert_eq!(hurried.next(&[full(10); 8]), None);
        assert_eq!(hurried.next(&[full(10); MANY + 1]).map(|group| group.len()), Some(8));
    }

    #[test]
    fn compaction_leaves_what_is_full() {
        assert_eq!(POLICY.compact(&[full(1000), full(10)]), None);
        assert_eq!(POLICY.compact(&[full(1000), full(10), full(20)]), Some(vec![1, 2]));
        assert_eq!(POLICY.compact(&[Size { live: 9, dead: 1 }]), Some(vec![0]));
        assert_eq!(POLICY.compact(&[]), None);
    }

    proptest! {
        #[test]
        fn writing_is_logarithmic_and_segments_are_few(seals in 1u64..600) {
            let (mut segments, mut written): (Vec<Size>, u64) = (Vec::new(), 0);
            for _ in 0..seals {
                segments.push(full(10));
                written += 10;
                while let Some(mut group) = POLICY.next(&segments) {
                    let rows: u64 = group.iter().map(|&at| segments[at].live).sum();
                    prop_assert!(rows <= POLICY.partition_max);
                    group.sort_unstable_by(|a, b| b.cmp(a));
                    for at in group {
                        segments.remove(at);
                    }
                    segments.push(full(rows));
                    written += rows;
                }
            }
            let rows = 10 * seals;
            prop_assert_eq!(segments.iter().map(|size| size.live).sum::<u64>(), rows);
            // Sealed once, and once more in each of the three tiers that a partition holds; twice in the last.
            prop_assert!(written <= 5 * rows, "{} rows written for {}", written, rows);
            prop_assert!(segments.len() as u64 <= 7 * 3 + 2 * rows / POLICY.partition_max + 2, "{} segments", segments.len());
        }
    }
}
