//! Scores by themselves; and cycles against a plain model that weighs every record every time.
use super::*;
use crate::{
    config::{Config, Memory},
    engine::now_ms,
    store::{
        Candidate, Durability, Filter, Layer, NewRecord, PromotionRecord, Record, RecordId, SpaceId, Store,
        StoreOptions,
    },
};
use magray_plugin_api::CallContext;
use magray_plugin_testkit::Cx;
use proptest::{collection::vec, prelude::*};
use std::{
    collections::BTreeMap,
    ops::ControlFlow,
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
        promote(&Cx::free(), &self.store, self.space, policy, options, now).unwrap()
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
        let report = promote(&cx, &f.store, f.space, &policy, &options, start + 4 * HOUR).unwrap();
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

#[derive(Clone, Debug)]
enum Op {
    Add { text: u8, layer: Layer, project: bool, importance: f32, life: Option<u64>, vector: Option<u8> },
    Use { nth: Vec<usize>, times: u64 },
    Wait { hours: u64 },
    Promote { limit: Option<usize> },
    Settings { preset: usize },
    Undo,
    Forget { nth: usize },
    Follow,
}

fn ops() -> impl Strategy<Value = Op> {
    let layers =
        prop::sample::select(&[Layer::Interact, Layer::Interact, Layer::Insights, Layer::Assets][..]);
    let life = prop_oneof![2 => Just(Some(24u64)), 1 => Just(None), 2 => (1u64..3000).prop_map(Some)];
    let add = (0u8..5, layers, any::<bool>(), 0.0f32..=1.0, life, prop::option::of(0u8..6));
    prop_oneof![
        5 => add.prop_map(|(text, layer, project, importance, life, vector)| {
            Op::Add { text, layer, project, importance, life, vector }
        }),
        6 => (vec(0usize..12, 1..5), 1u64..9).prop_map(|(nth, times)| Op::Use { nth, times }),
        4 => prop_oneof![0u64..6, 10u64..60, 100u64..900].prop_map(|hours| Op::Wait { hours }),
        6 => prop::option::of(1usize..3).prop_map(|limit| Op::Promote { limit }),
        1 => (0usize..3).prop_map(|preset| Op::Settings { preset }),
        1 => Just(Op::Undo),
        1 => (0usize..12).prop_map(|nth| Op::Forget { nth }),
        1 => Just(Op::Follow),
    ]
}

/// A record as the model has it.
#[derive(Clone, Debug)]
struct Modelled {
    ulid: String,
    text: u8,
    project: bool,
    layer: Layer,
    since: u64,
    last: u64,
    count: u64,
    /// Its count when it came to its layer.
    at_first: u64,
    carried: f64,
    importance: f32,
    expires: Option<u64>,
    vector: Option<Vec<f32>>,
    superseded: Option<RecordId>,
    /// The count and the nearness when a cycle first saw its last use.
    seen: Option<(u64, Option<f32>)>,
    /// The count when it moved or was taken back, after which it has to be used again.
    settled: Option<u64>,
}

/// A move as the model remembers it.
struct Past {
    id: RecordId,
    at: u64,
    before: Modelled,
    after: Modelled,
    /// What it was merged into, before and after.
    into: Option<(RecordId, Modelled, Modelled)>,
}

struct World {
    f: Fixture,
    memory: Memory,
    policy: Policy,
    /// Settings by which all was weighed.
    weighed_by: Option<[u8; 32]>,
    now: u64,
    records: BTreeMap<RecordId, Modelled>,
    cycles: BTreeMap<i64, Vec<Past>>,
    mirrors: BTreeMap<Layer, (u64, BTreeMap<u64, Vec<f32>>)>,
}

fn vector_of(direction: u8) -> Vec<f32> {
    let angle = f32::from(direction) * 0.3;
    // As f16, which is what counts.
    [angle.cos(), angle.sin()].map(|v| half::f16::from_f32(v).to_f32()).to_vec()
}

fn unit(vector: &[f32]) -> Vec<f32> {
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter().map(|v| v / length).collect()
}

const SAMPLE: usize = 3;

impl World {
    fn new() -> Self {
        let mut world = Self {
            f: Fixture::new(),
            memory: settings(&[]).unwrap(),
            policy: preset("default"),
            weighed_by: None,
            // Ahead of the clock of the store, which says when records are made.
            now: now_ms() + HOUR,
            records: BTreeMap::new(),
            cycles: BTreeMap::new(),
            mirrors: Layer::ALL.into_iter().map(|layer| (layer, (0, BTreeMap::new()))).collect(),
        };
        world.set("default");
        world
    }

    fn set(&mut self, preset: &str) {
        let sample = i64::try_from(SAMPLE).unwrap();
        let settings = settings(&[
            ("promotion.preset", preset.into()),
            ("promotion.sample", sample.into()),
            ("promotion.history_days", 36_500.into()),
        ]);
        self.memory = settings.unwrap();
        self.policy = Policy::new(&self.memory);
    }

    fn nth(&self, nth: usize) -> RecordId {
        self.records.keys().nth(nth).copied().unwrap_or(RecordId(i64::MAX))
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Add { text, layer, project, importance, life, vector } => {
                self.add(text, layer, project, importance, life, vector);
            }
            Op::Use { nth, times } => {
                for nth in nth {
                    // No two uses are of the same time.
                    self.now += 1;
                    let id = self.nth(nth);
                    self.f.used(&[id], usize::try_from(times).unwrap(), self.now);
                    if let Some(record) = self.records.get_mut(&id) {
                        record.count += times;
                        record.last = self.now;
                    }
                }
            }
            Op::Wait { hours } => self.now += hours * HOUR,
            Op::Promote { limit } => self.promote(limit),
            Op::Settings { preset } => self.set(["default", "production", "minimal"][preset]),
            Op::Undo => self.undo(),
            Op::Forget { nth } => {
                let id = self.nth(nth);
                self.f.store.forget(&[id]).unwrap();
                self.records.remove(&id);
            }
            Op::Follow => self.follow(),
        }
        self.compare();
    }

    fn add(
        &mut self,
        text: u8,
        layer: Layer,
        project: bool,
        importance: f32,
        life: Option<u64>,
        vector: Option<u8>,
    ) {
        let expires_ms = life.map(|hours| self.now + hours * HOUR);
        let new = NewRecord {
            importance,
            expires_ms,
            project: project.then(|| "p".to_owned()),
            vector: vector.map(vector_of),
            ..NewRecord::new(layer, text.to_string())
        };
        let id = self.f.add(vec![new])[0];
        // The store has its own clock.
        let stored = self.f.store.records(&[id]).unwrap().remove(0);
        let known = self.records.entry(id).or_insert_with(|| Modelled {
            ulid: stored.ulid.clone(),
            text,
            project,
            layer,
            since: stored.created_ms,
            last: stored.created_ms,
            count: 0,
            at_first: 0,
            carried: 0.0,
            importance,
            expires: expires_ms,
            vector: None,
            superseded: None,
            seen: None,
            settled: None,
        });
        assert_eq!((known.text, known.layer, known.project), (text, layer, project));
        known.vector = known.vector.take().or(vector.map(vector_of));
        if stored.access_count > known.count {
            known.count += 1;
            known.last = stored.last_access_ms;
            known.importance = known.importance.max(importance);
            known.expires = known.expires.zip(expires_ms).map(|(old, new)| old.max(new));
            known.superseded = None;
        }
    }

    fn nearness(&self, of: &Modelled) -> Option<f32> {
        let vector = of.vector.as_ref()?;
        let mut used: Vec<_> =
            self.records.iter().filter(|(_, it)| it.count > 0 && it.project == of.project).collect();
        used.sort_by_key(|(id, it)| std::cmp::Reverse((it.last, **id)));
        let mut sum = vec![0.0; 2];
        for (_, used) in used.into_iter().take(SAMPLE) {
            let row = used.vector.as_deref().map(unit).unwrap_or_else(|| vec![0.0; 2]);
            sum.iter_mut().zip(row).for_each(|(sum, v)| *sum += v);
        }
        if sum == [0.0, 0.0] {
            return None;
        }
        let cosine: f32 = unit(&sum).iter().zip(unit(vector)).map(|(a, b)| a * b).sum();
        Some(cosine.clamp(0.0, 1.0))
    }

    /// Weighs every record that was ever used, and not only what was used since.
    fn promote(&mut self, limit: Option<usize>) {
        let (now, policy) = (self.now, self.policy.clone());
        let options = PromotionOptions { limit, ..PromotionOptions::default() };
        let report = self.f.run(&policy, &options, now);
        let other_settings = self.weighed_by.is_some_and(|by| by != policy.digest);
        let (mut moves, mut waiting) = (Vec::new(), 0);
        let weighed: Vec<_> = self.records.iter().map(|(&id, it)| (id, it.clone())).collect();
        let (mut seen, mut left_over) = (Vec::new(), Vec::new());
        for (id, it) in weighed {
            let (Some(to), Some(threshold)) = (it.layer.next(), policy.threshold(it.layer)) else { continue };
            let is_settled = it.settled == Some(it.count) && !other_settings;
            if it.superseded.is_some() || it.count == 0 || is_settled {
                continue;
            }
            let similarity = match it.seen {
                Some((count, similarity)) if count == it.count && !other_settings => similarity,
                _ => self.nearness(&it),
            };
            let due = it.expires.is_some_and(|due| due <= now);
            let at = it.expires.map_or(now, |due| due.min(now));
            let weighed = Candidate {
                since_ms: it.since,
                last_access_ms: it.last,
                expires_ms: it.expires,
                ..candidate(it.layer, (it.count - it.at_first) as f64 + it.carried, it.importance)
            };
            let score = policy.score(&weighed, similarity, at);
            if score.value < threshold {
                seen.push((id, Some((it.count, similarity))));
            } else if policy.is_young(&weighed, at) {
                waiting += 1;
                left_over.push(id);
            } else {
                let (expires_ms, carried) = (policy.expiry(&weighed, to, now), policy.carried(&weighed));
                moves.push((due, score, id, to, expires_ms, carried, similarity));
            }
        }
        moves.sort_by(|a, b| b.0.cmp(&a.0).then(b.1.value.total_cmp(&a.1.value)).then(a.2.cmp(&b.2)));
        let over = moves.split_off(limit.unwrap_or(usize::MAX).min(moves.len()));
        waiting += over.len() as u64;
        left_over.extend(over.iter().map(|left| left.2));
        for (id, seen) in seen {
            let record = self.records.get_mut(&id).unwrap();
            (record.seen, record.settled) = (seen, None);
        }
        for id in left_over.into_iter().filter(|_| other_settings) {
            let record = self.records.get_mut(&id).unwrap();
            (record.seen, record.settled) = (None, None);
        }
        moves.sort_by_key(|it| std::cmp::Reverse(it.3));
        let mut expected = Vec::new();
        let mut past = Vec::new();
        for (_, score, id, to, expires_ms, carried, similarity) in moves {
            let before = self.records[&id].clone();
            let Ok(into) = self.place(&before, to) else {
                let record = self.records.get_mut(&id).unwrap();
                (record.seen, record.settled) = (Some((before.count, similarity)), None);
                continue;
            };
            let mut after = before.clone();
            let into = match into {
                None => {
                    after.layer = to;
                    after.expires = expires_ms;
                    after.carried = carried;
                    (after.at_first, after.since) = (before.count, now);
                    (after.seen, after.settled) = (None, Some(before.count));
                    None
                }
                Some(into) => {
                    after.superseded = Some(into);
                    let old = self.records[&into].clone();
                    let new = self.records.get_mut(&into).unwrap();
                    new.count += before.count;
                    new.at_first += before.count;
                    new.carried += carried;
                    new.last = new.last.max(before.last);
                    new.importance = new.importance.max(before.importance);
                    new.expires = new.expires.zip(expires_ms).map(|(old, new)| old.max(new));
                    Some((into, old, new.clone()))
                }
            };
            self.records.insert(id, after.clone());
            expected.push(PromotionRecord {
                id: before.ulid.clone(),
                from: before.layer,
                to,
                score,
                threshold: policy.threshold(before.layer),
                expires_ms,
                former_expires_ms: before.expires,
                merged_into: into.as_ref().map(|(into, ..)| self.records[into].ulid.clone()),
                undone_ms: None,
            });
            past.push(Past { id, at: now, before, after, into });
        }
        assert_eq!(report.moves, expected);
        assert_eq!(report.waiting, waiting);
        if let Some(cycle) = report.cycle {
            self.cycles.insert(cycle, past);
        }
        let mut expired = 0;
        if !over.iter().any(|left| left.0) {
            let before = self.records.len();
            self.records.retain(|_, it| it.expires.is_none_or(|due| due > now));
            expired = before - self.records.len();
        }
        assert_eq!(report.expired, expired as u64);
        if report.weighed > 0 || other_settings {
            // Where nothing was written, the settings are not known as those that count.
            self.weighed_by = self.f.store.promotion_state().unwrap().map(|(_, settings)| settings);
        }
    }

    /// What a record would be merged into; an error where that is outdated.
    fn place(&self, it: &Modelled, to: Layer) -> Result<Option<RecordId>, ()> {
        let same = |other: &Modelled| (other.text, other.project) == (it.text, it.project);
        let mut found = self.records.iter().find(|(_, other)| other.layer == to && same(other));
        while let Some((&id, other)) = found {
            match other.superseded {
                None => return Ok(Some(id)),
                Some(newer) => {
                    found = self.records.get_key_value(&newer);
                    if found.is_none() {
                        return Err(());
                    }
                }
            }
        }
        Ok(None)
    }

    fn undo(&mut self) {
        let undone = self.f.store.undo_promotions(None, self.now).unwrap();
        let Some((&cycle, _)) = self.cycles.iter().rfind(|(_, past)| !past.is_empty()) else {
            assert_eq!(undone, None);
            return;
        };
        let undone = undone.unwrap();
        assert_eq!(undone.cycle, cycle);
        let mut back = Vec::new();
        let mut left = Vec::new();
        for past in self.cycles.remove(&cycle).unwrap().into_iter().rev() {
            match self.take_back(&past) {
                true => back.push(past.before.ulid),
                false => left.push(past),
            }
        }
        assert_eq!(undone.undone, back);
        assert_eq!(undone.skipped.len(), left.len());
        left.reverse();
        self.cycles.insert(cycle, left);
    }

    fn take_back(&mut self, past: &Past) -> bool {
        let Some(now) = self.records.get(&past.id).cloned() else { return false };
        let (before, after) = (&past.before, &past.after);
        if let Some((into, old, new)) = &past.into {
            let is_there = now.layer == before.layer && now.superseded == Some(*into);
            let Some(other) = self.records.get_mut(into).filter(|other| is_there && other.since == new.since)
            else {
                return false;
            };
            other.count -= before.count;
            other.at_first -= before.count;
            if other.last == new.last {
                other.last = old.last;
            }
            if other.importance == new.importance {
                other.importance = old.importance;
            }
            if other.expires == new.expires {
                other.expires = old.expires;
            }
            other.carried = if other.carried == new.carried {
                old.carried
            } else {
                other.carried - (new.carried - old.carried)
            };
            let record = self.records.get_mut(&past.id).unwrap();
            record.superseded = None;
            (record.seen, record.settled) = (None, Some(record.count));
            return true;
        }
        let is_as_it_was = now.layer == after.layer
            && now.since == past.at
            && now.superseded.is_none()
            && now.expires == after.expires
            && before.expires.is_none_or(|due| due > self.now);
        let is_taken = self.records.iter().any(|(id, other)| {
            *id != past.id
                && (other.text, other.project, other.layer) == (now.text, now.project, before.layer)
        });
        if !is_as_it_was || is_taken {
            return false;
        }
        let record = self.records.get_mut(&past.id).unwrap();
        record.layer = before.layer;
        record.expires = before.expires;
        record.carried = before.carried;
        (record.at_first, record.since) = (before.at_first, before.since);
        (record.seen, record.settled) = (None, Some(record.count));
        true
    }

    /// Brings the mirror of each layer up to date, as an index does, and compares.
    fn follow(&mut self) {
        for (&layer, (seq, vectors)) in &mut self.mirrors {
            let changes = self.f.store.changes_after(self.f.space, layer, *seq).unwrap();
            assert!(changes.complete);
            for id in changes.removed {
                vectors.remove(&id);
            }
            let rows = changes.vectors.chunks(2).map(|row| row.iter().map(|v| v.to_f32()).collect());
            vectors.extend(changes.upserts.into_iter().zip(rows));
            *seq = changes.head;
            let mut stored = BTreeMap::new();
            let scanned = self.f.store.scan_vectors(self.f.space, layer, 9, |ids, rows| {
                stored.extend(ids.iter().copied().zip(rows.chunks(2).map(<[f32]>::to_vec)));
                ControlFlow::Continue(())
            });
            scanned.unwrap();
            let expected: BTreeMap<u64, Vec<f32>> = self
                .records
                .iter()
                .filter(|(_, record)| record.layer == layer)
                .filter_map(|(id, record)| Some((id.index_id(), record.vector.clone()?)))
                .collect();
            assert_eq!((&*vectors, &stored), (&expected, &expected));
        }
    }

    fn compare(&self) {
        let stored = self.f.store.list(&Filter::default(), usize::MAX, 0).unwrap();
        assert_eq!(stored.len(), self.records.len());
        for record in stored {
            let it = &self.records[&record.id];
            let Record { layer, access_count, last_access_ms, importance, expires_ms, superseded_by, .. } =
                record;
            assert_eq!((layer, access_count, last_access_ms), (it.layer, it.count, it.last), "{record:?}");
            assert_eq!((importance, expires_ms, superseded_by), (it.importance, it.expires, it.superseded));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn cycles_over_what_was_used_decide_as_those_of_the_model_over_everything(ops in vec(ops(), 1..60)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        world.follow();
        prop_assert_eq!(world.f.store.check().unwrap(), Vec::<String>::new());
    }
}
