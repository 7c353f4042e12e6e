//! The cache of vectors: a level in memory and, where there is one, a level on disk. The policy
//! plugin decides what goes from memory; the values are here.
use crate::store::{CacheCounts, CacheKey, CacheSpace, DiskCache, LookupWindow, Lookups};
use magray_plugin_api::{EmbedderInfo, Error, ErrorCode, MemoryUse, Result, Role, host::ContainedPolicy};
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

/// Bytes that an entry takes beside its vector: keys and table slots, in the host and the policy.
const ENTRY_OVERHEAD: usize = 104;
/// Entries for which room is made at once, so that a full cache that is written to all the time does
/// not evict for each; never more than a tenth of what is held.
const EVICT_BATCH: usize = 500;

/// How much the level in memory may hold.
#[derive(Clone, Copy, Debug)]
pub struct CacheLimits {
    /// Bytes of vectors and their keys.
    pub max_bytes: u64,
    /// Vectors.
    pub max_entries: usize,
}

/// What the level in memory holds, and what it did.
#[derive(Clone, Copy, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct MemoryCacheStats {
    pub entries: u64,
    /// Bytes of vectors and their keys.
    pub bytes: u64,
    pub counts: CacheCounts,
}

/// Vectors by space, role and text, bounded by bytes and entries.
///
/// Threads: any; one lock for the level in memory, and one for the level on disk.
#[expect(missing_debug_implementations, reason = "a policy has nothing to show")]
pub struct EmbeddingCache {
    start: Instant,
    held: Mutex<Held>,
    disk: Option<Disk>,
}

/// Whether the cache answers enough of what searches ask.
#[derive(Default)]
struct Alert {
    /// Percent of look-ups that must be answered; 0 is no alert.
    percent: u64,
    /// Look-ups that the window has.
    lookups: u64,
    window: LookupWindow,
    is_low: bool,
}

impl Alert {
    /// Returns the hit rate where it has just fallen below what it must be.
    fn note(&mut self, lookups: Lookups) -> Option<f64> {
        self.window.add(lookups, self.lookups);
        let total = self.window.total();
        let was_low = std::mem::replace(&mut self.is_low, total.is_low(self.lookups, self.percent));
        total.hit_percent().filter(|_| self.is_low && !was_low)
    }
}

/// The level on disk.
struct Disk {
    cache: DiskCache,
    /// That of the vectors that go there; none before it is known.
    space: Option<Arc<CacheSpace>>,
    /// A text that is computed quicker than this is not worth a look at the disk.
    min_cost: Duration,
    /// Nanoseconds that the last texts took to compute; nothing is known at first.
    cost_ns: AtomicU64,
    alert: Mutex<Alert>,
}

impl Disk {
    fn is_worth_it(&self) -> bool {
        u128::from(self.cost_ns.load(Ordering::Relaxed)) >= self.min_cost.as_nanos()
    }
}

struct Held {
    limits: CacheLimits,
    /// None after it panicked: the level is then off.
    policy: Option<ContainedPolicy>,
    entries: HashMap<u64, Entry>,
    bytes: u64,
    counts: CacheCounts,
}

struct Entry {
    /// The policy sees 64 bits of the key; the other half tells two texts apart that share them.
    check: u64,
    /// When it is too old, whatever the policy says: it had an age when it came from disk.
    expires_ms: u64,
    vector: Box<[f32]>,
}

/// The key of a text in a space.
pub(super) fn key(space: &[u8; 32], role: Role, text: &str) -> CacheKey {
    let mut hasher = blake3::Hasher::new();
    hasher.update(space).update(&[role as u8]).update(text.as_bytes());
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    let half = |at: usize| bytes[at..at + 8].iter().fold(0, |number, &byte| number << 8 | u64::from(byte));
    CacheKey { id: half(0), check: half(8) }
}

impl EmbeddingCache {
    /// An empty cache in memory, ruled by `policy`.
    pub fn new(mut policy: ContainedPolicy, limits: CacheLimits) -> Self {
        let granted = policy.on_capacity(limits.max_bytes);
        let counts = CacheCounts::default();
        let held = Held { limits, policy: Some(policy), entries: HashMap::new(), bytes: 0, counts };
        let cache = Self { start: Instant::now(), held: Mutex::new(held), disk: None };
        cache.held().settle(granted);
        cache
    }

    /// Puts a level on disk behind it. It is used while a text takes at least `min_cost` to compute; it then warns, too,
    /// where fewer than `alert_percent` of a hundred of the last look-ups by searches were answered.
    #[must_use]
    pub fn with_disk(mut self, cache: DiskCache, min_cost: Duration, alert_percent: u64) -> Self {
        let lookups = cache.options().lookups;
        let alert = Mutex::new(Alert { percent: alert_percent, lookups, ..Alert::default() });
        self.disk = Some(Disk { cache, space: None, min_cost, cost_ns: AtomicU64::new(u64::MAX), alert });
        self
    }

    /// Tells it whose vectors it holds.
    pub(super) fn of(mut self, info: &EmbedderInfo) -> Self {
        if let Some(disk) = &mut self.disk {
            let space = CacheSpace { digest: info.space, model: info.model.clone(), dim: info.dim };
            disk.space = Some(Arc::new(space));
        }
        self
    }

    /// Tells it how long the backend took for a text, without any wait for its turn.
    pub(super) fn note_cost(&self, text_time: Duration) {
        if let Some(disk) = &self.disk {
            let ns = u64::try_from(text_time.as_nanos()).unwrap_or(u64::MAX);
            disk.cost_ns.store(ns, Ordering::Relaxed);
        }
    }

    /// Notes what was looked for, and warns where the hit rate falls below what it must be. What is not of a search
    /// does not count, nor what is computed quicker than it is found on disk: that costs nothing.
    pub(super) fn note_lookups(&self, role: Role, lookups: Lookups) {
        let disk = self.disk.as_ref().filter(|disk| role == Role::Query && disk.is_worth_it());
        let Some(Disk { cache, alert, .. }) = disk else { return };
        cache.add_lookups(lookups);
        let fell = alert.lock().unwrap_or_else(PoisonError::into_inner).note(lookups);
        if let Some(percent) = fell {
            tracing::warn!(
                "the cache of embeddings answers only {percent:.1}% of what searches look for; `magray cache stats` says what to do"
            );
        }
    }

    /// What the level in memory holds, and what it did.
    pub fn memory(&self) -> MemoryCacheStats {
        let held = self.held();
        MemoryCacheStats { entries: held.entries.len() as u64, bytes: held.bytes, counts: held.counts }
    }

    /// What the policy says that its own books take; nothing where it failed.
    pub fn policy_memory(&self) -> MemoryUse {
        self.held().policy.as_ref().map(ContainedPolicy::memory_use).unwrap_or_default()
    }

    /// From now on the level in memory may hold so many bytes. What is too much goes, as the policy says; on disk it
    /// stays.
    pub fn set_max_bytes(&self, max_bytes: u64) {
        let mut held = self.held();
        if held.limits.max_bytes == max_bytes {
            return;
        }
        held.limits.max_bytes = max_bytes;
        if let Some(policy) = &mut held.policy {
            let told = policy.on_capacity(max_bytes);
            held.settle(told);
        }
        let over = held.bytes.saturating_sub(max_bytes);
        held.drop_bytes(over, self.now_ms());
        if held.bytes > max_bytes {
            held.settle(Err(Error::new(ErrorCode::INTERNAL, "it makes no room")));
        }
    }

    /// Drops all that the level in memory holds; on disk it stays. Returns how many bytes that were.
    pub fn empty_memory(&self) -> u64 {
        let mut held = self.held();
        let before = held.bytes;
        held.drop_bytes(before, self.now_ms());
        held.entries.shrink_to_fit();
        before - held.bytes
    }

    /// The level on disk.
    pub fn disk(&self) -> Option<&DiskCache> {
        self.disk.as_ref().map(|disk| &disk.cache)
    }

    /// Drops what is out of date from both levels. Returns how many vectors went.
    pub fn trim(&self) -> u64 {
        let expired = {
            let mut held = self.held();
            let expired = held.evict(0, self.now_ms());
            held.counts.expired += expired;
            expired
        };
        expired + self.disk().and_then(DiskCache::trim).unwrap_or(0)
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        millis(self.start.elapsed())
    }

    /// Copies the vector of `key` into `out`, where a level holds it.
    pub(crate) fn get(&self, key: &CacheKey, out: &mut [f32]) -> bool {
        if self.held().get(key, out, self.now_ms()) {
            return true;
        }
        let Some(Disk { cache, .. }) = self.disk.as_ref().filter(|disk| disk.is_worth_it()) else {
            return false;
        };
        let Some(left) = cache.get(*key, out) else { return false };
        self.hold(key, out, self.now_ms().saturating_add(millis(left)));
        true
    }

    /// Holds `vector` under `key`, dropping what the policy names to make room.
    pub(crate) fn insert(&self, key: &CacheKey, vector: &[f32]) {
        self.hold(key, vector, u64::MAX);
        if let Some(Disk { cache, space: Some(space), .. }) =
            self.disk.as_ref().filter(|disk| disk.is_worth_it())
        {
            cache.put(space, *key, vector);
        }
    }

    fn hold(&self, key: &CacheKey, vector: &[f32], expires_ms: u64) {
        let weight = weight(vector);
        let mut held = self.held();
        let Some(policy) = &mut held.policy else { return };
        let now_ms = self.now_ms();
        let told = policy.on_insert(key.id, weight, now_ms);
        held.settle(told);
        if held.policy.is_none() {
            return;
        }
        held.counts.insertions += 1;
        let entry = Entry { check: key.check, expires_ms, vector: vector.into() };
        if held.entries.insert(key.id, entry).is_none() {
            held.bytes += weight;
        }
        let limits = held.limits;
        let over = held.bytes.saturating_sub(limits.max_bytes);
        let crowd = held.entries.len().saturating_sub(limits.max_entries) as u64;
        if over > 0 || crowd > 0 {
            let batch = (EVICT_BATCH - 1).min(held.entries.len() / 10) as u64;
            let evicted = held.evict(over.max(crowd * weight) + batch * weight, now_ms);
            held.counts.evictions += evicted;
        }
        if held.bytes > limits.max_bytes || held.entries.len() > limits.max_entries {
            held.settle(Err(Error::new(ErrorCode::INTERNAL, "it makes no room")));
        }
    }
}

impl Drop for EmbeddingCache {
    fn drop(&mut self) {
        if let Some(Disk { cache, .. }) = &self.disk {
            cache.add_memory_counts(&self.held().counts);
        }
    }
}

/// All vectors of a cache have the width of its space, so an entry replaces one of equal weight.
fn weight(vector: &[f32]) -> u64 {
    (size_of_val(vector) + ENTRY_OVERHEAD) as u64
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Held {
    fn get(&mut self, key: &CacheKey, out: &mut [f32], now_ms: u64) -> bool {
        // Out of date is for the policy to say, so it is asked before the entry is trusted.
        let expired = self.evict(0, now_ms);
        self.counts.expired += expired;
        let found = self.entries.get(&key.id).filter(|entry| entry.check == key.check);
        let Some(entry) = found.filter(|entry| now_ms < entry.expires_ms) else {
            self.counts.misses += 1;
            return false;
        };
        out.copy_from_slice(&entry.vector);
        self.counts.hits += 1;
        let told = self.policy.as_mut().map_or(Ok(()), |policy| policy.on_hit(key.id, now_ms));
        self.settle(told);
        true
    }

    /// Makes so many bytes of room, where that is any.
    fn drop_bytes(&mut self, bytes: u64, now_ms: u64) {
        if bytes > 0 {
            self.counts.evictions += self.evict(bytes, now_ms);
            self.entries.shrink_to(2 * self.entries.len());
        }
    }

    /// Drops what the policy names; returns how many.
    fn evict(&mut self, bytes: u64, now_ms: u64) -> u64 {
        let Self { policy: Some(policy), entries, bytes: held, .. } = self else { return 0 };
        let mut dropped = 0;
        let told = policy.evict(bytes, now_ms, |key| {
            if let Some(entry) = entries.remove(&key) {
                *held -= weight(&entry.vector);
                dropped += 1;
            }
        });
        self.settle(told);
        dropped
    }

    /// A policy that failed no longer knows what is held: go on without this level.
    fn settle(&mut self, told: Result<()>) {
        if let Err(error) = told {
            tracing::warn!("the cache policy failed and the in-memory cache is now off: {error}");
            self.policy = None;
            self.entries = HashMap::new();
            self.bytes = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        plugins::{PluginOptions, Plugins},
        store::DiskCacheOptions,
    };
    use std::path::Path;

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
    fn room_is_made_for_many_at_once() {
        let cache = cache(1 << 20, 1000);
        (0..1001).for_each(|text| put(&cache, &text.to_string(), [1.0, text as f32]));
        let memory = cache.memory();
        assert_eq!((memory.entries, memory.counts.evictions), (900, 101));
        assert_eq!((get(&cache, "100"), get(&cache, "101")), (None, Some([1.0, 101.0])));
        assert_eq!(memory.bytes, 900 * weight(&[0.0; 2]));
    }

    #[test]
    fn a_smaller_grant_evicts_and_a_larger_one_holds_more() {
        let each = weight(&[0.0; 2]);
        let folder = tempfile::tempdir().unwrap();
        let cache = with_disk(folder.path(), 1000, None);
        let fill = || (0..100).for_each(|text| put(&cache, &text.to_string(), [0.5, 0.25]));
        fill();
        assert_eq!(cache.memory().bytes, 100 * each);
        cache.set_max_bytes(40 * each);
        let shrunk = cache.memory();
        assert_eq!((shrunk.bytes, shrunk.entries, shrunk.counts.evictions), (40 * each, 40, 60));
        // The oldest went, and are found on disk.
        cache.disk().unwrap().flush();
        assert_eq!((get(&cache, "0"), get(&cache, "99")), (Some([0.5, 0.25]), Some([0.5, 0.25])));
        assert!(cache.memory().bytes <= 40 * each);
        cache.set_max_bytes(200 * each);
        fill();
        assert_eq!(cache.memory().entries, 100);
        assert!(cache.policy_memory().resident > 0);
        assert_eq!(cache.empty_memory(), 100 * each);
        assert_eq!((cache.memory().bytes, cache.memory().entries), (0, 0));
        put(&cache, "again", [0.5, 0.25]);
        assert_eq!(get(&cache, "again"), Some([0.5, 0.25]));
    }

    #[test]
    fn the_alert_comes_once_for_each_fall() {
        let mut alert = Alert { percent: 80, lookups: 20, ..Alert::default() };
        let mut falls =
            |times, answered| (0..times).filter_map(|_| alert.note(Lookups { asked: 1, answered })).count();
        assert_eq!(falls(19, 0), 0);
        assert_eq!(falls(100, 0), 1);
        assert_eq!(falls(100, 1), 0);
        assert_eq!(falls(100, 0), 1);
    }

    #[test]
    fn only_searches_count_and_only_where_the_disk_is_worth_it() {
        let folder = tempfile::tempdir().unwrap();
        let cache = with_disk(folder.path(), 10, None);
        let missed = Lookups { asked: 6, answered: 0 };
        put(&cache, "a", [0.5, 0.25]);
        cache.note_lookups(Role::Passage, missed);
        cache.note_lookups(Role::Query, missed);
        cache.note_cost(Duration::from_micros(1));
        cache.note_lookups(Role::Query, Lookups { asked: 3, answered: 3 });
        let own = cache.disk.as_ref().unwrap().alert.lock().unwrap().window.total();
        assert_eq!(own, missed);
        drop(cache);
        let kept = with_disk(folder.path(), 10, None).disk().unwrap().stats().unwrap();
        assert_eq!(kept.lookups, missed);
    }

    #[test]
    fn what_it_does_is_counted() {
        let cache = cache(1 << 20, 3);
        put(&cache, "a", [1.0, 2.0]);
        get(&cache, "a");
        get(&cache, "b");
        (0..5).for_each(|text| put(&cache, &text.to_string(), [1.0, 1.0]));
        let counts = CacheCounts { hits: 1, misses: 1, insertions: 6, evictions: 3, expired: 0 };
        assert_eq!(cache.memory().counts, counts);
    }

    fn with_disk(folder: &Path, max_entries: usize, ttl: Option<Duration>) -> EmbeddingCache {
        let options = DiskCacheOptions { ttl, max_bytes: u64::MAX, max_entries: u64::MAX, lookups: 10 };
        let disk = DiskCache::new(&folder.join("cache.db"), options);
        let info = EmbedderInfo { dim: 2, max_tokens: 9, max_batch: 9, model: "m".to_owned(), space: SPACE };
        cache(1 << 20, max_entries).with_disk(disk, Duration::from_micros(50), 80).of(&info)
    }

    #[test]
    fn what_is_not_in_memory_comes_from_disk_and_stays_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        let cache = with_disk(folder.path(), 10, None);
        put(&cache, "a", [0.5, 0.25]);
        assert_eq!(get(&cache, "a"), Some([0.5, 0.25]));
        drop(cache);
        let cache = with_disk(folder.path(), 10, None);
        assert_eq!(get(&cache, "a"), Some([0.5, 0.25]));
        assert_eq!(get(&cache, "a"), Some([0.5, 0.25]));
        assert_eq!(get(&cache, "b"), None);
        let disk = cache.disk().unwrap();
        assert_eq!((disk.counts().hits, disk.counts().misses), (1, 1));
        assert_eq!((cache.memory().counts.hits, cache.memory().counts.misses), (1, 2));
        // What it did before it was dropped is in the totals.
        let totals = disk.stats().unwrap().memory_totals;
        assert_eq!((totals.hits, totals.misses, totals.insertions), (1, 0, 1));
    }

    #[test]
    fn what_is_quick_to_compute_is_not_looked_for_on_disk() {
        let folder = tempfile::tempdir().unwrap();
        let cache = with_disk(folder.path(), 10, None);
        assert_eq!(get(&cache, "a"), None);
        cache.note_cost(Duration::from_micros(1));
        put(&cache, "a", [0.5, 0.25]);
        assert_eq!(get(&cache, "b"), None);
        drop(cache);
        assert!(!folder.path().join("cache.db").exists());

        let cache = with_disk(folder.path(), 10, None);
        cache.note_cost(Duration::from_millis(1));
        put(&cache, "a", [0.5, 0.25]);
        drop(cache);
        assert_eq!(get(&with_disk(folder.path(), 10, None), "a"), Some([0.5, 0.25]));
    }

    #[test]
    fn what_came_from_disk_is_no_younger_in_memory() {
        let folder = tempfile::tempdir().unwrap();
        put(&with_disk(folder.path(), 10, None), "a", [0.5, 0.25]);
        let cache = with_disk(folder.path(), 10, Some(Duration::from_secs(1000)));
        assert!(get(&cache, "a").is_some());
        let expires_ms = cache.held().entries[&key(&SPACE, Role::Query, "a").id].expires_ms;
        assert!(expires_ms <= cache.now_ms() + 1_000_000, "{expires_ms}");
        cache.held().entries.values_mut().for_each(|entry| entry.expires_ms = 0);
        let mut out = [0.0; 2];
        assert!(!cache.held().get(&key(&SPACE, Role::Query, "a"), &mut out, 1));
    }

    #[test]
    fn a_vector_larger_than_the_cache_is_not_held() {
        let cache = cache(10, 1000);
        put(&cache, "a", [1.0, 2.0]);
        assert_eq!(get(&cache, "a"), None);
    }
}
