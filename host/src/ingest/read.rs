use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Where a NUL byte or a known signature marks a file as binary.
const HEAD_BYTES: u64 = 8192;

/// First bytes of formats that look like text to a reader of bytes, but are not.
const SIGNATURES: [&[u8]; 3] = [b"%PDF-", b"{\\rtf", b"%!PS"];

/// Byte order marks.
const UTF8: &[u8] = b"\xEF\xBB\xBF";
const UTF16_LE: &[u8] = b"\xFF\xFE";
const UTF16_BE: &[u8] = b"\xFE\xFF";

/// Of a hundred bytes (or UTF-16 units), as many or more that do not decode mean "not text".
const INVALID_PERCENT: usize = 1;

/// The text of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content {
    /// Without byte order mark. Bytes that do not decode became U+FFFD.
    pub text: String,
    /// BLAKE3 of the file's bytes as they are on disk.
    pub hash: blake3::Hash,
}

/// Why a file gave no text. The message continues a line that names the file.
#[derive(Debug, thiserror::Error)]
pub enum Skip {
    #[error("binary")]
    Binary,

    #[error("not UTF-8 or UTF-16 text; convert it to UTF-8 to index it")]
    NotText,

    #[error("larger than the limit of {max} bytes; raise ingest.max_file_bytes to index it")]
    TooLarge { max: u64 },

    #[error("cannot be read: {0}")]
    Unreadable(#[from] io::Error),
}

/// Reads the text file at `path`, of at most `max` bytes.
///
/// UTF-8, with or without byte order mark, and UTF-16 with one are understood. A few bytes that do
/// not decode (below 1%) are replaced; more mean that the file is no text.
pub fn read_text(path: &Path, max: u64) -> Result<Content, Skip> {
    let file = File::open(path)?;
    if file.metadata()?.len() > max {
        return Err(Skip::TooLarge { max });
    }

    // The head decides first, so that a large binary is not read to its end.
    let mut bytes = Vec::new();
    (&file).take(HEAD_BYTES).read_to_end(&mut bytes)?;
    if is_binary(&bytes) {
        return Err(Skip::Binary);
    }
    // A file may have grown since its size was asked.
    (&file).take(max.saturating_add(1).saturating_sub(bytes.len() as u64)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max {
        return Err(Skip::TooLarge { max });
    }

    let text = decode(&bytes).ok_or(Skip::NotText)?;
    Ok(Content { text, hash: blake3::hash(&bytes) })
}

fn is_binary(head: &[u8]) -> bool {
    let wide = head.starts_with(UTF16_LE) || head.starts_with(UTF16_BE);
    SIGNATURES.iter().any(|signature| head.starts_with(signature)) || (!wide && head.contains(&0))
}

/// `None` if too much of it does not decode.
fn decode(bytes: &[u8]) -> Option<String> {
    if let Some(units) = bytes.strip_prefix(UTF16_LE) {
        decode_utf16(units, u16::from_le_bytes)
    } else if let Some(units) = bytes.strip_prefix(UTF16_BE) {
        decode_utf16(units, u16::from_be_bytes)
    } else {
        decode_utf8(bytes.strip_prefix(UTF8).unwrap_or(bytes))
    }
}

fn decode_utf8(bytes: &[u8]) -> Option<String> {
    let invalid: usize = bytes.utf8_chunks().map(|chunk| chunk.invalid().len()).sum();
    few(invalid, bytes.len()).then(|| String::from_utf8_lossy(bytes).into_owned())
}

fn decode_utf16(bytes: &[u8], unit: fn([u8; 2]) -> u16) -> Option<String> {
    let (pairs, odd) = bytes.as_chunks::<2>();
    let mut invalid = odd.len();
    let text = char::decode_utf16(pairs.iter().map(|&pair| unit(pair)))
        .map(|decoded| {
            decoded.unwrap_or_else(|_| {
                invalid += 1;
                char::REPLACEMENT_CHARACTER
            })
        })
        .collect::<String>();
    // UTF-32 starts with the same mark; read as UTF-16 it is full of NUL.
    (few(invalid, pairs.len()) && !text.contains('\0')).then_some(text)
}

fn few(invalid: usize, total: usize) -> bool {
    invalid == 0 || invalid * 100 < total * INVALID_PERCENT
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bytes: &[u8]) -> Result<Content, Skip> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, bytes).unwrap();
        read_text(&path, 100_000)
    }

    fn utf16(mark: char, text: &str, bytes: fn(u16) -> [u8; 2]) -> Vec<u8> {
        format!("{mark}{text}").encode_utf16().flat_map(bytes).collect()
    }

    #[test]
    fn every_encoding_gives_the_same_text() {
        let text = "Zürich 👋\n";
        for bytes in [
            text.as_bytes().to_vec(),
            [UTF8, text.as_bytes()].concat(),
            utf16('\u{feff}', text, u16::to_le_bytes),
            utf16('\u{feff}', text, u16::to_be_bytes),
        ] {
            let content = read(&bytes).unwrap();
            assert_eq!(content.text, text);
            assert_eq!(content.hash, blake3::hash(&bytes));
        }
    }

    #[test]
    fn an_empty_file_is_an_empty_text() {
        assert_eq!(read(b"").unwrap().text, "");
    }

    #[test]
    fn binaries_are_skipped() {
        let utf32: Vec<u8> = "\u{feff}text".chars().flat_map(|c| u32::from(c).to_le_bytes()).collect();
        assert!(matches!(read(b"\x7fELF\0\0"), Err(Skip::Binary)));
        assert!(matches!(read(b"%PDF-1.4\ntext"), Err(Skip::Binary)));
        assert!(matches!(read(&utf32), Err(Skip::NotText)));
    }

    #[test]
    fn stray_bytes_are_replaced_below_one_percent() {
        let text = |valid: usize| [&b"a".repeat(valid)[..], b"\xE9"].concat();
        assert_eq!(read(&text(100)).unwrap().text.chars().last(), Some('\u{fffd}'));
        assert!(matches!(read(&text(99)), Err(Skip::NotText)));
        let lone_surrogates = utf16('\u{feff}', "a", u16::to_le_bytes).into_iter().chain([0, 0xD8]);
        assert!(matches!(read(&lone_surrogates.collect::<Vec<_>>()), Err(Skip::NotText)));
    }

    #[test]
    fn the_limit_is_inclusive() {
        assert!(read(&b"a".repeat(100_000)).is_ok());
        assert!(matches!(read(&b"a".repeat(100_001)), Err(Skip::TooLarge { max: 100_000 })));
    }

    /// Such a file states a size of 0.
    #[cfg(target_os = "linux")]
    #[test]
    fn the_limit_holds_for_files_that_hide_their_size() {
        assert!(matches!(read_text(Path::new("/proc/self/status"), 10), Err(Skip::TooLarge { max: 10 })));
    }

    #[test]
    fn a_missing_file_is_unreadable() {
        assert!(matches!(read_text(Path::new("no such file"), 10), Err(Skip::Unreadable(_))));
    }
}
