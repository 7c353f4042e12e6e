//! The files of a saved index: `graph.usearch` as usearch writes it, and `vectors.bin` with the BLAKE3 of
//! the rest of itself, [`Header`], the ids and the originals, `[ids, dim]` f32 row-major.
use crate::index::{State, failed};
use bytemuck::{Pod, Zeroable};
use magray_plugin_api::{Error, ErrorCode, IndexSpec, Result};
use std::{collections::HashMap, fs, io, path::Path};
use usearch::Index;

const GRAPH: &str = "graph.usearch";
const VECTORS: &str = "vectors.bin";
const MAGIC: [u8; 8] = *b"MGRYUSR1";

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Header {
    magic: [u8; 8],
    metric: u64,
    dim: u64,
    count: u64,
    /// BLAKE3 of the graph, for usearch trusts it.
    graph_digest: [u8; blake3::OUT_LEN],
}

pub(crate) fn save(dir: &Path, spec: IndexSpec, state: &State) -> Result<()> {
    let graph = dir.join(GRAPH);
    state.index.save(name(&graph)?).map_err(|error| Error::new(ErrorCode::IO, error.to_string()))?;
    let header = Header {
        magic: MAGIC,
        metric: spec.metric as u64,
        dim: spec.dim as u64,
        count: state.vectors.len() as u64,
        graph_digest: digest(&graph)?,
    };
    let (ids, vectors): (Vec<u64>, Vec<&[f32]>) =
        state.vectors.iter().map(|(&id, vector)| (id, &**vector)).unzip();
    let content =
        [bytemuck::bytes_of(&header), bytemuck::cast_slice(&ids), bytemuck::cast_slice(&vectors.concat())]
            .concat();
    let path = dir.join(VECTORS);
    let file = [blake3::hash(&content).as_bytes().as_slice(), &content].concat();
    fs::write(&path, file).map_err(|error| io_error(&path, &error))
}

/// Loads the graph into `index`, and gives the originals back.
pub(crate) fn open(dir: &Path, spec: IndexSpec, index: &Index) -> Result<HashMap<u64, Box<[f32]>>> {
    let path = dir.join(VECTORS);
    let file = fs::read(&path).map_err(|error| io_error(&path, &error))?;
    let damaged = || corrupt(&path, "it is not as it was written");
    let (digest_of_rest, content) = file.split_first_chunk::<{ blake3::OUT_LEN }>().ok_or_else(damaged)?;
    if blake3::hash(content) != *digest_of_rest {
        return Err(damaged());
    }
    let (header, content) = content.split_at_checked(size_of::<Header>()).ok_or_else(damaged)?;
    let header: Header = bytemuck::pod_read_unaligned(header);
    if (header.magic, header.metric, header.dim) != (MAGIC, spec.metric as u64, spec.dim as u64) {
        return Err(corrupt(&path, "it is of another version, width or metric"));
    }
    let count = usize::try_from(header.count).ok();
    let ids = count.and_then(|count| count.checked_mul(size_of::<u64>()));
    let (ids, vectors) = ids.and_then(|length| content.split_at_checked(length)).ok_or_else(damaged)?;
    let row = spec.dim * size_of::<f32>();
    if Some(vectors.len()) != count.and_then(|count| count.checked_mul(row)) {
        return Err(damaged());
    }
    let graph = dir.join(GRAPH);
    if digest(&graph)? != header.graph_digest {
        return Err(corrupt(&graph, "it is not as it was written"));
    }
    index.load(name(&graph)?).map_err(|error| corrupt(&graph, &error.to_string()))?;
    if index.size() as u64 != header.count || index.dimensions() != spec.dim {
        return Err(corrupt(&graph, "it does not hold these vectors"));
    }
    let ids = ids.as_chunks::<8>().0.iter().map(|bytes| u64::from_ne_bytes(*bytes));
    let vectors =
        vectors.chunks_exact(row).map(|row| bytemuck::allocation::pod_collect_to_vec::<u8, f32>(row));
    Ok(ids.zip(vectors.map(Vec::into_boxed_slice)).collect())
}

/// usearch takes paths as text. (An index that is empty writes a file, too.)
fn name(path: &Path) -> Result<&str> {
    path.to_str().ok_or_else(|| {
        failed(format_args!("the path {} is not UTF-8, and usearch takes no other", path.display()))
    })
}

fn digest(path: &Path) -> Result<[u8; blake3::OUT_LEN]> {
    let file = fs::File::open(path).map_err(|error| io_error(path, &error))?;
    let mut hasher = blake3::Hasher::new();
    hasher.update_reader(file).map_err(|error| io_error(path, &error))?;
    Ok(hasher.finalize().into())
}

fn corrupt(path: &Path, what: &str) -> Error {
    Error::new(ErrorCode::CORRUPT_DATA, format!("{}: {what}", path.display()))
}

/// A file that is missing is damage, and building anew helps; any other failure is not.
fn io_error(path: &Path, error: &io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => corrupt(path, "it is missing"),
        _ => Error::new(ErrorCode::IO, format!("{}: {error}", path.display())),
    }
}
