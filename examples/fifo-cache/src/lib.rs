//! A cache policy that drops the oldest entry first: the plugin of docs/plugins.md, word for word.
use magray_plugin_api::{CachePolicy, CreateCachePolicy, Error, ErrorCode, Host, Result};
use serde::Deserialize;
use std::collections::VecDeque;

magray_plugin_api::export_plugin! {
    id: "acme-fifo",
    summary: "drops the oldest entry first",
    cache_policies: { "fifo" => Fifo },
}

/// The options in the user's TOML.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where something must go, at least so many entries go.
    batch: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { batch: 1 }
    }
}

/// Keys with their weights, oldest first.
pub struct Fifo {
    batch: usize,
    entries: VecDeque<(u64, u64)>,
}

impl CreateCachePolicy for Fifo {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = r#"{
        "type": "object",
        "properties": {
            "batch": {"type": "integer", "minimum": 1, "default": 1, "description": "least number of entries to drop"}
        },
        "additionalProperties": false
    }"#;

    fn create(options: Options, _host: &'static dyn Host) -> Result<Self> {
        if options.batch == 0 {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "batch is at least 1"));
        }
        Ok(Self { batch: options.batch, entries: VecDeque::new() })
    }
}

impl CachePolicy for Fifo {
    fn on_insert(&mut self, key: u64, weight: u64, _now_ms: u64) {
        self.on_remove(key);
        self.entries.push_back((key, weight));
    }

    fn on_hit(&mut self, _key: u64, _now_ms: u64) {}

    fn on_remove(&mut self, key: u64) {
        self.entries.retain(|&(held, _)| held != key);
    }

    fn evict(&mut self, weight: u64, _now_ms: u64, victims: &mut Vec<u64>) {
        let (mut freed, mut batch) = (0u64, if weight > 0 { self.batch } else { 0 });
        while (freed < weight || batch > 0)
            && let Some((key, weight)) = self.entries.pop_front()
        {
            freed = freed.saturating_add(weight);
            batch = batch.saturating_sub(1);
            victims.push(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_testkit as testkit;

    #[test]
    fn conforms() {
        testkit::cache_policy(&|| Ok(Box::new(Fifo::create(Options::default(), testkit::HOST)?))).assert();
    }
}
