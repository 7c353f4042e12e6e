//! `[background]`: the work of a process that lives long.

use super::values::whole;
use serde::{Deserialize, Serialize};

/// `[background]`. A period of 0 seconds is never.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Background {
    /// Tasks at once.
    #[serde(deserialize_with = "whole::<1, 64, _, _>")]
    pub threads: usize,
    /// CPU time, in percent of one core.
    #[serde(deserialize_with = "whole::<1, 6400, _, _>")]
    pub cpu_percent: u32,
    /// Between looks whether changes are due to be sealed.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub seal_seconds: u64,
    /// Between merges of whatever size.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub merge_seconds: u64,
    /// Between looks for records without a vector.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub embed_seconds: u64,
    /// Between looks for records past their time.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub expire_seconds: u64,
    /// Between looks for cached embeddings past theirs.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub trim_seconds: u64,
    /// Between checks of searches.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub recall_seconds: u64,
    /// Between looks at parts of index files for damage.
    #[serde(deserialize_with = "whole::<0, 86_400, _, _>")]
    pub scrub_seconds: u64,
}
