//! Indexes over the store's vectors. SQLite is the truth; every index is a cache of it with a
//! sequence number, so a search is right at once after another process has written.
mod error;
mod layer;
mod snapshot;

pub use error::IndexError;
pub use layer::LayerIndexStats;

use crate::{
    plugins::Plugins,
    store::{Layer, SpaceId, Store},
};
use layer::{LayerIndex, LayerSettings, hex};
use magray_plugin_api::{CallContext, Hit, IdFilter, SearchParams};
use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

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
    /// Changes in the exact tail before a snapshot is written.
    pub seal_after: u64,
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
    layers: Vec<(Layer, LayerIndex)>,
    seal_after: u64,
}

impl Indexes {
    /// Opens nothing yet: a layer's snapshot is opened by its first search.
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
            };
            (layer, LayerIndex::new(settings, store.clone(), plugins.clone()))
        });
        Self { layers: layers.into(), seal_after: options.seal_after }
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
        let found = self.layers.iter().find(|(known, _)| *known == layer);
        found.map_or(Ok(Vec::new()), |(_, index)| index.search(cx, query, k, params, filter))
    }

    /// Writes snapshots of the layers whose tail has grown long. Returns how many.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn seal(&self, cx: &dyn CallContext) -> Result<usize, IndexError> {
        self.seal_from(cx, self.seal_after)
    }

    /// Writes snapshots of every layer that has changed. Returns how many.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn seal_all(&self, cx: &dyn CallContext) -> Result<usize, IndexError> {
        self.seal_from(cx, 1)
    }

    fn seal_from(&self, cx: &dyn CallContext, changes: u64) -> Result<usize, IndexError> {
        let mut sealed = 0;
        for (_, index) in &self.layers {
            sealed += usize::from(index.seal(cx, changes)?);
        }
        Ok(sealed)
    }

    /// What each layer holds.
    ///
    /// # Errors
    /// [`IndexError`].
    pub fn stats(&self) -> Result<Vec<LayerIndexStats>, IndexError> {
        self.layers.iter().map(|(_, index)| index.stats()).collect()
    }
}
