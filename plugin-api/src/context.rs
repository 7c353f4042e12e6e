use crate::{Error, ErrorCode, Result};
use std::{path::PathBuf, time::Duration};

/// Severity of a log record that crosses the boundary, most severe first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum LogLevel {
    /// Something failed.
    Error = 1,
    /// Something is odd, and work goes on.
    Warn = 2,
    /// Worth a line in a normal log.
    Info = 3,
    /// For whoever looks for a fault.
    Debug = 4,
    /// Everything.
    Trace = 5,
}

/// What a call may ask of its caller while it runs.
///
/// Threads: callable from any thread, valid until the call returns.
pub trait CallContext: Sync {
    /// Whether the caller no longer wants the answer.
    fn is_cancelled(&self) -> bool;

    /// Time left before the caller's deadline; `None` where it set none.
    fn remaining(&self) -> Option<Duration>;

    /// Reports `done` of `total` units of work; cheap, so call it between units.
    fn progress(&self, done: u64, total: u64);

    /// Fails with `CANCELLED` or `DEADLINE` where the call should stop. Call it between units of
    /// work, at least every 10 ms or so.
    fn check(&self) -> Result<()> {
        if self.is_cancelled() {
            return Err(Error::new(ErrorCode::CANCELLED, "the caller cancelled"));
        }
        if self.remaining() == Some(Duration::ZERO) {
            return Err(Error::new(ErrorCode::DEADLINE, "no time left"));
        }
        Ok(())
    }
}

/// Services that the host gives to every plugin, valid for the life of the process.
///
/// Threads: callable from any thread at any time after `create` was called.
pub trait Host: Send + Sync {
    /// Whether a log record of this level would be kept.
    fn log_enabled(&self, level: LogLevel, target: &str) -> bool;

    /// Writes a log record. `tracing` events of a plugin come here by themselves.
    fn log(&self, level: LogLevel, target: &str, message: &str);

    /// How many threads this plugin may keep busy at once; at least 1. It may change while the
    /// process runs: ask before each large piece of work.
    fn threads(&self) -> usize;

    /// Bytes of main memory that this plugin may hold; `None` where there is no limit.
    fn memory_budget(&self) -> Option<u64>;

    /// A folder that only this plugin writes. It exists when this returns.
    ///
    /// # Errors
    /// `IO` where it cannot be made.
    fn data_dir(&self) -> Result<PathBuf>;

    /// The folder that holds the user's models, one folder each. It may not exist.
    fn models_dir(&self) -> PathBuf;

    /// Adds `value` to the counter `name` of this plugin. The host decides where it shows.
    fn count(&self, name: &str, value: u64);

    /// Records one observation of `name` (seconds, bytes) for a histogram. Since 1.1: an older host
    /// ignores it.
    fn observe(&self, _name: &str, _value: f64) {}
}
