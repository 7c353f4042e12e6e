//! The contract of an index, and what an index over `hnsw_rs` in particular could get wrong.
use magray_index_hnsw::{Hnsw, Options, Preset};
use magray_plugin_api::{
    CreateVectorIndex, ErrorCode, Hit, IdFilter, IndexSpec, Metric, Result, SearchParams, VectorIndex,
};
use magray_plugin_testkit::{Cx, HOST};
use std::{collections::HashSet, path::Path, thread};

const CX: Cx = Cx::free();
const LINE: IndexSpec = IndexSpec { dim: 1, metric: Metric::L2 };

/// Walks the graph always.
fn walking() -> Options {
    Options { ef_search: Some(8), exact_below: 0, ..Options::default() }
}

/// Vectors 0, 1, 2, ... on a line, under their own numbers.
fn line(options: Options, n: u64) -> Hnsw {
    let index = Hnsw::create(options, LINE, HOST).expect("valid options");
    place(&index, &(0..n).collect::<Vec<_>>());
    index
}

fn place(index: &Hnsw, ids: &[u64]) {
    let vectors: Vec<_> = ids.iter().map(|&id| id as f32).collect();
    index.upsert(&CX, ids, &vectors).expect("valid vectors");
}

fn ids(index: &Hnsw, query: f32, k: usize, ef: u32, filter: Option<IdFilter<'_>>) -> Vec<u64> {
    let mut out = vec![Hit::NONE; k];
    index.search(&CX, &[query], k, SearchParams::with_ef(ef), filter, &mut out).expect("a valid query");
    out.iter().take_while(|hit| !hit.is_none()).map(|hit| hit.id).collect()
}

/// With the preset that builds quickest: its graph is the worst of them.
#[test]
fn the_graph_alone_keeps_the_contract() {
    let options = || Options { preset: Preset::Realtime, exact_below: 0, ..Options::default() };
    let make = |spec: IndexSpec| -> Result<Box<dyn VectorIndex>> {
        Ok(Box::new(Hnsw::create(options(), spec, HOST)?))
    };
    let open = |spec: IndexSpec, dir: &Path| -> Result<Box<dyn VectorIndex>> {
        Ok(Box::new(Hnsw::open(options(), spec, dir, HOST)?))
    };
    magray_plugin_testkit::index(&make, Some(&open)).assert();
}

#[test]
fn writing_what_is_there_changes_nothing() {
    let index = line(walking(), 100);
    place(&index, &(0..100).collect::<Vec<_>>());
    assert_eq!((index.stats().live, index.stats().dead), (100, 0));
    index.remove(&CX, &[5]).unwrap();
    assert_eq!((index.stats().live, index.stats().dead), (99, 1));
    place(&index, &[5]);
    assert_eq!((index.stats().live, index.stats().dead), (100, 0));
    assert_eq!(ids(&index, 5.0, 1, 0, None), [5]);
}

#[test]
fn a_breadth_beyond_reason_is_cut() {
    let index = line(walking(), 500);
    assert_eq!(ids(&index, 250.2, 3, u32::MAX, None), [250, 251, 249]);
    assert_eq!(ids(&index, 250.2, 1, 1, None), [250]);
    assert_eq!(ids(&index, 0.0, 600, 0, None).len(), 500);
}

#[test]
fn a_filter_that_refuses_the_entry_point_is_no_panic() {
    let index = line(walking(), 500);
    for entry in 0..500u64 {
        let allowed: Vec<_> = (0..500).filter(|&id| id != entry && id % 3 == 0).collect();
        let found = ids(&index, entry as f32, 1, 1, Some(IdFilter::sorted(&allowed)));
        assert_eq!(found.len(), 1);
        assert!(allowed.contains(&found[0]), "{found:?} for {entry}");
    }
}

#[test]
fn a_selective_filter_is_answered_exactly() {
    let index = line(Options { exact_below: 1, ef_search: Some(2), ..Options::default() }, 1000);
    for share in [2, 7, 50] {
        let allowed: Vec<_> = (0..1000).step_by(share).collect();
        let found = ids(&index, 0.1, 10, 0, Some(IdFilter::sorted(&allowed)));
        assert_eq!(found, allowed[..10]);
    }
}

#[test]
fn a_filter_of_unknown_ids_finds_the_few_that_are_there() {
    let index = line(walking(), 500);
    let mut words = vec![u64::MAX; 1000];
    words[..8].fill(0);
    words[3] = 1 << 5;
    assert_eq!(ids(&index, 0.0, 10, 0, Some(IdFilter::bitmap(0, &words))), [3 * 64 + 5]);
}

#[test]
fn many_equal_vectors_cut_nothing_off() {
    let index = Hnsw::create(walking(), LINE, HOST).unwrap();
    let copies: Vec<_> = (1000..1400).collect();
    index.upsert(&CX, &copies, &[50.0; 400]).unwrap();
    place(&index, &(0..100).collect::<Vec<_>>());
    assert_eq!(ids(&index, 50.0, 450, 0, None).len(), 450);
    for id in [0, 20, 99] {
        assert_eq!(ids(&index, id as f32, 1, 0, None), [id]);
    }
}

#[test]
fn the_dead_are_cleared_away() {
    let index = line(walking(), 300);
    for shift in 1..5 {
        let moved: Vec<_> = (0..300).map(|id| id as f32 + shift as f32 / 8.0).collect();
        index.upsert(&CX, &(0..300).collect::<Vec<_>>(), &moved).unwrap();
        let stats = index.stats();
        assert_eq!(stats.live, 300);
        assert!(stats.dead <= 600, "{} dead", stats.dead);
    }
    index.remove(&CX, &(0..299).collect::<Vec<_>>()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    index.save(&CX, dir.path()).unwrap();
    assert_eq!((index.stats().live, index.stats().dead), (1, 0));
    assert_eq!(ids(&index, 0.0, 5, 0, None), [299]);
}

#[test]
fn an_index_whose_every_vector_was_removed_is_saved() {
    let index = line(walking(), 10);
    index.remove(&CX, &(0..10).collect::<Vec<_>>()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    index.save(&CX, dir.path()).unwrap();
    let opened = Hnsw::open(walking(), LINE, dir.path(), HOST).unwrap();
    assert!(ids(&opened, 0.0, 5, 0, None).is_empty());
    place(&opened, &[7]);
    assert_eq!(ids(&opened, 0.0, 5, 0, None), [7]);
}

#[test]
fn an_opened_index_outlives_its_folder_and_grows() {
    let dir = tempfile::tempdir().unwrap();
    line(walking(), 2000).save(&CX, dir.path()).unwrap();
    let index = Hnsw::open(walking(), LINE, dir.path(), HOST).unwrap();
    drop(dir);
    let first: serde_json::Value = serde_json::from_str(&index.describe()).unwrap();
    place(&index, &(2000..3000).collect::<Vec<_>>());
    for id in (0..3000).step_by(97) {
        assert_eq!(ids(&index, id as f32, 1, 16, None), [id]);
    }
    // The loader of hnsw_rs squares the scale of the level distribution: where it is not
    // corrected, the new rows reach upper layers ten times less often than the old ones.
    let then: serde_json::Value = serde_json::from_str(&index.describe()).unwrap();
    let upper = |described: &serde_json::Value| described["levels"][1].as_u64().unwrap();
    assert!(upper(&then) > upper(&first) * 5 / 4, "{first} then {then}");
}

#[test]
fn readers_beside_a_writer_see_each_id_once_and_no_id_that_was_never_there() {
    let index = line(walking(), 400);
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for shift in 1..4 {
                let moved: Vec<_> = (0..400).map(|id| id as f32 + shift as f32 / 8.0).collect();
                index.upsert(&CX, &(0..400).collect::<Vec<_>>(), &moved).expect("valid vectors");
            }
        });
        while !writer.is_finished() {
            let found = ids(&index, 200.0, 50, 0, None);
            assert_eq!(found.len(), 50);
            assert_eq!(found.iter().collect::<HashSet<_>>().len(), 50);
            assert!(found.iter().all(|&id| id < 400));
        }
    });
    assert_eq!(index.stats().live, 400);
}

#[test]
fn a_batch_is_answered_in_its_order() {
    let index = line(walking(), 300);
    let queries: Vec<_> = (0..50).map(|at| at as f32 * 6.0).collect();
    let mut out = vec![Hit::NONE; 100];
    index.search(&CX, &queries, 2, SearchParams::with_ef(32), None, &mut out).unwrap();
    for (at, row) in out.chunks(2).enumerate() {
        assert_eq!(row[0], Hit::new(at as u64 * 6, 0.0));
    }
}

#[test]
fn a_dot_product_is_refused_with_a_remedy() {
    let error =
        Hnsw::create(Options::default(), IndexSpec { dim: 2, metric: Metric::Dot }, HOST).unwrap_err();
    assert_eq!(error.code(), ErrorCode::UNSUPPORTED);
    assert!(error.message().contains("flat"));
}

#[test]
fn the_breadth_can_be_tuned_and_nothing_else() {
    let index = line(walking(), 1);
    index.tune("ef_search", " 77 ").unwrap();
    assert!(index.describe().contains(r#""ef_search":77"#));
    for (name, value, code) in [
        ("ef_search", "0", ErrorCode::INVALID_CONFIG),
        ("ef_search", "many", ErrorCode::INVALID_CONFIG),
        ("max_connections", "8", ErrorCode::UNSUPPORTED),
    ] {
        assert_eq!(index.tune(name, value).unwrap_err().code(), code);
    }
}
