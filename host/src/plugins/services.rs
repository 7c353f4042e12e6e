//! What the host does for a plugin that calls back.
use magray_plugin_api::{Error, ErrorCode, Host, LogLevel, Result};
use std::{cell::Cell, fs, path::PathBuf};

thread_local! {
    static THREAD_LIMIT: Cell<usize> = const { Cell::new(usize::MAX) };
}

/// From now on plugins that are called by this thread keep at most so many threads busy.
pub fn limit_threads(threads: usize) {
    THREAD_LIMIT.set(threads);
}

/// The [`Host`] of one plugin.
#[derive(Debug)]
pub(super) struct Services {
    pub(super) plugin: String,
    pub(super) data_dir: PathBuf,
    /// Threads that the plugin may keep busy.
    pub(super) threads: usize,
}

impl Services {
    pub(super) fn leak(self) -> &'static dyn Host {
        Box::leak(Box::new(self))
    }
}

/// Runs `$then` with `$LEVEL` as a constant, which the macros of `tracing` need.
macro_rules! at_level {
    (($level:expr), $LEVEL:ident => $then:expr) => {
        match $level {
            LogLevel::Error => at_level!(ERROR, $LEVEL => $then),
            LogLevel::Warn => at_level!(WARN, $LEVEL => $then),
            LogLevel::Info => at_level!(INFO, $LEVEL => $then),
            LogLevel::Debug => at_level!(DEBUG, $LEVEL => $then),
            LogLevel::Trace => at_level!(TRACE, $LEVEL => $then),
        }
    };
    ($value:ident, $LEVEL:ident => $then:expr) => {{
        const $LEVEL: tracing::Level = tracing::Level::$value;
        $then
    }};
}

impl Host for Services {
    fn log_enabled(&self, level: LogLevel, _target: &str) -> bool {
        at_level!((level), LEVEL => tracing::enabled!(target: "plugin", LEVEL))
    }

    fn log(&self, level: LogLevel, target: &str, message: &str) {
        at_level!((level), LEVEL => tracing::event!(target: "plugin", LEVEL, "{}: {target}: {message}", self.plugin));
    }

    fn threads(&self) -> usize {
        self.threads.min(THREAD_LIMIT.get()).max(1)
    }

    fn memory_budget(&self) -> Option<u64> {
        None
    }

    fn data_dir(&self) -> Result<PathBuf> {
        let dir = self.data_dir.join("plugins").join(&self.plugin);
        fs::create_dir_all(&dir).map_err(|error| {
            Error::new(ErrorCode::IO, format!("cannot make the plugin's folder {}: {error}", dir.display()))
        })?;
        Ok(dir)
    }

    fn models_dir(&self) -> PathBuf {
        self.data_dir.join("models")
    }

    fn count(&self, name: &str, value: u64) {
        tracing::trace!(target: "plugin", "{}: {name} += {value}", self.plugin);
    }

    fn observe(&self, name: &str, value: f64) {
        tracing::trace!(target: "plugin", "{}: {name} = {value}", self.plugin);
    }
}
