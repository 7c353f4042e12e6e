//! The gates that a plugin file passes before anything of it runs, cheapest first.
use super::error::Refusal;
use magray_plugin_api::manifest::{self, Manifest};
use object::{Object as _, ObjectSection as _, ObjectSegment as _, ReadCache};
use sha2::{Digest as _, Sha256};
use std::{
    fs::{self, File},
    io::{self, Read as _, Seek as _},
    path::{Path, PathBuf},
};

/// A plugin file whose manifest fits this host; nothing of it has run. The file stays open, so
/// that what is hashed is what is loaded.
#[derive(Debug)]
pub(super) struct PluginFile {
    pub(super) path: PathBuf,
    pub(super) manifest: Manifest,
    file: File,
}

impl PluginFile {
    /// Reads the manifest: headers and one section, however large the library.
    pub(super) fn inspect(path: &Path) -> Result<Self, Refusal> {
        // The linker takes a bare name for one in its own folders.
        let path = &std::path::absolute(path).map_err(Refusal::Read)?;
        // Opening a pipe would wait for somebody to write to it.
        if !fs::metadata(path).map_err(Refusal::Read)?.is_file() {
            return Err(Refusal::NotALibrary("it is no file".into()));
        }
        let file = File::open(path).map_err(Refusal::Read)?;
        refuse_world_writable(path, &file.metadata().map_err(Refusal::Read)?)?;
        if let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
            refuse_world_writable(folder, &fs::metadata(folder).map_err(Refusal::Read)?)?;
        }
        let manifest = read_manifest(&file)?;
        Ok(Self { path: path.to_owned(), manifest, file })
    }

    /// The file's SHA-256 in lower-case hexadecimal digits.
    pub(super) fn sha256(&self) -> Result<String, Refusal> {
        sha256(&self.file).map_err(Refusal::Read)
    }

    /// What changes when the file does.
    pub(super) fn stamp(&self) -> Result<String, Refusal> {
        let metadata = self.file.metadata().map_err(Refusal::Read)?;
        let modified = metadata.modified().map_err(Refusal::Read)?;
        let modified = modified.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(&metadata);
        #[cfg(not(unix))]
        let inode = 0;
        Ok(format!("{}-{}-{inode}", metadata.len(), modified.as_nanos()))
    }

    /// The path to give to the linker, of this process or of a child. Where the file is pinned by its hash it is
    /// that of the open file, if the system has one, so that a file swapped after it was hashed is not the one
    /// loaded; otherwise the real path, so that the library finds others beside it.
    pub(super) fn linker_path(&self, pinned: bool) -> PathBuf {
        #[cfg(target_os = "linux")]
        if pinned {
            let number = std::os::fd::AsRawFd::as_raw_fd(&self.file);
            return format!("/proc/{}/fd/{number}", std::process::id()).into();
        }
        let _ = pinned;
        self.path.clone()
    }
}

/// SHA-256 of a file from its beginning, in lower-case hexadecimal digits.
pub(super) fn sha256(mut file: &File) -> io::Result<String> {
    file.rewind()?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(n) => hash.update(&buffer[..n]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(unix)]
fn refuse_world_writable(path: &Path, metadata: &fs::Metadata) -> Result<(), Refusal> {
    use std::os::unix::fs::PermissionsExt as _;
    if metadata.permissions().mode() & 0o002 != 0 {
        return Err(Refusal::WorldWritable(path.to_owned()));
    }
    Ok(())
}

#[cfg(not(unix))]
fn refuse_world_writable(_: &Path, _: &fs::Metadata) -> Result<(), Refusal> {
    Ok(())
}

fn read_manifest(file: &File) -> Result<Manifest, Refusal> {
    let len = file.metadata().map_err(Refusal::Read)?.len();
    let bytes = ReadCache::new(file);
    let not_a_library = |error: object::Error| Refusal::NotALibrary(error.to_string());
    let library = object::File::parse(&bytes).map_err(not_a_library)?;
    // The linker maps segments without looking at the file's end, and dies of SIGBUS there.
    let ends =
        library.segments().map(|segment| segment.file_range()).map(|(at, size)| at.saturating_add(size));
    let expected = ends.max().unwrap_or(0);
    if expected > len {
        return Err(Refusal::Truncated { len, expected });
    }
    let section = library.section_by_name(manifest::SECTION).ok_or(Refusal::NotAPlugin)?;
    let json = section.data().map_err(not_a_library)?;
    // The epoch alone first: the rest may have another shape in another epoch.
    #[derive(serde::Deserialize)]
    struct Epoch {
        abi_epoch: u32,
    }
    let Epoch { abi_epoch } = serde_json::from_slice(json).map_err(Refusal::BadManifest)?;
    if abi_epoch != manifest::ABI_EPOCH {
        return Err(Refusal::AbiEpoch { found: abi_epoch });
    }
    let manifest: Manifest = serde_json::from_slice(json).map_err(Refusal::BadManifest)?;
    if manifest.target != manifest::TARGET {
        return Err(Refusal::Target { found: manifest.target });
    }
    if manifest.panic != "unwind" {
        return Err(Refusal::PanicStrategy { found: manifest.panic });
    }
    Ok(manifest)
}
