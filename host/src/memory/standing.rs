//! What ranks a record beside what it says: its document, its age and its use.
use super::Fused;
use crate::{
    config::recency_after,
    store::{Layer, RecordId, Standing},
};
use std::{collections::HashMap, time::Duration};

/// The factor of a record is between these.
const FACTORS: (f64, f64) = (0.3, 1.5);
/// Accesses that are worth half of what accesses can be worth.
const HALF_USED: f64 = 10.0;
/// Ages are counted in this part of a half-life, so that what was stored together is of the same age.
const AGE_STEPS: u32 = 16;
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
        let age_ms = now_ms.saturating_sub(used_ms);
        let half_life = self.half_lives[standing.layer as usize];
        let step_ms = half_life.map_or(1, |half_life| (half_life / AGE_STEPS).as_millis().max(1) as u64);
        let lost = 1.0 - recency_after(Duration::from_millis(age_ms - age_ms % step_ms), half_life);
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: u64 = 3_600_000;
    const FACTOR: RankFactor = RankFactor {
        age_weight: 0.4,
        access_weight: 0.2,
        half_lives: [Some(Duration::from_secs(3600)), Some(Duration::from_secs(3600 * 100)), None],
    };

    fn standing(id: i64, layer: Layer, created_ms: u64, access_count: u64) -> Standing {
        let (project, session, source) = (String::new(), None, None);
        Standing {
            id: RecordId(id),
            layer,
            project,
            session,
            source,
            created_ms,
            last_access_ms: created_ms,
            access_count,
        }
    }

    #[test]
    fn age_counts_half_after_a_half_life_of_the_layer() {
        let now = 1000 * HOUR;
        let of = |layer, age| FACTOR.of(&standing(1, layer, now - age, 0), now);
        assert_eq!((of(Layer::Interact, HOUR), of(Layer::Interact, 2 * HOUR)), (0.8, 0.7));
        assert_eq!(of(Layer::Insights, 100 * HOUR), 0.8);
        assert_eq!(of(Layer::Assets, 1000 * HOUR), 1.0);
        assert_eq!(of(Layer::Interact, 900 * HOUR), 0.6);
        // Seen of late is as good as new; stored in the future, by a clock that was wrong, too.
        let seen = Standing { last_access_ms: now, ..standing(1, Layer::Interact, 0, 0) };
        assert_eq!(FACTOR.of(&seen, now), 1.0);
        assert_eq!(FACTOR.of(&standing(1, Layer::Interact, now + HOUR, 0), now), 1.0);
    }

    #[test]
    fn what_was_stored_together_has_one_factor() {
        let now = 1000 * HOUR;
        let of = |ms| FACTOR.of(&standing(1, Layer::Insights, now - ms, 0), now);
        assert!((0..HOUR).step_by(60_000).all(|ms| of(ms) == 1.0));
    }

    #[test]
    fn use_counts_ever_less_and_weights_of_zero_turn_it_off() {
        let of = |factor: &RankFactor, accesses| factor.of(&standing(1, Layer::Assets, 0, accesses), 5);
        assert_eq!((of(&FACTOR, 0), of(&FACTOR, 10), of(&FACTOR, 30)), (1.0, 1.1, 1.15));
        let off = RankFactor { age_weight: 0.0, access_weight: 0.0, ..FACTOR };
        assert_eq!(off.of(&standing(1, Layer::Interact, 0, 1000), 1 << 40), 1.0);
    }

    fn found(scores: &[(i64, f32)]) -> Vec<Fused> {
        let fused =
            |&(id, score): &(i64, f32)| Fused { id: RecordId(id), score, keyword: None, vector: None };
        scores.iter().map(fused).collect()
    }

    fn in_sessions(sessions: &[(i64, Option<&str>)]) -> HashMap<RecordId, Standing> {
        let standing = |&(id, session): &(i64, Option<&str>)| {
            let session = session.map(str::to_owned);
            (RecordId(id), Standing { session, ..standing(id, Layer::Assets, 0, 0) })
        };
        sessions.iter().map(standing).collect()
    }

    #[test]
    fn a_record_among_others_that_answer_comes_before_one_alone() {
        let standings = in_sessions(&[(1, None), (2, Some("s")), (3, Some("s")), (4, None)]);
        let mut order = found(&[(1, 0.8), (2, 0.78), (3, 0.7), (4, 0.1)]);
        add_documents(&mut order, &standings, 0.5);
        let order: Vec<(i64, f32)> = order.iter().map(|fused| (fused.id.0, fused.score)).collect();
        assert_eq!(order.iter().map(|at| at.0).collect::<Vec<_>>(), [2, 3, 1, 4]);
        assert!((order[0].1 - (0.78 + 1.0) / 2.0).abs() < 1e-6);
        let mut nothing = found(&[(1, 0.0), (2, 0.0)]);
        add_documents(&mut nothing, &standings, 0.5);
        assert_eq!(nothing, found(&[(1, 0.0), (2, 0.0)]));
    }

    proptest! {
        #[test]
        fn a_factor_is_within_its_bounds(age_weight in 0.0f64..=1.0, access_weight in 0.0f64..=1.0, created in 0u64..1 << 45, accesses: u64, now in 0u64..1 << 45) {
            let factor = RankFactor { age_weight, access_weight, ..FACTOR };
            for layer in Layer::ALL {
                let is = factor.of(&standing(1, layer, created, accesses), now);
                prop_assert!((0.3..=1.5).contains(&is), "{is}");
            }
        }

        /// Records of no document, or all of one, keep their order, and scores stay within 0 and 1.
        #[test]
        fn documents_change_nothing_where_there_is_none_or_one(scores in prop::collection::vec(0.0f32..=1.0, 1..20), weight in 0.0f32..=1.0, one: bool) {
            let mut scores = scores;
            scores.sort_by(|a, b| b.total_cmp(a));
            let numbered: Vec<(i64, f32)> = (0..).zip(scores).collect();
            let sessions: Vec<_> = numbered.iter().map(|at| (at.0, one.then_some("s"))).collect();
            let mut order = found(&numbered);
            add_documents(&mut order, &in_sessions(&sessions), weight);
            prop_assert!(order.iter().all(|fused| (0.0..=1.0 + 1e-6).contains(&fused.score)));
            let before = |fused: &Fused| numbered[fused.id.0 as usize].1;
            prop_assert!(weight == 1.0 && one || order.is_sorted_by(|a, b| before(a) >= before(b) - 1e-6));
        }
    }
}
