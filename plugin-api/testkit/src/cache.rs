use crate::{
    Asks, Checked, DESCRIBES, MEMORY, Outcome, Report, Run, Settings, TUNE_UNKNOWN, describes, ensure,
    memory, random::Random, tune_unknown,
};
use magray_plugin_api::{CachePolicy, Result};
use std::collections::{HashMap, HashSet};

type Policy = Box<dyn CachePolicy>;

/// Checks a cache policy. `make` makes one without entries.
pub fn cache_policy(make: &dyn Fn() -> Result<Policy>) -> Report {
    let mut all = Run::new(None, Settings::default());
    run(&mut all, make);
    all.report
}

pub(crate) fn run(run: &mut Run<'_>, make: &dyn Fn() -> Result<Policy>) {
    let fresh = || -> Checked<Policy> {
        let mut policy = make()?;
        policy.on_capacity(1_000_000);
        Ok(policy)
    };
    for &(name, asks, check) in CHECKS {
        run.check((name, asks), || check(fresh()?));
    }
    let settings = run.settings;
    run.check(MEMORY, || {
        memory::stays(settings, || {
            let mut policy = fresh()?;
            filled(&mut policy, 0..2_000, 10);
            victims(&mut policy, u64::MAX, 0);
            Ok(())
        })
    });
    run.check(FUZZ, || agrees_with_model(fresh()?, settings.seed));
}

pub(crate) fn asks() -> impl Iterator<Item = Asks> {
    CHECKS.iter().map(|&(name, asks, _)| (name, asks)).chain([MEMORY, FUZZ])
}

const FUZZ: Asks = ("fuzz", "it agrees with the model over random operations of another seed");

type Entry = (&'static str, &'static str, fn(Policy) -> Checked);

const CHECKS: &[Entry] = &[
    (DESCRIBES.0, DESCRIBES.1, |policy| describes(&policy.describe())),
    (TUNE_UNKNOWN.0, TUNE_UNKNOWN.1, |mut policy| tune_unknown(|name, value| policy.tune(name, value))),
    ("evicts-enough", "the victims weigh at least what evict() asks for", evicts_enough),
    ("evicts-only-held-keys", "a victim was inserted, is still there, and is named once", only_held_keys),
    ("evicts-everything", "where all weigh less than asked, every key is a victim", evicts_everything),
    ("evicts-nothing-from-empty", "an empty policy has no victims", evicts_nothing_from_empty),
    ("keeps-what-is-fresh", "evict(0) names only keys that are out of date", keeps_what_is_fresh),
    ("appends-victims", "evict() appends to victims and leaves what is there", appends_victims),
    ("forgets-removed", "a key given to on_remove is no victim later", forgets_removed),
    ("forgets-victims", "a victim is forgotten, and may be inserted again", forgets_victims),
    ("replaces", "inserting a key again replaces its weight, and it is one entry", replaces),
    ("ignores-unknown-keys", "on_hit and on_remove of unknown keys change nothing", ignores_unknown_keys),
    ("takes-any-weight", "weights of 0 and of u64::MAX do not break it", takes_any_weight),
    ("takes-any-time", "time may stand still or leap", takes_any_time),
    ("obeys-capacity-changes", "on_capacity may be called at any time with any number", obeys_capacity),
    ("agrees-with-model", "all of this holds over 100,000 random operations", |policy| {
        agrees_with_model(policy, 7)
    }),
];

fn filled(policy: &mut Policy, keys: std::ops::Range<u64>, weight: u64) {
    for key in keys {
        policy.on_insert(key, weight, 0);
    }
}

fn victims(policy: &mut Policy, weight: u64, now_ms: u64) -> Vec<u64> {
    let mut victims = Vec::new();
    policy.evict(weight, now_ms, &mut victims);
    victims
}

fn sorted(mut keys: Vec<u64>) -> Vec<u64> {
    keys.sort_unstable();
    keys
}

fn evicts_enough(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..100, 10);
    let victims = victims(&mut policy, 95, 0);
    ensure!(victims.len() >= 10, "asked for 95, its {} victims weigh 10 each", victims.len());
    Ok(())
}

fn only_held_keys(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..100, 10);
    let mut seen = HashSet::new();
    for _ in 0..20 {
        for key in victims(&mut policy, 50, 0) {
            ensure!(key < 100, "{key} was never inserted");
            ensure!(seen.insert(key), "{key} was named twice");
        }
    }
    Ok(())
}

fn evicts_everything(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..100, 10);
    let gone = sorted(victims(&mut policy, u64::MAX, 0));
    ensure!(gone == Vec::from_iter(0..100), "{} of 100 keys: {gone:?}", gone.len());
    Ok(())
}

fn evicts_nothing_from_empty(mut policy: Policy) -> Checked {
    let gone = victims(&mut policy, 10, 0);
    ensure!(gone.is_empty(), "{gone:?}");
    Ok(())
}

fn keeps_what_is_fresh(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..100, 10);
    let gone = victims(&mut policy, 0, 0);
    ensure!(gone.is_empty(), "no time has passed since they were inserted: {gone:?}");
    Ok(())
}

fn appends_victims(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..10, 10);
    let mut victims = vec![u64::MAX];
    policy.evict(10, 0, &mut victims);
    ensure!(victims.first() == Some(&u64::MAX), "what stood in victims is gone: {victims:?}");
    ensure!(victims.len() > 1, "no victim was appended");
    Ok(())
}

fn forgets_removed(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..100, 10);
    for key in 0..50 {
        policy.on_remove(key);
    }
    let gone = sorted(victims(&mut policy, u64::MAX, 0));
    ensure!(gone == Vec::from_iter(50..100), "0..50 were removed, the victims are {gone:?}");
    Ok(())
}

fn forgets_victims(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..10, 10);
    victims(&mut policy, u64::MAX, 0);
    let again = victims(&mut policy, u64::MAX, 0);
    ensure!(again.is_empty(), "still held after they were evicted: {again:?}");
    filled(&mut policy, 0..10, 10);
    let gone = sorted(victims(&mut policy, u64::MAX, 0));
    ensure!(gone == Vec::from_iter(0..10), "inserted again, the victims are {gone:?}");
    Ok(())
}

fn replaces(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..10, 10);
    filled(&mut policy, 0..10, 1);
    let gone = sorted(victims(&mut policy, 10, 0));
    ensure!(gone == Vec::from_iter(0..10), "ten keys of weight 1, asked for 10, got {gone:?}");
    Ok(())
}

fn ignores_unknown_keys(mut policy: Policy) -> Checked {
    filled(&mut policy, 0..10, 10);
    policy.on_hit(77, 0);
    policy.on_remove(78);
    let gone = sorted(victims(&mut policy, u64::MAX, 0));
    ensure!(gone == Vec::from_iter(0..10), "{gone:?}");
    Ok(())
}

fn takes_any_weight(mut policy: Policy) -> Checked {
    for (key, weight) in [0, 1, u64::MAX, u64::MAX].into_iter().enumerate() {
        policy.on_insert(key as u64, weight, 0);
    }
    let gone = sorted(victims(&mut policy, u64::MAX, 0));
    ensure!(gone.contains(&2) || gone.contains(&3), "asked for u64::MAX, got {gone:?}");
    Ok(())
}

fn takes_any_time(mut policy: Policy) -> Checked {
    policy.on_insert(1, 10, 0);
    policy.on_insert(2, 10, u64::MAX);
    policy.on_hit(2, u64::MAX);
    let gone = sorted(victims(&mut policy, u64::MAX, u64::MAX));
    ensure!(gone == [1, 2], "{gone:?}");
    Ok(())
}

fn obeys_capacity(mut policy: Policy) -> Checked {
    for capacity in [0, u64::MAX, 1, 1_000] {
        policy.on_capacity(capacity);
        filled(&mut policy, 0..100, 10);
        let gone = victims(&mut policy, 990, 0);
        ensure!(gone.len() >= 99, "capacity {capacity}: asked for 990, got {} of weight 10", gone.len());
    }
    Ok(())
}

/// The host's side: keys and weights, evicting down to a capacity after each insert.
fn agrees_with_model(mut policy: Policy, seed: u64) -> Checked {
    const CAPACITY: u64 = 20_000;
    policy.on_capacity(CAPACITY);
    let mut random = Random(seed);
    let mut held: HashMap<u64, u64> = HashMap::new();
    let mut total = 0;
    let mut now_ms = 0;
    for step in 0..100_000 {
        now_ms += random.below(1000);
        let key = random.below(2_000);
        match random.below(10) {
            0 => {
                policy.on_remove(key);
                total -= held.remove(&key).unwrap_or(0);
            }
            1..=5 if held.contains_key(&key) => policy.on_hit(key, now_ms),
            _ => {
                let weight = random.below(100);
                policy.on_insert(key, weight, now_ms);
                total += weight;
                total -= held.insert(key, weight).unwrap_or(0);
            }
        }
        let excess = total.saturating_sub(CAPACITY);
        if excess > 0 || random.below(100) == 0 {
            for key in victims(&mut policy, excess, now_ms) {
                let Some(weight) = held.remove(&key) else {
                    return Err(Outcome::Failed(format!(
                        "seed {seed}, step {step}: the victim {key} is not there"
                    )));
                };
                total -= weight;
            }
            ensure!(total <= CAPACITY, "seed {seed}, step {step}: {} too much is left", total - CAPACITY);
        }
    }
    let left = sorted(victims(&mut policy, u64::MAX, now_ms));
    ensure!(
        left == sorted(held.into_keys().collect()),
        "seed {seed}: at the end it holds other keys than it was given"
    );
    Ok(())
}
