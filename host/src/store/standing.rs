use super::{Layer, RecordId, Store, StoreError};

/// What ranks a record beside what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    /// The record.
    pub id: RecordId,
    /// Its layer.
    pub layer: Layer,
    /// Its project, empty where it belongs to none.
    pub project: String,
    /// Its session.
    pub session: Option<String>,
    /// The file that it was taken from.
    pub source: Option<String>,
    /// See [`Record::created_ms`](super::Record::created_ms).
    pub created_ms: u64,
    /// See [`Record::last_access_ms`](super::Record::last_access_ms).
    pub last_access_ms: u64,
    /// See [`Record::access_count`](super::Record::access_count).
    pub access_count: u64,
}

impl Standing {
    /// What it is a part of: a session or a file, within its project.
    pub fn document(&self) -> Option<(&str, &str)> {
        let document = self.session.as_deref().or(self.source.as_deref())?;
        Some((&self.project, document))
    }
}

impl Store {
    /// The standings of these records, without those that are gone.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn standings(&self, ids: impl IntoIterator<Item = RecordId>) -> Result<Vec<Standing>, StoreError> {
        self.read(|db| {
            let mut one = db.prepare_cached(
                "SELECT layer, project, session, source_path, created_ms, last_access_ms, access_count
                 FROM records INDEXED BY records_standing WHERE id = ?1",
            )?;
            let mut standings = Vec::new();
            for id in ids {
                let mut rows = one.query([id])?;
                if let Some(row) = rows.next()? {
                    standings.push(Standing {
                        id,
                        layer: row.get(0)?,
                        project: row.get(1)?,
                        session: row.get(2)?,
                        source: row.get(3)?,
                        created_ms: row.get(4)?,
                        last_access_ms: row.get(5)?,
                        access_count: row.get(6)?,
                    });
                }
            }
            Ok(standings)
        })
    }
}
