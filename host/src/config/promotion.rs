//! `[memory.promotion]`: what moves a record to the next layer.

use super::{
    error::Problem,
    schema::Memory,
    tree::{Node, Origin},
    values::{Ttl, share, whole},
};
use serde::{Deserialize, Serialize};
use std::time::Duration;

const UNLIMITED: i64 = i64::MAX;
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(86_400);

/// How far a threshold must stay below the best score, so that some uses reach it and not endlessly many.
const MARGIN: f64 = 0.005;

/// `[memory.promotion]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Promotion {
    /// Whether records are promoted without being asked for.
    pub enabled: bool,
    /// What decides the zeros and the values `preset`, here and in the layers.
    pub preset: Preset,
    /// Score at which a record of interact moves on; 0 goes by the preset.
    #[serde(deserialize_with = "share")]
    pub interact_threshold: f64,
    /// The same for a record of insights.
    #[serde(deserialize_with = "share")]
    pub insights_threshold: f64,
    /// What the score is made of.
    pub weights: Weights,
    /// Time without use that halves the recency of a record of interact.
    pub interact_half_life: Ttl,
    /// The same for a record of insights.
    pub insights_half_life: Ttl,
    /// Uses that give 63 % of what uses can give.
    #[serde(deserialize_with = "whole::<1, 1000, _, _>")]
    pub frequency_uses: u64,
    /// Share of its uses that a record takes along to the next layer.
    #[serde(deserialize_with = "share")]
    pub carry: f64,
    /// Seconds that a record has to be in interact before it moves on.
    #[serde(deserialize_with = "whole::<0, 3_153_600_000, _, _>")]
    pub interact_min_age_seconds: u64,
    /// The same for insights.
    #[serde(deserialize_with = "whole::<0, 3_153_600_000, _, _>")]
    pub insights_min_age_seconds: u64,
    /// Records used last in a project that stand for what is used there.
    #[serde(deserialize_with = "whole::<0, 10_000, _, _>")]
    pub sample: usize,
    /// Seconds from cycle to cycle.
    #[serde(deserialize_with = "whole::<0, 31_536_000, _, _>")]
    pub every_seconds: u64,
    /// Records of one transaction.
    #[serde(deserialize_with = "whole::<1, 100_000, _, _>")]
    pub batch_size: usize,
    /// Records that one cycle moves at most.
    #[serde(deserialize_with = "whole::<1, UNLIMITED, _, _>")]
    pub max_moves: usize,
    /// Days for which moves can be explained and undone.
    #[serde(deserialize_with = "whole::<1, 36_500, _, _>")]
    pub history_days: u64,
}

/// `[memory.promotion.weights]`: how much each part counts, against the sum of all.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Weights {
    /// How lately it was used.
    #[serde(deserialize_with = "share")]
    pub recency: f64,
    /// How often.
    #[serde(deserialize_with = "share")]
    pub frequency: f64,
    /// What whoever stored it said.
    #[serde(deserialize_with = "share")]
    pub importance: f64,
    /// How near it is to what is used.
    #[serde(deserialize_with = "share")]
    pub similarity: f64,
}

/// What a memory is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Preset {
    /// A person's.
    Default,
    /// A server's, which keeps longer and promotes less.
    Production,
    /// A small one, which keeps shorter and promotes more.
    Minimal,
}

impl Preset {
    /// How long records of interact and of insights live.
    fn ttl(self) -> [Duration; 2] {
        match self {
            Self::Default => [DAY, 90 * DAY],
            Self::Production => [2 * DAY, 365 * DAY],
            Self::Minimal => [6 * HOUR, 7 * DAY],
        }
    }

    /// Half of the one, a third of the other: what was used at the beginning of a life counts little at its end.
    fn half_life(self) -> [Duration; 2] {
        let [interact, insights] = self.ttl();
        [interact / 2, insights / 3]
    }

    /// The default lies between the other two.
    fn threshold(self) -> [f64; 2] {
        match self {
            Self::Default => [0.8, 0.9],
            Self::Production => [0.85, 0.95],
            Self::Minimal => [0.7, 0.8],
        }
    }
}

impl Memory {
    /// How long records live, from interact to assets; `None` is for good.
    pub fn lives(&self) -> [Option<Duration>; 3] {
        let [interact, insights] = self.promotion.preset.ttl();
        let layers = &self.layers;
        [
            layers.interact.ttl.duration(Some(interact)),
            layers.insights.ttl.duration(Some(insights)),
            layers.assets.ttl.duration(None),
        ]
    }

    /// After how long a record's age counts half of what it can, from interact to assets; `None` is never.
    pub fn half_lives(&self) -> [Option<Duration>; 3] {
        let layers = [&self.layers.interact, &self.layers.insights, &self.layers.assets];
        let mut lives = self.lives().into_iter();
        layers.map(|layer| layer.half_life.duration(lives.next().flatten().map(|life| life / 2)))
    }

    /// How long records have to be in interact and in insights before they move on: no longer than half of
    /// their life there.
    pub fn min_ages(&self) -> [Duration; 2] {
        let [interact, insights, _] = self.lives();
        let promotion = &self.promotion;
        let bounded = |seconds, life: Option<Duration>| {
            Duration::from_secs(seconds).min(life.map_or(Duration::MAX, |life| life / 2))
        };
        [
            bounded(promotion.interact_min_age_seconds, interact),
            bounded(promotion.insights_min_age_seconds, insights),
        ]
    }
}

impl Promotion {
    /// Scores at which records of interact and of insights move on.
    pub fn thresholds(&self) -> [f64; 2] {
        let [interact, insights] = self.preset.threshold();
        let or = |given: f64, preset| if given > 0.0 { given } else { preset };
        [or(self.interact_threshold, interact), or(self.insights_threshold, insights)]
    }

    /// Times without use that halve the recency of records of interact and of insights; `None` for a
    /// recency that stays.
    pub fn half_lives(&self) -> [Option<Duration>; 2] {
        let [interact, insights] = self.preset.half_life();
        [self.interact_half_life.duration(Some(interact)), self.insights_half_life.duration(Some(insights))]
    }

    /// The score that a record of interact, and one of insights, comes near to when it is used again and
    /// again and a cycle looks `every_seconds` after the last time: with a vector or without, and
    /// whatever its importance.
    fn best_scores(&self) -> [f64; 2] {
        let weights = &self.weights;
        // Without a vector the weight of recency is greatest.
        let recency = weights.recency / (weights.recency + weights.frequency + weights.importance);
        let every = Duration::from_secs(self.every_seconds);
        self.half_lives().map(|half_life| 1.0 - recency * (1.0 - recency_after(every, half_life)))
    }
}

/// What is left of recency, 1 at the time of use: a half after each half-life.
pub fn recency_after(elapsed: Duration, half_life: Option<Duration>) -> f64 {
    let half_lives = |it: Duration| elapsed.as_secs_f64() / it.as_secs_f64().max(f64::MIN_POSITIVE);
    half_life.map_or(1.0, |half_life| (-half_lives(half_life)).exp2())
}

/// Settings by which a record that is used could never move on.
pub(super) fn unreachable(memory: &Memory, tree: &Node) -> Vec<Problem> {
    let promotion = &memory.promotion;
    let mut problems = Vec::new();
    let weights = &promotion.weights;
    if weights.recency + weights.frequency + weights.importance == 0.0 {
        let keys = [["weights", "recency"], ["weights", "frequency"], ["weights", "importance"]];
        let message = "one of 'recency', 'frequency' and 'importance' in [memory.promotion.weights] must be \
                       above 0: a record without a vector has no other part";
        problems.push(Problem::at(&blamed(tree, &keys.map(|key| path(&key))), message));
        return problems;
    }
    let layers = ["interact", "insights"];
    for (at, layer) in layers.into_iter().enumerate() {
        let (threshold, best) = (promotion.thresholds()[at], promotion.best_scores()[at]);
        let [threshold_key, half_life_key] = ["threshold", "half_life"].map(|what| format!("{layer}_{what}"));
        if threshold > best - MARGIN {
            let keys = [
                path(&[&threshold_key]),
                path(&[&half_life_key]),
                path(&["every_seconds"]),
                path(&["weights", "recency"]),
                path(&["weights", "frequency"]),
                path(&["weights", "importance"]),
                path(&["preset"]),
            ];
            let message = format!(
                "no record could leave {layer}: however often it is used, it comes to a score of {:.3} when a \
                 cycle looks 'every_seconds' ({}) after its last use, and '{threshold_key}' is {threshold}; \
                 lower that, 'every_seconds' or the weight of recency, or raise '{half_life_key}'",
                best - MARGIN,
                promotion.every_seconds,
            );
            problems.push(Problem::at(&blamed(tree, &keys), message));
        }
    }
    problems
}

fn path(key: &[&str]) -> Vec<String> {
    ["memory", "promotion"].iter().chain(key).map(|&key| key.to_owned()).collect()
}

/// Where the first of these keys that is no default was set.
fn blamed(tree: &Node, keys: &[Vec<String>]) -> Origin {
    let origins = keys.iter().filter_map(|key| tree.get(key)).map(|node| &node.origin);
    origins.into_iter().find(|&origin| *origin != Origin::Default).cloned().unwrap_or(Origin::Default)
}
