//! What the store holds, and whether it is sound.
use super::{Layer, Store, StoreError, error::Fault, schema, writer::wal_bytes};
use rusqlite::{Connection, ffi::SQLITE_CORRUPT_VTAB};
use serde::{Deserialize, Serialize};

/// What a store holds now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreStats {
    /// By layer, in the order of [`Layer::ALL`].
    pub layers: Vec<LayerStats>,
    /// Files that records were taken from.
    pub sources: u64,
    /// Bytes of the database without its write-ahead log.
    pub database_bytes: u64,
    /// Bytes of the write-ahead log.
    pub wal_bytes: u64,
    /// Entries of the change log.
    pub changes: u64,
    /// Version of the schema.
    pub schema_version: i64,
    /// Transactions that this process has committed. Requests that come together share one.
    pub commits: u64,
}

/// What a layer holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerStats {
    /// The layer.
    pub layer: Layer,
    /// Its records.
    pub records: u64,
    /// Their vectors, in all spaces together.
    pub vectors: u64,
}

impl Store {
    /// What the store holds now.
    ///
    /// # Errors
    /// What SQLite says.
    pub fn stats(&self) -> Result<StoreStats, StoreError> {
        self.read(|db| {
            let number = |sql: &str| db.query_row(sql, [], |row| row.get::<_, u64>(0));
            Ok(StoreStats {
                layers: count_layers(db)?,
                sources: number("SELECT count(*) FROM sources")?,
                database_bytes: number("PRAGMA page_count")? * number("PRAGMA page_size")?,
                wal_bytes: wal_bytes(&self.path),
                changes: number("SELECT count(*) FROM changes")?,
                schema_version: schema::version(db, &self.path)?,
                commits: self.writer.as_ref().map_or(0, |writer| writer.commits()),
            })
        })
    }

    /// Looks for damage: of the file, between the tables, and, unless read only, of the keyword
    /// index. Returns what is wrong, one line each. It reads everything, and writers wait while
    /// it looks at the keyword index.
    ///
    /// # Errors
    /// What keeps it from looking.
    pub fn check(&self) -> Result<Vec<String>, StoreError> {
        let mut findings = found(self.read(|db| check_tables(db, "PRAGMA quick_check")))?;
        if self.writer.is_some() {
            findings.extend(found(self.write(check_keywords))?);
        }
        Ok(findings)
    }
}

/// So damaged that SQLite gives up is a finding too.
fn found(checked: Result<Vec<String>, StoreError>) -> Result<Vec<String>, StoreError> {
    match checked {
        Err(error @ StoreError::Damaged { .. }) => Ok(vec![error.to_string()]),
        findings => findings,
    }
}

/// What each layer holds, in the order of [`Layer::ALL`].
pub(super) fn count_layers(db: &Connection) -> rusqlite::Result<Vec<LayerStats>> {
    let layers = Layer::ALL.into_iter().map(|layer| {
        let count = |sql: &str| db.prepare_cached(sql)?.query_row([layer], |row| row.get(0));
        Ok(LayerStats {
            layer,
            records: count("SELECT count(*) FROM records WHERE layer = ?1")?,
            vectors: count(
                "SELECT (SELECT count(*) FROM vectors
                         WHERE space_id IN (SELECT id FROM spaces) AND layer = ?1)
                      - (SELECT count(*) FROM vectors
                         WHERE space_id IN (SELECT id FROM spaces) AND layer = ?1
                           AND length(vector) = 0)",
            )?,
        })
    });
    layers.collect()
}

/// Looks for damage of the file, as `pragma` does, and between the tables.
pub(super) fn check_tables(db: &Connection, pragma: &str) -> Result<Vec<String>, Fault> {
    let mut check = db.prepare(pragma)?;
    let mut findings: Vec<String> = check.query_map([], |row| row.get(0))?.collect::<Result<_, _>>()?;
    findings.retain(|finding| finding != "ok");
    let counts = [
        (
            "vectors without a record",
            "SELECT count(*) FROM vectors WHERE NOT EXISTS (
                 SELECT 1 FROM records WHERE records.id = record_id AND records.layer = vectors.layer)",
        ),
        (
            "vectors of a wrong width",
            "SELECT count(*) FROM vectors JOIN spaces ON spaces.id = space_id
             WHERE length(vector) NOT IN (0, 2 * dim)",
        ),
        (
            "tags without a record",
            "SELECT count(*) FROM record_tags WHERE record_id NOT IN (SELECT id FROM records)",
        ),
    ];
    for (what, sql) in counts {
        let count: u64 = db.query_row(sql, [], |row| row.get(0))?;
        if count > 0 {
            findings.push(format!("{count} {what}"));
        }
    }
    Ok(findings)
}

fn check_keywords(db: &Connection) -> Result<Vec<String>, Fault> {
    let damaged = match db.execute("INSERT INTO records_fts (records_fts) VALUES ('integrity-check')", []) {
        Ok(_) => false,
        Err(error) => match error.sqlite_error() {
            Some(found) if found.extended_code == SQLITE_CORRUPT_VTAB => true,
            _ => return Err(error.into()),
        },
    };
    // It has no texts to be compared with, but knows which records are in it.
    let differs = "SELECT EXISTS (SELECT id FROM records EXCEPT SELECT id FROM records_fts_docsize)
                       OR EXISTS (SELECT id FROM records_fts_docsize EXCEPT SELECT id FROM records)";
    let mut findings = Vec::new();
    if damaged || db.query_row(differs, [], |row| row.get(0))? {
        findings.push("the keyword index does not fit the records".to_owned());
    }
    Ok(findings)
}

#[cfg(test)]
mod tests {
    use super::super::{NewRecord, NewSource, fixture::*};
    use super::*;

    #[test]
    fn stats_count_what_is_there() {
        let f = Fixture::new();
        let space = f.space(2);
        let record = |text| NewRecord { vector: Some(vec![1.0, 1.0]), ..note(text) };
        f.store.add(Some(space), vec![record("a"), record("b"), note("c")]).unwrap();
        let source = NewSource {
            path: "/a".to_owned(),
            content_hash: [0; 32],
            settings: [0; 32],
            size: 1,
            mtime_ms: 1,
            project: None,
            layer: Layer::Assets,
        };
        f.store.replace_source(source, vec![note("d")], None).unwrap();
        let stats = f.store.stats().unwrap();
        let counts: Vec<_> = stats.layers.iter().map(|l| (l.layer, l.records, l.vectors)).collect();
        assert_eq!(counts, [(Layer::Interact, 0, 0), (Layer::Insights, 3, 2), (Layer::Assets, 1, 0)]);
        assert_eq!((stats.sources, stats.changes, stats.commits), (1, 2, 3));
        assert!(stats.database_bytes > 0 && stats.wal_bytes > 0, "{stats:?}");
    }

    #[test]
    fn what_does_not_fit_together_is_found() {
        let f = Fixture::new();
        let space = f.space(2);
        let record = NewRecord { vector: Some(vec![1.0, 1.0]), tags: strings(&["t"]), ..note("a") };
        f.store.add(Some(space), vec![record]).unwrap();
        assert_eq!(f.store.check().unwrap(), Vec::<String>::new());
        f.store.write(|db| Ok(db.execute("DELETE FROM records", [])?)).unwrap();
        let found = f.store.check().unwrap();
        assert_eq!(
            found,
            [
                "1 vectors without a record",
                "1 tags without a record",
                "the keyword index does not fit the records"
            ]
        );
    }
}
