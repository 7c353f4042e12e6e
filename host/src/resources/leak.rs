//! Whether memory grows that should not: a function of the samples that it is given.
//!
//! Of the memory that the process allocated, what is explained is taken off: what a cache holds within its grant, what
//! an index holds of the vectors that it has. The rest should stay where it was when the process had warmed up. It
//! leaks where, over a window of time, it only rises and does not come back: the least of the window's second half is
//! above the baseline by a threshold, both halves rise, and it never fell by much on the way. So a saw-tooth, a step,
//! and noise are no leak.
//!
//! Slopes are Theil-Sen's (the median of the slopes of all pairs), which outliers do not move.
use serde::Serialize;
use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

/// Samples of the baseline, and the least in each half of a window.
const BASE: usize = 5;
/// Share of the pairs of a half that must rise: with a step in its middle and noise beside it three of four do, give or
/// take, and the slowest leak that counts has more than nine of ten.
const RISING: f64 = 0.88;
/// Samples of a window at most: all pairs of them are compared.
const MOST: f64 = 500.0;
/// Growth below this is no leak, however small the process is.
const LEAST: f64 = 16.0 * 1024.0 * 1024.0;
/// Where nobody says whose memory it is.
const UNACCOUNTED: &str = "unaccounted";

/// The thresholds, `[memory.resource_manager]` in the configuration.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LeakRules {
    /// Growth over the baseline, in percent of it.
    pub growth_percent: f64,
    /// How long the process warms up.
    pub warm_up: Duration,
    /// Over how long it must grow.
    pub window: Duration,
}

/// What a component holds, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holding {
    /// All of it.
    pub bytes: u64,
    /// So much may be, by what it was given to hold.
    pub explained: u64,
}

impl Holding {
    fn expected(self) -> u64 {
        self.bytes.min(self.explained)
    }
}

/// Something grows.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Leak {
    /// The component whose growth it is; `unaccounted` where none tells of it.
    pub suspect: String,
    /// Bytes over the baseline.
    pub growth: u64,
    /// How fast.
    pub bytes_per_hour: u64,
    /// What to do.
    pub advice: String,
}

struct Sample {
    seconds: f64,
    unexplained: f64,
    components: BTreeMap<String, f64>,
}

/// Watches one process.
#[expect(missing_debug_implementations, reason = "a list of numbers")]
pub struct LeakDetector {
    rules: LeakRules,
    start: Option<Instant>,
    baseline: Vec<f64>,
    samples: VecDeque<Sample>,
}

impl LeakDetector {
    /// Has seen nothing yet. The warm-up begins with the first sample.
    pub fn new(rules: LeakRules) -> Self {
        Self { rules, start: None, baseline: Vec::new(), samples: VecDeque::new() }
    }

    /// Takes a sample: `anonymous` bytes are allocated, of which the components tell of some. Returns the leak that
    /// there is by now.
    pub fn observe(
        &mut self,
        now: Instant,
        anonymous: u64,
        components: &BTreeMap<String, Holding>,
    ) -> Option<Leak> {
        let start = *self.start.get_or_insert(now);
        let age = now.saturating_duration_since(start);
        if age < self.rules.warm_up {
            return None;
        }
        let expected: u64 = components.values().map(|holding| holding.expected()).sum();
        let unexplained = anonymous.saturating_sub(expected) as f64;
        if self.baseline.len() < BASE {
            self.baseline.push(unexplained);
        }
        let (seconds, window) = (age.as_secs_f64(), self.rules.window.as_secs_f64());
        if self.samples.back().is_none_or(|last| seconds - last.seconds >= window / MOST) {
            let told = components
                .iter()
                .map(|(name, holding)| (name.clone(), (holding.bytes - holding.expected()) as f64));
            self.samples.push_back(Sample { seconds, unexplained, components: told.collect() });
        }
        // One older than the window stays, so that the rest of them cover it.
        while self.samples.get(1).is_some_and(|second| seconds - second.seconds >= window) {
            self.samples.pop_front();
        }
        let covered = self.samples.front().is_some_and(|first| seconds - first.seconds >= window);
        if covered { self.judge() } else { None }
    }

    fn judge(&self) -> Option<Leak> {
        let total: Vec<(f64, f64)> =
            self.samples.iter().map(|sample| (sample.seconds, sample.unexplained)).collect();
        let (first, second) = total.split_at(total.len() / 2);
        let baseline = median(self.baseline.clone());
        let floor = second.iter().map(|point| point.1).fold(f64::INFINITY, f64::min);
        let growth = floor - baseline;
        if growth < LEAST.max(baseline * self.rules.growth_percent / 100.0) {
            return None;
        }
        let (mut highest, mut fall) = (f64::MIN, 0.0_f64);
        for &(_, bytes) in &total {
            highest = highest.max(bytes);
            fall = fall.max(highest - bytes);
        }
        if fall > (total[total.len() - 1].1 - total[0].1) / 2.0 {
            return None;
        }
        if first.len() < BASE || !rises(first) || !rises(second) {
            return None;
        }
        let slope = slope(&total);
        let names = self.samples.back().map(|sample| sample.components.keys());
        let slopes = names.into_iter().flatten().map(|name| (name, self.slope_of(name)));
        let steepest = slopes.max_by(|a, b| a.1.total_cmp(&b.1));
        // Who explains half of it is the first to look at.
        let suspect = steepest.filter(|(_, own)| *own >= slope / 2.0);
        let suspect = suspect.map_or(UNACCOUNTED, |(name, _)| name.as_str()).to_owned();
        let advice = advice(&suspect);
        Some(Leak { suspect, growth: growth as u64, bytes_per_hour: (slope * 3600.0) as u64, advice })
    }

    fn slope_of(&self, name: &str) -> f64 {
        let points =
            self.samples.iter().map(|sample| (sample.seconds, *sample.components.get(name).unwrap_or(&0.0)));
        slope(&points.collect::<Vec<_>>())
    }
}

fn advice(suspect: &str) -> String {
    match suspect.split_once(' ') {
        Some(("embedder", profile)) => format!(
            "choose another backend than '{profile}' (ai.embedding.profile), or restart from time to time, and tell the \
             author of its plugin (`magray plugin list`)"
        ),
        Some(("index", _)) => "choose another index (memory.index.profile), or restart from time to time, and tell the \
             author of its plugin (`magray plugin list`)"
            .to_owned(),
        _ if suspect == "cache policy" => "choose another policy (memory.cache.profile), and tell the author of its \
             plugin (`magray plugin list`)"
            .to_owned(),
        _ => "restart the program when it is convenient; a plugin that does not tell of its memory is the likeliest \
             cause: try without those that you added (`magray plugin list`)"
            .to_owned(),
    }
}

fn pairs(points: &[(f64, f64)]) -> impl Iterator<Item = f64> + '_ {
    let later = |at: usize| points[at + 1..].iter();
    (0..points.len()).flat_map(move |at| {
        later(at)
            .filter(move |b| b.0 > points[at].0)
            .map(move |b| (b.1 - points[at].1) / (b.0 - points[at].0))
    })
}

/// Theil-Sen's slope: Sen, "Estimates of the regression coefficient based on Kendall's tau", 1968. 0 of fewer than two
/// points.
pub(crate) fn slope(points: &[(f64, f64)]) -> f64 {
    median(pairs(points).collect())
}

fn rises(points: &[(f64, f64)]) -> bool {
    let (mut up, mut all) = (0, 0);
    for slope in pairs(points) {
        up += u32::from(slope > 0.0);
        all += 1;
    }
    f64::from(up) > RISING * f64::from(all)
}

/// 0 of nothing.
fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_by(f64::total_cmp);
    numbers.get(numbers.len() / 2).copied().unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MIB: f64 = 1024.0 * 1024.0;
    /// Samples of a run: half a minute each, ten minutes of warm-up, windows of half an hour.
    const SAMPLES: usize = 240;
    const RULES: LeakRules = LeakRules {
        growth_percent: 20.0,
        warm_up: Duration::from_secs(600),
        window: Duration::from_secs(1800),
    };

    /// Noise from -1 to 1 that looks random.
    fn noise(seed: u64, at: usize) -> f64 {
        let mut x = (seed + at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x = (x ^ (x >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        ((x >> 11) as f64) / (1u64 << 52) as f64 - 1.0
    }

    /// What each component holds, and may hold, at a sample; in bytes.
    type Told<'a> = &'a dyn Fn(usize) -> Vec<(&'static str, f64, f64)>;

    /// The leaks that are seen where `anonymous` bytes are allocated.
    fn leaks(anonymous: &dyn Fn(usize) -> f64, told: Told<'_>) -> Vec<Leak> {
        let (start, mut detector) = (Instant::now(), LeakDetector::new(RULES));
        let look = |at: usize| {
            let holding = |(name, bytes, explained): (&str, f64, f64)| {
                (name.to_owned(), Holding { bytes: bytes as u64, explained: explained as u64 })
            };
            let components = told(at).into_iter().map(holding).collect();
            detector.observe(start + Duration::from_secs(30 * at as u64), anonymous(at) as u64, &components)
        };
        (0..SAMPLES).filter_map(look).collect()
    }

    #[test]
    fn looks_at_every_second_are_no_more_samples_than_can_be_compared() {
        let (start, mut detector) = (Instant::now(), LeakDetector::new(RULES));
        let mut look = |second: u64| {
            let anonymous = 100 * (MIB as u64) + second * 100_000;
            let leak = detector.observe(start + Duration::from_secs(second), anonymous, &BTreeMap::new());
            (leak, detector.samples.len())
        };
        let looks: Vec<_> = (0..2410).map(&mut look).collect();
        assert!(looks.iter().all(|(_, samples)| *samples as f64 <= MOST + 2.0));
        assert!(looks[2409].0.is_some());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        #[test]
        fn a_leak_is_found_and_its_component_named(
            seed: u64, base in 50.0..2000.0f64, rate in 0.5..8.0f64, of_noise in 0.0..4.0f64, silent: bool,
        ) {
            // A share of the process that grows by so much in a window is seen in time.
            let rate = rate * base / 200.0 + 0.5;
            let held = |at: usize| rate * at as f64 * MIB;
            let anonymous = |at: usize| base * MIB + held(at) + of_noise * noise(seed, at) * MIB;
            let told = |at: usize| vec![
                ("embedder bad", if silent { 9.0 * MIB } else { held(at) }, 0.0),
                ("index insights", (5.0 + noise(seed ^ 7, at)) * MIB, 4.0 * MIB),
                ("cached embeddings", 20.0 * MIB, 30.0 * MIB),
            ];
            let found = leaks(&anonymous, &told);
            prop_assert!(!found.is_empty());
            let suspect = if silent { UNACCOUNTED } else { "embedder bad" };
            for leak in &found {
                prop_assert_eq!(&leak.suspect, suspect);
                let per_hour = rate * 120.0 * MIB;
                prop_assert!((leak.bytes_per_hour as f64 / per_hour - 1.0).abs() < 0.2, "{:?} {}", leak, per_hour);
            }
        }

        #[test]
        fn noise_is_no_leak(seed: u64, base in 20.0..2000.0f64, of_noise in 0.0..0.5f64) {
            let anonymous = |at: usize| base * MIB * (1.0 + of_noise * noise(seed, at));
            prop_assert_eq!(leaks(&anonymous, &|_| Vec::new()), []);
        }

        #[test]
        fn a_saw_tooth_is_no_leak(
            seed: u64, base in 20.0..500.0f64, tooth in 1.0..2000.0f64, period in 2usize..58, shift in 0usize..58,
        ) {
            let anonymous = |at: usize| {
                let risen = ((at + shift) % period) as f64 / period as f64;
                (base + tooth * risen + 0.01 * tooth * noise(seed, at)) * MIB
            };
            prop_assert_eq!(leaks(&anonymous, &|_| Vec::new()), []);
        }

        #[test]
        fn a_step_is_no_leak(
            seed: u64, base in 20.0..500.0f64, steps in prop::collection::vec((0usize..SAMPLES, -100.0..900.0f64), 0..3),
        ) {
            let anonymous = |at: usize| {
                let risen: f64 = steps.iter().filter(|(from, _)| at >= *from).map(|(_, by)| by).sum();
                (base + risen.max(0.0) + noise(seed, at)) * MIB
            };
            prop_assert_eq!(leaks(&anonymous, &|_| Vec::new()), []);
        }

        #[test]
        fn what_fills_a_cache_or_is_stored_is_no_leak(seed: u64, rate in 1.0..40.0f64, granted in 10.0..4000.0f64) {
            let cached = |at: usize| (rate * at as f64).min(granted) * MIB;
            let indexed = |at: usize| 3.0 * rate * at as f64 * MIB;
            let anonymous = |at: usize| 100.0 * MIB + cached(at) + indexed(at) + noise(seed, at) * MIB;
            let told = |at: usize| vec![
                ("cached embeddings", cached(at), granted * MIB),
                ("index insights", indexed(at), 1.2 * indexed(at)),
            ];
            prop_assert_eq!(leaks(&anonymous, &told), []);
        }
    }

    #[test]
    fn a_leak_that_ends_is_no_leak_any_more() {
        let anonymous = |at: usize| (100.0 + 2.0 * at.min(120) as f64) * MIB;
        let found = leaks(&anonymous, &|_| Vec::new());
        // From when it is over the threshold in a whole window, until half of that is flat.
        assert!((20..90).contains(&found.len()), "{}", found.len());
        assert!(found.iter().all(|leak| leak.advice.contains("plugin")));
    }
}
