//! What sealing and merging cost, and who sees what meanwhile.
use super::*;
use std::{
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

/// Bytes of all files below a folder.
fn bytes_below(dir: &Path) -> u64 {
    dir.read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() { bytes_below(&entry.path()) } else { metadata.len() }
        })
        .sum()
}

#[test]
fn churn_leaves_at_most_twice_what_lives_on_disk() {
    let sync =
        SyncOptions { seal_after: 100, batch_size: 100, merge_factor: 4, partition_max: 4000, ..small() };
    let mut world = World::new("flat", sync);
    world.add(4000);
    world.sync(DUE);
    for round in 0..40 {
        // Old ones go, some are changed, new ones come; as the command line does, without ever compacting.
        world.forget(round * 7, 60);
        for nth in 0..60 {
            world.update(round * 131 + nth * 17);
        }
        world.add(50);
        let report = world.sync(Extent::Due { step_rows: 20_000 });
        assert!(report.synced);
        let live = world.model.len() as u64 * (4 * DIM as u64 + 16);
        let found = bytes_below(&world.dir());
        assert!(found <= 2 * live + (8 << 10), "{found} bytes for {live} in round {round}");
    }
    world.check();
    let stats = world.stats();
    assert!(stats.spared().unwrap() >= 0.95, "{stats:?}");
    assert!(stats.segments <= 12, "{stats:?}");
}

#[test]
fn nothing_is_sealed_where_there_is_no_room() {
    let mut world = World::new("flat", SyncOptions { min_free_bytes: 1 << 60, ..small() });
    world.add(100);
    for extent in [DUE, Extent::All, Extent::Rebuild] {
        let error = world.indexes.sync(&Cx::free(), Some(LAYER), extent).unwrap_err();
        assert!(error.to_string().contains("too little room"), "{error}");
    }
    assert_eq!(bytes_below(&world.dir()), 0);
    world.check();
    assert_eq!(world.stats().tail, 100);
    // What was sealed before answers too.
    world.sync.min_free_bytes = 0;
    world.reopen();
    world.sync(Extent::All);
    world.sync.min_free_bytes = 1 << 60;
    world.reopen();
    world.add(30);
    world.indexes.sync(&Cx::free(), Some(LAYER), Extent::All).unwrap_err();
    world.check();
}

#[test]
fn sealing_writes_as_much_as_has_changed() {
    let sync =
        SyncOptions { seal_after: 1, batch_size: 10, merge_factor: 8, partition_max: 100_000, ..small() };
    let mut world = World::new("flat", sync);
    world.add(3000);
    assert_eq!(world.sync(DUE).rows_written, 3000);
    world.add(10);
    world.update(5);
    let report = world.sync(DUE);
    assert_eq!((report.changes, report.rows_written, report.segments), (11, 11, 2));
    let nothing = world.sync(Extent::All);
    assert_eq!((nothing.synced, nothing.rows_written), (false, 0));
    // A partition that is full is not touched again.
    let sync = SyncOptions { partition_max: 1000, ..world.sync.clone() };
    world.sync = sync;
    world.reopen();
    world.sync(Extent::Compact);
    assert_eq!(world.stats().segments, 4);
    world.check();
}

#[test]
fn what_is_committed_reaches_an_open_index_without_the_change_log() {
    let mut world = World::new("flat", small());
    world.add(20);
    world.check();
    // The log is gone, so only what is handed over can be seen.
    world.add(3);
    world.update(7);
    world.forget(2, 2);
    let head = world.store.head(world.space, LAYER).unwrap();
    world.store.prune_changes(world.space, LAYER, head).unwrap();
    world.check();
    // Another store's writes come by the log, and what follows them too.
    let (other, _) = world.other();
    let seed = 42;
    let record = NewRecord { vector: Some(vector(seed)), ..NewRecord::new(LAYER, "elsewhere") };
    let added = other.add(Some(world.space), vec![record]).unwrap();
    world.model.insert(added[0].id.index_id(), vector(seed));
    world.add(2);
    world.check();
}

#[test]
fn a_reader_of_an_old_snapshot_stays_right() {
    let mut world = World::new("flat", small());
    world.add(100);
    world.sync(DUE);
    let (_store, reader) = world.other();
    world.check_with(&reader);
    // All that it has open is removed and the log is cut, again and again.
    for _ in 0..4 {
        world.update(3);
        world.forget(50, 5);
        world.add(15);
        world.sync(Extent::Rebuild);
        world.check_with(&reader);
    }
}

#[test]
fn searches_beside_writers_and_sealing_see_whole_states() {
    let mut world = World::new("flat", SyncOptions { seal_after: 30, ..small() });
    world.add(200);
    world.check();
    let stable: Vec<u64> = world.model.keys().copied().collect();
    let (stop, searches) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (world, stable, stop, searches) = (&world, &stable, &stop, &searches);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let id = stable
                        [(searches.fetch_add(1, Ordering::Relaxed) as usize * 7 + thread) % stable.len()];
                    let query = &world.model[&id];
                    let found = world
                        .indexes
                        .search(&Cx::free(), LAYER, query, 3, SearchParams::default(), None)
                        .unwrap();
                    assert!(found.iter().any(|hit| hit.id == id && hit.score > 0.999), "{id}: {found:?}");
                }
            });
        }
        // Changes of others, so that every search finds the rows above in whatever segment they are.
        for round in 0..60u64 {
            let record = |i: u64| {
                let seed = 10_000 + round * 20 + i;
                NewRecord { vector: Some(vector(seed)), ..NewRecord::new(LAYER, seed.to_string()) }
            };
            let added = world.store.add(Some(world.space), (0..20).map(record).collect()).unwrap();
            let gone: Vec<_> = added.iter().map(|added| added.id).take(10).collect();
            world.store.forget(&gone).unwrap();
            if round % 5 == 0 {
                world.sync(Extent::All);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(searches.load(Ordering::Relaxed) > 50);
    assert!(world.stats().syncs > 5, "{:?}", world.stats());
    world.verify();
}

#[test]
fn what_is_due_by_number_or_by_age_is_sealed() {
    for (sync, is_due) in [
        (small(), true),
        (SyncOptions { seal_after: 1000, max_age: Duration::ZERO, ..small() }, true),
        (SyncOptions { seal_after: 1000, ..small() }, false),
    ] {
        let mut world = World::new("flat", sync);
        world.check();
        world.add(25);
        assert_eq!(world.sync(DUE).synced, is_due);
        world.check();
        assert_eq!(world.stats().sealed, if is_due { 25 } else { 0 });
    }
}

#[test]
fn one_process_seals_and_another_leaves_it_to_that() {
    let mut world = World::new("flat", small());
    world.add(50);
    fs::create_dir_all(world.dir()).unwrap();
    let lock = fs::File::create(world.dir().join("lock")).unwrap();
    lock.lock().unwrap();
    let report = world.sync(Extent::All);
    assert!(report.busy && !report.synced);
    drop(lock);
    assert!(world.sync(Extent::All).synced);
}
