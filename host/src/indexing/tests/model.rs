//! Random operations, in whatever order, by whatever process.
use super::*;
use proptest::{collection::vec, prelude::*};

#[derive(Clone, Debug)]
enum Op {
    Add(u64),
    Update(u64),
    Forget(u64, usize),
    Search,
    SearchElsewhere,
    Seal,
    SealElsewhere,
    SealAll,
    Compact,
    Rebuild,
    Reopen,
    Scrub(u64),
}

fn ops() -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        5 => (1u64..30).prop_map(Op::Add),
        4 => any::<u64>().prop_map(Op::Update),
        3 => (any::<u64>(), 1usize..20).prop_map(|(first, count)| Op::Forget(first, count)),
        4 => Just(Op::Search),
        2 => Just(Op::SearchElsewhere),
        4 => Just(Op::Seal),
        2 => Just(Op::SealElsewhere),
        1 => Just(Op::SealAll),
        1 => Just(Op::Compact),
        1 => Just(Op::Rebuild),
        2 => Just(Op::Reopen),
        1 => any::<u64>().prop_map(Op::Scrub),
    ];
    vec(op, 1..50)
}

fn run(backend: &'static str, ops: Vec<Op>) {
    let mut world = World::new(backend, small());
    // One that stays open while others seal.
    let (_store, reader) = world.other();
    for op in ops {
        match op {
            Op::Add(count) => world.add(count),
            Op::Update(nth) => world.update(nth),
            Op::Forget(first, count) => world.forget(first, count),
            Op::Search => world.check(),
            Op::SearchElsewhere => world.check_with(&reader),
            Op::Seal => drop(world.sync(DUE)),
            Op::SealElsewhere => drop(world.other().1.sync(&Cx::free(), None, DUE).unwrap()),
            Op::SealAll => drop(world.sync(Extent::All)),
            Op::Compact => {
                world.sync(Extent::Compact);
                let stats = world.stats();
                assert_eq!((stats.dead, stats.tail), (0, 0));
                assert_eq!(stats.segments as u64, stats.sealed.div_ceil(world.sync.partition_max));
            }
            Op::Rebuild => drop(world.sync(Extent::Rebuild)),
            Op::Reopen => world.reopen(),
            Op::Scrub(pick) => {
                world.indexes.scrub(pick);
            }
        }
    }
    world.check();
    world.check_with(&reader);
    world.verify();
    world.sync(Extent::All);
    world.reopen();
    world.check();
    world.verify();
    let stats = world.stats();
    assert_eq!((stats.sealed, stats.tail), (world.model.len() as u64, 0));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]

    #[test]
    fn a_flat_index_is_what_the_store_says(ops in ops()) {
        run("flat", ops);
    }

    #[test]
    fn a_graph_is_what_the_store_says(ops in ops()) {
        run("hnsw", ops);
    }
}
