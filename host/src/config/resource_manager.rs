//! `[memory.resource_manager]`: what caches and indexes may hold as memory allows.

use super::{
    schema::Contradiction,
    values::{factor, factors, percents, whole},
};
use crate::resources::{governor::Rules, leak::LeakRules};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const UNLIMITED: i64 = i64::MAX;

/// `[memory.resource_manager]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResourceManager {
    /// Vectors that are granted at the start.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub base_max_vectors: u64,
    /// Vectors that may be granted when memory allows, and that may be stored.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub scaling_max_vectors: u64,
    /// Bytes of cache that are granted at the start.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub base_cache_bytes: u64,
    /// Bytes of cache that may be granted when memory allows.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub scaling_cache_bytes: u64,
    /// Percentage of memory in use from which nothing grows any more.
    #[serde(deserialize_with = "whole::<1, 100, _, _>")]
    pub target_memory_usage_percent: u8,
    /// Percentage of memory in use from which grants shrink at once.
    #[serde(deserialize_with = "whole::<1, 100, _, _>")]
    pub critical_memory_usage_percent: u8,
    /// Percentage of a grant in use from which it should grow.
    #[serde(deserialize_with = "whole::<1, 100, _, _>")]
    pub scale_up_percent: u8,
    /// Percentage of a grant in use below which it should shrink.
    #[serde(deserialize_with = "whole::<1, 100, _, _>")]
    pub scale_down_percent: u8,
    /// By how much at most a grant should grow, and shrink, for what is used of it.
    #[serde(deserialize_with = "factor")]
    pub scale_factor: f64,
    /// Percentages of memory in use up to which each of the first three of `pressure_factors` counts.
    #[serde(deserialize_with = "percents")]
    pub pressure_percents: [u8; 3],
    /// By how much a grant may grow, or must shrink, for how much memory is in use.
    #[serde(deserialize_with = "factors")]
    pub pressure_factors: [f64; 4],
    /// Percentage of time with something waiting for memory from which grants shrink.
    #[serde(deserialize_with = "whole::<1, 100, _, _>")]
    pub stall_percent: u8,
    /// Seconds between two looks.
    #[serde(deserialize_with = "whole::<1, 86_400, _, _>")]
    pub check_seconds: u64,
    /// Seconds after a change in which there is no other, unless memory is critical.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub cool_down_seconds: u64,
    /// Growth over the baseline, in percent, that counts as a leak.
    #[serde(deserialize_with = "whole::<1, 10_000, _, _>")]
    pub leak_growth_percent: u64,
    /// Seconds after the start that a process warms up.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub leak_warm_up_seconds: u64,
    /// Seconds over which memory must grow to count as a leak.
    #[serde(deserialize_with = "whole::<60, 604_800, _, _>")]
    pub leak_window_seconds: u64,
}

impl ResourceManager {
    /// The thresholds of the governor.
    pub fn rules(&self) -> Rules {
        Rules {
            scale_up: f64::from(self.scale_up_percent),
            scale_down: f64::from(self.scale_down_percent),
            factor: self.scale_factor,
            target: f64::from(self.target_memory_usage_percent),
            critical: f64::from(self.critical_memory_usage_percent),
            bands: self.pressure_percents.map(f64::from),
            factors: self.pressure_factors,
            stalled: f64::from(self.stall_percent),
            cool_down: Duration::from_secs(self.cool_down_seconds),
        }
    }

    /// The thresholds of the leak detector.
    pub fn leak_rules(&self) -> LeakRules {
        LeakRules {
            growth_percent: self.leak_growth_percent as f64,
            warm_up: Duration::from_secs(self.leak_warm_up_seconds),
            window: Duration::from_secs(self.leak_window_seconds),
        }
    }

    /// How often the governor looks.
    pub fn interval(&self) -> Duration {
        Duration::from_secs(self.check_seconds)
    }

    /// What the settings, each right by itself, say against each other.
    pub(super) fn contradictions(&self) -> Vec<Contradiction> {
        let rules = [
            (
                self.target_memory_usage_percent >= self.critical_memory_usage_percent,
                "target_memory_usage_percent",
                "critical_memory_usage_percent",
                "below",
            ),
            (
                self.base_max_vectors > self.scaling_max_vectors,
                "base_max_vectors",
                "scaling_max_vectors",
                "at most",
            ),
            (
                self.base_cache_bytes > self.scaling_cache_bytes,
                "base_cache_bytes",
                "scaling_cache_bytes",
                "at most",
            ),
            (
                self.scale_down_percent >= self.scale_up_percent,
                "scale_down_percent",
                "scale_up_percent",
                "below",
            ),
        ];
        let broken = rules.into_iter().filter(|(broken, ..)| *broken);
        let table = ["memory", "resource_manager"];
        broken.map(|(_, lower, upper, relation)| Contradiction { table, lower, upper, relation }).collect()
    }
}
