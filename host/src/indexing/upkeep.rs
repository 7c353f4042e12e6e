//! What can be said and looked after without a search.
use super::{
    error::{IndexError, Unusable},
    layer::LayerIndex,
    recheck::LiveRecall,
    segment, snapshot,
};
use crate::store::Layer;

/// What a layer's index holds, for `stats`.
#[derive(Clone, Debug)]
pub struct LayerIndexStats {
    /// The layer.
    pub layer: Layer,
    /// The backend that seals it.
    pub backend: String,
    /// Segments of the snapshot.
    pub segments: usize,
    /// Vectors in them that count.
    pub sealed: u64,
    /// Rows in them that do not count any more.
    pub dead: u64,
    /// The least recall@10 of those in which it was measured, 0 to 1; none where none was.
    pub recall: Option<f32>,
    /// What checks of searches say.
    pub live: LiveRecall,
    /// Bytes of their files.
    pub bytes: u64,
    /// The change up to which they are complete.
    pub covered_seq: u64,
    /// Changes since, which are searched exactly.
    pub tail: u64,
    /// How often changes were sealed since the index was made.
    pub syncs: u64,
    /// How many changes that were.
    pub changes: u64,
}

impl LayerIndexStats {
    /// How many index writes were spared against one for each change, 0 to 1; none before the first.
    pub fn spared(&self) -> Option<f64> {
        (self.changes > 0).then(|| 1.0 - self.syncs as f64 / self.changes as f64)
    }
}

impl LayerIndex {
    pub(super) fn stats(&self) -> Result<LayerIndexStats, IndexError> {
        let identity = self.identity()?;
        let dir = &self.settings.dir;
        let mut usable = snapshot::generations(dir)
            .into_iter()
            .filter_map(|number| snapshot::read(dir, number, &identity).ok());
        let snapshot = usable.next().unwrap_or_default();
        Ok(LayerIndexStats {
            layer: self.settings.layer,
            backend: self.settings.backend.clone(),
            segments: snapshot.segments.len(),
            sealed: snapshot.live(),
            dead: snapshot.dead(),
            recall: snapshot.segments.iter().filter_map(|listed| listed.recall).reduce(f32::min),
            live: self.live_recall(),
            bytes: snapshot.bytes(),
            covered_seq: snapshot.covered_seq,
            tail: self.waiting(&snapshot)?,
            syncs: snapshot.syncs,
            changes: snapshot.changes,
        })
    }

    /// Hashes one part of one segment. Returns how many bytes were looked at.
    pub(super) fn scrub(&self, pick: u64) -> u64 {
        let dir = &self.settings.dir;
        let segments = snapshot::newest(dir).unwrap_or_default().segments;
        let count = segments.len().max(1) as u64;
        let Some(listed) = segments.get((pick % count) as usize) else { return 0 };
        match segment::scrub(dir, listed, pick / count) {
            Ok(bytes) => bytes,
            Err(Unusable::Damaged(why)) => {
                self.set_aside(&listed.path(dir), &why);
                // What maps its files must not go on with them.
                self.close();
                0
            }
            // It has just been replaced, or cannot be read now.
            Err(why) => {
                tracing::debug!("{}: segment {}: {why}", self.describe(), listed.name);
                0
            }
        }
    }
}
