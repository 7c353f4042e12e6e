//! Traces of requests: keys in the order in which they were asked for.
use crate::bench::{
    BenchError,
    data::{fault_of, read_bytes},
    zipf::Zipf,
};
use std::{
    collections::HashMap,
    ffi::OsStr,
    path::{Path, PathBuf},
};

/// A request, of an entry that weighs `weight`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Request {
    pub(super) key: u64,
    pub(super) weight: u64,
}

/// Requests in the order in which they came.
#[derive(Clone, Debug)]
pub struct CacheTrace {
    pub(super) name: String,
    pub(super) requests: Vec<Request>,
    /// Whether weights are bytes; else each is 1.
    pub(super) has_bytes: bool,
}

impl CacheTrace {
    /// Reads a trace; what its form is the name says, with or without `.zst` or `.gz` at its end: `.u32` is
    /// little-endian u32 keys; `.oracleGeneral` or `.oracleGeneral.bin` is that of libCacheSim, records of 24
    /// bytes `<u32 time, u64 key, u32 bytes, i64 next>`; anything else is text, one key a line.
    ///
    /// # Errors
    /// [`BenchError::Data`].
    pub fn open(path: &Path) -> Result<Self, BenchError> {
        let fault = |fault: String| fault_of(path, fault);
        let bytes = read_bytes(path)?;
        let file = PathBuf::from(path.file_name().unwrap_or_default());
        let plain = if is(&file, "zst") || is(&file, "gz") { file.with_extension("") } else { file };
        let name = plain.display().to_string();
        let stem = if is(&plain, "bin") { plain.with_extension("") } else { plain.clone() };
        let whole = |size: usize| match bytes.len() % size {
            0 => Ok(()),
            rest => Err(fault(format!("{rest} bytes are left after its records of {size} bytes"))),
        };
        let has_bytes = is(&stem, "oracleGeneral");
        let requests: Vec<Request> = if is(&plain, "u32") {
            whole(4)?;
            let keys = bytes.as_chunks().0.iter().map(|key| u64::from(u32::from_le_bytes(*key)));
            keys.map(|key| Request { key, weight: 1 }).collect()
        } else if has_bytes {
            whole(24)?;
            bytes.as_chunks().0.iter().map(oracle_general).collect()
        } else {
            let text = std::str::from_utf8(&bytes)
                .map_err(|error| fault(format!("it is neither .u32 nor .oracleGeneral nor text: {error}")))?;
            let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            lines.map(|line| Request { key: key_of(line), weight: 1 }).collect()
        };
        if requests.is_empty() {
            return Err(fault("it has no requests".to_owned()));
        }
        Ok(Self { name, requests, has_bytes })
    }

    /// `count` requests of `keys` keys, of which the one at rank r is asked for in proportion to
    /// `r^-skew`. The same whenever it is made.
    pub fn zipf(keys: usize, skew: f64, count: usize) -> Self {
        let zipf = Zipf::new(keys, skew);
        let requests = (0..count as u64).map(|n| Request { key: zipf.rank(n) as u64, weight: 1 });
        Self { name: format!("zipf {keys},{skew}"), requests: requests.collect(), has_bytes: false }
    }

    /// How many keys there are, and what they weigh in all, each by its first request.
    pub(super) fn unique(&self) -> (usize, u64) {
        let mut weights = HashMap::new();
        for request in &self.requests {
            weights.entry(request.key).or_insert(request.weight);
        }
        (weights.len(), weights.values().sum())
    }
}

fn is(path: &Path, extension: &str) -> bool {
    path.extension() == Some(OsStr::new(extension))
}

fn oracle_general(record: &[u8; 24]) -> Request {
    let [_, _, _, _, key @ .., _, _, _, _, _, _, _, _, _, _, _, _] = record;
    let [_, _, _, _, _, _, _, _, _, _, _, _, weight @ .., _, _, _, _, _, _, _, _] = record;
    Request { key: u64::from_le_bytes(*key), weight: u64::from(u32::from_le_bytes(*weight)) }
}

/// A number is itself, any other line its hash.
fn key_of(line: &str) -> u64 {
    line.parse().unwrap_or_else(|_| {
        let hash = blake3::hash(line.as_bytes());
        hash.as_bytes()[..8].iter().fold(0, |key, &byte| key << 8 | u64::from(byte))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn open(name: &str, bytes: &[u8]) -> Result<CacheTrace, BenchError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        CacheTrace::open(&path)
    }

    fn pairs(trace: &CacheTrace) -> Vec<(u64, u64)> {
        trace.requests.iter().map(|request| (request.key, request.weight)).collect()
    }

    #[test]
    fn each_form_is_read() {
        let numbers = open("t.u32", &[1, 0, 0, 0, 0, 1, 0, 0]).unwrap();
        assert_eq!((pairs(&numbers), numbers.has_bytes), (vec![(1, 1), (256, 1)], false));
        let mut record = [0; 24];
        (record[4], record[13], record[16]) = (7, 2, 9);
        let objects = open("t.oracleGeneral.bin", &record).unwrap();
        assert_eq!((pairs(&objects), objects.has_bytes), (vec![(7, 512)], true));
        let text = open("queries.txt", "12\nhow to\n\n how to \n".as_bytes()).unwrap();
        let keys = pairs(&text);
        assert_eq!((keys.len(), keys[0].0, keys[1] == keys[2]), (3, 12, true));
    }

    #[test]
    fn what_is_no_trace_is_an_error() {
        for (name, bytes, says) in [
            ("t.u32", &[1u8, 2, 3][..], "3 bytes are left"),
            ("t.oracleGeneral", &[0; 25], "1 bytes are left"),
            ("t.txt", b"\n\n", "no requests"),
            ("t.txt", &[0xFF, 0xFE], "neither"),
            ("t.u32.zst", b"not zstd", ""),
        ] {
            let error = open(name, bytes).unwrap_err().to_string();
            assert!(error.contains(says) && error.contains(name), "{error}");
        }
        assert!(CacheTrace::open(Path::new("/nonexistent")).is_err());
    }
}
