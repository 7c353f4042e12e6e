use super::*;
use magray_cache_testkit::{agree, steps};
use magray_plugin_api::Maker;
use magray_plugin_testkit::{self as testkit, HOST};
use proptest::prelude::*;

fn s3fifo(ttl_seconds: u64, small_percent: u32) -> S3Fifo {
    S3Fifo::create(Options { ttl_seconds, small_percent }, HOST).unwrap()
}

#[test]
fn conforms() {
    for (ttl_seconds, small_percent) in [(259_200, 10), (0, 1), (1, 99)] {
        testkit::cache_policy(&|| Ok(Box::new(s3fifo(ttl_seconds, small_percent)))).assert();
    }
}

#[test]
fn options_and_tuning_are_checked() {
    let Maker::CachePolicy(make) = PLUGIN.components[0].maker else { unreachable!() };
    assert!(make("{}", HOST).is_ok());
    for (options, named) in [
        (r#"{"ttl":1}"#, "ttl_seconds"),
        (r#"{"small_percent":0}"#, "small_percent"),
        (r#"{"small_percent":-1}"#, "-1"),
    ] {
        let Err(error) = make(options, HOST) else { panic!("{options} was taken") };
        assert_eq!(error.code(), ErrorCode::INVALID_CONFIG);
        assert!(error.message().contains(named), "{error}");
    }
    let mut policy = s3fifo(0, 10);
    policy.tune("small_percent", "30").unwrap();
    assert!(policy.describe().contains(r#""small_percent":30"#));
    for (name, value) in [("small_percent", "100"), ("ttl_seconds", "soon")] {
        assert_eq!(policy.tune(name, value).unwrap_err().code(), ErrorCode::INVALID_CONFIG);
    }
}

#[test]
fn a_scan_does_not_drive_out_what_is_asked_for_again() {
    let mut policy = s3fifo(0, 10);
    let mut victims = Vec::new();
    for key in 0..50 {
        policy.on_insert(key, 1, 0);
        (0..2).for_each(|_| policy.on_hit(key, 0));
    }
    for key in 1_000..2_000 {
        policy.on_insert(key, 1, 0);
        let over = policy.entries.len().saturating_sub(100) as u64;
        policy.evict(over, 0, &mut victims);
    }
    assert!(victims.iter().all(|&key| key >= 1_000), "{victims:?}");
    // What comes back soon after it was dropped is new no more.
    policy.on_insert(victims[victims.len() - 1], 1, 0);
    let slot = policy.entries.find(victims[victims.len() - 1]).unwrap();
    assert_eq!(policy.entries.queue(slot), MAIN);
}

/// The same by lists, with a queue of ghosts that is one.
struct Model {
    ttl_ms: u64,
    small_percent: u128,
    /// Key, weight, hits; the oldest first.
    small: Vec<(u64, u64, u8)>,
    main: Vec<(u64, u64, u8)>,
    /// Keys by age, with their times of insertion.
    ages: Vec<(u64, u64)>,
    /// Keys that were dropped, none where it came back.
    ghosts: Vec<Option<u64>>,
    remembered: usize,
}

impl Model {
    fn weight(list: &[(u64, u64, u8)]) -> u128 {
        list.iter().map(|entry| u128::from(entry.1)).sum()
    }
    fn entry(&mut self, key: u64) -> Option<&mut (u64, u64, u8)> {
        self.small.iter_mut().chain(&mut self.main).find(|entry| entry.0 == key)
    }
}

impl CachePolicy for Model {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        self.ages.retain(|age| age.0 != key);
        self.ages.push((key, now_ms));
        if let Some(entry) = self.entry(key) {
            entry.1 = weight;
            return self.on_hit(key, now_ms);
        }
        let oldest = self.ghosts.len().saturating_sub(self.remembered);
        let mut is_ghost = false;
        for (time, ghost) in self.ghosts.iter_mut().enumerate().filter(|ghost| *ghost.1 == Some(key)) {
            is_ghost |= time >= oldest;
            *ghost = None;
        }
        let list = if is_ghost { &mut self.main } else { &mut self.small };
        list.push((key, weight, 0));
    }
    fn on_hit(&mut self, key: u64, _now_ms: u64) {
        if let Some(entry) = self.entry(key) {
            entry.2 = (entry.2 + 1).min(3);
        }
    }
    fn on_remove(&mut self, key: u64) {
        self.small.retain(|entry| entry.0 != key);
        self.main.retain(|entry| entry.0 != key);
        self.ages.retain(|age| age.0 != key);
    }
    fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>) {
        let (weight, mut freed) = (u128::from(weight), 0);
        let is_old = |age: &&(u64, u64)| self.ttl_ms > 0 && now_ms - age.1 >= self.ttl_ms;
        for (key, _) in self.ages.iter().take_while(is_old).copied().collect::<Vec<_>>() {
            freed += self.entry(key).map_or(0, |entry| u128::from(entry.1));
            self.on_remove(key);
            victims.push(key);
        }
        let held = Self::weight(&self.small) + Self::weight(&self.main);
        let most = held.saturating_sub(weight.saturating_sub(freed)) * self.small_percent / 100;
        while freed < weight && !(self.small.is_empty() && self.main.is_empty()) {
            let is_small = self.main.is_empty() || Self::weight(&self.small) > most;
            let mut entry = if is_small { self.small.remove(0) } else { self.main.remove(0) };
            if is_small && entry.2 >= 2 {
                entry.2 = 0;
                self.main.push(entry);
            } else if !is_small && entry.2 > 0 {
                entry.2 -= 1;
                self.main.push(entry);
            } else {
                freed += u128::from(entry.1);
                victims.push(entry.0);
                self.ages.retain(|age| age.0 != entry.0);
                if is_small {
                    self.ghosts.push(Some(entry.0));
                    self.remembered = self.small.len() + self.main.len();
                }
            }
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_lists(steps in steps(), ttl_seconds in 0u64..10, small_percent in 1u32..60) {
        let mut model = Model {
            ttl_ms: ttl_seconds * 1000,
            small_percent: u128::from(small_percent),
            small: vec![],
            main: vec![],
            ages: vec![],
            ghosts: vec![],
            remembered: 0,
        };
        agree(&mut s3fifo(ttl_seconds, small_percent), &mut model, &steps)?;
    }
}
