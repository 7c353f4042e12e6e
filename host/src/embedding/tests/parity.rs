//! Backends that claim to be of one space.
use super::*;
use crate::store::{Store, StoreOptions};

fn store(folder: &tempfile::TempDir, read_only: bool) -> Arc<Store> {
    let options = StoreOptions { read_only, ..StoreOptions::default() };
    Arc::new(Store::open(&folder.path().join("magray.db"), &options).unwrap())
}

fn open(scripts: &[&Arc<Script>], store: &Arc<Store>) -> Result<Bed, EmbeddingError> {
    Bed::with(scripts, &options(), Some(Gate::new(store.clone())))
}

#[test]
fn a_backend_that_computes_something_else_is_refused_and_named() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, false);
    let (first, second) = (script(), script());
    drop(open(&[&first], &store).unwrap());
    second.act(Act::Skew(0.3));
    let bed = open(&[&second, &first], &store).unwrap();
    assert_eq!(bed.states(), ["refused", "closed"]);
    let why = bed.status().members[0].last_error.clone().unwrap();
    assert!(why.contains("'first'") && why.contains("cosine is 0.9") && why.contains("0.999"), "{why}");
    bed.works();
    let error = open(&[&second], &store).err().unwrap();
    assert!(matches!(error, EmbeddingError::Disagrees { .. }), "{error}");
}

#[test]
fn eight_bits_may_differ_a_little_more() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, false);
    drop(open(&[&script()], &store).unwrap());
    let skewed = |precision| {
        let script = script().with(|seen| seen.precision = precision);
        script.act(Act::Skew(0.1));
        script
    };
    assert!(matches!(open(&[&skewed("f32")], &store), Err(EmbeddingError::Disagrees { .. })));
    assert!(matches!(open(&[&skewed("bf16")], &store), Err(EmbeddingError::Disagrees { .. })));
    assert!(open(&[&skewed("int8")], &store).is_ok());
}

#[test]
fn a_verdict_is_remembered_until_the_backend_is_another() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, false);
    let only = script();
    drop(open(&[&only], &store).unwrap());
    let calls = only.seen().calls;
    assert!(calls > 0);
    drop(open(&[&only], &store).unwrap());
    assert_eq!(only.seen().calls, calls, "no probe is embedded");
    only.seen().precision = "bf16";
    drop(open(&[&only], &store).unwrap());
    assert_eq!(only.seen().calls, 2 * calls);
}

#[test]
fn a_database_that_may_only_be_read_is_compared_with() {
    let folder = tempfile::tempdir().unwrap();
    let (first, second, third) = (script(), script(), script());
    drop(open(&[&first], &store(&folder, false)).unwrap());
    let store = store(&folder, true);
    drop(open(&[&second], &store).unwrap());
    third.act(Act::Skew(0.3));
    assert!(matches!(open(&[&third], &store), Err(EmbeddingError::Disagrees { .. })));
}

#[test]
fn a_broken_backend_leaves_no_reference() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, false);
    let broken = script();
    broken.act(Act::Nan);
    assert!(matches!(open(&[&broken], &store), Err(EmbeddingError::Broken { .. })));
    assert!(open(&[&script()], &store).is_ok());
}
