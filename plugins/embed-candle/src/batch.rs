//! Which texts share one pass through the network, and how their tokens lie in it.
use candle_core::{Device, Result, Tensor};
use magray_model::Packed;
use std::ops::Range;

/// How the tokens of several texts lie in one matrix of states, one row a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rows {
    /// One text after the other, without padding. The products see only real tokens, and attention
    /// goes text by text: best where starting an operation costs nothing, so on the CPU.
    Packed,
    /// Every text as long as the longest, so that attention is one operation: best on a GPU.
    Padded,
}

/// Texts that go through the network at once.
#[derive(Debug)]
pub(crate) struct Batch {
    /// Tokens of each text, at least 1.
    pub(crate) lengths: Vec<usize>,
    /// Rows of a text where they are padded.
    pub(crate) padded: Option<usize>,
    /// Ids, `[rows]`.
    pub(crate) ids: Tensor,
    /// Position of each token in its text, `[rows]`.
    pub(crate) positions: Tensor,
    /// Where texts are padded: 0 for real keys and a large negative number for the others,
    /// `[texts, 1, 1, rows of a text]` f32.
    pub(crate) mask: Option<Tensor>,
}

/// Far below every score, and still a number of f16.
const NEVER: f32 = -60_000.0;

impl Batch {
    /// The batch of some `texts`, none of them without ids.
    pub(crate) fn new(texts: &[&[u32]], rows: Rows, device: &Device) -> Result<Self> {
        let lengths: Vec<usize> = texts.iter().map(|ids| ids.len()).collect();
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let (mut ids, mut positions) = (Vec::new(), Vec::new());
        for text in texts {
            let rows = if rows == Rows::Padded { longest } else { text.len() };
            ids.extend_from_slice(text);
            // Any id does: nothing sees the rows of padding.
            ids.extend(std::iter::repeat_n(0, rows - text.len()));
            positions.extend(0..rows as u32);
        }
        let mask = (rows == Rows::Padded && lengths.iter().any(|&length| length < longest)).then(|| {
            let key = |length, at| if at < length { 0.0 } else { NEVER };
            let keys: Vec<f32> =
                lengths.iter().flat_map(|&length| (0..longest).map(move |at| key(length, at))).collect();
            Tensor::from_vec(keys, (lengths.len(), 1, 1, longest), device)
        });
        let count = ids.len();
        Ok(Self {
            lengths,
            padded: (rows == Rows::Padded).then_some(longest),
            ids: Tensor::from_vec(ids, count, device)?,
            positions: Tensor::from_vec(positions, count, device)?,
            mask: mask.transpose()?,
        })
    }

    /// The rows of each text's own tokens.
    pub(crate) fn texts(&self) -> impl Iterator<Item = Range<usize>> {
        let mut next = 0;
        self.lengths.iter().map(move |&length| {
            let start = next;
            next += self.padded.unwrap_or(length);
            start..start + length
        })
    }
}

/// Cuts texts into batches: longest first, so that neighbours are of a length and the largest piece
/// of work starts first. A batch has `tokens` rows at most, or one text.
pub(crate) fn plan(packed: &Packed, tokens: usize, rows: Rows) -> Vec<Vec<usize>> {
    let lengths: Vec<usize> = packed.texts().map(<[u32]>::len).collect();
    let mut order: Vec<usize> = (0..lengths.len()).filter(|&text| lengths[text] > 0).collect();
    order.sort_by_key(|&text| std::cmp::Reverse(lengths[text]));
    let (mut batches, mut used) = (Vec::<Vec<usize>>::new(), 0);
    for text in order {
        let cost = match (rows, batches.last()) {
            // The first text of a batch is its longest.
            (Rows::Padded, Some(batch)) => lengths[batch[0]],
            _ => lengths[text],
        };
        match batches.last_mut() {
            Some(batch) if used + cost <= tokens => {
                batch.push(text);
                used += cost;
            }
            _ => {
                batches.push(vec![text]);
                used = lengths[text];
            }
        }
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(lengths: &[usize]) -> Packed {
        let mut packed = Packed::default();
        for &length in lengths {
            packed.ids.extend(0..length as u32);
            packed.ends.push(packed.ids.len());
        }
        packed
    }

    #[test]
    fn batches_are_of_a_length_and_within_the_budget() {
        let lengths = [3, 0, 9, 1, 20, 4, 4];
        assert_eq!(plan(&packed(&lengths), 10, Rows::Packed), [vec![4], vec![2], vec![5, 6], vec![0, 3]]);
        assert_eq!(plan(&packed(&lengths), 12, Rows::Padded), [vec![4], vec![2], vec![5, 6, 0], vec![3]]);
        assert!(plan(&packed(&[0, 0]), 10, Rows::Packed).is_empty());
    }

    #[test]
    fn padding_is_masked_and_packed_rows_have_none() {
        let texts: [&[u32]; 2] = [&[7, 8, 9], &[5]];
        let batch = Batch::new(&texts, Rows::Packed, &Device::Cpu).unwrap();
        assert_eq!(batch.ids.to_vec1::<u32>().unwrap(), [7, 8, 9, 5]);
        assert_eq!(batch.texts().collect::<Vec<_>>(), [0..3, 3..4]);
        assert!(batch.mask.is_none());
        let batch = Batch::new(&texts, Rows::Padded, &Device::Cpu).unwrap();
        assert_eq!(batch.ids.to_vec1::<u32>().unwrap(), [7, 8, 9, 5, 0, 0]);
        assert_eq!(batch.positions.to_vec1::<u32>().unwrap(), [0, 1, 2, 0, 1, 2]);
        assert_eq!(batch.texts().collect::<Vec<_>>(), [0..3, 3..4]);
        let mask = batch.mask.unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert_eq!(mask, [0.0, 0.0, 0.0, 0.0, NEVER, NEVER]);
    }
}
