//! What the tests of the store share.
use super::{Durability, Layer, NewRecord, SpaceId, Store, StoreOptions};
use std::{path::PathBuf, time::Duration};
use tempfile::TempDir;

/// Does not wait for the disk.
pub(super) const NORMAL: StoreOptions =
    StoreOptions { durability: Durability::Normal, busy_timeout: Duration::from_secs(30), read_only: false };

/// A store in a folder of its own; the store goes first.
pub(super) struct Fixture {
    pub(super) store: Store,
    folder: TempDir,
}

impl Fixture {
    pub(super) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self { store: Store::open(&folder.path().join("magray.db"), &NORMAL).unwrap(), folder }
    }

    pub(super) fn reopen(self, options: &StoreOptions) -> Self {
        let (path, folder) = self.close();
        Self { store: Store::open(&path, options).unwrap(), folder }
    }

    pub(super) fn close(self) -> (PathBuf, TempDir) {
        (self.store.path().to_path_buf(), self.folder)
    }

    pub(super) fn space(&self, dim: usize) -> SpaceId {
        self.store.space([dim as u8; 32], "test", dim).unwrap()
    }
}

pub(super) fn note(text: &str) -> NewRecord {
    NewRecord::new(Layer::Insights, text)
}

pub(super) fn strings(strings: &[&str]) -> Vec<String> {
    strings.iter().map(|&string| string.to_owned()).collect()
}
