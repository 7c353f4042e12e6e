//! Whether so many vectors can be searched from memory: bytes a vector, by index backend and width.
use serde::Serialize;
use serde_json::{Map, Value};
use std::fmt;

const GIB: f64 = (1u64 << 30) as f64;

/// Bytes of each vector that searches touch, which must stay in memory for them to be quick. What else there is on disk
/// is mapped and need not. The figures are those of `docs/benchmarks.md`; a backend that is not known is taken to hold
/// whole vectors and some links.
pub fn bytes_per_vector(backend: &str, options: &Map<String, Value>, dim: usize) -> u64 {
    let dim = dim as u64;
    let whole = dim.saturating_mul(4).saturating_add(8);
    match backend {
        // Each search compares with all of them.
        "flat" => whole,
        // Twice as many links as connections in the lowest layer, of 4 bytes each.
        "hnsw" => {
            let preset = match options.get("preset").and_then(Value::as_str) {
                Some("ecommerce") => 16,
                Some("research") => 32,
                Some("realtime") => 12,
                _ => 24,
            };
            let connections = options.get("max_connections").and_then(Value::as_u64).unwrap_or(preset);
            whole.saturating_add(connections.saturating_mul(8)).saturating_add(13)
        }
        // A code of one bit and one of eight bits a number, and the links of its graph; originals stay on disk.
        "native" => {
            let links = if options.get("layout").and_then(Value::as_str) == Some("flat") { 0 } else { 132 };
            (dim / 8 + 8).saturating_add(dim).saturating_add(4 + 12 + links)
        }
        _ => whole.saturating_add(256),
    }
}

/// So many vectors beside so much memory.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Fit {
    /// The index backend.
    pub backend: String,
    /// Vectors, and numbers of each.
    pub vectors: u64,
    /// See `vectors`.
    pub dim: usize,
    /// Bytes of each that should be in memory.
    pub bytes_per_vector: u64,
    /// Bytes of memory, and the share of it that may be in use, in percent.
    pub memory: u64,
    /// See `memory`.
    pub percent: u8,
}

impl Fit {
    /// Bytes that all of them take.
    pub fn needed(&self) -> u64 {
        self.vectors.saturating_mul(self.bytes_per_vector)
    }

    /// How many there may be.
    pub fn most(&self) -> u64 {
        (self.memory / 100).saturating_mul(u64::from(self.percent)) / self.bytes_per_vector
    }

    /// Whether they can be.
    pub fn fits(&self) -> bool {
        self.vectors <= self.most()
    }

    /// Bytes of memory that would do.
    fn memory_for_all(&self) -> u64 {
        self.needed().saturating_mul(100) / u64::from(self.percent)
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { backend, vectors, dim, bytes_per_vector: each, memory, percent } = self;
        let gib = |bytes: u64| bytes as f64 / GIB;
        write!(
            f,
            "scaling_max_vectors = {vectors} {}: searching vectors of {dim} numbers in the index '{backend}' keeps \
             {each} bytes of each in memory, {:.1} GiB in all, and {percent} percent \
             (critical_memory_usage_percent) of {:.1} GiB are {:.1} GiB",
            if self.fits() { "fits" } else { "cannot fit" },
            gib(self.needed()),
            gib(*memory),
            gib(*memory) * f64::from(*percent) / 100.0,
        )?;
        if self.fits() {
            return Ok(());
        }
        write!(
            f,
            "; set it to {} or less, take a machine with {:.0} GiB",
            round(self.most()),
            gib(self.memory_for_all()).ceil()
        )?;
        let native = bytes_per_vector("native", &Map::new(), *dim);
        if native < *each {
            let most = Self { bytes_per_vector: native, ..self.clone() }.most();
            write!(
                f,
                ", or take the index 'native', which keeps {native} bytes of each: {} fit",
                round(most)
            )?;
        }
        Ok(())
    }
}

/// Two digits of it, rounded down.
fn round(number: u64) -> u64 {
    let unit = 10u64.pow(number.checked_ilog10().unwrap_or(0).saturating_sub(1));
    number / unit * unit
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn bytes(backend: &str, options: &Value, dim: usize) -> u64 {
        bytes_per_vector(backend, options.as_object().unwrap(), dim)
    }

    #[test]
    fn estimates_are_near_what_was_measured() {
        // docs/benchmarks.md: whole files of flat and hnsw, and what searches of a million touch of native.
        let ecommerce = json!({ "preset": "ecommerce" });
        for (found, measured) in [
            (bytes("flat", &json!({}), 384), 1544),
            (bytes("hnsw", &ecommerce, 784), 3285),
            (bytes("hnsw", &json!({ "max_connections": 16 }), 50), 349),
            (bytes("native", &json!({ "layout": "graph" }), 768), 1000),
            (bytes("native", &json!({ "layout": "flat" }), 384), 456),
        ] {
            assert!(found.abs_diff(measured) * 20 <= measured, "{found} and not {measured}");
        }
        assert_eq!(bytes("hnsw", &json!({ "max_connections": u64::MAX }), 384), u64::MAX);
        assert!(bytes("theirs", &json!({}), 384) > bytes("flat", &json!({}), 384));
    }

    #[test]
    fn what_cannot_fit_says_so_with_the_numbers_and_what_to_set() {
        let fit = Fit {
            backend: "hnsw".into(),
            vectors: 20_000_000,
            dim: 1024,
            bytes_per_vector: bytes("hnsw", &json!({ "preset": "default" }), 1024),
            memory: 24 << 30,
            percent: 90,
        };
        assert!(!fit.fits());
        let said = fit.to_string();
        for part in [
            "20000000 cannot fit",
            "1024 numbers",
            "'hnsw'",
            "80.3 GiB",
            "24.0 GiB",
            "5300000 or less",
            "90 GiB",
            "'native', which keeps 1308 bytes of each: 17000000 fit",
        ] {
            assert!(said.contains(part), "no {part:?} in {said}");
        }
        let large = Fit { memory: 96 << 30, ..fit.clone() };
        assert!(large.fits() && large.to_string().contains("fits"), "{large}");
        assert!(Fit { vectors: fit.most(), ..fit.clone() }.fits());
        assert!(!Fit { vectors: fit.most() + 1, ..fit }.fits());
    }

    #[test]
    fn numbers_are_rounded_down() {
        assert_eq!([0, 9, 10, 123, 98_765].map(round), [0, 9, 10, 120, 98_000]);
    }
}
