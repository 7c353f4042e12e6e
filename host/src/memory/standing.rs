//! What ranks a record beside what it says: its document, its age and its use.
use super::Fused;
use crate::store::{Layer, RecordId, Standing};
use std::{collections::HashMap, time::Duration};

/// The factor of a record is between these.
const FACTORS: (f64, f64) = (0.3, 1.5);
/// Accesses that are worth half of what accesses can be worth.
const HALF_USED: f64 = 10.0;
/// Ages are counted in this part of a half-life, so that what was stored together is of the same age.
const AGE_STEPS: f64 = 16.0;
/// What a record counts for its document, after each better one of the same.
const NEXT_OF_DOCUMENT: f32 = 0.5;

/// How age and use change the rank of a record.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RankFactor {
    /// What a record loses by its age, at most; 0 turns it off.
    pub age_weight: f64,
    /// What it gains by its use, at most; 0 turns it off.
    pub access_weight: f64,
    /// By layer in the order of [`Layer::ALL`], after how long half of that is lost; `None` for never.
    pub half_lives: [Option<Duration>; Layer::ALL.len()],
}

impl RankFactor {
    /// What the score of a record is multiplied by, 0.3 to 1.5; 1 for one that is new or was just used, and was
    /// never found before.
    pub fn of(&self, standing: &Standing, now_ms: u64) -> f32 {
        let used_ms = standing.created_ms.max(standing.last_access_ms);
        let age_ms = now_ms.saturating_sub(used_ms) as f64;
        let lost = self.half_lives[standing.layer as usize].map_or(0.0, |half_life| {
            let half_lives = (age_ms * AGE_STEPS / (half_life.as_millis().max(1) as f64)).floor() / AGE_STEPS;
            1.0 - 0.5_f64.powf(half_lives)
        });
        let accesses = standing.access_count as f64;
        let used = accesses / (accesses + HALF_USED);
        let factor = (1.0 - self.age_weight * lost) * (1.0 + self.access_weight * used);
        factor.clamp(FACTORS.0, FACTORS.1) as f32
    }
}

/// Gives each record the share `weight` of the score of its document, which is its session or else its file:
/// what its records say together, the best one most. `found` is best first; the greatest score stays 1.
pub fn add_documents(found: &mut [Fused], standings: &HashMap<RecordId, Standing>, weight: f32) {
    let mut documents: HashMap<(&str, &str), (f32, f32)> = HashMap::new();
    let mut together = Vec::with_capacity(found.len());
    for fused in found.iter() {
        let Some(document) = standings.get(&fused.id).and_then(Standing::document) else { continue };
        let (sum, next) = documents.entry(document).or_insert((0.0, 1.0));
        *sum += fused.score * *next;
        *next *= NEXT_OF_DOCUMENT;
    }
    for fused in found.iter() {
        let document = standings.get(&fused.id).and_then(Standing::document);
        together
            .push(document.and_then(|document| documents.get(&document)).map_or(fused.score, |sum| sum.0));
    }
    let greatest = together.iter().copied().fold(0.0, f32::max);
    if greatest > 0.0 {
        for (fused, together) in found.iter_mut().zip(together) {
            fused.score += weight * (together / greatest - fused.score);
        }
    }
    found.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
}
