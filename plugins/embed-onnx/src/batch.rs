//! Cuts the texts of a call into runs of similar length, so that little padding is computed.
use magray_model::{Packed, Pooling};

/// Texts that run together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    /// Their numbers in the call.
    pub(crate) texts: Vec<usize>,
    /// Tokens of the longest.
    pub(crate) width: usize,
}

impl Batch {
    /// Tokens that are computed, padding included.
    pub(crate) fn tokens(&self) -> usize {
        self.texts.len() * self.width
    }

    /// Two halves, where there is more than one text.
    pub(crate) fn halve(mut self) -> Result<[Self; 2], Self> {
        if self.texts.len() < 2 {
            return Err(self);
        }
        // The longest comes first, so the width of the second half may be too large; that costs
        // padding once, where memory ran out.
        let second = self.texts.split_off(self.texts.len().div_ceil(2));
        let width = self.width;
        Ok([self, Self { texts: second, width }])
    }
}

/// Batches of at most `most_texts` texts and `most_tokens` tokens with padding, but at least one text;
/// the longest first, so that the largest memory is asked for at once. Texts without tokens are in
/// none.
pub(crate) fn plan(lengths: &[usize], most_texts: usize, most_tokens: usize) -> Vec<Batch> {
    let mut order: Vec<usize> = (0..lengths.len()).filter(|&text| lengths[text] > 0).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
    let mut batches = Vec::new();
    let mut rest = &order[..];
    while let Some(&longest) = rest.first() {
        let width = lengths[longest];
        let (texts, others) = rest.split_at(rest.len().min(most_texts).min(most_tokens / width).max(1));
        batches.push(Batch { texts: texts.to_vec(), width });
        rest = others;
    }
    batches
}

/// The ids and lengths of a batch as a network takes them, and how each token counts in pooling.
#[derive(Debug, Default)]
pub(crate) struct Inputs {
    /// `[texts, width]`, padded with 0.
    pub(crate) ids: Vec<i32>,
    /// `[texts]`
    pub(crate) lengths: Vec<i32>,
    /// `[texts, width]`
    pub(crate) pooling: Vec<f32>,
    /// Token types, `[texts, width]`.
    pub(crate) types: Vec<i32>,
}

impl Inputs {
    /// `firsts` are the tokens of type 0 of each text of the call; without it all are.
    pub(crate) fn new(batch: &Batch, packed: &Packed, firsts: Option<&[usize]>, pooling: Pooling) -> Self {
        let mut inputs = Self {
            ids: vec![0; batch.tokens()],
            lengths: Vec::new(),
            pooling: vec![0.0; batch.tokens()],
            types: vec![0; batch.tokens()],
        };
        for (&text, types) in batch.texts.iter().zip(inputs.types.chunks_exact_mut(batch.width)) {
            if let Some(firsts) = firsts {
                types[firsts[text]..tokens(packed, text).len()].fill(1);
            }
        }
        let rows = inputs.ids.chunks_exact_mut(batch.width).zip(inputs.pooling.chunks_exact_mut(batch.width));
        for (&text, (ids, weights)) in batch.texts.iter().zip(rows) {
            let tokens = tokens(packed, text);
            // A vocabulary has far less than 2^31 words.
            ids.iter_mut().zip(tokens).for_each(|(id, &token)| *id = token as i32);
            inputs.lengths.push(tokens.len() as i32);
            match pooling {
                // The divisor of the mean cancels when the vector is scaled to length 1.
                Pooling::Mean => weights[..tokens.len()].fill(1.0),
                Pooling::Cls => weights[0] = 1.0,
                Pooling::Last => weights[tokens.len() - 1] = 1.0,
            }
        }
        inputs
    }
}

/// The tokens of a text.
pub(crate) fn tokens(packed: &Packed, text: usize) -> &[u32] {
    let start = if text == 0 { 0 } else { packed.ends[text - 1] };
    &packed.ids[start..packed.ends[text]]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_are_sorted_and_bounded() {
        let lengths = [3, 0, 10, 4, 200, 10, 1];
        let batches = plan(&lengths, 2, 40);
        let texts: Vec<_> = batches.iter().map(|batch| (batch.width, batch.texts.clone())).collect();
        assert_eq!(texts, [(200, vec![4]), (10, vec![2, 5]), (4, vec![3, 0]), (1, vec![6])]);
        for batch in &batches {
            assert!(batch.texts.len() <= 2 && (batch.tokens() <= 40 || batch.texts.len() == 1));
        }
        assert!(plan(&[0, 0], 2, 40).is_empty());
        assert_eq!(plan(&lengths, usize::MAX, usize::MAX).len(), 1);
    }

    #[test]
    fn a_batch_of_several_can_be_halved() {
        let [first, second] = Batch { texts: vec![5, 6, 7], width: 9 }.halve().unwrap();
        assert_eq!((first.texts, second.texts, second.width), (vec![5, 6], vec![7], 9));
        assert!(Batch { texts: vec![5], width: 9 }.halve().is_err());
    }

    #[test]
    fn each_pooling_counts_its_tokens() {
        let packed = Packed { ids: vec![7, 8, 9, 5], ends: vec![3, 3, 4] };
        let batch = Batch { texts: vec![0, 2], width: 3 };
        let inputs = |pooling| Inputs::new(&batch, &packed, None, pooling);
        let mean = inputs(Pooling::Mean);
        assert_eq!((mean.ids, mean.lengths), (vec![7, 8, 9, 5, 0, 0], vec![3, 1]));
        assert_eq!(mean.pooling, [1.0, 1.0, 1.0, 1.0, 0.0, 0.0]);
        assert_eq!(Inputs::new(&batch, &packed, Some(&[1, 0, 1]), Pooling::Cls).types, [0, 1, 1, 0, 0, 0]);
        assert_eq!(inputs(Pooling::Cls).pooling, [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]);
        assert_eq!(inputs(Pooling::Last).pooling, [0.0, 0.0, 1.0, 1.0, 0.0, 0.0]);
    }
}
