//! The one file of a saved index, `index.bin`, little-endian; in memory a sealed index lies the same way.
//!
//! | part | content |
//! |---|---|
//! | header | 128 bytes, [`Head`] |
//! | ids | `places` u64; `u64::MAX` where a place has no row |
//! | order | `rows` u32: the places by ascending id; only with lists, else the ids ascend |
//! | scales | `places` f32: what makes a row's length 1; only under cosine |
//! | center | `dim` f32: the mean of the rows |
//! | centroids | `[lists, dim]` f32 row-major |
//! | near half, near codes | half of the squared lengths of the centroids, 0 for the dot product, and their codes of eight bits side by side ([`int8::interleave`]), filled up to [`int8::COLUMNS`] |
//! | starts | `lists + 1` u32: the first block of each list; only with lists |
//! | reach | `lists` f32: how far the lists are that a search of so many scans, see [`Sealed`](crate::sealed::Sealed) |
//! | slots | `slots` u32: the place of the row at each slot of the blocks, `u32::MAX` where there is none; only with lists |
//! | factors | one [`Factors`] a block, of slots or without lists of places; not with the layout `graph` |
//! | bits | `[blocks, words]` of [`Word`] row-major; as `factors` |
//! | half | `places` i32, see [`int8::Codes`], or f32, see [`int4::Codes`](crate::int4::Codes) |
//! | codes | `[places, stride]` u8 row-major, see [`Codes`](crate::codes::Codes) |
//! | originals | `[places, dim]` row-major, f16 where that loses nothing, else f32 |
//! | graph | `graph_bytes` of u32, see [`graph`](crate::graph); only with the layout `graph` |
//!
//! Places come in blocks of [`ROWS`]. Each part begins at a multiple of 64 bytes, so that a map of the
//! file is used as it is; where it begins and ends follows from the header. What is in `ids`, `order`, `starts`,
//! `slots` and `graph` is checked where it is used.

use crate::{
    int4, int8,
    rabitq::{self, Factors, ROWS, Word},
};
use bytemuck::{Pod, Zeroable};
use magray_plugin_api::{Error, ErrorCode, IndexSpec, Metric, Result};
use memmap2::{Mmap, MmapMut};
use std::{
    fmt::Display,
    fs::{self, File},
    io,
    ops::Range,
    path::{Path, PathBuf},
};

const MAGIC: [u8; 8] = *b"MGRNATV\0";
const VERSION: u32 = 4;
const ALIGN: usize = 64;

/// A place has a number of 32 bits.
pub(crate) const MAX_PLACES: usize = u32::MAX as usize - ROWS;

#[cfg(target_endian = "big")]
compile_error!("index.bin is used as it lies in the file, which is little-endian");

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct Head {
    magic: [u8; 8],
    version: u32,
    metric: u32,
    dim: u64,
    shape: RawShape,
    reserved: [u64; 3],
    /// Of all bytes before it.
    check: u64,
}

#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Pod, Zeroable)]
struct RawShape {
    rows: u64,
    places: u64,
    lists: u64,
    slots: u64,
    graph_bytes: u64,
    seed: u64,
    wide: u32,
    /// Of the int8 codes, as bits.
    scale: u32,
    probes: u64,
    bits: u32,
    /// Of the codes of four bits, as bits; 0 where the codes are of eight.
    step: u32,
}

/// What the header says beside width and metric.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Shape {
    /// Rows, each at a place of its own.
    pub(crate) rows: usize,
    /// A multiple of [`ROWS`].
    pub(crate) places: usize,
    /// 0 where the codes are not in lists.
    pub(crate) lists: usize,
    /// Where rows are in lists: a multiple of [`ROWS`], and 0 without lists.
    pub(crate) slots: usize,
    /// How many lists a search scans where nothing says so; 0 without lists.
    pub(crate) probes: usize,
    pub(crate) graph_bytes: usize,
    /// Bits a dimension of the codes of all rows, or of those in some lists, that a search scans; 0 where a graph is
    /// walked.
    pub(crate) bits: usize,
    /// Of the rotation.
    pub(crate) seed: u64,
    /// Whether the originals are f32.
    pub(crate) wide: bool,
    /// Of the int8 codes.
    pub(crate) scale: f32,
    /// Of the codes of four bits, where those of the rows are such.
    pub(crate) step: Option<f32>,
}

impl Shape {
    /// Of the code of a row.
    pub(crate) fn row_bytes(&self, dim: usize) -> usize {
        if self.step.is_some() { int4::stride(dim) } else { int8::stride(dim) }
    }

    /// Of the rotation. A graph has none, but numbers of such a width are no trouble.
    pub(crate) fn width(&self, dim: usize) -> usize {
        rabitq::width(dim, self.bits.max(1))
    }

    /// Blocks of codes that are scanned.
    pub(crate) fn blocks(&self) -> usize {
        (if self.lists > 0 { self.slots } else { self.places }) / ROWS
    }

    fn raw(&self) -> RawShape {
        RawShape {
            rows: self.rows as u64,
            places: self.places as u64,
            lists: self.lists as u64,
            slots: self.slots as u64,
            graph_bytes: self.graph_bytes as u64,
            seed: self.seed,
            wide: u32::from(self.wide),
            scale: self.scale.to_bits(),
            probes: self.probes as u64,
            bits: self.bits as u32,
            step: self.step.unwrap_or(0.0).to_bits(),
        }
    }

    fn of(raw: &RawShape) -> Option<Self> {
        let shape = Self {
            rows: raw.rows.try_into().ok()?,
            places: raw.places.try_into().ok()?,
            lists: raw.lists.try_into().ok()?,
            slots: raw.slots.try_into().ok()?,
            probes: raw.probes.try_into().ok()?,
            graph_bytes: raw.graph_bytes.try_into().ok()?,
            bits: raw.bits as usize,
            seed: raw.seed,
            wide: raw.wide == 1,
            scale: f32::from_bits(raw.scale),
            step: (raw.step != 0).then(|| f32::from_bits(raw.step)),
        };
        let possible = shape.rows <= shape.places
            && shape.places <= MAX_PLACES
            && shape.places.is_multiple_of(ROWS)
            && shape.lists <= shape.rows
            && shape.slots <= MAX_PLACES
            && shape.slots.is_multiple_of(ROWS)
            && (shape.slots > 0) == (shape.lists > 0)
            && shape.probes <= shape.lists
            && shape.step.is_none_or(|step| step.is_finite() && step > 0.0)
            && [0, 1, 2, 4].contains(&shape.bits)
            && (shape.graph_bytes > 0) == (shape.bits == 0);
        (possible && shape.raw() == *raw).then_some(shape)
    }
}

/// FNV-1a: it is to find a flipped bit and not an enemy.
fn check(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

impl Head {
    fn new(spec: IndexSpec, shape: &Shape) -> Self {
        let mut head = Self {
            magic: MAGIC,
            version: VERSION,
            metric: spec.metric as u32,
            dim: spec.dim as u64,
            shape: shape.raw(),
            reserved: [0; 3],
            check: 0,
        };
        head.check = head.own_check();
        head
    }

    fn own_check(&self) -> u64 {
        let bytes = bytemuck::bytes_of(self);
        check(&bytes[..bytes.len() - size_of::<u64>()])
    }
}

/// The parts, in the order of the file.
#[derive(Clone, Copy, Debug)]
#[repr(usize)]
pub(crate) enum Part {
    Ids,
    Order,
    Scales,
    Center,
    Centroids,
    NearHalf,
    NearCodes,
    Starts,
    Reach,
    Slots,
    Factors,
    Bits,
    Half,
    Codes,
    Originals,
    Graph,
}

impl Part {
    pub(crate) const ALL: [Self; 16] = [
        Self::Ids,
        Self::Order,
        Self::Scales,
        Self::Center,
        Self::Centroids,
        Self::NearHalf,
        Self::NearCodes,
        Self::Starts,
        Self::Reach,
        Self::Slots,
        Self::Factors,
        Self::Bits,
        Self::Half,
        Self::Codes,
        Self::Originals,
        Self::Graph,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Ids => "ids",
            Self::Order => "order",
            Self::Scales => "scales",
            Self::Center => "center",
            Self::Centroids => "centroids",
            Self::NearHalf => "near half",
            Self::NearCodes => "near codes",
            Self::Starts => "starts",
            Self::Reach => "reach",
            Self::Slots => "slots",
            Self::Factors => "factors",
            Self::Bits => "bits",
            Self::Half => "half",
            Self::Codes => "codes",
            Self::Originals => "originals",
            Self::Graph => "graph",
        }
    }

    /// Its length in bytes; `None` where no file can hold it.
    fn bytes(self, spec: IndexSpec, shape: &Shape) -> Option<usize> {
        let Shape { rows, places, lists, .. } = *shape;
        let with_lists = lists > 0;
        let bit_blocks = if shape.bits > 0 { shape.blocks() } else { 0 };
        let (count, size) = match self {
            Self::Ids => (places, 8),
            Self::Order => (if with_lists { rows } else { 0 }, 4),
            Self::Scales => (if spec.metric == Metric::Cosine { places } else { 0 }, 4),
            Self::Center => (spec.dim, 4),
            Self::Centroids => (lists.checked_mul(spec.dim)?, 4),
            Self::Starts => (if with_lists { lists + 1 } else { 0 }, 4),
            Self::Reach => (lists, 4),
            Self::Slots => (shape.slots, 4),
            Self::NearHalf => (lists.next_multiple_of(int8::COLUMNS), 4),
            Self::NearCodes => (lists.next_multiple_of(int8::COLUMNS) / ROWS, int8::block_bytes(spec.dim)),
            Self::Factors => (bit_blocks, size_of::<Factors>()),
            Self::Bits => (bit_blocks.checked_mul(rabitq::words(spec.dim, shape.bits))?, size_of::<Word>()),
            Self::Half => (places, 4),
            Self::Codes => (places, shape.row_bytes(spec.dim)),
            Self::Originals => (places.checked_mul(spec.dim)?, if shape.wide { 4 } else { 2 }),
            Self::Graph => (shape.graph_bytes, 1),
        };
        count.checked_mul(size)
    }
}

/// Where each part lies, in bytes from the begin of the file.
type Layout = [Range<usize>; Part::ALL.len()];

/// `None` where the file would be larger than the address space.
fn layout(spec: IndexSpec, shape: &Shape) -> Option<Layout> {
    let mut end = size_of::<Head>();
    let mut layout: Layout = std::array::from_fn(|_| 0..0);
    for part in Part::ALL {
        let begin = end.checked_next_multiple_of(ALIGN)?;
        end = begin.checked_add(part.bytes(spec, shape)?)?;
        layout[part as usize] = begin..end;
    }
    (end <= isize::MAX as usize).then_some(layout)
}

fn path(dir: &Path) -> PathBuf {
    dir.join("index.bin")
}

/// Its bytes.
#[derive(Debug)]
enum Bytes {
    Mapped(Mmap),
    Owned(MmapMut),
}

/// A sealed index as bytes.
#[derive(Debug)]
pub(crate) struct Container {
    shape: Shape,
    layout: Layout,
    bytes: Bytes,
    /// Parts once more, in large pages, and where they lie: see [`Container::heat`].
    hot: Vec<(Range<usize>, MmapMut)>,
}

impl Container {
    /// Memory for an index of this shape, all zero.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY` where there is not so much.
    pub(crate) fn new(spec: IndexSpec, shape: Shape) -> Result<Self> {
        let layout = layout(spec, &shape).ok_or_else(|| too_large(&"the index is larger than memory"))?;
        let mut bytes = anonymous(layout[Part::Graph as usize].end)?;
        bytes[..size_of::<Head>()].copy_from_slice(bytemuck::bytes_of(&Head::new(spec, &shape)));
        Ok(Self { shape, layout, bytes: Bytes::Owned(bytes), hot: Vec::new() })
    }

    /// Maps the file in `dir` and looks at its header and length.
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
        if length < size_of::<Head>() as u64 {
            return Err(corrupt(&format_args!("{length} bytes are too few for a header")));
        }
        // SAFETY: the host promises that nobody writes the files of an open index; to delete them
        // leaves the map as it is.
        let map = unsafe { Mmap::map(&file) }.map_err(failed)?;
        let head: Head = bytemuck::pod_read_unaligned(&map[..size_of::<Head>()]);
        if (head.magic, head.version) != (MAGIC, VERSION) {
            return Err(corrupt(&format_args!("not a file of index-native, version {VERSION}")));
        }
        if head.check != head.own_check() {
            return Err(corrupt(&"the header is damaged"));
        }
        if (head.dim, head.metric) != (spec.dim as u64, spec.metric as u32) {
            let (dim, metric) = (head.dim, head.metric);
            return Err(corrupt(&format_args!("width {dim} and metric {metric} instead of {spec:?}")));
        }
        let shape = Shape::of(&head.shape).ok_or_else(|| corrupt(&"the header is damaged"))?;
        let layout = layout(spec, &shape).filter(|layout| layout[Part::Graph as usize].end == map.len());
        let Some(layout) = layout else {
            return Err(corrupt(&format_args!("{} vectors cannot be in {length} bytes", shape.rows)));
        };
        // A search reads a few rows of these here and there. What is read ahead of each would drive out what
        // every search needs where memory is short; without the advice it is as right.
        let originals = &layout[Part::Originals as usize];
        let _ = map.advise_range(memmap2::Advice::Random, originals.start, originals.len());
        Ok(Self { shape, layout, bytes: Bytes::Mapped(map), hot: Vec::new() })
    }

    pub(crate) fn save(&self, dir: &Path) -> Result<()> {
        let path = path(dir);
        fs::write(&path, self.bytes())
            .map_err(|error| Error::new(ErrorCode::IO, format!("{}: {error}", path.display())))
    }

    /// Says how many lists a search scans, and how far they are; of a file that was mapped nothing is changed.
    pub(crate) fn set_probes(&mut self, spec: IndexSpec, probes: usize, reach: &[f32]) {
        if let Bytes::Owned(bytes) = &mut self.bytes {
            self.shape.probes = probes;
            let head = Head::new(spec, &self.shape);
            bytes[..size_of::<Head>()].copy_from_slice(bytemuck::bytes_of(&head));
            bytes[self.layout[Part::Reach as usize].clone()].copy_from_slice(bytemuck::cast_slice(reach));
        }
    }

    pub(crate) fn shape(&self) -> &Shape {
        &self.shape
    }

    fn bytes(&self) -> &[u8] {
        match &self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Owned(map) => map,
        }
    }

    /// A part as numbers of its type.
    ///
    /// # Panics
    /// Where the type is not the part's.
    pub(crate) fn part<T: Pod>(&self, part: Part) -> &[T] {
        let range = self.layout[part as usize].clone();
        for (hot, bytes) in &self.hot {
            if hot.start <= range.start && range.end <= hot.end {
                return bytemuck::cast_slice(&bytes[range.start - hot.start..range.end - hot.start]);
            }
        }
        bytemuck::cast_slice(&self.bytes()[range])
    }

    pub(crate) fn part_bytes(&self, part: Part) -> usize {
        self.layout[part as usize].len()
    }

    /// All parts to write to; `None` for a mapped file.
    pub(crate) fn parts_mut(&mut self) -> Option<[&mut [u8]; Part::ALL.len()]> {
        let Bytes::Owned(bytes) = &mut self.bytes else { return None };
        let mut rest: &mut [u8] = bytes;
        let mut at = 0;
        Some(std::array::from_fn(|part| {
            let range = &self.layout[part];
            let (_, behind) = std::mem::take(&mut rest).split_at_mut(range.start - at);
            let (bytes, behind) = behind.split_at_mut(range.len());
            (rest, at) = (behind, range.end);
            bytes
        }))
    }

    /// Copies what every search reads whole from a mapped file into large pages; of the small pages
    /// that a file comes in there are more than the processor can keep track of.
    ///
    /// # Errors
    /// `OUT_OF_MEMORY` where there is no memory.
    pub(crate) fn heat(&mut self) -> Result<()> {
        if !self.hot.is_empty() || !matches!(self.bytes, Bytes::Mapped(_)) {
            return Ok(());
        }
        let span =
            |first: Part, last: Part| self.layout[first as usize].start..self.layout[last as usize].end;
        let spans = match self.shape.bits {
            0 => vec![span(Part::Half, Part::Codes), span(Part::Graph, Part::Graph)],
            _ => vec![span(Part::NearHalf, Part::Bits)],
        };
        for span in spans.into_iter().filter(|span| !span.is_empty()) {
            let mut hot = anonymous(span.len())?;
            hot.copy_from_slice(&self.bytes()[span.clone()]);
            self.hot.push((span, hot));
        }
        Ok(())
    }

    /// Bytes in memory and bytes of a mapped file.
    pub(crate) fn memory(&self) -> (usize, usize) {
        let hot = self.hot.iter().map(|(span, _)| span.len()).sum();
        match &self.bytes {
            Bytes::Mapped(map) => (hot, map.len()),
            Bytes::Owned(map) => (map.len(), 0),
        }
    }

    pub(crate) fn length(&self) -> usize {
        self.bytes().len()
    }
}

/// Memory in large pages where the system has them.
pub(crate) fn anonymous(length: usize) -> Result<MmapMut> {
    let map = MmapMut::map_anon(length).map_err(|error| too_large(&error))?;
    #[cfg(target_os = "linux")]
    // Where they are switched off, small ones do as well.
    let _ = map.advise(memmap2::Advice::HugePage);
    Ok(map)
}

/// Asks for large pages for what a vector will hold. With pages of 4 KiB the graph of a million vectors takes a fifteenth
/// longer.
pub(crate) fn in_large_pages<T>(numbers: &mut Vec<T>) {
    #[cfg(target_os = "linux")]
    {
        const PAGE: usize = 4096;
        if numbers.capacity() * size_of::<T>() < (4 << 20) {
            return;
        }
        let begin = numbers.as_mut_ptr() as usize / PAGE * PAGE;
        let end = (numbers.as_ptr() as usize + numbers.capacity() * size_of::<T>()).next_multiple_of(PAGE);
        // All of the pages: a mapping of which a part is advised is two, and `realloc` cannot move two.
        let memory = numbers.as_mut_ptr().cast::<libc::c_void>().with_addr(begin);
        // SAFETY: each of the pages holds a part of the vector, and the advice changes nothing that is stored there.
        // Where large pages are switched off, or pages have another size, it is refused.
        unsafe { libc::madvise(memory, end - begin, libc::MADV_HUGEPAGE) };
    }
    #[cfg(not(target_os = "linux"))]
    let _ = numbers;
}

fn too_large(error: &dyn Display) -> Error {
    Error::new(ErrorCode::OUT_OF_MEMORY, format!("no memory for the index: {error}"))
}
