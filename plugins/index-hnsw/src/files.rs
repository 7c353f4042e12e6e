//! The files of a saved index.
//!
//! | file | content |
//! |---|---|
//! | `index.bin` | BLAKE3 of the rest of this file; [`Header`]; each id with its row, u64 and u64 |
//! | `rows.f32` | the vectors as searched (normalised under cosine), `[rows, dim]` f32 |
//! | `graph.hnsw.graph`, `graph.hnsw.data` | the dump of `hnsw_rs`, whose "vectors" are row numbers; missing where there are no rows |
//!
//! Numbers are in the order of bytes of the machine, for `hnsw_rs` writes so; on a machine of the
//! other order the version does not match.
//!
//! Why the dump and no format of our own: `hnsw_rs` lets its links be read, but offers no way to
//! put them back other than its loader. That loader trusts its files: it ends the process, panics,
//! or reads beyond a buffer where they are damaged. So it sees a file only after the BLAKE3 of its
//! every byte has been found to be the one in `index.bin`. Its memory-mapped mode is not used: it
//! reads the whole file all the same, and `rows.f32` is mapped instead.
use crate::{
    distance::RowDistance,
    graph::{self, Graph, io_error},
    ids::Ids,
    options::Parameters,
    rows::Rows,
    segment::Segment,
};
use bytemuck::{Pod, Zeroable};
use magray_plugin_api::{CallContext, Error, ErrorCode, Host, IndexSpec, Result};
use memmap2::Mmap;
use std::{
    fs::File,
    io::{BufWriter, ErrorKind, Write},
    path::Path,
    sync::Arc,
};

const INDEX: &str = "index.bin";
const ROWS: &str = "rows.f32";
const MAGIC: [u8; 8] = *b"MGRYHNSW";
const VERSION: u32 = 1;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header {
    magic: [u8; 8],
    version: u32,
    metric: u32,
    dim: u64,
    rows: u64,
    ids: u64,
    /// BLAKE3 of `rows.f32`.
    rows_digest: [u8; blake3::OUT_LEN],
    /// BLAKE3 of [`graph::FILES`]; zeros where there are no rows.
    graph_digests: [[u8; blake3::OUT_LEN]; 2],
}

/// Writes `segment` under `dir`.
///
/// # Errors
/// `IO`, and what `cx` asks for.
pub(crate) fn save(cx: &dyn CallContext, dir: &Path, spec: IndexSpec, segment: &Segment) -> Result<()> {
    let entries: Vec<[u64; 2]> =
        segment.with_ids(|ids| ids.entries().map(|(id, row)| [id, u64::from(row)]).collect());
    let rows = segment.rows().len();
    let rows_digest = save_rows(cx, &dir.join(ROWS), segment.rows(), rows as u32)?;
    let mut graph_digests = [[0; blake3::OUT_LEN]; 2];
    if rows > 0 {
        segment.graph().dump(dir)?;
        for (digest, name) in graph_digests.iter_mut().zip(graph::FILES) {
            let path = dir.join(name);
            *digest = digest_of(&path).map_err(|error| io_error(&path, &error))?;
        }
    }
    let header = Header {
        magic: MAGIC,
        version: VERSION,
        metric: spec.metric as u32,
        dim: spec.dim as u64,
        rows: rows as u64,
        ids: entries.len() as u64,
        rows_digest,
        graph_digests,
    };
    let content = [bytemuck::bytes_of(&header), bytemuck::cast_slice(&entries)].concat();
    let file = [blake3::hash(&content).as_bytes().as_slice(), &content].concat();
    let path = dir.join(INDEX);
    std::fs::write(&path, file).map_err(|error| io_error(&path, &error))
}

fn save_rows(cx: &dyn CallContext, path: &Path, rows: &Rows, count: u32) -> Result<[u8; blake3::OUT_LEN]> {
    const BETWEEN_CHECKS: u32 = 1024;
    let mut hasher = blake3::Hasher::new();
    let file = File::create(path).map_err(|error| io_error(path, &error))?;
    let mut file = BufWriter::with_capacity(1 << 20, file);
    for row in 0..count {
        if row % BETWEEN_CHECKS == 0 {
            cx.check()?;
        }
        let bytes: &[u8] = bytemuck::cast_slice(rows.get(row));
        hasher.update(bytes);
        file.write_all(bytes).map_err(|error| io_error(path, &error))?;
    }
    file.flush().map_err(|error| io_error(path, &error))?;
    Ok(hasher.finalize().into())
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
    let (header, ids) = open_index(&dir.join(INDEX), spec)?;
    if header.rows == 0 {
        return Ok(Segment::new(spec, parameters, host));
    }
    let rows = open_rows(&dir.join(ROWS), &header)?;
    for (name, digest) in graph::FILES.into_iter().zip(header.graph_digests) {
        let path = dir.join(name);
        if digest_of(&path).map_err(|error| read_error(&path, &error))? != digest {
            return Err(corrupt(&path, "it is not as it was written"));
        }
    }
    let rows = Arc::new(rows);
    let distance = RowDistance::new(Arc::clone(&rows), spec.metric);
    let graph = Graph::load(dir, distance.clone(), host)?;
    if graph.len() != rows.len() {
        let [path, _] = graph::FILES;
        return Err(corrupt(&dir.join(path), &format!("{} points for {} rows", graph.len(), rows.len())));
    }
    Ok(Segment::from_parts(spec, rows, distance, graph, ids))
}

fn open_index(path: &Path, spec: IndexSpec) -> Result<(Header, Ids)> {
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
    match Ids::from_entries(header.rows as usize, entries) {
        Some(ids) => Ok((header, ids)),
        None => Err(corrupt(path, "it names an id twice, or a row that is not there")),
    }
}

fn open_rows(path: &Path, header: &Header) -> Result<Rows> {
    let file = File::open(path).map_err(|error| read_error(path, &error))?;
    let length = file.metadata().map_err(|error| read_error(path, &error))?.len();
    let row = header.dim.checked_mul(size_of::<f32>() as u64);
    if row.and_then(|row| row.checked_mul(header.rows)) != Some(length) {
        return Err(corrupt(path, "its length is not that of its rows"));
    }
    // SAFETY: the host writes a saved index once and never again, so nobody changes the file under
    // the map; `Rows` reads it as plain numbers.
    let map = unsafe { Mmap::map(&file) }.map_err(|error| read_error(path, &error))?;
    if *blake3::hash(&map).as_bytes() != header.rows_digest {
        return Err(corrupt(path, "it is not as it was written"));
    }
    Ok(Rows::with_mapped(header.dim as usize, map))
}

fn digest_of(path: &Path) -> std::io::Result<[u8; blake3::OUT_LEN]> {
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(File::open(path)?)?;
    Ok(hasher.finalize().into())
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
