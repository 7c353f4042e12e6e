//! What the points of a sweep say together.

/// The recalls at which speed is reported.
pub(super) const RECALLS: [f64; 6] = [0.9, 0.95, 0.98, 0.99, 0.995, 0.998];

/// Recall of a setting, and what it costs: queries a CPU-second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::bench) struct Cost {
    pub(in crate::bench) recall: f64,
    pub(in crate::bench) speed: f64,
}

/// The points to which no other is superior in both, by ascending recall.
pub(in crate::bench) fn pareto_front(mut points: Vec<Cost>) -> Vec<Cost> {
    // Of equal recall the slowest first, so that the fastest is the one that stays.
    points.sort_by(|a, b| a.recall.total_cmp(&b.recall).then(a.speed.total_cmp(&b.speed)));
    let mut front: Vec<Cost> = Vec::new();
    for point in points {
        while front.last().is_some_and(|last| last.speed <= point.speed) {
            front.pop();
        }
        front.push(point);
    }
    front
}

/// Speed at this recall, on a [`pareto_front`]: between two points the logarithm of the speed goes in a straight
/// line. None above the best recall; below the least, which is more than was asked for, it is that point's speed.
pub(super) fn speed_at(front: &[Cost], recall: f64) -> Option<f64> {
    let above = front.partition_point(|point| point.recall < recall);
    let high = front.get(above)?;
    let Some(low) = above.checked_sub(1).and_then(|below| front.get(below)) else { return Some(high.speed) };
    let share = (recall - low.recall) / (high.recall - low.recall);
    Some((low.speed.ln() + share * (high.speed.ln() - low.speed.ln())).exp())
}

/// The place of the cheapest of the points that reach this recall, else of the one that comes nearest.
pub(in crate::bench) fn cheapest(points: &[Cost], recall: f64) -> Option<usize> {
    let places = || points.iter().enumerate();
    let reaching = places().filter(|(_, point)| point.recall >= recall);
    let best = reaching.max_by(|a, b| a.1.speed.total_cmp(&b.1.speed));
    let nearest =
        || places().max_by(|a, b| a.1.recall.total_cmp(&b.1.recall).then(a.1.speed.total_cmp(&b.1.speed)));
    best.or_else(nearest).map(|(place, _)| place)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn costs(points: &[(f64, f64)]) -> Vec<Cost> {
        points.iter().map(|&(recall, speed)| Cost { recall, speed }).collect()
    }

    #[test]
    fn the_front_has_what_nothing_is_superior_to() {
        let points =
            costs(&[(0.9, 50.0), (0.8, 100.0), (0.95, 50.0), (0.85, 40.0), (0.99, 10.0), (0.99, 9.0)]);
        assert_eq!(pareto_front(points), costs(&[(0.8, 100.0), (0.95, 50.0), (0.99, 10.0)]));
        assert_eq!(pareto_front(Vec::new()), []);
    }

    #[test]
    fn speed_between_two_points_is_their_geometric_mean_and_none_is_made_up() {
        let front = costs(&[(0.9, 400.0), (0.98, 100.0)]);
        let at = |recall| speed_at(&front, recall);
        assert!((at(0.94).expect("between") - 200.0).abs() < 1e-9);
        assert!((at(0.98).expect("a point") - 100.0).abs() < 1e-9);
        assert_eq!(at(0.9), Some(400.0));
        // The fastest setting finds more than is asked for.
        assert_eq!(at(0.5), Some(400.0));
        assert_eq!(at(0.981), None);
        assert_eq!(speed_at(&[], 0.9), None);
    }

    #[test]
    fn the_cheapest_that_is_good_enough_is_chosen_else_the_best() {
        let points = costs(&[(0.9, 400.0), (0.992, 90.0), (0.991, 100.0), (1.0, 10.0)]);
        assert_eq!(cheapest(&points, 0.99), Some(2));
        assert_eq!(cheapest(&points[..1], 0.99), Some(0));
        assert_eq!(cheapest(&[], 0.99), None);
    }

    proptest! {
        #[test]
        fn the_front_rises_in_recall_falls_in_speed_and_covers_all(
            points in prop::collection::vec((0.0f64..1.0, 1.0f64..1e6), 1..40)
        ) {
            let points = costs(&points);
            let front = pareto_front(points.clone());
            prop_assert!(front.is_sorted_by(|a, b| a.recall < b.recall && a.speed > b.speed));
            for point in points {
                prop_assert!(front.iter().any(|best| best.recall >= point.recall && best.speed >= point.speed));
                let speed = speed_at(&front, point.recall).expect("it was reached");
                prop_assert!(speed >= point.speed * (1.0 - 1e-9));
            }
        }
    }
}
