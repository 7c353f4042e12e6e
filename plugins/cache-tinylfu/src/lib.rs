//! W-TinyLFU: a small window of what is new, and a main part that something of the window gets into only if
//! it was asked for more often than what it would replace. Einziger, Friedman, Manes: "TinyLFU: A Highly
//! Efficient Cache Admission Policy", 2017; the size of the window by hill climbing: Einziger, Eytan, Friedman,
//! Manes: "Adaptive Software Cache Management", 2018; entries of unlike weight by aggregated victims: Einziger,
//! Eytan, Friedman, Manes: "Lightweight Robust Size Aware Cache Management", 2022.
//!
//! What is held when something must go is the capacity, so no other is needed. What is new waits in the
//! window until then, and so a host may make room for many entries at once: each of them still has to prove
//! itself.
mod climb;
mod sketch;

use climb::Climb;
use magray_cache::{Entries, Slot, TTL_SECONDS, hash, ttl_schema};
use magray_plugin_api::{
    CachePolicy, Component, CreateCachePolicy, Error, ErrorCode, Host, MemoryUse, Plugin, Result,
};
use serde::Deserialize;
use sketch::Sketch;

/// The plugin.
pub const PLUGIN: Plugin = Plugin {
    id: "magray-cache-tinylfu",
    version: env!("CARGO_PKG_VERSION"),
    summary: "keeps what is asked for often, beside a window of what is new",
    components: &[Component::cache_policy::<TinyLfu>("tinylfu")],
};

/// The options in the user's TOML.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Seconds after its insertion at which an entry is out of date; 0 for never. A hit does not
    /// prolong them.
    pub ttl_seconds: u64,
    /// The window's share of the cache, in percent; where it adapts, at first.
    pub window_percent: u32,
    /// Whether the window grows and shrinks by what answers more.
    pub adaptive: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { ttl_seconds: TTL_SECONDS, window_percent: 20, adaptive: true }
    }
}

/// What is new; what has got in; what was hit since it has.
const WINDOW: usize = 0;
const PROBATION: usize = 1;
const PROTECTED: usize = 2;
/// Share of the main part that may be protected.
const PROTECTED_SHARE: f64 = 0.8;

/// Drops the entry that is asked for least, or longest ago.
#[derive(Debug)]
pub struct TinyLfu {
    options: Options,
    entries: Entries<3>,
    sketch: Sketch,
    climb: Climb,
}

impl CreateCachePolicy for TinyLfu {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = concat!(
        r#"{
  "type": "object",
  "properties": {
    "#,
        ttl_schema!(),
        r#",
    "window_percent": {
      "type": "integer", "minimum": 1, "maximum": 99, "default": 20,
      "description": "share of the cache for what is new; where it is adaptive, at first"
    },
    "adaptive": {
      "type": "boolean", "default": true,
      "description": "whether that share grows and shrinks by what answers more"
    }
  },
  "additionalProperties": false
}"#
    );

    fn create(options: Options, _host: &'static dyn Host) -> Result<Self> {
        if !(1..=99).contains(&options.window_percent) {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "window_percent is 1 to 99"));
        }
        let entries = Entries::new(options.ttl_seconds);
        let climb = Climb::new(f64::from(options.window_percent) / 100.0);
        Ok(Self { options, entries, sketch: Sketch::new(), climb })
    }
}

impl TinyLfu {
    /// An entry was asked for: counts it, and puts it where it belongs now.
    fn use_entry(&mut self, slot: Slot) {
        self.sketch.add(hash(self.entries.key(slot)));
        self.climbs(true);
        match self.entries.queue(slot) {
            PROBATION => {
                self.entries.move_to(slot, PROTECTED);
                let most = (self.main_weight() as f64 * PROTECTED_SHARE) as u128;
                while self.entries.weight_of(PROTECTED) > most
                    && let Some(oldest) = self.entries.oldest(PROTECTED)
                {
                    self.entries.move_to(oldest, PROBATION);
                }
            }
            queue => self.entries.move_to(slot, queue),
        }
    }

    fn climbs(&mut self, is_hit: bool) {
        if self.options.adaptive {
            self.climb.note(is_hit, self.entries.len());
        }
    }

    fn main_weight(&self) -> u128 {
        self.entries.weight_of(PROBATION) + self.entries.weight_of(PROTECTED)
    }

    /// The next victim of the main part.
    fn main_victim(&self) -> Option<Slot> {
        self.entries.oldest(PROBATION).or_else(|| self.entries.oldest(PROTECTED))
    }

    /// Whether the candidate is asked for more often than those together that would make room of `needed` for it.
    fn is_admitted(&self, candidate: Slot, needed: u128) -> bool {
        let frequency = |slot| self.sketch.frequency(hash(self.entries.key(slot)));
        let wanted = frequency(candidate);
        let (mut room, mut used) = (0, 0);
        let mut victim = self.main_victim();
        while room < needed {
            let Some(slot) = victim else { return false };
            used += frequency(slot);
            if used >= wanted {
                return false;
            }
            room += u128::from(self.entries.weight_at(slot));
            victim = self.entries.newer(slot).or_else(|| match self.entries.queue(slot) {
                PROBATION => self.entries.oldest(PROTECTED),
                _ => None,
            });
        }
        true
    }
}

impl CachePolicy for TinyLfu {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        if let Some(slot) = self.entries.find(key) {
            self.entries.renew(slot, weight, now_ms);
            return self.use_entry(slot);
        }
        self.entries.insert(key, weight, now_ms, WINDOW);
        self.sketch.fit(self.entries.len());
        self.sketch.add(hash(key));
        self.climbs(false);
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
        let window = (left as f64 * self.climb.window()) as u128;
        let main = left.saturating_sub(window);
        let mut drop = |entries: &mut Entries<3>, slot| {
            let (key, weight) = entries.remove(slot);
            victims.push(key);
            u128::from(weight)
        };
        while freed < weight {
            let candidate = self.entries.oldest(WINDOW).filter(|_| self.entries.weight_of(WINDOW) > window);
            let Some(candidate) = candidate else {
                let Some(victim) = self.main_victim().or_else(|| self.entries.oldest(WINDOW)) else { return };
                freed += drop(&mut self.entries, victim);
                continue;
            };
            let wanted = self.main_weight() + u128::from(self.entries.weight_at(candidate));
            let needed = wanted.saturating_sub(main);
            if needed == 0 {
                self.entries.move_to(candidate, PROBATION);
            } else if self.is_admitted(candidate, needed) {
                while self.main_weight() + u128::from(self.entries.weight_at(candidate)) > main
                    && let Some(victim) = self.main_victim()
                {
                    freed += drop(&mut self.entries, victim);
                }
                self.entries.move_to(candidate, PROBATION);
            } else {
                freed += drop(&mut self.entries, candidate);
            }
        }
    }

    fn memory_use(&self) -> MemoryUse {
        let bytes = self.entries.bytes() + self.sketch.bytes();
        MemoryUse { resident: bytes as u64, ..MemoryUse::default() }
    }

    fn tune(&mut self, name: &str, value: &str) -> Result<()> {
        let bad = || Error::new(ErrorCode::INVALID_CONFIG, format!("'{value}' is no value of {name}"));
        match name {
            "ttl_seconds" => {
                self.options.ttl_seconds = value.parse().map_err(|_| bad())?;
                self.entries.set_ttl(self.options.ttl_seconds);
            }
            "window_percent" => {
                let percent =
                    value.parse().ok().filter(|percent| (1..=99).contains(percent)).ok_or_else(bad)?;
                self.options.window_percent = percent;
                self.climb = Climb::new(f64::from(percent) / 100.0);
            }
            "adaptive" => self.options.adaptive = value.parse().map_err(|_| bad())?,
            _ => {
                let message = format!("'{name}' cannot be changed while it runs");
                return Err(Error::new(ErrorCode::UNSUPPORTED, message));
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let Options { ttl_seconds, adaptive, .. } = self.options;
        let entries = self.entries.len();
        let [window, probation, protected] =
            [WINDOW, PROBATION, PROTECTED].map(|queue| self.entries.len_of(queue));
        let window_percent = 100.0 * self.climb.window();
        format!(
            r#"{{"entries":{entries},"window":{window},"probation":{probation},"protected":{protected},"window_percent":{window_percent:.1},"adaptive":{adaptive},"ttl_seconds":{ttl_seconds}}}"#
        )
    }
}

#[cfg(test)]
mod tests;
