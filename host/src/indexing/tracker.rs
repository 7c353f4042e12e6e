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

/// Why changes are sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// There are many.
    Count,
    /// They have waited long.
    Age,
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

    /// Whether they should be sealed.
    pub(super) fn due(&self, now: Instant) -> Option<Due> {
        let since = self.since?;
        if self.waiting >= self.seal_after {
            return Some(Due::Count);
        }
        (now.saturating_duration_since(since) >= self.max_age).then_some(Due::Age)
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
        assert_eq!(tracker.due(at(1000)), None);
        tracker.observe(1, at(0));
        tracker.observe(49, at(200));
        assert_eq!((tracker.due(at(299)), tracker.due(at(300))), (None, Some(Due::Age)));
        tracker.observe(50, at(201));
        assert_eq!(tracker.due(at(201)), Some(Due::Count));
        // Most were sealed; what came since is young.
        tracker.observe(3, at(310));
        assert_eq!((tracker.due(at(609)), tracker.due(at(610))), (None, Some(Due::Age)));
        tracker.observe(0, at(611));
        assert_eq!(tracker.due(at(5000)), None);
    }
}
