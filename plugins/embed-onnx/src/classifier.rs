//! What makes a score of a pair of texts from the state of its first token.
use magray_model::Weights;
use magray_plugin_api::Result;

/// The classifier of a cross-encoder: a dense layer with tanh, and a second one to a single number.
#[derive(Debug)]
pub(crate) struct Classifier {
    /// `[hidden, hidden]`, a row an output.
    dense: Vec<f32>,
    /// `[hidden]`
    dense_bias: Vec<f32>,
    /// `[hidden]`
    out: Vec<f32>,
    out_bias: f32,
}

impl Classifier {
    /// Reads the classifier beside a network of the BERT family: that of XLM-R and MPNet has both layers, BERT's
    /// first one is its pooler.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where a tensor is missing or has another shape.
    pub(crate) fn read(weights: &Weights, hidden: usize) -> Result<Self> {
        let (dense, out) = if weights.contains("classifier.out_proj.weight") {
            ("classifier.dense", "classifier.out_proj")
        } else {
            ("pooler.dense", "classifier")
        };
        Ok(Self {
            dense: weights.f32(&format!("{dense}.weight"), &[hidden, hidden])?,
            dense_bias: weights.f32(&format!("{dense}.bias"), &[hidden])?,
            out: weights.f32(&format!("{out}.weight"), &[1, hidden])?,
            out_bias: weights.f32(&format!("{out}.bias"), &[1])?[0],
        })
    }

    /// The score before the logistic function.
    pub(crate) fn logit(&self, state: &[f32]) -> f32 {
        let dot = |row: &[f32]| row.iter().zip(state).map(|(weight, x)| weight * x).sum::<f32>();
        let rows = self.dense.chunks_exact(state.len()).zip(&self.dense_bias);
        let inner = rows.map(|(row, bias)| (dot(row) + bias).tanh());
        inner.zip(&self.out).map(|(x, weight)| x * weight).sum::<f32>() + self.out_bias
    }
}

/// The logistic function, which makes a score from 0 to 1 of a logit.
pub(crate) fn logistic(logit: f32) -> f32 {
    1.0 / (1.0 + (-logit).exp())
}
