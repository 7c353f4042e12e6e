use super::super::{Filter, PortableVector, fixture::*, query_terms};
use super::*;
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::{collections::BTreeMap, ops::ControlFlow};

const DEFAULTS: ImportDefaults =
    ImportDefaults { layer: Layer::Insights, expires_ms: [Some(1 << 50), None, None] };

fn take_in(f: &Fixture, space: SpaceId, records: &[PortableRecord]) -> Vec<Imported> {
    let fit = |record: &PortableRecord| ImportRecord::new(record.clone(), &DEFAULTS, 2).unwrap();
    f.store.import(space, records.iter().map(fit).collect()).unwrap()
}

fn exported(f: &Fixture, space: SpaceId) -> Vec<PortableRecord> {
    let mut all = Vec::new();
    let count = f.store.export(&Filter::default(), Some(space), &mut |total, record| {
        all.push(record);
        assert!(all.len() as u64 <= total);
        ControlFlow::Continue(())
    });
    assert_eq!(count.unwrap(), all.len() as u64);
    all
}

fn said(text: &str) -> PortableRecord {
    PortableRecord { text: text.to_owned(), ..PortableRecord::default() }
}

prop_compose! {
    /// A record as an export has it; `n` tells it from the others.
    fn record(n: u8)(
        layer in select(&Layer::ALL[..]),
        kind in "[a-z]{1,6}",
        title in option::of("\\PC{0,8}"),
        text in "\\PC{0,12}[\u{0}\n\"\\\\ü🦀]?",
        tags in prop::collection::btree_set("[a-z]{1,3}", 0..3),
        project in option::of("[a-z]{1,3}"),
        session in option::of("[a-z]{1,3}"),
        source in option::of(("/[a-z]{1,2}", 1u32..9, 9u32..99)),
        times in (0u64..1 << 52, 0u64..1 << 52, 0u64..1000),
        shares in (0.0f32..=1.0, 0.0f32..=1.0),
        arrival in (0u64..1000, 0.0f32..1e6, option::of(0u64..1 << 52)),
        expires_ms in option::of(0u64..1 << 52),
        valid in (option::of(0u64..1 << 51), option::of(1 << 51..1u64 << 52)),
        better in option::of(0u8..12),
        vector in option::of((-2.0f32..2.0, -2.0f32..2.0)),
    ) -> PortableRecord {
        PortableRecord {
            id: Some(ulid_of(n)),
            layer: Some(layer),
            kind: Some(kind),
            title,
            // No two say the same, so that each stays itself.
            text: format!("{n} {text}"),
            tags: tags.into_iter().collect(),
            project,
            session,
            source: source.map(|(path, line_start, line_end)| super::super::SourceRef { path, line_start, line_end }),
            created_ms: Some(times.0),
            last_access_ms: Some(times.1),
            access_count: Some(times.2),
            importance: Some(shares.0),
            score: Some(shares.1),
            moved_count: Some(arrival.0),
            carried: Some(arrival.1),
            moved_ms: arrival.2,
            expires_ms: Some(expires_ms),
            valid_from_ms: valid.0,
            valid_to_ms: valid.1,
            superseded_by: better.map(ulid_of),
            vector: vector.map(|(x, y)| PortableVector::new(&[x, y]).unwrap()),
        }
    }
}

fn ulid_of(n: u8) -> String {
    Ulid::from_parts(u64::from(n), 7).to_string()
}

/// Several states of up to 12 records.
fn files() -> impl Strategy<Value = Vec<Vec<PortableRecord>>> {
    vec(vec((0u8..12).prop_flat_map(record), 0..12), 1..4)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    /// Files are taken in one after the other, through JSON. The model is a map from id to the last
    /// line, where use never goes back and a vector stays with its text.
    #[test]
    fn records_come_back_as_they_went(files in files()) {
        let f = Fixture::new();
        let space = f.space(2);
        let mut model: BTreeMap<String, PortableRecord> = BTreeMap::new();
        let mut order = Vec::new();
        for file in &files {
            let lines: Vec<String> = file.iter().map(|line| serde_json::to_string(line).unwrap()).collect();
            let read: Vec<PortableRecord> =
                lines.iter().map(|line| serde_json::from_str(line).unwrap()).collect();
            prop_assert_eq!(&read, file);
            for (imported, new) in take_in(&f, space, &read).into_iter().zip(read) {
                let id = new.id.clone().unwrap();
                let mut now = PortableRecord { superseded_by: None, ..new };
                let old = model.get(&id).cloned();
                if let Some(old) = &old {
                    now.last_access_ms = now.last_access_ms.max(old.last_access_ms);
                    now.access_count = now.access_count.max(old.access_count);
                    if (&old.title, &old.text) == (&now.title, &now.text) {
                        now.vector = old.vector.clone().or(now.vector);
                    }
                    now.valid_from_ms = now.valid_from_ms.or(old.valid_from_ms);
                    now.valid_to_ms = now.valid_to_ms.or(old.valid_to_ms);
                    // Links are made in the end.
                    now.superseded_by = old.superseded_by.clone();
                } else {
                    order.push(id.clone());
                }
                let is_same = old.as_ref().is_some_and(|old| {
                    PortableRecord { vector: None, ..old.clone() } == PortableRecord { vector: None, ..now.clone() }
                });
                match imported {
                    Imported::New(_) => prop_assert!(old.is_none()),
                    Imported::Unchanged(_) => prop_assert!(is_same),
                    Imported::Updated(_) => prop_assert!(old.is_some() && !is_same),
                    Imported::Refused(reason) => prop_assert!(false, "{}", reason),
                }
                model.insert(id, now);
            }
            let links = file.iter().filter_map(|line| line.id.clone().zip(line.superseded_by.clone()));
            let links: Vec<_> = links.collect();
            let mut broken = 0;
            for (id, better) in &links {
                let mut chain = std::iter::successors(Some(better), |id| model.get(*id)?.superseded_by.as_ref());
                if !model.contains_key(better) || chain.any(|at| at == id) {
                    broken += 1;
                    continue;
                }
                let from = model[better].valid_from_ms.or(model[better].created_ms);
                let old = model.get_mut(id).unwrap();
                old.valid_to_ms = old.valid_to_ms.into_iter().chain(from).min();
                old.superseded_by = Some(better.clone());
            }
            prop_assert_eq!(f.store.supersede(links).unwrap(), broken);
            let expected: Vec<_> = order.iter().map(|id| model[id].clone()).collect();
            prop_assert_eq!(exported(&f, space), expected.clone());
            // What was exported changes nothing.
            let again = take_in(&f, space, &expected);
            prop_assert!(again.iter().all(|imported| matches!(imported, Imported::Unchanged(_))), "{:?}", again);
            prop_assert_eq!(exported(&f, space), expected);
        }
        prop_assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    }
}

#[test]
fn a_text_alone_is_a_record() {
    let f = Fixture::new();
    let space = f.space(2);
    assert!(matches!(take_in(&f, space, &[said("a")])[..], [Imported::New(_)]));
    let record = &exported(&f, space)[0];
    assert_eq!((record.layer, record.kind.as_deref()), (Some(Layer::Insights), Some("note")));
    assert_eq!((record.expires_ms, record.importance), (Some(None), Some(0.5)));
    assert!(record.created_ms.is_some_and(|created| created > 0));
    assert!(matches!(take_in(&f, space, &[said("a")])[..], [Imported::Unchanged(_)]));
    let hot = PortableRecord { layer: Some(Layer::Interact), ..said("b") };
    take_in(&f, space, &[hot]);
    assert_eq!(exported(&f, space)[1].expires_ms, Some(Some(1 << 50)));
}

#[test]
fn one_that_says_the_same_is_the_same_and_gains() {
    let f = Fixture::new();
    let space = f.space(2);
    f.store.add(None, vec![note("a")]).unwrap();
    let old = exported(&f, space).remove(0);
    let new = PortableRecord {
        id: Some(ulid_of(1)),
        kind: Some("fact".to_owned()),
        tags: strings(&["t"]),
        created_ms: Some(5),
        access_count: Some(9),
        importance: Some(0.1),
        vector: Some(PortableVector::new(&[1.0, 0.0]).unwrap()),
        ..said("a")
    };
    assert!(matches!(take_in(&f, space, std::slice::from_ref(&new))[..], [Imported::Updated(_)]));
    let expected = PortableRecord {
        kind: new.kind.clone(),
        tags: new.tags.clone(),
        created_ms: Some(5),
        access_count: Some(9),
        vector: new.vector.clone(),
        ..old
    };
    assert_eq!(exported(&f, space), [expected]);
    assert!(matches!(take_in(&f, space, &[new])[..], [Imported::Unchanged(_)]));
}

#[test]
fn how_a_record_came_to_its_layer_is_kept() {
    let f = Fixture::new();
    let space = f.space(2);
    let arrival = |record: &PortableRecord| (record.moved_count, record.carried, record.moved_ms);
    let moved = PortableRecord {
        id: Some(ulid_of(1)),
        access_count: Some(8),
        moved_count: Some(6),
        carried: Some(3.3),
        moved_ms: Some(77),
        ..said("a")
    };
    take_in(&f, space, std::slice::from_ref(&moved));
    assert_eq!(arrival(&exported(&f, space)[0]), (Some(6), Some(3.3), Some(77)));
    // What a cycle of promotion makes of it is as where it came from.
    let candidate =
        f.store.promotion_candidates(Some(space), Layer::Insights, true, RecordId(0), 9).unwrap().remove(0);
    assert_eq!((candidate.since_ms, candidate.uses), (77, 2.0 + f64::from(3.3f32)));

    // A cycle computes with more digits than an export has: the same record is the same all the same.
    let digits = "UPDATE records SET carried = 3.300000001";
    f.store.write(move |db| Ok(db.execute(digits, [])?)).unwrap();
    assert!(matches!(take_in(&f, space, &exported(&f, space))[..], [Imported::Unchanged(_)]));

    // An export of a version that did not say it, under this id and under another.
    let old = PortableRecord { moved_count: None, carried: None, moved_ms: None, ..moved.clone() };
    let other = PortableRecord { id: Some(ulid_of(2)), access_count: Some(9), ..old.clone() };
    take_in(&f, space, &[old.clone(), other]);
    assert_eq!(arrival(&exported(&f, space)[0]), (Some(6), Some(3.3), Some(77)));
    let fresh = Fixture::new();
    let fresh_space = fresh.space(2);
    take_in(&fresh, fresh_space, std::slice::from_ref(&old));
    assert_eq!(arrival(&exported(&fresh, fresh_space)[0]), (Some(0), Some(0.0), None));

    // One of another id that says the same: what was used more often tells where.
    let same = |access_count, moved_count| PortableRecord {
        id: Some(ulid_of(2)),
        access_count: Some(access_count),
        moved_count: Some(moved_count),
        ..said("a")
    };
    take_in(&f, space, &[same(9, 4)]);
    assert_eq!(arrival(&exported(&f, space)[0]), (Some(6), Some(3.3), Some(77)));
    take_in(&f, space, &[same(10, 5)]);
    assert_eq!(arrival(&exported(&f, space)[0]), (Some(5), Some(0.0), None));
    // Under its own id it becomes what the line says.
    take_in(&f, space, &[moved]);
    assert_eq!(arrival(&exported(&f, space)[0]), (Some(6), Some(3.3), Some(77)));
}

#[test]
fn another_text_takes_another_vector_and_other_words() {
    let f = Fixture::new();
    let space = f.space(2);
    let of = |text: &str, layer, vector: [f32; 2]| PortableRecord {
        id: Some(ulid_of(1)),
        layer: Some(layer),
        vector: Some(PortableVector::new(&vector).unwrap()),
        ..said(text)
    };
    take_in(&f, space, &[of("moon", Layer::Assets, [1.0, 0.0])]);
    take_in(&f, space, &[of("tide", Layer::Assets, [0.0, 1.0])]);
    let vectors = |layer, seq| -> Vec<f32> {
        let changes = f.store.changes_after(space, layer, seq).unwrap();
        changes.vectors.iter().map(|v| v.to_f32()).collect()
    };
    assert_eq!(vectors(Layer::Assets, 0), [0.0, 1.0]);
    take_in(&f, space, &[of("tide", Layer::Insights, [0.0, 1.0])]);
    assert_eq!((vectors(Layer::Assets, 0).len(), vectors(Layer::Insights, 0)), (0, vec![0.0, 1.0]));
    assert_eq!(f.store.find_words(&query_terms("tide"), None, 9).unwrap().len(), 1);
    assert_eq!(f.store.find_words(&query_terms("moon"), None, 9).unwrap().len(), 0);
    // A line that does not say where it belongs leaves it there.
    let more = PortableRecord { id: Some(ulid_of(1)), tags: strings(&["t"]), ..said("tide") };
    take_in(&f, space, &[more]);
    assert_eq!(exported(&f, space)[0].layer, Some(Layer::Insights));
    assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
}

#[test]
fn a_record_may_not_become_another() {
    let f = Fixture::new();
    let space = f.space(2);
    let of = |n, text: &str| PortableRecord { id: Some(ulid_of(n)), ..said(text) };
    take_in(&f, space, &[of(1, "a"), of(2, "b")]);
    let before = exported(&f, space);
    let imported = take_in(&f, space, &[of(1, "b"), of(3, "c")]);
    assert!(
        matches!(&imported[0], Imported::Refused(reason) if reason.contains(&ulid_of(2))),
        "{imported:?}"
    );
    assert!(matches!(imported[1], Imported::New(_)));
    assert_eq!(exported(&f, space)[..2], before);
}

#[test]
fn what_cannot_be_is_refused_with_its_reason() {
    let refused = [
        (said(" "), "text"),
        (PortableRecord { id: Some("doc-1".to_owned()), ..said("a") }, "doc-1"),
        (PortableRecord { superseded_by: Some("x".to_owned()), ..said("a") }, "superseded_by"),
        (PortableRecord { importance: Some(1.5), ..said("a") }, "importance"),
        (PortableRecord { score: Some(f32::NAN), ..said("a") }, "score"),
        (PortableRecord { carried: Some(-0.5), ..said("a") }, "carried"),
        (PortableRecord { carried: Some(f32::INFINITY), ..said("a") }, "carried"),
        (PortableRecord { moved_count: Some(u64::MAX), ..said("a") }, "moved_count"),
        (PortableRecord { moved_ms: Some(u64::MAX), ..said("a") }, "moved_ms"),
        (PortableRecord { created_ms: Some(u64::MAX), ..said("a") }, "created_ms"),
        (PortableRecord { expires_ms: Some(Some(u64::MAX)), ..said("a") }, "expires_ms"),
        (PortableRecord { vector: Some(PortableVector(vec![0, 0])), ..said("a") }, "vector"),
        (PortableRecord { vector: Some(PortableVector(vec![0; 5])), ..said("a") }, "half"),
        (PortableRecord { vector: Some(PortableVector(vec![0xff; 4])), ..said("a") }, "finite"),
    ];
    for (record, reason) in refused {
        let error = ImportRecord::new(record, &DEFAULTS, 2).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    for (line, reason) in [
        ("{\"text\":\"a\",\"layr\":\"assets\"}", "unknown field `layr`"),
        ("{\"text\":\"a\",\"layer\":\"hot\"}", "unknown variant `hot`"),
        ("{\"text\":\"a\",\"vector\":\"?\"}", "base64"),
        ("{\"text\":\"a\",\"vector\":7}", "array of numbers"),
        ("{\"layer\":\"assets\"}", "missing field `text`"),
    ] {
        let error = serde_json::from_str::<PortableRecord>(line).unwrap_err().to_string();
        assert!(error.contains(reason), "{reason}: {error}");
    }
    let numbers: PortableRecord = serde_json::from_str("{\"text\":\"a\",\"vector\":[0.5,-1]}").unwrap();
    assert_eq!(numbers.vector.unwrap().numbers(2), [0.5, -1.0]);
}

/// The keyword index keeps the lengths of texts, so what was kept is over in every process.
#[test]
fn another_text_of_a_record_counts_by_its_own_length() {
    let f = Fixture::new();
    let space = f.space(2);
    let text = |id, text: &str| PortableRecord { id: Some(ulid_of(id)), ..said(text) };
    take_in(&f, space, &[text(0, "tide"), text(1, "tide and much else that is said of the sea")]);
    let other = super::super::Store::open(f.store.path(), &NORMAL).unwrap();
    let order = |store: &super::super::Store| {
        let hits = store.find_words(&query_terms("tide"), None, 9).unwrap();
        hits.iter().map(|hit| hit.0.0).collect::<Vec<_>>()
    };
    assert_eq!((order(&f.store), order(&other)), (vec![1, 2], vec![1, 2]));
    take_in(
        &f,
        space,
        &[text(0, "tide and a great many other words, more than there are in any"), text(1, "tide")],
    );
    assert_eq!((order(&f.store), order(&other)), (vec![2, 1], vec![2, 1]));
}
