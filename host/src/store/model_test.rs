//! Random operations against a model of a few lines.
use super::{fixture::*, *};
use proptest::{collection::vec, prelude::*};
use std::{
    collections::{BTreeMap, BTreeSet},
    ops::ControlFlow,
};

const PATHS: [&str; 2] = ["/a", "/b"];

#[derive(Clone, Debug)]
enum Op {
    Add { text: u8, layer: Layer, project: bool, tags: Vec<u8>, expires_ms: Option<u64>, vector: bool },
    Replace { path: usize, layer: Layer, texts: Vec<u8>, vectors: bool },
    RemoveSource { path: usize },
    Forget { nth: usize },
    ForgetTagged { tag: u8 },
    Expire { now: u64 },
    Embed,
    Follow { layer: Layer },
    Prune { layer: Layer },
}

fn layers() -> impl Strategy<Value = Layer> {
    prop::sample::select(&Layer::ALL[..])
}

fn ops() -> impl Strategy<Value = Op> {
    let due = || 0u64..40;
    prop_oneof![
        4 => (0u8..6, layers(), any::<bool>(), vec(0u8..3, 0..3), prop::option::of(due()), any::<bool>())
            .prop_map(|(text, layer, project, tags, expires_ms, vector)| {
                Op::Add { text, layer, project, tags, expires_ms, vector }
            }),
        3 => (0..PATHS.len(), layers(), vec(0u8..6, 0..6), any::<bool>())
            .prop_map(|(path, layer, texts, vectors)| Op::Replace { path, layer, texts, vectors }),
        1 => (0..PATHS.len()).prop_map(|path| Op::RemoveSource { path }),
        2 => (0usize..20).prop_map(|nth| Op::Forget { nth }),
        1 => (0u8..3).prop_map(|tag| Op::ForgetTagged { tag }),
        1 => due().prop_map(|now| Op::Expire { now }),
        1 => Just(Op::Embed),
        2 => layers().prop_map(|layer| Op::Follow { layer }),
        1 => layers().prop_map(|layer| Op::Prune { layer }),
    ]
}

#[derive(Clone, Debug, PartialEq)]
struct Modelled {
    text: u8,
    layer: Layer,
    project: bool,
    path: Option<usize>,
    tags: BTreeSet<String>,
    expires_ms: Option<u64>,
    vector: bool,
}

/// An index that knows only what the store tells it.
#[derive(Default)]
struct Mirror {
    seq: u64,
    vectors: BTreeMap<u64, Vec<f32>>,
}

struct World {
    f: Fixture,
    space: SpaceId,
    model: BTreeMap<RecordId, Modelled>,
    mirrors: BTreeMap<Layer, Mirror>,
}

fn vector_of(text: u8) -> Vec<f32> {
    vec![f32::from(text) + 1.0, 1.0]
}

fn scan(store: &Store, space: SpaceId, layer: Layer) -> Mirror {
    let mut vectors = BTreeMap::new();
    let seq = store.scan_vectors(space, layer, 3, |ids, rows| {
        vectors.extend(ids.iter().copied().zip(rows.chunks(2).map(<[f32]>::to_vec)));
        ControlFlow::Continue(())
    });
    Mirror { seq: seq.unwrap(), vectors }
}

impl World {
    fn new() -> Self {
        let f = Fixture::new();
        let space = f.space(2);
        let mirrors = Layer::ALL.into_iter().map(|layer| (layer, Mirror::default())).collect();
        Self { f, space, model: BTreeMap::new(), mirrors }
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Add { text, layer, project, tags, expires_ms, vector } => {
                let tags: BTreeSet<String> = tags.iter().map(u8::to_string).collect();
                let new = Modelled { text, layer, project, path: None, tags, expires_ms, vector };
                let added = self.f.store.add(Some(self.space), vec![new_record(&new)]).unwrap().remove(0);
                let same = |old: &Modelled| {
                    (old.text, old.layer, old.project, old.path) == (text, layer, project, None)
                };
                let known = self.model.iter_mut().find(|(_, old)| same(old));
                assert_eq!(added.outcome == Outcome::Refreshed, known.is_some());
                if let Some((id, old)) = known {
                    assert_eq!(*id, added.id);
                    old.tags.extend(new.tags);
                    old.expires_ms = old.expires_ms.zip(expires_ms).map(|(old, new)| old.max(new));
                    old.vector |= vector;
                } else {
                    self.model.insert(added.id, new);
                }
            }
            Op::Replace { path, layer, texts, vectors } => {
                let new: Vec<Modelled> = texts
                    .iter()
                    .map(|&text| Modelled {
                        text,
                        layer,
                        project: false,
                        path: Some(path),
                        tags: BTreeSet::new(),
                        expires_ms: None,
                        vector: vectors,
                    })
                    .collect();
                let source = NewSource {
                    path: PATHS[path].to_owned(),
                    content_hash: [0; 32],
                    settings: [0; 32],
                    size: 0,
                    mtime_ms: 0,
                    project: None,
                    layer,
                };
                let records = new.iter().map(new_record).collect();
                let outcome = self.f.store.replace_source(source, records, Some(self.space)).unwrap();
                assert_eq!(outcome.added + outcome.kept, new.len());
                let (old, others): (BTreeMap<_, _>, _) =
                    std::mem::take(&mut self.model).into_iter().partition(|(_, old)| old.path == Some(path));
                self.model = others;
                // Which of equal records stays is the store's affair; that the texts fit is not.
                let filter = Filter { source: Some(PATHS[path].to_owned()), ..Filter::default() };
                let stored = self.f.store.list(&filter, 99, 0).unwrap();
                assert_eq!(old.len() + outcome.added - outcome.removed, stored.len());
                let mut texts: Vec<String> = texts.iter().map(u8::to_string).collect();
                let mut stored_texts: Vec<&str> = stored.iter().map(|record| &record.text[..]).collect();
                texts.sort();
                stored_texts.sort_unstable();
                assert_eq!(stored_texts, texts);
                for record in &stored {
                    let text = record.text.parse().unwrap();
                    let kept = old.get(&record.id);
                    if let Some(kept) = kept {
                        assert_eq!((kept.text, kept.layer), (text, layer));
                    }
                    let vector = vectors || kept.is_some_and(|kept| kept.vector);
                    let now = Modelled { vector, ..new.iter().find(|new| new.text == text).unwrap().clone() };
                    self.model.insert(record.id, now);
                }
            }
            Op::RemoveSource { path } => {
                let removed = self.f.store.remove_sources(&strings(&[PATHS[path]])).unwrap();
                self.retain(removed, |record| record.path != Some(path));
            }
            Op::Forget { nth } => {
                let id = self.model.keys().nth(nth).copied().unwrap_or(RecordId(i64::MAX));
                let removed = self.f.store.forget(&[id]).unwrap();
                assert_eq!(removed, usize::from(self.model.remove(&id).is_some()));
            }
            Op::ForgetTagged { tag } => {
                let filter = Filter { tags: vec![tag.to_string()], ..Filter::default() };
                let removed = self.f.store.forget_matching(&filter).unwrap();
                self.retain(removed, |record| !record.tags.contains(&tag.to_string()));
            }
            Op::Expire { now } => {
                let removed = self.f.store.expire(now).unwrap();
                self.retain(removed, |record| record.expires_ms.is_none_or(|due| due > now));
            }
            Op::Embed => {
                let missing = self.f.store.without_vector(self.space, RecordId(0), 99).unwrap();
                let expected = self.model.iter_mut().filter(|(_, record)| !record.vector);
                let mut vectors = Vec::new();
                for (&id, record) in expected {
                    record.vector = true;
                    vectors.push((id, vector_of(record.text)));
                }
                assert!(missing.iter().eq(vectors.iter().map(|(id, _)| id)));
                self.f.store.put_vectors(self.space, &vectors).unwrap();
            }
            Op::Follow { layer } => self.follow(layer),
            Op::Prune { layer } => {
                let head = self.f.store.head(self.space, layer).unwrap();
                self.f.store.prune_changes(self.space, layer, head).unwrap();
            }
        }
    }

    fn retain(&mut self, removed: usize, keep: impl Fn(&Modelled) -> bool) {
        let before = self.model.len();
        self.model.retain(|_, record| keep(record));
        assert_eq!(before - self.model.len(), removed);
    }

    /// Brings the mirror of a layer up to date and compares it with the model.
    fn follow(&mut self, layer: Layer) {
        let Some(mirror) = self.mirrors.get_mut(&layer) else { return };
        let changes = self.f.store.changes_after(self.space, layer, mirror.seq).unwrap();
        if changes.complete {
            for id in changes.removed {
                mirror.vectors.remove(&id);
            }
            let rows = changes.vectors.chunks(2).map(|row| row.iter().map(|v| v.to_f32()).collect());
            mirror.vectors.extend(changes.upserts.into_iter().zip(rows));
            mirror.seq = changes.head;
        } else {
            *mirror = scan(&self.f.store, self.space, layer);
        }
        let expected: BTreeMap<u64, Vec<f32>> = self
            .model
            .iter()
            .filter(|(_, record)| record.layer == layer && record.vector)
            .map(|(id, record)| (id.index_id(), vector_of(record.text)))
            .collect();
        assert_eq!(mirror.vectors, expected);
        assert_eq!(scan(&self.f.store, self.space, layer).vectors, expected);
    }

    fn compare(&mut self) {
        let stored = self.f.store.list(&Filter::default(), usize::MAX, 0).unwrap();
        let stored: BTreeMap<RecordId, Modelled> = stored
            .into_iter()
            .map(|record| {
                let modelled = Modelled {
                    text: record.text.parse().unwrap(),
                    layer: record.layer,
                    project: record.project.is_some(),
                    path: record.source.map(|source| PATHS.iter().position(|p| *p == source.path).unwrap()),
                    tags: record.tags.into_iter().collect(),
                    expires_ms: record.expires_ms,
                    vector: self.model.get(&record.id).is_some_and(|record| record.vector),
                };
                (record.id, modelled)
            })
            .collect();
        assert_eq!(stored, self.model);
        for layer in Layer::ALL {
            self.follow(layer);
        }
        assert_eq!(self.f.store.check().unwrap(), Vec::<String>::new());
    }
}

fn new_record(record: &Modelled) -> NewRecord {
    NewRecord {
        layer: record.layer,
        project: record.project.then(|| "p".to_owned()),
        tags: record.tags.iter().cloned().collect(),
        expires_ms: record.expires_ms,
        vector: record.vector.then(|| vector_of(record.text)),
        ..note(&record.text.to_string())
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_its_model_does(ops in vec(ops(), 1..40)) {
        let mut world = World::new();
        for op in ops {
            world.apply(op);
        }
        world.compare();
    }
}
