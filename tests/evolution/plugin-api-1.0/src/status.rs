//! What a component says of itself while it runs.
use abi_stable::StableAbi;

/// Which device did the work of an embedder. Truthful: what ran, not what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct DeviceReport {
    /// `cpu`, `cuda:0`, ...
    pub device: String,
    /// The engine on it: `portable`, `avx512-vnni`, `CUDAExecutionProvider`, ...
    pub engine: String,
    /// Precision of the arithmetic: `f32`, `bf16`, `int8`, ...
    pub precision: String,
    /// Where the component was asked for another device: why it did not run there; else empty.
    pub fallback_reason: String,
}

/// How well a component is.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum HealthLevel {
    /// All is well.
    Ok = 0,
    /// It works, but worse than it should.
    Degraded = 1,
    /// It does not work.
    Failed = 2,
}

/// How well a component is, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The verdict.
    pub level: HealthLevel,
    /// Cause and remedy in one line; empty where all is well.
    pub message: String,
}

impl Health {
    /// All is well.
    pub fn ok() -> Self {
        Self { level: HealthLevel::Ok, message: String::new() }
    }
}

/// Memory that a component holds now, in bytes.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct MemoryUse {
    /// Main memory that it allocated.
    pub resident: u64,
    /// Files that it maps; the system may drop these pages at any time.
    pub mapped: u64,
    /// Memory of an accelerator.
    pub device: u64,
}
