use super::*;
use crate::rotation::Random;
use magray_plugin_api::{
    CreateVectorIndex, ErrorCode, Hit, IdFilter, IndexSpec, Metric, Result, SearchParams, VectorIndex,
};
use magray_plugin_testkit::{self as testkit, Cx, HOST, Oracle};
use proptest::prelude::*;
use std::{fs, path::Path};
use tempfile::TempDir;

const METRICS: [Metric; 3] = [Metric::Cosine, Metric::Dot, Metric::L2];

/// Options under which the smallest index is searched by its codes.
fn by_codes(layout: Layout) -> Options {
    Options { layout, exact_below: 0, ..Options::default() }
}

/// The ways to lay out rows, each with each kind of codes that it may scan.
fn layouts() -> impl Iterator<Item = Options> {
    let of = |(layout, bits)| Options { bits, ..by_codes(layout) };
    [
        (Layout::Flat, 1),
        (Layout::Flat, 2),
        (Layout::Flat, 4),
        (Layout::Ivf, 1),
        (Layout::Ivf, 2),
        (Layout::Graph, 0),
    ]
    .into_iter()
    .map(of)
}

fn native(options: Options, spec: IndexSpec) -> Native {
    Native::create(options, spec, HOST).unwrap()
}

fn saved_and_opened(index: &Native, options: Options) -> Native {
    let dir = TempDir::new().unwrap();
    index.save(&Cx::free(), dir.path()).unwrap();
    let files: Vec<_> = dir.path().read_dir().unwrap().map(|file| file.unwrap().file_name()).collect();
    assert_eq!(files, ["index.bin"]);
    Native::open(options, index.spec(), dir.path(), HOST).unwrap()
}

#[test]
fn conforms() {
    // Of so few rows those that are near may lie in any list.
    let by_codes = layouts().map(|options| Options { probes: 1000, ..options });
    for options in by_codes.chain([Options::default()]) {
        let make = |spec| -> Result<Box<dyn VectorIndex>> { Ok(Box::new(native(options, spec))) };
        let open = |spec, dir: &Path| -> Result<Box<dyn VectorIndex>> {
            Ok(Box::new(Native::open(options, spec, dir, HOST)?))
        };
        testkit::index(&make, Some(&open)).assert();
        // And where every answer comes from a sealed index.
        let sealed = |spec: IndexSpec| -> Result<Box<dyn VectorIndex>> {
            Ok(Box::new(saved_and_opened(&native(options, spec), options)))
        };
        testkit::index(&sealed, Some(&open)).assert();
    }
}

/// `[n, dim]` row-major: points about some centres, off the origin, no two equal.
fn points(seed: u64, n: usize, dim: usize) -> Vec<f32> {
    let mut random = Random(seed);
    let mut unit = || (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0;
    let centres: Vec<f32> = (0..20 * dim).map(|_| unit() + 0.3).collect();
    (0..n * dim).map(|i| centres[(i / dim) % 20 * dim + i % dim] + 0.7 * unit()).collect()
}

fn search(index: &Native, queries: &[f32], k: usize, filter: Option<IdFilter<'_>>) -> Vec<Vec<Hit>> {
    let mut out = vec![Hit::NONE; queries.len() / index.spec().dim * k];
    index.search(&Cx::free(), queries, k, SearchParams::default(), filter, &mut out).unwrap();
    out.chunks_exact(k).map(|hits| hits.iter().copied().filter(|hit| !hit.is_none()).collect()).collect()
}

/// Mean recall at 10, by score, so that of equal rows any will do.
fn recall(index: &Native, oracle: &Oracle, queries: &[f32], filter: Option<IdFilter<'_>>) -> f64 {
    let found = search(index, queries, 10, filter);
    let queries = queries.chunks_exact(index.spec().dim);
    let sum: f64 = queries.clone().zip(&found).map(|(query, hits)| oracle.recall(query, filter, hits)).sum();
    sum / queries.len() as f64
}

#[test]
fn finds_the_nearest_by_its_codes() {
    // Of a width that fills no register, and of one number that is far from the others' scale.
    for (dim, n) in [(30, 3000), (100, 3000), (384, 4000)] {
        for metric in METRICS {
            let spec = IndexSpec { dim, metric };
            let mut vectors = points(1, n + 40, dim);
            vectors[3] = 30.0;
            let (stored, queries) = vectors.split_at(n * dim);
            let ids: Vec<u64> = (0..n as u64).map(|id| id * 7 % n as u64 + (1 << 40)).collect();
            let mut oracle = Oracle::new(spec);
            oracle.upsert(&ids, stored);
            let third: Vec<u64> = (0..n as u64).step_by(3).map(|id| id + (1 << 40)).collect();
            let few: Vec<u64> = (0..n as u64).step_by(70).map(|id| id + (1 << 40)).collect();
            for options in layouts() {
                // Noise is harder than any real vectors.
                let options = Options { rescore: if options.bits == 1 { 400 } else { 0 }, ..options };
                let index = native(options, spec);
                index.upsert(&Cx::free(), &ids, stored).unwrap();
                let index = saved_and_opened(&index, options);
                for filter in [None, Some(IdFilter::sorted(&third)), Some(IdFilter::sorted(&few))] {
                    let recall = recall(&index, &oracle, queries, filter);
                    assert!(recall > 0.95, "{spec:?} {options:?} {filter:?}: {recall}");
                }
                // In a batch, alone, and after the codes were copied: the same to the last bit.
                let together = search(&index, queries, 10, None);
                index.warm_up(&Cx::free()).unwrap();
                for (query, together) in queries.chunks_exact(dim).zip(&together) {
                    assert_eq!(&search(&index, query, 10, None)[0], together);
                }
            }
        }
    }
}

/// However few are rescored, and though a list may have most of its rows from others.
#[test]
fn finds_as_many_as_are_wanted() {
    let ids: Vec<u64> = (0..2000).collect();
    let third: Vec<u64> = ids.iter().copied().filter(|id| id % 3 == 0).collect();
    let (stored, queries) = (points(8, 2000, 24), points(9, 20, 24));
    for metric in METRICS {
        for options in layouts() {
            let index = native(options, IndexSpec { dim: 24, metric });
            index.upsert(&Cx::free(), &ids, &stored).unwrap();
            index.warm_up(&Cx::free()).unwrap();
            for filter in [None, Some(IdFilter::sorted(&third))] {
                let mut params = SearchParams::with_ef(100);
                params.rescore = 1;
                let mut hits = vec![Hit::NONE; 20 * 50];
                index.search(&Cx::free(), &queries, 50, params, filter, &mut hits).unwrap();
                for hits in hits.chunks_exact(50) {
                    let found: std::collections::BTreeSet<u64> = hits.iter().map(|hit| hit.id).collect();
                    assert_eq!(found.len(), 50, "{metric:?} {options:?}");
                    assert!(!hits.iter().any(Hit::is_none), "{metric:?} {options:?}");
                }
            }
        }
    }
}

#[test]
fn builds_are_deterministic_and_follow_the_seed() {
    let spec = IndexSpec { dim: 40, metric: Metric::Cosine };
    let ids: Vec<u64> = (0..2000).collect();
    let bytes = |options: Options, order: &[u64]| {
        let index = native(options, spec);
        let vectors = points(5, 2000, 40);
        for &id in order {
            index.upsert(&Cx::free(), &[id], &vectors[id as usize * 40..][..40]).unwrap();
        }
        let dir = TempDir::new().unwrap();
        index.save(&Cx::free(), dir.path()).unwrap();
        fs::read(dir.path().join("index.bin")).unwrap()
    };
    let backwards: Vec<u64> = ids.iter().rev().copied().collect();
    for options in layouts() {
        assert_eq!(bytes(options, &ids), bytes(options, &backwards));
        assert_ne!(bytes(options, &ids), bytes(Options { seed: 1, ..options }, &ids));
    }
}

#[test]
fn equal_rows_are_found_by_the_lowest_ids() {
    let spec = IndexSpec { dim: 48, metric: Metric::L2 };
    for options in layouts() {
        let options = Options { lists: 3, ..options };
        let index = native(options, spec);
        let vectors = points(2, 1, 48).repeat(400);
        index.upsert(&Cx::free(), &(0..400).rev().collect::<Vec<u64>>(), &vectors).unwrap();
        for index in [&index, &saved_and_opened(&index, options)] {
            let found: Vec<u64> =
                search(index, &vectors[..48], 5, None)[0].iter().map(|hit| hit.id).collect();
            assert_eq!(found, [0, 1, 2, 3, 4], "{options:?}");
        }
    }
}

#[test]
fn originals_are_kept_without_a_loss() {
    let spec = IndexSpec { dim: 20, metric: Metric::Dot };
    for (step, kind) in [(0.25, "f16"), (0.1, "f32")] {
        let index = native(by_codes(Layout::Flat), spec);
        let vectors: Vec<f32> = (0..200 * 20).map(|i| ((i * 37) % 101) as f32 * step).collect();
        index.upsert(&Cx::free(), &(0..200).collect::<Vec<_>>(), &vectors).unwrap();
        let opened = saved_and_opened(&index, by_codes(Layout::Flat));
        assert!(opened.describe().contains(&format!(r#""originals":"{kind}""#)), "{}", opened.describe());
        assert_eq!(search(&index, &vectors[..20], 200, None), search(&opened, &vectors[..20], 200, None));
    }
}

#[test]
fn searches_seal_what_was_written() {
    let spec = IndexSpec { dim: 8, metric: Metric::L2 };
    let index = native(Options::default(), spec);
    let vectors = points(3, 30_000, 8);
    let ids: Vec<u64> = (0..30_000).collect();
    for (ids, vectors) in ids.chunks(1000).zip(vectors.chunks(8000)) {
        index.upsert(&Cx::free(), ids, vectors).unwrap();
    }
    let sealed = || -> u64 {
        let described: serde_json::Value = serde_json::from_str(&index.describe()).unwrap();
        described["sealed_rows"].as_u64().unwrap()
    };
    assert_eq!(sealed(), 0, "nobody has searched, so nothing is built in vain");
    assert_eq!(search(&index, &vectors[..8], 1, None)[0], [Hit::new(0, 0.0)]);
    assert_eq!((sealed(), index.stats().live), (30_000, 30_000));
    // Replaced and removed rows of the sealed part are gone at once.
    index.upsert(&Cx::free(), &[5], &[9.0; 8]).unwrap();
    assert_eq!(index.remove(&Cx::free(), &[6, 7, 7, 99_999]).unwrap(), 2);
    let stats = index.stats();
    assert_eq!((stats.live, stats.dead), (29_998, 3));
    assert_eq!(search(&index, &[9.0; 8], 1, None)[0], [Hit::new(5, 0.0)]);
    let found = search(&index, &vectors[48..64], 1, None);
    assert!(found.iter().all(|hits| hits[0].id != 6 && hits[0].id != 7));
    index.warm_up(&Cx::free()).unwrap();
    let stats = index.stats();
    assert_eq!((stats.live, stats.dead), (29_998, 0));
    assert!(stats.file_bytes > 0);
}

#[test]
fn damage_is_an_error_or_a_wrong_answer_and_never_a_crash() {
    for options in layouts() {
        for metric in METRICS {
            let spec = IndexSpec { dim: 33, metric };
            let options = Options { lists: 5, ..options };
            let index = native(options, spec);
            index.upsert(&Cx::free(), &(0..300).collect::<Vec<_>>(), &points(4, 300, 33)).unwrap();
            let dir = TempDir::new().unwrap();
            index.save(&Cx::free(), dir.path()).unwrap();
            let path = dir.path().join("index.bin");
            let bytes = fs::read(&path).unwrap();
            let mut random = Random(metric as u64);
            let open = || Native::open(options, spec, dir.path(), HOST);
            let anywhere: Vec<usize> = (0..100).map(|_| random.next() as usize % bytes.len()).collect();
            for at in (0..128).chain(anywhere) {
                let mut damaged = bytes.clone();
                damaged[at] ^= 1 << (random.next() % 8);
                fs::write(&path, &damaged).unwrap();
                match open() {
                    Err(error) => assert_eq!(error.code(), ErrorCode::CORRUPT_DATA),
                    Ok(opened) => {
                        assert!(at >= 120, "byte {at} of the header");
                        search(&opened, &points(6, 2, 33), 10, None);
                        search(&opened, &points(6, 2, 33), 300, Some(IdFilter::sorted(&[1, 2, 250])));
                        opened.remove(&Cx::free(), &[1, 2, 3]).unwrap();
                        opened.upsert(&Cx::free(), &[7], &points(6, 1, 33)).unwrap();
                        let again = TempDir::new().unwrap();
                        if let Err(error) = opened.save(&Cx::free(), again.path()) {
                            assert_eq!(error.code(), ErrorCode::CORRUPT_DATA);
                        }
                    }
                }
            }
            for _ in 0..40 {
                let length = random.next() as usize % bytes.len();
                fs::write(&path, &bytes[..length]).unwrap();
                assert_eq!(open().map(|_| ()).unwrap_err().code(), ErrorCode::CORRUPT_DATA);
            }
            fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
            assert_eq!(open().map(|_| ()).unwrap_err().code(), ErrorCode::CORRUPT_DATA);
        }
    }
}

#[test]
fn refuses_vectors_whose_products_overflow() {
    let long = [1e19, 1e19];
    for metric in [Metric::Dot, Metric::L2] {
        let index = native(Options::default(), IndexSpec { dim: 2, metric });
        let error = index.upsert(&Cx::free(), &[1], &long).unwrap_err();
        assert_eq!(error.code(), ErrorCode::INVALID_INPUT);
        assert_eq!(index.stats().live, 0);
        let params = SearchParams::default();
        index.search(&Cx::free(), &long, 1, params, None, &mut [Hit::NONE]).unwrap_err();
    }
}

#[derive(Clone, Debug)]
enum Step {
    Upsert(Vec<(u64, Vec<f32>)>),
    Remove(Vec<u64>),
    Search { queries: Vec<Vec<f32>>, k: usize, filter: Option<Vec<u64>> },
    Reopen,
    WarmUp,
}

fn steps(dim: usize) -> impl Strategy<Value = Vec<Step>> {
    // Few ids, and the greatest that there is.
    let id = || (0u64..60).prop_map(|id| if id == 59 { u64::MAX - 1 } else { id });
    let vector = move || {
        prop::collection::vec(-2.0f32..2.0, dim)
            .prop_filter("has a direction", |v| v.iter().any(|&v| v != 0.0))
    };
    let step = prop_oneof![
        3 => prop::collection::vec((id(), vector()), 0..30).prop_map(Step::Upsert),
        2 => prop::collection::vec(id(), 0..20).prop_map(Step::Remove),
        3 => (
            prop::collection::vec(vector(), 1..20),
            1usize..70,
            prop::option::of(prop::collection::btree_set(id(), 0..60)),
        )
            .prop_map(|(queries, k, filter)| Step::Search {
                queries,
                k,
                filter: filter.map(Vec::from_iter),
            }),
        1 => Just(Step::Reopen),
        1 => Just(Step::WarmUp),
    ];
    prop::collection::vec(step, 1..20)
}

proptest! {
    /// So few rows are all scored again, whichever way they were found: the answers are exact.
    #[test]
    fn agrees_with_the_oracle(
        metric in prop_oneof![Just(Metric::Cosine), Just(Metric::Dot), Just(Metric::L2)],
        layout in prop_oneof![Just(Layout::Flat), Just(Layout::Ivf), Just(Layout::Graph)],
        bits in prop_oneof![Just(1u8), Just(2), Just(4)],
        exact_below in prop_oneof![Just(0usize), Just(2048)],
        (dim, steps) in (1usize..40).prop_flat_map(|dim| (Just(dim), steps(dim)))
    ) {
        let spec = IndexSpec { dim, metric };
        let options = Options { layout, bits, exact_below, lists: 4, probes: 4, rescore: 100, ..Options::default() };
        let (mut index, mut oracle) = (native(options, spec), Oracle::new(spec));
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
                    let found = search(&index, &queries.concat(), k, filter);
                    for (query, hits) in queries.iter().zip(found) {
                        let expected = oracle.search(query, k, filter);
                        prop_assert_eq!(hits.len(), expected.len());
                        for (hit, expected) in hits.iter().zip(&expected) {
                            // Ids of nearly equal scores may stand in another order.
                            let score = oracle.score(query, hit.id).unwrap();
                            let near = |score: f32| (score - expected.score).abs() < 1e-4;
                            prop_assert!(near(hit.score) && near(score), "{hits:?}, not {expected:?}");
                        }
                        let mut ids: Vec<u64> = hits.iter().map(|hit| hit.id).collect();
                        ids.sort_unstable();
                        ids.dedup();
                        prop_assert_eq!(ids.len(), hits.len());
                    }
                }
                Step::Reopen => {
                    index = saved_and_opened(&index, options);
                    prop_assert_eq!(index.stats().dead, 0);
                }
                Step::WarmUp => index.warm_up(&Cx::free()).unwrap(),
            }
            prop_assert_eq!(index.stats().live, oracle.ids().len() as u64);
        }
    }
}
