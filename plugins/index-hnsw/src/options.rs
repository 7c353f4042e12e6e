use crate::graph::LAYERS;
use magray_plugin_api::{Error, ErrorCode, Result};
use serde::Deserialize;
use std::{fmt, ops::RangeInclusive};

/// More rows than this are not reserved ahead: it is a hint, and a slip of the finger in it should
/// not take the memory of the machine.
const MOST_RESERVED: usize = 10_000_000;

/// A set of parameters for a kind of use; single keys of [`Options`] override it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preset {
    /// 24 connections, 400 candidates to build, 100 to search.
    #[default]
    Default,
    /// 16, 200, 50: smaller and quicker.
    Ecommerce,
    /// 32, 800, 200: the best recall, slow to build.
    Research,
    /// 12, 100, 32, inserting on the caller's thread only: the shortest wait for a write.
    Realtime,
}

/// The options of the index in the user's TOML.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Where the keys that are not given come from.
    pub preset: Preset,
    /// Links of a vector in each upper layer, twice as many in the lowest; 2 to 255.
    pub max_connections: Option<usize>,
    /// Candidates that an insertion chooses its links from; 1 to 10000.
    pub ef_construction: Option<usize>,
    /// Candidates that a search keeps; 1 to 10000. A search can override it.
    pub ef_search: Option<usize>,
    /// How many vectors to reserve room for; not a limit.
    pub max_elements: usize,
    /// Layers of the graph. Only 16 can be loaded again.
    pub max_layers: usize,
    /// Whether large upserts use every thread that the host grants.
    pub use_parallel: Option<bool>,
    /// A search that may return fewer vectors than this compares with each of them, which is then
    /// both quicker than the graph and exact. So does one under a filter so selective that this is
    /// quicker. 0 to walk the graph always.
    pub exact_below: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            preset: Preset::Default,
            max_connections: None,
            ef_construction: None,
            ef_search: None,
            max_elements: 10_000,
            max_layers: LAYERS,
            use_parallel: None,
            exact_below: 2048,
        }
    }
}

/// [`Options`] with the preset filled in and every value checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) max_connections: usize,
    pub(crate) ef_construction: usize,
    pub(crate) ef_search: usize,
    pub(crate) max_elements: usize,
    pub(crate) use_parallel: bool,
    pub(crate) exact_below: usize,
}

impl Options {
    pub(crate) const SCHEMA: &str = r#"{
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "preset": {"enum": ["default", "ecommerce", "research", "realtime"], "default": "default"},
            "max_connections": {"type": "integer", "minimum": 2, "maximum": 255},
            "ef_construction": {"type": "integer", "minimum": 1, "maximum": 10000},
            "ef_search": {"type": "integer", "minimum": 1, "maximum": 10000},
            "max_elements": {"type": "integer", "minimum": 0, "default": 10000},
            "max_layers": {"const": 16, "default": 16},
            "use_parallel": {"type": "boolean"},
            "exact_below": {"type": "integer", "minimum": 0, "default": 2048}
        }
    }"#;

    /// # Errors
    /// `INVALID_CONFIG` for a value out of range.
    pub(crate) fn parameters(&self) -> Result<Parameters> {
        let (connections, construction, search, parallel) = match self.preset {
            Preset::Default => (24, 400, 100, true),
            Preset::Ecommerce => (16, 200, 50, true),
            Preset::Research => (32, 800, 200, true),
            Preset::Realtime => (12, 100, 32, false),
        };
        if self.max_layers != LAYERS {
            return Err(Error::new(
                ErrorCode::INVALID_CONFIG,
                format!(
                    "max_layers is {}; hnsw_rs can load a graph of {LAYERS} layers only",
                    self.max_layers
                ),
            ));
        }
        Ok(Parameters {
            // One more and `hnsw_rs` ends the process; 1 makes its level distribution infinite.
            max_connections: within("max_connections", self.max_connections.unwrap_or(connections), 2..=255)?,
            ef_construction: within(
                "ef_construction",
                self.ef_construction.unwrap_or(construction),
                1..=10_000,
            )?,
            ef_search: ef_search(self.ef_search.unwrap_or(search))?,
            max_elements: self.max_elements.min(MOST_RESERVED),
            use_parallel: self.use_parallel.unwrap_or(parallel),
            exact_below: self.exact_below,
        })
    }
}

/// Checks a value of `ef_search`.
pub(crate) fn ef_search(value: usize) -> Result<usize> {
    within("ef_search", value, 1..=10_000)
}

fn within<T: PartialOrd + fmt::Display>(name: &str, value: T, range: RangeInclusive<T>) -> Result<T> {
    if range.contains(&value) {
        return Ok(value);
    }
    let (low, high) = (range.start(), range.end());
    Err(Error::new(ErrorCode::INVALID_CONFIG, format!("{name} is {value}; it goes from {low} to {high}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Options {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn presets_are_those_of_the_documentation() {
        let of = |preset: &str| {
            let p = parse(&format!(r#"{{"preset":"{preset}"}}"#)).parameters().unwrap();
            (p.max_connections, p.ef_construction, p.ef_search, p.use_parallel)
        };
        assert_eq!(of("default"), (24, 400, 100, true));
        assert_eq!(of("ecommerce"), (16, 200, 50, true));
        assert_eq!(of("research"), (32, 800, 200, true));
        assert_eq!(of("realtime"), (12, 100, 32, false));
        assert_eq!(parse("{}").parameters().unwrap().max_connections, 24);
    }

    #[test]
    fn a_key_overrides_its_preset() {
        let p = parse(r#"{"preset":"realtime","ef_search":77,"use_parallel":true}"#).parameters().unwrap();
        assert_eq!((p.max_connections, p.ef_search, p.use_parallel), (12, 77, true));
    }

    #[test]
    fn what_would_end_the_process_is_refused() {
        for json in [
            r#"{"max_connections":257}"#,
            r#"{"max_connections":1}"#,
            r#"{"ef_construction":0}"#,
            r#"{"ef_search":0}"#,
            r#"{"max_layers":8}"#,
        ] {
            let error = parse(json).parameters().unwrap_err();
            assert_eq!(error.code(), ErrorCode::INVALID_CONFIG, "{json}");
        }
        assert!(serde_json::from_str::<Options>(r#"{"ef":5}"#).is_err());
        assert_eq!(
            parse(r#"{"max_elements":1000000000000000}"#).parameters().unwrap().max_elements,
            MOST_RESERVED
        );
    }

    #[test]
    fn the_schema_names_every_option() {
        let schema: serde_json::Value = serde_json::from_str(Options::SCHEMA).unwrap();
        for name in schema["properties"].as_object().unwrap().keys() {
            let error = serde_json::from_str::<Options>(&format!(r#"{{"{name}":[]}}"#)).unwrap_err();
            assert!(!error.to_string().contains("unknown field"), "{name}");
        }
    }
}
