//! What cache policies are made of: entries in queues, and a time to live with its option.
//!
//! An entry is a slot of one array, linked into its queue and into the order of insertion by numbers of
//! slots. A slot that falls free is used again, so nothing is allocated while a cache is full.
#![deny(missing_docs)]

use hashbrown::HashTable;

/// Seconds after which an entry is out of date where the option `ttl_seconds` is not given.
pub const TTL_SECONDS: u64 = 3 * 24 * 60 * 60;

/// JSON Schema of the option `ttl_seconds`, as a literal for `concat!`.
#[macro_export]
macro_rules! ttl_schema {
    () => {
        r#""ttl_seconds": {
      "type": "integer", "minimum": 0, "default": 259200,
      "description": "seconds after which an entry is out of date; 0 for never"
    }"#
    };
}

/// No slot.
const NONE: u32 = u32::MAX;

/// Spreads the bits of a key: the halves of a product with 2^64 / golden ratio, folded.
#[inline]
pub fn hash(key: u64) -> u64 {
    let product = u128::from(key ^ 0x2545_F491_4F6C_DD1D) * 0x9E37_79B9_7F4A_7C15;
    // Low bits of a folded product of small keys are alike, so it is folded once more.
    let folded = u128::from((product >> 64) as u64 ^ product as u64) * 0xD6E8_FEB8_6659_FD93;
    (folded >> 64) as u64 ^ folded as u64
}

/// Where an entry is; good until it is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Slot(u32);

/// Entries by key, each in one of several queues and in the order of their insertion.
#[derive(Debug)]
pub struct Entries<const QUEUES: usize> {
    nodes: Vec<Node>,
    /// The first of the free slots, which are linked by `queue.older`.
    free: u32,
    table: HashTable<u32>,
    queues: [Queue; QUEUES],
    ages: Ends,
    ttl_ms: u64,
}

#[derive(Debug)]
struct Node {
    key: u64,
    weight: u64,
    inserted_ms: u64,
    queue: Links,
    age: Links,
    place: u8,
    mark: u8,
}

#[derive(Clone, Copy, Debug)]
struct Links {
    newer: u32,
    older: u32,
}

#[derive(Clone, Copy, Debug)]
struct Ends {
    newest: u32,
    oldest: u32,
}

#[derive(Clone, Copy, Debug)]
struct Queue {
    ends: Ends,
    /// Of weights up to [`u64::MAX`] each.
    weight: u128,
    len: usize,
}

const NOWHERE: Links = Links { newer: NONE, older: NONE };
const EMPTY: Ends = Ends { newest: NONE, oldest: NONE };

impl<const QUEUES: usize> Entries<QUEUES> {
    /// None yet; they will be out of date `ttl_seconds` after their insertion, or never if that is 0.
    pub fn new(ttl_seconds: u64) -> Self {
        Self {
            nodes: Vec::new(),
            free: NONE,
            table: HashTable::new(),
            queues: [Queue { ends: EMPTY, weight: 0, len: 0 }; QUEUES],
            ages: EMPTY,
            ttl_ms: ttl_seconds.saturating_mul(1000),
        }
    }

    /// Changes the time to live, also of what is there.
    pub fn set_ttl(&mut self, ttl_seconds: u64) {
        self.ttl_ms = ttl_seconds.saturating_mul(1000);
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// The weights of all.
    pub fn weight(&self) -> u128 {
        self.queues.iter().map(|queue| queue.weight).sum()
    }

    /// The weights of those in a queue.
    pub fn weight_of(&self, queue: usize) -> u128 {
        self.queues[queue].weight
    }

    /// How many are in a queue.
    pub fn len_of(&self, queue: usize) -> usize {
        self.queues[queue].len
    }

    /// Bytes that they take here.
    pub fn bytes(&self) -> usize {
        self.nodes.capacity() * size_of::<Node>() + self.table.allocation_size()
    }

    /// The entry of `key`.
    #[inline]
    pub fn find(&self, key: u64) -> Option<Slot> {
        self.table.find(hash(key), |&slot| self.nodes[slot as usize].key == key).map(|&slot| Slot(slot))
    }

    /// Adds an entry as the newest of a queue, without a mark. There is none of that key.
    ///
    /// # Panics
    /// With 2^32 - 1 entries or more.
    pub fn insert(&mut self, key: u64, weight: u64, now_ms: u64, queue: usize) {
        let node = Node {
            key,
            weight,
            inserted_ms: now_ms,
            queue: NOWHERE,
            age: NOWHERE,
            place: queue as u8,
            mark: 0,
        };
        let slot = match self.free {
            NONE => {
                assert!(self.nodes.len() < NONE as usize, "more entries than slots have numbers");
                self.nodes.push(node);
                (self.nodes.len() - 1) as u32
            }
            slot => {
                self.free = self.nodes[slot as usize].queue.older;
                self.nodes[slot as usize] = node;
                slot
            }
        };
        self.link(slot, queue);
        self.link_age(slot);
        let nodes = &self.nodes;
        self.table.insert_unique(hash(key), slot, |&slot| hash(nodes[slot as usize].key));
    }

    /// Gives an entry a new weight, and the age of one that is inserted now.
    pub fn renew(&mut self, Slot(slot): Slot, weight: u64, now_ms: u64) {
        let node = &mut self.nodes[slot as usize];
        let queue = &mut self.queues[node.place as usize];
        queue.weight = queue.weight - u128::from(node.weight) + u128::from(weight);
        node.weight = weight;
        node.inserted_ms = now_ms;
        self.unlink_age(slot);
        self.link_age(slot);
    }

    /// Makes an entry the newest of a queue.
    #[inline]
    pub fn move_to(&mut self, Slot(slot): Slot, queue: usize) {
        self.unlink(slot);
        self.link(slot, queue);
    }

    /// Removes an entry; returns its key and weight.
    pub fn remove(&mut self, Slot(slot): Slot) -> (u64, u64) {
        self.unlink(slot);
        self.unlink_age(slot);
        let Node { key, weight, .. } = self.nodes[slot as usize];
        if let Ok(found) = self.table.find_entry(hash(key), |&of| of == slot) {
            found.remove();
        }
        self.nodes[slot as usize].queue.older = self.free;
        self.free = slot;
        (key, weight)
    }

    /// Removes the entries that are out of date and appends their keys to `victims`; returns their weight.
    #[inline]
    pub fn expire(&mut self, now_ms: u64, victims: &mut Vec<u64>) -> u128 {
        let mut freed = 0;
        while self.ttl_ms > 0
            && let Some(node) = self.nodes.get(self.ages.oldest as usize)
            && now_ms.saturating_sub(node.inserted_ms) >= self.ttl_ms
        {
            let (key, weight) = self.remove(Slot(self.ages.oldest));
            victims.push(key);
            freed += u128::from(weight);
        }
        freed
    }

    /// The oldest of a queue.
    #[inline]
    pub fn oldest(&self, queue: usize) -> Option<Slot> {
        some(self.queues[queue].ends.oldest)
    }

    /// The next newer one of the same queue.
    #[inline]
    pub fn newer(&self, Slot(slot): Slot) -> Option<Slot> {
        some(self.nodes[slot as usize].queue.newer)
    }

    /// The queue that an entry is in.
    #[inline]
    pub fn queue(&self, Slot(slot): Slot) -> usize {
        self.nodes[slot as usize].place as usize
    }

    /// The key of an entry.
    #[inline]
    pub fn key(&self, Slot(slot): Slot) -> u64 {
        self.nodes[slot as usize].key
    }

    /// The weight of an entry.
    #[inline]
    pub fn weight_at(&self, Slot(slot): Slot) -> u64 {
        self.nodes[slot as usize].weight
    }

    /// A number that belongs to an entry and means what the policy makes of it.
    #[inline]
    pub fn mark(&mut self, Slot(slot): Slot) -> &mut u8 {
        &mut self.nodes[slot as usize].mark
    }

    fn link(&mut self, slot: u32, place: usize) {
        let queue = &mut self.queues[place];
        let older = std::mem::replace(&mut queue.ends.newest, slot);
        let node = &mut self.nodes[slot as usize];
        node.queue = Links { newer: NONE, older };
        node.place = place as u8;
        queue.weight += u128::from(node.weight);
        queue.len += 1;
        match self.nodes.get_mut(older as usize) {
            Some(older) => older.queue.newer = slot,
            None => queue.ends.oldest = slot,
        }
    }

    fn unlink(&mut self, slot: u32) {
        let node = &self.nodes[slot as usize];
        let Links { newer, older } = node.queue;
        let queue = &mut self.queues[node.place as usize];
        queue.weight -= u128::from(node.weight);
        queue.len -= 1;
        match self.nodes.get_mut(newer as usize) {
            Some(newer) => newer.queue.older = older,
            None => queue.ends.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(older) => older.queue.newer = newer,
            None => queue.ends.oldest = newer,
        }
    }

    fn link_age(&mut self, slot: u32) {
        let older = std::mem::replace(&mut self.ages.newest, slot);
        self.nodes[slot as usize].age = Links { newer: NONE, older };
        match self.nodes.get_mut(older as usize) {
            Some(older) => older.age.newer = slot,
            None => self.ages.oldest = slot,
        }
    }

    fn unlink_age(&mut self, slot: u32) {
        let Links { newer, older } = self.nodes[slot as usize].age;
        match self.nodes.get_mut(newer as usize) {
            Some(newer) => newer.age.older = older,
            None => self.ages.newest = older,
        }
        match self.nodes.get_mut(older as usize) {
            Some(older) => older.age.newer = newer,
            None => self.ages.oldest = newer,
        }
    }
}

fn some(slot: u32) -> Option<Slot> {
    (slot != NONE).then_some(Slot(slot))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn keys_in_a_row_are_spread() {
        for bits in [0, 32, 52] {
            let seen: HashSet<u64> = (0..1 << 12).map(|key| hash(key) >> bits & 0xFFF).collect();
            // Of 4,096 balls in as many bins, 63% of the bins have one.
            assert!(seen.len() > 2_300, "{} from bit {bits}", seen.len());
        }
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64, usize),
        Renew(u64, u64),
        Move(u64, usize),
        Remove(u64),
        Expire(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || 0u64..12;
        prop_oneof![
            3 => (key(), 0u64..50, 0usize..2).prop_map(|(key, weight, queue)| Step::Insert(key, weight, queue)),
            1 => (key(), 0u64..50).prop_map(|(key, weight)| Step::Renew(key, weight)),
            1 => (key(), 0usize..2).prop_map(|(key, queue)| Step::Move(key, queue)),
            1 => key().prop_map(Step::Remove),
            1 => (0u64..3_000).prop_map(Step::Expire),
        ]
    }

    proptest! {
        #[test]
        fn agree_with_lists(steps in prop::collection::vec(step(), 0..150), ttl_seconds in 0u64..4) {
            let mut entries = Entries::<2>::new(ttl_seconds);
            // Key, weight and time of insertion; the oldest first.
            let mut queues: [Vec<(u64, u64, u64)>; 2] = [vec![], vec![]];
            let mut now_ms = 0;
            let place = |queues: &[Vec<(u64, u64, u64)>; 2], key: u64| {
                (0..2).find_map(|q| Some((q, queues[q].iter().position(|entry| entry.0 == key)?)))
            };
            for step in steps {
                match step {
                    Step::Insert(key, weight, queue) => if entries.find(key).is_none() {
                        entries.insert(key, weight, now_ms, queue);
                        queues[queue].push((key, weight, now_ms));
                    },
                    Step::Renew(key, weight) => if let Some(slot) = entries.find(key) {
                        entries.renew(slot, weight, now_ms);
                        let (q, at) = place(&queues, key).unwrap();
                        queues[q][at] = (key, weight, now_ms);
                    },
                    Step::Move(key, queue) => if let Some(slot) = entries.find(key) {
                        entries.move_to(slot, queue);
                        let (q, at) = place(&queues, key).unwrap();
                        let entry = queues[q].remove(at);
                        queues[queue].push(entry);
                    },
                    Step::Remove(key) => {
                        let removed = entries.find(key).map(|slot| entries.remove(slot));
                        let entry = place(&queues, key).map(|(q, at)| queues[q].remove(at));
                        prop_assert_eq!(removed, entry.map(|entry| (entry.0, entry.1)));
                    }
                    Step::Expire(ms) => {
                        now_ms += ms;
                        let (mut victims, mut expected, mut weight) = (vec![], vec![], 0);
                        let freed = entries.expire(now_ms, &mut victims);
                        for queue in &mut queues {
                            queue.retain(|&(key, of, inserted)| {
                                let old = ttl_seconds > 0 && now_ms - inserted >= ttl_seconds * 1000;
                                if old {
                                    expected.push(key);
                                    weight += u128::from(of);
                                }
                                !old
                            });
                        }
                        victims.sort_unstable();
                        expected.sort_unstable();
                        prop_assert_eq!((freed, victims), (weight, expected));
                    }
                }
                for (q, queue) in queues.iter().enumerate() {
                    let mut slot = entries.oldest(q);
                    for &(key, weight, _) in queue {
                        let at = slot.unwrap();
                        prop_assert_eq!((entries.key(at), entries.weight_at(at), entries.queue(at)), (key, weight, q));
                        prop_assert_eq!(entries.find(key), slot);
                        slot = entries.newer(at);
                    }
                    prop_assert_eq!(slot, None);
                    prop_assert_eq!(entries.len_of(q), queue.len());
                    prop_assert_eq!(entries.weight_of(q), queue.iter().map(|entry| u128::from(entry.1)).sum());
                }
                prop_assert_eq!(entries.len(), queues[0].len() + queues[1].len());
                prop_assert!(entries.nodes.len() <= 12, "slots are used again");
            }
        }
    }
}
