//! What caches and indexes may hold, by how much of it they use and how much memory there is: a function of what it
//! is given.
//!
//! Two signals, each of which says how far it would go in one step. *Demand* looks at what is used of a grant: from
//! `scale_up_percent` on it asks for more, below `scale_down_percent` for less. *Supply* looks at the memory: it lets
//! grow, holds, or shrinks. The lesser of both counts, so that nothing grows while memory is short, however much it is
//! wanted. (Decision 16.)
use super::pressure::Pressure;
use serde::Serialize;
use std::time::{Duration, Instant};

/// The thresholds, `[memory.resource_manager]` in the configuration. Shares are in percent.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the configuration explains them")]
pub struct Rules {
    pub scale_up: f64,
    pub scale_down: f64,
    pub factor: f64,
    pub target: f64,
    pub critical: f64,
    /// Memory in use up to which each of the first three of `factors` counts; beyond, the last.
    pub bands: [f64; 3],
    /// Not rising.
    pub factors: [f64; 4],
    pub stalled: f64,
    pub cool_down: Duration,
}

/// What the memory has to give.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Supply {
    /// A grant may change to so many times itself at most.
    pub factor: f64,
    /// Whether it must change at once.
    pub critical: bool,
}

impl Rules {
    /// What the memory has to give at this pressure. Where that is unknown nothing grows.
    pub fn supply(&self, pressure: &Pressure) -> Supply {
        let Some(used) = pressure.tightest().map(super::pressure::Limit::percent) else {
            return Supply { factor: 1.0, critical: false };
        };
        let critical = used >= self.critical;
        let band = self.bands.iter().position(|&edge| used <= edge).unwrap_or(3);
        let mut factor = self.factors[if critical { 3 } else { band }];
        if used >= self.target {
            factor = factor.min(1.0);
        }
        if pressure.stalled.is_some_and(|share| share >= self.stalled) {
            factor = factor.min(self.factors[2]);
        }
        Supply { factor, critical }
    }

    /// What is wanted of a grant of which `used` is used. It never goes so far that the opposite would be wanted next.
    fn demand(&self, granted: u64, used: u64) -> f64 {
        let share = 100.0 * used as f64 / granted as f64;
        if share >= self.scale_up {
            self.factor.min(share / self.scale_down)
        } else if share < self.scale_down {
            (1.0 / self.factor).max(share / f64::midpoint(self.scale_up, self.scale_down))
        } else {
            1.0
        }
    }
}

/// Why a grant is what it is after a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(into = "&'static str")]
pub enum Reason {
    /// It grew: much of it is used.
    Demand,
    /// It shrank: little of it is used.
    Idle,
    /// It shrank: memory is short.
    Pressure,
    /// It shrank, and at once: memory is nearly gone.
    Critical,
    /// It fits what is used.
    Fits,
    /// More is wanted, and memory has none to give.
    NoMemory,
    /// It would change, and has changed not long ago.
    CoolDown,
    /// It is as small or as large as it may be.
    Bound,
}

impl From<Reason> for &'static str {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Demand => "demand",
            Reason::Idle => "idle",
            Reason::Pressure => "pressure",
            Reason::Critical => "critical",
            Reason::Fits => "fits",
            Reason::NoMemory => "no memory",
            Reason::CoolDown => "cool-down",
            Reason::Bound => "bound",
        }
    }
}

/// What was decided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// What is granted from now on, and what was.
    pub granted: u64,
    /// See `granted`.
    pub before: u64,
    /// Why.
    pub reason: Reason,
}

impl Decision {
    /// Whether anything changed.
    pub fn is_change(&self) -> bool {
        self.granted != self.before
    }
}

/// How much of something may be held: vectors, or bytes.
#[derive(Clone, Debug)]
pub struct Grant {
    base: u64,
    most: u64,
    granted: u64,
    changed: Option<Instant>,
}

impl Grant {
    /// Begins with `base`, and never has less than that or more than `most`. Where that is less than `base`, it is
    /// what counts.
    pub fn new(base: u64, most: u64) -> Self {
        let base = base.min(most).max(1);
        Self { base, most: most.max(base), granted: base, changed: None }
    }

    /// What is granted.
    pub fn granted(&self) -> u64 {
        self.granted
    }

    /// The most that may be.
    pub fn most(&self) -> u64 {
        self.most
    }

    /// Looks at it: `used` of it is used, and memory has `supply` to give.
    pub fn look(&mut self, rules: &Rules, used: u64, supply: Supply, now: Instant) -> Decision {
        let before = self.granted;
        let demand = rules.demand(before, used);
        let factor = demand.min(supply.factor);
        let wanted = before as f64 * factor;
        let next = if factor > 1.0 { wanted.floor() } else { wanted.ceil() } as u64;
        let next = next.clamp(self.base, self.most);
        let cools = self.changed.is_some_and(|then| now.saturating_duration_since(then) < rules.cool_down);
        let reason = if factor == 1.0 {
            if demand > 1.0 { Reason::NoMemory } else { Reason::Fits }
        } else if next == before {
            Reason::Bound
        } else if cools && !supply.critical {
            Reason::CoolDown
        } else if supply.critical {
            Reason::Critical
        } else if factor > 1.0 {
            Reason::Demand
        } else if supply.factor < 1.0 {
            Reason::Pressure
        } else {
            Reason::Idle
        };
        if next != before && reason != Reason::CoolDown {
            self.granted = next;
            self.changed = Some(now);
        }
        Decision { granted: self.granted, before, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::{super::pressure::Limit, *};
    use proptest::prelude::*;

    fn rules() -> Rules {
        Rules {
            scale_up: 85.0,
            scale_down: 60.0,
            factor: 1.5,
            target: 65.0,
            critical: 85.0,
            bands: [50.0, 70.0, 85.0],
            factors: [1.3, 1.1, 0.95, 0.7],
            stalled: 10.0,
            cool_down: Duration::from_secs(300),
        }
    }

    fn at(percent: f64) -> Pressure {
        let limits = vec![
            Limit { name: "machine".into(), total: 1 << 40, used: 1 << 30 },
            Limit { name: "cgroup /x".into(), total: 1_000_000, used: (percent * 10_000.0) as u64 },
        ];
        Pressure { limits, ..Pressure::default() }
    }

    fn supply(percent: f64) -> Supply {
        rules().supply(&at(percent))
    }

    #[test]
    fn supply_is_by_bands_and_the_target_ends_growth() {
        for (percent, factor) in
            [(0.0, 1.3), (50.0, 1.3), (50.1, 1.1), (64.9, 1.1), (65.0, 1.0), (70.0, 1.0), (71.0, 0.95)]
        {
            assert_eq!(supply(percent), Supply { factor, critical: false }, "{percent}");
        }
        for percent in [85.0, 86.0, 100.0, 130.0] {
            assert_eq!(supply(percent), Supply { factor: 0.7, critical: true }, "{percent}");
        }
        assert_eq!(rules().supply(&Pressure::default()), Supply { factor: 1.0, critical: false });
        let stalled = |share| rules().supply(&Pressure { stalled: Some(share), ..at(10.0) }).factor;
        assert_eq!((stalled(9.9), stalled(10.0)), (1.3, 0.95));
    }

    #[test]
    fn demand_and_supply_are_told_apart() {
        let (start, rules) = (Instant::now(), rules());
        let look = |used, percent| Grant::new(1000, 10_000).look(&rules, used, supply(percent), start);
        let decision = |granted, reason| Decision { granted, before: 1000, reason };
        assert_eq!(look(850, 40.0), decision(1300, Reason::Demand));
        assert_eq!(look(850, 60.0), decision(1100, Reason::Demand));
        assert_eq!(look(850, 68.0), decision(1000, Reason::NoMemory));
        assert_eq!(look(849, 40.0), decision(1000, Reason::Fits));
        // At its base it shrinks no further.
        assert_eq!(look(1000, 99.0), decision(1000, Reason::Bound));
        assert_eq!(look(0, 40.0), decision(1000, Reason::Bound));
    }

    #[test]
    fn changes_wait_for_the_cool_down_but_for_critical_ones() {
        let (start, rules) = (Instant::now(), rules());
        let mut grant = Grant::new(1000, 10_000);
        let mut look = |seconds, used, percent| {
            let decision = grant.look(&rules, used, supply(percent), start + Duration::from_secs(seconds));
            (decision.granted, decision.reason)
        };
        assert_eq!(look(0, 1000, 20.0), (1300, Reason::Demand));
        assert_eq!(look(30, 1300, 20.0), (1300, Reason::CoolDown));
        assert_eq!(look(299, 1300, 75.0), (1300, Reason::CoolDown));
        assert_eq!(look(300, 1300, 20.0), (1690, Reason::Demand));
        assert_eq!(look(330, 1690, 90.0), (1183, Reason::Critical));
        assert_eq!(look(360, 1183, 90.0), (1000, Reason::Critical));
        assert_eq!(look(390, 1000, 90.0), (1000, Reason::Bound));
        // The shrinking starts the cool-down anew.
        assert_eq!(look(659, 1000, 20.0), (1000, Reason::CoolDown));
        assert_eq!(look(660, 1000, 20.0), (1300, Reason::Demand));
        assert_eq!(look(960, 1300, 75.0), (1235, Reason::Pressure));
        assert_eq!(look(1260, 300, 20.0), (1000, Reason::Idle));
    }

    #[test]
    fn a_base_beyond_the_most_is_the_most() {
        let grant = Grant::new(1000, 10);
        assert_eq!((grant.granted(), grant.most()), (10, 10));
        assert_eq!(Grant::new(0, 0).granted(), 1);
    }

    prop_compose! {
        fn any_rules()(
            scale_down in 10.0..80.0f64, gap in 2.0..19.0f64, factor in 1.01..4.0f64,
            target in 10.0..90.0f64, critical in 0.1..10.0f64, edges in [1.0..30.0f64, 1.0..30.0, 1.0..30.0],
            shrink in 0.1..1.0f64, cool_down in 0u64..600,
        ) -> Rules {
            let bands = [edges[0], edges[0] + edges[1], edges[0] + edges[1] + edges[2]];
            Rules {
                scale_down, scale_up: scale_down + gap, factor, target, critical: target + critical, bands,
                factors: [1.3, 1.1, shrink.sqrt(), shrink], stalled: 10.0,
                cool_down: Duration::from_secs(cool_down),
            }
        }
    }

    /// A grant of 1,000 to 1,000,000 that is somewhere between its bounds.
    fn grant(granted: u64) -> Grant {
        Grant { base: 1000, most: 1_000_000, granted, changed: None }
    }

    proptest! {
        #[test]
        fn every_grant_stays_in_its_bounds(
            rules in any_rules(), looks in prop::collection::vec((0u64..2_000_000, 0.0..120.0f64, 1u64..400), 1..60),
        ) {
            let (mut grant, mut now) = (Grant::new(1000, 1_000_000), Instant::now());
            let mut last_free: Option<Instant> = None;
            for (used, percent, seconds) in looks {
                now += Duration::from_secs(seconds);
                let supply = rules.supply(&at(percent));
                let decision = grant.look(&rules, used, supply, now);
                prop_assert!((1000..=1_000_000).contains(&decision.granted));
                // Pressure wins, whatever is wanted.
                prop_assert!(supply.factor > 1.0 || decision.granted <= decision.before);
                if decision.is_change() {
                    let cooled = last_free.is_none_or(|then| now - then >= rules.cool_down);
                    prop_assert!(supply.critical || cooled);
                    prop_assert!(!supply.critical || decision.granted < decision.before);
                    last_free = Some(now);
                }
            }
        }

        #[test]
        fn more_pressure_never_grants_more_and_more_use_never_less(
            rules in any_rules(), granted in 1000u64..1_000_000,
            used in [0u64..1_000_000, 0..1_000_000], percent in [0.0..120.0f64, 0.0..120.0],
        ) {
            let now = Instant::now();
            let look = |used, percent: f64| grant(granted).look(&rules, used, rules.supply(&at(percent)), now).granted;
            let (low, high) = (percent[0].min(percent[1]), percent[0].max(percent[1]));
            prop_assert!(look(used[0], low) >= look(used[0], high));
            let (little, much) = (used[0].min(used[1]), used[0].max(used[1]));
            prop_assert!(look(much, low) >= look(little, low));
        }

        #[test]
        fn a_steady_load_comes_to_rest(
            rules in any_rules(), granted in 1000u64..1_000_000, used in 1000u64..1_000_000, percent in 0.0..120.0f64,
        ) {
            let (mut grant, mut now) = (grant(granted), Instant::now());
            let supply = rules.supply(&at(percent));
            let mut directions = Vec::new();
            // Each step is one vector or more, however near to 1 the factors are.
            for _ in 0..1_000_000 {
                now += rules.cool_down + Duration::from_secs(1);
                let decision = grant.look(&rules, used, supply, now);
                if !decision.is_change() {
                    break;
                }
                directions.push(decision.granted > decision.before);
            }
            directions.dedup();
            prop_assert!(directions.len() <= 1, "it grew and shrank: {directions:?}");
            prop_assert!(!grant.look(&rules, used, supply, now + rules.cool_down).is_change());
        }
    }
}
