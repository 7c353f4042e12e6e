//! Whatever happens to a saved file, the index neither panics nor ends the process. What it does not
//! read when it opens it cannot find damaged: the host has compared the digests before.
use magray_index_hnsw::{Hnsw, Options};
use magray_plugin_api::{
    CreateVectorIndex, Error, ErrorCode, Hit, IndexSpec, Metric, SearchParams, VectorIndex,
};
use magray_plugin_testkit::{Cx, HOST};
use proptest::{prelude::*, sample::Index};
use std::{fs, path::Path, sync::LazyLock};
use tempfile::TempDir;

const SPEC: IndexSpec = IndexSpec { dim: 3, metric: Metric::Cosine };
const FILES: [&str; 3] = ["index.bin", "rows.f32", "links.u32"];

/// The files of an index of 200 vectors.
static SAVED: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(|| {
    let dir = saved(200);
    FILES.iter().map(|&name| (name, fs::read(dir.path().join(name)).expect("save wrote it"))).collect()
});

/// Walks the graph always.
fn walking() -> Options {
    Options { exact_below: 0, ..Options::default() }
}

fn saved(n: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let index = Hnsw::create(walking(), SPEC, HOST).expect("valid options");
    let ids: Vec<_> = (0..n).collect();
    let vectors: Vec<_> = ids.iter().flat_map(|&id| [id as f32, 1.0, (id * id % 17) as f32]).collect();
    index.upsert(&Cx::free(), &ids, &vectors).expect("valid vectors");
    index.save(&Cx::free(), dir.path()).expect("an empty folder");
    dir
}

fn open(dir: &Path) -> Result<Hnsw, Error> {
    Hnsw::open(walking(), SPEC, dir, HOST)
}

/// Opens the saved files with one of them changed.
fn open_changed(changed: usize, change: impl FnOnce(&mut Vec<u8>)) -> Result<Hnsw, Error> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut change = Some(change);
    for (at, (name, content)) in SAVED.iter().enumerate() {
        let mut content = content.clone();
        if at == changed
            && let Some(change) = change.take()
        {
            change(&mut content);
        }
        fs::write(dir.path().join(name), content).expect("a temporary file");
    }
    open(dir.path())
}

fn is_corrupt(opened: Result<Hnsw, Error>) -> bool {
    opened.is_err_and(|error| error.code() == ErrorCode::CORRUPT_DATA)
}

proptest! {
    #[test]
    fn a_flipped_bit_is_found_or_does_no_harm(
        file in 0..FILES.len(),
        at in any::<Index>(),
        bit in 0..8,
        place in 0..200u64,
    ) {
        let opened = open_changed(file, |content| {
            let at = at.index(content.len());
            content[at] ^= 1u8 << bit;
        });
        let Ok(index) = opened else {
            prop_assert!(is_corrupt(opened));
            return Ok(());
        };
        prop_assert!(file > 0, "index.bin has a digest of its own");
        let mut hits = [Hit::NONE; 20];
        let query = [place as f32, 1.0, 3.0];
        index.search(&Cx::free(), &query, 20, SearchParams::with_ef(20), None, &mut hits).expect("a valid query");
        prop_assert!(hits.iter().all(|hit| hit.id < 200 || hit.is_none()), "{hits:?}");
        // What is damaged reaches hnsw_rs only now.
        if let Err(error) = index.upsert(&Cx::free(), &[200], &[1.0, 2.0, 3.0]) {
            prop_assert_eq!(error.code(), ErrorCode::CORRUPT_DATA);
        }
    }

    #[test]
    fn a_truncated_file_is_found(file in 0..FILES.len(), at in any::<Index>()) {
        prop_assert!(is_corrupt(open_changed(file, |content| content.truncate(at.index(content.len())))));
    }

    #[test]
    fn added_bytes_are_found(file in 0..FILES.len(), added in prop::collection::vec(any::<u8>(), 1..9)) {
        prop_assert!(is_corrupt(open_changed(file, |content| content.extend(&added))));
    }
}

#[test]
fn a_missing_file_is_damage() {
    for name in FILES {
        let dir = saved(20);
        fs::remove_file(dir.path().join(name)).unwrap();
        assert_eq!(open(dir.path()).unwrap_err().code(), ErrorCode::CORRUPT_DATA, "{name}");
    }
}

#[test]
fn another_width_or_metric_is_refused() {
    let dir = saved(20);
    assert_eq!(open(dir.path()).unwrap().stats().live, 20);
    for spec in [IndexSpec { dim: 4, ..SPEC }, IndexSpec { metric: Metric::L2, ..SPEC }] {
        let error = Hnsw::open(Options::default(), spec, dir.path(), HOST).unwrap_err();
        assert_eq!(error.code(), ErrorCode::CORRUPT_DATA);
    }
}

#[test]
fn a_folder_that_cannot_be_written_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir(dir.path().join("links.u32")).unwrap();
    let index = Hnsw::create(Options::default(), SPEC, HOST).unwrap();
    index.upsert(&Cx::free(), &[1], &[1.0, 2.0, 3.0]).unwrap();
    assert_eq!(index.save(&Cx::free(), dir.path()).unwrap_err().code(), ErrorCode::IO);
}
