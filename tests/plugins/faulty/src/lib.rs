//! Right components of each kind that break one rule of the contract on request: what the conformance kit must
//! find. `FAULTS` says which check finds what.
#![expect(missing_debug_implementations, reason = "a test plugin")]
#![expect(clippy::unwrap_used, reason = "a test plugin")]
mod cache;
mod embedder;
mod faults;
mod index;

pub use cache::Fifo;
pub use faults::{FAULTS, Fault};

use serde::Deserialize;
use std::time::{Duration, Instant};

magray_plugin_api::export_plugin! {
    id: "faulty",
    summary: "breaks the contract on request",
    embedders: { "faulty" => embedder::Letters },
    indexes: { "faulty" => index::Exact },
    cache_policies: { "faulty" => cache::Fifo },
}

pub(crate) const SCHEMA: &str = r#"{"type":"object","properties":{"fault":{"type":"string"}}}"#;

#[derive(Deserialize)]
pub struct Options {
    #[serde(default)]
    fault: Fault,
    #[serde(flatten)]
    others: std::collections::BTreeMap<String, serde::de::IgnoredAny>,
}

impl Options {
    /// The fault, where nothing else is asked for.
    fn check(self) -> magray_plugin_api::Result<Fault> {
        use magray_plugin_api::{Error, ErrorCode};
        let Self { fault, others } = self;
        if fault == Fault::FailsToStart {
            return Err(Error::new(ErrorCode::UNAVAILABLE, "asked not to start"));
        }
        match others.keys().next() {
            Some(name) if fault != Fault::TakesAnyOption => {
                Err(Error::new(ErrorCode::INVALID_CONFIG, format!("unknown field `{name}`")))
            }
            _ => Ok(fault),
        }
    }
}

/// Does what ends a process or keeps it, where that is the fault.
fn misbehave(fault: Fault) {
    match fault {
        Fault::Aborts => std::process::abort(),
        Fault::Hangs => loop {
            std::thread::park();
        },
        Fault::EatsMemory => {
            let mut hoard = Vec::new();
            loop {
                hoard.push(vec![1_u8; 64 << 20]);
            }
        }
        Fault::Leaks => std::mem::forget(vec![1_u8; 64 << 10]),
        Fault::NeverAsks => {
            let began = Instant::now();
            while began.elapsed() < Duration::from_millis(400) {
                std::hint::spin_loop();
            }
        }
        _ => {}
    }
}

fn tune(fault: Fault, name: &str, _value: &str) -> magray_plugin_api::Result<()> {
    use magray_plugin_api::{Error, ErrorCode};
    match fault {
        Fault::TunesAnything => Ok(()),
        _ => Err(Error::new(ErrorCode::UNSUPPORTED, format!("'{name}' cannot be changed"))),
    }
}

fn describe(fault: Fault) -> String {
    if fault == Fault::DescribesBadly { "letters" } else { "{}" }.to_owned()
}

fn health(fault: Fault) -> magray_plugin_api::Health {
    use magray_plugin_api::{Health, HealthLevel};
    match fault {
        Fault::IsSick => Health { level: HealthLevel::Failed, message: "asked to be sick".into() },
        _ => Health::ok(),
    }
}

fn warm_up(fault: Fault) -> magray_plugin_api::Result<()> {
    use magray_plugin_api::{Error, ErrorCode};
    match fault {
        Fault::FailsToWarmUp => Err(Error::new(ErrorCode::INTERNAL, "asked to stay cold")),
        _ => Ok(()),
    }
}
