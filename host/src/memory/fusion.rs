//! What two legs of a search found, as one list.
use crate::store::RecordId;
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
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LegScore {
    /// From 1.
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
