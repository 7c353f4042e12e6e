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
pub(crate) use search::{ByCodes, Candidate, Scorer, Scratch};

/// Set in an id in [`Scratch`] whose neighbours have been looked at; so there are fewer rows than this.
const EXPANDED: u32 = 1 << 31;

/// The most rows of a graph.
pub(crate) const MAX_ROWS: usize = EXPANDED as usize - 1;

/// Numbers of the header: a line of the cache.
const HEADER: usize = 16;

/// The most neighbours of a row.
pub(crate) const MAX_DEGREE: usize = 256;

/// A graph in its sections.
#[derive(Clone, Debug)]
pub(crate) struct Graph<'a> {
    degree: usize,
    /// `[n, degree]`; a row with fewer neighbours is its own neighbour.
    neighbors: &'a [u32],
    /// The layers above, from the lowest to the top.
    upper: Vec<Upper<'a>>,
    /// Pairs of a row and a row with the same code, sorted.
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

impl<'a> Graph<'a> {
    /// The graph of `n` rows that [`build`] made; `None` where it cannot be that.
    pub(crate) fn open(n: usize, section: &'a [u32]) -> Option<Self> {
        let (header, rest) = section.split_at_checked(HEADER)?;
        let [degree, upper, twins] = [0, 1, 2].map(|at| header[at] as usize);
        if n > MAX_ROWS || !(1..=MAX_DEGREE).contains(&degree) {
            return None;
        }
        let (neighbors, rest) = rest.split_at_checked(n.checked_mul(degree)?)?;
        let (upper, rest) = rest.split_at_checked(upper)?;
        let (pairs, odd) = rest.as_chunks::<2>();
        let fits = odd.is_empty()
            && pairs.len() == twins
            && pairs.is_sorted()
            && pairs.iter().all(|pair| pair[0] < pair[1] && (pair[1] as usize) < n);
        if !fits {
            return None;
        }
        let twins = pairs;
        let mut graph = Self { degree, neighbors, upper: Vec::new(), twins };
        let mut rest = upper;
        let mut below = n;
        while let Some((&len, section)) = rest.split_first() {
            let len = len as usize;
            let size = len.checked_mul(degree + 1)?;
            let (layer, others) = section.split_at_checked(size)?;
            let (rows, neighbors) = layer.split_at(len);
            let sound = len <= below
                && rows.is_sorted_by(|a, b| a < b)
                && rows.last().is_some_and(|&last| (last as usize) < n)
                && neighbors.iter().all(|&place| (place as usize) < len);
            if !sound {
                return None;
            }
            graph.upper.push(Upper { rows, neighbors });
            (rest, below) = (others, len);
        }
        Some(graph)
    }

    /// The number of rows, twins among them.
    pub(crate) fn len(&self) -> usize {
        self.neighbors.len() / self.degree
    }

    /// The rows with the same code as `row`, where it is the one that is in the graph.
    fn twins(&self, row: u32) -> impl Iterator<Item = u32> + use<'a> {
        let first = self.twins.partition_point(|pair| pair[0] < row);
        self.twins[first..].iter().take_while(move |pair| pair[0] == row).map(|pair| pair[1])
    }
}
