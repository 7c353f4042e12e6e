use magray_plugin_api::{Error, ErrorCode, Result};
use serde::Deserialize;
use std::{fmt, ops::RangeInclusive};

/// How the rows of a sealed index are laid out for a search.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// `Flat` up to 300,000 rows; from there on `Graph`, but `Ivf` for vectors narrower than 128.
    #[default]
    Auto,
    /// Every code is scanned.
    Flat,
    /// Codes lie in lists by the nearest of some centroids, each row in two; the nearest lists are scanned.
    Ivf,
    /// A graph of near rows is walked. It takes some 70 µs of CPU a row to build.
    Graph,
}

/// The options of the index in the user's TOML.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// How rows are laid out.
    pub layout: Layout,
    /// Bits a dimension of the codes that a search scans, in the layouts that do: 1, 2, 4, or 0 for 2 where vectors are
    /// narrower than 128 and codes of one bit say little, else 1. Counts when the index is built.
    pub bits: u8,
    /// How many of the rows with the best codes are scored more exactly; 0 to choose by the width, 10
    /// to 100000. A search can override it.
    pub rescore: usize,
    /// Lists of the layout `ivf`; 0 to choose by the number of rows and their width, up to 1000000. Counts when the index
    /// is built.
    pub lists: usize,
    /// How many lists a search scans on average, or under the dot product always; 0 for as many as hold 99% of the nearest
    /// rows of rows that were tried when the index was built, up to 1000000. The `ef` of a search scales it: 100 is as
    /// many, 50 half of them.
    pub probes: usize,
    /// How many rows a walk of the layout `graph` keeps in view; 0 for the default, up to 100000. A
    /// search with an `ef` of 200 keeps twice as many, one of 50 half as many.
    pub breadth: usize,
    /// Up to so many rows every one is compared exactly, which is then quicker as well.
    pub exact_below: usize,
    /// What the random choices follow from.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            layout: Layout::Auto,
            bits: 0,
            rescore: 0,
            lists: 0,
            probes: 0,
            breadth: 0,
            exact_below: 2048,
            seed: 0,
        }
    }
}

impl Options {
    pub(crate) const SCHEMA: &str = r#"{
        "type": "object",
        "additionalProperties": false,
        "properties": {
            "layout": {"enum": ["auto", "flat", "ivf", "graph"], "default": "auto"},
            "bits": {"enum": [0, 1, 2, 4], "default": 0},
            "rescore": {"type": "integer", "minimum": 0, "maximum": 100000, "default": 0},
            "lists": {"type": "integer", "minimum": 0, "maximum": 1000000, "default": 0},
            "probes": {"type": "integer", "minimum": 0, "maximum": 1000000, "default": 0},
            "breadth": {"type": "integer", "minimum": 0, "maximum": 100000, "default": 0},
            "exact_below": {"type": "integer", "minimum": 0, "default": 2048},
            "seed": {"type": "integer", "minimum": 0, "default": 0}
        }
    }"#;

    /// The same, every value checked.
    ///
    /// # Errors
    /// `INVALID_CONFIG` for a value out of range.
    pub(crate) fn checked(self) -> Result<Self> {
        if ![0, 1, 2, 4].contains(&self.bits) {
            return Err(Error::new(
                ErrorCode::INVALID_CONFIG,
                format!("bits is {}; it is 0, 1, 2 or 4", self.bits),
            ));
        }
        within("rescore", self.rescore, 0..=100_000)?;
        within("lists", self.lists, 0..=1_000_000)?;
        within("probes", self.probes, 0..=1_000_000)?;
        within("breadth", self.breadth, 0..=100_000)?;
        Ok(self)
    }

    /// Changes one that counts when searching.
    ///
    /// # Errors
    /// `UNSUPPORTED` for another name, `INVALID_CONFIG` for a bad value.
    pub(crate) fn tune(&mut self, name: &str, value: &str) -> Result<()> {
        let mut tuned = *self;
        let field = match name {
            "rescore" => &mut tuned.rescore,
            "probes" => &mut tuned.probes,
            "breadth" => &mut tuned.breadth,
            "exact_below" => &mut tuned.exact_below,
            _ => {
                let message = format!(
                    "'{name}' cannot be changed while the index runs; 'rescore', 'probes', 'breadth' and \
                     'exact_below' can"
                );
                return Err(Error::new(ErrorCode::UNSUPPORTED, message));
            }
        };
        *field = value.trim().parse().map_err(|_| {
            Error::new(ErrorCode::INVALID_CONFIG, format!("{name} is '{value}'; it is a whole number"))
        })?;
        *self = tuned.checked()?;
        Ok(())
    }
}

fn within<T: PartialOrd + fmt::Display>(name: &str, value: T, range: RangeInclusive<T>) -> Result<()> {
    if range.contains(&value) {
        return Ok(());
    }
    let (low, high) = (range.start(), range.end());
    Err(Error::new(ErrorCode::INVALID_CONFIG, format!("{name} is {value}; it goes from {low} to {high}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_schema_names_every_option() {
        let schema: serde_json::Value = serde_json::from_str(Options::SCHEMA).unwrap();
        let names: Vec<&String> = schema["properties"].as_object().unwrap().keys().collect();
        assert_eq!(names.len(), 8);
        for name in names {
            let error = serde_json::from_str::<Options>(&format!(r#"{{"{name}":[]}}"#)).unwrap_err();
            assert!(!error.to_string().contains("unknown field"), "{name}");
        }
        assert!(serde_json::from_str::<Options>(r#"{"ef":5}"#).is_err());
    }

    #[test]
    fn what_is_out_of_range_is_refused() {
        let options: Options = serde_json::from_str(r#"{"rescore":100001}"#).unwrap();
        assert_eq!(options.checked().unwrap_err().code(), ErrorCode::INVALID_CONFIG);
        let options: Options = serde_json::from_str(r#"{"bits":8}"#).unwrap();
        assert_eq!(options.checked().unwrap_err().code(), ErrorCode::INVALID_CONFIG);
        let mut options = Options::default();
        assert_eq!(options.tune("seed", "1").unwrap_err().code(), ErrorCode::UNSUPPORTED);
        assert_eq!(options.tune("probes", "-1").unwrap_err().code(), ErrorCode::INVALID_CONFIG);
        assert_eq!(options.tune("probes", "1000001").unwrap_err().code(), ErrorCode::INVALID_CONFIG);
        assert_eq!(options, Options::default());
        options.tune("probes", " 7 ").unwrap();
        assert_eq!(options.probes, 7);
    }
}
