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
#![deny(missing_docs)]

mod cache;
mod context;
mod embedder;
mod index;
mod oracle;
mod random;

pub use cache::cache_policy;
pub use context::{Cx, HOST};
pub use embedder::embedder;
pub use index::index;
pub use oracle::Oracle;

use magray_plugin_api::{Error, ErrorCode, Health, HealthLevel};
use std::{
    fmt,
    panic::{AssertUnwindSafe, catch_unwind},
};

/// One thing that the contract asks, and whether the plugin does it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// Stable name, kebab-case.
    pub name: &'static str,
    /// What the contract asks, in one sentence.
    pub asks: &'static str,
    /// How it went.
    pub outcome: Outcome,
}

/// How a [`Check`] went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The plugin does what is asked.
    Passed,
    /// It does not: what was seen instead.
    Failed(String),
    /// The question does not arise, and why.
    Skipped(String),
}

/// Every check of one component, in the order in which they ran.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use = "a report says nothing until it is shown or asserted"]
pub struct Report {
    /// The checks.
    pub checks: Vec<Check>,
}

impl Report {
    /// Whether no check failed.
    pub fn passed(&self) -> bool {
        self.failures().next().is_none()
    }

    /// The checks that failed.
    pub fn failures(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| matches!(check.outcome, Outcome::Failed(_)))
    }

    /// For a unit test.
    ///
    /// # Panics
    /// With the whole report, where a check failed.
    pub fn assert(&self) {
        assert!(self.passed(), "\n{self}");
    }

    /// Runs one check and keeps its outcome; a panic is a failure.
    fn run(&mut self, name: &'static str, asks: &'static str, check: impl FnOnce() -> Checked) {
        let outcome = match catch_unwind(AssertUnwindSafe(check)) {
            Ok(Ok(())) => Outcome::Passed,
            Ok(Err(outcome)) => outcome,
            Err(payload) => {
                let text = payload.downcast_ref::<String>().map(String::as_str);
                let text = text.or_else(|| payload.downcast_ref::<&str>().copied());
                Outcome::Failed(format!("it panicked: {}", text.unwrap_or("no message")))
            }
        };
        self.checks.push(Check { name, asks, outcome });
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Check { name, asks, outcome } in &self.checks {
            match outcome {
                Outcome::Passed => writeln!(f, "pass  {name}")?,
                Outcome::Skipped(why) => writeln!(f, "skip  {name}: {why}")?,
                Outcome::Failed(why) => writeln!(f, "FAIL  {name}: {why}\n      the contract: {asks}")?,
            }
        }
        Ok(())
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

const DESCRIBES: (&str, &str) = ("describes-itself", "describe() is a JSON object");

fn describes(json: &str) -> Checked {
    match serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(json) {
        Ok(_) => Ok(()),
        Err(error) => Err(Outcome::Failed(format!("{error}: {json}"))),
    }
}

const TUNE_UNKNOWN: (&str, &str) =
    ("refuses-unknown-tuning", "tune() of a name that it does not know gives UNSUPPORTED");

fn tune_unknown(tune: impl FnOnce(&str, &str) -> Result<(), Error>) -> Checked {
    refused("tune", ErrorCode::UNSUPPORTED, tune("no-such-parameter", "1"))
}

const HEALTHY: (&str, &str) = ("healthy", "a fresh component does not report that it failed");

fn healthy(health: &Health) -> Checked {
    ensure!(health.level != HealthLevel::Failed, "{}", health.message);
    Ok(())
}
