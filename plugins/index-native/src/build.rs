//! Sealing: making codes of rows and laying them out.

use crate::{
    container::{Container, MAX_PLACES, Part, Shape, anonymous},
    graph, int4,
    int8::{self, Quantizer},
    ivf::{self, Lists},
    options::{Layout, Options},
    parallel,
    rabitq::{self, Factors, Kernel, ROWS, Word},
    rotation::{LANES, Rotation},
    sealed::Sealed,
    staged::Staged,
};
use half::{f16, slice::HalfFloatSliceExt};
use magray_plugin_api::{CallContext, Error, ErrorCode, IndexSpec, Metric, Result};
use std::sync::atomic::{AtomicUsize, Ordering};

/// Up to so many rows, the layout `auto` scans all codes.
const AUTO_FLAT: usize = 300_000;
/// From there on it walks a graph, but for vectors narrower than this. Measured: of 400,000 x 50 (glove) a graph does .41
/// times as many queries as lists at a recall of .95 and fewer from there on, for three times the work of building it. Of
/// wide ones, sets differ: of fashion-mnist's 60,000 x 784 it does 1.1 to 1.4 times as many, of 1,000,000 x 768 in clusters
/// 1.2 and of MiniLM's 100,000 x 384 .55 to .75; but of ten times as many vectors lists must scan three times as many.
const AUTO_GRAPH_DIM: usize = 128;

/// Vectors narrower than this are scanned by codes of two bits a dimension, for one says little.
pub(crate) const NARROW: usize = 128;

/// Rows that are searched for to see how many lists a search must scan.
const PROBE_SAMPLE: usize = 128;

/// Blocks that a thread encodes between two looks at the context: some milliseconds.
const PART: usize = 64;

/// The rows to seal: those of an earlier seal that are left, and those that were staged since.
pub(crate) struct Source<'a> {
    spec: IndexSpec,
    sealed: Option<&'a Sealed>,
    staged: &'a Staged,
    /// By ascending id: the id, and the place of the row among the sealed ones or, behind these, its
    /// number among the staged ones.
    rows: Vec<(u64, usize)>,
}

impl<'a> Source<'a> {
    /// `dead` tells which sealed places are gone.
    pub(crate) fn new(
        spec: IndexSpec,
        sealed: Option<&'a Sealed>,
        dead: impl Fn(usize) -> bool,
        staged: &'a Staged,
    ) -> Self {
        let places = sealed.map_or(0, Sealed::places);
        let ids = sealed.map_or(&[][..], Sealed::ids);
        let old = ids.iter().enumerate().filter(|&(place, &id)| id != u64::MAX && !dead(place));
        let new = (0..staged.len()).map(|row| (staged.id(row), places + row));
        let mut rows: Vec<(u64, usize)> = old.map(|(place, &id)| (id, place)).chain(new).collect();
        rows.sort_unstable();
        // Of a damaged file only.
        rows.dedup_by_key(|row| row.0);
        Self { spec, sealed, staged, rows }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows.len()
    }

    /// Reads the vector of row `at` as it is stored, and its scale.
    fn read(&self, at: usize, out: &mut [f32]) -> f32 {
        let place = self.rows[at].1;
        match self.sealed {
            Some(sealed) if place < sealed.places() => sealed.read(place, out),
            sealed => {
                let (row, scale) = self.staged.row(place - sealed.map_or(0, Sealed::places));
                out.copy_from_slice(row);
                scale
            }
        }
    }

    /// Reads the vector of row `at` as it is encoded: of length 1 under cosine.
    pub(crate) fn read_scaled(&self, at: usize, out: &mut [f32]) {
        let scale = self.read(at, out);
        if scale != 1.0 {
            out.iter_mut().for_each(|v| *v *= scale);
        }
    }

    /// Whether some number is none that f16 can hold.
    fn is_wide(&self) -> bool {
        let mut halves = vec![f16::ZERO; 4096];
        let mut back = vec![0.0; 4096];
        self.sealed.is_some_and(Sealed::is_wide)
            || self.staged.vectors().chunks(4096).any(|numbers| {
                let (halves, back) = (&mut halves[..numbers.len()], &mut back[..numbers.len()]);
                halves.convert_from_f32_slice(numbers);
                halves.convert_to_f32_slice(back);
                back != numbers
            })
    }

    /// Rows at even distances, as they are encoded, `[n, dim]` row-major with at most `limit` rows.
    pub(crate) fn sample(&self, limit: usize) -> Vec<f32> {
        let count = self.len().min(limit);
        let mut sample = vec![0.0; count * self.spec.dim];
        for (i, row) in sample.chunks_exact_mut(self.spec.dim).enumerate() {
            self.read_scaled(i * self.len() / count, row);
        }
        sample
    }
}

/// A part of the places of a new index, with what is to be written for them.
struct Slice<'a> {
    /// The number of the first block.
    block: usize,
    ids: &'a mut [u64],
    scales: &'a mut [f32],
    /// As bytes, for they are of either type.
    half: &'a mut [u8],
    codes: &'a mut [u8],
    originals: &'a mut [u8],
    /// Without lists, of the same blocks.
    scanned: Scanned<'a>,
}

/// What is scanned of some blocks.
#[derive(Default)]
struct Scanned<'a> {
    /// The number of the first.
    block: usize,
    factors: &'a mut [Factors],
    bits: &'a mut [Word],
}

/// Room for encoding a block.
struct Room {
    /// `[ROWS, dim]` row-major.
    rows: Vec<f32>,
    tile: Vec<[f32; LANES]>,
    shift: Vec<f32>,
}

/// What all threads that encode need.
struct Encoder<'a> {
    spec: IndexSpec,
    kernel: Kernel,
    byte_kernel: int8::Kernel,
    source: &'a Source<'a>,
    quantizer: &'a Quantizer,
    rotation: &'a Rotation,
    lists: Option<&'a Lists>,
    shape: Shape,
}

/// How an index of so many rows of this width is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Plan {
    /// Bits a dimension of the codes that are scanned; 0 where a graph is walked.
    pub(crate) bits: usize,
    /// 0 where the codes are not in lists.
    pub(crate) lists: usize,
}

impl Plan {
    pub(crate) fn new(options: &Options, rows: usize, dim: usize) -> Self {
        let layout = match options.layout {
            Layout::Auto if rows < AUTO_FLAT => Layout::Flat,
            Layout::Auto if dim >= AUTO_GRAPH_DIM => Layout::Graph,
            Layout::Auto => Layout::Ivf,
            layout => layout,
        };
        let lists = match (layout, options.lists) {
            (Layout::Ivf, 0) => ivf::auto_lists(rows, dim).min(rows),
            (Layout::Ivf, lists) => lists.min(rows),
            _ => 0,
        };
        let bits = match options.bits {
            _ if layout == Layout::Graph => 0,
            0 if dim < NARROW => 2,
            0 => 1,
            bits => usize::from(bits),
        };
        Self { bits, lists }
    }
}

/// Seals the rows of `source` in the layout of the options.
///
/// # Errors
/// `CANCELLED`, `DEADLINE`, `OUT_OF_MEMORY`; `UNSUPPORTED` for more rows than a place can number.
pub(crate) fn build(
    cx: &dyn CallContext,
    threads: usize,
    kernel: Kernel,
    options: &Options,
    source: &Source<'_>,
) -> Result<Sealed> {
    let (spec, rows) = (source.spec, source.len());
    let too_many = || {
        let message = format!("{rows} vectors are more than one index holds; partition them");
        Error::new(ErrorCode::UNSUPPORTED, message)
    };
    if rows.next_multiple_of(ROWS) > MAX_PLACES {
        return Err(too_many());
    }
    let sample = source.sample(int8::SAMPLE);
    let quantizer = Quantizer::fit(spec.dim, &sample);
    let plan = Plan::new(options, rows, spec.dim);
    let step = int4::fit(quantizer.center(), &sample);
    drop(sample);
    let lists = match plan.lists {
        0 => None,
        count => Some(ivf::lists(cx, threads, count, options.seed, source, &quantizer)?),
    };
    let lists = lists.as_ref();
    if lists.is_some_and(|lists| lists.slots.len() > MAX_PLACES) {
        return Err(too_many());
    }
    let graph = match plan.bits {
        0 => graph_of(cx, threads, options.seed, source, &quantizer)?,
        _ => Vec::new(),
    };
    let shape = Shape {
        rows,
        places: lists.map_or(rows.next_multiple_of(ROWS), |lists| lists.places.len()),
        lists: lists.map_or(0, Lists::count),
        slots: lists.map_or(0, |lists| lists.slots.len()),
        probes: lists.map_or(0, Lists::count),
        graph_bytes: graph.len() * size_of::<u32>(),
        bits: plan.bits,
        seed: options.seed,
        wide: source.is_wide(),
        scale: quantizer.scale(),
        step,
    };
    let rotation = Rotation::new(shape.width(spec.dim), shape.seed);
    let byte_kernel = int8::Kernel::detect();
    let mut container = Container::new(spec, shape)?;
    let Some(mut parts) = container.parts_mut() else {
        return Err(Error::new(ErrorCode::INTERNAL, "the memory of a new index is not its own"));
    };
    numbers(&mut parts, Part::Center).copy_from_slice(quantizer.center());
    numbers(&mut parts, Part::Graph).copy_from_slice(&graph);
    drop(graph);
    if let Some(lists) = lists {
        numbers(&mut parts, Part::Centroids).copy_from_slice(&lists.centroids);
        let stride = int8::stride(spec.dim);
        let half: &mut [i32] = numbers(&mut parts, Part::NearHalf);
        let mut codes = vec![0; half.len() * stride];
        quantizer.encode(
            byte_kernel,
            &lists.centroids,
            &mut codes[..lists.count() * stride],
            &mut half[..lists.count()],
        );
        if spec.metric == Metric::Dot {
            half.fill(0);
        }
        let blocks = numbers::<u8>(&mut parts, Part::NearCodes).chunks_exact_mut(int8::block_bytes(spec.dim));
        blocks
            .zip(codes.chunks_exact(ROWS * stride))
            .for_each(|(block, codes)| int8::interleave(codes, block));
        numbers(&mut parts, Part::Starts).copy_from_slice(&lists.starts);
        numbers(&mut parts, Part::Slots).copy_from_slice(&lists.slots);
        let order: &mut [u32] = numbers(&mut parts, Part::Order);
        for (place, &row) in (0..).zip(&lists.places) {
            if let Some(entry) = order.get_mut(row as usize) {
                *entry = place;
            }
        }
    }
    let encoder = Encoder {
        spec,
        kernel,
        byte_kernel,
        source,
        quantizer: &quantizer,
        rotation: &rotation,
        lists,
        shape,
    };
    let done = AtomicUsize::new(0);
    let progress = |rows: usize| {
        let done = done.fetch_add(rows, Ordering::Relaxed) + rows;
        cx.progress(done as u64, (shape.places + shape.slots) as u64);
    };
    if let Some(lists) = lists {
        parallel::map(threads, encoder.scanned(&mut parts), |scanned| {
            cx.check()?;
            let rows = scanned.factors.len() * ROWS;
            encoder.encode_lists(lists, scanned);
            progress(rows);
            Ok(())
        })?;
    }
    parallel::map(threads, encoder.slices(parts), |slice| {
        cx.check()?;
        let rows = slice.ids.len();
        encoder.encode(slice);
        progress(rows);
        Ok(())
    })?;
    // What is staged was checked, so numbers that are none can only come from a damaged file.
    let mut sealed = Sealed::new(spec, kernel, container).ok_or_else(|| {
        Error::new(ErrorCode::CORRUPT_DATA, "the vectors of the index are damaged; it must be built anew")
    })?;
    if let Some(lists) = lists {
        let queries: Vec<Vec<f32>> =
            source.sample(PROBE_SAMPLE).chunks_exact(spec.dim).map(<[f32]>::to_vec).collect();
        let (probes, reach) = sealed.needed_probes(cx, threads, &queries, lists)?;
        sealed.container_mut().set_probes(spec, probes, &reach);
    }
    Ok(sealed)
}

/// The section of a graph of the rows. It takes codes of its own and leaves them: to make them again
/// costs a fiftieth of a graph, and so all of the index can be laid out once its size is known.
fn graph_of(
    cx: &dyn CallContext,
    threads: usize,
    seed: u64,
    source: &Source<'_>,
    quantizer: &Quantizer,
) -> Result<Vec<u32>> {
    let (dim, n, kernel) = (source.spec.dim, source.len(), int8::Kernel::detect());
    let stride = int8::stride(dim);
    let (mut codes, mut half) = (anonymous(n * stride)?, vec![0; n]);
    // Squared lengths, and from them what makes all rows equally long.
    let mut lift = vec![0.0f32; n];
    let places = PART * ROWS;
    let slices = codes.chunks_mut(places * stride).zip(half.chunks_mut(places)).zip(lift.chunks_mut(places));
    parallel::map(threads, slices.enumerate().collect(), |(part, ((codes, half), squares))| {
        cx.check()?;
        let mut row = vec![0.0; dim];
        let rows = codes.chunks_exact_mut(stride).zip(half).zip(squares);
        for (at, ((code, half), square)) in rows.enumerate() {
            source.read_scaled(part * places + at, &mut row);
            if source.spec.metric == Metric::Dot {
                *square = row.iter().map(|v| v * v).sum();
            }
            quantizer.encode(kernel, &row, code, std::slice::from_mut(half));
        }
        Ok(())
    })?;
    let Some(codes) = int8::Codes::new(stride, &codes, &half) else {
        return Err(Error::new(ErrorCode::UNSUPPORTED, format!("a graph of vectors of width {dim}")));
    };
    let lift = (source.spec.metric == Metric::Dot).then(|| {
        let longest = lift.iter().fold(0.0f32, |longest, &square| longest.max(square));
        lift.iter_mut().for_each(|square| *square = (longest - *square).sqrt() * quantizer.scale());
        &*lift
    });
    let params = graph::Params { seed, ..graph::Params::default() };
    graph::build(cx, kernel, codes, lift, &params, threads)
}

type Parts<'a> = [&'a mut [u8]; Part::ALL.len()];

/// A part as numbers of its type, to write.
fn numbers<'a, T: bytemuck::Pod>(parts: &mut Parts<'a>, part: Part) -> &'a mut [T] {
    bytemuck::cast_slice_mut(std::mem::take(&mut parts[part as usize]))
}

impl Encoder<'_> {
    fn scanned<'a>(&self, parts: &mut Parts<'a>) -> Vec<Scanned<'a>> {
        let words = rabitq::words(self.spec.dim, self.shape.bits);
        let factors = numbers(parts, Part::Factors).chunks_mut(PART);
        let bits = numbers(parts, Part::Bits).chunks_mut((PART * words).max(1));
        let scanned = factors.zip(bits).enumerate();
        scanned.map(|(part, (factors, bits))| Scanned { block: part * PART, factors, bits }).collect()
    }

    fn slices<'a>(&self, mut parts: Parts<'a>) -> Vec<Slice<'a>> {
        let places = PART * ROWS;
        let number = if self.shape.wide { 4 } else { 2 };
        let mut scales = numbers::<f32>(&mut parts, Part::Scales).chunks_mut(places);
        let scanned = if self.lists.is_none() { self.scanned(&mut parts) } else { Vec::new() };
        let mut scanned = scanned.into_iter();
        let mut half = numbers(&mut parts, Part::Half).chunks_mut(places * size_of::<i32>());
        let row_bytes = self.shape.row_bytes(self.spec.dim);
        let mut codes = numbers(&mut parts, Part::Codes).chunks_mut(places * row_bytes);
        let mut originals = numbers(&mut parts, Part::Originals).chunks_mut(places * self.spec.dim * number);
        let ids = numbers(&mut parts, Part::Ids).chunks_mut(places);
        ids.enumerate()
            .map(|(part, ids)| Slice {
                block: part * PART,
                ids,
                // Of these there may be none.
                scales: scales.next().unwrap_or_default(),
                half: half.next().unwrap_or_default(),
                codes: codes.next().unwrap_or_default(),
                originals: originals.next().unwrap_or_default(),
                scanned: scanned.next().unwrap_or_default(),
            })
            .collect()
    }

    /// The row at a place, if there is one.
    fn row(&self, place: usize) -> Option<usize> {
        let row = self.lists.map_or(place, |lists| lists.places[place] as usize);
        (row < self.source.len()).then_some(row)
    }

    fn room(&self) -> Room {
        let dim = self.spec.dim;
        Room {
            rows: vec![0.0; ROWS * dim],
            tile: vec![[0.0; LANES]; self.rotation.width()],
            shift: vec![0.0; dim],
        }
    }

    fn encode(&self, mut slice: Slice<'_>) {
        let (dim, center, mut room) = (self.spec.dim, self.quantizer.center(), self.room());
        let original = slice.originals.len() / slice.ids.len().max(1);
        let row_bytes = self.shape.row_bytes(dim);
        for (b, block) in slice.codes.chunks_exact_mut(ROWS * row_bytes).enumerate() {
            let place = b * ROWS;
            room.rows.fill(0.0);
            for (lane, row) in room.rows.chunks_exact_mut(dim).enumerate() {
                let at = place + lane;
                slice.ids[at] = u64::MAX;
                let Some(number) = self.row(slice.block * ROWS + at) else { continue };
                slice.ids[at] = self.source.rows[number].0;
                let scale = self.source.read(number, row);
                write_original(row, self.shape.wide, &mut slice.originals[at * original..][..original]);
                if let Some(held) = slice.scales.get_mut(at) {
                    *held = scale;
                    row.iter_mut().for_each(|v| *v *= scale);
                }
            }
            let half = &mut slice.half[place * size_of::<i32>()..][..ROWS * size_of::<i32>()];
            if let Some(step) = self.shape.step {
                let codes = block.chunks_exact_mut(row_bytes);
                let halves: &mut [f32] = bytemuck::cast_slice_mut(half);
                for ((row, code), half) in room.rows.chunks_exact(dim).zip(codes).zip(halves) {
                    *half = int4::encode(row, center, step, code);
                }
            } else {
                self.quantizer.encode(self.byte_kernel, &room.rows, block, bytemuck::cast_slice_mut(half));
            }
            let ids = &slice.ids[place..place + ROWS];
            self.encode_scanned(&mut slice.scanned, b, center, &mut room, |lane| ids[lane] != u64::MAX);
        }
    }

    /// Encodes blocks of lists.
    fn encode_lists(&self, lists: &Lists, mut scanned: Scanned<'_>) {
        let (dim, mut room) = (self.spec.dim, self.room());
        for at in 0..scanned.factors.len() {
            let block = scanned.block + at;
            let slots = &lists.slots[block * ROWS..][..ROWS];
            for (&place, row) in slots.iter().zip(room.rows.chunks_exact_mut(dim)) {
                if let Some(&number) = lists.places.get(place as usize) {
                    self.source.read_scaled(number as usize, row);
                }
            }
            let centroid = lists.centroid(block);
            self.encode_scanned(&mut scanned, at, centroid, &mut room, |lane| slots[lane] != u32::MAX);
        }
    }

    /// Encodes the rows in `room` as block `at` of some, around the centroid of its list.
    fn encode_scanned(
        &self,
        scanned: &mut Scanned<'_>,
        at: usize,
        centroid: &[f32],
        room: &mut Room,
        is_row: impl Fn(usize) -> bool,
    ) {
        let Some(factors) = scanned.factors.get_mut(at) else { return };
        let (words, l2) = (rabitq::words(self.spec.dim, self.shape.bits), self.spec.metric == Metric::L2);
        for ((shift, center), centroid) in room.shift.iter_mut().zip(self.quantizer.center()).zip(centroid) {
            *shift = if l2 { center - centroid } else { *center };
        }
        room.tile.fill([0.0; LANES]);
        let rows = room.rows.chunks_exact(self.spec.dim).enumerate();
        for (lane, row) in rows.filter(|&(lane, _)| is_row(lane)) {
            for ((dim, v), centroid) in room.tile.iter_mut().zip(row).zip(centroid) {
                dim[lane] = v - centroid;
            }
        }
        let bits = &mut scanned.bits[at * words..(at + 1) * words];
        let half_square = if l2 { 1.0 } else { 0.0 };
        *factors = self.kernel.encode(self.rotation, &mut room.tile, &room.shift, half_square, bits);
        for lane in (0..ROWS).filter(|&lane| !is_row(lane)) {
            factors.add[lane] = f32::NEG_INFINITY;
            factors.scale[lane] = 0.0;
        }
    }
}

fn write_original(row: &[f32], wide: bool, out: &mut [u8]) {
    if wide {
        out.copy_from_slice(bytemuck::cast_slice(row));
    } else {
        use half::slice::HalfBitsSliceExt;
        let halves: &mut [u16] = bytemuck::cast_slice_mut(out);
        halves.reinterpret_cast_mut::<f16>().convert_from_f32_slice(row);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_chosen_by_rows_and_width() {
        let plan = |layout, rows, dim| Plan::new(&Options { layout, ..Options::default() }, rows, dim);
        let flat = Plan { bits: 1, lists: 0 };
        assert_eq!(plan(Layout::Auto, AUTO_FLAT - 1, 768), flat);
        assert_eq!(plan(Layout::Auto, AUTO_FLAT, 128), Plan { bits: 0, lists: 0 });
        let lists = plan(Layout::Auto, AUTO_FLAT, 127);
        assert!(lists.bits == 2 && lists.lists > 100, "{lists:?}");
        assert_eq!(plan(Layout::Ivf, 3, 768).lists, 1);
        assert_eq!(plan(Layout::Ivf, 1 << 20, 768).lists * 2, plan(Layout::Ivf, 1 << 20, 50).lists);
        assert_eq!(plan(Layout::Flat, 1 << 30, 8), Plan { bits: 2, lists: 0 });
        let asked = Options { layout: Layout::Ivf, lists: 7, bits: 1, ..Options::default() };
        assert_eq!(Plan::new(&asked, 1000, 8), Plan { bits: 1, lists: 7 });
        assert_eq!(Plan::new(&asked, 5, 8).lists, 5);
        let asked = Options { layout: Layout::Flat, bits: 4, ..Options::default() };
        assert_eq!(Plan::new(&asked, 1000, 768), Plan { bits: 4, lists: 0 });
    }
}
