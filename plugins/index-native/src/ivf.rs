//! Lists of rows by the nearest of some centroids (an inverted file: Sivic and Zisserman 2003, Jégou and
//! others 2011), so that a search reads few of them.

use crate::{
    build::{NARROW, Source},
    container::MAX_PLACES,
    int8::{Codes, Kernel, Panels, Quantizer, Queries, stride},
    parallel,
    rabitq::ROWS,
    rotation::{LANES, Random},
};
use magray_plugin_api::{CallContext, Result};

/// Rows a list that k-means sees: more move the centroids little.
const SAMPLE: usize = 24;

/// Passes of k-means.
const PASSES: usize = 5;

/// Rows that are compared with all centroids at once, where these are few.
const BATCH: usize = 128;
/// Products that a thread holds of a batch, so that very many lists take no more memory.
const PRODUCTS: usize = 1 << 22;

/// Near centroids of a row of which one is chosen for its second list.
const NEAR: usize = 8;

/// Which rows are in which lists, and where.
#[derive(Debug)]
pub(crate) struct Lists {
    /// `[lists, dim]` row-major.
    pub(crate) centroids: Vec<f32>,
    /// The first block of each list, and at the end the number of blocks.
    pub(crate) starts: Vec<u32>,
    /// The row at each place, those with the same first list next to one another; `u32::MAX` at the end, where there is
    /// none.
    pub(crate) places: Vec<u32>,
    /// The place of the row at each slot of the blocks; `u32::MAX` where there is none. A list begins with a block of its
    /// own.
    pub(crate) slots: Vec<u32>,
    /// The lists of each row; twice the same where it has one only.
    pub(crate) of_rows: Vec<[u32; 2]>,
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
fn list_of(starts: &[u32], block: usize) -> usize {
    starts.partition_point(|&start| start as usize <= block).saturating_sub(1)
}

/// How many lists for so many rows: scanning the nearest ones then takes about as long as finding them, for which a
/// centroid costs as much as three rows of narrow vectors do and as eight of others, that are scanned by a bit a
/// dimension. Few rows have fewer, or blocks would be half empty.
pub(crate) fn auto_lists(rows: usize, dim: usize) -> usize {
    let share = if dim < NARROW { 4.0 } else { 2.0 };
    ((share * (rows as f64).sqrt()) as usize).min(rows / (4 * ROWS)).max(1)
}

/// Finds `count` centroids, no more than there are rows, by k-means over a sample, and puts each row into the list of the nearest one
/// and one more: a query that is far from the one centroid, though the row is near, is then hardly as far from the other
/// (SOAR: Sun and others, arXiv:2404.00774).
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
        let nearest = assign(cx, threads, &sampled, quantizer, &centroids, &|_, [near]: &[u32; 1]| *near)?;
        move_centroids(&sampled, quantizer, &nearest, &mut centroids);
    }
    let all = Rows { source, step: 1.0, count: rows };
    // Where slots would have numbers of more than 32 bits each row has one list.
    let once = 2 * rows + count * ROWS > MAX_PLACES;
    let lists_of = |row: &[f32], near: &[u32; NEAR]| {
        [near[0], if once { near[0] } else { second(row, &centroids, near) }]
    };
    let of_rows = assign(cx, threads, &all, quantizer, &centroids, &lists_of)?;
    Ok(lay_out(centroids, count, of_rows))
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

/// The second list of a row, of those that are near: the error of its codes there adds to the distance what of it is
/// along the error of the first, for that is what a query which the first is bad for meets again.
fn second(row: &[f32], centroids: &[f32], near: &[u32; NEAR]) -> u32 {
    let centroid = |list: u32| &centroids[list as usize * row.len()..][..row.len()];
    let first = centroid(near[0]);
    // Of each list the squared error there, and its product with that of the first.
    let errors = |list: u32| {
        let (mut squares, mut products) = ([0.0f32; LANES], [0.0f32; LANES]);
        let chunks = row.chunks(LANES).zip(first.chunks(LANES)).zip(centroid(list).chunks(LANES));
        for ((row, first), other) in chunks {
            for (lane, ((v, first), other)) in row.iter().zip(first).zip(other).enumerate() {
                squares[lane] += (v - other) * (v - other);
                products[lane] += (v - first) * (v - other);
            }
        }
        (squares.iter().sum::<f32>(), products.iter().sum::<f32>())
    };
    let (square, _) = errors(near[0]);
    let loss = |list: u32| {
        let (distance, along) = errors(list);
        if square > 0.0 { distance + along * along / square } else { distance }
    };
    let others = near[1..].iter().filter(|&&list| list != u32::MAX).map(|&list| (loss(list), list));
    others.min_by(|a, b| a.0.total_cmp(&b.0)).map_or(near[0], |best| best.1)
}

/// What `pick` says of each row and the nearest centroids of it, by their int8 codes; `u32::MAX` where there are fewer.
fn assign<T: Send, const N: usize>(
    cx: &dyn CallContext,
    threads: usize,
    rows: &Rows<'_>,
    quantizer: &Quantizer,
    centroids: &[f32],
    pick: &(impl Fn(&[f32], &[u32; N]) -> T + Sync),
) -> Result<Vec<T>> {
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
        let picked = dots.chunks_exact(panels.padded()).zip(vectors.chunks_exact(dim)).map(|(dots, row)| {
            let mut nearest = [(0, 0); N];
            kernel.nearest(dots, &half, count, usize::MAX, &mut nearest);
            pick(row, &nearest.map(|(_, list)| list))
        });
        Ok(picked.collect::<Vec<_>>())
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

fn lay_out(centroids: Vec<f32>, count: usize, of_rows: Vec<[u32; 2]>) -> Lists {
    let mut next = begins(count, of_rows.iter().map(|lists| lists[0]), 1);
    let mut places = vec![u32::MAX; of_rows.len().next_multiple_of(ROWS)];
    for (row, lists) in (0..).zip(&of_rows) {
        let place = &mut next[lists[0] as usize];
        places[*place] = row;
        *place += 1;
    }
    let of_row = |row: usize| {
        let [first, second] = of_rows[row];
        std::iter::once(first).chain((second != first).then_some(second))
    };
    let mut next = begins(count, (0..of_rows.len()).flat_map(of_row), ROWS);
    let starts: Vec<u32> = next.iter().map(|&slot| (slot / ROWS) as u32).collect();
    let mut slots = vec![u32::MAX; next[count]];
    for (place, &row) in (0..).zip(&places[..of_rows.len()]) {
        for list in of_row(row as usize) {
            let slot = &mut next[list as usize];
            slots[*slot] = place;
            *slot += 1;
        }
    }
    Lists { centroids, starts, places, slots, of_rows }
}

/// Where each list begins, at a multiple of `align`, and the end of the last, of the lists of some entries.
fn begins(count: usize, lists: impl Iterator<Item = u32>, align: usize) -> Vec<usize> {
    let mut begins = vec![0usize; count + 1];
    lists.for_each(|list| begins[list as usize + 1] += 1);
    for list in 0..count {
        begins[list + 1] = begins[list] + begins[list + 1].next_multiple_of(align);
    }
    begins
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Each row has a place among those of its first list and a slot in each of its lists.
        #[test]
        fn every_row_is_in_its_lists(count in 1usize..20, of_rows in prop::collection::vec((0usize..400, 0usize..400), 1..300)) {
            let of_rows: Vec<[u32; 2]> =
                of_rows.into_iter().map(|(a, b)| [a, b].map(|list| (list % count) as u32)).collect();
            let lists = lay_out(Vec::new(), count, of_rows.clone());
            let rows: Vec<u32> = lists.places.iter().copied().filter(|&row| row != u32::MAX).collect();
            prop_assert!(rows.is_sorted_by_key(|&row| (of_rows[row as usize][0], row)));
            let mut found = vec![Vec::new(); of_rows.len()];
            prop_assert_eq!(lists.slots.len(), *lists.starts.last().unwrap() as usize * ROWS);
            for (slot, &place) in lists.slots.iter().enumerate().filter(|slot| *slot.1 != u32::MAX) {
                found[lists.places[place as usize] as usize].push(list_of(&lists.starts, slot / ROWS) as u32);
            }
            for (mut found, mut want) in found.into_iter().zip(of_rows.into_iter().map(Vec::from)) {
                found.sort_unstable();
                want.sort_unstable();
                want.dedup();
                prop_assert_eq!(found, want);
            }
        }
    }

    /// Of two lists that are as near, the one is chosen whose error stands across that of the first.
    #[test]
    fn the_second_list_is_across_the_first() {
        let centroids = [0.0, 0.0, 2.0, 0.0, 1.0, 1.0];
        let near =
            |others: &[u32]| std::array::from_fn(|at| *[&[0], others].concat().get(at).unwrap_or(&u32::MAX));
        assert_eq!(second(&[1.0, 0.0], &centroids, &near(&[1, 2])), 2);
        assert_eq!(second(&[1.0, 0.0], &centroids, &near(&[2, 1])), 2);
        assert_eq!(second(&[1.0, 0.0], &centroids, &near(&[1])), 1);
        assert_eq!(second(&[1.0, 0.0], &centroids, &near(&[])), 0);
    }
}
