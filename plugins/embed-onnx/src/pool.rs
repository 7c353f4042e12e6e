//! What runs cost in memory and whether they succeed: the pool tunes itself by it, and health is
//! judged by it.
use magray_plugin_api::{Health, HealthLevel};
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Runs that are remembered.
const HISTORY: usize = 100;
/// Runs before the share of failures means anything.
const FEWEST: usize = 10;
/// The pool keeps so many times the mean run (SPEC B4).
const MEANS_KEPT: u64 = 4;
/// Bytes that are not worth giving back.
const LEAST_KEPT: u64 = 64 << 20;
const LEAST_SUCCESS: f64 = 0.8;
const MOST_MEMORY: f64 = 0.9;

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Success,
    OutOfMemory,
    Failure,
}

/// Account of the memory pool of a device, and of the runs on it.
#[derive(Debug)]
pub(crate) struct Pool {
    /// Bytes that may be allocated; `None` where there is no limit but the machine's.
    limit: Option<u64>,
    /// Tokens that one run may have; halved where memory runs out.
    budget: usize,
    /// Bytes that the last runs needed for themselves, oldest first.
    allocations: VecDeque<u64>,
    /// Whether the last runs succeeded, oldest first.
    outcomes: VecDeque<bool>,
    usage: Usage,
    out_of_memory: u64,
    shrinkings: u64,
}

/// State of the allocators, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Usage {
    /// Taken from the device, in use or kept for the next run.
    pub(crate) reserved: u64,
    /// In use: weights and what runs now.
    pub(crate) in_use: u64,
    /// The most that was in use.
    pub(crate) peak: u64,
}

impl Pool {
    /// A pool of at most `limit` bytes whose runs have at most `budget` tokens.
    pub(crate) fn new(limit: Option<u64>, budget: usize) -> Self {
        Self {
            limit,
            budget: budget.max(1),
            allocations: VecDeque::new(),
            outcomes: VecDeque::new(),
            usage: Usage::default(),
            out_of_memory: 0,
            shrinkings: 0,
        }
    }

    /// Tokens that one run may have now.
    pub(crate) fn budget(&self) -> usize {
        self.budget
    }

    /// Lets one run have so many tokens.
    pub(crate) fn set_budget(&mut self, tokens: usize) {
        self.budget = tokens.max(1);
    }

    /// Notes how a run of `tokens` tokens ended.
    pub(crate) fn ran(&mut self, tokens: usize, outcome: Outcome) {
        remember(&mut self.outcomes, outcome == Outcome::Success);
        if outcome == Outcome::OutOfMemory {
            self.out_of_memory += 1;
            self.budget = self.budget.min(tokens / 2).max(1);
        }
    }

    /// Notes what a run needed, and the state of the allocators after it. Says whether they should
    /// give back what they keep, with the next run: more than four times what a run needs on average, and
    /// more than a little.
    pub(crate) fn allocated(&mut self, by_run: u64, usage: Usage) -> bool {
        remember(&mut self.allocations, by_run);
        self.usage = usage;
        let kept = usage.reserved.saturating_sub(usage.in_use);
        let shrink = self.allocations.len() >= FEWEST && kept > self.target();
        self.shrinkings += u64::from(shrink);
        shrink
    }

    /// Bytes that are worth keeping for runs to come.
    fn target(&self) -> u64 {
        let count = self.allocations.len().max(1) as u64;
        LEAST_KEPT.max(MEANS_KEPT * (self.allocations.iter().sum::<u64>() / count))
    }

    /// Share of the last runs that succeeded; 1 before the first.
    fn success(&self) -> f64 {
        let good = self.outcomes.iter().filter(|&&good| good).count();
        if self.outcomes.is_empty() { 1.0 } else { good as f64 / self.outcomes.len() as f64 }
    }

    /// Share of the limit that is in use.
    fn pressure(&self) -> f64 {
        self.limit.map_or(0.0, |limit| self.usage.in_use as f64 / limit.max(1) as f64)
    }

    pub(crate) fn usage(&self) -> Usage {
        self.usage
    }

    /// The verdict, by the thresholds of SPEC B4.
    pub(crate) fn health(&self) -> Health {
        let percent = |share: f64| (share * 100.0).round();
        if self.outcomes.len() >= FEWEST && self.success() < LEAST_SUCCESS {
            let runs = self.outcomes.len();
            let message = format!(
                "{}% of the last {runs} runs succeeded: reduce batch size or switch to CPU",
                percent(self.success())
            );
            return Health { level: HealthLevel::Failed, message };
        }
        if self.pressure() > MOST_MEMORY {
            let message = format!(
                "{}% of the memory that is allowed is in use: reduce batch size or clear the GPU cache",
                percent(self.pressure())
            );
            return Health { level: HealthLevel::Degraded, message };
        }
        Health::ok()
    }

    pub(crate) fn describe(&self) -> Value {
        json!({
            "limit": self.limit,
            "tokens_at_once": self.budget,
            "reserved": self.usage.reserved,
            "in_use": self.usage.in_use,
            "peak": self.usage.peak,
            "kept_at_most": self.target(),
            "shrinkings": self.shrinkings,
            "success_rate": self.success(),
            "out_of_memory": self.out_of_memory,
        })
    }
}

fn remember<T>(history: &mut VecDeque<T>, item: T) {
    if history.len() == HISTORY {
        history.pop_front();
    }
    history.push_back(item);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pool_keeps_four_times_the_mean_run() {
        const MIB: u64 = 1 << 20;
        let mut pool = Pool::new(None, 1000);
        let usage = |kept: u64| Usage { reserved: 5000 * MIB + kept, in_use: 5000 * MIB, peak: 6000 * MIB };
        for _ in 0..FEWEST - 1 {
            assert!(!pool.allocated(100 * MIB, usage(4000 * MIB)), "too few runs to judge by");
        }
        assert!(pool.allocated(100 * MIB, usage(400 * MIB + 1)));
        assert!(!pool.allocated(100 * MIB, usage(400 * MIB)));
        // Larger runs are worth a larger pool, and what came before is forgotten.
        for _ in 0..HISTORY {
            pool.allocated(200 * MIB, usage(0));
        }
        assert!(!pool.allocated(200 * MIB, usage(800 * MIB)));
        assert_eq!(pool.describe()["kept_at_most"], 800 * MIB);
        assert_eq!(pool.describe()["shrinkings"], 1);
        for _ in 0..HISTORY {
            assert!(!pool.allocated(1, usage(LEAST_KEPT)), "a little may be kept");
        }
    }

    #[test]
    fn the_budget_is_halved_where_memory_runs_out() {
        let mut pool = Pool::new(None, 1000);
        pool.ran(1000, Outcome::Success);
        pool.ran(800, Outcome::OutOfMemory);
        assert_eq!(pool.budget(), 400);
        // Another stream that began before.
        pool.ran(900, Outcome::OutOfMemory);
        assert_eq!(pool.budget(), 400);
        pool.ran(1, Outcome::OutOfMemory);
        assert_eq!(pool.budget(), 1);
        assert_eq!(pool.describe()["out_of_memory"], 3);
    }

    #[test]
    fn health_follows_success_and_memory() {
        let mut pool = Pool::new(Some(1000), 1000);
        assert_eq!(pool.health(), Health::ok());
        pool.allocated(10, Usage { reserved: 1000, in_use: 901, peak: 950 });
        let full = pool.health();
        assert_eq!(full.level, HealthLevel::Degraded);
        assert!(full.message.contains("reduce batch size or clear the GPU cache"), "{}", full.message);
        for _ in 0..FEWEST - 1 {
            pool.ran(1, Outcome::Failure);
        }
        assert_eq!(pool.health().level, HealthLevel::Degraded, "too few runs to judge by");
        pool.ran(1, Outcome::OutOfMemory);
        let failing = pool.health();
        assert_eq!(failing.level, HealthLevel::Failed);
        assert!(failing.message.contains("reduce batch size or switch to CPU"), "{}", failing.message);
        for _ in 0..4 * FEWEST {
            pool.ran(1, Outcome::Success);
        }
        assert_eq!(pool.health().level, HealthLevel::Degraded, "80% are enough");
        pool.allocated(10, Usage { reserved: 1000, in_use: 900, peak: 950 });
        assert_eq!(pool.health(), Health::ok());
    }
}
