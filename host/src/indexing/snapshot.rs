//! Snapshots: small files, each of which lists the segments that together are an index, and up to which
//! change of the store that is complete. The newest one counts. Beside them lie the tombstones of their
//! segments, in files that are named by their digest.
//!
//! Everything is written beside its place and renamed into it, so it is whole or absent, and everything is
//! disposable: what does not verify is set aside and built again from the store.
use super::{
    error::{IndexError, Unusable},
    segment::{Listed, SEGMENTS, digest},
};
use magray_plugin_api::Metric;
use serde::{Deserialize, Serialize};
use std::{
    collections::HashSet,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

const FORMAT: u32 = 2;
const SNAPSHOTS: &str = "snapshots";
const TOMBSTONES: &str = "tombstones";
/// How the names of folders and files begin that are not in their place yet, or not any more.
pub(super) const BUILDING: &str = ".building-";
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

/// What is sealed.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// Each snapshot has the number after that of the one before; 0 is none at all.
    pub(super) generation: u64,
    /// It holds every change up to this one.
    pub(super) covered_seq: u64,
    /// An id lives in at most one of them.
    pub(super) segments: Vec<Listed>,
    /// How often changes were sealed since the index was made, and how many changes that were.
    pub(super) syncs: u64,
    pub(super) changes: u64,
}

impl Snapshot {
    pub(super) fn live(&self) -> u64 {
        self.sum(Listed::live)
    }

    pub(super) fn dead(&self) -> u64 {
        self.sum(|segment| segment.dead)
    }

    pub(super) fn bytes(&self) -> u64 {
        self.sum(|segment| segment.bytes.saturating_add(segment.dead.saturating_mul(8)))
    }

    /// What a file says may be anything.
    fn sum(&self, of: impl Fn(&Listed) -> u64) -> u64 {
        self.segments.iter().map(of).fold(0, u64::saturating_add)
    }
}

#[derive(Serialize, Deserialize)]
struct Body {
    format: u32,
    identity: Identity,
    snapshot: Snapshot,
}

/// Only of which format it is, which says how to read the rest.
#[derive(Deserialize)]
struct Format {
    body: FormatBody,
}

#[derive(Deserialize)]
struct FormatBody {
    format: u32,
}

/// With a digest of its own, so that a flipped bit in it is found too.
#[derive(Serialize, Deserialize)]
struct Sealed {
    body: Body,
    blake3: String,
}

/// The generations that are there, newest first.
pub(super) fn generations(dir: &Path) -> Vec<u64> {
    let Ok(entries) = dir.join(SNAPSHOTS).read_dir() else { return Vec::new() };
    let number = |name: OsString| name.to_str()?.strip_suffix(".json")?.parse().ok();
    let mut numbers: Vec<u64> = entries.filter_map(|entry| number(entry.ok()?.file_name())).collect();
    numbers.sort_unstable_by(|a, b| b.cmp(a));
    numbers
}

/// The file of a generation.
pub(super) fn path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(SNAPSHOTS).join(format!("{generation}.json"))
}

/// A snapshot that is whole, and what `identity` asks for.
pub(super) fn read(dir: &Path, generation: u64, identity: &Identity) -> Result<Snapshot, Unusable> {
    let body = read_body(&path(dir, generation))?;
    if body.identity != *identity {
        return Err(Unusable::Stale(
            "it was made for another database or model, with other options or by another version".into(),
        ));
    }
    Ok(body.snapshot)
}

/// The newest snapshot that is whole, whatever it was made for.
pub(super) fn newest(dir: &Path) -> Option<Snapshot> {
    let mut whole = generations(dir).into_iter().filter_map(|number| read_body(&path(dir, number)).ok());
    Some(whole.next()?.snapshot)
}

fn read_body(path: &Path) -> Result<Body, Unusable> {
    let json = fs::read(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unusable::Gone,
        _ => Unusable::Unreadable(format!("{} cannot be read: {error}", path.display())),
    })?;
    let damaged = |what: &str| Unusable::Damaged(format!("{} {what}", path.display()));
    if let Ok(Format { body: FormatBody { format } }) = serde_json::from_slice(&json)
        && format != FORMAT
    {
        return Err(Unusable::Stale(format!("format {format} is not {FORMAT}")));
    }
    let Sealed { body, blake3 } = serde_json::from_slice(&json).map_err(|_| damaged("is damaged"))?;
    if serde_json::to_vec(&body).map_or(true, |body| digest(&body) != blake3) {
        return Err(damaged("does not match its digest"));
    }
    Ok(body)
}

/// Puts a snapshot into its place; it is then the newest.
pub(super) fn write(dir: &Path, identity: &Identity, snapshot: &Snapshot) -> Result<(), IndexError> {
    let body = Body { format: FORMAT, identity: identity.clone(), snapshot: snapshot.clone() };
    let target = path(dir, snapshot.generation);
    let write = || -> io::Result<()> {
        let blake3 = digest(&serde_json::to_vec(&body)?);
        put(&target, &serde_json::to_vec_pretty(&Sealed { body, blake3 })?)
    };
    write().map_err(|error| IndexError::Write { path: target.clone(), error })
}

/// Writes the ids of dead rows, ascending. Returns the name of the file.
pub(super) fn write_tombstones(dir: &Path, ids: &[u64]) -> Result<Option<String>, IndexError> {
    if ids.is_empty() {
        return Ok(None);
    }
    let bytes: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
    let name = digest(&bytes);
    let target = dir.join(TOMBSTONES).join(&name);
    // One that is there is kept only where it is whole.
    if read_tombstones(dir, Some(&name)).is_err() {
        put(&target, &bytes).map_err(|error| IndexError::Write { path: target.clone(), error })?;
    }
    Ok(Some(name))
}

/// The ids of dead rows, ascending.
pub(super) fn read_tombstones(dir: &Path, name: Option<&str>) -> Result<Vec<u64>, Unusable> {
    let Some(name) = name else { return Ok(Vec::new()) };
    let path = dir.join(TOMBSTONES).join(name);
    let bytes = fs::read(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => Unusable::Damaged(format!("{} is missing", path.display())),
        _ => Unusable::Unreadable(format!("{} cannot be read: {error}", path.display())),
    })?;
    if digest(&bytes) != name {
        return Err(Unusable::Damaged(format!("{} does not match its digest", path.display())));
    }
    Ok(bytes.as_chunks().0.iter().map(|&id| u64::from_le_bytes(id)).collect())
}

/// Writes a file beside its place and renames it, durably.
fn put(target: &Path, bytes: &[u8]) -> io::Result<()> {
    let dir = target.parent().ok_or(io::ErrorKind::InvalidInput)?;
    fs::create_dir_all(dir)?;
    let mut file = tempfile::Builder::new().prefix(BUILDING).tempfile_in(dir)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(target)?;
    sync_folder(dir)
}

/// Removes what `snapshot`, the newest, does not list, and what a writer that was killed has left. Only for
/// who holds the lock. What a reader maps stays until it lets go.
pub(super) fn clean(dir: &Path, snapshot: &Snapshot) {
    let mut segments: HashSet<OsString> = HashSet::new();
    let mut tombstones: HashSet<OsString> = HashSet::new();
    for listed in &snapshot.segments {
        segments.insert(listed.name.clone().into());
        tombstones.extend(listed.tombstones.clone().map(OsString::from));
    }
    // The lists first: whoever finds a segment gone looks for a newer one.
    let current = [OsString::from(format!("{}.json", snapshot.generation))].into();
    for (folder, listed) in [(SNAPSHOTS, &current), (SEGMENTS, &segments), (TOMBSTONES, &tombstones)] {
        for entry in dir.join(folder).read_dir().into_iter().flatten().flatten() {
            if !listed.contains(&entry.file_name()) {
                retire(&entry.path());
            }
        }
    }
    // Snapshots of format 1 were folders named by a sequence number.
    for entry in dir.read_dir().into_iter().flatten().flatten() {
        let name = entry.file_name();
        if name.to_str().is_some_and(|name| {
            name.parse::<u64>().is_ok() || name.starts_with(RETIRED) || name.starts_with(BUILDING)
        }) {
            retire(&entry.path());
        }
    }
}

/// Removes a folder or file. It vanishes at once, so that no reader takes a half removed one for damaged.
fn retire(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let mut hidden = OsString::from(RETIRED);
    hidden.push(name);
    let retired = path.with_file_name(hidden);
    let retired = if fs::rename(path, &retired).is_ok() { retired.as_path() } else { path };
    // On Windows what is mapped stays, until `clean` comes by again.
    let _ = if retired.is_dir() { fs::remove_dir_all(retired) } else { fs::remove_file(retired) };
}

/// Moves what is damaged out of the way, for whoever wants to look at it. One is kept.
pub(super) fn set_aside(dir: &Path, path: &Path) -> io::Result<PathBuf> {
    let aside = dir.join("damaged");
    // A segment that another process has moved away in the meantime must not cost the one that is kept.
    if !path.exists() {
        return Err(io::ErrorKind::NotFound.into());
    }
    let _ = fs::remove_dir_all(&aside);
    fs::create_dir_all(&aside)?;
    let aside = aside.join(path.file_name().unwrap_or_default());
    fs::rename(path, &aside)?;
    Ok(aside)
}

pub(super) fn write_durably(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(bytes)?;
    file.sync_all()
}

#[cfg(unix)]
pub(super) fn sync_folder(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

#[cfg(not(unix))]
pub(super) fn sync_folder(_: &Path) -> io::Result<()> {
    Ok(())
}
