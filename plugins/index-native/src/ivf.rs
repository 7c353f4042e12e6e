//! Lists of rows by the nearest of some centroids (an inverted file: Sivic and Zisserman 2003, Jégou and
//! others 2011), so that a search reads few of them.

use crate::{
    build::Source,
    int8::{Codes, Kernel, Panels, Quantizer, Queries, stride},
    parallel,
    rabitq::ROWS,
    rotation::Random,
};
use magray_plugin_api::{CallContext, Result};

/// Rows a list that k-means sees: more move the centroids little.
const SAMPLE: usize = 48;

/// Passes of k-means.
const PASSES: usize = 6;

/// Rows that are compared with all centroids at once, where these are few.
const BATCH: usize = 128;
/// Products that a thread holds of a batch, so that very many lists take no more memory.
const PRODUCTS: usize = 1 << 22;

/// Which rows are in which list, and where.
#[derive(Debug)]
pub(crate) struct Lists {
    /// `[lists, dim]` row-major.
    pub(crate) centroids: Vec<f32>,
    /// The first block of each list, and at the end the number of blocks.
    pub(crate) starts: Vec<u32>,
    /// The row at each place, `u32::MAX` where there is none. A list begins with a block of its own.
    pub(crate) places: Vec<u32>,
}

impl Lists {
    pub(crate) fn count(&self) -> usize {
        self.starts.len() - 1
    }

    /// The centroid of the list that a block belongs to.
    pub(crate) fn centroid(&self, block: usize) -> &[f32] {
        let dim = self.centroids.len() / self.count();
        &self.centroids[list_of(&self.starts, block) * dim..][..dim]
    }
}

/// The list that a block belongs to: behind empty ones, which begin where the next one does.
pub(crate) fn list_of(starts: &[u32], block: usize) -> usize {
    starts.partition_point(|&start| start as usize <= block).saturating_sub(1)
}

/// How many lists for so many rows: scanning the nearest ones then takes about as long as finding them.
pub(crate) fn auto_lists(rows: usize) -> usize {
    (2.0 * (rows as f64).sqrt()) as usize
}

/// Finds `count` centroids, no more than there are rows, by k-means over a sample, and puts each row into the list of the nearest one.
///
/// # Errors
/// `CANCELLED`, `DEADLINE`.
pub(crate) fn lists(
    cx: &dyn CallContext,
    threads: usize,
    count: usize,
    seed: u64,
    source: &Source<'_>,
    quantizer: &Quantizer,
) -> Result<Lists> {
    let rows = source.len();
    let sample = (count * SAMPLE).min(rows);
    let sampled = Rows { source, step: rows as f64 / sample as f64, count: sample };
    let mut centroids = first(&sampled, quantizer, count, seed);
    for _ in 0..PASSES {
        let nearest = assign(cx, threads, &sampled, quantizer, &centroids)?;
        move_centroids(&sampled, quantizer, &nearest, &mut centroids);
    }
    let all = Rows { source, step: 1.0, count: rows };
    let nearest = assign(cx, threads, &all, quantizer, &centroids)?;
    Ok(lay_out(centroids, count, &nearest))
}

/// Rows of the source at even distances.
struct Rows<'a> {
    source: &'a Source<'a>,
    step: f64,
    count: usize,
}

impl Rows<'_> {
    fn read(&self, at: usize, out: &mut [f32]) {
        let row = (at as f64 * self.step) as usize;
        self.source.read_scaled(row.min(self.source.len() - 1), out);
    }
}

/// Rows of the sample, no one twice.
fn first(sample: &Rows<'_>, quantizer: &Quantizer, count: usize, seed: u64) -> Vec<f32> {
    let dim = quantizer.center().len();
    let mut chosen: Vec<usize> = (0..sample.count).collect();
    let mut random = Random(seed);
    let mut centroids = vec![0.0; count * dim];
    for (at, centroid) in centroids.chunks_exact_mut(dim).enumerate() {
        let other = at + (random.next() % (chosen.len() - at) as u64) as usize;
        chosen.swap(at, other);
        sample.read(chosen[at], centroid);
    }
    centroids
}

/// The number of the nearest centroid of each row, by their int8 codes.
fn assign(
    cx: &dyn CallContext,
    threads: usize,
    rows: &Rows<'_>,
    quantizer: &Quantizer,
    centroids: &[f32],
) -> Result<Vec<u32>> {
    let dim = quantizer.center().len();
    let (kernel, stride, count) = (Kernel::detect(), stride(dim), centroids.len() / dim);
    let (mut codes, mut half) = (vec![0; count * stride], vec![0; count]);
    quantizer.encode(kernel, centroids, &mut codes, &mut half);
    let mut panels = Panels::new(stride);
    if let Some(codes) = Codes::new(stride, &codes, &half) {
        panels.pack(&codes, &(0..count as u32).collect::<Vec<_>>());
    }
    half.resize(panels.padded(), i32::MAX);
    let at_once = (PRODUCTS / panels.padded().max(1)).clamp(1, BATCH);
    let begins: Vec<usize> = (0..rows.count).step_by(at_once).collect();
    let nearest = parallel::map(threads, begins, |begin| {
        cx.check()?;
        let batch = (rows.count - begin).min(at_once);
        let mut vectors = vec![0.0; batch * dim];
        for (at, row) in vectors.chunks_exact_mut(dim).enumerate() {
            rows.read(begin + at, row);
        }
        let (mut codes, mut ignored) = (vec![0; batch * stride], vec![0; batch]);
        quantizer.encode(kernel, &vectors, &mut codes, &mut ignored);
        let mut queries = Queries::new(stride);
        if let Some(codes) = Codes::new(stride, &codes, &ignored) {
            (0..batch).for_each(|at| codes.push_query(kernel, at, &mut queries));
        }
        let mut dots = vec![0; batch * panels.padded()];
        panels.dots(kernel, &queries, 0..batch, &mut dots);
        let best = dots.chunks_exact(panels.padded()).map(|dots| {
            let mut nearest = [(0, 0)];
            kernel.nearest(dots, &half, count, usize::MAX, &mut nearest);
            nearest[0].1.min(count as u32 - 1)
        });
        Ok(best.collect::<Vec<_>>())
    })?;
    Ok(nearest.into_iter().flatten().collect())
}

/// Moves each centroid to the mean of its rows; one without rows stays.
fn move_centroids(rows: &Rows<'_>, quantizer: &Quantizer, nearest: &[u32], centroids: &mut [f32]) {
    let dim = quantizer.center().len();
    let mut counts = vec![0u32; centroids.len() / dim];
    let mut sums = vec![0.0f32; centroids.len()];
    let mut row = vec![0.0; dim];
    for (at, &list) in nearest.iter().enumerate() {
        rows.read(at, &mut row);
        counts[list as usize] += 1;
        let sum = &mut sums[list as usize * dim..][..dim];
        sum.iter_mut().zip(&row).for_each(|(sum, v)| *sum += v);
    }
    let moved = centroids.chunks_exact_mut(dim).zip(sums.chunks_exact(dim)).zip(counts);
    for ((centroid, sum), count) in moved.filter(|(_, count)| *count > 0) {
        centroid.iter_mut().zip(sum).for_each(|(c, sum)| *c = sum / count as f32);
    }
}

fn lay_out(centroids: Vec<f32>, count: usize, nearest: &[u32]) -> Lists {
    let mut counts = vec![0usize; count];
    nearest.iter().for_each(|&list| counts[list as usize] += 1);
    let mut starts = vec![0u32];
    let mut blocks = 0;
    for rows in counts {
        blocks += rows.div_ceil(ROWS);
        // The caller has seen that the rows have numbers of 32 bits.
        starts.push(blocks as u32);
    }
    let mut next: Vec<usize> = starts.iter().map(|&start| start as usize * ROWS).collect();
    let mut places = vec![u32::MAX; blocks * ROWS];
    for (row, &list) in (0..).zip(nearest) {
        places[next[list as usize]] = row;
        next[list as usize] += 1;
    }
    Lists { centroids, starts, places }
}
