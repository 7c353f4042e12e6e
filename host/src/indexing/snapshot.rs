//! Sealed index snapshots on disk: the files of an index plugin beside a manifest that says what
//! they cover and how each must hash.
//!
//! A snapshot is written beside its place and renamed into it, so it is whole or absent. It is
//! disposable: whatever does not verify is set aside and built again from the store.
use super::error::{IndexError, Unusable};
use magray_plugin_api::{CallContext, Metric, VectorIndex};
use serde::{Deserialize, Serialize};
use std::{
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest.json";
/// How the names of folders begin that are not snapshots yet, or not any more.
const BUILDING: &str = ".building-";
const RETIRED: &str = ".retired-";

/// What a snapshot must be, to be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Identity {
    /// Id of the database whose sequence numbers it speaks of.
    pub(super) database: String,
    pub(super) backend: String,
    pub(super) plugin: String,
    pub(super) plugin_version: String,
    /// The backend's options as JSON.
    pub(super) options: String,
    /// Digest of the embedding space, in hexadecimal digits.
    pub(super) space: String,
    pub(super) dim: usize,
    pub(super) metric: String,
}

impl Identity {
    pub(super) fn metric_name(metric: Metric) -> String {
        format!("{metric:?}").to_lowercase()
    }
}

#[derive(Serialize, Deserialize)]
struct Body {
    format: u32,
    #[serde(flatten)]
    identity: Identity,
    /// Vectors in it.
    count: u64,
    /// It holds every change up to this one.
    covered_seq: u64,
    files: Vec<FileDigest>,
}

#[derive(Serialize, Deserialize)]
struct FileDigest {
    name: String,
    len: u64,
    blake3: String,
}

/// The manifest, with a digest of its own so that a flipped bit in it is found too.
#[derive(Serialize, Deserialize)]
struct Manifest {
    body: Body,
    blake3: String,
}

/// A verified snapshot.
#[derive(Debug)]
pub(super) struct Snapshot {
    pub(super) dir: PathBuf,
    pub(super) covered_seq: u64,
}

/// The sequence numbers of the snapshots in `dir`, newest first.
pub(super) fn sequence_numbers(dir: &Path) -> Vec<u64> {
    let Ok(entries) = dir.read_dir() else { return Vec::new() };
    let mut numbers: Vec<u64> =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers
}

/// Checks that `dir` holds what was written, and that it is what `identity` asks for.
pub(super) fn verify(dir: PathBuf, identity: &Identity) -> Result<Snapshot, Unusable> {
    let json = fs::read(dir.join(MANIFEST)).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if !dir.exists() => Unusable::Gone,
        io::ErrorKind::NotFound => Unusable::Damaged(format!("it has no {MANIFEST}")),
        _ => Unusable::Unreadable(format!("its {MANIFEST} cannot be read: {error}")),
    })?;
    let damaged = |what: &str| Unusable::Damaged(format!("its {MANIFEST} {what}"));
    let Manifest { body, blake3 } = serde_json::from_slice(&json).map_err(|_| damaged("is damaged"))?;
    if digest_of(&body).is_none_or(|digest| digest != blake3) {
        return Err(damaged("does not match its digest"));
    }
    if body.format != FORMAT {
        return Err(Unusable::Stale(format!("format {} is not {FORMAT}", body.format)));
    }
    if body.identity != *identity {
        return Err(Unusable::Stale(
            "it was made for another database or model, with other options or by another version".into(),
        ));
    }
    for file in &body.files {
        verify_file(&dir, file)?;
    }
    Ok(Snapshot { dir, covered_seq: body.covered_seq })
}

fn verify_file(dir: &Path, expected: &FileDigest) -> Result<(), Unusable> {
    let path = dir.join(&expected.name);
    let found = digest_file(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if !dir.exists() => Unusable::Gone,
        io::ErrorKind::NotFound => Unusable::Damaged(format!("{} is missing", path.display())),
        _ => Unusable::Unreadable(format!("{} cannot be read: {error}", path.display())),
    })?;
    if (found.len, &found.blake3) != (expected.len, &expected.blake3) {
        return Err(Unusable::Damaged(format!("{} does not match its digest", path.display())));
    }
    Ok(())
}

fn digest_file(path: &Path) -> io::Result<FileDigest> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_mmap(path)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    Ok(FileDigest { name, len: hasher.count(), blake3: hasher.finalize().to_hex().to_string() })
}

fn digest_of(body: &Body) -> Option<String> {
    let json = serde_json::to_vec(body).ok()?;
    Some(blake3::hash(&json).to_hex().to_string())
}

/// Saves `index`, which holds every change up to `covered_seq`, as `dir/covered_seq`, and removes
/// the older ones.
pub(super) fn write(
    cx: &dyn CallContext,
    dir: &Path,
    identity: &Identity,
    index: &dyn VectorIndex,
    covered_seq: u64,
) -> Result<Snapshot, IndexError> {
    let target = dir.join(covered_seq.to_string());
    let failed = |error| IndexError::Write { path: target.clone(), error };
    let building = tempfile::Builder::new().prefix(BUILDING).tempdir_in(dir).map_err(failed)?;
    index
        .save(cx, building.path())
        .map_err(|error| IndexError::Backend { backend: identity.backend.clone(), error })?;
    let manifest = manifest(building.path(), identity, index.stats().live, covered_seq).map_err(failed)?;
    write_durably(&building.path().join(MANIFEST), &manifest).map_err(failed)?;
    sync_folder(building.path()).map_err(failed)?;
    // One of the same number is a stale one.
    retire(&target);
    fs::rename(building.path(), &target).map_err(failed)?;
    sync_folder(dir).map_err(failed)?;
    for older in sequence_numbers(dir).into_iter().filter(|&number| number != covered_seq) {
        retire(&dir.join(older.to_string()));
    }
    Ok(Snapshot { dir: target, covered_seq })
}

/// Removes a snapshot. It vanishes at once, so that no reader takes a half removed one for damaged;
/// one that maps its files keeps their pages.
fn retire(dir: &Path) {
    let mut name = OsString::from(RETIRED);
    name.push(dir.file_name().unwrap_or_default());
    let retired = dir.with_file_name(name);
    if fs::rename(dir, &retired).is_ok() {
        // On Windows what is mapped stays, until `clean` comes by again.
        let _ = fs::remove_dir_all(retired);
    }
}

/// Removes what a writer that was killed has left in `dir`. Only for who holds its lock.
pub(super) fn clean(dir: &Path) {
    let left = |name: &str| name.starts_with(BUILDING) || name.starts_with(RETIRED);
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(left) {
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

fn manifest(dir: &Path, identity: &Identity, count: u64, covered_seq: u64) -> io::Result<Vec<u8>> {
    let mut files = Vec::new();
    for entry in dir.read_dir()? {
        let path = entry?.path();
        File::open(&path)?.sync_all()?;
        files.push(digest_file(&path)?);
    }
    files.sort_by(|a, b| a.name.cmp(&b.name));
    let body = Body { format: FORMAT, identity: identity.clone(), count, covered_seq, files };
    let blake3 = digest_of(&body).ok_or(io::ErrorKind::InvalidData)?;
    Ok(serde_json::to_vec_pretty(&Manifest { body, blake3 })?)
}

fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(unix)]
fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}

/// Moves a damaged snapshot out of the way, for whoever wants to look at it. One is kept.
pub(super) fn set_aside(dir: &Path) -> io::Result<PathBuf> {
    let aside = dir.with_file_name("damaged");
    let _ = fs::remove_dir_all(&aside);
    fs::rename(dir, &aside)?;
    Ok(aside)
}
