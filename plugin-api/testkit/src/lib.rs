//! Conformance checks for magray plugins: what the contract in `magray-plugin-api` asks, as code.
//!
//! An author runs them in a unit test, over a type of the plugin.
//!
//! ```
//! use magray_plugin_api::{CachePolicy, Result};
//! use magray_plugin_testkit as testkit;
//! # #[derive(Default)]
//! # struct Fifo(std::collections::VecDeque<(u64, u64)>);
//! # impl CachePolicy for Fifo {
//! #     fn on_insert(&mut self, key: u64, weight: u64, _now_ms: u64) {
//! #         self.on_remove(key);
//! #         self.0.push_back((key, weight));
//! #     }
//! #     fn on_hit(&mut self, _key: u64, _now_ms: u64) {}
//! #     fn on_remove(&mut self, key: u64) {
//! #         self.0.retain(|&(held, _)| held != key);
//! #     }
//! #     fn evict(&mut self, weight: u64, _now_ms: u64, victims: &mut Vec<u64>) {
//! #         let mut freed = 0u64;
//! #         while freed < weight && let Some((key, weight)) = self.0.pop_front() {
//! #             freed = freed.saturating_add(weight);
//! #             victims.push(key);
//! #         }
//! #     }
//! # }
//!
//! let make = || -> Result<Box<dyn CachePolicy>> { Ok(Box::new(Fifo::default())) };
//! testkit::cache_policy(&make).assert();
//! ```
//!
//! [`Component`] is a component of a whole plugin, called as the host calls it, and `magray plugin check` runs
//! that for a built library: the same checks, each in a process of its own.
#![deny(missing_docs)]

mod cache;
mod component;
mod context;
mod embedder;
mod index;
mod junit;
mod memory;
mod oracle;
mod random;
mod report;

pub use cache::cache_policy;
pub use component::{Component, checks};
pub use context::{Cx, HOST};
pub use embedder::embedder;
pub use index::index;
pub use oracle::Oracle;
pub use report::{Check, Outcome, Report};

use context::Polled;
use magray_plugin_api::{Error, ErrorCode, Health, HealthLevel};
use report::Run;
use std::time::Duration;

/// The version of this crate, `major.minor.patch`.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a run of checks goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// What the check `fuzz` draws its input from: the same seed, the same input.
    pub seed: u64,
    /// Whether nothing else runs in this process, so that what memory grows is the plugin's doing. The
    /// checks of memory are skipped where it is not so.
    pub alone: bool,
}

/// For a unit test: the same input each time, and other tests beside it.
impl Default for Settings {
    fn default() -> Self {
        Self { seed: 1, alone: false }
    }
}

/// What a check returns; the error is the outcome that is not [`Outcome::Passed`].
type Checked<T = ()> = Result<T, Outcome>;

/// A call that the contract says succeeds: its error fails the check.
impl From<Error> for Outcome {
    fn from(error: Error) -> Self {
        Self::Failed(error.to_string())
    }
}

/// Fails the check with a message where a condition does not hold.
macro_rules! ensure {
    ($holds:expr, $($message:tt)*) => {
        let holds: bool = $holds;
        if !holds {
            return Err($crate::Outcome::Failed(format!($($message)*)));
        }
    };
}
use ensure;

/// That a call failed with `code`.
fn refused<T>(call: &str, code: ErrorCode, result: Result<T, Error>) -> Checked {
    match result {
        Err(error) if error.code() == code => Ok(()),
        Err(error) => Err(Outcome::Failed(format!("{call}: expected {code:?}, got {error}"))),
        Ok(_) => Err(Outcome::Failed(format!("{call}: expected {code:?}, but it succeeded"))),
    }
}

/// The name of a check and what the contract asks.
type Asks = (&'static str, &'static str);

const MEMORY: Asks = ("memory-stays", "memory does not grow from call to call");

const POLLS: Asks =
    ("asks-while-it-works", "a long call looks at its context every 10 ms or so; 250 ms are a warning");

/// Judges the longest time that a call let pass without a look at its context.
fn polls(cx: &Polled) -> Checked {
    let longest = cx.longest();
    if longest <= Duration::from_millis(250) {
        return Ok(());
    }
    let why = format!("{} ms passed without a look; call cx.check() between pieces", longest.as_millis());
    Err(Outcome::Warned(why))
}

const DESCRIBES: Asks = ("describes-itself", "describe() is a JSON object");

fn describes(json: &str) -> Checked {
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json) {
        Ok(_) => Ok(()),
        Err(error) => Err(Outcome::Failed(format!("{error}: {json}"))),
    }
}

const TUNE_UNKNOWN: Asks =
    ("refuses-unknown-tuning", "tune() of a name that it does not know gives UNSUPPORTED");

fn tune_unknown(tune: impl FnOnce(&str, &str) -> Result<(), Error>) -> Checked {
    refused("tune", ErrorCode::UNSUPPORTED, tune("no-such-parameter", "1"))
}

const HEALTHY: Asks = ("healthy", "a fresh component does not report that it failed");

fn healthy(health: &Health) -> Checked {
    ensure!(health.level != HealthLevel::Failed, "{}", health.message);
    Ok(())
}
