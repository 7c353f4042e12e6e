//! The one facade that the command line, and every later way in, uses.
mod add;
mod backends;
mod background;
mod backup;
mod error;
mod govern;
mod index_files;
mod memory;
mod model;
mod promote;
mod reembed;
mod rerank;
mod room;
mod search;
mod session;
mod setup;
mod transfer;
mod upkeep;

pub use add::NewMemory;
pub use background::Background;
pub use backup::{BackupReport, RestoreReport};
pub use error::EngineError;
pub use govern::{Governor, Grants, Tick, fit};
pub use index_files::{FileReport, IndexProgress, IndexReport, IndexRequest};
pub use memory::{ComponentMemory, GpuMemory, MemoryReport};
pub use model::{ModelChoice, ModelOrigins};
pub use reembed::{Place, Reembed, ReembedPlan, ReembedReport, SpaceReport};
pub use rerank::Reranking;
pub use search::{
    KeywordLeg, Ranked, Ranking, SearchHit, SearchRequest, SearchResponse, Validity, VectorLeg,
};
pub use setup::{LINKED, Setup, default_data_dir};
pub use transfer::{BadLine, ExportReport, ExportVectors, ImportInput, ImportProgress, ImportReport};

use crate::{
    config::LayerSettings,
    embedding::{CacheLimits, Embedding, EmbeddingCache, Gate},
    indexing::{IndexOptions, Indexes, SyncOptions},
    plugins::Plugins,
    resources::total_memory,
    services::{Life, Once, ServiceMetrics, Services},
    store::{self, Layer, SpaceId, Store, StoreOptions},
};
use magray_plugin_api::ComponentKind;
use rerank::Rerankers;
use session::Shown;
use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

/// Store, plugins and indexes as one thing.
///
/// Threads: any number of calls at once. A call that needs the embedding backend loads it first.
#[expect(missing_debug_implementations, reason = "backends have nothing to show")]
pub struct Engine {
    setup: Arc<Setup>,
    store: Arc<Store>,
    plugins: Arc<Plugins>,
    /// What the others are made by, and are kept by where they are made later.
    services: Services<EngineError>,
    /// Up to this id of a record there is room for vectors, whether there were counted or not.
    counted_to: AtomicU64,
    /// Searches that run.
    searching: AtomicUsize,
    /// That of the background work; made by its first look.
    governor: Once<Mutex<Governor>>,
    /// Holds the database of one that is detached; goes last.
    scratch: Option<TempDir>,
}

/// The embedding backend, the space of its vectors, and the indexes over them.
pub(crate) struct Vectors {
    pub(crate) embedding: Embedding,
    pub(crate) space: SpaceId,
    pub(crate) indexes: Indexes,
    pub(crate) index_backend: String,
    pub(crate) choice: ModelChoice,
    /// Those of the model that was switched to while these were in use.
    next: Loaded,
}

/// A place for the vectors of a model that is loaded when it is first needed.
#[derive(Default)]
struct Loaded(Once<Box<Vectors>>);

impl Engine {
    /// Opens the store. Backends are loaded when they are first needed.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub fn open(setup: Setup) -> Result<Self, EngineError> {
        Self::open_store(setup, false)
    }

    /// As [`Engine::open`], for commands that only read: the database must be there and is not
    /// changed, so its folder may be read only.
    ///
    /// # Errors
    /// [`EngineError::Store`].
    pub fn open_read_only(setup: Setup) -> Result<Self, EngineError> {
        Self::open_store(setup, true)
    }

    /// For what needs a model and no records: nothing in the data folder is written, and there need
    /// be none. The model is the one in force there.
    ///
    /// # Errors
    /// [`EngineError`].
    pub fn open_detached(mut setup: Setup) -> Result<Self, EngineError> {
        if setup.database().exists() {
            // One that cannot be read was never switched, as far as can be told.
            match Self::open_store(setup.clone(), true).and_then(|engine| engine.model()) {
                Ok(choice) => setup.config = setup.config_with(&choice),
                Err(error) => tracing::debug!("the model is that of the configuration: {error}"),
            }
        }
        let failed = |error: std::io::Error| {
            EngineError::Invalid(format!("cannot make a folder for temporary files: {error}"))
        };
        let scratch = tempfile::tempdir().map_err(failed)?;
        let options = StoreOptions { durability: store::Durability::Normal, ..StoreOptions::default() };
        let database = scratch.path().join("magray.db");
        Self::build(setup, move |_| Ok(Arc::new(Store::open(&database, &options)?)), Some(scratch))
    }

    fn open_store(setup: Setup, read_only: bool) -> Result<Self, EngineError> {
        let open = move |setup: &Setup| {
            let settings = &setup.config.store;
            let options = StoreOptions {
                durability: match settings.durability {
                    crate::config::Durability::Full => store::Durability::Full,
                    crate::config::Durability::Normal => store::Durability::Normal,
                },
                busy_timeout: Duration::from_millis(settings.busy_timeout_ms),
                read_only,
            };
            Ok(Arc::new(Store::open(&setup.database(), &options)?))
        };
        Self::build(setup, open, None)
    }

    /// Puts the parts together. The store and the plugins are made now, side by side; a model and its indexes
    /// when they are first needed, each with a cache of its own in memory; and what is known of a session when
    /// that begins.
    fn build(
        setup: Setup,
        open: impl Fn(&Setup) -> Result<Arc<Store>, EngineError> + Send + Sync + 'static,
        scratch: Option<TempDir>,
    ) -> Result<Self, EngineError> {
        let idle = setup.config.memory.session_idle.duration(None);
        let setup = Arc::new(setup);
        let given = Arc::clone(&setup);
        let services = Services::builder()
            .register::<Arc<Setup>, ()>(Life::Singleton, move |()| Ok(Arc::clone(&given)))
            .register::<Arc<Store>, (Arc<Setup>,)>(Life::Singleton, move |(setup,): (&Arc<Setup>,)| {
                open(setup)
            })
            .register::<Arc<Plugins>, (Arc<Setup>,)>(Life::Singleton, |(setup,): (&Arc<Setup>,)| {
                Ok(Arc::new(setup.plugins()))
            })
            .register::<Loaded, ()>(Life::Lazy, |()| Ok(Loaded::default()))
            .register::<Rerankers, ()>(Life::Lazy, |()| Ok(Rerankers::default()))
            .register::<EmbeddingCache, (Arc<Setup>, Arc<Plugins>)>(Life::Transient, memory_cache)
            .register::<Shown, ()>(Life::Scoped, |()| Ok(Shown::default()))
            .scope_life(idle)
            .build_and_warm_up()?;
        let store = Arc::clone(services.get()?);
        let plugins = Arc::clone(services.get()?);
        let (counted_to, searching, governor) = (AtomicU64::new(0), AtomicUsize::new(0), Once::default());
        Ok(Self { setup, store, plugins, services, counted_to, searching, governor, scratch })
    }

    /// How often each part was asked for, and what that took.
    pub fn service_metrics(&self) -> Vec<ServiceMetrics> {
        self.services.metrics()
    }

    /// The records.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The folders and settings that it was opened with.
    pub fn setup(&self) -> &Setup {
        &self.setup
    }

    /// The embedding backend; loads it.
    ///
    /// # Errors
    /// [`EngineError`] where the backend cannot be had.
    pub fn embedding(&self) -> Result<&Embedding, EngineError> {
        Ok(&self.vectors()?.embedding)
    }

    /// The indexes; loads the embedding backend, which decides their space.
    ///
    /// # Errors
    /// [`EngineError`] where a backend cannot be had.
    pub fn indexes(&self) -> Result<&Indexes, EngineError> {
        Ok(&self.vectors()?.indexes)
    }

    /// Those of the model in force, which another process may switch at any time: take them once for
    /// what must fit together. Those of a former model are kept, for whoever still uses them.
    pub(crate) fn vectors(&self) -> Result<&Vectors, EngineError> {
        let choice = self.model()?;
        let mut place = self.services.get::<Loaded>()?;
        loop {
            let vectors = place.0.get_or_try_make(|| self.load(&choice, self.scratch.is_none()))?;
            if vectors.choice == choice {
                return Ok(vectors);
            }
            place = &vectors.next;
        }
    }

    /// Loads a model, with a cache on disk or without.
    fn load(&self, choice: &ModelChoice, on_disk: bool) -> Result<Box<Vectors>, EngineError> {
        let config = &self.setup.config_with(choice);
        let candidates = backends::candidates(config, &self.plugins)?;
        // A backend alone whose vectors are not stored has nothing to agree with.
        let has_others = candidates.len() > 1 || self.scratch.is_none();
        let gate = has_others.then(|| Gate::new(self.store.clone()));
        let cache = self.cache(on_disk)?;
        let embedding = Embedding::new(candidates, gate, cache, &config.into())?;

        let info = embedding.info();
        let space = self.store.space(info.space, &info.model, info.dim)?;
        let selected = config.memory.index.selected();
        let component = &selected.profile.plugin;
        let options = IndexOptions {
            database: self.store.id()?,
            space,
            space_digest: info.space,
            dim: info.dim,
            options: selected.options_json(&self.plugins.options_schema(ComponentKind::Index, component)?),
            backend: component.clone(),
            dir: self.scratch.as_ref().map_or(self.setup.data_dir.as_path(), TempDir::path).join("index"),
            sync: self.sync_options(),
        };
        let indexes = Indexes::new(&options, &self.store, &self.plugins);
        let (index_backend, choice, next) = (selected.name, choice.clone(), Loaded::default());
        Ok(Box::new(Vectors { embedding, space, indexes, index_backend, choice, next }))
    }

    fn sync_options(&self) -> SyncOptions {
        let config = &self.setup.config;
        let sync = &config.memory.sync;
        SyncOptions {
            seal_after: sync.seal_after(),
            max_age: sync.max_age(),
            batch_size: sync.batch_size(total_memory()),
            merge_factor: sync.merge_factor,
            partition_max: sync.partition_max,
            compact_percent: sync.compact_percent,
            recall_target: config.memory.index.recall_target as f32,
            search_threads: config.plugins.thread_budget(),
            min_free_bytes: config.store.min_free_bytes,
        }
    }

    fn cache(&self, on_disk: bool) -> Result<EmbeddingCache, EngineError> {
        let settings = &self.setup.config.memory.cache;
        let cache = self.services.make::<EmbeddingCache>()?;
        if !(on_disk && settings.disk) {
            return Ok(cache);
        }
        let min_cost = Duration::from_micros(settings.disk_min_us);
        Ok(cache.with_disk(self.setup.disk_cache(), min_cost, settings.alert_hit_rate_percent))
    }

    fn ef_search(&self, layer: Layer) -> u32 {
        u32::try_from(self.layer_settings(layer).ef_search).unwrap_or(u32::MAX)
    }

    /// When a record that is written to `layer` now expires, in milliseconds since 1970.
    pub fn expiry(&self, layer: Layer) -> Option<u64> {
        let life = self.setup.config.memory.lives()[layer as usize]?;
        Some(now_ms().saturating_add(u64::try_from(life.as_millis()).unwrap_or(u64::MAX)))
    }

    fn layer_settings(&self, layer: Layer) -> &LayerSettings {
        let layers = &self.setup.config.memory.layers;
        match layer {
            Layer::Interact => &layers.interact,
            Layer::Insights => &layers.insights,
            Layer::Assets => &layers.assets,
        }
    }
}

/// A cache in memory for a model that is loaded.
fn memory_cache((setup, plugins): (&Arc<Setup>, &Arc<Plugins>)) -> Result<EmbeddingCache, EngineError> {
    let settings = &setup.config.memory.cache;
    let policy = setup.cache_policy(plugins, &settings.profile)?;
    let max_entries = match settings.max_entries {
        0 => usize::MAX,
        entries => usize::try_from(entries).unwrap_or(usize::MAX),
    };
    let limits = CacheLimits { max_bytes: setup.cache_bytes(), max_entries };
    Ok(EmbeddingCache::new(policy, limits))
}

/// Milliseconds since 1970.
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
