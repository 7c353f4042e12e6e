//! Digests of files, read once for both.
use super::{ModelError, error::io_error};
use magray_plugin_api::CallContext;
use sha1::Sha1;
use sha2::{Digest as _, Sha256};
use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read},
    path::Path,
};

/// Bytes that are read, hashed or written at once.
pub(super) const PIECE: usize = 1 << 18;

/// What a file must be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Digest {
    /// SHA-256, in hexadecimal.
    Sha256(String),
    /// The name that git gives to the content: SHA-1 over a header and the content, in hexadecimal.
    GitBlob(String),
}

impl Digest {
    /// Reads what an `ETag` says, which is one or the other by its length.
    pub(super) fn from_hex(text: &str) -> Option<Self> {
        let text = text.trim_start_matches("W/").trim_matches('"').to_ascii_lowercase();
        let hex = text.bytes().all(|byte| byte.is_ascii_hexdigit());
        match text.len() {
            64 if hex => Some(Self::Sha256(text)),
            40 if hex => Some(Self::GitBlob(text)),
            _ => None,
        }
    }

    /// The digits.
    pub(super) fn hex(&self) -> &str {
        match self {
            Self::Sha256(hex) | Self::GitBlob(hex) => hex,
        }
    }

    /// Whether `path`, which was hashed as `hashed`, is it.
    pub(super) fn is_of(&self, path: &Path, hashed: &Hashed) -> Result<bool, ModelError> {
        match self {
            Self::Sha256(hex) => Ok(*hex == hashed.sha256),
            Self::GitBlob(hex) => {
                git_blob(path, hashed.size).map(|found| found == *hex).map_err(io_error("read", path))
            }
        }
    }
}

/// What a file is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hashed {
    pub(super) size: u64,
    /// In hexadecimal.
    pub(super) sha256: String,
    /// In hexadecimal.
    pub(super) blake3: String,
}

/// Hashes a file; `on` is told the bytes of each piece.
pub(super) fn hash_file(
    cx: &dyn CallContext,
    path: &Path,
    on: &mut dyn FnMut(u64),
) -> Result<Hashed, ModelError> {
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let (mut sha256, mut blake3, mut size) = (Sha256::new(), blake3::Hasher::new(), 0);
    let mut piece = vec![0; PIECE];
    loop {
        if cx.is_cancelled() {
            return Err(ModelError::Interrupted);
        }
        let read = read_some(&mut file, &mut piece).map_err(io_error("read", path))?;
        if read == 0 {
            break;
        }
        sha256.update(&piece[..read]);
        blake3.update(&piece[..read]);
        size += read as u64;
        on(read as u64);
    }
    Ok(Hashed { size, sha256: hex(&sha256.finalize()), blake3: blake3.finalize().to_hex().to_string() })
}

fn git_blob(path: &Path, size: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut sha1 = Sha1::new();
    sha1.update(format!("blob {size}\0"));
    let mut piece = vec![0; PIECE];
    loop {
        match read_some(&mut file, &mut piece)? {
            0 => return Ok(hex(&sha1.finalize())),
            read => sha1.update(&piece[..read]),
        }
    }
}

/// As `read`, again after an interruption.
pub(super) fn read_some(from: &mut dyn Read, into: &mut [u8]) -> io::Result<usize> {
    loop {
        match from.read(into) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::Patient;

    #[test]
    fn digests_are_those_of_the_tools() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        std::fs::write(file.path(), "hello\n").expect("written");
        let mut bytes = 0;
        let hashed = hash_file(&Patient, file.path(), &mut |more| bytes += more).expect("hashed");
        assert_eq!(bytes, 6);
        // sha256sum, b3sum, git hash-object
        assert_eq!(hashed.sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
        let blake3 = blake3::hash(b"hello\n").to_hex();
        assert_eq!((hashed.size, hashed.blake3.as_str()), (6, blake3.as_str()));
        let git = Digest::from_hex("\"ce013625030ba8dba906f756967f9e9ca394464a\"").expect("a digest");
        assert!(git.is_of(file.path(), &hashed).expect("read"));
        assert!(!Digest::GitBlob("0".repeat(40)).is_of(file.path(), &hashed).expect("read"));
    }

    #[test]
    fn only_whole_digests_are_taken() {
        assert_eq!(
            Digest::from_hex(&format!("W/\"{}\"", "AB".repeat(32))),
            Some(Digest::Sha256("ab".repeat(32)))
        );
        for other in ["", "\"\"", "\"5d41402abc4b2a76b9719d911017c592\"", &"g".repeat(40)] {
            assert_eq!(Digest::from_hex(other), None, "{other}");
        }
    }
}
