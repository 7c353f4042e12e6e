//! Indexes against the store: whatever is done to both, a search finds what is stored.
mod files;
mod liar;
mod memory;
mod model;
mod recall;
mod sync;

use super::*;
use crate::{
    plugins::{PluginOptions, Plugins},
    store::{Durability, NewRecord, RecordId, StoreOptions},
};
use half::f16;
use magray_plugin_testkit::Cx;
use std::{collections::BTreeMap, time::Duration};
use tempfile::TempDir;

const LAYER: Layer = Layer::Insights;
const DIM: usize = 8;
const DUE: Extent = Extent::Due { step_rows: 40 };

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
        batch_size: 8,
        merge_factor: 3,
        partition_max: 60,
        compact_percent: 20,
        recall_target: 0.95,
        search_threads: 2,
        min_free_bytes: 0,
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
        let linked = &[&magray_index_flat::PLUGIN, &magray_index_hnsw::PLUGIN, &liar::PLUGIN];
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
            NewRecord { vector: Some(vector(seed)), ..NewRecord::new(LAYER, seed.to_string()) }
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
