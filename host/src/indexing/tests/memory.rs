//! What is held open, and that nothing is lost by closing it.
use super::*;

#[test]
fn layers_that_nobody_searches_are_closed_and_opened_again_by_a_search() {
    for backend in ["flat", "hnsw"] {
        let mut world = World::new(backend, small());
        world.add(70);
        world.sync(Extent::All);
        world.add(5);
        assert_eq!(world.indexes.rows_held(), 0);
        world.check();
        assert_eq!(world.indexes.rows_held(), 75);
        let memory = world.indexes.memory().into_iter().find(|memory| memory.layer == LAYER).unwrap();
        assert_eq!((memory.rows, memory.delta > 0), (75, true));
        assert!(memory.segments.mapped > 0, "{memory:?}");
        // What fits stays, and so does what was searched since the last look.
        world.indexes.keep_to(75, false);
        world.check();
        world.indexes.keep_to(74, true);
        assert_eq!(world.indexes.rows_held(), 75);
        world.indexes.keep_to(74, true);
        assert_eq!(world.indexes.rows_held(), 0);
        world.add(3);
        world.check();
        assert_eq!(world.indexes.rows_held(), 78);
        world.indexes.close_all();
        assert_eq!(world.indexes.rows_held(), 0);
        world.indexes.open_all(&Cx::free()).unwrap();
        assert_eq!(world.indexes.rows_held(), 78);
        world.check();
    }
}
