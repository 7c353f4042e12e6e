//! Random interleavings of every operation, against a map that is searched exactly.
use magray_index_hnsw::{Hnsw, Options};
use magray_plugin_api::{CreateVectorIndex, Hit, IdFilter, IndexSpec, Metric, SearchParams, VectorIndex};
use magray_plugin_testkit::{Cx, HOST};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};

const DIM: usize = 6;
const IDS: u64 = 300;
const K: usize = 10;

#[derive(Clone, Debug)]
enum Step {
    Upsert { ids: Vec<u64>, seed: u64 },
    Remove { ids: Vec<u64> },
    Search { seed: u64, filter: Option<Filter> },
    SaveAndOpen,
}

#[derive(Clone, Debug)]
enum Filter {
    Sorted(BTreeSet<u64>),
    Bitmap(Vec<u64>),
}

fn step() -> impl Strategy<Value = Step> {
    let ids = |most| prop::collection::vec(0..IDS, 1..most);
    let filter = prop_oneof![
        prop::collection::btree_set(0..IDS * 2, 0..200).prop_map(Filter::Sorted),
        prop::collection::vec(any::<u64>(), 0..10).prop_map(Filter::Bitmap),
    ];
    prop_oneof![
        4 => (ids(120), any::<u64>()).prop_map(|(ids, seed)| Step::Upsert { ids, seed }),
        2 => ids(60).prop_map(|ids| Step::Remove { ids }),
        6 => (any::<u64>(), prop::option::of(filter)).prop_map(|(seed, filter)| Step::Search { seed, filter }),
        1 => Just(Step::SaveAndOpen),
    ]
}

/// Numbers in -1..1 from a seed (SplitMix64).
fn numbers(mut seed: u64, n: usize) -> Vec<f32> {
    let mut next = || {
        seed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn score(metric: Metric, a: &[f32], b: &[f32]) -> f32 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
    match metric {
        Metric::L2 => -a.iter().zip(b).map(|(a, b)| (a - b) * (a - b)).sum::<f32>(),
        _ => dot(a, b) / (dot(a, a) * dot(b, b)).sqrt(),
    }
}

/// Few links and a narrow search, so that small indexes walk the graph.
fn options() -> Options {
    Options {
        max_connections: Some(8),
        ef_construction: Some(32),
        ef_search: Some(16),
        exact_below: 0,
        ..Options::default()
    }
}

fn fail(error: impl std::error::Error) -> TestCaseError {
    TestCaseError::fail(error.to_string())
}

fn run(metric: Metric, steps: Vec<Step>) -> Result<(), TestCaseError> {
    let spec = IndexSpec { dim: DIM, metric };
    let mut index = Hnsw::create(options(), spec, HOST).map_err(fail)?;
    let mut model = BTreeMap::<u64, Vec<f32>>::new();
    let (mut found, mut expected) = (0, 0);
    for step in steps {
        match step {
            Step::Upsert { ids, seed } => {
                let vectors = numbers(seed, ids.len() * DIM);
                index.upsert(&Cx::free(), &ids, &vectors).map_err(fail)?;
                model.extend(ids.into_iter().zip(vectors.chunks(DIM).map(<[f32]>::to_vec)));
            }
            Step::Remove { ids } => {
                let removed = index.remove(&Cx::free(), &ids).map_err(fail)?;
                let there = ids.iter().filter(|id| model.remove(id).is_some()).count();
                prop_assert_eq!(removed, there);
            }
            Step::Search { seed, filter } => {
                let query = numbers(seed, DIM);
                let sorted: Vec<u64>;
                let passes = match &filter {
                    None => None,
                    Some(Filter::Bitmap(words)) => Some(IdFilter::bitmap(7, words)),
                    Some(Filter::Sorted(ids)) => {
                        sorted = ids.iter().copied().collect();
                        Some(IdFilter::sorted(&sorted))
                    }
                };
                let allowed = |id: u64| passes.is_none_or(|filter| filter.contains(id));
                let mut scores: Vec<f32> = model
                    .iter()
                    .filter(|&(&id, _)| allowed(id))
                    .map(|(_, vector)| score(metric, &query, vector))
                    .collect();
                scores.sort_by(|a, b| b.total_cmp(a));
                scores.truncate(K);

                let mut out = [Hit::NONE; K];
                index
                    .search(&Cx::free(), &query, K, SearchParams::default(), passes, &mut out)
                    .map_err(fail)?;
                let hits: Vec<_> = out.iter().take_while(|hit| !hit.is_none()).collect();
                prop_assert_eq!(hits.len(), scores.len());
                prop_assert!(out[hits.len()..].iter().all(Hit::is_none));
                prop_assert!(hits.is_sorted_by(|a, b| a.score >= b.score));
                prop_assert_eq!(hits.iter().map(|hit| hit.id).collect::<BTreeSet<_>>().len(), hits.len());
                for hit in &hits {
                    prop_assert!(allowed(hit.id), "{} is not let through", hit.id);
                    let Some(vector) = model.get(&hit.id) else {
                        return Err(TestCaseError::fail(format!("{} is dead", hit.id)));
                    };
                    prop_assert!((hit.score - score(metric, &query, vector)).abs() < 1e-4);
                }
                let Some(worst) = scores.last() else { continue };
                found += hits.iter().filter(|hit| hit.score >= worst - 1e-5).count();
                expected += scores.len();
            }
            Step::SaveAndOpen => {
                let dir = tempfile::tempdir().map_err(fail)?;
                index.save(&Cx::free(), dir.path()).map_err(fail)?;
                index = Hnsw::open(options(), spec, dir.path(), HOST).map_err(fail)?;
            }
        }
        prop_assert_eq!(index.stats().live, model.len() as u64);
    }
    prop_assert!(found * 10 >= expected * 9, "{found} of {expected} found");
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn answers_as_an_exact_search_would(
        l2 in any::<bool>(),
        steps in prop::collection::vec(step(), 1..40),
    ) {
        run(if l2 { Metric::L2 } else { Metric::Cosine }, steps)?;
    }
}
