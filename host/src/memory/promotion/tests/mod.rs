//! Scores by themselves, and cycles over a few records.
mod model;

use super::*;
use crate::{
    config::{Config, Memory},
    engine::now_ms,
    store::{Candidate, Durability, Layer, NewRecord, RecordId, SpaceId, Store, StoreOptions},
};
use magray_plugin_api::CallContext;
use magray_plugin_testkit::Cx;
use proptest::prelude::*;
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::Duration,
};
use tempfile::TempDir;

const HOUR: u64 = 3_600_000;
const DAY: u64 = 24 * HOUR;

fn settings(overrides: &[(&str, toml::Value)]) -> Result<Memory, String> {
    let overrides: Vec<_> =
        overrides.iter().map(|(key, value)| (format!("memory.{key}"), value.clone())).collect();
    let config = Config::load(None, std::iter::empty(), &overrides).map_err(|error| error.to_string())?;
    Ok(config.config.memory)
}

fn preset(name: &str) -> Policy {
    Policy::new(&settings(&[("promotion.preset", name.into())]).unwrap())
}

fn candidate(layer: Layer, uses: f64, importance: f32) -> Candidate {
    Candidate {
        id: RecordId(1),
        ulid: String::new(),
        layer,
        project: String::new(),
        since_ms: 0,
        last_access_ms: 0,
        access_count: 1,
        uses,
        importance,
        expires_ms: None,
        vector: None,
    }
}

#[test]
fn the_worked_example_of_the_documentation_is_right() {
    let policy = preset("default");
    let used = candidate(Layer::Interact, 5.0, 0.5);
    let score = policy.score(&used, Some(0.6), 3 * HOUR);
    let rounded = |part: f64| (part * 1000.0).round() / 1000.0;
    assert_eq!(rounded(score.recency), 0.841);
    assert_eq!(rounded(score.frequency), 0.713);
    assert_eq!(rounded(score.importance), 0.857);
    assert_eq!(score.similarity.map(rounded), Some(0.885));
    assert_eq!(rounded(score.value), 0.815);
    assert_eq!(policy.threshold(Layer::Interact), Some(0.8));
    let weights: Vec<f64> = policy.shares(&score).iter().map(|share| rounded(share.weight)).collect();
    assert_eq!(weights, [0.3, 0.3, 0.2, 0.2]);
    // Two and a half uses come along.
    assert_eq!(policy.carried(&used), 2.5);
    let next = candidate(Layer::Insights, 2.5, 0.5);
    assert_eq!(rounded(policy.score(&next, Some(0.6), 3 * HOUR).value), 0.742);
    let later = candidate(Layer::Insights, 7.5, 0.5);
    assert_eq!(rounded(policy.score(&later, Some(0.6), 3 * HOUR).value), 0.926);
}

#[test]
fn the_presets_differ_as_documented() {
    let steps = |name: &str| {
        let memory = settings(&[("promotion.preset", name.into())]).unwrap();
        let hours = |life: Duration| life.as_secs() / 3600;
        let lives = memory.lives().map(|life| life.map(hours));
        (lives, memory.promotion.thresholds(), memory.promotion.half_lives().map(|half| half.map(hours)))
    };
    let days = |days: u64| Some(24 * days);
    assert_eq!(steps("default"), ([Some(24), days(90), None], [0.8, 0.9], [Some(12), days(30)]));
    assert_eq!(
        steps("production"),
        ([Some(48), days(365), None], [0.85, 0.95], [Some(24), Some(365 * 24 / 3)])
    );
    assert_eq!(steps("minimal"), ([Some(6), days(7), None], [0.7, 0.8], [Some(3), Some(7 * 24 / 3)]));
    let own = settings(&[
        ("promotion.preset", "minimal".into()),
        ("layers.interact.ttl", "2d".into()),
        ("promotion.insights_threshold", 0.5.into()),
    ])
    .unwrap();
    assert_eq!(own.lives()[0], Some(Duration::from_secs(2 * 86_400)));
    assert_eq!(own.promotion.thresholds(), [0.7, 0.5]);
    assert_eq!(own.min_ages(), [Duration::from_secs(3600), Duration::from_secs(86_400)]);
    let short = settings(&[("layers.interact.ttl", "30m".into())]).unwrap();
    assert_eq!(short.min_ages()[0], Duration::from_secs(900));
}

#[test]
fn settings_that_no_record_could_meet_are_refused() {
    let refused = |key: &str, value: toml::Value| settings(&[(key, value)]).unwrap_err();
    let error = refused("promotion.interact_threshold", 1.0.into());
    assert!(
        error.starts_with("command line: no record could leave interact: however often it is used, it comes")
            && error.contains("'interact_threshold' is 1; lower that"),
        "{error}"
    );
    // Recency alone has faded too far when the next cycle looks.
    let error = settings(&[
        ("promotion.insights_threshold", 0.98.into()),
        ("promotion.insights_half_life", "6h".into()),
        ("promotion.weights.recency", 1.0.into()),
    ]);
    assert!(error.unwrap_err().contains("no record could leave insights"));
    let none = ["recency", "frequency", "importance"]
        .map(|part| (format!("promotion.weights.{part}"), toml::Value::from(0.0)));
    let none: Vec<_> = none.iter().map(|(key, value)| (key.as_str(), value.clone())).collect();
    assert!(settings(&none).unwrap_err().contains("must be above 0"));
    assert!(refused("promotion.preset", "huge".into()).contains("\"minimal\""));
}

/// Any settings, sensible or not.
fn any_settings() -> impl Strategy<Value = Vec<(&'static str, toml::Value)>> {
    let share = || prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    let life = || prop::sample::select(&["preset", "never", "1s", "3h", "2d", "400d"][..]);
    let presets = prop::sample::select(&["default", "production", "minimal"][..]);
    let times = (life(), life(), life(), life(), 0i64..8000, 0i64..200_000, 0i64..20_000);
    let threshold = || prop_oneof![Just(0.0), 0.0..1.0];
    let rest = (1i64..1000, share(), threshold(), threshold());
    (presets, [share(), share(), share(), share()], times, rest).prop_map(|(preset, weights, times, rest)| {
        let (interact, insights, half_1, half_2, age_1, age_2, every) = times;
        let (frequency_uses, carry, threshold_1, threshold_2) = rest;
        vec![
            ("promotion.preset", preset.into()),
            ("promotion.weights.recency", weights[0].into()),
            ("promotion.weights.frequency", weights[1].into()),
            ("promotion.weights.importance", weights[2].into()),
            ("promotion.weights.similarity", weights[3].into()),
            ("layers.interact.ttl", interact.into()),
            ("layers.insights.ttl", insights.into()),
            ("promotion.interact_half_life", half_1.into()),
            ("promotion.insights_half_life", half_2.into()),
            ("promotion.interact_min_age_seconds", age_1.into()),
            ("promotion.insights_min_age_seconds", age_2.into()),
            ("promotion.every_seconds", every.into()),
            ("promotion.frequency_uses", frequency_uses.into()),
            ("promotion.carry", carry.into()),
            ("promotion.interact_threshold", threshold_1.into()),
            ("promotion.insights_threshold", threshold_2.into()),
        ]
    })
}

/// Uses a record again and again, from when it comes to a layer, and looks at it `every` after the last
/// time or when it is due. Returns the uses that it has when it moves on.
fn climb(memory: &Memory, layer: Layer, carried: f64, similarity: Option<f32>) -> Result<f64, TestCaseError> {
    let policy = Policy::new(memory);
    let settings = &memory.promotion;
    let ms = |duration: Duration| duration.as_millis() as u64;
    let every = settings.every_seconds * 1000;
    let age = ms(memory.min_ages()[layer as usize]);
    // When it is due it is looked at in any case.
    let looked_at = memory.lives()[layer as usize].map_or(age + every, |life| ms(life).min(age + every));
    let last_access_ms = looked_at.saturating_sub(every);
    for times in 1.. {
        let uses = carried + f64::from(times);
        let used = Candidate { last_access_ms, uses, ..candidate(layer, uses, 0.0) };
        prop_assert!(!policy.is_young(&used, looked_at));
        if Some(policy.score(&used, similarity, looked_at).value) >= policy.threshold(layer) {
            return Ok(policy.carried(&used));
        }
        // As many as the margin of the thresholds stands for.
        let enough = settings.frequency_uses as f64 * (1.0 / 0.005f64).ln() + 2.0;
        prop_assert!(f64::from(times) < enough, "{layer} is not left after {times} uses: {memory:?}");
    }
    Ok(0.0)
}

fn all_the_way(memory: &Memory) -> Result<(), TestCaseError> {
    for similarity in [None, Some(0.0)] {
        let carried = climb(memory, Layer::Interact, 0.0, similarity)?;
        climb(memory, Layer::Insights, carried, similarity)?;
    }
    Ok(())
}

#[test]
fn by_every_preset_a_record_that_is_used_can_reach_assets() {
    for preset in ["default", "production", "minimal"] {
        all_the_way(&settings(&[("promotion.preset", preset.into())]).unwrap()).unwrap();
    }
}

proptest! {
    #[test]
    fn a_score_is_a_share_and_no_use_lowers_it(
        settings in any_settings(),
        layer in prop::sample::select(&[Layer::Interact, Layer::Insights][..]),
        uses in 0.0f64..2000.0,
        more in 0.0f64..100.0,
        idle in 0u64..400 * DAY,
        less in 0u64..400 * DAY,
        importance in [0.0f32..=1.0, 0.0f32..=1.0],
        nearness in [0.0f32..=1.0, 0.0f32..=1.0],
    ) {
        let Ok(memory) = super::tests::settings(&settings) else { return Ok(()) };
        let policy = Policy::new(&memory);
        let at = |uses, idle: u64, importance, similarity| {
            let now = 1000 * DAY;
            let it = Candidate { last_access_ms: now - idle, ..candidate(layer, uses, importance) };
            policy.score(&it, similarity, now)
        };
        let [low, high] = if importance[0] <= importance[1] { importance } else { [importance[1], importance[0]] };
        let [far, near] = if nearness[0] <= nearness[1] { nearness } else { [nearness[1], nearness[0]] };
        let score = at(uses, idle, low, Some(far));
        for it in [score, at(uses, idle, low, None)] {
            for part in [it.value, it.recency, it.frequency, it.importance, it.similarity.unwrap_or(0.0)] {
                prop_assert!((0.0..=1.0).contains(&part), "{it:?}");
            }
            let shares = policy.shares(&it);
            let sum: f64 = shares.iter().map(|share| share.part * share.weight).sum();
            prop_assert!((sum - it.value).abs() < 1e-9);
            prop_assert!((shares.iter().map(|share| share.weight).sum::<f64>() - 1.0).abs() < 1e-9);
        }
        for similarity in [None, Some(far)] {
            let score = at(uses, idle, low, similarity).value - 1e-12;
            prop_assert!(at(uses + more, idle, low, similarity).value >= score);
            prop_assert!(at(uses, idle.saturating_sub(less), low, similarity).value >= score);
            prop_assert!(at(uses, idle, high, similarity).value >= score);
        }
        prop_assert!(at(uses, idle, low, Some(near)).value >= score.value - 1e-12);
    }

    #[test]
    fn by_all_valid_settings_a_record_that_is_used_can_reach_assets(settings in any_settings()) {
        match super::tests::settings(&settings) {
            Ok(memory) => all_the_way(&memory)?,
            Err(error) => prop_assert!(error.contains("no record could leave") || error.contains("above 0"), "{}", error),
        }
    }
}

/// A store in a folder of its own.
struct Fixture {
    store: Store,
    space: SpaceId,
    _folder: TempDir,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let options = StoreOptions { durability: Durability::Normal, ..StoreOptions::default() };
        let store = Store::open(&folder.path().join("magray.db"), &options).unwrap();
        let space = store.space([2; 32], "test", 2).unwrap();
        Self { store, space, _folder: folder }
    }

    fn add(&self, records: Vec<NewRecord>) -> Vec<RecordId> {
        self.store.add(Some(self.space), records).unwrap().iter().map(|added| added.id).collect()
    }

    /// So many uses of each.
    fn used(&self, ids: &[RecordId], times: usize, now: u64) {
        for _ in 0..times {
            self.store.touch(ids, now);
        }
        self.store.flush().unwrap();
    }

    fn cycle(&self, policy: &Policy, options: &PromotionOptions, now: u64) -> PromotionReport {
        promote(&Cx::free(), &self.store, Some(self.space), policy, options, now).unwrap()
    }

    /// A cycle, and before it the dry run that must say the same.
    fn run(&self, policy: &Policy, options: &PromotionOptions, now: u64) -> PromotionReport {
        let options = PromotionOptions { explain: true, ..options.clone() };
        let before = self.store.dump();
        let dry = self.cycle(policy, &PromotionOptions { dry_run: true, ..options.clone() }, now);
        assert_eq!(self.store.dump(), before);
        let report = self.cycle(policy, &options, now);
        assert_eq!(dry, PromotionReport { cycle: None, ..report.clone() });
        report
    }

    fn layer(&self, id: RecordId) -> Option<Layer> {
        self.store.records(&[id]).unwrap().first().map(|record| record.layer)
    }
}

fn interact(text: &str, expires_ms: u64) -> NewRecord {
    NewRecord {
        expires_ms: Some(expires_ms),
        vector: Some(vec![1.0, 1.0]),
        ..NewRecord::new(Layer::Interact, text)
    }
}

#[test]
fn a_record_that_is_used_goes_all_the_way_and_one_that_is_not_expires() {
    let f = Fixture::new();
    let (policy, start) = (preset("default"), now_ms());
    let ids = f.add(vec![interact("used", start + DAY), interact("not", start + DAY)]);
    f.used(&ids[..1], 6, start + HOUR / 2);
    let young = f.run(&policy, &PromotionOptions::default(), start + HOUR / 2);
    assert_eq!((young.moves.len(), young.waiting, young.stays[0].reason), (0, 1, Reason::Young));
    let first = f.run(&policy, &PromotionOptions::default(), start + 2 * HOUR);
    assert_eq!((first.moves.len(), first.cycle, first.weighed), (1, Some(1), 1));
    // Without another use it is not looked at again.
    let idle = f.run(&policy, &PromotionOptions::default(), start + 3 * DAY);
    assert_eq!((idle.weighed, idle.expired, f.layer(ids[1])), (0, 1, None));
    f.used(&ids[..1], 2, start + 4 * DAY);
    let low = f.run(&policy, &PromotionOptions::default(), start + 4 * DAY);
    assert_eq!((low.moves.len(), low.stays[0].reason, low.waiting), (0, Reason::Low, 0));
    f.used(&ids[..1], 4, start + 5 * DAY);
    let second = f.run(&policy, &PromotionOptions::default(), start + 5 * DAY);
    assert_eq!((second.moves[0].to, second.moves[0].expires_ms), (Layer::Assets, None));
    assert_eq!(f.layer(ids[0]), Some(Layer::Assets));
}

#[test]
fn what_is_due_is_weighed_a_last_time_as_of_then_and_before_all_others() {
    let f = Fixture::new();
    let (policy, start) = (preset("default"), now_ms());
    let texts = ["due and used", "due and used too", "due", "used more"];
    let ids = f.add(texts.iter().map(|text| interact(text, start + DAY)).collect());
    f.used(&ids[..2], 5, start + 23 * HOUR);
    f.used(&ids[2..3], 1, start + 23 * HOUR);
    let kept = f.add(vec![interact("not due", start + 90 * DAY)]);
    f.used(&[ids[3], kept[0]], 50, start + 23 * HOUR);
    f.store.forget(&ids[3..]).unwrap();
    // Ten days late; by then nothing is left of the recency of any of them.
    let late = start + 10 * DAY;
    let one = PromotionOptions { limit: Some(1), ..PromotionOptions::default() };
    let first = f.run(&policy, &one, late);
    assert_eq!((first.moves.len(), first.waiting, first.expired), (1, 1, 0));
    let rest = f.run(&policy, &PromotionOptions::default(), late);
    assert_eq!((rest.moves.len(), rest.expired), (1, 1));
    assert_eq!(
        [ids[0], ids[1], ids[2]].map(|id| f.layer(id)),
        [Some(Layer::Insights), Some(Layer::Insights), None]
    );
    // It scores too little by now, and is not due.
    assert_eq!(f.layer(kept[0]), Some(Layer::Interact));
}

#[test]
fn a_life_is_never_shortened() {
    let f = Fixture::new();
    let (policy, start) = (preset("default"), now_ms());
    let far = start + 500 * DAY;
    let ids = f.add(vec![
        interact("long", far),
        NewRecord { expires_ms: None, ..interact("for good", 0) },
        interact("short", start + 3 * HOUR),
    ]);
    f.used(&ids, 6, start + 2 * HOUR);
    let now = start + 2 * HOUR;
    f.run(&policy, &PromotionOptions::default(), now);
    let records = f.store.records(&ids).unwrap();
    assert!(records.iter().all(|record| record.layer == Layer::Insights));
    let expiries: Vec<_> = records.iter().map(|record| record.expires_ms).collect();
    assert_eq!(expiries, [Some(far), None, Some(now + 90 * DAY)]);
}

#[test]
fn what_is_near_to_what_is_used_needs_fewer_uses() {
    let f = Fixture::new();
    let (policy, start) = (preset("default"), now_ms());
    let away = |text: &str| NewRecord { vector: Some(vec![1.0, -1.0]), ..interact(text, start + DAY) };
    let ids = f.add(vec![interact("near", start + DAY), away("far"), away("of another project")]);
    f.used(&ids[..2], 3, start + 2 * HOUR);
    let others = f.add((0..5).map(|n| interact(&n.to_string(), start + DAY)).collect());
    f.used(&others, 1, start + 2 * HOUR);
    let report = f.run(&policy, &PromotionOptions::default(), start + 2 * HOUR);
    assert_eq!(report.moves.len(), 1);
    assert_eq!([ids[0], ids[1]].map(|id| f.layer(id)), [Some(Layer::Insights), Some(Layer::Interact)]);
}

#[test]
fn other_settings_weigh_again_what_was_used() {
    let f = Fixture::new();
    let start = now_ms();
    let ids = f.add((0..4).map(|n| interact(&n.to_string(), start + DAY)).collect());
    f.used(&ids[..3], 3, start + 2 * HOUR);
    let now = start + 2 * HOUR;
    let strict = f.run(&preset("production"), &PromotionOptions::default(), now);
    assert_eq!((strict.moves.len(), strict.weighed), (0, 3));
    assert_eq!(f.run(&preset("production"), &PromotionOptions::default(), now).weighed, 0);
    // A part of the records does not count as all of them.
    let part = PromotionOptions { layer: Some(Layer::Insights), ..PromotionOptions::default() };
    assert_eq!(f.run(&preset("minimal"), &part, now).weighed, 0);
    let one = PromotionOptions { limit: Some(1), ..PromotionOptions::default() };
    let first = f.run(&preset("minimal"), &one, now);
    assert_eq!((first.weighed, first.moves.len(), first.waiting), (3, 1, 2));
    let rest = f.run(&preset("minimal"), &PromotionOptions::default(), now);
    assert_eq!((rest.weighed, rest.moves.len()), (2, 2));
    assert_eq!(f.layer(ids[3]), Some(Layer::Interact));
}

#[test]
fn by_hand_a_record_moves_whatever_it_scores() {
    let f = Fixture::new();
    let (policy, start) = (preset("default"), now_ms());
    let ids = f.add(vec![interact("a", start + DAY), interact("due", start - 1)]);
    let by_hand = PromotionOptions { ids: ids[..1].to_vec(), ..PromotionOptions::default() };
    for to in [Layer::Insights, Layer::Assets] {
        let report = f.run(&policy, &by_hand, start);
        assert_eq!((report.moves[0].to, report.moves[0].threshold), (to, None));
    }
    assert_eq!(f.run(&policy, &by_hand, start).moves, []);
    // Nothing else was looked at, so nothing expires.
    assert!(f.layer(ids[1]).is_some());
}

#[test]
fn undo_brings_back_what_was_there_to_the_last_bit() {
    let f = Fixture::new();
    let (policy, start) = (preset("default"), now_ms());
    let mut new: Vec<NewRecord> = (0..6).map(|n| interact(&n.to_string(), start + 90 * DAY)).collect();
    // Three say what is there already, one of which moves on at the same time.
    for (text, layer) in [("0", Layer::Insights), ("1", Layer::Insights), ("2", Layer::Assets)] {
        new.push(NewRecord { layer, tags: vec![text.to_owned()], ..interact(text, start + 80 * DAY) });
    }
    let ids = f.add(new);
    let now = start + 2 * DAY;
    f.used(&ids[..5], 9, now);
    f.used(&ids[6..7], 9, now);
    let before = f.store.dump();
    let report = f.run(&policy, &PromotionOptions::default(), now);
    assert_eq!(report.moves.len(), 6);
    assert_eq!(report.moves.iter().filter(|it| it.merged_into.is_some()).count(), 1);
    let undone = f.store.undo_promotions(None, now).unwrap().unwrap();
    assert_eq!((undone.undone.len(), undone.skipped), (6, Vec::new()));
    assert_eq!(f.store.dump(), before);
    assert_eq!(f.run(&policy, &PromotionOptions::default(), now).moves, []);
}

/// Cancels at the n-th look.
struct Until(AtomicUsize);

impl CallContext for Until {
    fn is_cancelled(&self) -> bool {
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err()
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _: u64, _: u64) {}
}

#[test]
fn a_cancelled_cycle_leaves_whole_batches_that_can_be_undone() {
    let policy = Policy::new(&settings(&[("promotion.batch_size", 3.into())]).unwrap());
    let mut seen = Vec::new();
    for looks in 0.. {
        let f = Fixture::new();
        let start = now_ms();
        let ids = f.add((0..10).map(|n| interact(&n.to_string(), start + 3 * HOUR)).collect());
        f.used(&ids, 8, start + 2 * HOUR);
        let before = f.store.dump();
        let cx = Until(AtomicUsize::new(looks));
        let options = PromotionOptions::default();
        let report = promote(&cx, &f.store, Some(f.space), &policy, &options, start + 4 * HOUR).unwrap();
        seen.push(report.moves.len());
        let moved = ids.iter().filter(|&&id| f.layer(id) == Some(Layer::Insights)).count();
        assert_eq!((moved, report.expired), (report.moves.len(), 0));
        let history = f.store.promotion_history(9).unwrap();
        assert_eq!(history.iter().map(|cycle| cycle.moves.len()).sum::<usize>(), moved);
        if !report.interrupted {
            break;
        }
        if moved > 0 {
            f.store.undo_promotions(report.cycle, start).unwrap().unwrap();
        }
        assert_eq!(f.store.dump(), before);
    }
    seen.dedup();
    assert_eq!(seen, [0, 3, 6, 9, 10]);
}
