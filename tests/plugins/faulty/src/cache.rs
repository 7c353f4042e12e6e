use crate::{Fault, Options, SCHEMA, misbehave};
use magray_plugin_api::{CachePolicy, CreateCachePolicy, Host, Result};
use std::collections::VecDeque;

/// Drops the oldest entry first.
pub struct Fifo {
    fault: Fault,
    entries: VecDeque<(u64, u64)>,
    capacity: u64,
}

impl Fifo {
    /// With a fault.
    pub fn new(fault: Fault) -> Self {
        Self { fault, entries: VecDeque::new(), capacity: u64::MAX }
    }
}

impl CreateCachePolicy for Fifo {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;
    fn create(options: Options, _: &'static dyn Host) -> Result<Self> {
        Ok(Self::new(options.check()?))
    }
}

impl CachePolicy for Fifo {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        if self.fault == Fault::KeepsOldWeight && self.entries.iter().any(|entry| entry.0 == key) {
            return;
        }
        assert!(self.fault != Fault::HatesLeaps || now_ms < 1 << 60, "such a time cannot be");
        assert!(self.fault != Fault::HatesChance || !(key == 77 && weight >= 70), "asked to panic at 77");
        self.entries.retain(|entry| entry.0 != key);
        self.entries.push_back((key, weight));
    }
    fn on_hit(&mut self, key: u64, _now_ms: u64) {
        if self.fault == Fault::AdoptsUnknown && self.entries.iter().all(|entry| entry.0 != key) {
            self.entries.push_back((key, 1));
        }
    }
    fn on_remove(&mut self, key: u64) {
        if self.fault != Fault::KeepsRemoved {
            self.entries.retain(|entry| entry.0 != key);
        }
    }
    fn on_capacity(&mut self, weight: u64) {
        self.capacity = weight;
    }
    fn evict(&mut self, weight: u64, _now_ms: u64, victims: &mut Vec<u64>) {
        misbehave(self.fault);
        match self.fault {
            Fault::ClearsVictims => victims.clear(),
            Fault::NamesGhosts if self.entries.is_empty() => victims.push(1),
            Fault::DropsFresh if weight == 0 => victims.extend(self.entries.pop_front().map(|entry| entry.0)),
            Fault::HatesCapacity if self.capacity < 10 => return,
            _ => {}
        }
        if self.fault == Fault::KeepsVictims {
            victims.extend(self.entries.iter().map(|entry| entry.0));
            return;
        }
        let wanted = if self.fault == Fault::EvictsTooLittle { weight / 2 } else { weight };
        let mut freed = 0_u64;
        while freed < wanted {
            if self.fault == Fault::KeepsOne && self.entries.len() == 1 {
                return;
            }
            let Some((key, weight)) = self.entries.pop_front() else { return };
            freed = match self.fault {
                Fault::Overflows => freed.checked_add(weight).expect("a sum of weights fits"),
                _ => freed.saturating_add(weight),
            };
            victims.push(key);
            if self.fault == Fault::NamesTwice {
                victims.push(key);
            }
        }
    }
    fn tune(&mut self, name: &str, value: &str) -> Result<()> {
        crate::tune(self.fault, name, value)
    }
    fn describe(&self) -> String {
        crate::describe(self.fault)
    }
}
