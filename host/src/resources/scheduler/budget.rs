//! How much of the processors background work may take.
use std::time::{Duration, Instant};

/// For how many seconds the share is saved up while nothing runs, at most.
const SAVED: f64 = 5.0;

/// CPU time that comes in evenly and is spent by tasks. A task begins only where some is left; what it takes
/// beyond that the next ones wait for. So from any moment to any other, the tasks that began in between took
/// no more than the share of that time, what was saved, and the last ones that began.
#[derive(Debug)]
pub(super) struct Budget {
    /// CPU seconds a second.
    share: f64,
    left: f64,
    at: Instant,
}

impl Budget {
    /// `share` of one core, above 0.
    pub(super) fn new(share: f64, now: Instant) -> Self {
        Self { share, left: SAVED * share, at: now }
    }

    /// How long no task may begin.
    pub(super) fn rest(&mut self, now: Instant) -> Duration {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.left = (self.left + passed * self.share).min(SAVED * self.share);
        if self.left > 0.0 {
            return Duration::ZERO;
        }
        // Rounded up, or whoever waits for it would come too early for ever.
        Duration::try_from_secs_f64(-self.left / self.share).unwrap_or(Duration::MAX)
            + Duration::from_millis(1)
    }

    pub(super) fn spend(&mut self, cpu: Duration) {
        self.left -= cpu.as_secs_f64();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::vec, prelude::*};

    proptest! {
        #[test]
        fn no_more_is_spent_than_has_come_in(
            share in 0.01..4.0f64,
            steps in vec((0..5_000u64, 0..20_000u64), 1..200),
        ) {
            let start = Instant::now();
            let (mut now, mut spent, mut budget) = (start, 0.0, Budget::new(share, start));
            for (gap, cpu) in steps {
                now += Duration::from_millis(gap);
                let rest = budget.rest(now);
                if rest.is_zero() {
                    let come_in = share * (SAVED + (now - start).as_secs_f64());
                    prop_assert!(spent < come_in + 1e-6, "{spent} of {come_in}");
                    let cpu = Duration::from_millis(cpu);
                    budget.spend(cpu);
                    spent += cpu.as_secs_f64();
                } else {
                    // Who waits as long as it says may begin.
                    now += rest;
                    prop_assert_eq!(budget.rest(now), Duration::ZERO);
                }
            }
        }
    }

    #[test]
    fn what_is_saved_is_bounded() {
        let start = Instant::now();
        let mut budget = Budget::new(0.5, start);
        let night = start + Duration::from_secs(36_000);
        assert_eq!(budget.rest(night), Duration::ZERO);
        budget.spend(Duration::from_secs_f64(SAVED * 0.5 + 10.0));
        let rest = budget.rest(night).as_secs_f64();
        assert!((20.0..20.1).contains(&rest), "{rest}");
    }
}
