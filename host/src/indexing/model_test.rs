//! Indexes against the store: whatever is done to both in whatever order, a search finds what is stored.
use super::{snapshot::Snapshot, *};
use crate::{
    plugins::{PluginOptions, Plugins},
    store::{Durability, NewRecord, RecordId, StoreOptions},
};
use half::f16;
use magray_plugin_testkit::Cx;
use proptest::{collection::vec, prelude::*};
use std::{
    collections::BTreeMap,
    fs,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};
use tempfile::TempDir;

const LAYER: Layer = Layer::Insights;
const DIM: usize = 8;

struct World {
    folder: TempDir,
    store: Arc<Store>,
    plugins: Arc<Plugins>,
    indexes: Indexes,
    space: SpaceId,
    backend: &'static str,
    sync: SyncOptions,
    model: BTreeMap<u64, Vec<f32>>,
    texts: u64,
}

/// Small enough for every step to happen in a test.
fn small() -> SyncOptions {
    SyncOptions {
        seal_after: 10,
        max_age: Duration::from_secs(3600),
        immediate: false,
        batch_size: 8,
        merge_factor: 3,
        partition_max: 60,
        compact_percent: 20,
        recall_target: 0.95,
        search_threads: 2,
        worker_threads: 1,
    }
}

fn open_store(folder: &TempDir) -> Arc<Store> {
    let options = StoreOptions { durability: Durability::Normal, ..StoreOptions::default() };
    Arc::new(Store::open(&folder.path().join("magray.db"), &options).unwrap())
}

fn vector(seed: u64) -> Vec<f32> {
    let number = |i: u64| {
        let mut x = (seed * 97 + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        x ^= x >> 29;
        x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
        f16::from_f32(((x >> 40) % 2000) as f32 / 1000.0 - 1.0).to_f32()
    };
    (0..DIM as u64).map(number).collect()
}

fn cosine(a: &[f32], b: &[f32]) -> f64 {
    let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
    dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
}

impl World {
    fn new(backend: &'static str, sync: SyncOptions) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = open_store(&folder);
        let space = store.space([7; 32], "test", DIM).unwrap();
        let options =
            PluginOptions { data_dir: folder.path().into(), threads: 2, ..PluginOptions::default() };
        let linked = &[&magray_index_flat::PLUGIN, &magray_index_hnsw::PLUGIN];
        let plugins = Arc::new(Plugins::discover(options, linked));
        let indexes = Self::indexes(&folder, &store, &plugins, space, backend, &sync);
        Self { folder, store, plugins, indexes, space, backend, sync, model: BTreeMap::new(), texts: 0 }
    }

    fn indexes(
        folder: &TempDir,
        store: &Arc<Store>,
        plugins: &Arc<Plugins>,
        space: SpaceId,
        backend: &str,
        sync: &SyncOptions,
    ) -> Indexes {
        let options = IndexOptions {
            database: store.id().unwrap(),
            space,
            space_digest: [7; 32],
            dim: DIM,
            backend: backend.to_owned(),
            options: "{}".to_owned(),
            dir: folder.path().join("index"),
            sync: sync.clone(),
        };
        Indexes::new(&options, store, plugins)
    }

    /// What another process sees.
    fn other(&self) -> (Arc<Store>, Indexes) {
        let store = open_store(&self.folder);
        let indexes =
            Self::indexes(&self.folder, &store, &self.plugins, self.space, self.backend, &self.sync);
        (store, indexes)
    }

    fn reopen(&mut self) {
        (self.store, self.indexes) = self.other();
    }

    fn dir(&self) -> PathBuf {
        space_dir(&self.folder.path().join("index"), &[7; 32]).join(LAYER.name()).join(self.backend)
    }

    fn add(&mut self, count: u64) {
        let records = (0..count).map(|i| {
            let seed = self.texts + i;
            NewRecord { vector: Some(vector(seed)), ..NewRecord::new(LAYER, &seed.to_string()) }
        });
        let added = self.store.add(Some(self.space), records.collect()).unwrap();
        for (added, seed) in added.iter().zip(self.texts..) {
            self.model.insert(added.id.index_id(), vector(seed));
        }
        self.texts += count;
    }

    fn nth(&self, nth: u64) -> Option<u64> {
        self.model.keys().copied().nth((nth % self.model.len().max(1) as u64) as usize)
    }

    fn update(&mut self, nth: u64) {
        let Some(id) = self.nth(nth) else { return };
        self.texts += 1;
        let new = vector(self.texts + 1_000_000);
        self.store.put_vectors(self.space, &[(RecordId::from_index_id(id), new.clone())]).unwrap();
        self.model.insert(id, new);
    }

    fn forget(&mut self, first: u64, count: usize) {
        let Some(first) = self.nth(first) else { return };
        let ids: Vec<u64> = self.model.range(first..).take(count).map(|(&id, _)| id).collect();
        let records: Vec<_> = ids.iter().map(|&id| RecordId::from_index_id(id)).collect();
        self.store.forget(&records).unwrap();
        ids.iter().for_each(|id| drop(self.model.remove(id)));
    }

    fn sync(&self, extent: Extent) -> LayerSync {
        self.indexes.sync(&Cx::free(), Some(LAYER), extent).unwrap().remove(0)
    }

    fn stats(&self) -> LayerIndexStats {
        self.indexes.stats().unwrap().into_iter().find(|stats| stats.layer == LAYER).unwrap()
    }

    fn check(&self) {
        self.check_with(&self.indexes);
    }

    /// Compares answers with what the model says: each hit is one of the model and has its score, none is
    /// there twice, and they are the nearest, or near enough of an approximate index.
    fn check_with(&self, indexes: &Indexes) {
        let even: Vec<u64> = self.model.keys().copied().filter(|id| id % 2 == 0).collect();
        for seed in 0..4 {
            let query = vector(5_000_000 + seed);
            let filter = (seed % 2 == 1).then(|| IdFilter::sorted(&even));
            let k = [1, 5, 7, self.model.len() + 3][seed as usize];
            let found =
                indexes.search(&Cx::free(), LAYER, &query, k, SearchParams::default(), filter).unwrap();
            let mut exact: Vec<f64> = self
                .model
                .iter()
                .filter(|(id, _)| filter.is_none_or(|filter| filter.contains(**id)))
                .map(|(_, vector)| cosine(vector, &query))
                .collect();
            exact.sort_by(|a, b| b.total_cmp(a));
            exact.truncate(k);
            let mut seen = std::collections::BTreeSet::new();
            for hit in &found {
                assert!(seen.insert(hit.id), "{} twice", hit.id);
                let vector = self.model.get(&hit.id).unwrap_or_else(|| panic!("{} is gone", hit.id));
                assert!((cosine(vector, &query) - f64::from(hit.score)).abs() < 1e-3, "{hit:?}");
            }
            // So few rows are searched exactly by hnsw too.
            assert_eq!(found.len(), exact.len());
            for (hit, exact) in found.iter().zip(&exact) {
                assert!((f64::from(hit.score) - exact).abs() < 1e-3, "{hit:?} is not {exact}");
            }
        }
    }

    fn verify(&self) {
        let verdict = self.indexes.verify(&Cx::free(), Some(LAYER)).unwrap().remove(0);
        assert_eq!(verdict.findings, Vec::<String>::new());
    }
}

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

const DUE: Extent = Extent::Due { step_rows: 40 };

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

/// Bytes of all files below a folder.
fn bytes_below(dir: &Path) -> u64 {
    dir.read_dir()
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| {
            let metadata = entry.metadata().unwrap();
            if metadata.is_dir() { bytes_below(&entry.path()) } else { metadata.len() }
        })
        .sum()
}

#[test]
fn churn_leaves_at_most_twice_what_lives_on_disk() {
    let sync =
        SyncOptions { seal_after: 100, batch_size: 100, merge_factor: 4, partition_max: 4000, ..small() };
    let mut world = World::new("flat", sync);
    world.add(4000);
    world.sync(DUE);
    for round in 0..40 {
        // Old ones go, some are changed, new ones come; as the command line does, without ever compacting.
        world.forget(round * 7, 60);
        for nth in 0..60 {
            world.update(round * 131 + nth * 17);
        }
        world.add(50);
        let report = world.sync(Extent::Due { step_rows: 20_000 });
        assert!(report.synced);
        let live = world.model.len() as u64 * (4 * DIM as u64 + 16);
        let found = bytes_below(&world.dir());
        assert!(found <= 2 * live + (8 << 10), "{found} bytes for {live} in round {round}");
    }
    world.check();
    let stats = world.stats();
    assert!(stats.spared().unwrap() >= 0.95, "{stats:?}");
    assert!(stats.segments <= 12, "{stats:?}");
}

#[test]
fn sealing_writes_as_much_as_has_changed() {
    let sync =
        SyncOptions { seal_after: 1, batch_size: 10, merge_factor: 8, partition_max: 100_000, ..small() };
    let mut world = World::new("flat", sync);
    world.add(3000);
    assert_eq!(world.sync(DUE).rows_written, 3000);
    world.add(10);
    world.update(5);
    let report = world.sync(DUE);
    assert_eq!((report.changes, report.rows_written, report.segments), (11, 11, 2));
    let nothing = world.sync(Extent::All);
    assert_eq!((nothing.synced, nothing.rows_written), (false, 0));
    // A partition that is full is not touched again.
    let sync = SyncOptions { partition_max: 1000, ..world.sync.clone() };
    world.sync = sync;
    world.reopen();
    world.sync(Extent::Compact);
    assert_eq!(world.stats().segments, 4);
    world.check();
}

#[test]
fn what_is_committed_reaches_an_open_index_without_the_change_log() {
    let mut world = World::new("flat", small());
    world.add(20);
    world.check();
    // The log is gone, so only what is handed over can be seen.
    world.add(3);
    world.update(7);
    world.forget(2, 2);
    let head = world.store.head(world.space, LAYER).unwrap();
    world.store.prune_changes(world.space, LAYER, head).unwrap();
    world.check();
    // Another store's writes come by the log, and what follows them too.
    let (other, _) = world.other();
    let seed = 42;
    let record = NewRecord { vector: Some(vector(seed)), ..NewRecord::new(LAYER, "elsewhere") };
    let added = other.add(Some(world.space), vec![record]).unwrap();
    world.model.insert(added[0].id.index_id(), vector(seed));
    world.add(2);
    world.check();
}

#[test]
fn a_reader_of_an_old_snapshot_stays_right() {
    let mut world = World::new("flat", small());
    world.add(100);
    world.sync(DUE);
    let (_store, reader) = world.other();
    world.check_with(&reader);
    // All that it has open is removed and the log is cut, again and again.
    for _ in 0..4 {
        world.update(3);
        world.forget(50, 5);
        world.add(15);
        world.sync(Extent::Rebuild);
        world.check_with(&reader);
    }
}

#[test]
fn searches_beside_writers_and_sealing_see_whole_states() {
    let mut world = World::new("flat", SyncOptions { seal_after: 30, ..small() });
    world.add(200);
    world.check();
    let stable: Vec<u64> = world.model.keys().copied().collect();
    let (stop, searches) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (world, stable, stop, searches) = (&world, &stable, &stop, &searches);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    let id = stable
                        [(searches.fetch_add(1, Ordering::Relaxed) as usize * 7 + thread) % stable.len()];
                    let query = &world.model[&id];
                    let found = world
                        .indexes
                        .search(&Cx::free(), LAYER, query, 3, SearchParams::default(), None)
                        .unwrap();
                    assert!(found.iter().any(|hit| hit.id == id && hit.score > 0.999), "{id}: {found:?}");
                }
            });
        }
        // Changes of others, so that every search finds the rows above in whatever segment they are.
        for round in 0..60u64 {
            let record = |i: u64| {
                let seed = 10_000 + round * 20 + i;
                NewRecord { vector: Some(vector(seed)), ..NewRecord::new(LAYER, &seed.to_string()) }
            };
            let added = world.store.add(Some(world.space), (0..20).map(record).collect()).unwrap();
            let gone: Vec<_> = added.iter().map(|added| added.id).take(10).collect();
            world.store.forget(&gone).unwrap();
            if round % 5 == 0 {
                world.sync(Extent::All);
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(searches.load(Ordering::Relaxed) > 50);
    assert!(world.stats().syncs > 5, "{:?}", world.stats());
    world.verify();
}

#[test]
fn a_worker_seals_what_is_due_by_number_and_by_age() {
    for sync in [
        SyncOptions { immediate: true, ..small() },
        SyncOptions { seal_after: 1000, max_age: Duration::ZERO, ..small() },
    ] {
        let mut world = World::new("flat", sync);
        world.check();
        let worker = world.indexes.start_worker().unwrap();
        world.add(25);
        while world.stats().tail > 0 {
            std::thread::yield_now();
        }
        world.check();
        drop(worker);
        assert_eq!(world.stats().sealed, 25);
    }
}

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

#[test]
fn one_process_seals_and_another_leaves_it_to_that() {
    let mut world = World::new("flat", small());
    world.add(50);
    fs::create_dir_all(world.dir()).unwrap();
    let lock = fs::File::create(world.dir().join("lock")).unwrap();
    lock.lock().unwrap();
    let report = world.sync(Extent::All);
    assert!(report.busy && !report.synced);
    drop(lock);
    assert!(world.sync(Extent::All).synced);
}

#[test]
fn opening_hashes_nothing_that_was_hashed_before() {
    let mut world = World::new("flat", small());
    world.add(100);
    world.sync(Extent::All);
    let listed = snapshot::newest(&world.dir()).unwrap().segments;
    let hashed = |care| -> u64 {
        listed.iter().map(|listed| segment::check(&Cx::free(), &world.dir(), listed, care).unwrap()).sum()
    };
    let all = hashed(segment::Care::Hash);
    assert_eq!(all, listed.iter().map(|listed| listed.bytes).sum::<u64>());
    // As if it had been checked a while after it was written.
    for listed in &listed {
        trust::age(&listed.path(&world.dir()));
    }
    assert_eq!(hashed(segment::Care::Trust), if cfg!(unix) { 0 } else { all });
    let file = listed[0].path(&world.dir()).join("vectors.bin");
    fs::write(&file, fs::read(&file).unwrap()).unwrap();
    assert_eq!(hashed(segment::Care::Trust), listed[0].bytes);
}

#[test]
fn damage_to_any_file_of_an_index_costs_no_record() {
    let mut world = World::new("flat", small());
    world.add(100);
    world.sync(Extent::All);
    world.forget(20, 5);
    world.add(20);
    world.sync(DUE);
    let files = |dir: &Path| -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut folders = vec![dir.to_owned()];
        while let Some(folder) = folders.pop() {
            for entry in folder.read_dir().unwrap().flatten() {
                match entry.metadata().unwrap().is_dir() {
                    true => folders.push(entry.path()),
                    false if entry.file_name() != "lock" => found.push(entry.path()),
                    false => {}
                }
            }
        }
        found.sort();
        found
    };
    let count = files(&world.dir()).len();
    assert!(count >= 10, "{count} files");
    for number in 0..3 * count {
        let present = files(&world.dir());
        let file = &present[number % present.len()];
        let mut bytes = fs::read(file).unwrap();
        let at = bytes.len() * (number + 1) / (3 * count + 1);
        match number % 3 {
            0 => bytes[at] ^= 0x10,
            1 => bytes.truncate(at),
            _ => {}
        }
        if number % 3 == 2 {
            fs::remove_file(file).unwrap();
        } else {
            fs::write(file, bytes).unwrap();
        }
        world.reopen();
        world.check();
        world.sync(DUE);
        world.check();
        world.reopen();
        world.check();
        world.verify();
        assert!(world.stats().tail < 10, "{:?} after {}", world.stats(), file.display());
    }
}

#[test]
fn rot_is_found_by_a_look_at_each_part() {
    let mut world = World::new("flat", small());
    world.add(50);
    world.sync(Extent::All);
    world.check();
    let listed = snapshot::newest(&world.dir()).unwrap().segments.remove(0);
    let looks: u64 = (0..30).map(|pick| world.indexes.scrub(pick)).sum();
    assert!(looks >= listed.bytes, "{looks} of {}", listed.bytes);
    let file = listed.path(&world.dir()).join("vectors.bin");
    let mut bytes = fs::read(&file).unwrap();
    bytes[100] ^= 1;
    fs::write(&file, bytes).unwrap();
    for pick in 0..30 {
        world.indexes.scrub(pick);
    }
    assert!(!file.exists());
    world.check();
    world.sync(DUE);
    assert_eq!(world.stats().sealed, 50);
    world.verify();
}

#[test]
fn an_index_of_the_format_before_is_built_anew() {
    let mut world = World::new("flat", small());
    world.add(30);
    let old = world.dir().join("30");
    fs::create_dir_all(&old).unwrap();
    fs::write(old.join("manifest.json"), "{}").unwrap();
    world.check();
    world.sync(DUE);
    assert!(!old.exists());
    assert_eq!(world.stats().sealed, 30);
    // So is one of a format that is not known.
    let file = snapshot::path(&world.dir(), 1);
    let text = fs::read_to_string(&file).unwrap().replace("\"format\": 2", "\"format\": 3");
    fs::write(&file, text).unwrap();
    world.reopen();
    world.check();
    world.sync(DUE);
    assert_eq!(world.stats().sealed, 30);
    world.verify();
}

#[test]
fn verification_says_what_is_wrong() {
    let mut world = World::new("flat", small());
    let verdict = |world: &World| world.indexes.verify(&Cx::free(), Some(LAYER)).unwrap().remove(0);
    assert!(verdict(&world).notes[0].contains("nothing is sealed"));
    world.add(40);
    world.sync(Extent::All);
    let well = verdict(&world);
    assert_eq!(well.recall.map(|recall| recall.recall), Some(1.0));
    assert!(well.bytes > 0 && well.rows == 40 && well.findings.is_empty(), "{well:?}");

    // A row that the log never told of.
    let head = world.store.head(world.space, LAYER).unwrap();
    world.add(1);
    let listed = snapshot::newest(&world.dir()).unwrap();
    let identity = world
        .indexes
        .shared
        .layers
        .iter()
        .find(|index| index.settings.layer == LAYER)
        .unwrap()
        .identity()
        .unwrap();
    let later = Snapshot { generation: 2, covered_seq: head + 1, ..listed.clone() };
    snapshot::write(&world.dir(), &identity, &later).unwrap();
    assert_eq!(verdict(&world).findings, ["1 vectors of the store are not in the index"]);
    snapshot::write(&world.dir(), &identity, &Snapshot { generation: 3, ..listed.clone() }).unwrap();
    assert_eq!(verdict(&world).findings, Vec::<String>::new());

    let file = listed.segments[0].path(&world.dir()).join("vectors.bin");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    fs::write(&file, bytes).unwrap();
    let found = verdict(&world).findings;
    assert!(found.len() == 1 && found[0].contains("vectors.bin does not match its digest"), "{found:?}");
    world.sync(Extent::Rebuild);
    world.verify();
}
