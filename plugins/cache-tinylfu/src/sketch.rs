//! How often keys were asked for of late: a count-min sketch of four-bit counters that are halved now and
//! then, all four of a key in one line of the processor's cache. After `FrequencySketch` of Caffeine
//! (Ben Manes, Apache-2.0) and Einziger, Friedman, Manes: "TinyLFU: A Highly Efficient Cache Admission
//! Policy", 2017.

/// Counters of a block: four rows of 32, one counter of each row for a key.
#[repr(align(64))]
#[derive(Clone, Copy, Debug)]
struct Block([u64; 8]);

/// Increments a key after which counters are halved.
const SAMPLE: u64 = 10;
/// Keys for each block at most: 8 bytes a key, as Caffeine has it.
const KEYS: usize = 8;

/// Frequencies of keys, 0 to 15, by their hashes.
#[derive(Debug)]
pub(crate) struct Sketch {
    /// A power of two of them.
    blocks: Vec<Block>,
    /// Increments since the counters were halved, less what halving takes away.
    added: u64,
}

impl Sketch {
    pub(crate) fn new() -> Self {
        Self { blocks: vec![Block([0; 8]); 8], added: 0 }
    }

    /// Makes it wide enough for `keys`. What is known stays known: each half of a wider one is the old one.
    #[inline]
    pub(crate) fn fit(&mut self, keys: usize) {
        while keys > self.blocks.len() * KEYS {
            self.blocks.extend_from_within(..);
            // Each counter is there twice.
            self.added *= 2;
        }
    }

    /// Counts a key once more.
    #[inline]
    pub(crate) fn add(&mut self, hash: u64) {
        let mut is_new = false;
        let block = self.block(hash);
        for (word, shift) in counters(hash) {
            let word = &mut self.blocks[block].0[word];
            if *word >> shift & 15 < 15 {
                *word += 1 << shift;
                is_new = true;
            }
        }
        self.added += u64::from(is_new);
        if self.added >= SAMPLE * (self.blocks.len() * KEYS) as u64 {
            self.halve();
        }
    }

    /// How often it was counted: never less, but for halving, and never more than 15.
    #[inline]
    pub(crate) fn frequency(&self, hash: u64) -> u32 {
        let block = &self.blocks[self.block(hash)];
        counters(hash)
            .map(|(word, shift)| (block.0[word] >> shift & 15) as u32)
            .into_iter()
            .min()
            .unwrap_or(0)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.blocks.capacity() * size_of::<Block>()
    }

    fn halve(&mut self) {
        for word in self.blocks.iter_mut().flat_map(|block| &mut block.0) {
            *word = *word >> 1 & 0x7777_7777_7777_7777;
        }
        self.added /= 2;
    }

    #[inline]
    fn block(&self, hash: u64) -> usize {
        hash as usize & (self.blocks.len() - 1)
    }
}

/// The word and the bit of each counter of a key in its block: two words a row, 16 counters a word.
#[inline]
fn counters(hash: u64) -> [(usize, u32); 4] {
    // The low bits say which block.
    std::array::from_fn(|row| {
        let bits = (hash >> (40 + 5 * row)) as usize;
        (2 * row + (bits & 1), (bits as u32 >> 1 & 15) * 4)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_cache::hash;

    #[test]
    fn it_counts_to_fifteen_and_no_less_than_there_were() {
        let mut sketch = Sketch::new();
        sketch.fit(1000);
        let times = |key: u64| if key.is_multiple_of(20) { 20 } else { key % 4 };
        for key in 0..200 {
            (0..times(key)).for_each(|_| sketch.add(hash(key)));
        }
        let mut over = 0;
        for key in 0..200 {
            let (counted, real) = (u64::from(sketch.frequency(hash(key))), times(key).min(15));
            assert!(counted >= real, "{key}: {counted} < {real}");
            over += u64::from(counted > real);
        }
        assert!(over <= 10, "{over} of 200 are counted too often");
    }

    #[test]
    fn counts_are_halved_after_ten_a_key_and_survive_growth() {
        let mut sketch = Sketch::new();
        (0..12).for_each(|_| sketch.add(hash(1)));
        sketch.fit(10_000);
        assert_eq!(sketch.frequency(hash(1)), 12);
        let keys = (sketch.blocks.len() * KEYS) as u64;
        for key in 1_000..1_000 + 10 * keys {
            sketch.add(hash(key));
            if sketch.frequency(hash(1)) < 12 {
                assert_eq!(sketch.frequency(hash(1)), 6);
                assert!(key - 1_000 >= 9 * keys, "after {} of {keys} keys", key - 1_000);
                return;
            }
        }
        panic!("nothing was halved");
    }
}
