//! Where ids lie among those of an index.

/// Bits that an id is worth, with the counts at most twelve bytes: an index of one layer has a part of all ids.
const SPREAD: u64 = 64;

/// The ids of an index as a bitmap. To find one takes two loads, near those for the one before, where a search among the
/// ids themselves takes several far from each other: of one row in 30 of 1,000,000 that took two thirds of a search
/// among them.
#[derive(Debug)]
pub(super) struct Ranks {
    /// The id of the first bit.
    first: u64,
    words: Vec<u64>,
    /// How many ids are below each word.
    below: Vec<u32>,
}

impl Ranks {
    /// Of fewer than 2^32 ids; `None` where they are far apart or, as in a damaged file, do not ascend or end with
    /// `u64::MAX`, which is none.
    pub(super) fn new(ids: impl DoubleEndedIterator<Item = u64> + ExactSizeIterator + Clone) -> Option<Self> {
        let (first, last) = (ids.clone().next()?, ids.clone().next_back()?);
        let span = last.checked_sub(first)?;
        if span / SPREAD > ids.len() as u64 {
            return None;
        }
        let mut words = vec![0u64; (span / 64 + 1) as usize];
        let mut least = first;
        for id in ids {
            if id < least {
                return None;
            }
            let (word, bit) = place(id - first);
            *words.get_mut(word)? |= bit;
            least = id.checked_add(1)?;
        }
        let below = words.iter().scan(0, |below, word| {
            let here = *below;
            *below += word.count_ones();
            Some(here)
        });
        Some(Self { first, below: below.collect(), words })
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> usize {
        self.words.len() * size_of::<u64>() + self.below.len() * size_of::<u32>()
    }

    /// How many ids are below `id`, if it is there.
    #[inline]
    pub(super) fn rank(&self, id: u64) -> Option<usize> {
        let (at, bit) = place(id.checked_sub(self.first)?);
        let (word, below) = (*self.words.get(at)?, *self.below.get(at)?);
        (word & bit != 0).then(|| below as usize + (word & (bit - 1)).count_ones() as usize)
    }
}

/// The word of a bit, and that bit in it.
fn place(bit: u64) -> (usize, u64) {
    (usize::try_from(bit / 64).unwrap_or(usize::MAX), 1 << (bit % 64))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::{collection::btree_set, prelude::*};

    proptest! {
        #[test]
        fn ranks_are_those_of_a_sorted_list(first in prop_oneof![any::<u64>(), u64::MAX - 4000.., 0..9u64], steps in btree_set(0u64..3000, 1..300), others in btree_set(0u64..4000, 0..300)) {
            let ids: Vec<u64> = steps.iter().filter_map(|&step| first.checked_add(step)).collect();
            let Some(set) = Ranks::new(ids.iter().copied()) else {
                let (first, last) = (ids.first().copied().unwrap_or(u64::MAX), ids.last().copied().unwrap_or(u64::MAX));
                prop_assert!(last == u64::MAX || last - first >= SPREAD * ids.len() as u64);
                return Ok(());
            };
            for id in others.iter().map(|&step| first.wrapping_add(step)).chain(ids.iter().copied()).chain([0, u64::MAX]) {
                prop_assert_eq!(set.rank(id), ids.binary_search(&id).ok());
            }
        }
    }

    #[test]
    fn no_set_of_what_is_far_apart_or_does_not_ascend() {
        let set = |ids: &[u64]| Ranks::new(ids.iter().copied()).is_some();
        assert!(set(&[0, 5, 47]) && set(&[u64::MAX - 2, u64::MAX - 1]));
        assert!(!set(&[u64::MAX - 1, u64::MAX]));
        assert!(!set(&[]) && !set(&[0, 1 << 40]) && !set(&[0, u64::MAX]));
        assert!(!set(&[5, 3]) && !set(&[1, 1, 2]) && !set(&[4, 9, 6, 10]));
    }
}
