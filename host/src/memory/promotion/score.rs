use crate::{
    config::{Memory, Weights, recency_after},
    store::{Candidate, Layer, Score},
};
use std::time::Duration;

/// The settings by which records are promoted.
#[derive(Clone, Debug)]
pub struct Policy {
    weights: Weights,
    /// Of interact and of insights.
    steps: [Step; 2],
    frequency_uses: f64,
    /// Share of its uses that a record takes along.
    carry: f64,
    /// How long records live, from interact to assets.
    lives: [Option<Duration>; 3],
    pub(super) sample: usize,
    pub(super) batch_size: usize,
    pub(super) max_moves: usize,
    pub(super) history: Duration,
    /// Tells settings that decide otherwise from these.
    pub(super) digest: [u8; 32],
}

/// What it takes to leave a layer.
#[derive(Clone, Copy, Debug)]
struct Step {
    threshold: f64,
    half_life: Option<Duration>,
    min_age: Duration,
}

/// A part of a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Share {
    /// What it is.
    pub name: &'static str,
    /// From 0 to 1.
    pub part: f64,
    /// What it counts, of 1 in all.
    pub weight: f64,
}

impl Policy {
    /// The settings of a configuration.
    pub fn new(memory: &Memory) -> Self {
        let settings = &memory.promotion;
        let (thresholds, half_lives, min_ages) =
            (settings.thresholds(), settings.half_lives(), memory.min_ages());
        let steps = [0, 1].map(|at| Step {
            threshold: thresholds[at],
            half_life: half_lives[at],
            min_age: min_ages[at],
        });
        let (weights, carry, lives) = (settings.weights, settings.carry, memory.lives());
        let decides = format!(
            "{weights:?} {steps:?} {} {carry} {lives:?} {}",
            settings.frequency_uses, settings.sample
        );
        Self {
            weights,
            steps,
            frequency_uses: settings.frequency_uses as f64,
            carry,
            lives,
            sample: settings.sample,
            batch_size: settings.batch_size,
            max_moves: settings.max_moves,
            history: Duration::from_secs(settings.history_days * 86_400),
            digest: *blake3::hash(decides.as_bytes()).as_bytes(),
        }
    }

    /// What a record of interact or insights deserves at `now_ms`.
    ///
    /// With weights that add up to 1 it is 1 less what is missing: `recency · (1 - R)` for the time since
    /// its last use, and `(1 - F) · (frequency + importance · (1 - I) + similarity · (1 - S))`, of which
    /// each use takes a share away. So importance and similarity are what a record begins with, and a
    /// record that is used again and again comes near to 1 whatever these are.
    pub fn score(&self, candidate: &Candidate, similarity: Option<f32>, now_ms: u64) -> Score {
        let idle = Duration::from_millis(now_ms.saturating_sub(candidate.last_access_ms));
        let half_life = self.step(candidate.layer).and_then(|step| step.half_life);
        let frequency = 1.0 - (-candidate.uses.max(0.0) / self.frequency_uses).exp();
        let proven = |said: f32| 1.0 - (1.0 - f64::from(said.clamp(0.0, 1.0))) * (1.0 - frequency);
        let mut score = Score {
            value: 0.0,
            recency: recency_after(idle, half_life),
            frequency,
            importance: proven(candidate.importance),
            similarity: similarity.map(proven),
        };
        let value: f64 = self.shares(&score).iter().map(|share| share.part * share.weight).sum();
        score.value = value.clamp(0.0, 1.0);
        score
    }

    /// The parts of a score and their weights, which add up to 1.
    pub fn shares(&self, score: &Score) -> Vec<Share> {
        let Weights { recency, frequency, importance, similarity } = self.weights;
        let mut shares = vec![
            Share { name: "recency", part: score.recency, weight: recency },
            Share { name: "frequency", part: score.frequency, weight: frequency },
            Share { name: "importance", part: score.importance, weight: importance },
        ];
        // Without a vector the others have its weight.
        shares.extend(score.similarity.map(|part| Share { name: "similarity", part, weight: similarity }));
        let sum: f64 = shares.iter().map(|share| share.weight).sum();
        shares.iter_mut().for_each(|share| share.weight /= sum);
        shares
    }

    /// The score at which records of a layer move on; none where there is nowhere to go.
    pub fn threshold(&self, layer: Layer) -> Option<f64> {
        Some(self.step(layer)?.threshold)
    }

    /// Whether a record has not been in its layer for long enough to move on.
    pub(super) fn is_young(&self, candidate: &Candidate, now_ms: u64) -> bool {
        let age = Duration::from_millis(now_ms.saturating_sub(candidate.since_ms));
        self.step(candidate.layer).is_some_and(|step| age < step.min_age)
    }

    /// The uses that a record takes along when it moves.
    pub(super) fn carried(&self, candidate: &Candidate) -> f64 {
        self.carry * candidate.uses.max(0.0)
    }

    /// When a record that comes to `layer` may be deleted: as what is stored there, and not before it could
    /// have been deleted without the move.
    pub(super) fn expiry(&self, candidate: &Candidate, layer: Layer, now_ms: u64) -> Option<u64> {
        let life = self.lives[layer as usize]?;
        let due = now_ms.saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX));
        Some(candidate.expires_ms?.max(due))
    }

    fn step(&self, layer: Layer) -> Option<&Step> {
        self.steps.get(layer as usize)
    }
}
