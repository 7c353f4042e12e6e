//! Which files of a segment need not be hashed again: those that were, and are still the same file with
//! the same times since. ([Decision 12](../../../docs/decisions/0012-segments-and-trust.md) argues it.)
use serde::{Deserialize, Serialize};
use std::{
    fs::{self, File, Metadata},
    io::{self, Write as _},
    path::Path,
    time::Duration,
};

/// The sidecar in the folder of a segment.
pub(super) const VERIFIED: &str = "magray.verified";

/// A file is trusted only where it was last changed so long before it was looked at. A change within one
/// tick of a file system's clock leaves no trace in its times; no file system ticks more slowly than FAT.
const GRACE: Duration = Duration::from_secs(2);

/// What tells a file from every other and from its own past: any write sets both times.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    name: String,
    device: u64,
    inode: u64,
    len: u64,
    /// Nanoseconds since 1970, as are the others.
    mtime: i128,
    ctime: i128,
}

/// Files that were found as they were written.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Verified {
    /// Digest of the manifest that says how the files must hash.
    manifest: String,
    /// When the file system's clock stood at before the first of them was looked at.
    began: i128,
    files: Vec<Identity>,
}

impl Verified {
    /// What the sidecar in `dir` says about files of this manifest; nothing where there is none.
    pub(super) fn read(dir: &Path, manifest: &str) -> Self {
        let read = || serde_json::from_slice::<Self>(&fs::read(dir.join(VERIFIED)).ok()?).ok();
        read().filter(|verified| verified.manifest == manifest).unwrap_or_default()
    }

    /// Whether the file is one of them.
    pub(super) fn covers(&self, name: &str, metadata: &Metadata) -> bool {
        let Some(now) = Identity::of(name, metadata) else { return false };
        let changed = now.mtime.max(now.ctime);
        self.began.saturating_sub(changed) >= GRACE.as_nanos() as i128 && self.files.contains(&now)
    }
}

/// A check of a segment's files that will be remembered where it ends well.
pub(super) struct Record {
    file: tempfile::NamedTempFile,
    verified: Verified,
}

impl Record {
    /// Begins before the first file is looked at.
    pub(super) fn begin(dir: &Path, manifest: &str) -> io::Result<Self> {
        let file = tempfile::Builder::new().prefix(".verified-").tempfile_in(dir)?;
        let began = modified(&file.as_file().metadata()?).ok_or(io::ErrorKind::Unsupported)?;
        Ok(Self { file, verified: Verified { manifest: manifest.to_owned(), began, files: Vec::new() } })
    }

    /// Notes a file, as it was before it was hashed.
    pub(super) fn note(&mut self, name: &str, metadata: &Metadata) {
        self.verified.files.extend(Identity::of(name, metadata));
    }

    /// Every file was found to be right.
    pub(super) fn keep(mut self, dir: &Path) -> io::Result<()> {
        self.file.write_all(&serde_json::to_vec(&self.verified)?)?;
        self.file.persist(dir.join(VERIFIED))?;
        Ok(())
    }
}

/// Where the file stands open, so that what is looked at is what is read.
pub(super) fn open(path: &Path) -> io::Result<(File, Metadata)> {
    let file = File::open(path)?;
    let metadata = file.metadata()?;
    Ok((file, metadata))
}

#[cfg(unix)]
impl Identity {
    fn of(name: &str, metadata: &Metadata) -> Option<Self> {
        use std::os::unix::fs::MetadataExt as _;
        Some(Self {
            name: name.to_owned(),
            device: metadata.dev(),
            inode: metadata.ino(),
            len: metadata.len(),
            mtime: modified(metadata)?,
            ctime: nanoseconds(metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(unix)]
fn modified(metadata: &Metadata) -> Option<i128> {
    use std::os::unix::fs::MetadataExt as _;
    Some(nanoseconds(metadata.mtime(), metadata.mtime_nsec()))
}

#[cfg(unix)]
fn nanoseconds(seconds: i64, rest: i64) -> i128 {
    i128::from(seconds) * 1_000_000_000 + i128::from(rest)
}

// Other systems do not say when a file was last changed in whatever way, so every file is hashed.
#[cfg(not(unix))]
impl Identity {
    fn of(_: &str, _: &Metadata) -> Option<Self> {
        None
    }
}

#[cfg(not(unix))]
fn modified(_: &Metadata) -> Option<i128> {
    None
}

/// Makes the check in `dir` one that was made a while later.
#[cfg(test)]
pub(super) fn age(dir: &Path) {
    let json = fs::read(dir.join(VERIFIED)).unwrap();
    let mut verified: Verified = serde_json::from_slice(&json).unwrap();
    verified.began += 2 * GRACE.as_nanos() as i128;
    fs::write(dir.join(VERIFIED), serde_json::to_vec(&verified).unwrap()).unwrap();
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use super::*;

    /// A sidecar about `data`, as if it had been made `later` after the file.
    fn verified(dir: &Path, later: Duration) -> Verified {
        let mut record = Record::begin(dir, "m").unwrap();
        let metadata = fs::metadata(dir.join("data")).unwrap();
        let changed = Identity::of("data", &metadata).unwrap();
        record.note("data", &metadata);
        record.verified.began = changed.mtime.max(changed.ctime) + later.as_nanos() as i128;
        record.keep(dir).unwrap();
        Verified::read(dir, "m")
    }

    #[test]
    fn a_file_is_trusted_until_it_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, data) = (dir.path(), dir.path().join("data"));
        fs::write(&data, "0123").unwrap();
        let known = verified(dir, GRACE);
        let is_known = |path: &Path| known.covers("data", &fs::metadata(path).unwrap());
        assert!(is_known(&data));
        assert!(!known.covers("other", &fs::metadata(&data).unwrap()));

        // The same bytes in another file, and other bytes under a time that is set back.
        let copy = dir.join("copy");
        fs::copy(&data, &copy).unwrap();
        assert!(!is_known(&copy));
        let modified = fs::metadata(&data).unwrap().modified().unwrap();
        fs::write(&data, "0124").unwrap();
        File::options().write(true).open(&data).unwrap().set_modified(modified).unwrap();
        assert!(!is_known(&data));
    }

    #[test]
    fn a_file_that_was_just_written_is_hashed_again() {
        let dir = tempfile::tempdir().unwrap();
        let (dir, data) = (dir.path(), dir.path().join("data"));
        fs::write(&data, "0123").unwrap();
        let known = verified(dir, GRACE - Duration::from_nanos(1));
        assert!(!known.covers("data", &fs::metadata(&data).unwrap()));
    }

    #[test]
    fn a_sidecar_that_is_damaged_or_of_another_manifest_says_nothing() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("data"), "0123").unwrap();
        let known = verified(dir.path(), GRACE);
        assert_eq!(Verified::read(dir.path(), "m"), known);
        assert_eq!(Verified::read(dir.path(), "other"), Verified::default());
        fs::write(dir.path().join(VERIFIED), "{").unwrap();
        assert_eq!(Verified::read(dir.path(), "m"), Verified::default());
        assert_eq!(Verified::read(&dir.path().join("none"), "m"), Verified::default());
    }
}
