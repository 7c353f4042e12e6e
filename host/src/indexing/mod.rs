//! Indexes over the store's vectors. SQLite is the truth; every index is a cache of it with a
//! sequence number, so a search is right at once after another process has written.
//!
//! A layer's index is sealed segments and a delta (`layer.rs`). One writer seals and merges (`sync.rs`,
//! `merge.rs`).
mod delta;
mod error;
mod exact;
mod layer;
mod memory;
mod merge;
mod open;
mod recheck;
mod scan;
mod segment;
mod snapshot;
mod sync;
#[cfg(test)]
mod tests;
mod tracker;
mod trust;
mod tune;
mod upkeep;
mod verify;

pub use error::IndexError;
pub use memory::LayerMemory;
pub use recheck::LiveRecall;
pub use sync::{Extent, LayerSync};
pub use upkeep::LayerIndexStats;
pub use verify::{LayerVerdict, Recall};

use crate::{
    plugins::Plugins,
    store::{Commit, Layer, SpaceId, Store},
};
use layer::{LayerIndex, LayerSettings, Query, hex};
use magray_plugin_api::{CallContext, Hit, IdFilter, SearchParams};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, atomic::AtomicU64},
    time::Duration,
};

/// When changes are built into an index, and how.
#[derive(Clone, Debug, PartialEq)]
pub struct SyncOptions {
    /// Changes that wait before they are sealed.
    pub seal_after: u64,
    /// How long a change waits at most, where a process lives that long.
    pub max_age: Duration,
    /// Vectors that are read and written at a time. A segment of fewer is taken in by the next one.
    pub batch_size: usize,
    /// Segments of like size that become one.
    pub merge_factor: usize,
    /// Rows of a segment at most.
    pub partition_max: u64,
    /// Dead rows of a segment, in percent, at which it is written anew.
    pub compact_percent: u64,
    /// Share of the nearest vectors that a search in an approximate segment should find, 0 to 1; 0 leaves
    /// that to the backend.
    pub recall_target: f32,
    /// Threads that a search may keep busy.
    pub search_threads: usize,
    /// Bytes of the disk that stay free: a segment for which there is no room is not begun. 0 leaves that to the
    /// disk.
    pub min_free_bytes: u64,
}

/// Which space is indexed, with what, and where.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// See [`Store::id`].
    pub database: [u8; 16],
    /// The space's id in the store, and its digest and width.
    pub space: SpaceId,
    /// See [`magray_plugin_api::EmbedderInfo::space`].
    pub space_digest: [u8; 32],
    /// Width of every vector.
    pub dim: usize,
    /// The index backend, and its options as JSON.
    pub backend: String,
    /// See `backend`.
    pub options: String,
    /// `index` in the data folder.
    pub dir: PathBuf,
    /// When changes are sealed.
    pub sync: SyncOptions,
}

/// Where the indexes of a space are, below `index` in the data folder.
pub fn space_dir(index: &Path, digest: &[u8; 32]) -> PathBuf {
    index.join(&hex(digest)[..16])
}

/// The indexes of every layer in one space.
///
/// Threads: any number of calls at once.
#[expect(missing_debug_implementations, reason = "an index has nothing to show")]
pub struct Indexes {
    shared: Arc<Shared>,
}

/// What the store's writer sees of it too.
struct Shared {
    space: SpaceId,
    layers: Vec<LayerIndex>,
    /// Rows that one step of background work may write to merge segments.
    step_rows: AtomicU64,
}

impl Indexes {
    /// Opens nothing yet: a layer's snapshot is opened by its first search. From then on it takes what
    /// `store` commits as it commits it.
    pub fn new(options: &IndexOptions, store: &Arc<Store>, plugins: &Arc<Plugins>) -> Self {
        let layers = Layer::ALL.map(|layer| {
            let settings = LayerSettings {
                database: options.database,
                layer,
                space: options.space,
                space_digest: options.space_digest,
                dim: options.dim,
                backend: options.backend.clone(),
                options: options.options.clone(),
                dir: space_dir(&options.dir, &options.space_digest).join(layer.name()).join(&options.backend),
                sync: options.sync.clone(),
            };
            LayerIndex::new(settings, store.clone(), plugins.clone())
        });
        let step_rows = AtomicU64::new(u64::MAX);
        let shared = Arc::new(Shared { space: options.space, layers: layers.into(), step_rows });
        let weak = Arc::downgrade(&shared);
        store.on_commit(move |commit| weak.upgrade().is_some_and(|shared| shared.receive(commit)));
        Self { shared }
    }

    /// The `k` vectors of `layer` nearest to `query`, best first, over everything committed before
    /// the call, by this process or any other.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn search(
        &self,
        cx: &dyn CallContext,
        layer: Layer,
        query: &[f32],
        k: usize,
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
    ) -> Result<Vec<Hit>, IndexError> {
        let found = self.shared.layer(layer);
        found.map_or(Ok(Vec::new()), |index| index.search(cx, Query { vector: query, k, params, filter }))
    }

    /// The cosines of the vectors `ids` of `layer`, which are ascending, to `query`, which is not zero, in any order. Those
    /// that are not there are left out.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn cosines(
        &self,
        cx: &dyn CallContext,
        layer: Layer,
        query: &[f32],
        ids: &[u64],
    ) -> Result<Vec<Hit>, IndexError> {
        let found = self.shared.layer(layer);
        found.map_or(Ok(Vec::new()), |index| index.cosines(cx, query, ids))
    }

    /// Brings what is on disk up to date, of all layers or of one.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn sync(
        &self,
        cx: &dyn CallContext,
        layer: Option<Layer>,
        extent: Extent,
    ) -> Result<Vec<LayerSync>, IndexError> {
        self.selected(layer).map(|index| index.sync(cx, extent)).collect()
    }

    /// Takes what a transaction has committed: the store calls it by itself. For measurements.
    pub(crate) fn receive(&self, commit: &Commit) {
        self.shared.receive(commit);
    }

    /// Hashes one part of one segment, whichever `pick` says, so that bits that rot are found before a
    /// search needs them. A damaged segment is set aside, with a warning, and rebuilt when the next
    /// changes are sealed. Returns how many bytes were looked at.
    pub fn scrub(&self, pick: u64) -> u64 {
        let at = (pick % self.shared.layers.len() as u64) as usize;
        self.shared.layers[at].scrub(pick / self.shared.layers.len() as u64)
    }

    /// What each layer holds. Opens no segment.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn stats(&self) -> Result<Vec<LayerIndexStats>, IndexError> {
        self.layers().map(LayerIndex::stats).collect()
    }

    /// Compares files, ids and answers of each layer with the store.
    ///
    /// # Errors
    /// [`IndexError`] where that cannot be done; what is wrong is in the verdicts.
    pub fn verify(
        &self,
        cx: &dyn CallContext,
        layer: Option<Layer>,
    ) -> Result<Vec<LayerVerdict>, IndexError> {
        self.selected(layer).map(|index| index.verify(cx)).collect()
    }

    /// Does a search of each layer that waits for it again, exactly, and from now on wants another: the next one,
    /// in whatever process. Returns how many that were.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn recheck(&self, cx: &dyn CallContext) -> Result<u64, IndexError> {
        self.layers().try_fold(0, |done, index| Ok(done + u64::from(index.recheck(cx)?)))
    }

    fn layers(&self) -> impl Iterator<Item = &LayerIndex> {
        self.shared.layers.iter()
    }

    fn selected(&self, layer: Option<Layer>) -> impl Iterator<Item = &LayerIndex> {
        self.layers().filter(move |index| layer.is_none_or(|layer| index.settings.layer == layer))
    }
}

impl Shared {
    fn layer(&self, layer: Layer) -> Option<&LayerIndex> {
        self.layers.iter().find(|index| index.settings.layer == layer)
    }

    fn receive(&self, commit: &Commit) -> bool {
        if commit.space == self.space
            && let Some(index) = self.layer(commit.layer)
        {
            index.receive(commit);
        }
        true
    }
}
