use crate::store::{Candidate, SpaceId, Store, StoreError};
use half::f16;
use std::collections::HashMap;

/// What is used in each project, as the mean direction of what was used there last.
pub(super) struct Interests<'a> {
    store: &'a Store,
    /// None where there are no vectors.
    space: Option<SpaceId>,
    sample: usize,
    /// By project; of length 1, or none where nothing with a vector is used.
    directions: HashMap<String, Option<Vec<f32>>>,
}

impl<'a> Interests<'a> {
    pub(super) fn new(store: &'a Store, space: Option<SpaceId>, sample: usize) -> Self {
        Self { store, space, sample, directions: HashMap::new() }
    }

    /// How near a record is to what is used in its project: the cosine, and 0 for what points away.
    pub(super) fn similarity(&mut self, candidate: &Candidate) -> Result<Option<f32>, StoreError> {
        let (Some(space), Some(vector)) = (self.space, &candidate.vector) else { return Ok(None) };
        let Some(vector) = unit(vector.iter().map(|v| v.to_f32()).collect()) else { return Ok(None) };
        if !self.directions.contains_key(&candidate.project) {
            let used = self.store.recently_used(space, &candidate.project, self.sample)?;
            self.directions.insert(candidate.project.clone(), direction(&used, vector.len()));
        }
        let direction = self.directions.get(&candidate.project).and_then(Option::as_ref);
        let cosine = |direction: &Vec<f32>| direction.iter().zip(&vector).map(|(a, b)| a * b).sum::<f32>();
        Ok(direction.map(|direction| cosine(direction).clamp(0.0, 1.0)))
    }
}

/// The mean direction of `vectors`, `[n, dim]` row-major.
fn direction(vectors: &[f16], dim: usize) -> Option<Vec<f32>> {
    let mut sum = vec![0.0; dim];
    for row in vectors.chunks_exact(dim) {
        if let Some(row) = unit(row.iter().map(|v| v.to_f32()).collect()) {
            sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
        }
    }
    unit(sum)
}

/// The vector at length 1; none of one that has no direction.
fn unit(mut vector: Vec<f32>) -> Option<Vec<f32>> {
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    if length <= f32::EPSILON {
        return None;
    }
    vector.iter_mut().for_each(|v| *v /= length);
    Some(vector)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_direction_of_what_is_used_does_not_depend_on_lengths() {
        let rows = [3.0, 0.0, 0.0, 0.5].map(f16::from_f32);
        let mean = direction(&rows, 2).unwrap();
        assert!((mean[0] - 0.5f32.sqrt()).abs() < 1e-6 && (mean[1] - mean[0]).abs() < 1e-6, "{mean:?}");
        assert_eq!(direction(&[], 2), None);
        assert_eq!(direction(&[1.0, 0.0, -1.0, 0.0].map(f16::from_f32), 2), None);
    }
}
