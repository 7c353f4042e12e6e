//! Random histories against a plain model that weighs every record every time.
use super::*;
use crate::store::{Filter, PromotionRecord, Record};
use proptest::collection::vec;
use std::{collections::BTreeMap, ops::ControlFlow};

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
                (other.carried - (new.carried - old.carried)).max(0.0)
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
        let ulids: BTreeMap<RecordId, String> =
            stored.iter().map(|record| (record.id, record.ulid.clone())).collect();
        for record in stored {
            let it = &self.records[&record.id];
            // By nobody that can be named, where that one is gone.
            let superseded = it.superseded.and_then(|by| ulids.get(&by).cloned());
            let Record { layer, access_count, last_access_ms, importance, expires_ms, superseded_by, .. } =
                &record;
            let use_of_it = (*layer, *access_count, *last_access_ms);
            assert_eq!(use_of_it, (it.layer, it.count, it.last), "{record:?}");
            let expected = (&it.importance, &it.expires, &superseded);
            assert_eq!((importance, expires_ms, superseded_by), expected);
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
