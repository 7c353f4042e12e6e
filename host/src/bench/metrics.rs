//! Figures of quality, by the conventions that published ones follow.
use serde::{Deserialize, Serialize};

/// Rank correlation of two series: Pearson's of their ranks, where equal values share the mean of theirs.
pub(super) fn spearman(a: &[f64], b: &[f64]) -> f64 {
    pearson(&ranks(a), &ranks(b))
}

fn ranks(values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| values[a].total_cmp(&values[b]));
    let mut ranks = vec![0.0; values.len()];
    let mut from = 0;
    for equal in order.chunk_by(|&a, &b| values[a] == values[b]) {
        let mean = from as f64 + (equal.len() as f64 + 1.0) / 2.0;
        equal.iter().for_each(|&at| ranks[at] = mean);
        from += equal.len();
    }
    ranks
}

fn pearson(a: &[f64], b: &[f64]) -> f64 {
    let mean = |values: &[f64]| values.iter().sum::<f64>() / values.len() as f64;
    let (mean_a, mean_b) = (mean(a), mean(b));
    let (mut ab, mut aa, mut bb) = (0.0, 0.0, 0.0);
    for (a, b) in a.iter().zip(b) {
        let (a, b) = (a - mean_a, b - mean_b);
        ab += a * b;
        aa += a * a;
        bb += b * b;
    }
    ab / (aa * bb).sqrt()
}

/// How deep a ranking is looked at.
pub(super) const DEPTH: usize = 100;

/// How good rankings are; the mean over questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Ranking {
    pub ndcg_10: f64,
    pub recall_5: f64,
    pub recall_10: f64,
    pub recall_100: f64,
    pub mrr_10: f64,
}

impl Ranking {
    /// Of one question. `found` has the relevance of each of the first [`DEPTH`] documents, 0 where it was not
    /// judged; `relevant` that of every relevant one, at least one. As trec_eval does it: linear gain, discount
    /// by the logarithm of the rank.
    pub(super) fn of(found: &[u32], relevant: &[u32]) -> Self {
        let gain = |grades: &mut dyn Iterator<Item = u32>| -> f64 {
            grades.take(10).zip(2_u32..).map(|(grade, rank)| f64::from(grade) / f64::from(rank).log2()).sum()
        };
        let mut ideal = relevant.to_vec();
        ideal.sort_unstable_by(|a, b| b.cmp(a));
        let hits = |depth: usize| found.iter().take(depth).filter(|&&grade| grade > 0).count() as f64;
        let first = found.iter().take(10).position(|&grade| grade > 0);
        Self {
            ndcg_10: gain(&mut found.iter().copied()) / gain(&mut ideal.into_iter()),
            recall_5: hits(5) / relevant.len() as f64,
            recall_10: hits(10) / relevant.len() as f64,
            recall_100: hits(DEPTH) / relevant.len() as f64,
            mrr_10: first.map_or(0.0, |at| 1.0 / (at as f64 + 1.0)),
        }
    }

    pub(super) fn mean(of: &[Self]) -> Self {
        let mean = |value: fn(&Self) -> f64| of.iter().map(value).sum::<f64>() / of.len() as f64;
        Self {
            ndcg_10: mean(|r| r.ndcg_10),
            recall_5: mean(|r| r.recall_5),
            recall_10: mean(|r| r.recall_10),
            recall_100: mean(|r| r.recall_100),
            mrr_10: mean(|r| r.mrr_10),
        }
    }
}

/// For each question the [`DEPTH`] documents of the highest inner product, best first, by their rows. `documents`
/// and `questions` are `[n, dim]` row-major. Of equal ones the higher id comes first, as in trec_eval. Exact.
pub(super) fn nearest(dim: usize, questions: &[f32], documents: &[f32], ids: &[&str]) -> Vec<Vec<usize>> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let count = questions.len() / dim;
    let rank = |question: &[f32]| {
        let mut scored: Vec<(f32, usize)> =
            documents.chunks_exact(dim).map(|document| dot(question, document)).zip(0..).collect();
        let better =
            |a: &(f32, usize), b: &(f32, usize)| b.0.total_cmp(&a.0).then_with(|| ids[b.1].cmp(ids[a.1]));
        if scored.len() > DEPTH {
            scored.select_nth_unstable_by(DEPTH, better);
            scored.truncate(DEPTH);
        }
        scored.sort_by(better);
        scored.into_iter().map(|(_, row)| row).collect::<Vec<_>>()
    };
    std::thread::scope(|scope| {
        let parts = questions.chunks(count.div_ceil(threads).max(1) * dim);
        let workers: Vec<_> = parts
            .map(|part| scope.spawn(move || part.chunks_exact(dim).map(rank).collect::<Vec<_>>()))
            .collect();
        workers
            .into_iter()
            .flat_map(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}

/// Inner product, in eight sums that the compiler can keep in one register.
pub(super) fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 8];
    let (a, b) = (a.chunks_exact(8), b.chunks_exact(8));
    let rest: f32 = a.remainder().iter().zip(b.remainder()).map(|(a, b)| a * b).sum();
    for (a, b) in a.zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    sums.iter().sum::<f32>() + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spearman_sees_only_order_and_shares_ranks() {
        assert!((spearman(&[1.0, 2.0, 3.0], &[1.0, 10.0, 11.0]) - 1.0).abs() < 1e-12);
        assert!((spearman(&[1.0, 2.0, 3.0], &[3.0, 2.0, 1.0]) + 1.0).abs() < 1e-12);
        assert_eq!(ranks(&[5.0, 1.0, 5.0, 7.0]), [2.5, 1.0, 2.5, 4.0]);
        // Ranks 1, 2.5, 2.5, 4, 5 and 2, 1, 3, 4.5, 4.5: covariance 7.5 over variances 9.5 and 9.5.
        let with_ties = spearman(&[1.0, 2.0, 2.0, 4.0, 5.0], &[2.0, 1.0, 3.0, 5.0, 5.0]);
        assert!((with_ties - 7.5 / 9.5).abs() < 1e-12, "{with_ties}");
    }

    #[test]
    fn a_ranking_is_scored_as_trec_eval_does() {
        // Grades 1 at rank 2 and 2 at rank 4, of three relevant documents with grades 2, 1 and 1:
        // DCG 1/log2(3) + 2/log2(5), ideal 2/log2(2) + 1/log2(3) + 1/log2(4).
        let score = Ranking::of(&[0, 1, 0, 2], &[1, 2, 1]);
        let dcg = 1.0 / 3_f64.log2() + 2.0 / 5_f64.log2();
        let ideal = 2.0 + 1.0 / 3_f64.log2() + 0.5;
        assert!((score.ndcg_10 - dcg / ideal).abs() < 1e-12);
        assert_eq!((score.recall_5, score.recall_10, score.mrr_10), (2.0 / 3.0, 2.0 / 3.0, 0.5));
    }

    #[test]
    fn what_stands_below_the_cut_counts_for_the_deeper_figures_only() {
        let mut found = vec![0; DEPTH];
        found[10] = 1;
        let score = Ranking::of(&found, &[1]);
        assert_eq!(
            score,
            Ranking { ndcg_10: 0.0, recall_5: 0.0, recall_10: 0.0, recall_100: 1.0, mrr_10: 0.0 }
        );
        assert_eq!(Ranking::mean(&[score, Ranking::of(&[1], &[1])]).ndcg_10, 0.5);
        let relevant = vec![1; 20];
        assert_eq!(Ranking::of(&relevant, &relevant).ndcg_10, 1.0);
    }

    #[test]
    fn nearest_is_exact_and_breaks_ties_by_id() {
        let documents = [1.0, 0.0, 0.0, 1.0, 1.0, 0.0, 0.6, 0.8];
        let found = nearest(2, &[1.0, 0.0, 0.0, 1.0], &documents, &["a", "b", "c", "d"]);
        assert_eq!(found, [[2, 0, 3, 1], [1, 3, 2, 0]]);
    }

    #[test]
    fn only_the_best_are_kept_of_many() {
        let documents: Vec<f32> = (0..500).map(|i| ((i * 37) % 500) as f32).collect();
        let ids: Vec<String> = (0..500).map(|i| format!("{i:03}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let found = nearest(1, &[1.0], &documents, &ids);
        let values: Vec<f32> = found[0].iter().map(|&row| documents[row]).collect();
        let wanted: Vec<f32> = (400..500).rev().map(|i| i as f32).collect();
        assert_eq!(values, wanted);
    }

    #[test]
    fn dot_is_the_inner_product_of_any_width() {
        for width in [1, 7, 8, 9, 31] {
            let a: Vec<f32> = (0..width).map(|i| i as f32).collect();
            let wanted: f32 = a.iter().map(|v| v * v).sum();
            assert_eq!(dot(&a, &a), wanted);
        }
    }
}
