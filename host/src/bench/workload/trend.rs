//! Whether memory grows.
use crate::resources::leak;
use serde::Serialize;

/// Memory at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Sample {
    /// Since the start.
    pub second: f64,
    /// Resident memory.
    pub bytes: u64,
}

/// Memory of a process over time.
#[derive(Clone, Debug, Serialize)]
pub struct MemoryTrend {
    /// At the first and the last look; 0 where the system does not tell.
    pub start_bytes: u64,
    #[expect(missing_docs, reason = "as above")]
    pub end_bytes: u64,
    /// The most that was seen.
    pub peak_bytes: u64,
    /// Growth by the median of the slopes between all pairs of looks (Theil 1950, Sen 1968), which single peaks do not
    /// bend.
    pub bytes_per_s: f64,
    /// The looks.
    pub samples: Vec<Sample>,
}

/// Looks that are compared, evenly drawn: their pairs are half a million.
const COMPARED: usize = 1000;

impl MemoryTrend {
    /// Of looks by time.
    pub(super) fn of(samples: Vec<Sample>) -> Self {
        let count = samples.len().min(COMPARED);
        let drawn = (0..count).map(|at| samples[at * samples.len() / count]);
        let points: Vec<(f64, f64)> = drawn.map(|sample| (sample.second, sample.bytes as f64)).collect();
        let ends = (samples.first(), samples.last());
        Self {
            start_bytes: ends.0.map_or(0, |sample| sample.bytes),
            end_bytes: ends.1.map_or(0, |sample| sample.bytes),
            peak_bytes: samples.iter().map(|sample| sample.bytes).max().unwrap_or(0),
            bytes_per_s: leak::slope(&points),
            samples,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trend(bytes: impl Fn(u64) -> u64) -> MemoryTrend {
        MemoryTrend::of((0..100).map(|n| Sample { second: n as f64, bytes: bytes(n) }).collect())
    }

    #[test]
    fn growth_is_seen_and_a_peak_is_not_growth() {
        assert_eq!(trend(|n| 1000 + 7 * n).bytes_per_s, 7.0);
        let peaks = trend(|n| if n % 10 == 3 { 1_000_000 } else { 1000 });
        assert_eq!((peaks.bytes_per_s, peaks.peak_bytes), (0.0, 1_000_000));
        assert_eq!(trend(|n| 100_000 - n).bytes_per_s, -1.0);
        assert_eq!(MemoryTrend::of(Vec::new()).bytes_per_s, 0.0);
    }
}
