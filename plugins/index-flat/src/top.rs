use magray_plugin_api::Hit;
use std::{cmp::Ordering, collections::BinaryHeap};

/// The best `k` hits of one query so far.
#[derive(Debug)]
pub(crate) struct Top {
    k: usize,
    /// The worst on top.
    hits: BinaryHeap<WorstFirst>,
}

impl Top {
    /// `k` is at least 1.
    pub(crate) fn new(k: usize) -> Self {
        Self { k, hits: BinaryHeap::new() }
    }

    /// A score below this changes nothing; nor does one that is not a number.
    pub(crate) fn threshold(&self) -> f32 {
        if self.hits.len() < self.k {
            f32::MIN
        } else {
            self.hits.peek().map_or(f32::MIN, |worst| worst.0.score)
        }
    }

    /// Takes the hit where it is among the best; among equal scores the lower id is.
    pub(crate) fn push(&mut self, hit: Hit) {
        if self.hits.len() < self.k {
            self.hits.push(WorstFirst(hit));
        } else if let Some(mut worst) = self.hits.peek_mut()
            && WorstFirst(hit) < *worst
        {
            *worst = WorstFirst(hit);
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        for hit in other.hits {
            self.push(hit.0);
        }
    }

    /// Best first.
    pub(crate) fn into_sorted(self) -> Vec<Hit> {
        self.hits.into_sorted_vec().into_iter().map(|hit| hit.0).collect()
    }
}

/// Orders hits so that the worst is the greatest, which is the one that [`BinaryHeap`] gives up.
#[derive(Clone, Copy, Debug)]
struct WorstFirst(Hit);

impl Ord for WorstFirst {
    fn cmp(&self, other: &Self) -> Ordering {
        other.0.score.total_cmp(&self.0.score).then(self.0.id.cmp(&other.0.id))
    }
}

impl PartialOrd for WorstFirst {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for WorstFirst {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for WorstFirst {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_the_best(scores in prop::collection::vec(0u8..20, 0..100), k in 1usize..20, split in 0usize..100) {
            let hits: Vec<Hit> = (0..).zip(&scores).map(|(id, &score)| Hit::new(id, score.into())).collect();
            let (one, other) = hits.split_at(split.min(hits.len()));
            let mut tops = [one, other].map(|hits| {
                let mut top = Top::new(k);
                for &hit in hits.iter().filter(|hit| hit.score >= top.threshold()).collect::<Vec<_>>() {
                    top.push(hit);
                }
                top
            }).into_iter();
            let mut top = tops.next().unwrap();
            top.merge(tops.next().unwrap());
            let mut expected = hits.clone();
            expected.sort_by(|a, b| b.score.total_cmp(&a.score));
            expected.truncate(k);
            prop_assert_eq!(top.into_sorted(), expected);
        }
    }
}
