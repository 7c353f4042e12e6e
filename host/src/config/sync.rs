//! `[memory.sync]`: when changes are built into the index.

use super::values::whole;
use serde::{Deserialize, Serialize};
use std::time::Duration;

const GIB: u64 = 1 << 30;
const UNLIMITED: i64 = i64::MAX;

/// `[memory.sync]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Sync {
    /// What the memory is used for, which decides the zeros below.
    pub workload: Workload,
    /// Changes that wait before they are sealed; 0 goes by the workload.
    #[serde(deserialize_with = "whole::<0, 1_000_000, _, _>")]
    pub seal_after: u64,
    /// Seconds that a change waits at most; 0 goes by the workload.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub max_sync_seconds: u64,
    /// Vectors that are read and written at a time; 0 goes by the memory of the machine.
    #[serde(deserialize_with = "whole::<0, 100_000, _, _>")]
    pub batch_size: usize,
    /// Segments of like size that become one.
    #[serde(deserialize_with = "whole::<2, 64, _, _>")]
    pub merge_factor: usize,
    /// Vectors of a segment at most.
    #[serde(deserialize_with = "whole::<1000, UNLIMITED, _, _>")]
    pub partition_max: u64,
    /// Dead rows of a segment, in percent, at which it is written anew.
    #[serde(deserialize_with = "whole::<1, 45, _, _>")]
    pub compact_percent: u64,
    /// Threads that sealing in the background keeps busy.
    #[serde(deserialize_with = "whole::<1, 4096, _, _>")]
    pub threads: usize,
}

/// What a memory is used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Workload {
    /// Much is written.
    HighWrite,
    /// As much is written as read.
    Balanced,
    /// Much is read.
    ReadHeavy,
    /// A few changes at a time, each of which is asked for soon.
    RealtimeChat,
    /// Many changes at a time.
    BatchProcessing,
    /// A server.
    Production,
}

impl Sync {
    /// Changes that wait before they are sealed.
    pub fn seal_after(&self) -> u64 {
        match (self.seal_after, self.workload) {
            (0, Workload::HighWrite) => 25,
            (0, Workload::Balanced | Workload::Production) => 50,
            (0, Workload::ReadHeavy) => 100,
            (0, Workload::RealtimeChat) => 10,
            (0, Workload::BatchProcessing) => 1000,
            (changes, _) => changes,
        }
    }

    /// How long a change waits at most.
    pub fn max_age(&self) -> Duration {
        Duration::from_secs(match (self.max_sync_seconds, self.workload) {
            (0, Workload::RealtimeChat) => 30,
            (0, Workload::BatchProcessing) => 600,
            (0, _) => 300,
            (seconds, _) => seconds,
        })
    }

    /// Whether what is due is sealed at once and not when a round comes.
    pub fn is_immediate(&self) -> bool {
        self.workload == Workload::RealtimeChat
    }

    /// Vectors that are read and written at a time, on a machine with `total_memory` bytes.
    pub fn batch_size(&self, total_memory: u64) -> usize {
        match (self.batch_size, total_memory.div_ceil(GIB)) {
            (0, 0..8) => 500,
            (0, 8..16) => 1000,
            (0, _) => 2000,
            (rows, _) => rows,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_follow_the_workload_and_the_memory() {
        let sync = |workload, seal_after| Sync {
            workload,
            seal_after,
            max_sync_seconds: 0,
            batch_size: 0,
            merge_factor: 8,
            partition_max: 1_000_000,
            compact_percent: 20,
            threads: 1,
        };
        for (workload, changes, seconds) in [
            (Workload::HighWrite, 25, 300),
            (Workload::Balanced, 50, 300),
            (Workload::ReadHeavy, 100, 300),
            (Workload::RealtimeChat, 10, 30),
            (Workload::BatchProcessing, 1000, 600),
            (Workload::Production, 50, 300),
        ] {
            let sync = sync(workload, 0);
            assert_eq!((sync.seal_after(), sync.max_age().as_secs()), (changes, seconds), "{workload:?}");
            assert_eq!(sync.is_immediate(), workload == Workload::RealtimeChat);
        }
        assert_eq!(sync(Workload::Balanced, 7).seal_after(), 7);
        let batch = |gib| sync(Workload::Balanced, 0).batch_size(gib * GIB);
        assert_eq!([4, 7, 8, 15, 16, 64].map(batch), [500, 500, 1000, 1000, 2000, 2000]);
    }
}
