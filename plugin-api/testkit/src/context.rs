use magray_plugin_api::{CallContext, Error, ErrorCode, Host, LogLevel, Result};
use std::{
    path::PathBuf,
    sync::{Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};
use tempfile::TempDir;

/// A [`CallContext`] for tests.
#[derive(Clone, Copy, Debug)]
pub struct Cx {
    cancelled: bool,
    remaining: Option<Duration>,
}

impl Cx {
    /// Nobody hurries the call.
    pub const fn free() -> Self {
        Self { cancelled: false, remaining: None }
    }

    /// The caller has cancelled before the call began.
    pub const fn cancelled() -> Self {
        Self { cancelled: true, remaining: None }
    }

    /// The deadline has passed before the call began.
    pub const fn expired() -> Self {
        Self { cancelled: false, remaining: Some(Duration::ZERO) }
    }
}

impl CallContext for Cx {
    fn is_cancelled(&self) -> bool {
        self.cancelled
    }
    fn remaining(&self) -> Option<Duration> {
        self.remaining
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

/// A [`CallContext`] that measures how long nobody looks at it.
#[derive(Debug)]
pub(crate) struct Polled(Mutex<(Instant, Duration)>);

impl Polled {
    pub(crate) fn new() -> Self {
        Self(Mutex::new((Instant::now(), Duration::ZERO)))
    }

    fn look(&self) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (last, longest) = *state;
        *state = (Instant::now(), longest.max(last.elapsed()));
    }

    /// The longest time between two looks, the end of the call being the last.
    pub(crate) fn longest(&self) -> Duration {
        self.look();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl CallContext for Polled {
    fn is_cancelled(&self) -> bool {
        self.look();
        false
    }
    fn remaining(&self) -> Option<Duration> {
        self.look();
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

/// A [`Host`] for tests: two threads, no memory limit, no log, no metrics, and a data folder under
/// the system's folder for temporary files that is made when a plugin first asks for it.
pub const HOST: &dyn Host = &TestHost;

struct TestHost;

impl Host for TestHost {
    fn log_enabled(&self, _level: LogLevel, _target: &str) -> bool {
        false
    }
    fn log(&self, _level: LogLevel, _target: &str, _message: &str) {}
    fn threads(&self) -> usize {
        2
    }
    fn memory_budget(&self) -> Option<u64> {
        None
    }
    fn data_dir(&self) -> Result<PathBuf> {
        static DIR: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
        // The folder lives as long as the process, and nothing runs when a process ends.
        let make = || TempDir::with_prefix("magray-testkit-").map(TempDir::keep).map_err(|e| e.to_string());
        DIR.get_or_init(make).clone().map_err(|message| Error::new(ErrorCode::IO, message))
    }
    fn models_dir(&self) -> PathBuf {
        std::env::temp_dir().join("magray-testkit-has-no-models")
    }
    fn count(&self, _name: &str, _value: u64) {}
    fn observe(&self, _name: &str, _value: f64) {}
}
