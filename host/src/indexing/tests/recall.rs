//! How well searches find what is near, as it is measured.
use super::*;
use std::fs;

#[test]
fn a_graph_is_searched_as_broadly_as_its_recall_needs() {
    let sync = SyncOptions { partition_max: 20_000, recall_target: 0.99, ..small() };
    let mut world = World::new("hnsw", sync);
    world.add(4_000);
    world.sync(Extent::All);
    assert_eq!(world.stats().recall, None, "so few are not measured");
    world.add(300);
    world.sync(Extent::Compact);
    let measured = world.stats().recall.unwrap();
    assert!((0.99..=1.0).contains(&measured), "{measured}");
    // Eight nearly orthogonal random numbers are hard for a graph: of an ef of 10 the recall is far below.
    let (mut right, mut wanted) = (0, 0);
    for seed in 0..50 {
        let query = vector(seed + 5_000_000);
        let hits =
            world.indexes.search(&Cx::free(), LAYER, &query, 10, SearchParams::with_ef(10), None).unwrap();
        let mut exact: Vec<f64> = world.model.values().map(|vector| cosine(&query, vector)).collect();
        exact.sort_by(|a, b| b.total_cmp(a));
        right += hits.iter().filter(|hit| f64::from(hit.score) >= exact[9] - 1e-4).count();
        wanted += 10;
    }
    assert!(right as f64 >= 0.95 * f64::from(wanted), "{right} of {wanted}");
}

#[test]
fn a_search_that_is_wanted_is_checked_whichever_process_it_was_in() {
    let mut world = World::new("flat", small());
    world.add(40);
    world.sync(Extent::All);
    let search = |world: &World| {
        // Its own look at what is wanted, as of a process that has just begun.
        let (_store, indexes) = world.other();
        indexes.search(&Cx::free(), LAYER, &vector(77), 10, SearchParams::default(), None).unwrap();
    };
    let recheck = |world: &World| world.indexes.recheck(&Cx::free()).unwrap();
    search(&world);
    // Nobody has wanted one before.
    assert_eq!((recheck(&world), recheck(&world)), (0, 0));
    search(&world);
    search(&world);
    assert_eq!((recheck(&world), recheck(&world)), (1, 0));
    let live = |world: &World| world.other().1.stats().unwrap()[1].live;
    assert_eq!(
        (world.stats().live, live(&world)),
        (LiveRecall { checks: 1, recall: 1.0 }, world.stats().live)
    );

    // What was found before the last change says nothing.
    search(&world);
    world.add(1);
    assert_eq!(recheck(&world), 0);
    search(&world);
    assert_eq!((recheck(&world), live(&world).checks), (1, 2));

    // Neither does what is damaged, and the next one counts again.
    for damage in [&b"{"[..], b"\xff\x00", b"00\n{}"] {
        search(&world);
        fs::write(world.dir().join("recheck"), damage).unwrap();
        assert_eq!(recheck(&world), 0);
    }
    search(&world);
    assert_eq!((recheck(&world), live(&world).checks), (1, 3));
    fs::write(world.dir().join("recall.json"), "{").unwrap();
    assert_eq!(live(&world), LiveRecall::default());
}
