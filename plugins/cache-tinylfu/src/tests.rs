use super::*;
use magray_cache_testkit::{agree, steps};
use magray_plugin_api::Maker;
use magray_plugin_testkit::{self as testkit, HOST};
use proptest::prelude::*;

fn tinylfu(ttl_seconds: u64, window_percent: u32, adaptive: bool) -> TinyLfu {
    TinyLfu::create(Options { ttl_seconds, window_percent, adaptive }, HOST).unwrap()
}

#[test]
fn conforms() {
    for (ttl_seconds, window_percent, adaptive) in [(259_200, 20, true), (0, 1, false), (1, 99, true)] {
        let make = || tinylfu(ttl_seconds, window_percent, adaptive);
        testkit::cache_policy(&|| Ok(Box::new(make()))).assert();
    }
}

#[test]
fn options_and_tuning_are_checked() {
    let Maker::CachePolicy(make) = PLUGIN.components[0].maker else { unreachable!() };
    assert!(make("{}", HOST).is_ok());
    for (options, named) in [
        (r#"{"ttl":1}"#, "ttl_seconds"),
        (r#"{"window_percent":0}"#, "window_percent"),
        (r#"{"adaptive":1}"#, "bool"),
    ] {
        let Err(error) = make(options, HOST) else { panic!("{options} was taken") };
        assert_eq!(error.code(), ErrorCode::INVALID_CONFIG);
        assert!(error.message().contains(named), "{error}");
    }
    let mut policy = tinylfu(0, 20, true);
    policy.tune("window_percent", "30").unwrap();
    policy.tune("adaptive", "false").unwrap();
    assert!(policy.describe().contains(r#""window_percent":30.0,"adaptive":false"#));
    for (name, value) in [("window_percent", "100"), ("ttl_seconds", "soon"), ("adaptive", "1")] {
        assert_eq!(policy.tune(name, value).unwrap_err().code(), ErrorCode::INVALID_CONFIG);
    }
}

/// Asks for a key in a cache of 100.
fn ask(policy: &mut TinyLfu, key: u64, weight: u64) -> Vec<u64> {
    let mut victims = Vec::new();
    match policy.entries.find(key) {
        Some(_) => policy.on_hit(key, 0),
        None => policy.on_insert(key, weight, 0),
    }
    let over = policy.entries.weight().saturating_sub(100) as u64;
    policy.evict(over, 0, &mut victims);
    victims
}

#[test]
fn a_scan_does_not_drive_out_what_is_asked_for_often() {
    let mut policy = tinylfu(0, 1, false);
    for key in (0..50).cycle().take(500) {
        ask(&mut policy, key, 1);
    }
    let dropped: Vec<u64> = (1_000..1_300).flat_map(|key| ask(&mut policy, key, 1)).collect();
    assert_eq!(dropped.len(), 250);
    assert!(dropped.iter().all(|&key| key >= 1_000), "{dropped:?}");
}

#[test]
fn a_heavy_entry_must_be_asked_for_more_than_all_that_it_replaces() {
    let mut policy = tinylfu(0, 1, false);
    for key in (0..100).cycle().take(200) {
        ask(&mut policy, key, 1);
    }
    // Room for 10 is what five entries that were asked for twice each are in; it is asked for less.
    let mut dropped = ask(&mut policy, 500, 10);
    (501..520).for_each(|key| dropped.extend(ask(&mut policy, key, 1)));
    assert!(dropped.contains(&500), "{dropped:?}");
    // Asked for often enough, one of 2 gets in where 500 did not, and stays.
    (0..15).for_each(|_| drop(ask(&mut policy, 600, 2)));
    (700..720).for_each(|key| drop(ask(&mut policy, key, 1)));
    assert!(policy.entries.find(600).is_some_and(|slot| policy.entries.queue(slot) != WINDOW));
}

#[test]
fn the_window_grows_where_what_is_new_is_asked_for_again() {
    let mut policy = tinylfu(0, 1, true);
    // Each key is asked for a few times while 40 others come, and never again.
    for round in 0..20_000u64 {
        for back in [0, 1, 5, 20, 40] {
            ask(&mut policy, round.saturating_sub(back), 1);
        }
    }
    assert!(policy.climb.window() > 0.2, "{}", policy.climb.window());
}

/// The same by lists, with the same sketch and the same climbing.
struct Model {
    ttl_ms: u64,
    adaptive: bool,
    /// Key and weight in window, probation and protected; the oldest first.
    lists: [Vec<(u64, u64)>; 3],
    /// Keys by age, with their times of insertion.
    ages: Vec<(u64, u64)>,
    sketch: Sketch,
    climb: Climb,
}

impl Model {
    fn weight(&self, lists: &[usize]) -> u128 {
        lists.iter().flat_map(|&list| &self.lists[list]).map(|entry| u128::from(entry.1)).sum()
    }
    fn len(&self) -> usize {
        self.lists.iter().map(Vec::len).sum()
    }
    fn find(&self, key: u64) -> Option<(usize, usize)> {
        (0..3).find_map(|list| Some((list, self.lists[list].iter().position(|entry| entry.0 == key)?)))
    }
    fn note(&mut self, key: u64, is_hit: bool) {
        self.sketch.add(hash(key));
        if self.adaptive {
            self.climb.note(is_hit, self.len());
        }
    }
    fn drop(&mut self, key: u64, victims: &mut Vec<u64>) -> u128 {
        let (list, at) = self.find(key).unwrap();
        let weight = self.lists[list][at].1;
        self.on_remove(key);
        victims.push(key);
        u128::from(weight)
    }
}

impl CachePolicy for Model {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        self.ages.retain(|age| age.0 != key);
        self.ages.push((key, now_ms));
        if let Some((list, at)) = self.find(key) {
            self.lists[list][at].1 = weight;
            return self.on_hit(key, now_ms);
        }
        self.lists[0].push((key, weight));
        self.sketch.fit(self.len());
        self.note(key, false);
    }
    fn on_hit(&mut self, key: u64, _now_ms: u64) {
        let Some((list, at)) = self.find(key) else { return };
        self.note(key, true);
        let entry = self.lists[list].remove(at);
        self.lists[if list == 1 { 2 } else { list }].push(entry);
        if list == 1 {
            let most = (self.weight(&[1, 2]) as f64 * 0.8) as u128;
            while self.weight(&[2]) > most && !self.lists[2].is_empty() {
                let oldest = self.lists[2].remove(0);
                self.lists[1].push(oldest);
            }
        }
    }
    fn on_remove(&mut self, key: u64) {
        self.lists.iter_mut().for_each(|list| list.retain(|entry| entry.0 != key));
        self.ages.retain(|age| age.0 != key);
    }
    fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>) {
        let (weight, mut freed) = (u128::from(weight), 0);
        let is_old = |age: &&(u64, u64)| self.ttl_ms > 0 && now_ms - age.1 >= self.ttl_ms;
        for (key, _) in self.ages.iter().take_while(is_old).copied().collect::<Vec<_>>() {
            freed += self.drop(key, victims);
        }
        let left = self.weight(&[0, 1, 2]).saturating_sub(weight.saturating_sub(freed));
        let window = (left as f64 * self.climb.window()) as u128;
        let main = left - window.min(left);
        while freed < weight && self.len() > 0 {
            let in_order: Vec<(u64, u64)> = self.lists[1].iter().chain(&self.lists[2]).copied().collect();
            let Some(&(key, of)) = self.lists[0].first().filter(|_| self.weight(&[0]) > window) else {
                let victim = in_order.first().unwrap_or_else(|| &self.lists[0][0]).0;
                freed += self.drop(victim, victims);
                continue;
            };
            let needed = (self.weight(&[1, 2]) + u128::from(of)).saturating_sub(main);
            // The shortest row of victims that makes room, if there is one.
            let mut room = 0;
            let row = in_order.iter().position(|entry| {
                room += u128::from(entry.1);
                room >= needed
            });
            let row = if needed == 0 { Some(0) } else { row.map(|last| last + 1) };
            let frequency = |key| self.sketch.frequency(hash(key));
            let is_admitted = row.is_some_and(|row| {
                row == 0
                    || in_order[..row].iter().map(|entry| frequency(entry.0)).sum::<u32>() < frequency(key)
            });
            if is_admitted {
                for entry in &in_order[..row.unwrap_or(0)] {
                    freed += self.drop(entry.0, victims);
                }
                let entry = self.lists[0].remove(0);
                self.lists[1].push(entry);
            } else {
                freed += self.drop(key, victims);
            }
        }
    }
}

proptest! {
    #[test]
    fn agrees_with_lists(
        steps in steps(),
        ttl_seconds in 0u64..10,
        window_percent in 1u32..99,
        adaptive: bool,
    ) {
        let mut model = Model {
            ttl_ms: ttl_seconds * 1000,
            adaptive,
            lists: [vec![], vec![], vec![]],
            ages: vec![],
            sketch: Sketch::new(),
            climb: Climb::new(f64::from(window_percent) / 100.0),
        };
        agree(&mut tinylfu(ttl_seconds, window_percent, adaptive), &mut model, &steps)?;
    }
}
