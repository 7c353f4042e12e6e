//! What was dropped of late, by its hash: a queue without links. Each key has a time, which is the number of
//! keys that were added before it, and is forgotten when as many have been added since as are remembered.

/// Keys with the same low bits of their hashes, in one line of the processor's cache.
#[repr(align(64))]
#[derive(Clone, Copy, Debug)]
struct Bucket([Ghost; 8]);

#[derive(Clone, Copy, Debug)]
struct Ghost {
    /// The high half of the hash; the low bits are those of the bucket.
    print: u32,
    time: u32,
}

/// A time at which nothing is remembered.
const NEVER: Ghost = Ghost { print: 0, time: 0 };

#[derive(Debug)]
pub(crate) struct Ghosts {
    /// A power of two of them, with room for twice the keys.
    buckets: Vec<Bucket>,
    /// Keys that were added.
    now: u32,
    /// Keys that are remembered.
    most: u32,
}

impl Ghosts {
    pub(crate) fn new() -> Self {
        Self { buckets: vec![Bucket([NEVER; 8]); 64], now: 0, most: 0 }
    }

    /// Remembers a key; `most` keys are remembered.
    pub(crate) fn add(&mut self, hash: u64, most: usize) {
        while 2 * most > 8 * self.buckets.len() {
            // Which half a key belongs to is not known, so it is in both until it is forgotten.
            self.buckets.extend_from_within(..);
        }
        if self.now == u32::MAX {
            (self.now, self.buckets) = (0, vec![Bucket([NEVER; 8]); self.buckets.len()]);
        }
        self.most = u32::try_from(most).unwrap_or(u32::MAX);
        self.now += 1;
        let ghost = Ghost { print: print(hash), time: self.now };
        let bucket = self.bucket(hash);
        if let Some(oldest) = self.buckets[bucket].0.iter_mut().min_by_key(|ghost| ghost.time) {
            *oldest = ghost;
        }
    }

    /// Whether a key is remembered; it is not any more.
    pub(crate) fn take(&mut self, hash: u64) -> bool {
        let bucket = self.bucket(hash);
        let mut is_remembered = false;
        for ghost in self.buckets[bucket].0.iter_mut().filter(|ghost| ghost.print == print(hash)) {
            is_remembered |= ghost.time > 0 && self.now - ghost.time < self.most;
            *ghost = NEVER;
        }
        is_remembered
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buckets.capacity() * size_of::<Bucket>()
    }

    fn bucket(&self, hash: u64) -> usize {
        hash as usize & (self.buckets.len() - 1)
    }
}

fn print(hash: u64) -> u32 {
    (hash >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_cache::hash;

    #[test]
    fn the_newest_are_remembered_and_taken_once() {
        let mut ghosts = Ghosts::new();
        (0..1_000).for_each(|key| ghosts.add(hash(key), 100));
        assert!(!ghosts.take(hash(899)));
        // A bucket that is full forgets one too early, which is rare.
        let found = (900..1_000).filter(|&key| ghosts.take(hash(key))).count();
        assert!(found >= 98, "{found} of 100");
        assert!(!(0..2_000).any(|key| ghosts.take(hash(key))));
    }

    #[test]
    fn it_grows_and_starts_its_times_over() {
        let mut ghosts = Ghosts::new();
        (0..100).for_each(|key| ghosts.add(hash(key), 100));
        (100..2_000).for_each(|key| ghosts.add(hash(key), 100_000));
        let found = (0..2_000).filter(|&key| ghosts.take(hash(key))).count();
        assert!(found >= 1_990, "{found} of 2000");
        ghosts.now = u32::MAX - 1;
        (0..10).for_each(|key| ghosts.add(hash(key), 100));
        assert!(ghosts.take(hash(9)));
    }
}
