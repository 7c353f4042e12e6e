use magray_plugin_api::IdFilter;

/// A set of record ids as a bitmap, ready for [`VectorIndex::search`](magray_plugin_api::VectorIndex::search).
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct IdSet {
    /// The id of bit 0.
    first: u64,
    words: Vec<u64>,
    len: usize,
}

impl IdSet {
    /// The ids from 1 to `last` but those of `left_out`.
    pub(super) fn all_but(last: u64, left_out: impl IntoIterator<Item = u64>) -> Self {
        let mut words = vec![u64::MAX; (last / 64 + 1) as usize];
        let mut clear = |id: u64| words[(id / 64) as usize] &= !(1 << (id % 64));
        clear(0);
        left_out.into_iter().filter(|&id| id <= last).for_each(&mut clear);
        // Bits after the last one.
        (last + 1..(last / 64 + 1) * 64).for_each(clear);
        let len = words.iter().map(|word| word.count_ones() as usize).sum();
        Self { first: 0, words, len }
    }

    /// How many ids are in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether `id` is in it.
    pub fn contains(&self, id: u64) -> bool {
        let Some(bit) = id.checked_sub(self.first) else { return false };
        let word = usize::try_from(bit / 64).ok().and_then(|at| self.words.get(at));
        word.is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// The ids, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.words.iter().zip(0u64..).flat_map(move |(&word, at)| {
            let first = self.first + at * 64;
            (0..64).filter(move |bit| word >> bit & 1 == 1).map(move |bit| first + bit)
        })
    }

    /// The same set as an index plugin takes it, without a copy.
    pub fn as_filter(&self) -> IdFilter<'_> {
        IdFilter::bitmap(self.first, &self.words)
    }
}

impl FromIterator<u64> for IdSet {
    fn from_iter<I: IntoIterator<Item = u64>>(ids: I) -> Self {
        let ids: Vec<u64> = ids.into_iter().collect();
        let (Some(&min), Some(&max)) = (ids.iter().min(), ids.iter().max()) else { return Self::default() };
        let first = min & !63;
        let mut words = vec![0u64; ((max - first) / 64 + 1) as usize];
        for id in ids {
            let bit = id - first;
            words[(bit / 64) as usize] |= 1 << (bit % 64);
        }
        let len = words.iter().map(|word| word.count_ones() as usize).sum();
        Self { first, words, len }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #[test]
        fn it_holds_the_ids_that_it_was_made_of(ids in prop::collection::vec(0u64..3000, 0..200), probe in 0u64..3100) {
            let model: BTreeSet<u64> = ids.iter().copied().collect();
            let set: IdSet = ids.into_iter().collect();
            prop_assert_eq!(set.len(), model.len());
            prop_assert_eq!(set.is_empty(), model.is_empty());
            prop_assert_eq!(set.contains(probe), model.contains(&probe));
            prop_assert_eq!(set.as_filter().contains(probe), model.contains(&probe));
            prop_assert!(set.iter().eq(model.iter().copied()));
        }
    }
}
