//! What two legs of a search found, as one list.
use crate::store::RecordId;
use serde::Serialize;
use std::collections::BTreeMap;

/// Damps the first ranks of reciprocal rank fusion: Cormack, Clarke and Büttcher, SIGIR 2009.
const RRF_K: f32 = 60.0;

/// How scores of two legs are joined.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fusion {
    /// `keyword_weight` times the keyword score and the rest of 1 times the vector score, each brought to 0..=1 by
    /// the least and the greatest of its leg: Bruch, Gai and Ingber, TOIS 2023.
    Convex {
        /// 0 to 1.
        keyword_weight: f32,
    },
    /// The sum of `1 / (60 + rank)`, brought to 0..=1 by what first in both legs would have.
    Rrf,
}

/// What one leg says of a record.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct LegScore {
    /// From 1, among the candidates of both legs.
    pub rank: usize,
    /// Cosine, or BM25.
    pub score: f32,
}

/// A record that a leg found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fused {
    /// The record.
    pub id: RecordId,
    /// 0 to 1, and 1 for what is best in every leg.
    pub score: f32,
    /// What the keyword leg says, where it found it.
    pub keyword: Option<LegScore>,
    /// What the vector leg says, where it found it.
    pub vector: Option<LegScore>,
}

/// Joins what two legs found, each best first and each record once; best first, and of equals the older one.
pub fn fuse(fusion: Fusion, keyword: &[(RecordId, f32)], vector: &[(RecordId, f32)]) -> Vec<Fused> {
    let mut all: BTreeMap<RecordId, Fused> = BTreeMap::new();
    let mut add = |leg: &[(RecordId, f32)],
                   share: &dyn Fn(usize, f32) -> f32,
                   of: fn(&mut Fused) -> &mut Option<LegScore>| {
        for (&(id, score), rank) in leg.iter().zip(1..) {
            let fused = all.entry(id).or_insert(Fused { id, score: 0.0, keyword: None, vector: None });
            fused.score += share(rank, score);
            *of(fused) = Some(LegScore { rank, score });
        }
    };
    let rrf = |rank: usize, _: f32| (RRF_K + 1.0) / (RRF_K + rank as f32) / 2.0;
    match fusion {
        Fusion::Convex { keyword_weight } => {
            // No words in common is a keyword score of 0, so that is its least.
            let keyword_share = normalised(keyword, 0.0);
            let vector_share = normalised(vector, vector.last().map_or(0.0, |last| last.1));
            add(keyword, &|_, score| keyword_weight * keyword_share(score), |fused| &mut fused.keyword);
            add(vector, &|_, score| (1.0 - keyword_weight) * vector_share(score), |fused| &mut fused.vector);
        }
        Fusion::Rrf => {
            add(keyword, &rrf, |fused| &mut fused.keyword);
            add(vector, &rrf, |fused| &mut fused.vector);
        }
    }
    let mut all: Vec<Fused> = all.into_values().collect();
    all.sort_by(|a, b| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id)));
    all
}

/// Brings scores to 0..=1; where all are the same, to 1.
fn normalised(leg: &[(RecordId, f32)], least: f32) -> impl Fn(f32) -> f32 {
    let greatest = leg.first().map_or(0.0, |first| first.1);
    let width = greatest - least;
    move |score| if width > 0.0 { ((score - least) / width).clamp(0.0, 1.0) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const CONVEX: Fusion = Fusion::Convex { keyword_weight: 0.5 };

    fn leg(scores: &[(i64, f32)]) -> Vec<(RecordId, f32)> {
        scores.iter().map(|&(id, score)| (RecordId(id), score)).collect()
    }

    fn scores(fusion: Fusion, keyword: &[(i64, f32)], vector: &[(i64, f32)]) -> Vec<(i64, f32)> {
        fuse(fusion, &leg(keyword), &leg(vector)).iter().map(|fused| (fused.id.0, fused.score)).collect()
    }

    #[test]
    fn a_convex_sum_is_of_scores_between_the_least_and_the_greatest_of_a_leg() {
        let found = scores(CONVEX, &[(1, 8.0), (2, 2.0)], &[(2, 1.0), (3, 0.5), (1, 0.0)]);
        assert_eq!(found, [(2, 0.625), (1, 0.5), (3, 0.25)]);
        let weighted = Fusion::Convex { keyword_weight: 1.0 };
        assert_eq!(scores(weighted, &[(1, 8.0), (2, 2.0)], &[(2, 0.9)]), [(1, 1.0), (2, 0.25)]);
    }

    #[test]
    fn ranks_are_fused_by_their_reciprocals() {
        let found = scores(Fusion::Rrf, &[(1, 8.0), (2, 2.0)], &[(1, 0.9), (3, 0.5)]);
        assert_eq!(found, [(1, 1.0), (2, 61.0 / 124.0), (3, 61.0 / 124.0)]);
    }

    #[test]
    fn one_leg_alone_keeps_its_order_and_one_candidate_is_the_best() {
        for fusion in [CONVEX, Fusion::Rrf] {
            let ids = |found: Vec<(i64, f32)>| found.into_iter().map(|(id, _)| id).collect::<Vec<_>>();
            assert_eq!(ids(scores(fusion, &[(3, 5.0), (1, 4.0)], &[])), [3, 1]);
            assert_eq!(ids(scores(fusion, &[], &[(3, 0.2), (1, -0.4)])), [3, 1]);
            assert_eq!(scores(fusion, &[(1, 3.0)], &[(1, -0.2)]), [(1, 1.0)]);
            assert_eq!(scores(fusion, &[], &[]), []);
        }
        // Equals: the older record first.
        assert_eq!(scores(CONVEX, &[(2, 1.0), (5, 1.0)], &[(5, 0.3), (2, 0.3)]), [(2, 1.0), (5, 1.0)]);
    }

    fn any_leg() -> impl Strategy<Value = Vec<(RecordId, f32)>> {
        prop::collection::btree_map(0i64..30, prop_oneof![Just(0.0f32), -1.0f32..1.0, 0.0f32..40.0], 0..20)
            .prop_map(|scores| {
                let mut leg: Vec<_> = scores.into_iter().map(|(id, score)| (RecordId(id), score)).collect();
                leg.sort_by(|a, b| b.1.total_cmp(&a.1));
                leg
            })
    }

    proptest! {
        /// Each record that a leg found is there once, with what the legs said, at a score of 0 to 1; what is
        /// better in one leg and no worse in the other is not behind.
        #[test]
        fn nothing_is_lost_and_better_is_not_behind(keyword in any_leg(), vector in any_leg(), weight in 0.0f32..=1.0, rrf: bool) {
            let keyword: Vec<_> = keyword.into_iter().filter(|hit| hit.1 >= 0.0).collect();
            let fusion = if rrf { Fusion::Rrf } else { Fusion::Convex { keyword_weight: weight } };
            let fused = fuse(fusion, &keyword, &vector);
            let mut ids: Vec<RecordId> = keyword.iter().chain(&vector).map(|hit| hit.0).collect();
            ids.sort();
            ids.dedup();
            prop_assert_eq!(fused.len(), ids.len());
            for at in &fused {
                prop_assert!((0.0..=1.0 + 1e-6).contains(&at.score), "{:?}", at);
                let said = |leg: &[(RecordId, f32)]| leg.iter().position(|hit| hit.0 == at.id).map(|n| LegScore { rank: n + 1, score: leg[n].1 });
                prop_assert_eq!((at.keyword, at.vector), (said(&keyword), said(&vector)));
            }
            prop_assert!(fused.is_sorted_by(|a, b| a.score > b.score || (a.score == b.score && a.id < b.id)));
            let share = |leg: Option<LegScore>| leg.map_or(0.0, |leg| if rrf { 1.0 / leg.rank as f32 } else { leg.score });
            for (n, a) in fused.iter().enumerate() {
                for b in &fused[n + 1..] {
                    let both = a.keyword.is_some() && b.keyword.is_some() && a.vector.is_some() && b.vector.is_some();
                    let b_is_better = share(b.keyword) > share(a.keyword) && share(b.vector) > share(a.vector);
                    prop_assert!(!(both && b_is_better) || a.score - b.score < 1e-6, "{a:?} {b:?}");
                }
            }
        }
    }
}
