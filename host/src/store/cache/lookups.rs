//! A sliding window of look-ups by searches, to know how much the cache helps of late.
use std::collections::VecDeque;

/// Parts of a window: it slides by a tenth of itself.
const PARTS: u64 = 10;

/// Look-ups by searches, and how many of them a level of the cache answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Lookups {
    pub asked: u64,
    pub answered: u64,
}

impl Lookups {
    pub(super) fn plus(self, other: Self) -> Self {
        // What a file says may be anything.
        Self {
            asked: self.asked.saturating_add(other.asked),
            answered: self.answered.saturating_add(other.answered),
        }
    }

    /// How many of a hundred were answered; none where nothing was asked.
    pub fn hit_percent(self) -> Option<f64> {
        (self.asked > 0).then(|| 100.0 * self.answered as f64 / self.asked as f64)
    }

    /// Whether so many look-ups are enough to judge by, and fewer than `percent` of a hundred were answered.
    pub fn is_low(self, lookups: u64, percent: u64) -> bool {
        self.asked >= lookups && self.hit_percent().is_some_and(|hits| hits < percent as f64)
    }
}

/// The last look-ups: no fewer than the window has, once there were so many, and about a tenth more at most where they
/// come one by one.
#[derive(Debug, Default)]
pub struct LookupWindow {
    /// The oldest first.
    pub(super) parts: VecDeque<Lookups>,
}

impl LookupWindow {
    /// Adds what came last to a window of so many look-ups, and drops what it has no need of any more.
    pub fn add(&mut self, last: Lookups, lookups: u64) {
        match self.parts.back_mut() {
            Some(newest) if newest.asked < lookups.div_ceil(PARTS) => *newest = newest.plus(last),
            _ => self.parts.push_back(last),
        }
        let mut asked = self.total().asked;
        while let Some(oldest) = self.parts.front()
            && asked.saturating_sub(oldest.asked) >= lookups.max(1)
        {
            asked -= oldest.asked;
            self.parts.pop_front();
        }
    }

    /// All that is in it.
    pub fn total(&self) -> Lookups {
        self.parts.iter().fold(Lookups::default(), |total, part| total.plus(*part))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_is_long_ago_does_not_count() {
        let mut window = LookupWindow::default();
        let mut ask = |times, answered| {
            (0..times).for_each(|_| window.add(Lookups { asked: 1, answered }, 100));
            window.total()
        };
        assert!(!ask(99, 0).is_low(100, 80), "too few to say anything");
        assert!(ask(1, 0).is_low(100, 80));
        assert!(ask(70, 1).is_low(100, 80));
        let total = ask(40, 1);
        assert_eq!(total.answered, total.asked);
    }

    #[test]
    fn nothing_is_not_low() {
        assert!(!Lookups::default().is_low(0, 100));
    }

    proptest! {
        #[test]
        fn it_holds_the_last_and_little_more(steps in proptest::collection::vec((1_u64..30, any::<bool>()), 0..200), lookups in 1_u64..200) {
            let (mut window, mut all) = (LookupWindow::default(), 0);
            for (asked, hit) in steps {
                window.add(Lookups { asked, answered: if hit { asked } else { 0 } }, lookups);
                all += asked;
                let total = window.total();
                prop_assert!(total.asked >= all.min(lookups));
                prop_assert!(total.asked < lookups + lookups.div_ceil(PARTS) + 30);
                prop_assert!(total.answered <= total.asked);
                prop_assert!(window.parts.len() as u64 <= PARTS + 2);
            }
        }
    }
}
