//! What the indexes hold in memory, and how they hold less. Whatever is let go is read again by the next search that
//! needs it, so nothing that is stored is ever left out of an answer.
use super::{Indexes, layer::LayerIndex};
use crate::store::Layer;
use magray_plugin_api::{CallContext, MemoryUse};
use std::sync::atomic::Ordering;

/// Rows that one step may write to merge segments while memory is short: a merge holds all of its rows.
const SHORT_STEP_ROWS: u64 = 20_000;

/// What one layer holds in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerMemory {
    /// The layer.
    pub layer: Layer,
    /// Rows of its open segments, and of what changed since.
    pub rows: u64,
    /// What the backend says of the open segments.
    pub segments: MemoryUse,
    /// Bytes of what changed since.
    pub delta: u64,
}

impl Indexes {
    /// What each layer holds now.
    pub fn memory(&self) -> Vec<LayerMemory> {
        self.layers().map(LayerIndex::memory).collect()
    }

    /// Opens every layer, as its first search would.
    ///
    /// # Errors
    /// [`super::IndexError`].
    pub fn open_all(&self, cx: &dyn CallContext) -> Result<(), super::IndexError> {
        self.layers().try_for_each(|index| index.current(cx).map(drop))
    }

    /// Holds to a grant of so many rows: closes layers that no search has used since the last call, the largest
    /// first, until what is held fits or all others are in use. While memory is `short`, merges of many rows wait.
    pub fn keep_to(&self, granted_rows: u64, short: bool) {
        let step_rows = if short { SHORT_STEP_ROWS } else { u64::MAX };
        self.shared.step_rows.store(step_rows, Ordering::Relaxed);
        let mut idle: Vec<&LayerIndex> =
            self.layers().filter(|index| !index.used.swap(false, Ordering::Relaxed)).collect();
        idle.sort_by_key(|index| index.rows_held());
        while self.rows_held() > granted_rows
            && let Some(index) = idle.pop()
        {
            index.close();
        }
    }

    /// Rows that all layers hold open.
    pub fn rows_held(&self) -> u64 {
        self.layers().map(LayerIndex::rows_held).sum()
    }

    /// Rows that one step of background work may write to merge segments, by the last [`Self::keep_to`].
    pub fn step_rows(&self) -> u64 {
        self.shared.step_rows.load(Ordering::Relaxed)
    }

    /// Closes every layer.
    pub fn close_all(&self) {
        self.layers().for_each(LayerIndex::close);
    }
}

impl LayerIndex {
    fn rows_held(&self) -> u64 {
        self.held().map_or(0, |state| {
            let sealed: u64 = state.sealed.parts.iter().map(|part| part.listed.rows).sum();
            sealed + state.delta.len() as u64
        })
    }

    fn memory(&self) -> LayerMemory {
        let mut memory = LayerMemory {
            layer: self.settings.layer,
            rows: self.rows_held(),
            segments: MemoryUse::default(),
            delta: 0,
        };
        if let Some(state) = self.held() {
            for part in &state.sealed.parts {
                let MemoryUse { resident, mapped, device } = part.index.memory_use();
                memory.segments.resident += resident + size_of_val(&part.dead[..]) as u64;
                memory.segments.mapped += mapped;
                memory.segments.device += device;
            }
            memory.delta = state.delta.bytes() as u64;
        }
        memory
    }
}
