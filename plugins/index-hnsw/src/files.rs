//! The files of a saved index.
//!
//! | file | content |
//! |---|---|
//! | `index.bin` | BLAKE3 of the rest of this file; [`Header`]; each id with its row, u64 and u64 |
//! | `rows.f32` | the vectors as searched (normalised under cosine), `[rows, dim]` f32 |
//! | `links.u32` | [`Links`] |
//!
//! Numbers are in the order of bytes of the machine; on a machine of the other order the version does
//! not match. The large files are mapped and not read when an index is opened: their lengths are
//! looked at, and no number in them is believed that could lead beyond them.
use crate::{graph::io_error, ids::Ids, links::Links, options::Parameters, rows::Rows, segment::Segment};
use bytemuck::{Pod, Zeroable};
use magray_plugin_api::{CallContext, Error, ErrorCode, Host, IndexSpec, Result};
use memmap2::Mmap;
use std::{
    fs::File,
    io::{BufWriter, ErrorKind, Write},
    path::Path,
};

const INDEX: &str = "index.bin";
const ROWS: &str = "rows.f32";
const LINKS: &str = "links.u32";
const MAGIC: [u8; 8] = *b"MGRYHNSW";
const VERSION: u32 = 2;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header {
    magic: [u8; 8],
    version: u32,
    metric: u32,
    dim: u64,
    rows: u64,
    ids: u64,
}

/// Writes `segment` under `dir`.
///
/// # Errors
/// `IO`, and what `cx` asks for.
pub(crate) fn save(cx: &dyn CallContext, dir: &Path, spec: IndexSpec, segment: &Segment) -> Result<()> {
    let entries: Vec<[u64; 2]> =
        segment.with_ids(|ids| ids.entries().map(|(id, row)| [id, u64::from(row)]).collect());
    let (links, rows) = (segment.links(), segment.rows().len());
    save_rows(cx, &dir.join(ROWS), segment.rows(), rows as u32)?;
    let path = dir.join(LINKS);
    std::fs::write(&path, links.bytes()).map_err(|error| io_error(&path, &error))?;
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        metric: spec.metric as u32,
        dim: spec.dim as u64,
        rows: rows as u64,
        ids: entries.len() as u64,
    };
    let content = [bytemuck::bytes_of(&header), bytemuck::cast_slice(&entries)].concat();
    let file = [blake3::hash(&content).as_bytes().as_slice(), &content].concat();
    let path = dir.join(INDEX);
    std::fs::write(&path, file).map_err(|error| io_error(&path, &error))
}

fn save_rows(cx: &dyn CallContext, path: &Path, rows: &Rows, count: u32) -> Result<()> {
    const BETWEEN_CHECKS: u32 = 1024;
    let file = File::create(path).map_err(|error| io_error(path, &error))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    for row in 0..count {
        if row % BETWEEN_CHECKS == 0 {
            cx.check()?;
        }
        file.write_all(bytemuck::cast_slice(rows.get(row))).map_err(|error| io_error(path, &error))?;
    }
    file.flush().map_err(|error| io_error(path, &error))
}

/// Reads what [`save`] wrote.
///
/// # Errors
/// `CORRUPT_DATA` where a file is missing or not as it was written, or of another width, metric or
/// version; `IO`.
pub(crate) fn open(
    dir: &Path,
    spec: IndexSpec,
    parameters: &Parameters,
    host: &'static dyn Host,
) -> Result<Segment> {
    let path = dir.join(INDEX);
    let (header, entries) = open_index(&path, spec)?;
    // First, for they are as long as they say.
    let (rows, links) = (open_rows(&dir.join(ROWS), &header)?, open_links(&dir.join(LINKS), &header)?);
    let ids = Ids::from_entries(header.rows as usize, entries);
    let ids = ids.ok_or_else(|| corrupt(&path, "it names an id twice, or a row that is not there"))?;
    Ok(Segment::from_parts(spec, *parameters, host, rows, links, ids))
}

/// The header, and each id with its row.
fn open_index(path: &Path, spec: IndexSpec) -> Result<(Header, Vec<(u64, u32)>)> {
    let file = std::fs::read(path).map_err(|error| read_error(path, &error))?;
    let Some((digest, content)) = file.split_first_chunk::<{ blake3::OUT_LEN }>() else {
        return Err(corrupt(path, "it is too short"));
    };
    if blake3::hash(content) != *digest {
        return Err(corrupt(path, "it is not as it was written"));
    }
    let Some((header, entries)) = content.split_at_checked(size_of::<Header>()) else {
        return Err(corrupt(path, "it is too short"));
    };
    let header: Header = bytemuck::pod_read_unaligned(header);
    if (header.magic, header.version) != (MAGIC, VERSION) {
        return Err(corrupt(path, "it is of a version that this plugin cannot read"));
    }
    if (header.metric, header.dim) != (spec.metric as u32, spec.dim as u64) {
        return Err(corrupt(path, "it is of another width or metric"));
    }
    let (words, rest) = entries.as_chunks::<{ size_of::<u64>() }>();
    let (entries, odd) = words.as_chunks::<2>();
    if entries.len() as u64 != header.ids || !odd.is_empty() || !rest.is_empty() {
        return Err(corrupt(path, "its length is not that of its ids"));
    }
    let entries = entries.iter().map(|words| words.map(u64::from_ne_bytes));
    let entries = entries.map(|[id, row]| (id, u32::try_from(row).unwrap_or(u32::MAX)));
    Ok((header, entries.collect()))
}

fn open_rows(path: &Path, header: &Header) -> Result<Rows> {
    let map = map(path)?;
    let row = header.dim.checked_mul(size_of::<f32>() as u64);
    if row.and_then(|row| row.checked_mul(header.rows)) != Some(map.len() as u64) {
        return Err(corrupt(path, "its length is not that of its rows"));
    }
    Ok(Rows::with_mapped(header.dim as usize, map))
}

fn open_links(path: &Path, header: &Header) -> Result<Links> {
    let links = Links::mapped(map(path)?);
    links
        .filter(|links| links.len() as u64 == header.rows)
        .ok_or_else(|| corrupt(path, "it does not have the links of these rows"))
}

fn map(path: &Path) -> Result<Mmap> {
    let file = File::open(path).map_err(|error| read_error(path, &error))?;
    // SAFETY: the host writes a saved index once and never again, so nobody changes the file under
    // the map; `Rows` and `Links` read it as plain numbers.
    unsafe { Mmap::map(&file) }.map_err(|error| read_error(path, &error))
}

fn corrupt(path: &Path, what: &str) -> Error {
    Error::new(ErrorCode::CORRUPT_DATA, format!("{}: {what}", path.display()))
}

/// A file that is missing is damage, and building anew helps; any other failure is not.
fn read_error(path: &Path, error: &std::io::Error) -> Error {
    match error.kind() {
        ErrorKind::NotFound => corrupt(path, "it is missing"),
        _ => io_error(path, error),
    }
}
