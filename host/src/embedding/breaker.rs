//! When to stop asking a backend that fails, and when to try it again. The caller gives the time.
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

/// When a breaker opens, and for how long.
#[derive(Clone, Copy, Debug)]
pub struct BreakerOptions {
    /// Failures in a row that open it, at least 1.
    pub failures: u32,
    /// Share of failed calls among the last `window` that opens it, above 0 to 1.
    pub error_rate: f64,
    /// Calls that the share is taken over; it says nothing before so many were made.
    pub window: usize,
    /// How long it stays open the first time; doubles each time that it opens again.
    pub cool_down: Duration,
    /// The longest that it stays open.
    pub max_cool_down: Duration,
}

/// Closed while a backend works, open while it is left alone, half open while it is tried.
#[derive(Debug)]
pub(super) struct Breaker {
    options: BreakerOptions,
    state: State,
    /// Of the last calls whether they failed, the newest last.
    recent: VecDeque<bool>,
    /// How often it opened since a whole window of calls succeeded.
    openings: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Closed,
    Open { until: Instant },
    HalfOpen,
}

impl Breaker {
    pub(super) fn new(options: BreakerOptions) -> Self {
        Self { options, state: State::Closed, recent: VecDeque::new(), openings: 0 }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// `closed`, `open` or `half-open`.
    pub(super) fn name(&self) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { .. } => "open",
            State::HalfOpen => "half-open",
        }
    }

    /// A call succeeded; one that was made although it was open closes it too.
    pub(super) fn succeeded(&mut self) {
        self.state = State::Closed;
        self.note(false);
        if self.recent.len() == self.options.window && !self.recent.contains(&true) {
            self.openings = 0;
        }
    }

    /// A call failed.
    pub(super) fn failed(&mut self, now: Instant) {
        self.note(true);
        let in_a_row = self.recent.iter().rev().take_while(|failed| **failed).count();
        let failed = self.recent.iter().filter(|failed| **failed).count();
        let rate = failed as f64 / self.recent.len().max(1) as f64;
        let often = self.recent.len() == self.options.window && rate >= self.options.error_rate;
        if self.is_closed() && (in_a_row >= self.options.failures as usize || often) {
            self.open(now);
        }
    }

    /// Opens it at once: the backend cannot be asked.
    pub(super) fn trip(&mut self, now: Instant) {
        if self.is_closed() {
            self.open(now);
        }
    }

    /// Whether it is time to try the backend; then the caller does, and reports to [`Self::probed`].
    pub(super) fn begins_probe(&mut self, now: Instant) -> bool {
        let due = matches!(self.state, State::Open { until } if until <= now);
        if due {
            self.state = State::HalfOpen;
        }
        due
    }

    /// What became of the trial.
    pub(super) fn probed(&mut self, works: bool, now: Instant) {
        if self.state != State::HalfOpen {
            return;
        }
        if works {
            self.state = State::Closed;
        } else {
            self.open(now);
        }
    }

    fn open(&mut self, now: Instant) {
        let doubled = self.options.cool_down.saturating_mul(1 << self.openings.min(20));
        self.openings += 1;
        self.state = State::Open { until: now + doubled.min(self.options.max_cool_down) };
        self.recent.clear();
    }

    fn note(&mut self, failed: bool) {
        if self.recent.len() == self.options.window {
            self.recent.pop_front();
        }
        self.recent.push_back(failed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn breaker() -> Breaker {
        Breaker::new(BreakerOptions {
            failures: 3,
            error_rate: 0.5,
            window: 10,
            cool_down: SECOND,
            max_cool_down: 5 * SECOND,
        })
    }

    fn open(breaker: &mut Breaker, now: Instant) {
        (0..3).for_each(|_| breaker.failed(now));
        assert_eq!(breaker.name(), "open");
    }

    #[test]
    fn failures_in_a_row_open_it_and_a_success_between_them_does_not() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for _ in 0..2 {
            breaker.failed(now);
            breaker.failed(now);
            breaker.succeeded();
        }
        assert!(breaker.is_closed());
        open(&mut breaker, now);
    }

    #[test]
    fn a_share_of_failures_opens_it_once_the_window_is_full() {
        let (mut breaker, now) = (breaker(), Instant::now());
        for _ in 0..4 {
            breaker.succeeded();
            breaker.failed(now);
        }
        assert!(breaker.is_closed(), "8 calls say too little");
        breaker.succeeded();
        breaker.failed(now);
        assert_eq!(breaker.name(), "open");
    }

    #[test]
    fn a_trial_is_due_after_the_cool_down_and_only_one_at_a_time() {
        let (mut breaker, now) = (breaker(), Instant::now());
        open(&mut breaker, now);
        assert!(!breaker.begins_probe(now + SECOND / 2));
        assert!(breaker.begins_probe(now + SECOND));
        assert_eq!(breaker.name(), "half-open");
        assert!(!breaker.begins_probe(now + SECOND));
        breaker.probed(true, now + SECOND);
        assert!(breaker.is_closed());
    }

    #[test]
    fn the_cool_down_doubles_up_to_its_limit_and_starts_anew_after_a_window_of_successes() {
        let (mut breaker, mut now) = (breaker(), Instant::now());
        open(&mut breaker, now);
        for wait in [1, 2, 4, 5, 5] {
            assert!(!breaker.begins_probe(now + wait * SECOND - SECOND / 10), "{wait} s");
            now += wait * SECOND;
            assert!(breaker.begins_probe(now), "{wait} s");
            breaker.probed(false, now);
        }
        now += 5 * SECOND;
        assert!(breaker.begins_probe(now));
        breaker.probed(true, now);
        (0..10).for_each(|_| breaker.succeeded());
        open(&mut breaker, now);
        assert!(breaker.begins_probe(now + SECOND));
    }

    #[test]
    fn a_call_that_succeeds_all_the_same_closes_it() {
        let (mut breaker, now) = (breaker(), Instant::now());
        open(&mut breaker, now);
        breaker.succeeded();
        assert!(breaker.is_closed());
        breaker.probed(false, now);
        assert!(breaker.is_closed(), "a late verdict of a trial is void");
    }
}
