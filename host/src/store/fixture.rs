//! What the tests of the store share.
use super::{Durability, Layer, NewRecord, SpaceId, Store, StoreOptions};
use rusqlite::types::Value;
use std::{collections::BTreeMap, path::PathBuf, time::Duration};
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

/// Every row of records, tags and vectors, but for what promotion has looked at.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Dump {
    /// By record and column.
    pub(crate) records: BTreeMap<i64, BTreeMap<String, Value>>,
    tags: Vec<(i64, String)>,
    vectors: Vec<(i64, i64, i64, Vec<u8>)>,
}

impl Store {
    pub(crate) fn dump(&self) -> Dump {
        let dump = self.read(|db| {
            let mut records = db.prepare("SELECT * FROM records")?;
            let columns: Vec<String> = records.column_names().map(str::to_owned).collect();
            let rows = records.query_map([], |row| {
                let values = columns.iter().enumerate().map(|(at, name)| Ok((name.clone(), row.get(at)?)));
                Ok((row.get("id")?, values.collect::<rusqlite::Result<BTreeMap<_, _>>>()?))
            })?;
            let mut records: BTreeMap<_, BTreeMap<_, _>> = rows.collect::<Result<_, _>>()?;
            records.values_mut().for_each(|record| {
                record.remove("weighed_count");
            });
            let mut tags = db.prepare("SELECT record_id, tag FROM record_tags ORDER BY 1, 2")?;
            let mut vectors =
                db.prepare("SELECT space_id, layer, record_id, vector FROM vectors ORDER BY 1, 2, 3")?;
            Ok(Dump {
                records,
                tags: tags.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect::<Result<_, _>>()?,
                vectors: vectors
                    .query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))?
                    .collect::<Result<_, _>>()?,
            })
        });
        dump.unwrap()
    }
}
