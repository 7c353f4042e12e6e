//! The smallest useful plugin: a cache policy that drops the oldest entry first.
//! docs/plugins.md walks through it.
use magray_plugin_api::{CachePolicy, CreateCachePolicy, Host, Result};
use std::collections::VecDeque;

magray_plugin_api::export_plugin! {
    id: "fifo-cache",
    summary: "drops the oldest entry first",
    cache_policies: { "fifo" => Fifo },
}

/// What a user may write under `options`.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Options {
    /// Milliseconds after which an entry is out of date; 0 is never.
    #[serde(default)]
    max_age_ms: u64,
}

struct Entry {
    key: u64,
    weight: u64,
    inserted_ms: u64,
}

/// Entries by age, oldest first.
pub struct Fifo {
    max_age_ms: u64,
    entries: VecDeque<Entry>,
}

impl CreateCachePolicy for Fifo {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = r#"{
        "type": "object",
        "properties": {
            "max_age_ms": {"type": "integer", "description": "milliseconds until an entry is out of date; 0 is never"}
        }
    }"#;

    fn create(options: Options, _: &'static dyn Host) -> Result<Self> {
        Ok(Self { max_age_ms: options.max_age_ms, entries: VecDeque::new() })
    }
}

impl CachePolicy for Fifo {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        self.on_remove(key);
        self.entries.push_back(Entry { key, weight, inserted_ms: now_ms });
    }

    fn on_hit(&mut self, _: u64, _: u64) {}

    fn on_remove(&mut self, key: u64) {
        self.entries.retain(|entry| entry.key != key);
    }

    fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>) {
        let mut freed = 0_u64;
        while let Some(oldest) = self.entries.front() {
            let out_of_date =
                self.max_age_ms > 0 && now_ms.saturating_sub(oldest.inserted_ms) > self.max_age_ms;
            if !out_of_date && freed >= weight {
                return;
            }
            freed = freed.saturating_add(oldest.weight);
            victims.push(oldest.key);
            self.entries.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_testkit as testkit;

    #[test]
    fn it_conforms() {
        testkit::cache_policy(&|| Ok(Box::new(Fifo::create(Options { max_age_ms: 0 }, testkit::HOST)?)))
            .assert();
    }
}
