//! The one file of a saved index, `vectors.bin`, little-endian:
//!
//! | part | content |
//! |---|---|
//! | header | 64 bytes, [`Header`] |
//! | ids | `count` u64, ascending |
//! | norms | `count` f32, the squared lengths of the vectors; under l2 only |
//! | vectors | `[count, dim]` f32 row-major; of length 1 under cosine |
//!
//! Each part begins at a multiple of 64 bytes, so that a map of the file is used as it is. Ids are
//! sorted, so that one is found without a table.

use bytemuck::{Pod, Zeroable};
use magray_plugin_api::{Error, ErrorCode, IndexSpec, Metric, Result};
use memmap2::Mmap;
use std::{
    fmt::Display,
    fs::File,
    io::{self, BufWriter, Write},
    ops::Range,
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"MGRFLAT\0";
const VERSION: u32 = 1;
const ALIGN: usize = 64;

#[cfg(target_endian = "big")]
compile_error!("vectors.bin is used as it lies in the file, which is little-endian");

#[repr(C)]
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
struct Header {
    magic: [u8; 8],
    version: u32,
    metric: u32,
    dim: u64,
    count: u64,
    reserved: [u64; 4],
}

impl Header {
    fn new(spec: IndexSpec, count: u64) -> Self {
        let (metric, dim) = (spec.metric as u32, spec.dim as u64);
        Self { magic: MAGIC, version: VERSION, metric, dim, count, reserved: [0; 4] }
    }
}

/// Where the parts lie, in bytes from the begin of the file.
#[derive(Clone, Debug)]
struct Layout {
    ids: Range<usize>,
    norms: Range<usize>,
    vectors: Range<usize>,
}

impl Layout {
    /// `None` where the file would be larger than the address space.
    fn new(spec: IndexSpec, count: usize) -> Option<Self> {
        let part = |after: usize, bytes: Option<usize>| {
            let begin = after.checked_next_multiple_of(ALIGN)?;
            Some(begin..begin.checked_add(bytes?)?)
        };
        let ids = part(size_of::<Header>(), count.checked_mul(8))?;
        let norms = part(ids.end, count.checked_mul(if spec.metric == Metric::L2 { 4 } else { 0 }))?;
        let vectors =
            part(norms.end, count.checked_mul(spec.dim).and_then(|numbers| numbers.checked_mul(4)))?;
        Some(Self { ids, norms, vectors })
    }
}

/// The file's name in the folder of the index.
fn path(dir: &Path) -> PathBuf {
    dir.join("vectors.bin")
}

/// How many bytes `count` vectors take on disk.
pub(crate) fn length(spec: IndexSpec, count: usize) -> u64 {
    Layout::new(spec, count).map_or(u64::MAX, |layout| layout.vectors.end as u64)
}

/// A saved index, mapped.
#[derive(Debug)]
pub(crate) struct Mapped {
    map: Mmap,
    layout: Layout,
}

impl Mapped {
    /// Maps the file in `dir` and looks at its header, length and ids, not at the vectors.
    ///
    /// # Errors
    /// `IO` where there is no file, `CORRUPT_DATA` where it is not the file of such an index.
    pub(crate) fn open(spec: IndexSpec, dir: &Path) -> Result<Self> {
        let path = path(dir);
        let failed = |error: io::Error| Error::new(ErrorCode::IO, format!("{}: {error}", path.display()));
        let corrupt = |what: &dyn Display| {
            Error::new(
                ErrorCode::CORRUPT_DATA,
                format!("{}: {what}; the index must be built anew", path.display()),
            )
        };
        let file = File::open(&path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        if length < size_of::<Header>() as u64 {
            return Err(corrupt(&format_args!("{length} bytes are too few for a header")));
        }
        // SAFETY: the host promises that nobody writes the files of an open index; to delete them
        // leaves the map as it is.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let header: Header = bytemuck::pod_read_unaligned(&map[..size_of::<Header>()]);
        let expected = Header::new(spec, header.count);
        if (header.magic, header.version) != (expected.magic, expected.version) {
            return Err(corrupt(&format_args!("not a file of index-flat, version {VERSION}")));
        }
        if (header.dim, header.metric) != (expected.dim, expected.metric) {
            let (dim, metric) = (header.dim, header.metric);
            return Err(corrupt(&format_args!("width {dim} and metric {metric} instead of {spec:?}")));
        }
        if header != expected {
            return Err(corrupt(&"the header is damaged"));
        }
        let layout = usize::try_from(header.count).ok().and_then(|count| Layout::new(spec, count));
        let Some(layout) = layout.filter(|layout| layout.vectors.end == map.len()) else {
            return Err(corrupt(&format_args!("{} vectors cannot be in {length} bytes", header.count)));
        };
        let mapped = Self { map, layout };
        let ids = mapped.ids();
        if !ids.is_sorted_by(|a, b| a < b) || ids.last() == Some(&u64::MAX) {
            return Err(corrupt(&"the ids are damaged"));
        }
        Ok(mapped)
    }

    fn part<T: Pod>(&self, range: &Range<usize>) -> &[T] {
        bytemuck::cast_slice(&self.map[range.clone()])
    }

    /// Ascending.
    pub(crate) fn ids(&self) -> &[u64] {
        self.part(&self.layout.ids)
    }

    /// Squared lengths; empty but under l2.
    pub(crate) fn norms(&self) -> &[f32] {
        self.part(&self.layout.norms)
    }

    /// `[n, dim]` row-major.
    pub(crate) fn vectors(&self) -> &[f32] {
        self.part(&self.layout.vectors)
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.map.len() as u64
    }
}

/// Writes the file of an index part by part.
pub(crate) struct Writer {
    path: PathBuf,
    file: BufWriter<File>,
    written: usize,
}

impl Writer {
    /// Writes the header of an index of `count` vectors. Then [`Writer::part`] begins each part of
    /// the file in its order, and [`Writer::write`] writes what is in it.
    pub(crate) fn create(spec: IndexSpec, count: usize, dir: &Path) -> Result<Self> {
        let path = path(dir);
        let file = File::create(&path)
            .map_err(|error| Error::new(ErrorCode::IO, format!("{}: {error}", path.display())))?;
        let mut writer = Self { path, file: BufWriter::with_capacity(1 << 20, file), written: 0 };
        writer.write(&[Header::new(spec, count as u64)])?;
        Ok(writer)
    }

    /// Fills up to where the next part begins.
    pub(crate) fn part(&mut self) -> Result<()> {
        let gap = self.written.next_multiple_of(ALIGN) - self.written;
        self.write(&[0u8; ALIGN][..gap])
    }

    pub(crate) fn write<T: Pod>(&mut self, values: &[T]) -> Result<()> {
        let bytes: &[u8] = bytemuck::cast_slice(values);
        self.written += bytes.len();
        self.file.write_all(bytes).map_err(|error| self.failed(&error))
    }

    pub(crate) fn finish(mut self) -> Result<()> {
        self.file.flush().map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &io::Error) -> Error {
        Error::new(ErrorCode::IO, format!("{}: {error}", self.path.display()))
    }
}
