use serde::Serialize;

/// How the states of a text's tokens become one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Pooling {
    /// Their mean, special tokens included.
    Mean,
    /// That of the first token.
    Cls,
    /// That of the last token.
    Last,
}

impl Pooling {
    /// Writes the unit vector of one text into `out`, `[dim]`, from its `states`, `[tokens, hidden]`
    /// row-major with at least one token and `hidden >= dim`: the pooled state, cut to its first
    /// `dim` numbers (Matryoshka), scaled to length 1.
    pub fn pool(self, states: &[f32], hidden: usize, out: &mut [f32]) {
        let dim = out.len();
        match self {
            Self::Mean => {
                out.fill(0.0);
                // The divisor of the mean cancels in the scaling.
                for state in states.chunks_exact(hidden) {
                    out.iter_mut().zip(state).for_each(|(sum, value)| *sum += value);
                }
            }
            Self::Cls => out.copy_from_slice(&states[..dim]),
            Self::Last => out.copy_from_slice(&states[states.len() - hidden..][..dim]),
        }
        normalize(out);
    }
}

/// Scales a vector to length 1; one without a direction becomes zero.
pub fn normalize(vector: &mut [f32]) {
    let square: f64 = vector.iter().map(|&value| f64::from(value) * f64::from(value)).sum();
    let scale = if square > 1e-38 { (1.0 / square.sqrt()) as f32 } else { 0.0 };
    vector.iter_mut().for_each(|value| *value *= scale);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_pooling_takes_its_tokens() {
        let states = [3.0, 4.0, 9.0, 0.0, 2.0, 9.0, 1.0, 0.0, 9.0];
        for (pooling, expected) in
            [(Pooling::Mean, [4.0, 6.0]), (Pooling::Cls, [3.0, 4.0]), (Pooling::Last, [1.0, 0.0])]
        {
            let mut expected: [f32; 2] = expected;
            normalize(&mut expected);
            let mut out = [0.0; 2];
            pooling.pool(&states, 3, &mut out);
            assert_eq!(out, expected, "{pooling:?}");
        }
    }

    #[test]
    fn a_vector_without_direction_stays_zero() {
        let mut out = [f32::NAN; 2];
        Pooling::Mean.pool(&[1.0, -1.0, -1.0, 1.0], 2, &mut out);
        assert_eq!(out, [0.0; 2]);
    }
}
