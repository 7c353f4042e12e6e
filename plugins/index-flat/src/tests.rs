use super::*;
use magray_plugin_testkit::{self as testkit, Cx, HOST, Oracle};
use proptest::prelude::*;
use tempfile::TempDir;

fn flat(spec: IndexSpec) -> Flat {
    Flat::create(Options::default(), spec, HOST).unwrap()
}

#[test]
fn conforms() {
    let make = |spec| -> Result<Box<dyn VectorIndex>> { Ok(Box::new(flat(spec))) };
    let open = |spec, dir: &Path| -> Result<Box<dyn VectorIndex>> {
        Ok(Box::new(Flat::open(Options::default(), spec, dir, HOST)?))
    };
    testkit::index(&make, Some(&open)).assert();
}

#[derive(Clone, Debug)]
enum Step {
    Upsert(Vec<(u64, Vec<f32>)>),
    Remove(Vec<u64>),
    Search { queries: Vec<Vec<f32>>, k: usize, filter: Option<Vec<u64>> },
    Reopen,
}

fn steps(dim: usize) -> impl Strategy<Value = Vec<Step>> {
    let id = || 0u64..60;
    let vector = move || {
        prop::collection::vec(-2.0f32..2.0, dim)
            .prop_filter("has a direction", |v| v.iter().any(|&v| v != 0.0))
    };
    let step = prop_oneof![
        3 => prop::collection::vec((id(), vector()), 0..30).prop_map(Step::Upsert),
        2 => prop::collection::vec(id(), 0..20).prop_map(Step::Remove),
        3 => (
            prop::collection::vec(vector(), 1..50),
            1usize..70,
            prop::option::of(prop::collection::btree_set(id(), 0..60)),
        )
            .prop_map(|(queries, k, filter)| Step::Search {
                queries,
                k,
                filter: filter.map(Vec::from_iter),
            }),
        1 => Just(Step::Reopen),
    ];
    prop::collection::vec(step, 1..20)
}

fn metric() -> impl Strategy<Value = Metric> {
    prop_oneof![Just(Metric::Cosine), Just(Metric::Dot), Just(Metric::L2)]
}

proptest! {
    #[test]
    fn agrees_with_the_oracle(
        metric in metric(),
        (dim, steps) in (1usize..20).prop_flat_map(|dim| (Just(dim), steps(dim)))
    ) {
        let spec = IndexSpec { dim, metric };
        let (mut index, mut oracle) = (flat(spec), Oracle::new(spec));
        for step in steps {
            match step {
                Step::Upsert(rows) => {
                    let (ids, vectors): (Vec<u64>, Vec<Vec<f32>>) = rows.into_iter().unzip();
                    index.upsert(&Cx::free(), &ids, &vectors.concat()).unwrap();
                    oracle.upsert(&ids, &vectors.concat());
                }
                Step::Remove(ids) => {
                    prop_assert_eq!(index.remove(&Cx::free(), &ids).unwrap(), oracle.remove(&ids));
                }
                Step::Search { queries, k, filter } => {
                    let filter = filter.as_deref().map(IdFilter::sorted);
                    let mut out = vec![Hit::new(7, 7.0); queries.len() * k];
                    let params = SearchParams::default();
                    index.search(&Cx::free(), &queries.concat(), k, params, filter, &mut out).unwrap();
                    for (query, hits) in queries.iter().zip(out.chunks_exact(k)) {
                        let mut expected = oracle.search(query, k, filter);
                        expected.resize(k, Hit::NONE);
                        for (hit, expected) in hits.iter().zip(&expected) {
                            // Ids of nearly equal scores may stand in another order.
                            let score = oracle.score(query, hit.id).unwrap_or(f32::NEG_INFINITY);
                            let near = |score: f32| score == expected.score || (score - expected.score).abs() < 1e-4;
                            prop_assert!(near(hit.score) && near(score), "{hits:?}, not {expected:?}");
                        }
                    }
                }
                Step::Reopen => {
                    let dir = TempDir::new().unwrap();
                    index.save(&Cx::free(), dir.path()).unwrap();
                    prop_assert_eq!(dir.path().read_dir().unwrap().count(), 1);
                    let bytes = dir.path().join("vectors.bin").metadata().unwrap().len();
                    prop_assert_eq!(index.stats().file_bytes, bytes);
                    index = Flat::open(Options::default(), spec, dir.path(), HOST).unwrap();
                    prop_assert_eq!(index.stats().dead, 0);
                }
            }
            prop_assert_eq!(index.stats().live, oracle.ids().len() as u64);
        }
    }
}

/// Numbers 0 to 1 in no visible order, `[n, dim]`.
fn numbers(n: usize, dim: usize) -> Vec<f32> {
    (0..n * dim).map(|i| (i as u32).wrapping_mul(0x9E37_79B1) as f32 / u32::MAX as f32).collect()
}

#[test]
fn threads_find_what_one_finds() {
    let spec = IndexSpec { dim: 64, metric: Metric::Dot };
    let index = flat(spec);
    index.upsert(&Cx::free(), &(0..30_000).collect::<Vec<_>>(), &numbers(30_000, 64)).unwrap();
    let queries = numbers(6, 64);
    let norms = [0.0; 6];
    let rows = index.read();
    let scan = Scan {
        rows: &rows,
        kernel: index.kernel,
        queries: &queries,
        norms: &norms,
        batch: 4,
        k: 20,
        filter: None,
    };
    assert_eq!(scan.run(&Cx::free(), 3).unwrap(), scan.run(&Cx::free(), 1).unwrap());
}

#[test]
fn a_mapped_index_takes_memory_only_for_what_is_written() {
    let spec = IndexSpec { dim: 64, metric: Metric::L2 };
    let index = flat(spec);
    let ids: Vec<u64> = (0..1000).collect();
    index.upsert(&Cx::free(), &ids, &numbers(1000, 64)).unwrap();
    let dir = TempDir::new().unwrap();
    index.save(&Cx::free(), dir.path()).unwrap();
    let opened = Flat::open(Options::default(), spec, dir.path(), HOST).unwrap();
    let memory = opened.memory_use();
    assert_eq!(memory.mapped, index.stats().file_bytes);
    assert!(memory.resident < 1000, "{memory:?}");

    opened.upsert(&Cx::free(), &ids[..10], &numbers(10, 64)).unwrap();
    opened.remove(&Cx::free(), &ids[5..20]).unwrap();
    let stats = opened.stats();
    assert_eq!((stats.live, stats.dead), (985, 20));
    assert!(opened.memory_use().resident < memory.mapped / 10);
}

#[test]
fn refuses_vectors_whose_products_overflow() {
    let long = [1e19, 1e19];
    for metric in [Metric::Dot, Metric::L2] {
        let index = flat(IndexSpec { dim: 2, metric });
        let error = index.upsert(&Cx::free(), &[1], &long).unwrap_err();
        assert_eq!(error.code(), magray_plugin_api::ErrorCode::INVALID_INPUT);
        assert_eq!(index.stats().live, 0);
        let params = SearchParams::default();
        index.search(&Cx::free(), &long, 1, params, None, &mut [Hit::NONE]).unwrap_err();
    }
    flat(IndexSpec { dim: 2, metric: Metric::Cosine }).upsert(&Cx::free(), &[1], &long).unwrap();
}

/// Far from the origin `|a|² - 2ab + |b|²` loses the distance to rounding.
#[test]
fn l2_scores_are_by_the_definition() {
    let index = flat(IndexSpec { dim: 2, metric: Metric::L2 });
    index.upsert(&Cx::free(), &[1, 2], &[10_000.0, 10_000.0, 10_001.0, 10_000.0]).unwrap();
    let mut hits = [Hit::NONE; 2];
    index.search(&Cx::free(), &[10_000.0, 10_000.0], 2, SearchParams::default(), None, &mut hits).unwrap();
    assert_eq!(hits, [Hit::new(1, 0.0), Hit::new(2, -1.0)]);
}

#[test]
fn the_batch_is_by_threads_where_the_options_leave_it_open() {
    assert_eq!([1, 4, 5, 8, 9, 16, 17, 128].map(batch_for), [32, 32, 64, 64, 128, 128, 256, 256]);
    let spec = IndexSpec { dim: 2, metric: Metric::Cosine };
    let expected = if cfg!(feature = "gemm") { PASS } else { batch_for(HOST.threads()) };
    assert_eq!(flat(spec).batch(), expected);
    assert_eq!(Flat::create(Options { batch: 7 }, spec, HOST).unwrap().batch(), 7);
}

#[test]
fn batches_of_any_size_find_the_same() {
    let spec = IndexSpec { dim: 24, metric: Metric::L2 };
    let queries = numbers(300, 24);
    let found = [0, 1, 3, 64, 4096].map(|batch| {
        let index = Flat::create(Options { batch }, spec, HOST).unwrap();
        index.upsert(&Cx::free(), &(0..500).collect::<Vec<_>>(), &numbers(500, 24)).unwrap();
        let mut out = vec![Hit::NONE; 300 * 3];
        index.search(&Cx::free(), &queries, 3, SearchParams::default(), None, &mut out).unwrap();
        out
    });
    assert!(found[0].iter().all(|hit| hit.id < 500));
    // A product of many queries adds up in another order than one of few, and rows that are as near may change places.
    let near = |(a, b): (&Hit, &Hit)| (a.score - b.score).abs() < 1e-4;
    found.iter().for_each(|hits| assert!(hits.iter().zip(&found[0]).all(near)));
}

#[test]
fn options_are_checked() {
    assert!(PLUGIN.components.iter().all(|component| component.name == "flat"));
    let magray_plugin_api::Maker::Index(make) = PLUGIN.components[0].maker else { unreachable!() };
    let spec = IndexSpec { dim: 2, metric: Metric::Cosine };
    for options in ["{}", r#"{"batch":0}"#, r#"{"batch":4096}"#] {
        assert!(make(options, spec, None, HOST).is_ok(), "{options}");
    }
    for options in [r#"{"nprobe":1}"#, r#"{"batch":4097}"#, r#"{"batch":-1}"#] {
        assert!(make(options, spec, None, HOST).is_err(), "{options}");
    }
}
