use super::*;
use crate::{
    config::Config,
    engine::{ModelOrigins, NewMemory, SearchRequest, Setup, Validity, now_ms},
    memory::promotion::{PromotionOptions, Weighing},
    services::Life,
    store::{Filter, Layer, NewRecord},
};
use magray_plugin_testkit::Cx;
use std::{sync::mpsc, thread};
use tempfile::TempDir;

/// An engine whose background does only what is set here.
fn engine(settings: &[(&str, toml::Value)]) -> (TempDir, Arc<Engine>) {
    let folder = tempfile::tempdir().unwrap();
    let engine = reopened(&folder, settings);
    (folder, engine)
}

/// The same over a folder that may be there already.
fn reopened(folder: &TempDir, settings: &[(&str, toml::Value)]) -> Arc<Engine> {
    let off = ["seal", "merge", "embed", "expire", "trim", "recall", "scrub"]
        .map(|task| (format!("background.{task}_seconds"), toml::Value::from(0)));
    let on = settings.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
    let settings: Vec<_> = off.into_iter().chain(on).collect();
    let file = folder.path().join("config.toml");
    std::fs::write(&file, "").unwrap();
    let config = Config::load(Some(&file), std::iter::empty(), &settings).unwrap().config;
    let setup = Setup {
        config,
        origins: ModelOrigins::default(),
        data_dir: folder.path().join("data"),
        plugin_dirs: Vec::new(),
        executable: None,
        project: None,
    };
    Arc::new(Engine::open(setup).unwrap())
}

fn add(engine: &Engine, count: u32) {
    let memory = |i| NewMemory { text: format!("entry {i} says {}", i * i), ..NewMemory::default() };
    engine.add(&Cx::free(), (0..count).map(memory).collect()).unwrap();
}

#[test]
fn records_without_a_vector_are_embedded_and_those_past_their_time_go() {
    let second = toml::Value::from(1);
    let (_folder, engine) = engine(&[
        ("background.embed_seconds", second.clone()),
        ("background.expire_seconds", second.clone()),
        ("background.trim_seconds", second.clone()),
        ("background.scrub_seconds", second),
    ]);
    let records = vec![
        NewRecord::new(Layer::Insights, "a note of the tide"),
        NewRecord { expires_ms: Some(now_ms() - 1), ..NewRecord::new(Layer::Interact, "gone") },
    ];
    engine.store().add(None, records).unwrap();
    let (told, runs) = mpsc::channel();
    let background = engine
        .start_background(move |run| {
            let did = run.outcome.as_ref().map(|did| did.first().map_or(0, |count| count.1));
            told.send((run.task, did.unwrap())).unwrap();
        })
        .unwrap();
    let (mut embedded, mut expired, mut others) = (0, 0, Vec::new());
    while embedded == 0 || expired == 0 || others.len() < 4 {
        match runs.recv().unwrap() {
            ("embed", count) => embedded += count,
            // A cycle of promotion looks at what is due as well.
            ("expire" | "promote", count) => expired += count,
            // Nothing is cached that could be out of date, no session began, and no file is damaged.
            (task, 0) if !others.contains(&task) => others.push(task),
            (task, count) => assert!(others.contains(&task) && count == 0, "{task}: {count}"),
        }
    }
    // Whichever of the two came first, one that is gone has no need of a vector.
    assert!((1..=2).contains(&embedded) && expired == 1, "{embedded}, {expired}");
    assert_eq!((engine.unembedded().unwrap(), engine.store().count(&Filter::default()).unwrap()), (0, 1));
    drop(background);
    // Nothing of it keeps the engine.
    assert_eq!(Arc::strong_count(&engine), 1);
}

#[test]
fn what_is_due_is_sealed_at_once_where_the_workload_asks_for_it() {
    let (_folder, engine) = engine(&[
        ("background.seal_seconds", toml::Value::from(86_400)),
        ("memory.sync.workload", toml::Value::from("realtime_chat")),
    ]);
    let background = engine.start_background(|_| {}).unwrap();
    let seal = |background: &Background| background.metrics()[0];
    // The first run is at the start, the next one only tomorrow.
    while seal(&background).runs == 0 {
        thread::yield_now();
    }
    add(&engine, 30);
    let tail = || engine.indexes().unwrap().stats().unwrap().iter().map(|layer| layer.tail).sum::<u64>();
    while tail() > 0 {
        thread::yield_now();
    }
    drop(background);
    // Nobody hears of this one, and nothing is sealed.
    add(&engine, 60);
    assert_eq!(tail(), 30);
}

#[test]
fn a_session_counts_as_one_access_of_a_record() {
    let (_folder, engine) = engine(&[]);
    add(&engine, 1);
    let search = |session: Option<&str>| {
        let filter = Filter { session: session.map(str::to_owned), ..Filter::default() };
        let request = SearchRequest {
            query: "entry 0 says 0".to_owned(),
            k: 1,
            filter,
            validity: Validity::Now,
            min_score: None,
            settings: engine.setup().config.memory.search.clone(),
        };
        engine.search(&Cx::free(), &request).unwrap().hits.len()
    };
    let accesses = || {
        engine.store().flush().unwrap();
        engine.store().list(&Filter::default(), 1, 0).unwrap()[0].access_count
    };
    let before = accesses();
    assert_eq!((search(None), search(None)), (1, 1));
    assert_eq!(accesses(), before + 2);

    let record = NewMemory {
        text: "a note of the tide".to_owned(),
        session: Some("one".to_owned()),
        ..NewMemory::default()
    };
    engine.add(&Cx::free(), vec![record]).unwrap();
    let before = accesses();
    assert_eq!((search(Some("one")), search(Some("one")), search(Some("one"))), (1, 1, 1));
    assert_eq!(accesses(), before + 1);
}

#[test]
fn the_parts_of_the_engine_are_made_as_they_are_needed() {
    let (_folder, engine) = engine(&[]);
    let made = |life| {
        let metrics = engine.service_metrics();
        metrics.iter().filter(|service| service.life == life).map(|service| service.made).sum::<u64>()
    };
    // Folders and settings, the store, the plugins.
    assert_eq!((made(Life::Singleton), made(Life::Lazy), made(Life::Transient)), (3, 0, 0));
    let together = std::sync::Barrier::new(4);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                together.wait();
                engine.indexes().map(drop).unwrap();
            });
        }
    });
    // One model, and one cache for it, whoever raced.
    assert_eq!((made(Life::Lazy), made(Life::Transient), made(Life::Scoped)), (1, 1, 0));
}

#[test]
fn records_past_their_time_go_where_no_model_can_be_had() {
    let without_model = [("ai.embedding.model_name", toml::Value::from("no-such-model"))];
    let due =
        |text: &str| NewRecord { expires_ms: Some(now_ms() - 1), ..NewRecord::new(Layer::Interact, text) };
    let counts = |engine: &Engine| engine.store().count(&Filter::default()).unwrap();

    // Nothing was ever embedded.
    let (_folder, engine) = engine(&without_model);
    engine.store().add(None, vec![due("gone"), NewRecord::new(Layer::Interact, "stays")]).unwrap();
    assert!(engine.vectors().is_err());
    assert_eq!(engine.expire(&Cx::free()).unwrap(), [("record", 1), ("promotion", 0)]);
    assert_eq!((engine.expire(&Cx::free()).unwrap(), counts(&engine)), (Counts::new(), 1));
    // A command leaves nothing either, whatever it says of its indexes.
    engine.store().add(None, vec![due("gone")]).unwrap();
    assert!(engine.upkeep(&Cx::free()).is_err());
    assert_eq!(counts(&engine), 1);

    // What was embedded is judged by its vector all the same.
    let (folder, with_model) = self::engine(&[]);
    add(&with_model, 3);
    with_model.store().add(None, vec![due("gone")]).unwrap();
    drop(with_model);
    let engine = reopened(&folder, &without_model);
    let ids: Vec<_> = engine.store().list(&Filter::default(), 9, 0).unwrap().iter().map(|it| it.id).collect();
    engine.store().touch(&ids, now_ms());
    let report =
        engine.promote(&Cx::free(), &PromotionOptions { explain: true, ..Default::default() }).unwrap();
    let similar = |weighing: &&Weighing| weighing.score.similarity.is_some_and(|near| near > 0.0);
    assert_eq!((report.expired, report.weighed), (1, 4), "{report:?}");
    assert_eq!(report.stays.iter().filter(similar).count(), 3, "{report:?}");
    assert_eq!(counts(&engine), 3);
}
