use super::*;
use crate::{
    config::Config,
    engine::{ModelOrigins, Setup},
    store::{ImportDefaults, ImportRecord, PortableRecord, SourceRef},
};
use proptest::{collection::vec, option, prelude::*, sample::select};
use std::collections::BTreeSet;
use tempfile::TempDir;

struct Patient;

impl CallContext for Patient {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

fn engine() -> (TempDir, Engine) {
    let folder = tempfile::tempdir().unwrap();
    let config = Config::load(None, std::iter::empty(), &[]).unwrap().config;
    let data_dir = folder.path().to_owned();
    let setup = Setup {
        config,
        origins: ModelOrigins::default(),
        data_dir,
        plugin_dirs: Vec::new(),
        executable: None,
        project: None,
    };
    (folder, Engine::open(setup).unwrap())
}

const WORDS: [&str; 6] = ["harbour", "tides", "lighthouse", "ferry", "моряк", "корабли"];
/// A time that all are measured by.
const NOW: u64 = 1 << 41;

fn said(n: usize) -> impl Strategy<Value = PortableRecord> {
    let name = || option::of(select(&["a", "b"][..]).prop_map(str::to_owned));
    let what = (select(&Layer::ALL[..]), select(&["note", "fact"][..]), vec(select(&["x", "y"][..]), 0..3));
    let place = (name(), name(), option::of(select(&["/d/1", "/d/2", "/e"][..])));
    let times = (0u64..9, option::of(0u64..9), option::of(0u64..9));
    (what, place, times, vec(select(&WORDS[..]), 1..4)).prop_map(move |(what, place, times, words)| {
        let (layer, kind, tags) = what;
        let (project, session, source) = place;
        PortableRecord {
            layer: Some(layer),
            kind: Some(kind.to_owned()),
            text: format!("{} {n}", words.join(" ")),
            tags: tags.into_iter().map(str::to_owned).collect(),
            project,
            session,
            source: source.map(|path| SourceRef {
                path: path.to_owned(),
                line_start: n as u32,
                line_end: n as u32,
            }),
            created_ms: Some(NOW + times.0),
            expires_ms: Some(None),
            valid_from_ms: times.1.map(|time| NOW + time),
            valid_to_ms: times.2.map(|time| NOW + time),
            ..PortableRecord::default()
        }
    })
}

fn filters() -> impl Strategy<Value = (Filter, Validity)> {
    let name = || option::of(select(&["a", "b", ""][..]).prop_map(str::to_owned));
    let what = (
        vec(select(&Layer::ALL[..]), 0..3),
        option::of(select(&["note", "fact"][..]).prop_map(str::to_owned)),
        vec(select(&["x", "y"][..]).prop_map(str::to_owned), 0..3),
    );
    let place = (name(), name(), option::of(select(&["/d", "/d/1", "/e"][..]).prop_map(str::to_owned)));
    let times = (option::of(0u64..9), option::of(0u64..9), option::of(0u64..9));
    // Most of the time most fields are left out, so that something is found.
    (what, place, times, vec(prop::bool::weighted(0.3), 7)).prop_map(|(what, place, times, used)| {
        let filter = Filter {
            layers: what.0,
            kind: what.1.filter(|_| used[0]),
            tags: if used[1] { what.2 } else { Vec::new() },
            project: place.0.filter(|_| used[2]),
            session: place.1.filter(|session| used[3] && !session.is_empty()),
            source: place.2.filter(|_| used[4]),
            created_after_ms: times.0.filter(|_| used[5]).map(|time| NOW + time),
            created_before_ms: times.1.filter(|_| used[6]).map(|time| NOW + time),
            ..Filter::default()
        };
        (filter, times.2.map_or(Validity::Any, |time| Validity::At(NOW + time)))
    })
}

/// Whether a filter lets a record pass, said once more.
fn passes(record: &PortableRecord, filter: &Filter, validity: Validity) -> bool {
    let project = record.project.clone().unwrap_or_default();
    let path = record.source.as_ref().map_or("", |source| &source.path);
    let created = record.created_ms.unwrap();
    let is_true = match validity {
        Validity::At(time) => {
            record.valid_from_ms.is_none_or(|from| from <= time)
                && record.valid_to_ms.is_none_or(|to| time < to)
        }
        _ => true,
    };
    (filter.layers.is_empty() || filter.layers.contains(&record.layer.unwrap()))
        && filter.kind.as_ref().is_none_or(|kind| record.kind.as_ref() == Some(kind))
        && filter.tags.iter().all(|tag| record.tags.contains(tag))
        && filter.project.as_ref().is_none_or(|wanted| project == *wanted)
        && filter.session.as_ref().is_none_or(|session| record.session.as_ref() == Some(session))
        && filter.source.as_ref().is_none_or(|below| path == below || path.starts_with(&format!("{below}/")))
        && filter.created_after_ms.is_none_or(|after| created >= after)
        && filter.created_before_ms.is_none_or(|before| created < before)
        && is_true
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 12, ..ProptestConfig::default() })]

    /// Each leg finds all that pass and no others: the meaning all of them, the words those that have one.
    #[test]
    fn both_legs_hold_the_filter(
        records in (0..24).map(said).collect::<Vec<_>>(),
        filters in vec(filters(), 20),
    ) {
        let (_folder, engine) = engine();
        let space = engine.vectors().unwrap().space;
        let dim = engine.dim().unwrap();
        let defaults = ImportDefaults { layer: Layer::Insights, expires_ms: [None; 3] };
        let fit = records.iter().map(|record| ImportRecord::new(record.clone(), &defaults, dim).unwrap());
        let ids: Vec<RecordId> =
            engine.store.import(space, fit.collect()).unwrap().iter().map(|done| done.id().unwrap()).collect();
        engine.embed_missing(&Patient).unwrap();
        for (filter, validity) in filters {
            let passing: BTreeSet<RecordId> = ids
                .iter()
                .zip(&records)
                .filter(|(_, record)| passes(record, &filter, validity))
                .map(|(id, _)| *id)
                .collect();
            let with_word: BTreeSet<RecordId> = ids
                .iter()
                .zip(&records)
                .filter(|(id, record)| passing.contains(id) && (record.text.contains("tides") || record.text.contains("корабли")))
                .map(|(id, _)| *id)
                .collect();
            let found = |mode| {
                let settings = Settings { mode, ..engine.setup.config.memory.search.clone() };
                let query = "the tide of a корабль".to_owned();
                let request = SearchRequest { query, k: 100, filter: filter.clone(), validity, min_score: None, settings };
                let order = engine.rank(&Patient, &request).unwrap().order;
                order.into_iter().map(|ranked| ranked.id).collect::<BTreeSet<_>>()
            };
            prop_assert_eq!(&found(SearchMode::Vector), &passing, "{:?}", filter);
            prop_assert_eq!(&found(SearchMode::Keyword), &with_word, "{:?}", filter);
            prop_assert_eq!(&found(SearchMode::Hybrid), &passing, "{:?}", filter);
        }
    }
}

#[test]
fn only_what_is_shown_counts_as_found() {
    let (_folder, engine) = engine();
    let texts = (0..5).map(|n| crate::engine::NewMemory { text: format!("tide {n}"), ..Default::default() });
    engine.add(&Patient, texts.collect()).unwrap();
    let request = SearchRequest {
        query: "tide".to_owned(),
        k: 2,
        filter: Filter::default(),
        validity: Validity::Now,
        min_score: None,
        settings: engine.setup.config.memory.search.clone(),
    };
    let commits = || engine.store.stats().unwrap().commits;
    let before = commits();
    let shown: Vec<RecordId> =
        engine.search(&Patient, &request).unwrap().hits.iter().map(|hit| hit.record.id).collect();
    engine.rank(&Patient, &request).unwrap();
    assert_eq!((shown.len(), commits()), (2, before), "a search writes nothing");
    engine.store.flush().unwrap();
    let records = engine.store.list(&Filter::default(), 9, 0).unwrap();
    for record in records {
        assert_eq!(record.access_count, u64::from(shown.contains(&record.id)), "{}", record.text);
    }
}

#[test]
fn what_a_leg_did_not_hand_over_counts_with_its_score_in_it() {
    let (_folder, engine) = engine();
    let text = |n: usize| format!("{} {} {n}", WORDS[n % 4], WORDS[n / 4 % 4]);
    let texts = (0..40).map(|n| crate::engine::NewMemory { text: text(n), ..Default::default() });
    engine.add(&Patient, texts.collect()).unwrap();
    let found = |mode, k, keyword_weight| {
        let settings = Settings {
            mode,
            candidates: k,
            keyword_weight,
            document_weight: 0.0,
            ..engine.setup.config.memory.search.clone()
        };
        engine.rank(&Patient, &SearchRequest::new("lighthouse keeper", k, settings)).unwrap().order
    };
    let (words, meaning) = (found(SearchMode::Keyword, 40, 0.5), found(SearchMode::Vector, 40, 0.5));
    let score = |order: &[Ranked], id| order.iter().find(|ranked| ranked.id == id).map(|ranked| ranked.found);
    let mut completed = [0, 0];
    for (weight, leg) in [(1.0, &meaning), (0.0, &words)] {
        for hit in found(SearchMode::Hybrid, 5, weight) {
            completed[usize::from(weight == 0.0)] +=
                usize::from(!leg[..5].iter().any(|ranked| ranked.id == hit.id));
            let vector = hit.vector.map(|leg| leg.score).unwrap();
            assert!((vector - score(&meaning, hit.id).unwrap()).abs() < 1e-3, "{hit:?}");
            assert_eq!(hit.keyword.map(|leg| leg.score), score(&words, hit.id), "{hit:?}");
        }
    }
    assert!(completed.iter().all(|&n| n > 0), "{completed:?}");
}
