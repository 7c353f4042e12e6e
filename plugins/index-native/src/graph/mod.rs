//! A graph of near neighbours over int8 codes: built in bulk, walked from layer to layer.
//!
//! Layer 0 has every row; each layer above has about one row in 32 of the one below, and at least one
//! of every part of it that hangs together. The top layer is small and is compared with the query as
//! a whole, so every row can be reached. Rows with the same code are one node: the first is in the
//! graph, and the others are its twins.
//!
//! It is stored as one section of numbers of 32 bits:
//!
//! | part | content |
//! |---|---|
//! | header | 16 numbers: `degree`, those of the upper layers, the pairs of twins, zeros |
//! | layer 0 | `[n, degree]`: the neighbours of each row; itself where it has fewer |
//! | upper layers | from the lowest to the top: `m`, `m` rows ascending, `[m, degree]` places of neighbours among them |
//! | twins | sorted pairs of a row and a later one with the same code |
//!
//! The section may lie in a mapped file, and whatever it says, a search looks at no row that is not
//! there: what is small is checked when it is opened, the neighbours of layer 0 when they are read.

mod build;
mod partition;
mod prune;
mod search;
#[cfg(test)]
mod tests;

pub(crate) use build::{Params, build};
pub(crate) use search::{Candidate, Scorer, Scratch};

use std::ops::Range;

/// Set in an id in [`Scratch`] whose neighbours have been looked at; so there are fewer rows than this.
const EXPANDED: u32 = 1 << 31;

/// The most rows of a graph.
pub(crate) const MAX_ROWS: usize = EXPANDED as usize - 1;

/// Numbers of the header: a line of the cache.
const HEADER: usize = 16;

/// The most neighbours of a row.
pub(crate) const MAX_DEGREE: usize = 256;

/// Where the parts of a section lie; see the table above.
#[derive(Clone, Debug)]
pub(crate) struct Outline {
    degree: usize,
    neighbors: Range<usize>,
    /// The rows of each upper layer; its neighbours follow.
    upper: Vec<Range<usize>>,
    twins: Range<usize>,
}

/// A graph that is ready to be walked.
#[derive(Clone, Debug)]
pub(crate) struct Graph<'a> {
    degree: usize,
    neighbors: &'a [u32],
    /// From the lowest to the top.
    upper: Vec<Upper<'a>>,
    twins: &'a [[u32; 2]],
}

/// A layer over some rows.
#[derive(Clone, Copy, Debug)]
struct Upper<'a> {
    /// Its rows, ascending.
    rows: &'a [u32],
    /// `[rows.len(), degree]`: places in `rows`.
    neighbors: &'a [u32],
}

impl Outline {
    /// Looks at the section of a graph of `n` rows; `None` where it cannot be one that [`build`] made.
    pub(crate) fn read(n: usize, section: &[u32]) -> Option<Self> {
        let [degree, upper_len, twins] = [0, 1, 2].map(|at| section.get(at).map(|&v| v as usize));
        let (degree, upper_len, twins) = (degree?, upper_len?, twins?);
        if n > MAX_ROWS || !(1..=MAX_DEGREE).contains(&degree) {
            return None;
        }
        let neighbors = HEADER..HEADER.checked_add(n.checked_mul(degree)?)?;
        let upper_end = neighbors.end.checked_add(upper_len)?;
        let twins = upper_end..upper_end.checked_add(twins.checked_mul(2)?)?;
        if twins.end != section.len() {
            return None;
        }
        let (pairs, _) = section[twins.clone()].as_chunks::<2>();
        if !pairs.is_sorted() || !pairs.iter().all(|pair| pair[0] < pair[1] && (pair[1] as usize) < n) {
            return None;
        }
        let mut upper = Vec::new();
        let (mut at, mut below) = (neighbors.end, n);
        while at < upper_end {
            let len = section[at] as usize;
            let rows = at + 1..(at + 1).checked_add(len)?;
            let end = rows.end.checked_add(len.checked_mul(degree)?)?;
            if len > below || end > upper_end {
                return None;
            }
            let (layer, places) = section[rows.start..end].split_at(len);
            let sound = layer.is_sorted_by(|a, b| a < b)
                && layer.last().is_some_and(|&last| (last as usize) < n)
                && places.iter().all(|&place| (place as usize) < len);
            if !sound {
                return None;
            }
            upper.push(rows);
            (at, below) = (end, len);
        }
        Some(Self { degree, neighbors, upper, twins })
    }

    /// The graph in the section that was read.
    ///
    /// # Panics
    /// Where it is another section that is shorter.
    pub(crate) fn graph<'a>(&self, section: &'a [u32]) -> Graph<'a> {
        let layer = |rows: &Range<usize>| Upper {
            rows: &section[rows.clone()],
            neighbors: &section[rows.end..][..rows.len() * self.degree],
        };
        Graph {
            degree: self.degree,
            neighbors: &section[self.neighbors.clone()],
            upper: self.upper.iter().map(layer).collect(),
            twins: section[self.twins.clone()].as_chunks().0,
        }
    }
}

impl<'a> Graph<'a> {
    /// The rows with the same code as `row`, where it is the one that is in the graph.
    fn twins(&self, row: u32) -> impl Iterator<Item = u32> + use<'a> {
        let first = self.twins.partition_point(|pair| pair[0] < row);
        self.twins[first..].iter().take_while(move |pair| pair[0] == row).map(|pair| pair[1])
    }
}
