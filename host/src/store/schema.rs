//! The schema of the database and its way from version to version.
use super::{
    error::{Fault, StoreError},
    keywords,
};
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// The migration at position `n` leads from version `n` to `n + 1`. One that was released is never
/// edited: write another.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
    include_str!("migrations/0004.sql"),
    include_str!("migrations/0005.sql"),
    include_str!("migrations/0006.sql"),
];

/// The version that this program reads and writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

/// The version from which on the keyword index holds terms, and not texts.
const KEYWORDS_BY_TERMS: i64 = 4;

/// In the header of every database of ours: `magr`.
const APPLICATION_ID: i64 = 0x6d61_6772;

/// The schema version of the database, 0 where it is empty. Changes nothing.
///
/// # Errors
/// `NotADatabase` for the database of another program, `NewerSchema`.
pub(super) fn version(connection: &Connection, path: &Path) -> Result<i64, Fault> {
    // One statement, so that all is of one moment: another process may be making the database.
    let (application, version, objects): (i64, i64, i64) = connection.query_row(
        "SELECT application_id, user_version, (SELECT count(*) FROM sqlite_schema)
         FROM pragma_application_id, pragma_user_version",
        [],
        |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
    )?;
    if application != APPLICATION_ID && (application, version, objects) != (0, 0, 0) {
        let reason = "it is an SQLite database of another program".to_owned();
        return Err(StoreError::NotADatabase { path: path.to_path_buf(), reason }.into());
    }
    if version > VERSION {
        let path = path.to_path_buf();
        return Err(StoreError::NewerSchema { path, found: version, supported: VERSION }.into());
    }
    Ok(version)
}

/// Brings the database to [`VERSION`], all of it or nothing.
///
/// # Errors
/// As [`version`], and what SQLite says.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), Fault> {
    if version(connection, path)? == VERSION {
        return Ok(());
    }
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have migrated while this one waited for the lock.
    let from = version(&transaction, path)?;
    for migration in MIGRATIONS.iter().skip(usize::try_from(from).unwrap_or_default()) {
        transaction.execute_batch(migration)?;
    }
    if from < KEYWORDS_BY_TERMS {
        keywords::fill(&transaction)?;
    }
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{RecordId, Store, StoreOptions, fixture::*, query_terms};
    use super::*;
    use std::fs;

    /// An empty database of an old version, made by its own statements.
    fn of_version(version: i64, path: &Path) -> Connection {
        let old = Connection::open(path).unwrap();
        for migration in MIGRATIONS.iter().take(usize::try_from(version).unwrap()) {
            old.execute_batch(migration).unwrap();
        }
        old.pragma_update(None, "application_id", APPLICATION_ID).unwrap();
        old.pragma_update(None, "user_version", version).unwrap();
        old
    }

    #[test]
    fn a_newer_schema_is_refused_and_left_as_it_is() {
        let (path, folder) = Fixture::new().close();
        let connection = Connection::open(&path).unwrap();
        connection.pragma_update(None, "user_version", VERSION + 1).unwrap();
        connection.close().unwrap();
        let before = fs::read(&path).unwrap();
        for read_only in [false, true] {
            let error =
                Store::open(&path, &StoreOptions { read_only, ..StoreOptions::default() }).unwrap_err();
            let (found, supported) = (VERSION + 1, VERSION);
            assert_eq!(error, StoreError::NewerSchema { path: path.clone(), found, supported });
        }
        assert_eq!(fs::read(&path).unwrap(), before);
        drop(folder);
    }

    #[test]
    fn the_database_of_another_program_is_refused_and_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("other.db");
        Connection::open(&path).unwrap().execute_batch("CREATE TABLE bookmarks (url TEXT)").unwrap();
        let before = fs::read(&path).unwrap();
        let error = Store::open(&path, &StoreOptions::default()).unwrap_err();
        assert!(matches!(error, StoreError::NotADatabase { .. }), "{error}");
        assert_eq!(fs::read(&path).unwrap(), before);
    }

    #[test]
    fn a_new_database_has_the_schema_of_this_version() {
        let f = Fixture::new();
        assert_eq!(f.store.stats().unwrap().schema_version, VERSION);
    }

    /// With words, names, a title and a record that was replaced.
    #[test]
    fn a_database_of_the_keyword_index_before_terms_keeps_everything_findable() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("magray.db");
        let old = of_version(3, &path);
        let texts = [
            (None, "Backups are made at night", None),
            (Some("Гавань"), "Копии", Some(3)),
            (None, "node.js", None),
        ];
        for (number, (title, text, superseded_by)) in (1..).zip(texts) {
            old.execute(
                "INSERT INTO records (ulid, layer, kind, project, created_ms, last_access_ms, access_count, importance,
                     score, superseded_by, content_hash, title, text)
                 VALUES (?1, 1, 'note', '', ?2, 9, 0, 0.5, 0, ?3, CAST(?5 AS BLOB), ?4, ?5)",
                (format!("01ARZ3NDEKTSV4RRFFQ69G5FA{number}"), number, superseded_by, title, text),
            )
            .unwrap();
            old.execute(
                "INSERT INTO records_fts (rowid, title, text) VALUES (?1, ?2, ?3)",
                (number, title, text),
            )
            .unwrap();
        }
        old.close().unwrap();

        let store = Store::open(&path, &NORMAL).unwrap();
        assert_eq!(store.stats().unwrap().schema_version, VERSION);
        assert_eq!(store.check().unwrap(), Vec::<String>::new());
        let find = |query: &str| {
            let hits = store.find_words(&query_terms(query), None, 9).unwrap();
            hits.iter().map(|hit| hit.0.0).collect::<Vec<_>>()
        };
        assert_eq!(
            (find("backup"), find("копий"), find("гаваней"), find("nodejs")),
            (vec![1], vec![2], vec![2], vec![3])
        );
        let replaced = &store.records(&[RecordId(2)]).unwrap()[0];
        assert_eq!(replaced.superseded_by.as_deref(), Some("01ARZ3NDEKTSV4RRFFQ69G5FA3"));
        assert_eq!(replaced.valid_to_ms, Some(3));
        let present = store.present_ids(0, Some(5)).unwrap().unwrap();
        assert_eq!(present.iter().collect::<Vec<_>>(), [1, 3]);
    }

    #[test]
    fn a_migration_that_fails_leaves_the_database_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("magray.db");
        let old = of_version(3, &path);
        // The migration comes upon an index of a name that it needs.
        old.execute_batch("CREATE INDEX records_by_validity ON records (id)").unwrap();
        old.close().unwrap();
        assert!(Store::open(&path, &NORMAL).is_err());
        let db = Connection::open(&path).unwrap();
        let version: i64 = db.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        let columns: i64 = db
            .query_row(
                "SELECT count(*) FROM pragma_table_info('records') WHERE name LIKE 'valid%'",
                [],
                |row| row.get(0),
            )
            .unwrap();
        assert_eq!((version, columns), (3, 0));
    }
}
