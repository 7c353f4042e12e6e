//! S3-FIFO: a small queue that what is new passes through, a main queue of what was asked for again, and a
//! memory of what the small queue has dropped. Nothing moves on a hit. Yang, Zhang, Qiu, Yue, Rashmi: "FIFO
//! Queues are All You Need for Cache Eviction", SOSP 2023.
//!
//! What is held when something must go is the capacity, so no other is needed.
mod ghosts;

use ghosts::Ghosts;
use magray_cache::{Entries, Slot, TTL_SECONDS, hash, ttl_schema};
use magray_plugin_api::{
    CachePolicy, Component, CreateCachePolicy, Error, ErrorCode, Host, MemoryUse, Plugin, Result,
};
use serde::Deserialize;

/// The plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-cache-s3fifo",
    version: env!("CARGO_PKG_VERSION"),
    summary: "keeps what is asked for again, by queues in which nothing moves on a hit",
    components: &[Component::cache_policy::<S3Fifo>("s3fifo")],
};

/// The options in the user's TOML.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Seconds after its insertion at which an entry is out of date; 0 for never. A hit does not
    /// prolong them.
    pub ttl_seconds: u64,
    /// The small queue's share of the cache, in percent.
    pub small_percent: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { ttl_seconds: TTL_SECONDS, small_percent: 10 }
    }
}

/// What is new; what was asked for again.
const SMALL: usize = 0;
const MAIN: usize = 1;
/// Hits that are remembered of an entry at most, and that get it from the small queue into the main one.
const MOST_HITS: u8 = 3;
const HITS_FOR_MAIN: u8 = 2;

/// Drops the entry first that was inserted first, unless it was asked for since.
#[derive(Debug)]
pub struct S3Fifo {
    options: Options,
    /// Their marks are hits.
    entries: Entries<2>,
    ghosts: Ghosts,
}

impl CreateCachePolicy for S3Fifo {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = concat!(
        r#"{
  "type": "object",
  "properties": {
    "#,
        ttl_schema!(),
        r#",
    "small_percent": {
      "type": "integer", "minimum": 1, "maximum": 99, "default": 10,
      "description": "share of the cache for what is new"
    }
  },
  "additionalProperties": false
}"#
    );

    fn create(options: Options, _host: &'static dyn Host) -> Result<Self> {
        if !(1..=99).contains(&options.small_percent) {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "small_percent is 1 to 99"));
        }
        Ok(Self { options, entries: Entries::new(options.ttl_seconds), ghosts: Ghosts::new() })
    }
}

impl S3Fifo {
    fn use_entry(&mut self, slot: Slot) {
        let hits = self.entries.mark(slot);
        *hits = (*hits + 1).min(MOST_HITS);
    }
}

impl CachePolicy for S3Fifo {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        if let Some(slot) = self.entries.find(key) {
            self.entries.renew(slot, weight, now_ms);
            return self.use_entry(slot);
        }
        let queue = if self.ghosts.take(hash(key)) { MAIN } else { SMALL };
        self.entries.insert(key, weight, now_ms, queue);
    }

    fn on_hit(&mut self, key: u64, _now_ms: u64) {
        if let Some(slot) = self.entries.find(key) {
            self.use_entry(slot);
        }
    }

    fn on_remove(&mut self, key: u64) {
        if let Some(slot) = self.entries.find(key) {
            self.entries.remove(slot);
        }
    }

    fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>) {
        let mut freed = self.entries.expire(now_ms, victims);
        let weight = u128::from(weight);
        let left = self.entries.weight().saturating_sub(weight.saturating_sub(freed));
        let small = left * u128::from(self.options.small_percent) / 100;
        while freed < weight {
            let in_small = self.entries.oldest(SMALL);
            let in_main = self.entries.oldest(MAIN);
            let (slot, queue) = match (in_small, in_main) {
                (Some(slot), None) => (slot, SMALL),
                (Some(slot), Some(_)) if self.entries.weight_of(SMALL) > small => (slot, SMALL),
                (_, Some(slot)) => (slot, MAIN),
                (None, None) => return,
            };
            let hits = self.entries.mark(slot);
            match queue {
                SMALL if *hits >= HITS_FOR_MAIN => {
                    *hits = 0;
                    self.entries.move_to(slot, MAIN);
                    continue;
                }
                MAIN if *hits > 0 => {
                    *hits -= 1;
                    self.entries.move_to(slot, MAIN);
                    continue;
                }
                _ => {}
            }
            let (key, weight) = self.entries.remove(slot);
            if queue == SMALL {
                self.ghosts.add(hash(key), self.entries.len());
            }
            freed += u128::from(weight);
            victims.push(key);
        }
    }

    fn memory_use(&self) -> MemoryUse {
        let bytes = self.entries.bytes() + self.ghosts.bytes();
        MemoryUse { resident: bytes as u64, ..MemoryUse::default() }
    }

    fn tune(&mut self, name: &str, value: &str) -> Result<()> {
        let bad = || Error::new(ErrorCode::INVALID_CONFIG, format!("'{value}' is no value of {name}"));
        match name {
            "ttl_seconds" => {
                self.options.ttl_seconds = value.parse().map_err(|_| bad())?;
                self.entries.set_ttl(self.options.ttl_seconds);
            }
            "small_percent" => {
                let percent =
                    value.parse().ok().filter(|percent| (1..=99).contains(percent)).ok_or_else(bad)?;
                self.options.small_percent = percent;
            }
            _ => {
                let message = format!("'{name}' cannot be changed while it runs");
                return Err(Error::new(ErrorCode::UNSUPPORTED, message));
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let Options { ttl_seconds, small_percent } = self.options;
        let entries = self.entries.len();
        let [small, main] = [SMALL, MAIN].map(|queue| self.entries.len_of(queue));
        format!(
            r#"{{"entries":{entries},"small":{small},"main":{main},"small_percent":{small_percent},"ttl_seconds":{ttl_seconds}}}"#
        )
    }
}

#[cfg(test)]
mod tests;
