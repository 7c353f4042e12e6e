//! Sealed segments: the files of an index plugin, the ids that are in them, and a manifest that says how
//! each file must hash. A segment is written beside its place and renamed into it, and never changes.
use super::{
    error::{IndexError, Unusable},
    snapshot::{BUILDING, sync_folder, write_durably},
    trust::{self, Record, Verified},
};
use magray_plugin_api::{CallContext, VectorIndex};
use memmap2::Mmap;
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};
use ulid::Ulid;

pub(super) const SEGMENTS: &str = "segments";
pub(super) const MANIFEST: &str = "manifest.json";
/// The ids of the rows, ascending, as little-endian u64.
const IDS: &str = "magray.ids";
/// Bytes that have a digest of their own, so that a part of a large file can be checked.
const CHUNK: u64 = 8 << 20;

/// A segment as a snapshot lists it. What it does not know is damage: a name that lost a bit would else be
/// taken for one that is left out.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    /// Its folder, a name that is never used again.
    pub(super) name: String,
    /// BLAKE3 of its manifest.
    pub(super) manifest: String,
    pub(super) rows: u64,
    /// The smallest and the largest id.
    pub(super) first: u64,
    pub(super) last: u64,
    pub(super) bytes: u64,
    /// BLAKE3, and name, of the file that says which rows are dead; none where all live.
    pub(super) tombstones: Option<String>,
    pub(super) dead: u64,
    /// The `ef` at which its searches reached the recall that was asked for; 0 where any does.
    pub(super) breadth: u32,
    /// The recall@10 at that; none where it was not measured.
    pub(super) recall: Option<f32>,
}

impl Listed {
    pub(super) fn live(&self) -> u64 {
        self.rows - self.dead.min(self.rows)
    }

    /// Its folder below that of the backend.
    pub(super) fn path(&self, dir: &Path) -> PathBuf {
        dir.join(SEGMENTS).join(&self.name)
    }
}

#[derive(Serialize, Deserialize)]
struct Manifest {
    rows: u64,
    files: Vec<FileDigest>,
}

#[derive(Serialize, Deserialize)]
struct FileDigest {
    name: String,
    len: u64,
    /// BLAKE3 of each [`CHUNK`] bytes.
    chunks: Vec<String>,
}

/// Saves `index`, which holds `ids`, ascending and at least one, as a segment below `dir`.
pub(super) fn write(
    cx: &dyn CallContext,
    dir: &Path,
    backend: &str,
    index: &dyn VectorIndex,
    ids: &[u64],
) -> Result<Listed, IndexError> {
    let segments = dir.join(SEGMENTS);
    let failed = |error| IndexError::Write { path: segments.clone(), error };
    fs::create_dir_all(&segments).map_err(failed)?;
    let building = tempfile::Builder::new().prefix(BUILDING).tempdir_in(&segments).map_err(failed)?;
    let save = index.save(cx, building.path());
    save.map_err(|error| IndexError::Backend { backend: backend.to_owned(), error })?;
    let name = Ulid::generate().to_string();
    let finish = || -> io::Result<Listed> {
        let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        write_durably(&building.path().join(IDS), &bytes)?;
        let mut files = Vec::new();
        let mut noted = Vec::new();
        for entry in building.path().read_dir()? {
            let path = entry?.path();
            let (file, metadata) = trust::open(&path)?;
            file.sync_all()?;
            let name = file_name(&path);
            let chunks = hash_chunks(&file, metadata.len())?;
            noted.push((name.clone(), path));
            files.push(FileDigest { name, len: metadata.len(), chunks });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        let bytes = files.iter().map(|file| file.len).sum();
        let manifest = serde_json::to_vec(&Manifest { rows: ids.len() as u64, files })?;
        write_durably(&building.path().join(MANIFEST), &manifest)?;
        let manifest = digest(&manifest);
        remember(building.path(), &manifest, &noted);
        sync_folder(building.path())?;
        fs::rename(building.path(), segments.join(&name))?;
        sync_folder(&segments)?;
        let (first, last) = (ids.first().copied().unwrap_or(0), ids.last().copied().unwrap_or(0));
        let rows = ids.len() as u64;
        let (tombstones, dead, breadth, recall) = (None, 0, 0, None);
        Ok(Listed { name, manifest, rows, first, last, bytes, tombstones, dead, breadth, recall })
    };
    finish().map_err(failed)
}

/// Notes files that are known to be right. Where that cannot be, they are hashed again.
fn remember(dir: &Path, manifest: &str, files: &[(String, PathBuf)]) {
    let remember = || -> io::Result<()> {
        let mut record = Record::begin(dir, manifest)?;
        for (name, path) in files {
            record.note(name, &fs::metadata(path)?);
        }
        record.keep(dir)
    };
    if let Err(error) = remember() {
        tracing::debug!("cannot note that {} was checked: {error}", dir.display());
    }
}

/// How thoroughly files are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Care {
    /// What was hashed before and has not changed since is not hashed again.
    Trust,
    /// Every byte.
    Hash,
}

/// Checks that the files of a segment are as they were written. Returns how many bytes were hashed for it.
pub(super) fn check(cx: &dyn CallContext, dir: &Path, listed: &Listed, care: Care) -> Result<u64, Unusable> {
    let path = listed.path(dir);
    let manifest = read_manifest(&path, listed)?;
    if care == Care::Trust && is_verified(&path, listed, &manifest)? {
        return Ok(0);
    }
    // Before any file is looked at. Where the folder may not be written, nothing is remembered.
    let mut record = Record::begin(&path, &listed.manifest).ok();
    let mut hashed = 0;
    for expected in &manifest.files {
        let file_path = path.join(&expected.name);
        let (file, metadata) = open(&path, &file_path)?;
        if metadata.len() != expected.len {
            return Err(changed(&file_path));
        }
        if let Some(record) = &mut record {
            record.note(&expected.name, &metadata);
        }
        for (number, digest) in expected.chunks.iter().enumerate() {
            cx.check().map_err(Unusable::Cancelled)?;
            let found = hash_chunk(&file, number as u64, expected.len);
            if found.map_err(|error| unreadable(&file_path, &error))? != *digest {
                return Err(changed(&file_path));
            }
        }
        hashed += expected.len;
    }
    if let Some(record) = record
        && let Err(error) = record.keep(&path)
    {
        tracing::debug!("cannot note that {} was checked: {error}", path.display());
    }
    Ok(hashed)
}

/// Whether every file was hashed before and has not changed since.
fn is_verified(path: &Path, listed: &Listed, manifest: &Manifest) -> Result<bool, Unusable> {
    let verified = Verified::read(path, &listed.manifest);
    for expected in &manifest.files {
        let file_path = path.join(&expected.name);
        let (_, metadata) = open(path, &file_path)?;
        if metadata.len() != expected.len {
            return Err(changed(&file_path));
        }
        if !verified.covers(&expected.name, &metadata) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Checks one chunk, whichever `pick` of all chunks says. Returns its length.
pub(super) fn scrub(dir: &Path, listed: &Listed, pick: u64) -> Result<u64, Unusable> {
    let path = listed.path(dir);
    let manifest = read_manifest(&path, listed)?;
    let chunks: Vec<(&FileDigest, u64)> = manifest
        .files
        .iter()
        .flat_map(|file| (0..file.chunks.len() as u64).map(move |at| (file, at)))
        .collect();
    let Some(&(expected, at)) = chunks.get((pick % chunks.len().max(1) as u64) as usize) else {
        return Ok(0);
    };
    let file_path = path.join(&expected.name);
    let (file, metadata) = open(&path, &file_path)?;
    let found = hash_chunk(&file, at, expected.len).map_err(|error| unreadable(&file_path, &error))?;
    if metadata.len() != expected.len || found != expected.chunks[at as usize] {
        return Err(changed(&file_path));
    }
    Ok(CHUNK.min(expected.len - at * CHUNK))
}

/// The ids in a segment, mapped.
#[derive(Debug)]
pub(super) struct Ids(Option<Mmap>);

impl Ids {
    /// Checks the file as [`check`] does, and maps it.
    pub(super) fn open(dir: &Path, listed: &Listed) -> Result<Self, Unusable> {
        let path = listed.path(dir);
        let manifest = read_manifest(&path, listed)?;
        let file_path = path.join(IDS);
        let expected = manifest.files.iter().find(|file| file.name == IDS);
        let expected = expected.ok_or_else(|| changed(&path.join(MANIFEST)))?;
        let (file, metadata) = open(&path, &file_path)?;
        let unreadable = |error: io::Error| unreadable(&file_path, &error);
        if metadata.len() != expected.len || Some(expected.len) != listed.rows.checked_mul(8) {
            return Err(changed(&file_path));
        }
        if !Verified::read(&path, &listed.manifest).covers(IDS, &metadata)
            && hash_chunks(&file, expected.len).map_err(unreadable)? != expected.chunks
        {
            return Err(changed(&file_path));
        }
        if expected.len == 0 {
            return Ok(Self(None));
        }
        // SAFETY: nobody writes the files of a segment once it is in its place; to delete them leaves
        // the map as it is.
        let map = unsafe { Mmap::map(&file) }.map_err(unreadable)?;
        Ok(Self(Some(map)))
    }

    fn chunks(&self) -> &[[u8; 8]] {
        self.0.as_deref().unwrap_or_default().as_chunks().0
    }

    /// Ascending.
    pub(super) fn iter(&self) -> impl Iterator<Item = u64> + '_ {
        self.chunks().iter().map(|&bytes| u64::from_le_bytes(bytes))
    }

    pub(super) fn contains(&self, id: u64) -> bool {
        self.chunks().binary_search_by_key(&id, |&bytes| u64::from_le_bytes(bytes)).is_ok()
    }
}

fn read_manifest(path: &Path, listed: &Listed) -> Result<Manifest, Unusable> {
    let file_path = path.join(MANIFEST);
    let (mut file, _) = open(path, &file_path)?;
    let mut json = Vec::new();
    file.read_to_end(&mut json).map_err(|error| unreadable(&file_path, &error))?;
    if digest(&json) != listed.manifest {
        return Err(changed(&file_path));
    }
    let manifest: Manifest = serde_json::from_slice(&json).map_err(|_| changed(&file_path))?;
    let is_sound = |file: &FileDigest| {
        // A name and no path, and a digest for each part.
        Path::new(&file.name).file_name() == Some(file.name.as_ref())
            && file.chunks.len() as u64 == file.len.div_ceil(CHUNK)
    };
    if manifest.files.iter().all(is_sound) { Ok(manifest) } else { Err(changed(&file_path)) }
}

fn open(segment: &Path, path: &Path) -> Result<(File, fs::Metadata), Unusable> {
    trust::open(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound if !segment.exists() => Unusable::Gone,
        io::ErrorKind::NotFound => Unusable::Damaged(format!("{} is missing", path.display())),
        _ => unreadable(path, &error),
    })
}

fn changed(path: &Path) -> Unusable {
    Unusable::Damaged(format!("{} does not match its digest", path.display()))
}

fn unreadable(path: &Path, error: &io::Error) -> Unusable {
    Unusable::Unreadable(format!("{} cannot be read: {error}", path.display()))
}

pub(super) fn digest(bytes: &[u8]) -> String {
    blake3::hash(bytes).to_hex().to_string()
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

fn hash_chunks(file: &File, len: u64) -> io::Result<Vec<String>> {
    (0..len.div_ceil(CHUNK)).map(|chunk| hash_chunk(file, chunk, len)).collect()
}

fn hash_chunk(file: &File, chunk: u64, len: u64) -> io::Result<String> {
    use std::io::{Seek as _, SeekFrom};
    let mut reader = file;
    reader.seek(SeekFrom::Start(chunk * CHUNK))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(reader.take(CHUNK.min(len.saturating_sub(chunk * CHUNK))))?;
    Ok(hasher.finalize().to_hex().to_string())
}
