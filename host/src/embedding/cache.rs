//! The in-memory cache of vectors. The policy plugin decides what goes; the values are here.
use magray_plugin_api::{Error, ErrorCode, Result, Role, host::ContainedPolicy};
use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Instant,
};

/// Bytes that an entry takes beside its vector: keys and table slots, in the host and the policy.
const ENTRY_OVERHEAD: usize = 96;

/// How much the cache may hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Bytes of vectors and their keys.
    pub max_bytes: u64,
    /// Vectors.
    pub max_entries: usize,
}

/// Vectors by space, role and text, bounded by bytes and entries.
///
/// Threads: any; one lock.
#[expect(missing_debug_implementations, reason = "a policy has nothing to show")]
pub struct EmbeddingCache {
    limits: CacheLimits,
    start: Instant,
    held: Mutex<Held>,
}

struct Held {
    /// None after it panicked: the cache is then off.
    policy: Option<ContainedPolicy>,
    entries: HashMap<u64, Entry>,
    bytes: u64,
}

struct Entry {
    /// The policy sees 64 bits of the key; the other half tells two texts apart that share them.
    check: u64,
    vector: Box<[f32]>,
}

/// A text's name in the cache.
pub(super) struct Key {
    id: u64,
    check: u64,
}

/// The key of a text in a space.
pub(super) fn key(space: &[u8; 32], role: Role, text: &str) -> Key {
    let mut hasher = blake3::Hasher::new();
    hasher.update(space).update(&[role as u8]).update(text.as_bytes());
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    let half = |at: usize| bytes[at..at + 8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
    Key { id: half(0), check: half(8) }
}

impl EmbeddingCache {
    /// An empty cache ruled by `policy`.
    pub fn new(mut policy: ContainedPolicy, limits: CacheLimits) -> Self {
        let granted = policy.on_capacity(limits.max_bytes);
        let held = Held { policy: Some(policy), entries: HashMap::new(), bytes: 0 };
        let cache = Self { limits, start: Instant::now(), held: Mutex::new(held) };
        cache.held().settle(granted);
        cache
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Copies the vector of `key` into `out`, where it is held.
    pub(super) fn get(&self, key: &Key, out: &mut [f32]) -> bool {
        let mut held = self.held();
        // Out of date is for the policy to say, so it is asked before the entry is trusted.
        held.evict(0, self.now_ms());
        let found = held.entries.get(&key.id).filter(|entry| entry.check == key.check);
        let Some(entry) = found else { return false };
        out.copy_from_slice(&entry.vector);
        let now_ms = self.now_ms();
        let told = held.policy.as_mut().map_or(Ok(()), |policy| policy.on_hit(key.id, now_ms));
        held.settle(told);
        true
    }

    /// Holds `vector` under `key`, dropping what the policy names to make room.
    pub(super) fn insert(&self, key: &Key, vector: &[f32]) {
        let weight = weight(vector);
        let mut held = self.held();
        let Some(policy) = &mut held.policy else { return };
        let now_ms = self.now_ms();
        let told = policy.on_insert(key.id, weight, now_ms);
        held.settle(told);
        if held.policy.is_none() {
            return;
        }
        let entry = Entry { check: key.check, vector: vector.into() };
        if held.entries.insert(key.id, entry).is_none() {
            held.bytes += weight;
        }
        let over = held.bytes.saturating_sub(self.limits.max_bytes);
        let crowd = held.entries.len().saturating_sub(self.limits.max_entries) as u64;
        if over > 0 || crowd > 0 {
            held.evict(over.max(crowd * weight), now_ms);
        }
        if held.bytes > self.limits.max_bytes || held.entries.len() > self.limits.max_entries {
            held.settle(Err(Error::new(ErrorCode::INTERNAL, "it makes no room")));
        }
    }
}

/// All vectors of a cache have the width of its space, so an entry replaces one of equal weight.
fn weight(vector: &[f32]) -> u64 {
    (size_of_val(vector) + ENTRY_OVERHEAD) as u64
}

impl Held {
    fn evict(&mut self, bytes: u64, now_ms: u64) {
        let Self { policy: Some(policy), entries, bytes: held } = self else { return };
        let told = policy.evict(bytes, now_ms, |key| {
            if let Some(entry) = entries.remove(&key) {
                *held -= weight(&entry.vector);
            }
        });
        self.settle(told);
    }

    /// A policy that failed no longer knows what is held: go on without a cache.
    fn settle(&mut self, told: Result<()>) {
        if let Err(error) = told {
            tracing::warn!("the cache policy failed and the cache is now off: {error}");
            self.policy = None;
            self.entries = HashMap::new();
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugins::{PluginOptions, Plugins};

    const SPACE: [u8; 32] = [1; 32];

    fn cache(max_bytes: u64, max_entries: usize) -> EmbeddingCache {
        let plugins = Plugins::discover(PluginOptions::default(), &[&magray_cache_lru::PLUGIN]);
        let policy = plugins.cache_policy("lru", "{}").unwrap();
        EmbeddingCache::new(policy, CacheLimits { max_bytes, max_entries })
    }

    fn get(cache: &EmbeddingCache, text: &str) -> Option<[f32; 2]> {
        let mut out = [0.0; 2];
        cache.get(&key(&SPACE, Role::Query, text), &mut out).then_some(out)
    }

    fn put(cache: &EmbeddingCache, text: &str, vector: [f32; 2]) {
        cache.insert(&key(&SPACE, Role::Query, text), &vector);
    }

    #[test]
    fn what_was_put_in_comes_out() {
        let cache = cache(1 << 20, 100);
        assert_eq!(get(&cache, "a"), None);
        put(&cache, "a", [1.0, 2.0]);
        put(&cache, "b", [3.0, 4.0]);
        put(&cache, "a", [5.0, 6.0]);
        assert_eq!((get(&cache, "a"), get(&cache, "b")), (Some([5.0, 6.0]), Some([3.0, 4.0])));
    }

    #[test]
    fn spaces_and_roles_do_not_mix() {
        let cache = cache(1 << 20, 100);
        put(&cache, "a", [1.0, 2.0]);
        let mut out = [0.0; 2];
        assert!(!cache.get(&key(&SPACE, Role::Passage, "a"), &mut out));
        assert!(!cache.get(&key(&[2; 32], Role::Query, "a"), &mut out));
    }

    #[test]
    fn bytes_and_entries_are_bounded() {
        let weight = weight(&[0.0; 2]);
        for (max_bytes, max_entries) in [(weight * 3, 1000), (1 << 20, 3)] {
            let cache = cache(max_bytes, max_entries);
            for text in 0..50 {
                put(&cache, &text.to_string(), [1.0, text as f32]);
            }
            let held = cache.held();
            assert_eq!((held.entries.len(), held.bytes), (3, weight * 3));
            drop(held);
            assert_eq!(get(&cache, "49"), Some([1.0, 49.0]));
            assert_eq!(get(&cache, "0"), None);
        }
    }

    #[test]
    fn a_vector_larger_than_the_cache_is_not_held() {
        let cache = cache(10, 1000);
        put(&cache, "a", [1.0, 2.0]);
        assert_eq!(get(&cache, "a"), None);
    }
}
