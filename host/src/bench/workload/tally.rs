//! How long calls took, by kind.
use crate::bench::BenchError;
use hdrhistogram::Histogram;
use serde::Serialize;
use std::time::Instant;

/// Calls of a kind.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Operations {
    /// That were made.
    pub calls: u64,
    /// Of them, those that failed.
    pub failed: u64,
    /// In a second.
    pub per_s: f64,
    /// Milliseconds from when each was due to its end.
    pub latency: Quantiles,
    /// Milliseconds from when a thread began it, of those that did not fail, for comparison.
    pub service: Quantiles,
}

/// Of a distribution of times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Quantiles {
    pub mean: f64,
    pub p50: f64,
    pub p90: f64,
    pub p95: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl From<&Histogram<u64>> for Quantiles {
    fn from(times: &Histogram<u64>) -> Self {
        let ms = |share| times.value_at_quantile(share) as f64 / 1000.0;
        Self {
            mean: times.mean() / 1000.0,
            p50: ms(0.5),
            p90: ms(0.9),
            p95: ms(0.95),
            p99: ms(0.99),
            p999: ms(0.999),
            max: times.max() as f64 / 1000.0,
        }
    }
}

/// What one thread counts.
#[derive(Default)]
pub(super) struct Tally {
    /// By the number of records in a call, 1 for queries.
    kinds: Vec<(usize, Times)>,
    pub(super) cached: u64,
    pub(super) first_error: Option<String>,
}

struct Times {
    failed: u64,
    /// Microseconds.
    latency: Histogram<u64>,
    service: Histogram<u64>,
}

/// An hour, in microseconds; longer counts as that long.
pub(super) const LONGEST: u64 = 3_600_000_000;

impl Times {
    fn new() -> Option<Self> {
        // Three digits of each value are kept.
        let made = || Histogram::new_with_bounds(1, LONGEST, 3).ok();
        Some(Self { failed: 0, latency: made()?, service: made()? })
    }
}

impl Tally {
    /// Makes a call that was `due` then, and counts it where it `counts`.
    pub(super) fn time(
        &mut self,
        counts: bool,
        due: Instant,
        size: usize,
        call: impl FnOnce() -> Result<bool, BenchError>,
    ) {
        let begun = Instant::now();
        let called = call();
        let ended = Instant::now();
        if !counts || matches!(called, Err(BenchError::Interrupted)) {
            return;
        }
        let Some(times) = self.kind(size) else { return };
        let us = |from: Instant| u64::try_from(ended.duration_since(from).as_micros()).unwrap_or(LONGEST);
        times.latency.saturating_record(us(due));
        match called {
            Ok(cached) => {
                times.service.saturating_record(us(begun));
                self.cached += u64::from(cached);
            }
            Err(error) => {
                times.failed += 1;
                self.first_error.get_or_insert_with(|| error.to_string());
            }
        }
    }

    fn kind(&mut self, size: usize) -> Option<&mut Times> {
        if !self.kinds.iter().any(|(kind, _)| *kind == size) {
            self.kinds.push((size, Times::new()?));
        }
        self.kinds.iter_mut().find(|(kind, _)| *kind == size).map(|(_, times)| times)
    }

    pub(super) fn with(mut self, other: Self) -> Self {
        for (size, times) in other.kinds {
            if let Some(own) = self.kind(size) {
                own.failed += times.failed;
                own.latency += times.latency;
                own.service += times.service;
            }
        }
        self.cached += other.cached;
        self.first_error = self.first_error.or(other.first_error);
        self
    }

    pub(super) fn of(&self, size: usize, seconds: f64) -> Operations {
        let Some((_, times)) = self.kinds.iter().find(|(kind, _)| *kind == size) else {
            return Operations::default();
        };
        let calls = times.latency.len();
        Operations {
            calls,
            failed: times.failed,
            per_s: calls as f64 / seconds,
            latency: (&times.latency).into(),
            service: (&times.service).into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_stall_counts_in_what_it_held_up() {
        let mut tally = Tally::default();
        let due = Instant::now().checked_sub(Duration::from_secs(2)).expect("two seconds ago");
        tally.time(true, due, 1, || Ok(true));
        tally.time(true, Instant::now(), 1, || {
            Err(BenchError::Worker { name: "a".into(), fault: "no".into() })
        });
        tally.time(false, due, 1, || Ok(true));
        let twice = Tally::default().with(tally);
        let found = twice.of(1, 2.0);
        assert_eq!((found.calls, found.failed, found.per_s, twice.cached), (2, 1, 1.0, 1));
        assert!(found.latency.max >= 1990.0 && found.service.max < found.latency.max, "{found:?}");
        assert_eq!(twice.first_error.as_deref(), Some("a: no"));
    }
}
