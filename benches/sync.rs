//! What it takes until a commit can be found: the work of the index after the store's transaction, by
//! number of changes and number of vectors stored, in CPU time. And what the ways not taken would take.
//!
//! `MAGRAY_BENCH_ROWS` lists the numbers stored, such as `10000,100000,1000000`.
#![expect(clippy::print_stderr, reason = "what is made ready, which criterion has no place for")]

use criterion::{
    BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main,
    measurement::{Measurement, ValueFormatter},
};
use half::f16;
use magray::{
    indexing::{Extent, IndexOptions, Indexes, SyncOptions},
    plugins::{PluginOptions, Plugins},
    store::{Changes, Commit, Durability, Layer, NewRecord, SpaceId, Store, StoreOptions},
};
use magray_plugin_api::{CreateVectorIndex, IndexSpec, Metric, SearchParams, VectorIndex};
use magray_plugin_testkit::{Cx, HOST};
use std::{
    env,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const DIM: usize = 384;
const LAYER: Layer = Layer::Insights;

/// Nanoseconds that this process has computed.
struct CpuTime;

impl CpuTime {
    fn now() -> f64 {
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the clock exists on every system that criterion runs on, and `time` is ours.
        assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
        time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
    }
}

impl Measurement for CpuTime {
    type Intermediate = f64;
    type Value = f64;
    fn start(&self) -> f64 {
        Self::now()
    }
    fn end(&self, start: f64) -> f64 {
        Self::now() - start
    }
    fn add(&self, a: &f64, b: &f64) -> f64 {
        a + b
    }
    fn zero(&self) -> f64 {
        0.0
    }
    fn to_f64(&self, value: &f64) -> f64 {
        *value
    }
    fn formatter(&self) -> &dyn ValueFormatter {
        &Microseconds
    }
}

struct Microseconds;

impl ValueFormatter for Microseconds {
    fn scale_values(&self, _: f64, values: &mut [f64]) -> &'static str {
        values.iter_mut().for_each(|value| *value /= 1e3);
        "us"
    }
    fn scale_throughputs(&self, _: f64, throughput: &Throughput, values: &mut [f64]) -> &'static str {
        if let Throughput::Elements(count) = throughput {
            values.iter_mut().for_each(|value| *value = *count as f64 / *value * 1e3);
        }
        "changes/ms"
    }
    fn scale_for_machines(&self, _: &mut [f64]) -> &'static str {
        "ns"
    }
}

/// A stored memory of so many vectors, all sealed, and the indexes over it.
struct World {
    folder: TempDir,
    store: Arc<Store>,
    plugins: Arc<Plugins>,
    space: SpaceId,
    rows: u64,
}

fn vector(seed: u64) -> Vec<f32> {
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut number = || {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let mut vector: Vec<f32> = (0..DIM).map(|_| number()).collect();
    let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
    vector.iter_mut().for_each(|v| *v /= length);
    vector
}

fn record(seed: u64) -> NewRecord {
    NewRecord { vector: Some(vector(seed)), ..NewRecord::new(LAYER, seed.to_string()) }
}

impl World {
    fn new(rows: u64) -> Self {
        let started = Instant::now();
        let folder = tempfile::tempdir().expect("a folder");
        let options = StoreOptions { durability: Durability::Normal, ..StoreOptions::default() };
        let store = Arc::new(Store::open(&folder.path().join("magray.db"), &options).expect("a store"));
        let space = store.space([7; 32], "bench", DIM).expect("a space");
        let options =
            PluginOptions { data_dir: folder.path().into(), threads: 2, ..PluginOptions::default() };
        let plugins = Arc::new(Plugins::discover(options, &[&magray_index_flat::PLUGIN]));
        for first in (0..rows).step_by(10_000) {
            let records = (first..rows.min(first + 10_000)).map(record).collect();
            store.add(Some(space), records).expect("stored");
        }
        let world = Self { folder, store, plugins, space, rows };
        world.indexes().sync(&Cx::free(), None, Extent::All).expect("sealed");
        eprintln!("{rows} vectors stored and sealed in {:.0?}", started.elapsed());
        world
    }

    fn indexes(&self) -> Indexes {
        let sync = SyncOptions {
            seal_after: 50,
            max_age: Duration::from_secs(300),
            batch_size: 1000,
            merge_factor: 8,
            partition_max: 1_000_000,
            compact_percent: 20,
            recall_target: 0.0,
            search_threads: 2,
            min_free_bytes: 0,
        };
        let options = IndexOptions {
            database: self.store.id().expect("an id"),
            space: self.space,
            space_digest: [7; 32],
            dim: DIM,
            backend: "flat".to_owned(),
            options: "{}".to_owned(),
            dir: self.folder.path().join("index"),
            sync,
        };
        Indexes::new(&options, &self.store, &self.plugins)
    }

    /// Opened by a search, as in a process that has answered before.
    fn opened(&self) -> Indexes {
        let indexes = self.indexes();
        search(&indexes, &vector(1), 1);
        indexes
    }

    /// What the store hands over of a transaction with so many changes: all new, or a third each of new,
    /// changed and removed.
    fn commit(&self, count: u64, mixed: bool) -> Commit {
        let before = self.store.head(self.space, LAYER).expect("a head");
        let mut changes = Changes { head: before + count, complete: true, ..Changes::default() };
        let mut upsert = |id: u64| {
            changes.upserts.push(id);
            changes.vectors.extend(vector(id + 5_000_000).into_iter().map(f16::from_f32));
        };
        // Ids from 1; the changed ones lie all over.
        let third = if mixed { count / 3 } else { 0 };
        let step = (self.rows / (2 * third).max(1)).max(1);
        (0..third).for_each(|i| upsert(1 + (2 * i) * step % self.rows));
        (0..count - 2 * third).for_each(|i| upsert(self.rows + 1 + i));
        changes.removed = (0..third).map(|i| 1 + (2 * i + 1) * step % self.rows).collect();
        Commit { space: self.space, layer: LAYER, before, changes: Arc::new(changes) }
    }
}

fn search(indexes: &Indexes, query: &[f32], k: usize) -> Vec<magray_plugin_api::Hit> {
    let found = indexes.search(&Cx::free(), LAYER, query, k, SearchParams::default(), None);
    found.unwrap_or_else(|error| panic!("{error}"))
}

fn after_commit(c: &mut Criterion<CpuTime>) {
    let sizes = env::var("MAGRAY_BENCH_ROWS").unwrap_or_else(|_| "10000,100000".to_owned());
    for rows in sizes.split(',').map(|rows| rows.trim().parse().expect("a number")) {
        let world = World::new(rows);
        let mut group = c.benchmark_group(format!("{rows} stored"));
        group.sample_size(30);
        for (count, mixed) in [(100, false), (1000, false), (10_000, false), (10_000, true)] {
            if mixed && rows < count {
                continue;
            }
            let commit = world.commit(count, mixed);
            let name = if mixed { "a third each new, changed, removed" } else { "new" };
            group.throughput(Throughput::Elements(count));
            group.bench_with_input(
                BenchmarkId::new(format!("after a commit, {name}"), count),
                &commit,
                |b, commit| {
                    b.iter_batched(
                        || world.opened(),
                        |indexes| {
                            indexes.receive(commit);
                            indexes
                        },
                        BatchSize::PerIteration,
                    );
                },
            );
            let indexes = world.opened();
            indexes.receive(&commit);
            let sought = vector(world.rows + 1 + 5_000_000);
            assert_eq!(search(&indexes, &sought, 1)[0].id, world.rows + 1);
            for removed in commit.changes.removed.iter().take(20) {
                assert!(search(&indexes, &vector(removed - 1), 3).iter().all(|hit| hit.id != *removed));
            }
            if count == 10_000 {
                let mut at = 0;
                group.bench_function(format!("a search beside {count} {name}"), |b| {
                    b.iter(|| {
                        at += 1;
                        black_box(search(&indexes, &vector(at), 10))
                    });
                });
            }
        }
        let indexes = world.opened();
        let mut at = 0;
        group.bench_function("a search of what is sealed", |b| {
            b.iter(|| {
                at += 1;
                black_box(search(&indexes, &vector(at), 10))
            });
        });
        group.bench_function("opening what is sealed, and a search", |b| {
            b.iter(|| black_box(world.opened()));
        });
        group.finish();
        if rows == 10_000 {
            transaction(c, &world);
        }
    }
}

/// A transaction of 1000 records with and without an open index that is handed them, and the same change
/// read back from the log, as a process does that did not write it.
fn transaction(c: &mut Criterion<CpuTime>, world: &World) {
    let mut group = c.benchmark_group("a transaction of 1000");
    group.sample_size(10);
    let mut next = 10_000_000;
    let mut batch = || {
        next += 1000;
        (next..next + 1000).map(record).collect::<Vec<_>>()
    };
    group.bench_function("with no index open", |b| {
        b.iter_batched(
            &mut batch,
            |records| world.store.add(Some(world.space), records),
            BatchSize::PerIteration,
        );
    });
    let indexes = world.opened();
    group.bench_function("with an index open", |b| {
        b.iter_batched(
            &mut batch,
            |records| world.store.add(Some(world.space), records),
            BatchSize::PerIteration,
        );
    });
    drop(indexes);
    let options = StoreOptions { durability: Durability::Normal, ..StoreOptions::default() };
    let other = Store::open(world.store.path(), &options).expect("a store");
    let head = other.head(world.space, LAYER).expect("a head");
    group.bench_function("read back from the log", |b| {
        b.iter(|| black_box(other.changes_after(world.space, LAYER, head - 1000).expect("changes")));
    });
    group.finish();
}

/// What telling the plugin of 10,000 removed rows would take, instead of leaving them out of its answers.
fn remove(c: &mut Criterion<CpuTime>) {
    let rows = 20_000u64;
    let ids: Vec<u64> = (0..rows).collect();
    let vectors: Vec<f32> = ids.iter().flat_map(|&id| vector(id)).collect();
    let gone: Vec<u64> = (0..rows).step_by(2).collect();
    let spec = IndexSpec { dim: DIM, metric: Metric::Cosine };
    let mut group = c.benchmark_group("plugin.remove of 10000");
    group.sample_size(10);
    let flat = || {
        let index = magray_index_flat::Flat::create(magray_index_flat::Options {}, spec, HOST)
            .unwrap_or_else(|error| panic!("{error}"));
        index.upsert(&Cx::free(), &ids, &vectors).unwrap_or_else(|error| panic!("{error}"));
        let dir = tempfile::tempdir().expect("a folder");
        index.save(&Cx::free(), dir.path()).unwrap_or_else(|error| panic!("{error}"));
        let opened = magray_index_flat::Flat::open(magray_index_flat::Options {}, spec, dir.path(), HOST);
        (opened.unwrap_or_else(|error| panic!("{error}")), dir)
    };
    group.bench_function("flat", |b| {
        b.iter_batched(
            flat,
            |(index, dir)| {
                index.remove(&Cx::free(), &gone).unwrap_or_else(|error| panic!("{error}"));
                (index, dir)
            },
            BatchSize::PerIteration,
        );
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime).warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = after_commit, remove
}
criterion_main!(benches);
