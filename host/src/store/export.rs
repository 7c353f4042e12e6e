//! Reading every record, with all that is known of it, at one moment.
use super::{
    Filter, Layer, PortableRecord, PortableVector, Record, RecordId, SpaceId, Store, StoreError, records,
};
use rusqlite::{Connection, OptionalExtension};
use std::ops::ControlFlow;

impl Store {
    /// Hands the records that fit to `visit`, in the order in which they were stored and as they are at
    /// one moment, each with the number of all and, where `space` is given, with its vector there. `visit`
    /// ends it by `Break`. Returns how many were visited.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn export(
        &self,
        filter: &Filter,
        space: Option<SpaceId>,
        visit: &mut dyn FnMut(u64, PortableRecord) -> ControlFlow<()>,
    ) -> Result<u64, StoreError> {
        let (condition, values) = filter.condition();
        self.read(|db| {
            let sql = format!("SELECT records.id FROM records WHERE {condition} ORDER BY records.id");
            let ids = records::ids(db, &sql, values)?;
            let mut visited = 0;
            for &id in &ids {
                // It is there: the transaction sees one moment.
                let Some(record) = records::read_record(db, id)? else { continue };
                let vector = match space {
                    Some(space) => vector(db, space, record.layer, id)?,
                    None => None,
                };
                visited += 1;
                if visit(ids.len() as u64, portable(record, vector)).is_break() {
                    break;
                }
            }
            Ok(visited)
        })
    }
}

fn portable(record: Record, vector: Option<PortableVector>) -> PortableRecord {
    PortableRecord {
        id: Some(record.ulid),
        layer: Some(record.layer),
        kind: Some(record.kind),
        title: record.title,
        text: record.text,
        tags: record.tags,
        project: record.project,
        session: record.session,
        source: record.source,
        created_ms: Some(record.created_ms),
        last_access_ms: Some(record.last_access_ms),
        access_count: Some(record.access_count),
        importance: Some(record.importance),
        score: Some(record.score),
        moved_count: Some(record.arrival.moved_count),
        carried: Some(record.arrival.carried),
        moved_ms: record.arrival.moved_ms,
        expires_ms: Some(record.expires_ms),
        valid_from_ms: record.valid_from_ms,
        valid_to_ms: record.valid_to_ms,
        superseded_by: record.superseded_by,
        vector,
    }
}

fn vector(
    db: &Connection,
    space: SpaceId,
    layer: Layer,
    id: RecordId,
) -> rusqlite::Result<Option<PortableVector>> {
    db.prepare_cached("SELECT vector FROM vectors WHERE space_id = ?1 AND layer = ?2 AND record_id = ?3")?
        .query_row((space, layer, id), |row| row.get(0).map(PortableVector))
        .optional()
}
