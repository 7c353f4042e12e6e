//! How well searches find what is near, as it is measured.
use super::*;

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
fn a_worker_checks_a_search_now_and_then() {
    let mut world = World::new("flat", small());
    world.add(40);
    world.sync(Extent::All);
    let search = |world: &World| {
        let query = vector(77);
        world.indexes.search(&Cx::free(), LAYER, &query, 10, SearchParams::default(), None).unwrap()
    };
    search(&world);
    let worker = world.indexes.start_worker().unwrap();
    // Without one, nothing is kept to be checked; the next search is.
    search(&world);
    while world.stats().live.checks == 0 {
        std::thread::yield_now();
    }
    assert_eq!(world.stats().live.recall, 1.0);
    drop(worker);
}
