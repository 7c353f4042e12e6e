use crate::{Error, ErrorCode, Host, MemoryUse, Result};
use serde::de::DeserializeOwned;

/// Decides which entries of a cache to drop. It sees keys and weights, never values.
///
/// Time is the host's: `now_ms` is in milliseconds on a clock that never goes back.
///
/// Threads: the host calls one method at a time.
pub trait CachePolicy: Send + 'static {
    /// The host has put `key` into the cache, `weight` bytes of it. A key that is already there is
    /// replaced.
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64);

    /// The host has found `key`.
    fn on_hit(&mut self, key: u64, now_ms: u64);

    /// The host has dropped `key` for a reason of its own. Unknown keys are ignored.
    fn on_remove(&mut self, key: u64);

    /// Appends to `victims` keys to drop: all that are out of date, and then enough that the
    /// weights of all of them sum to at least `weight`, or every key. A victim is forgotten; the
    /// host drops it. The key inserted last may be among them, which is how a policy refuses it.
    fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>);

    /// Memory that the policy's own books take.
    fn memory_use(&self) -> MemoryUse {
        MemoryUse::default()
    }

    /// Changes a parameter while it runs.
    ///
    /// # Errors
    /// `UNSUPPORTED` for a name that it does not know or cannot change, `INVALID_CONFIG` for a bad
    /// value.
    fn tune(&mut self, name: &str, _value: &str) -> Result<()> {
        Err(Error::new(ErrorCode::UNSUPPORTED, format!("'{name}' cannot be changed while it runs")))
    }

    /// Anything else that is worth showing, as a JSON object.
    fn describe(&self) -> String {
        "{}".to_owned()
    }
}

/// How the host makes a [`CachePolicy`] from its options.
pub trait CreateCachePolicy: CachePolicy + Sized {
    /// The options in the user's TOML. Use `#[serde(deny_unknown_fields)]`, so that a mistyped key
    /// is an error.
    type Options: DeserializeOwned;

    /// JSON Schema of the options, for `magray plugin info`.
    const OPTIONS_SCHEMA: &'static str = r#"{"type":"object"}"#;

    /// Makes a policy without entries.
    ///
    /// # Errors
    /// `INVALID_CONFIG` for options that cannot be.
    fn create(options: Self::Options, host: &'static dyn Host) -> Result<Self>;
}
