//! Least recently used, with a time to live.

use lru::LruCache;
use magray_cache::{TTL_SECONDS, ttl_schema};
use magray_plugin_api::{
    CachePolicy, Component, CreateCachePolicy, Error, ErrorCode, Host, MemoryUse, Plugin, Result,
};
use serde::Deserialize;
use std::collections::VecDeque;

/// The plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-cache-lru",
    version: env!("CARGO_PKG_VERSION"),
    summary: "drops what was used longest ago, and what is too old",
    components: &[Component::cache_policy::<Lru>("lru")],
};

/// The options in the user's TOML.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Seconds after its insertion at which an entry is out of date; 0 for never. A hit does not
    /// prolong them.
    pub ttl_seconds: u64,
    /// Where something must go, at least so many entries go, or all. More spare the host work when a
    /// full cache is written to all the time.
    pub evict_batch: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { ttl_seconds: TTL_SECONDS, evict_batch: 1 }
    }
}

/// Drops the entry first that was inserted or hit longest ago.
#[derive(Debug)]
pub struct Lru {
    options: Options,
    entries: LruCache<u64, Entry>,
    /// Keys by time of insertion, oldest first; empty where entries do not age. One that was
    /// removed or inserted again since stays until it is the oldest or half of them are such.
    ages: VecDeque<Age>,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    weight: u64,
    inserted_ms: u64,
}

#[derive(Clone, Copy, Debug)]
struct Age {
    key: u64,
    inserted_ms: u64,
}

impl Age {
    /// Whether this is of the entry that is there now.
    fn is_current(&self, entries: &LruCache<u64, Entry>) -> bool {
        entries.peek(&self.key).is_some_and(|entry| entry.inserted_ms == self.inserted_ms)
    }
}

impl CreateCachePolicy for Lru {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = concat!(
        r#"{
  "type": "object",
  "properties": {
    "#,
        ttl_schema!(),
        r#",
    "evict_batch": {
      "type": "integer", "minimum": 1, "default": 1,
      "description": "least number of entries to drop where something must go"
    }
  },
  "additionalProperties": false
}"#
    );

    fn create(options: Options, _host: &'static dyn Host) -> Result<Self> {
        if options.evict_batch == 0 {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "evict_batch is at least 1"));
        }
        Ok(Self { options, entries: LruCache::unbounded(), ages: VecDeque::new() })
    }
}

impl CachePolicy for Lru {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        self.entries.put(key, Entry { weight, inserted_ms: now_ms });
        if self.options.ttl_seconds == 0 {
            return;
        }
        self.ages.push_back(Age { key, inserted_ms: now_ms });
        if self.ages.len() > 2 * self.entries.len() + 1024 {
            self.ages.retain(|age| age.is_current(&self.entries));
        }
    }

    fn on_hit(&mut self, key: u64, _now_ms: u64) {
        self.entries.promote(&key);
    }

    fn on_remove(&mut self, key: u64) {
        self.entries.pop(&key);
    }

    fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>) {
        let mut freed = 0u64;
        let ttl_ms = self.options.ttl_seconds.saturating_mul(1000);
        while let Some(age) = self.ages.pop_front_if(|age| {
            now_ms.saturating_sub(age.inserted_ms) >= ttl_ms || !age.is_current(&self.entries)
        }) {
            if age.is_current(&self.entries)
                && let Some(entry) = self.entries.pop(&age.key)
            {
                freed = freed.saturating_add(entry.weight);
                victims.push(age.key);
            }
        }
        let mut batch = if freed < weight { self.options.evict_batch } else { 0 };
        while (freed < weight || batch > 0)
            && let Some((key, entry)) = self.entries.pop_lru()
        {
            freed = freed.saturating_add(entry.weight);
            batch = batch.saturating_sub(1);
            victims.push(key);
        }
    }

    fn memory_use(&self) -> MemoryUse {
        // An entry is a node of its own with two links, and a slot of a table that is half full or more.
        const NODE: usize = size_of::<(u64, Entry)>() + 2 * size_of::<usize>();
        const SLOT: usize = 2 * size_of::<(usize, usize)>();
        let bytes = self.entries.len() * (NODE + SLOT) + self.ages.capacity() * size_of::<Age>();
        MemoryUse { resident: bytes as u64, ..MemoryUse::default() }
    }

    fn describe(&self) -> String {
        let Options { ttl_seconds, evict_batch } = self.options;
        let entries = self.entries.len();
        format!(r#"{{"entries":{entries},"ttl_seconds":{ttl_seconds},"evict_batch":{evict_batch}}}"#)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_api::Maker;
    use magray_plugin_testkit::{self as testkit, HOST};
    use proptest::prelude::*;

    fn lru(ttl_seconds: u64, evict_batch: usize) -> Lru {
        Lru::create(Options { ttl_seconds, evict_batch }, HOST).unwrap()
    }

    fn victims(policy: &mut Lru, weight: u64, now_ms: u64) -> Vec<u64> {
        let mut victims = Vec::new();
        policy.evict(weight, now_ms, &mut victims);
        victims
    }

    #[test]
    fn conforms() {
        for (ttl_seconds, evict_batch) in [(259_200, 1), (0, 1), (1, 1), (10, 500)] {
            testkit::cache_policy(&|| Ok(Box::new(lru(ttl_seconds, evict_batch)))).assert();
        }
    }

    #[test]
    fn options_are_checked() {
        let Maker::CachePolicy(make) = PLUGIN.components[0].maker else { unreachable!() };
        assert!(make("{}", HOST).is_ok());
        for (options, named) in [
            (r#"{"ttl":1}"#, "ttl_seconds"),
            (r#"{"evict_batch":0}"#, "evict_batch"),
            (r#"{"evict_batch":-1}"#, "-1"),
        ] {
            let Err(error) = make(options, HOST) else { panic!("{options} was taken") };
            assert_eq!(error.code(), ErrorCode::INVALID_CONFIG);
            assert!(error.message().contains(named), "{error}");
        }
    }

    #[test]
    fn a_batch_goes_only_where_something_must() {
        let mut policy = lru(0, 3);
        (0..10).for_each(|key| policy.on_insert(key, 10, 0));
        assert!(victims(&mut policy, 0, 0).is_empty());
        assert_eq!(victims(&mut policy, 1, 0), [0, 1, 2]);
        assert_eq!(victims(&mut policy, 35, 0), [3, 4, 5, 6]);
        assert_eq!(victims(&mut policy, 25, 0), [7, 8, 9]);
    }

    #[test]
    fn what_is_out_of_date_counts_as_freed() {
        let mut policy = lru(5, 1);
        policy.on_insert(1, 10, 0);
        policy.on_insert(2, 10, 4_000);
        policy.on_hit(1, 4_500);
        assert_eq!(victims(&mut policy, 10, 5_000), [1]);
        assert!(victims(&mut policy, 0, 8_999).is_empty());
        assert_eq!(victims(&mut policy, 0, 9_000), [2]);
    }

    #[test]
    fn ages_do_not_pile_up() {
        let mut policy = lru(1_000, 1);
        for step in 0..100_000 {
            policy.on_insert(step % 10, 1, step);
        }
        assert!(policy.ages.len() < 2_000, "{}", policy.ages.len());
        assert_eq!(victims(&mut policy, 0, 10_000_000).len(), 10);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64),
        Hit(u64),
        Remove(u64),
        Evict(u64),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        let key = || 0u64..20;
        prop_oneof![
            (key(), 0u64..50).prop_map(|(key, weight)| Step::Insert(key, weight)),
            key().prop_map(Step::Hit),
            key().prop_map(Step::Remove),
            (0u64..200).prop_map(Step::Evict),
            (0u64..3_000).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_a_list(
            steps in prop::collection::vec(step(), 0..200),
            ttl_seconds in 0u64..10,
            evict_batch in 1usize..4,
        ) {
            let mut policy = lru(ttl_seconds, evict_batch);
            // Key, weight, time of insertion; what was used longest ago first.
            let mut list: Vec<(u64, u64, u64)> = Vec::new();
            let mut now_ms = 0;
            for step in steps {
                match step {
                    Step::Insert(key, weight) => {
                        policy.on_insert(key, weight, now_ms);
                        list.retain(|entry| entry.0 != key);
                        list.push((key, weight, now_ms));
                    }
                    Step::Hit(key) => {
                        policy.on_hit(key, now_ms);
                        if let Some(at) = list.iter().position(|entry| entry.0 == key) {
                            let entry = list.remove(at);
                            list.push(entry);
                        }
                    }
                    Step::Remove(key) => {
                        policy.on_remove(key);
                        list.retain(|entry| entry.0 != key);
                    }
                    Step::Evict(weight) => {
                        let is_old = |entry: &(u64, u64, u64)| {
                            ttl_seconds > 0 && now_ms - entry.2 >= ttl_seconds * 1000
                        };
                        let (mut old, kept): (Vec<_>, Vec<_>) = list.into_iter().partition(is_old);
                        list = kept;
                        let freed: u64 = old.iter().map(|entry| entry.1).sum();
                        let mut sum = freed;
                        let enough = list.iter().take_while(|entry| {
                            let more = sum < weight;
                            sum += entry.1;
                            more
                        }).count();
                        let dropped = if freed < weight { enough.max(evict_batch).min(list.len()) } else { 0 };
                        let mut expected: Vec<u64> = list.drain(..dropped).map(|entry| entry.0).collect();
                        let mut got = victims(&mut policy, weight, now_ms);
                        let used = got.split_off(old.len().min(got.len()));
                        prop_assert_eq!(used, std::mem::take(&mut expected));
                        got.sort_unstable();
                        old.sort_unstable();
                        prop_assert_eq!(got, Vec::from_iter(old.iter().map(|entry| entry.0)));
                    }
                    Step::Wait(ms) => now_ms += ms,
                }
            }
        }
    }
}
