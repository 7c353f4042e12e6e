//! When changes are due to be sealed. What is visible never depends on it.
use std::time::{Duration, Instant};

/// Counts the changes of one layer that are not sealed yet, and how long they have waited.
#[derive(Debug)]
pub(super) struct ChangeTracker {
    seal_after: u64,
    max_age: Duration,
    waiting: u64,
    /// When the oldest of them was first seen.
    since: Option<Instant>,
}

impl ChangeTracker {
    pub(super) fn new(seal_after: u64, max_age: Duration) -> Self {
        Self { seal_after, max_age, waiting: 0, since: None }
    }

    /// `waiting` changes are not sealed.
    pub(super) fn observe(&mut self, waiting: u64, now: Instant) {
        // Fewer than before: those that had waited are sealed.
        if waiting == 0 || waiting < self.waiting {
            self.since = None;
        }
        if waiting > 0 {
            self.since.get_or_insert(now);
        }
        self.waiting = waiting;
    }

    /// Whether they should be sealed: there are many, or they have waited long.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.since.is_some_and(|since| {
            self.waiting >= self.seal_after || now.saturating_duration_since(since) >= self.max_age
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_changes_or_old_ones_are_due() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut tracker = ChangeTracker::new(50, Duration::from_secs(300));
        assert!(!tracker.is_due(at(1000)));
        tracker.observe(1, at(0));
        tracker.observe(49, at(200));
        assert_eq!((tracker.is_due(at(299)), tracker.is_due(at(300))), (false, true));
        tracker.observe(50, at(201));
        assert!(tracker.is_due(at(201)));
        // Most were sealed; what came since is young.
        tracker.observe(3, at(310));
        assert_eq!((tracker.is_due(at(609)), tracker.is_due(at(610))), (false, true));
        tracker.observe(0, at(611));
        assert!(!tracker.is_due(at(5000)));
    }
}
