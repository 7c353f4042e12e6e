//! Least recently used, with a time to live.

use magray_cache::{Entries, TTL_SECONDS, ttl_schema};
use magray_plugin_api::{
    CachePolicy, Component, CreateCachePolicy, Error, ErrorCode, Host, MemoryUse, Plugin, Result,
};
use serde::Deserialize;

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
    /// In the order of use.
    entries: Entries<1>,
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
        Ok(Self { options, entries: Entries::new(options.ttl_seconds) })
    }
}

impl CachePolicy for Lru {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        match self.entries.find(key) {
            Some(slot) => {
                self.entries.renew(slot, weight, now_ms);
                self.entries.move_to(slot, 0);
            }
            None => self.entries.insert(key, weight, now_ms, 0),
        }
    }

    fn on_hit(&mut self, key: u64, _now_ms: u64) {
        if let Some(slot) = self.entries.find(key) {
            self.entries.move_to(slot, 0);
        }
    }

    fn on_remove(&mut self, key: u64) {
        if let Some(slot) = self.entries.find(key) {
            self.entries.remove(slot);
        }
    }

    fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>) {
        let (weight, mut freed) = (u128::from(weight), self.entries.expire(now_ms, victims));
        let mut batch = if freed < weight { self.options.evict_batch } else { 0 };
        while (freed < weight || batch > 0)
            && let Some(oldest) = self.entries.oldest(0)
        {
            let (key, weight) = self.entries.remove(oldest);
            freed += u128::from(weight);
            batch = batch.saturating_sub(1);
            victims.push(key);
        }
    }

    fn memory_use(&self) -> MemoryUse {
        MemoryUse { resident: self.entries.bytes() as u64, ..MemoryUse::default() }
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
    use magray_cache_testkit::{agree, steps};
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
        let bytes = policy.memory_use().resident;
        assert!(bytes < 2_000, "{bytes}");
        assert_eq!(victims(&mut policy, 0, 10_000_000).len(), 10);
    }

    /// The same by lists.
    struct Model {
        ttl_ms: u64,
        batch: usize,
        /// Key and weight; what was used longest ago first.
        used: Vec<(u64, u64)>,
        /// Keys by age, with their times of insertion.
        ages: Vec<(u64, u64)>,
    }

    impl CachePolicy for Model {
        fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
            self.on_remove(key);
            self.used.push((key, weight));
            self.ages.push((key, now_ms));
        }
        fn on_hit(&mut self, key: u64, _now_ms: u64) {
            if let Some(at) = self.used.iter().position(|entry| entry.0 == key) {
                let entry = self.used.remove(at);
                self.used.push(entry);
            }
        }
        fn on_remove(&mut self, key: u64) {
            self.used.retain(|entry| entry.0 != key);
            self.ages.retain(|age| age.0 != key);
        }
        fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>) {
            let is_old = |age: &&(u64, u64)| self.ttl_ms > 0 && now_ms - age.1 >= self.ttl_ms;
            let old = self.ages.iter().take_while(is_old).count();
            let mut gone: Vec<u64> = self.ages[..old].iter().map(|age| age.0).collect();
            let (out, kept): (Vec<_>, Vec<_>) =
                self.used.iter().copied().partition(|entry| gone.contains(&entry.0));
            let mut freed: u64 = out.iter().map(|entry| entry.1).sum();
            let least = if freed < weight { self.batch } else { 0 };
            for (at, (key, of)) in kept.into_iter().enumerate() {
                if freed >= weight && at >= least {
                    break;
                }
                freed += of;
                gone.push(key);
            }
            gone.iter().for_each(|&key| self.on_remove(key));
            victims.extend(gone);
        }
    }

    proptest! {
        #[test]
        fn agrees_with_lists(steps in steps(), ttl_seconds in 0u64..10, evict_batch in 1usize..4) {
            let mut model =
                Model { ttl_ms: ttl_seconds * 1000, batch: evict_batch, used: vec![], ages: vec![] };
            agree(&mut lru(ttl_seconds, evict_batch), &mut model, &steps)?;
        }
    }
}
