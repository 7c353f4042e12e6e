//! Whatever happens to a saved file, opening it is an error: it neither panics nor ends the process.
use magray_index_hnsw::{Hnsw, Options};
use magray_plugin_api::{CreateVectorIndex, Error, ErrorCode, IndexSpec, Metric, VectorIndex};
use magray_plugin_testkit::{Cx, HOST};
use proptest::{prelude::*, sample::Index};
use std::{fs, path::Path, sync::LazyLock};
use tempfile::TempDir;

const SPEC: IndexSpec = IndexSpec { dim: 3, metric: Metric::Cosine };
const FILES: [&str; 4] = ["index.bin", "rows.f32", "graph.hnsw.graph", "graph.hnsw.data"];

/// The files of an index of 200 vectors.
static SAVED: LazyLock<Vec<(&str, Vec<u8>)>> = LazyLock::new(|| {
    let dir = saved(200);
    FILES.iter().map(|&name| (name, fs::read(dir.path().join(name)).expect("save wrote it"))).collect()
});

fn saved(n: u64) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let index = Hnsw::create(Options::default(), SPEC, HOST).expect("valid options");
    let ids: Vec<_> = (0..n).collect();
    let vectors: Vec<_> = ids.iter().flat_map(|&id| [id as f32, 1.0, (id * id % 17) as f32]).collect();
    index.upsert(&Cx::free(), &ids, &vectors).expect("valid vectors");
    index.save(&Cx::free(), dir.path()).expect("an empty folder");
    dir
}

fn open(dir: &Path) -> Result<Hnsw, Error> {
    Hnsw::open(Options::default(), SPEC, dir, HOST)
}

/// Opens the saved files with one of them changed.
fn open_changed(changed: usize, change: impl FnOnce(&mut Vec<u8>)) -> ErrorCode {
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
    open(dir.path()).err().map_or(ErrorCode(u32::MAX), |error| error.code())
}

proptest! {
    #[test]
    fn a_flipped_bit_is_found(file in 0..FILES.len(), at in any::<Index>(), bit in 0..8) {
        let code = open_changed(file, |content| {
            let at = at.index(content.len());
            content[at] ^= 1u8 << bit;
        });
        prop_assert_eq!(code, ErrorCode::CORRUPT_DATA);
    }

    #[test]
    fn a_truncated_file_is_found(file in 0..FILES.len(), at in any::<Index>()) {
        let code = open_changed(file, |content| content.truncate(at.index(content.len())));
        prop_assert_eq!(code, ErrorCode::CORRUPT_DATA);
    }

    #[test]
    fn added_bytes_are_found(file in 0..FILES.len(), added in prop::collection::vec(any::<u8>(), 1..9)) {
        let code = open_changed(file, |content| content.extend(&added));
        prop_assert_eq!(code, ErrorCode::CORRUPT_DATA);
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
    fs::create_dir(dir.path().join("graph.hnsw.data")).unwrap();
    let index = Hnsw::create(Options::default(), SPEC, HOST).unwrap();
    index.upsert(&Cx::free(), &[1], &[1.0, 2.0, 3.0]).unwrap();
    assert_eq!(index.save(&Cx::free(), dir.path()).unwrap_err().code(), ErrorCode::IO);
}
