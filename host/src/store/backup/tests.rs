use super::super::{Exclusive, Filter, NewRecord, Store, StoreOptions, fixture::*};
use super::*;
use std::path::PathBuf;
use tempfile::TempDir;

fn go_on() -> impl FnMut(BackupProgress) -> ControlFlow<()> {
    |_| ControlFlow::Continue(())
}

/// A store of some records, and a backup of it.
fn backed_up() -> (Fixture, TempDir, PathBuf, BackupManifest) {
    let f = Fixture::new();
    let space = f.space(2);
    let record = |n: u32| NewRecord { vector: Some(vec![1.0, n as f32]), ..note(&n.to_string()) };
    f.store.add(Some(space), (0..200).map(record).collect()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("copy.db");
    let manifest = f.store.backup(&path, &mut go_on()).unwrap().unwrap();
    (f, folder, path, manifest)
}

fn texts(store: &Store) -> Vec<String> {
    store.list(&Filter::default(), usize::MAX, 0).unwrap().into_iter().map(|record| record.text).collect()
}

#[test]
fn a_backup_comes_back_as_a_database_of_its_own() {
    let (f, folder, path, manifest) = backed_up();
    assert_eq!((manifest.records(), manifest.layers[1].vectors), (200, 200));
    assert_eq!(verify_backup(&path, &mut go_on()).unwrap(), Some(manifest.clone()));
    let new = folder.path().join("new.db");
    assert_eq!(unpack_backup(&path, &new, &mut go_on()).unwrap(), Some(manifest));
    let restored = Store::open(&new, &NORMAL).unwrap();
    assert_eq!(texts(&restored), texts(&f.store));
    assert_eq!(restored.check().unwrap(), Vec::<String>::new());
    // Its changes from here on are others than those that indexes of the first know.
    assert_ne!(restored.id(), f.store.id());
}

#[test]
fn a_backup_is_one_file_that_sqlite_reads() {
    let (_f, folder, path, _) = backed_up();
    let db = Connection::open(&path).unwrap();
    let count: u64 = db.query_row("SELECT count(*) FROM records", [], |row| row.get(0)).unwrap();
    let sound: String = db.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
    assert_eq!((count, sound.as_str()), (200, "ok"));
    drop(db);
    assert_eq!(folder.path().read_dir().unwrap().count(), 1);
    assert!(verify_backup(&path, &mut go_on()).is_ok());
}

#[test]
fn it_shows_one_moment_while_others_write() {
    let (f, folder, ..) = backed_up();
    let path = folder.path().join("busy.db");
    let (mut steps, mut added) = (0, 0);
    let manifest = f.store.backup(&path, &mut |now| {
        steps += 1;
        if now.step == BackupStep::Copy {
            // A record between the steps: were the copy begun anew by it, there would be no end.
            f.store.add(None, vec![note(&format!("later {added} {}", "word ".repeat(5000)))]).unwrap();
            added += 1;
        }
        ControlFlow::Continue(())
    });
    assert_eq!(manifest.unwrap().unwrap().records(), 200);
    assert!(added > 0 && steps > added);
    assert_eq!(f.store.count(&Filter::default()).unwrap(), 200 + added);
}

#[test]
fn one_that_is_broken_off_is_none() {
    let (f, folder, path, _) = backed_up();
    for stop_at in [BackupStep::Copy, BackupStep::Check, BackupStep::Digest] {
        let mut stop = |now: BackupProgress| match now.step == stop_at {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        };
        let other = folder.path().join(format!("{stop_at:?}"));
        assert_eq!(f.store.backup(&other, &mut stop).unwrap(), None);
        assert!(read_backup_manifest(&other).is_err());
        if stop_at != BackupStep::Copy {
            assert_eq!(verify_backup(&path, &mut stop).unwrap(), None);
        }
    }
}

#[test]
fn a_changed_or_cut_backup_is_refused() {
    let (_f, folder, path, _) = backed_up();
    let whole = fs::read(&path).unwrap();
    let damaged = folder.path().join("damaged.db");
    let refused = |bytes: &[u8], what: &str| {
        fs::write(&damaged, bytes).unwrap();
        let error = verify_backup(&damaged, &mut go_on()).expect_err(what);
        assert!(matches!(error, StoreError::NotABackup { .. }), "{what}: {error}");
        let new = folder.path().join("new.db");
        assert!(unpack_backup(&damaged, &new, &mut go_on()).is_err(), "{what}");
    };
    for at in (0..64).map(|n| n * (whole.len() - 1) / 63) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        // The name of the version proves nothing, and is not read.
        if at < whole.len() - 400 || at > whole.len() - 24 {
            refused(&bytes, &format!("byte {at} of {} changed", whole.len()));
        }
        refused(&whole[..at], &format!("cut to {at} of {}", whole.len()));
    }
    refused(b"", "empty");
    refused(&[&whole[..], b"more"].concat(), "longer");
}

#[test]
fn one_of_a_newer_version_is_named_so() {
    let (_f, folder, path, mut manifest) = backed_up();
    let newer = folder.path().join("newer.db");
    fs::write(&newer, &fs::read(&path).unwrap()[..manifest.bytes as usize]).unwrap();
    manifest.schema_version = schema::VERSION + 1;
    seal(&newer, &manifest).unwrap();
    assert!(matches!(verify_backup(&newer, &mut go_on()), Err(StoreError::NewerSchema { .. })));
}

#[test]
fn counts_that_do_not_fit_are_refused() {
    let (_f, folder, path, mut manifest) = backed_up();
    let other = folder.path().join("other.db");
    fs::write(&other, &fs::read(&path).unwrap()[..manifest.bytes as usize]).unwrap();
    manifest.layers[1].vectors -= 1;
    seal(&other, &manifest).unwrap();
    let error = verify_backup(&other, &mut go_on()).unwrap_err().to_string();
    assert!(error.contains("vectors: 200") && error.contains("vectors: 199"), "{error}");
}

#[test]
fn a_database_is_replaced_at_once_and_kept() {
    let (f, folder, path, _) = backed_up();
    f.store.add(None, vec![note("after the backup")]).unwrap();
    let (database, _data) = f.close();
    let (new, keep) = (folder.path().join("new.db"), database.with_extension("kept"));
    unpack_backup(&path, &new, &mut go_on()).unwrap();
    let exclusive = Exclusive::take(&database).unwrap();
    assert_eq!(replace_database(&database, &new, &keep), Ok(true));
    drop(exclusive);
    assert_eq!(texts(&Store::open(&database, &NORMAL).unwrap()).len(), 200);
    assert_eq!(texts(&Store::open(&keep, &NORMAL).unwrap())[0], "after the backup");
    assert!(!new.exists());
}

#[test]
fn one_that_is_open_is_not_replaced() {
    let f = Fixture::new();
    f.store.add(None, vec![note("a")]).unwrap();
    let path = f.store.path().to_path_buf();
    let in_use = StoreError::InUse { path: path.clone() };
    assert_eq!(Exclusive::take(&path).unwrap_err(), in_use);
    let (_, folder) = f.close();
    // Another program knows nothing of our lock.
    let other = Connection::open(&path).unwrap();
    other.query_row("SELECT count(*) FROM records", [], |_| Ok(())).unwrap();
    let exclusive = Exclusive::take(&path).unwrap();
    let new = folder.path().join("new.db");
    fs::write(&new, "").unwrap();
    assert_eq!(replace_database(&path, &new, &folder.path().join("kept")), Err(in_use));
    let waiting = StoreOptions { busy_timeout: Duration::from_millis(20), ..NORMAL };
    assert_eq!(Store::open(&path, &waiting).unwrap_err(), StoreError::Busy { path: path.clone() });
    drop((other, exclusive));
    assert_eq!(texts(&Store::open(&path, &waiting).unwrap()), ["a"]);
}

#[test]
fn a_damaged_database_is_kept_as_it_is() {
    let (f, folder, path, _) = backed_up();
    let (database, _data) = f.close();
    fs::write(&database, "no database").unwrap();
    let (new, keep) = (folder.path().join("new.db"), database.with_extension("kept"));
    unpack_backup(&path, &new, &mut go_on()).unwrap();
    assert_eq!(replace_database(&database, &new, &keep), Ok(true));
    assert_eq!(texts(&Store::open(&database, &NORMAL).unwrap()).len(), 200);
    assert_eq!(fs::read(&keep).unwrap(), b"no database");
}

#[test]
fn a_log_that_lost_its_database_is_set_aside() {
    let (f, folder, path, _) = backed_up();
    // As it is while the database is open.
    let log = fs::read(with_suffix(f.store.path(), "-wal")).unwrap();
    let (database, _data) = f.close();
    fs::remove_file(&database).unwrap();
    fs::write(with_suffix(&database, "-wal"), &log).unwrap();
    let (new, keep) = (folder.path().join("new.db"), database.with_extension("kept"));
    unpack_backup(&path, &new, &mut go_on()).unwrap();
    assert_eq!(replace_database(&database, &new, &keep), Ok(false));
    assert_eq!(texts(&Store::open(&database, &NORMAL).unwrap()).len(), 200);
    assert_eq!(fs::read(with_suffix(&keep, "-wal")).unwrap(), log);
}
