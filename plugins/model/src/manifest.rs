//! `magray.json`: what `magray model` writes into a model folder.
use serde::{Deserialize, Serialize};
use std::{
    fs::Metadata,
    path::Path,
    time::{SystemTime, UNIX_EPOCH},
};

/// Name of the manifest's file.
pub const MANIFEST: &str = "magray.json";

/// Where a model folder comes from and what its files were when they were verified.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// Where it comes from, for people: a repository, a wheel, a folder.
    pub source: String,
    /// Revision of the repository.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// What goes before a text that asks, where the model's own files do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_prefix: Option<String>,
    /// What goes before a text that is searched for, where the model's own files do not say it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub passage_prefix: Option<String>,
    /// Every file of the model.
    pub files: Vec<ManifestFile>,
}

/// One file of a model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ManifestFile {
    /// Path below the folder, with `/`.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// Time of its last change, in nanoseconds since 1970.
    pub mtime_ns: u64,
    /// SHA-256 in hexadecimal.
    pub sha256: String,
    /// BLAKE3 in hexadecimal.
    pub blake3: String,
}

impl Manifest {
    /// The manifest of `dir`; `None` where there is none, or none that can be read: it only saves
    /// time.
    pub fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(MANIFEST)).ok()?).ok()
    }

    /// BLAKE3 of the file at `path` below the folder, as long as size and time say that it is the
    /// one that was hashed.
    pub(crate) fn blake3(&self, path: &str, metadata: &Metadata) -> Option<blake3::Hash> {
        let file = self.files.iter().find(|file| file.path == path)?;
        let same = file.size == metadata.len() && file.mtime_ns == ManifestFile::mtime_ns(metadata);
        same.then(|| blake3::Hash::from_hex(&file.blake3).ok()).flatten()
    }
}

impl ManifestFile {
    /// The time of a file's last change as a manifest holds it; 0 where the system has none.
    pub fn mtime_ns(metadata: &Metadata) -> u64 {
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
    }
}
