//! What a load must show (docs/benchmarks.md has where the limits come from).
use super::Workload;
use serde::Serialize;

/// Limits of a load.
#[derive(Clone, Copy, Debug)]
pub struct Sla {
    /// Milliseconds of a search at the 95th and 99th percentile.
    pub p95_ms: f64,
    #[expect(missing_docs, reason = "as above")]
    pub p99_ms: f64,
    /// Queries and records in a second.
    pub items_per_s: f64,
    /// The share of queries whose vector is in the cache.
    pub hit_rate: f64,
    /// The share of calls that fail.
    pub error_rate: f64,
}

impl Default for Sla {
    fn default() -> Self {
        Self { p95_ms: 20.0, p99_ms: 50.0, items_per_s: 500.0, hit_rate: 0.85, error_rate: 0.001 }
    }
}

/// Whether a limit is kept.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Verdict {
    pub what: &'static str,
    pub measured: f64,
    pub limit: f64,
    pub met: bool,
}

impl Sla {
    /// Judges a load. What was not asked of it is not judged.
    pub fn judge(&self, load: &Workload) -> Vec<Verdict> {
        let below = |what, measured: f64, limit| Verdict { what, measured, limit, met: measured < limit };
        let above = |what, measured: f64, limit| Verdict { what, measured, limit, met: measured > limit };
        let mut verdicts = Vec::new();
        if load.search.calls > 0 {
            verdicts.push(below("search p95, ms", load.search.latency.p95, self.p95_ms));
            verdicts.push(below("search p99, ms", load.search.latency.p99, self.p99_ms));
            verdicts.push(above("hit rate", load.hit_rate, self.hit_rate));
        }
        verdicts.push(above("items a second", load.items_per_s, self.items_per_s));
        verdicts.push(below("error rate", load.error_rate, self.error_rate));
        verdicts
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{MemoryTrend, Operations, Quantiles},
        *,
    };

    fn load(p95: f64, items_per_s: f64, hit_rate: f64, error_rate: f64) -> Workload {
        let latency = Quantiles { p95, p99: 2.0 * p95, ..Quantiles::default() };
        Workload {
            seconds: 1.0,
            records: 1,
            search: Operations { calls: 1, latency, ..Operations::default() },
            inserts: Vec::new(),
            items_per_s,
            hit_rate,
            error_rate,
            first_error: None,
            memory_used: None,
            memory: MemoryTrend::of(Vec::new()),
        }
    }

    #[test]
    fn each_limit_is_judged_by_itself() {
        let missed = |load: &Workload| {
            let verdicts = Sla::default().judge(load).into_iter();
            verdicts.filter(|verdict| !verdict.met).map(|verdict| verdict.what).collect::<Vec<_>>()
        };
        assert_eq!(missed(&load(5.0, 1000.0, 0.9, 0.0)), [""; 0]);
        assert_eq!(missed(&load(20.0, 1000.0, 0.9, 0.0)), ["search p95, ms"]);
        assert_eq!(missed(&load(30.0, 1000.0, 0.9, 0.0)), ["search p95, ms", "search p99, ms"]);
        assert_eq!(missed(&load(5.0, 500.0, 0.85, 0.001)), ["hit rate", "items a second", "error rate"]);
        let quiet = Workload { search: Operations::default(), ..load(5.0, 501.0, 0.0, 0.0) };
        assert_eq!(missed(&quiet), [""; 0]);
    }
}
