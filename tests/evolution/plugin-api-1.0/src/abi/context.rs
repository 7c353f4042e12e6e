use super::{AbiResult, catch};
use crate::{CallContext, Host, LogLevel, Result};
use abi_stable::{
    sabi_trait,
    sabi_trait::TD_Opaque,
    sabi_types::RRef,
    std_types::{ROption, RStr, RString},
};
use std::{path::PathBuf, time::Duration};

/// No deadline, in [`ContextAbi::remaining_ns`].
const NO_DEADLINE: u64 = u64::MAX;

#[sabi_trait]
pub trait ContextAbi: Sync {
    fn is_cancelled(&self) -> bool;
    fn remaining_ns(&self) -> u64;
    #[sabi(last_prefix_field)]
    fn progress(&self, done: u64, total: u64);
}
pub type ContextRef<'a> = ContextAbi_TO<'a, RRef<'a, ()>>;

pub(super) struct ContextToAbi<'a>(pub(super) &'a dyn CallContext);

impl<'a> ContextToAbi<'a> {
    pub(super) fn as_ref(&'a self) -> ContextRef<'a> {
        ContextAbi_TO::from_ptr(RRef::new(self), TD_Opaque)
    }
}

impl ContextAbi for ContextToAbi<'_> {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
    fn remaining_ns(&self) -> u64 {
        self.0.remaining().map_or(NO_DEADLINE, |left| u64::try_from(left.as_nanos()).unwrap_or(NO_DEADLINE))
    }
    fn progress(&self, done: u64, total: u64) {
        self.0.progress(done, total);
    }
}

pub(super) struct ContextFromAbi<'a>(pub(super) ContextRef<'a>);

impl CallContext for ContextFromAbi<'_> {
    fn is_cancelled(&self) -> bool {
        self.0.is_cancelled()
    }
    fn remaining(&self) -> Option<Duration> {
        match self.0.remaining_ns() {
            NO_DEADLINE => None,
            ns => Some(Duration::from_nanos(ns)),
        }
    }
    fn progress(&self, done: u64, total: u64) {
        self.0.progress(done, total);
    }
}

#[sabi_trait]
pub trait HostAbi: Send + Sync {
    fn log_enabled(&self, level: u8, target: RStr<'_>) -> bool;
    fn log(&self, level: u8, target: RStr<'_>, message: RStr<'_>);
    fn threads(&self) -> usize;
    fn memory_budget(&self) -> ROption<u64>;
    fn data_dir(&self) -> AbiResult<RString>;
    fn models_dir(&self) -> RString;
    #[sabi(last_prefix_field)]
    fn count(&self, name: RStr<'_>, value: u64);
}
pub type HostRef = HostAbi_TO<'static, RRef<'static, ()>>;

pub(crate) struct HostToAbi(&'static dyn Host);

impl HostToAbi {
    pub(crate) fn leak(host: &'static dyn Host) -> HostRef {
        HostAbi_TO::from_ptr(RRef::new(Box::leak(Box::new(Self(host)))), TD_Opaque)
    }
}

fn level(raw: u8) -> LogLevel {
    match raw {
        1 => LogLevel::Error,
        2 => LogLevel::Warn,
        3 => LogLevel::Info,
        4 => LogLevel::Debug,
        _ => LogLevel::Trace,
    }
}

impl HostAbi for HostToAbi {
    fn log_enabled(&self, raw: u8, target: RStr<'_>) -> bool {
        self.0.log_enabled(level(raw), target.as_str())
    }
    fn log(&self, raw: u8, target: RStr<'_>, message: RStr<'_>) {
        self.0.log(level(raw), target.as_str(), message.as_str());
    }
    fn threads(&self) -> usize {
        self.0.threads()
    }
    fn memory_budget(&self) -> ROption<u64> {
        self.0.memory_budget().into()
    }
    fn data_dir(&self) -> AbiResult<RString> {
        catch(|| Ok(self.0.data_dir()?.to_string_lossy().into_owned().into()))
    }
    fn models_dir(&self) -> RString {
        self.0.models_dir().to_string_lossy().into_owned().into()
    }
    fn count(&self, name: RStr<'_>, value: u64) {
        self.0.count(name.as_str(), value);
    }
}

pub struct HostFromAbi(pub HostRef);

impl Host for HostFromAbi {
    fn log_enabled(&self, level: LogLevel, target: &str) -> bool {
        self.0.log_enabled(level as u8, target.into())
    }
    fn log(&self, level: LogLevel, target: &str, message: &str) {
        self.0.log(level as u8, target.into(), message.into());
    }
    fn threads(&self) -> usize {
        self.0.threads().max(1)
    }
    fn memory_budget(&self) -> Option<u64> {
        self.0.memory_budget().into_option()
    }
    fn data_dir(&self) -> Result<PathBuf> {
        self.0.data_dir().into_result().map(|dir| dir.as_str().into())
    }
    fn models_dir(&self) -> PathBuf {
        self.0.models_dir().as_str().into()
    }
    fn count(&self, name: &str, value: u64) {
        self.0.count(name.into(), value);
    }
}
