//! The schema of the database and its way from version to version.
use super::error::{Fault, StoreError};
use rusqlite::{Connection, TransactionBehavior};
use std::path::Path;

/// The migration at position `n` leads from version `n` to `n + 1`. One that was released is never
/// edited: write another.
const MIGRATIONS: &[&str] = &[
    include_str!("migrations/0001.sql"),
    include_str!("migrations/0002.sql"),
    include_str!("migrations/0003.sql"),
    include_str!("migrations/0005.sql"),
];

/// The version that this program reads and writes.
pub(super) const VERSION: i64 = MIGRATIONS.len() as i64;

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
    transaction.pragma_update(None, "application_id", APPLICATION_ID)?;
    transaction.pragma_update(None, "user_version", VERSION)?;
    transaction.commit()?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::{Store, StoreOptions, fixture::*};
    use super::*;
    use std::fs;

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
}
