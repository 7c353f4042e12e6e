use super::*;
use crate::store::{
    Arrival, Filter, ImportDefaults, ImportRecord, NewRecord, NewSource, PortableRecord, Record, fixture::*,
    now_ms,
};

const SCORE: Score =
    Score { value: 0.9, recency: 1.0, frequency: 0.5, importance: 0.75, similarity: Some(0.25) };

fn note_of(now_ms: u64) -> CycleNote {
    CycleNote { cycle: None, now_ms, settings: Some([1; 32]), keep_from_ms: 0 }
}

fn embedded(text: &str, layer: Layer) -> NewRecord {
    NewRecord { layer, vector: Some(vec![1.0, 2.0]), ..note(text) }
}

fn record(f: &Fixture, id: RecordId) -> Record {
    f.store.records(&[id]).unwrap().remove(0)
}

fn a_move(f: &Fixture, id: RecordId, expires_ms: Option<u64>) -> Move {
    let record = record(f, id);
    Move {
        id,
        ulid: record.ulid,
        from: record.layer,
        to: record.layer.next().unwrap(),
        access_count: record.access_count,
        carried: record.access_count as f64 / 2.0,
        score: SCORE,
        threshold: Some(0.8),
        former_expires_ms: record.expires_ms,
        expires_ms,
    }
}

fn apply(f: &Fixture, moves: Vec<Move>) -> (Option<i64>, Vec<Moved>) {
    let foreseen = f.store.foresee_promotions(&moves).unwrap();
    let done = f.store.apply_promotions(note_of(now_ms()), moves, Vec::new()).unwrap();
    assert_eq!(done.1, foreseen);
    assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
    done
}

fn skipped(f: &Fixture, now: u64) -> String {
    let undone = f.store.undo_promotions(None, now).unwrap().unwrap();
    assert!(undone.undone.is_empty(), "{undone:?}");
    undone.skipped[0].reason.clone()
}

#[test]
fn a_move_takes_the_vectors_of_all_spaces_along_and_indexes_hear_of_it() {
    let f = Fixture::new();
    let (space, other) = (f.space(2), f.space(3));
    let id = f.store.add(Some(space), vec![embedded("a", Layer::Interact)]).unwrap()[0].id;
    f.store.put_vectors(other, &[(id, vec![1.0; 3])]).unwrap();
    f.store.touch(&[id], now_ms());
    f.store.flush().unwrap();
    let before = f.store.dump();
    let heads = |layer| [space, other].map(|space| f.store.head(space, layer).unwrap());
    let (interact, insights) = (heads(Layer::Interact), heads(Layer::Insights));
    let (cycle, moved) = apply(&f, vec![a_move(&f, id, Some(now_ms() + 1000))]);
    assert_eq!((cycle, moved), (Some(1), vec![Moved::Moved]));
    for (at, space) in [space, other].into_iter().enumerate() {
        let left = f.store.changes_after(space, Layer::Interact, interact[at]).unwrap();
        let came = f.store.changes_after(space, Layer::Insights, insights[at]).unwrap();
        assert_eq!((left.removed, came.upserts), (vec![1], vec![1]));
    }
    assert_eq!(record(&f, id).layer, Layer::Insights);
    let history = f.store.promotion_history(5).unwrap();
    let moved = &history[0].moves[0];
    assert_eq!((history.len(), history[0].cycle, moved.score, moved.threshold), (1, 1, SCORE, Some(0.8)));

    let undone = f.store.undo_promotions(None, now_ms()).unwrap().unwrap();
    assert_eq!((undone.cycle, undone.undone.len(), undone.skipped), (1, 1, Vec::new()));
    assert_eq!(f.store.dump(), before);
    assert_eq!(f.store.undo_promotions(None, now_ms()).unwrap(), None);
    assert!(f.store.promotion_history(5).unwrap()[0].moves[0].undone_ms.is_some());
    // It is not looked at again before it is used again.
    let candidates =
        || f.store.promotion_candidates(Some(space), Layer::Interact, false, RecordId(0), 9).unwrap().len();
    assert_eq!(candidates(), 0);
    f.store.touch(&[id], now_ms());
    f.store.flush().unwrap();
    assert_eq!(candidates(), 1);
}

#[test]
fn only_what_was_used_and_belongs_to_no_file_is_a_candidate() {
    let f = Fixture::new();
    let space = f.space(2);
    let ids: Vec<RecordId> = f
        .store
        .add(
            Some(space),
            vec![
                embedded("used", Layer::Insights),
                note("unused"),
                NewRecord { layer: Layer::Assets, ..note("asset") },
                NewRecord { vector: Some(vec![0.0, 0.0]), project: Some("p".to_owned()), ..note("no way") },
            ],
        )
        .unwrap()
        .iter()
        .map(|added| added.id)
        .collect();
    let source = NewSource {
        path: "/file".to_owned(),
        content_hash: [0; 32],
        settings: [0; 32],
        size: 0,
        mtime_ms: 0,
        project: None,
        layer: Layer::Insights,
    };
    f.store.replace_source(source, vec![note("chunk")], None).unwrap();
    let chunk =
        f.store.list(&Filter { source: Some("/file".to_owned()), ..Filter::default() }, 1, 0).unwrap();
    f.store.touch(&[ids[0], ids[2], ids[3], chunk[0].id], now_ms() + 5);
    f.store.touch(&[ids[0]], now_ms() + 9);
    f.store.flush().unwrap();
    let found = |layer| f.store.promotion_candidates(Some(space), layer, false, RecordId(0), 9).unwrap();
    assert_eq!((found(Layer::Interact), found(Layer::Assets)), (Vec::new(), Vec::new()));
    let insights = found(Layer::Insights);
    let shown: Vec<_> =
        insights.iter().map(|it| (it.id, it.uses, it.project.as_str(), it.vector.is_some())).collect();
    assert_eq!(shown, [(ids[0], 2.0, "", true), (ids[3], 1.0, "p", false)]);
    assert_eq!(
        f.store.promotion_candidates(Some(space), Layer::Insights, true, ids[0], 9).unwrap(),
        insights[1..]
    );
    assert_eq!(f.store.as_candidates(Some(space), &[ids[1], ids[2], chunk[0].id]).unwrap().len(), 1);
    // What was used last comes first, of whatever layer and file, where it has a vector.
    let used = f.store.recently_used(space, "", 9).unwrap();
    assert_eq!(used, [1.0, 2.0].map(f16::from_f32));
    assert_eq!(f.store.recently_used(space, "p", 9).unwrap(), []);

    let stays: Vec<Stay> = insights
        .iter()
        .map(|it| Stay { id: it.id, access_count: it.access_count, score: 0.5, weighed: it.id == ids[0] })
        .collect();
    f.store.apply_promotions(note_of(1), Vec::new(), stays).unwrap();
    assert_eq!(found(Layer::Insights).len(), 1);
    assert_eq!(record(&f, ids[0]).score, 0.5);
    assert_eq!(f.store.promotion_state().unwrap(), Some((1, [1; 32])));
}

#[test]
fn what_says_the_same_in_the_next_layer_takes_over() {
    let f = Fixture::new();
    let space = f.space(2);
    let tagged = |layer, tags: &[&str], importance, expires_ms| NewRecord {
        tags: strings(tags),
        importance,
        expires_ms,
        ..embedded("same", layer)
    };
    let now = now_ms();
    let added = f
        .store
        .add(
            Some(space),
            vec![
                tagged(Layer::Interact, &["a", "b"], 0.9, Some(now + 50_000)),
                tagged(Layer::Insights, &["b", "c"], 0.4, Some(now + 60_000)),
            ],
        )
        .unwrap();
    let (one, other) = (added[0].id, added[1].id);
    f.store.touch(&[one, one, one, other], now + 7);
    f.store.touch(&[one], now + 9);
    f.store.flush().unwrap();
    let before = f.store.dump();
    let moved = apply(&f, vec![a_move(&f, one, Some(now + 70_000))]).1;
    assert_eq!(moved, [Moved::Merged { into: added[1].ulid.clone() }]);
    let left = record(&f, other);
    assert_eq!((left.access_count, left.last_access_ms, left.importance), (5, now + 9, 0.9));
    assert_eq!((left.tags, left.expires_ms), (strings(&["a", "b", "c"]), Some(now + 70_000)));
    assert_eq!(record(&f, one).superseded_by, Some(added[1].ulid.clone()));
    let true_now = Filter { valid_at_ms: Some(now_ms()), ..Filter::default() };
    assert_eq!(f.store.matching_ids(&true_now).unwrap().iter().collect::<Vec<_>>(), [other.index_id()]);
    // It took over two of four uses, and was used once itself.
    assert_eq!(f.store.as_candidates(Some(space), &[one, other]).unwrap()[0].uses, 3.0);
    assert_eq!(f.store.promotion_history(1).unwrap()[0].moves[0].merged_into, Some(added[1].ulid.clone()));

    f.store.undo_promotions(Some(1), now).unwrap().unwrap();
    assert_eq!(f.store.dump(), before);

    // What happened to it since stays.
    apply(&f, vec![a_move(&f, one, Some(now + 70_000))]);
    f.store.touch(&[other, other], now + 20);
    f.store.flush().unwrap();
    f.store.undo_promotions(None, now).unwrap().unwrap();
    let left = record(&f, other);
    assert_eq!((left.access_count, left.last_access_ms, left.importance), (3, now + 20, 0.4));
    assert_eq!(left.tags, strings(&["b", "c"]));

    // Once it has moved on itself, it is not taken apart.
    apply(&f, vec![a_move(&f, one, Some(now + 70_000))]);
    apply(&f, vec![a_move(&f, other, None)]);
    let undone = f.store.undo_promotions(Some(3), now).unwrap().unwrap();
    assert!(undone.skipped[0].reason.contains("has moved or changed since"), "{undone:?}");
    // But the other way round all is as it was.
    assert_eq!(f.store.undo_promotions(None, now).unwrap().unwrap().cycle, 4);
    assert_eq!(f.store.undo_promotions(None, now).unwrap().unwrap().undone, [added[0].ulid.clone()]);
    assert_eq!(record(&f, one).superseded_by, None);
    // What was merged and is stored again stands for itself.
    apply(&f, vec![a_move(&f, one, Some(now + 70_000))]);
    f.store.add(Some(space), vec![embedded("same", Layer::Interact)]).unwrap();
    assert_eq!(record(&f, one).superseded_by, None);
    assert!(skipped(&f, now).contains("not superseded by"));
}

#[test]
fn what_an_import_says_of_uses_outlives_an_undo() {
    let f = Fixture::new();
    let space = f.space(2);
    let added =
        f.store.add(Some(space), vec![embedded("same", Layer::Interact), embedded("same", Layer::Insights)]);
    let (one, other) = added.map(|added| (added[0].id, added[1].id)).unwrap();
    f.store.touch(&[one, one, other], now_ms());
    f.store.flush().unwrap();
    apply(&f, vec![a_move(&f, one, None)]);
    // An export from before the merge is taken in: what was merged is not counted, but its accesses are.
    let line = PortableRecord {
        id: Some(record(&f, other).ulid),
        moved_count: Some(1),
        carried: Some(0.5),
        text: "same".to_owned(),
        ..PortableRecord::default()
    };
    let defaults = ImportDefaults { layer: Layer::Insights, expires_ms: [None; 3] };
    f.store.import(space, vec![ImportRecord::new(line, &defaults, 2).unwrap()]).unwrap();
    assert_eq!(record(&f, other).access_count, 3);
    let undone = f.store.undo_promotions(None, now_ms()).unwrap().unwrap();
    assert_eq!((undone.undone.len(), undone.skipped), (1, Vec::new()));
    // Below zero, no cycle could read them.
    let left = record(&f, other);
    assert_eq!((left.access_count, left.arrival), (1, Arrival::default()));
}

#[test]
fn what_takes_over_is_true_whenever_one_of_the_two_was() {
    let f = Fixture::new();
    let space = Some(f.space(2));
    let now = now_ms();
    let dated = |layer, valid_from_ms, valid_to_ms| NewRecord {
        valid_from_ms,
        valid_to_ms,
        ..embedded("same", layer)
    };
    let is = |id| (record(&f, id).valid_from_ms, record(&f, id).valid_to_ms);
    let records = vec![
        dated(Layer::Interact, Some(now - 50), Some(now + 90_000)),
        dated(Layer::Insights, Some(now - 70), Some(now - 60)),
    ];
    let added = f.store.add(space, records).unwrap();
    let (one, other) = (added[0].id, added[1].id);
    let before = f.store.dump();
    apply(&f, vec![a_move(&f, one, None)]);
    assert_eq!(is(other), (Some(now - 70), Some(now + 90_000)));
    // Until the other one was, so that never are both.
    assert_eq!(is(one), (Some(now - 50), Some(now - 70)));
    f.store.undo_promotions(None, now).unwrap().unwrap();
    assert_eq!(f.store.dump(), before);

    // What has no end has none in the other, and an end that was set since stays.
    f.store.add(space, vec![dated(Layer::Interact, Some(now - 50), None)]).unwrap();
    apply(&f, vec![a_move(&f, one, None)]);
    assert_eq!(is(other), (Some(now - 70), None));
    f.store.add(space, vec![dated(Layer::Insights, None, Some(now + 1_000_000))]).unwrap();
    f.store.undo_promotions(None, now).unwrap().unwrap();
    assert_eq!((is(one).1, is(other).1), (None, Some(now + 1_000_000)));
}

#[test]
fn who_leaves_a_layer_makes_room_and_who_was_merged_leads_on() {
    let f = Fixture::new();
    let space = f.space(2);
    let add = |layer| f.store.add(Some(space), vec![embedded("same", layer)]).unwrap().remove(0);
    let (low, middle) = (add(Layer::Interact), add(Layer::Insights));
    let moves = vec![a_move(&f, middle.id, None), a_move(&f, low.id, None)];
    let before = f.store.dump();
    assert_eq!(apply(&f, moves).1, [Moved::Moved, Moved::Moved]);
    f.store.undo_promotions(None, now_ms()).unwrap().unwrap();
    assert_eq!(f.store.dump(), before);

    let top = add(Layer::Assets);
    assert_eq!(apply(&f, vec![a_move(&f, middle.id, None)]).1, [Moved::Merged { into: top.ulid.clone() }]);
    f.store.undo_promotions(None, now_ms()).unwrap().unwrap();
    // Both at once: the other one has been merged by then.
    let moves = vec![a_move(&f, middle.id, None), a_move(&f, low.id, None)];
    let into_top = Moved::Merged { into: top.ulid.clone() };
    assert_eq!(apply(&f, moves).1, [into_top.clone(), into_top]);
    f.store.undo_promotions(None, now_ms()).unwrap().unwrap();
    apply(&f, vec![a_move(&f, middle.id, None)]);
    // The merged one is still in insights.
    assert_eq!(apply(&f, vec![a_move(&f, low.id, None)]).1, [Moved::Merged { into: top.ulid.clone() }]);
    f.store.undo_promotions(None, now_ms()).unwrap().unwrap();

    // One that something else superseded is not revived.
    let newer = f.store.add(Some(space), vec![embedded("newer", Layer::Insights)]).unwrap()[0].id;
    let (id, by) = (middle.id, newer);
    f.store
        .write(move |db| Ok(db.execute("UPDATE records SET superseded_by = ?2 WHERE id = ?1", (id, by))?))
        .unwrap();
    assert_eq!(apply(&f, vec![a_move(&f, low.id, None)]), (None, vec![Moved::Outdated]));
}

#[test]
fn what_has_changed_is_not_moved_and_not_taken_back() {
    let f = Fixture::new();
    let space = f.space(2);
    let now = now_ms();
    let new = |text: &str| NewRecord { expires_ms: Some(now + 50_000), ..embedded(text, Layer::Interact) };
    let one = f.store.add(Some(space), vec![new("a")]).unwrap().remove(0);
    let planned = a_move(&f, one.id, Some(now + 90_000));
    f.store.touch(&[one.id], now);
    f.store.flush().unwrap();
    assert_eq!(apply(&f, vec![planned.clone()]), (None, vec![Moved::Changed]));
    let again = || apply(&f, vec![a_move(&f, one.id, Some(now + 90_000))]).1;
    assert_eq!(again(), [Moved::Moved]);
    assert_eq!(apply(&f, vec![planned]).1, [Moved::Changed]);

    assert!(skipped(&f, now + 50_000).contains("its time in interact is over"));
    f.store.add(Some(space), vec![new("a")]).unwrap();
    assert!(skipped(&f, now).contains("the same was stored in interact since"));
    let copy = f.store.list(&Filter { layers: vec![Layer::Interact], ..Filter::default() }, 1, 0).unwrap();
    f.store.forget(&[copy[0].id]).unwrap();
    // Uses since then do not matter, and stay counted.
    f.store.touch(&[one.id], now + 5);
    f.store.flush().unwrap();
    assert_eq!(f.store.undo_promotions(None, now).unwrap().unwrap().undone.len(), 1);
    assert_eq!(record(&f, one.id).access_count, 2);

    again();
    f.store
        .add(
            Some(space),
            vec![NewRecord { expires_ms: Some(now + 95_000), ..embedded("a", Layer::Insights) }],
        )
        .unwrap();
    assert!(skipped(&f, now).contains("stored again since"));
    apply(&f, vec![a_move(&f, one.id, None)]);
    assert!(
        f.store.undo_promotions(Some(2), now).unwrap().unwrap().skipped[0].reason.contains("in assets now")
    );
    f.store.forget(&[one.id]).unwrap();
    assert!(skipped(&f, now).contains("not there any more"));
    assert_eq!(f.store.undo_promotions(Some(77), now).unwrap(), None);
}

#[test]
fn old_moves_are_forgotten_and_their_numbers_not_used_again() {
    let f = Fixture::new();
    let add =
        |text| f.store.add(None, vec![NewRecord { layer: Layer::Interact, ..note(text) }]).unwrap()[0].id;
    for (text, now) in [("a", 100), ("b", 200), ("c", 300)] {
        let moves = vec![a_move(&f, add(text), None)];
        let note = CycleNote { keep_from_ms: now - 100, ..note_of(now) };
        f.store.apply_promotions(note, moves, Vec::new()).unwrap();
    }
    let cycles = || f.store.promotion_history(9).unwrap().iter().map(|it| it.cycle).collect::<Vec<_>>();
    assert_eq!(cycles(), [3, 2]);
    f.store
        .apply_promotions(CycleNote { keep_from_ms: 900, ..note_of(900) }, Vec::new(), Vec::new())
        .unwrap();
    assert_eq!(cycles(), [0i64; 0]);
    f.store.apply_promotions(note_of(950), vec![a_move(&f, add("d"), None)], Vec::new()).unwrap();
    assert_eq!(cycles(), [4]);
}
