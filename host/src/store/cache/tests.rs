use super::{
    file::{EVICT_BATCH, RENEW_AFTER_S},
    *,
};
use half::f16;
use proptest::prelude::*;
use std::{collections::BTreeMap, fs};
use tempfile::TempDir;

const UNBOUNDED: DiskCacheOptions =
    DiskCacheOptions { ttl: None, max_bytes: u64::MAX, max_entries: u64::MAX, lookups: 10 };

fn space(model: &str, dim: usize) -> Arc<CacheSpace> {
    Arc::new(CacheSpace { digest: *blake3::hash(model.as_bytes()).as_bytes(), model: model.into(), dim })
}

fn key(number: u64) -> CacheKey {
    CacheKey { id: number.wrapping_mul(0x9e37_79b9_7f4a_7c15), check: number }
}

fn vector(number: u64, dim: usize) -> Vec<f32> {
    (0..dim)
        .map(|at| f16::from_f32(((number * 31 + at as u64 * 7) % 2003) as f32 / 2003.0).to_f32())
        .collect()
}

fn cache_in(folder: &TempDir) -> DiskCache {
    DiskCache::new(&folder.path().join("cache.db"), UNBOUNDED)
}

fn filled(folder: &TempDir, entries: u64) -> DiskCache {
    let (cache, space) = (cache_in(folder), space("m", 8));
    for number in 0..entries {
        cache.put(&space, key(number), &vector(number, 8));
        if number % 1000 == 999 {
            cache.flush();
        }
    }
    cache.flush();
    cache
}

fn get(cache: &DiskCache, number: u64) -> Option<Vec<f32>> {
    let mut out = vec![0.0; 8];
    cache.get(key(number), &mut out).map(|_| out)
}

#[test]
fn what_was_put_is_there_in_another_process() {
    let folder = tempfile::tempdir().unwrap();
    drop(filled(&folder, 10));
    let cache = cache_in(&folder);
    for number in 0..10 {
        assert_eq!(get(&cache, number), Some(vector(number, 8)));
    }
    assert_eq!(get(&cache, 10), None);
    assert_eq!(cache.counts(), CacheCounts { hits: 10, misses: 1, ..CacheCounts::default() });
}

#[test]
fn a_key_that_shares_a_half_is_another_key() {
    let folder = tempfile::tempdir().unwrap();
    let cache = filled(&folder, 1);
    let mut out = [0.0; 8];
    assert!(cache.get(CacheKey { check: 77, ..key(0) }, &mut out).is_none());
    cache.put(&space("m", 8), CacheKey { check: 77, ..key(0) }, &vector(5, 8));
    cache.flush();
    assert_eq!(get(&cache, 0), None);
    assert_eq!(cache.stats().unwrap().entries, 1);
}

#[test]
fn totals_outlive_the_process() {
    let folder = tempfile::tempdir().unwrap();
    let cache = filled(&folder, 3);
    get(&cache, 0);
    get(&cache, 9);
    cache.add_memory_counts(&CacheCounts { hits: 5, misses: 2, ..CacheCounts::default() });
    drop(cache);
    let cache = cache_in(&folder);
    get(&cache, 1);
    drop(cache);
    let stats = cache_in(&folder).stats().unwrap();
    assert_eq!(stats.memory_totals, CacheCounts { hits: 5, misses: 2, ..CacheCounts::default() });
    assert_eq!(
        stats.disk_totals,
        CacheCounts { hits: 2, misses: 1, insertions: 3, ..CacheCounts::default() }
    );
}

#[test]
fn one_space_is_cleared_and_the_other_stays() {
    let folder = tempfile::tempdir().unwrap();
    let cache = filled(&folder, 5);
    for number in 100..103 {
        cache.put(&space("other", 4), key(number), &vector(number, 4));
    }
    cache.flush();
    let stats = cache.stats().unwrap();
    let found: Vec<_> = stats.spaces.iter().map(|space| (space.model.as_str(), space.entries)).collect();
    assert_eq!(found, [("m", 5), ("other", 3)]);
    assert_eq!(cache.clear(Some(&stats.spaces[0]), false), Some(5));
    assert_eq!(get(&cache, 0), None);
    let after = cache.stats().unwrap();
    assert_eq!((after.entries, after.bytes), (3, stats.spaces[1].bytes));
    // The space that another connection remembers is entered again.
    cache.put(&space("m", 8), key(0), &vector(0, 8));
    cache.flush();
    assert_eq!(get(&cache, 0), Some(vector(0, 8)));
    assert_eq!(cache.clear(None, false), Some(4));
    assert_eq!((cache.stats().unwrap().entries, cache.stats().unwrap().bytes), (0, 0));
}

#[test]
fn many_use_one_file_at_once() {
    let folder = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let cache = cache_in(&folder);
            scope.spawn(move || {
                for number in 0..600 {
                    let number = number + 300 * thread;
                    cache.put(&space("m", 8), key(number), &vector(number, 8));
                    if let Some(found) = get(&cache, number + 150) {
                        assert_eq!(found, vector(number + 150, 8));
                    }
                }
            });
        }
    });
    let cache = cache_in(&folder);
    assert_eq!(cache.stats().unwrap().entries, 2100);
    assert_eq!(cache.stats().unwrap().disk_totals.insertions, 3600);
}

/// Opens a cache over bytes that are not what was written; whatever it finds must be right.
fn survives(folder: &TempDir, bytes: &[u8]) {
    let path = folder.path().join("cache.db");
    for log in ["cache.db-wal", "cache.db-shm"] {
        drop(fs::remove_file(folder.path().join(log)));
    }
    fs::write(&path, bytes).unwrap();
    let cache = cache_in(folder);
    for number in 0..200 {
        if let Some(found) = get(&cache, number) {
            assert_eq!(found, vector(number, 8), "a wrong vector");
        }
    }
    // It works again, whatever it was.
    let is_usable = || {
        (0..200).for_each(|number| cache.put(&space("m", 8), key(number), &vector(number, 8)));
        cache.flush();
        cache.stats().is_some()
    };
    // Damage may lie where only the statistics look. Then the file is moved away, and the next write makes a new one.
    assert!(is_usable() || is_usable(), "it never works again");
    drop(cache);
    let cache = cache_in(folder);
    for number in 0..200 {
        if let Some(found) = get(&cache, number) {
            assert_eq!(found, vector(number, 8), "a wrong vector");
        }
    }
}

#[test]
fn a_file_of_something_else_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    for bytes in [b"Dear diary, ".repeat(1000), vec![0; 100_000]] {
        survives(&folder, &bytes);
        assert!(fs::read(folder.path().join("cache.db.damaged")).unwrap() == bytes);
        assert_eq!(cache_in(&folder).stats().unwrap().entries, 200);
    }
    for nothing in ["", "x"] {
        survives(&folder, nothing.as_bytes());
    }
}

#[test]
fn a_newer_file_is_moved_aside() {
    let folder = tempfile::tempdir().unwrap();
    drop(filled(&folder, 3));
    let path = folder.path().join("cache.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let cache = cache_in(&folder);
    assert_eq!(get(&cache, 0), None);
    assert!(cache.stats().is_none() && !path.exists(), "only a write makes a new one");
    assert!(folder.path().join("cache.db.damaged").exists());
}

#[test]
fn a_damaged_vector_moves_the_file_aside() {
    let folder = tempfile::tempdir().unwrap();
    drop(filled(&folder, 200));
    let path = folder.path().join("cache.db");
    let mut bytes = fs::read(&path).unwrap();
    let stored: Vec<u8> = file::encode(&vector(120, 8)).unwrap();
    // A page may still hold copies of what it held before it was split.
    let found: Vec<usize> =
        (0..bytes.len() - stored.len()).filter(|&at| bytes[at..].starts_with(&stored)).collect();
    found.into_iter().for_each(|at| bytes[at + 3] ^= 1);
    fs::write(&path, &bytes).unwrap();
    let cache = cache_in(&folder);
    assert_eq!(get(&cache, 120), None);
    assert_eq!(get(&cache, 5), None, "nothing else of that file is believed");
    assert!(folder.path().join("cache.db.damaged").exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    #[test]
    fn no_damage_gives_a_wrong_vector(flips in prop::collection::vec((any::<u32>(), 0u8..8), 0..30), cut: Option<u16>) {
        let folder = tempfile::tempdir().unwrap();
        drop(filled(&folder, 200));
        let mut bytes = fs::read(folder.path().join("cache.db")).unwrap();
        for (at, bit) in flips {
            let at = at as usize % bytes.len();
            bytes[at] ^= 1 << bit;
        }
        if let Some(cut) = cut {
            bytes.truncate(usize::from(cut) % bytes.len());
        }
        survives(&folder, &bytes);
    }
}

#[cfg(unix)]
#[test]
fn a_place_that_cannot_be_used_only_misses() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    fs::write(&blocked, "").unwrap();
    let cache = DiskCache::new(&blocked.join("cache.db"), UNBOUNDED);
    assert_eq!(get(&cache, 0), None);
    cache.put(&space("m", 8), key(0), &vector(0, 8));
    cache.flush();
    assert_eq!(get(&cache, 0), None);
    assert!(cache.stats().is_none());
    assert!(cache.clear(None, false).is_none());
}

#[test]
fn a_file_that_another_process_writes_to_is_read_and_the_write_is_given_up() {
    let folder = tempfile::tempdir().unwrap();
    let cache = filled(&folder, 3);
    let other = rusqlite::Connection::open(cache.path()).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    assert_eq!(get(&cache, 1), Some(vector(1, 8)));
    cache.put(&space("m", 8), key(50), &vector(50, 8));
    cache.flush();
    assert_eq!(get(&cache, 50), None);
    other.execute_batch("ROLLBACK").unwrap();
    cache.put(&space("m", 8), key(51), &vector(51, 8));
    cache.flush();
    assert_eq!(get(&cache, 51), Some(vector(51, 8)));
}

#[derive(Clone, Debug)]
enum Step {
    Put(u64, bool),
    Get(u64),
    Wait(u64),
    Write,
    Clear(bool),
    ClearExpired,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0u64..900, any::<bool>()).prop_map(|(number, other)| Step::Put(number, other)),
        6 => (0u64..900).prop_map(Step::Get),
        2 => (0u64..3 * RENEW_AFTER_S).prop_map(Step::Wait),
        2 => Just(Step::Write),
        1 => any::<bool>().prop_map(Step::Clear),
        1 => Just(Step::ClearExpired),
        1 => Just(Step::Reopen),
    ]
}

/// An entry of the model, beside its key.
#[derive(Clone, Debug, PartialEq)]
struct Modelled {
    value: u64,
    other_space: bool,
    stored_s: u64,
    used_s: u64,
}

/// The whole file as a map.
struct Model {
    entries: BTreeMap<u64, Modelled>,
    options: DiskCacheOptions,
}

impl Model {
    fn is_expired(&self, entry: &Modelled, now_s: u64) -> bool {
        self.options.ttl.is_some_and(|ttl| now_s - entry.stored_s >= ttl.as_secs())
    }

    fn write(&mut self, puts: &[(u64, u64, bool)], used: &[u64], now_s: u64) -> CacheCounts {
        let mut did = CacheCounts { insertions: puts.len() as u64, ..CacheCounts::default() };
        for &(number, value, other_space) in puts {
            self.entries.insert(number, Modelled { value, other_space, stored_s: now_s, used_s: now_s });
        }
        for number in used {
            if let Some(entry) = self.entries.get_mut(number) {
                entry.used_s = entry.used_s.max(now_s);
            }
        }
        let by = |entries: &BTreeMap<u64, Modelled>, at: fn(&Modelled) -> u64| {
            let mut order: Vec<_> = entries.iter().map(|(number, entry)| (at(entry), *number)).collect();
            // SQLite breaks ties by rowid.
            order.sort_by_key(|(at, number)| (*at, key(*number).id.cast_signed()));
            order
        };
        for (_, number) in by(&self.entries, |entry| entry.stored_s).into_iter().take(EVICT_BATCH) {
            if self.is_expired(&self.entries[&number], now_s) {
                self.entries.remove(&number);
                did.expired += 1;
            }
        }
        while self.entries.len() as u64 > self.options.max_entries {
            for (_, number) in by(&self.entries, |entry| entry.used_s).into_iter().take(EVICT_BATCH) {
                self.entries.remove(&number);
                did.evictions += 1;
            }
        }
        did
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn agrees_with_a_map(
        steps in prop::collection::vec(step(), 0..400),
        ttl_hours in prop::option::of(1u64..8),
        max_entries in prop_oneof![Just(u64::MAX), 0u64..300],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cache.db");
        let ttl = ttl_hours.map(|hours| Duration::from_secs(hours * 3600));
        let options = DiskCacheOptions { ttl, max_bytes: u64::MAX, max_entries, lookups: 10 };
        let mut model = Model { entries: BTreeMap::new(), options };
        let mut file = File::open(&path).unwrap();
        let (mut puts, mut used, mut now_s, mut value) = (Vec::new(), Vec::new(), 1_000_000, 0);
        let spaces = [space("m", 8), space("other", 8)];
        for step in steps {
            match step {
                Step::Put(number, other) => {
                    value += 1;
                    puts.push((number, value, other));
                }
                Step::Get(number) => {
                    let mut out = vec![0.0; 8];
                    let found = file.get(key(number), &mut out, ttl, now_s).unwrap();
                    match model.entries.get(&number) {
                        None => prop_assert_eq!(found, Found::Absent),
                        Some(entry) if model.is_expired(entry, now_s) => prop_assert_eq!(found, Found::Expired),
                        Some(entry) => {
                            let left_s = ttl.map(|ttl| ttl.as_secs() - (now_s - entry.stored_s));
                            let renew = now_s - entry.used_s >= RENEW_AFTER_S;
                            prop_assert_eq!(found, Found::Fresh { left_s, renew });
                            prop_assert_eq!(out, vector(entry.value, 8));
                            if renew {
                                used.push(number);
                            }
                        }
                    }
                }
                Step::Wait(seconds) => now_s += seconds,
                Step::Write => {
                    let batch = Batch {
                        puts: puts.iter().map(|&(number, value, other)| Put {
                            key: key(number),
                            space: spaces[usize::from(other)].clone(),
                            vector: file::encode(&vector(value, 8)).unwrap(),
                        }).collect(),
                        used: used.iter().map(|&number| key(number).id).collect(),
                        ..Batch::default()
                    };
                    let did = file.write(&batch, &options, now_s).unwrap();
                    prop_assert_eq!(did, model.write(&puts, &used, now_s));
                    (puts, used) = (Vec::new(), Vec::new());
                }
                Step::Clear(other) => {
                    let known = file.spaces(ttl, now_s).unwrap();
                    let found = known.iter().find(|known| known.digest == spaces[usize::from(other)].digest);
                    let expected = model.entries.values().filter(|entry| entry.other_space == other).count();
                    prop_assert_eq!(found.map_or(0, |space| space.entries), expected as u64);
                    if let Some(found) = found {
                        prop_assert_eq!(file.clear(Some(found.id), false, ttl, now_s).unwrap(), expected as u64);
                    }
                    model.entries.retain(|_, entry| entry.other_space != other);
                }
                Step::ClearExpired => {
                    let before = model.entries.len();
                    let mut entries = std::mem::take(&mut model.entries);
                    entries.retain(|_, entry| !model.is_expired(entry, now_s));
                    model.entries = entries;
                    let gone = (before - model.entries.len()) as u64;
                    prop_assert_eq!(file.clear(None, true, ttl, now_s).unwrap(), gone);
                }
                Step::Reopen => {
                    drop(file);
                    file = File::open(&path).unwrap();
                }
            }
            let listed: u64 = file.spaces(ttl, now_s).unwrap().iter().map(|space| space.bytes).sum();
            prop_assert_eq!(file.held().unwrap(), (model.entries.len() as u64, listed));
        }
    }

    #[test]
    fn bytes_are_bounded(max_kib in 1u64..200, batches in 1usize..6) {
        let folder = tempfile::tempdir().unwrap();
        let mut file = File::open(&folder.path().join("cache.db")).unwrap();
        let options = DiskCacheOptions { max_bytes: max_kib << 10, ..UNBOUNDED };
        for round in 0..batches as u64 {
            let put = |number| Put { key: key(number), space: space("m", 8), vector: vec![0; 16] };
            let puts = (round * 300..(round + 1) * 300).map(put).collect();
            file.write(&Batch { puts, ..Batch::default() }, &options, round).unwrap();
            prop_assert!(file.held().unwrap().1 <= options.max_bytes);
        }
    }
}

#[test]
fn a_file_without_a_window_gets_one_and_keeps_its_vectors() {
    let folder = TempDir::new().unwrap();
    drop(filled(&folder, 3));
    let db = rusqlite::Connection::open(folder.path().join("cache.db")).unwrap();
    db.execute_batch("DROP TABLE lookups").unwrap();
    drop(db);
    let cache = cache_in(&folder);
    cache.add_lookups(Lookups { asked: 4, answered: 3 });
    drop(cache);
    let cache = cache_in(&folder);
    cache.add_lookups(Lookups { asked: 1, answered: 0 });
    drop(cache);
    let stats = cache_in(&folder).stats().unwrap();
    assert_eq!((stats.entries, stats.lookups), (3, Lookups { asked: 5, answered: 3 }));
}
