use magray_plugin_api::Hit;
use std::cmp::Ordering;

/// The best `limit` hits so far; of equal ones those with the lower ids, so that what is found does not
/// depend on how the work was cut up.
///
/// More are taken in than are kept, and now and then the worst are thrown out together, which costs a
/// few steps a hit where a heap costs its depth.
#[derive(Clone, Debug)]
pub(crate) struct Best {
    limit: usize,
    threshold: f32,
    held: Vec<Hit>,
}

fn order(a: &Hit, b: &Hit) -> Ordering {
    b.score.total_cmp(&a.score).then(a.id.cmp(&b.id))
}

impl Best {
    /// `limit` is at least 1.
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, threshold: f32::NEG_INFINITY, held: Vec::new() }
    }

    /// Takes a hit where it is among the best.
    pub(crate) fn push(&mut self, hit: Hit) {
        if hit.score >= self.threshold && hit.score > f32::NEG_INFINITY {
            self.held.push(hit);
            if self.held.len() >= 2 * self.limit + 64 {
                self.shrink();
            }
        }
    }

    fn shrink(&mut self) {
        if self.held.len() > self.limit {
            let (_, last, _) = self.held.select_nth_unstable_by(self.limit - 1, order);
            self.threshold = last.score;
            self.held.truncate(self.limit);
        }
    }

    /// Best first.
    pub(crate) fn into_sorted(mut self) -> Vec<Hit> {
        self.held.sort_unstable_by(order);
        self.held.truncate(self.limit);
        self.held
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keeps_the_best(scores in prop::collection::vec(0u8..30, 0..400), limit in 1usize..20) {
            let mut hits: Vec<Hit> =
                scores.iter().zip((0..).map(|i| i * 77 % 401)).map(|(&s, id)| Hit::new(id, s.into())).collect();
            let mut best = Best::new(limit);
            hits.iter().for_each(|&hit| best.push(hit));
            best.push(Hit::new(1000, f32::NAN));
            best.push(Hit::new(1001, f32::NEG_INFINITY));
            hits.sort_by(order);
            hits.truncate(limit);
            prop_assert_eq!(best.into_sorted(), hits);
        }
    }
}
