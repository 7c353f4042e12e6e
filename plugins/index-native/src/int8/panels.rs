//! Many rows compared with many: a product of matrices.

use super::{
    Codes, Queries,
    kernel::{COLUMNS, Kernel, prefetch},
};
use std::ops::Range;

/// Rows that are asked of memory ahead.
const AHEAD: usize = 4;

/// Rows laid out side by side as the columns of panels: `[rows / 32, stride / 4, 32, 4]`, so that one
/// register holds the same four bytes of many rows.
#[derive(Clone, Debug)]
pub(crate) struct Panels {
    bytes: Vec<u8>,
    stride: usize,
}

impl Panels {
    /// Empty ones, for rows of `stride` bytes.
    pub(crate) fn new(stride: usize) -> Self {
        Self { bytes: Vec::new(), stride }
    }

    /// Columns, those that fill the last panel among them.
    pub(crate) fn padded(&self) -> usize {
        self.bytes.len() / self.stride
    }

    /// Takes the rows `ids` in place of those that were there.
    ///
    /// # Panics
    /// Where an id is no row, or the widths differ.
    pub(crate) fn pack(&mut self, codes: &Codes<'_>, ids: &[u32]) {
        assert!(codes.stride() == self.stride);
        self.bytes.resize(ids.len().next_multiple_of(COLUMNS) * self.stride, 0x80);
        for (panel, ids) in self.bytes.chunks_exact_mut(COLUMNS * self.stride).zip(ids.chunks(COLUMNS)) {
            for (column, &id) in ids.iter().enumerate() {
                if let Some(&next) = ids.get(column + AHEAD) {
                    prefetch(codes.row(next as usize));
                }
                let groups = codes.row(id as usize).chunks_exact(4);
                for (place, group) in panel.chunks_exact_mut(4 * COLUMNS).zip(groups) {
                    place[4 * column..][..4].copy_from_slice(group);
                }
            }
        }
    }

    /// Writes the dot products of the queries `rows` with all columns into `out`, `[rows, padded]`.
    /// Those with columns beyond the packed rows mean nothing.
    ///
    /// # Panics
    /// Where the lengths do not fit.
    pub(crate) fn dots(&self, kernel: Kernel, queries: &Queries, rows: Range<usize>, out: &mut [i32]) {
        let padded = self.padded();
        assert!(queries.stride == self.stride && out.len() == rows.len() * padded);
        if rows.is_empty() {
            return;
        }
        let values = &queries.values[rows.start * self.stride..rows.end * self.stride];
        let offsets = &queries.offsets[rows];
        for (at, panel) in self.bytes.chunks_exact(COLUMNS * self.stride).enumerate() {
            kernel.multiply(panel, values, offsets, &mut out[at * COLUMNS..], padded);
        }
    }
}
