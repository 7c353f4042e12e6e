//! Checks that compare an index's answers with those of the [`Oracle`].

use super::{DIM, Entry, Index, METRICS, Subject, finds, ids, row, search, unit_vectors};
use crate::{Checked, Cx, Oracle, Outcome, ensure, random::Random};
use magray_plugin_api::{Hit, IdFilter, IndexSpec, Metric, SearchParams, VectorIndex};

/// What an index that is not exact must find.
const RECALL: f64 = 0.9;

pub(super) const CHECKS: &[Entry] = &[
    ("scores-cosine", "under cosine a score is dot(a, b) / (|a| |b|)", |subject| {
        scores(subject, Metric::Cosine)
    }),
    ("scores-dot", "under dot a score is dot(a, b)", |subject| scores(subject, Metric::Dot)),
    ("scores-l2", "under l2 a score is -|a - b|²", |subject| scores(subject, Metric::L2)),
    ("cosine-of-any-length", "cosine does not depend on the lengths of the vectors", cosine_of_any_length),
    ("any-width", "widths that fit no register work as well", any_width),
    ("batches", "a query of a batch gets what it gets alone", batches),
    ("filters-by-bitmap", "a bitmap of ids bounds what is found", filters_by_bitmap),
    ("filters-by-list", "a sorted list of ids bounds what is found", filters_by_list),
    ("filters-all", "an empty filter and one of unknown ids find nothing", filters_all),
    ("recall-cosine", "it finds the nearest vectors, all if it is exact", |subject| {
        recall(subject, Metric::Cosine)
    }),
    ("recall-dot", "it finds the nearest vectors, all if it is exact", |subject| {
        recall(subject, Metric::Dot)
    }),
    ("recall-l2", "it finds the nearest vectors, all if it is exact", |subject| recall(subject, Metric::L2)),
    ("takes-zero", "a zero vector is one like any other, but under cosine", takes_zero),
    ("agrees-with-model", "all of this holds after random upserts and removals", |subject| {
        agrees_with_model(subject, 10, 300, Ok)
    }),
];

/// The share that an index must find.
fn demanded(index: &dyn VectorIndex) -> f64 {
    if index.capabilities().exact { 1.0 } else { RECALL }
}

/// Every score that it gives is the definition's.
fn right_scores(oracle: &Oracle, query: &[f32], hits: &[Hit]) -> Checked {
    for hit in hits {
        let Some(score) = oracle.score(query, hit.id) else {
            return Err(Outcome::Failed(format!("{} is not in the index", hit.id)));
        };
        let near = (hit.score - score).abs() <= 1e-3 * score.abs().max(1.0);
        ensure!(near, "the score of {} is {}, by definition {score}", hit.id, hit.score);
    }
    Ok(())
}

/// It answers `queries` as the oracle does: right scores, and on average enough of the nearest.
fn agrees(
    index: &dyn VectorIndex,
    oracle: &Oracle,
    queries: &[f32],
    k: usize,
    filter: Option<IdFilter<'_>>,
) -> Checked {
    let dim = index.spec().dim;
    let mut sum = 0.0;
    for query in queries.chunks_exact(dim) {
        let hits = search(index, query, k, filter)?;
        right_scores(oracle, query, &hits)?;
        sum += oracle.recall(query, filter, &hits);
    }
    let recall = sum / (queries.len() / dim) as f64;
    let demanded = demanded(index);
    ensure!(recall >= demanded, "recall at {k} is {recall:.4}, at least {demanded} is asked");
    Ok(())
}

fn made(subject: &Subject<'_>, spec: IndexSpec, ids: &[u64], vectors: &[f32]) -> Checked<(Index, Oracle)> {
    let index = subject.make(spec)?;
    index.upsert(&Cx::free(), ids, vectors)?;
    let mut oracle = Oracle::new(spec);
    oracle.upsert(ids, vectors);
    Ok((index, oracle))
}

fn scores(subject: &Subject<'_>, metric: Metric) -> Checked {
    let mut random = Random(4);
    let (index, oracle) =
        made(subject, IndexSpec { dim: DIM, metric }, &ids(100), &random.vectors(100, DIM))?;
    agrees(&*index, &oracle, &random.vectors(20, DIM), 100, None)
}

fn cosine_of_any_length(subject: &Subject<'_>) -> Checked {
    let mut vectors = unit_vectors(4, 30);
    // The squares of these overflow f32 or vanish.
    for (vector, length) in vectors.chunks_exact_mut(DIM).zip([1.0, 1e25, 1e-25].into_iter().cycle()) {
        vector.iter_mut().for_each(|v| *v *= length);
    }
    let spec = IndexSpec { dim: DIM, metric: Metric::Cosine };
    let (index, oracle) = made(subject, spec, &ids(30), &vectors)?;
    agrees(&*index, &oracle, &vectors, 30, None)?;
    (0..30).try_for_each(|i| finds(&*index, row(&vectors, i), i as u64))
}

fn any_width(subject: &Subject<'_>) -> Checked {
    for dim in [1, 2, 3, 7, 17, 33, 100, 385] {
        let mut random = Random(dim as u64);
        let spec = IndexSpec { dim, metric: subject.metric };
        let result = made(subject, spec, &ids(50), &random.vectors(50, dim))
            .and_then(|(index, oracle)| agrees(&*index, &oracle, &random.vectors(5, dim), 50, None));
        if let Err(Outcome::Failed(why)) = result {
            return Err(Outcome::Failed(format!("width {dim}: {why}")));
        }
    }
    Ok(())
}

fn batches(subject: &Subject<'_>) -> Checked {
    const K: usize = 10;
    let (index, _) = subject.filled(200)?;
    for n in [2, 15, 16, 70] {
        let queries = unit_vectors(5, n);
        let mut batch = vec![Hit::NONE; n * K];
        index.search(&Cx::free(), &queries, K, SearchParams::default(), None, &mut batch)?;
        for (i, together) in batch.chunks_exact(K).enumerate() {
            let alone = search(&*index, row(&queries, i), K, None)?;
            let near = |(a, b): (&Hit, &Hit)| (a.score - b.score).abs() <= 1e-3;
            let same = together.len() == alone.len() && together.iter().zip(&alone).all(near);
            ensure!(same, "query {i} of {n}: {together:?} in the batch, {alone:?} alone");
        }
    }
    Ok(())
}

/// 1000 vectors, for filters that let few and many through.
fn filterable(subject: &Subject<'_>) -> Checked<(Index, Oracle)> {
    made(subject, subject.spec(), &ids(1000), &unit_vectors(6, 1000))
}

fn filters_by_bitmap(subject: &Subject<'_>) -> Checked {
    let (index, oracle) = filterable(subject)?;
    let mut random = Random(8);
    // About one id in `share`, of ids that begin before, inside and after what is stored.
    for (first, share) in [(0, 2), (0, 20), (0, 300), (500, 3), (990, 1)] {
        let mut words = [0; 16];
        for bit in 0..words.len() * 64 {
            words[bit / 64] |= u64::from(random.below(share) == 0) << (bit % 64);
        }
        let filter = IdFilter::bitmap(first, &words);
        agrees(&*index, &oracle, &unit_vectors(7, 10), 10, Some(filter))?;
    }
    Ok(())
}

fn filters_by_list(subject: &Subject<'_>) -> Checked {
    let (index, oracle) = filterable(subject)?;
    for step in [1, 2, 7, 90, 999] {
        let allowed: Vec<u64> = (0..2000).step_by(step).collect();
        agrees(&*index, &oracle, &unit_vectors(7, 10), 10, Some(IdFilter::sorted(&allowed)))?;
    }
    Ok(())
}

fn filters_all(subject: &Subject<'_>) -> Checked {
    let (index, vectors) = subject.filled(100)?;
    let unknown = [u64::MAX; 4];
    for filter in [
        IdFilter::sorted(&[]),
        IdFilter::bitmap(0, &[]),
        IdFilter::bitmap(0, &[0, 0]),
        IdFilter::sorted(&[1_000, u64::MAX - 1]),
        IdFilter::bitmap(1_000, &unknown),
    ] {
        let hits = search(&*index, row(&vectors, 0), 5, Some(filter))?;
        ensure!(hits.is_empty(), "{filter:?} found {hits:?}");
    }
    Ok(())
}

fn recall(subject: &Subject<'_>, metric: Metric) -> Checked {
    const WIDTH: usize = 32;
    let vectors = Random(9).clustered(2050, WIDTH, 20);
    let (stored, queries) = vectors.split_at(2000 * WIDTH);
    let (index, oracle) = made(subject, IndexSpec { dim: WIDTH, metric }, &ids(2000), stored)?;
    agrees(&*index, &oracle, queries, 10, None)
}

fn takes_zero(subject: &Subject<'_>) -> Checked {
    let mut skipped = Err(Outcome::Skipped("it does cosine alone".into()));
    for metric in [Metric::L2, Metric::Dot] {
        let mut vectors = unit_vectors(3, 30);
        vectors[..2 * DIM].fill(0.0);
        let (index, oracle) = match made(subject, IndexSpec { dim: DIM, metric }, &ids(30), &vectors) {
            Err(Outcome::Skipped(_)) => continue,
            made => made?,
        };
        agrees(&*index, &oracle, &vectors[..5 * DIM], 30, None)?;
        skipped = Ok(());
    }
    skipped
}

/// Random calls by `seed`, `steps` of them under each metric, with `between` now and then: what it makes of the
/// index must hold the same.
pub(super) fn agrees_with_model(
    subject: &Subject<'_>,
    seed: u64,
    steps: usize,
    mut between: impl FnMut(Index) -> Checked<Index>,
) -> Checked {
    for metric in METRICS {
        let mut random = Random(seed);
        let spec = IndexSpec { dim: DIM, metric };
        let (mut index, mut oracle) = match made(subject, spec, &[], &[]) {
            Err(Outcome::Skipped(_)) => continue,
            made => made?,
        };
        // Vectors come again under other ids, as equal texts do.
        let pool = random.vectors(100, DIM);
        for _ in 0..steps {
            let count = random.below(8) as usize;
            let ids: Vec<u64> = (0..count).map(|_| random.below(200)).collect();
            if random.below(3) == 0 {
                let (expected, removed) = (oracle.remove(&ids), index.remove(&Cx::free(), &ids)?);
                ensure!(removed == expected, "remove({ids:?}) says {removed}, {expected} were there");
            } else {
                let vectors = match random.below(2) {
                    0 => random.vectors(count, DIM),
                    _ => ids.iter().flat_map(|_| row(&pool, random.below(100) as usize)).copied().collect(),
                };
                index.upsert(&Cx::free(), &ids, &vectors)?;
                oracle.upsert(&ids, &vectors);
            }
            if random.below(12) == 0 {
                index = between(index)?;
            }
            let (live, expected) = (index.stats().live, oracle.ids().len() as u64);
            ensure!(live == expected, "{expected} ids are left, stats() says {live}");
            let words = [random.next(), random.next()];
            let filter = (random.below(2) == 0).then(|| IdFilter::bitmap(random.below(150), &words));
            agrees(&*index, &oracle, &random.vectors(1, DIM), 10, filter)?;
        }
    }
    Ok(())
}
