use super::gemm::{COLUMNS, GROUP, Left, Precision, VECTOR};
use bytemuck::Zeroable;

/// A cache line, so that a vector of them is aligned to one.
#[derive(Clone, Copy, Debug, Zeroable, bytemuck::Pod)]
#[repr(C, align(64))]
pub(crate) struct Line([u32; VECTOR]);

/// Zeroed memory of whole cache lines, which never shrinks.
#[derive(Debug, Default)]
pub(crate) struct Buffer(Vec<Line>);

impl Buffer {
    pub(crate) fn zeroed(units: usize) -> Self {
        let mut buffer = Self::default();
        buffer.reserve(units);
        buffer
    }

    /// Makes room for `units`. What is there stays.
    pub(crate) fn reserve(&mut self, units: usize) {
        let lines = units.div_ceil(VECTOR);
        if lines > self.0.len() {
            self.0.resize(lines, Line::zeroed());
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        size_of_val(&self.0[..])
    }

    pub(crate) fn units(&self) -> &[u32] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn units_mut(&mut self) -> &mut [u32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    pub(crate) fn floats(&self) -> &[f32] {
        bytemuck::cast_slice(&self.0)
    }

    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        bytemuck::cast_slice_mut(&mut self.0)
    }

    pub(crate) fn halves_mut(&mut self) -> &mut [u16] {
        bytemuck::cast_slice_mut(&mut self.0)
    }
}

/// Rows of activations in the form that a product reads, `[rows, width]`.
#[derive(Debug)]
pub(crate) struct Encoded {
    pub(crate) precision: Precision,
    /// Numbers from a row to the next, a multiple of [`COLUMNS`].
    pub(crate) stride: usize,
    pub(crate) buffer: Buffer,
    /// For int8, a scale and an offset for each group of a row, `[rows, groups]`: a number is
    /// `scale * n + offset`.
    pub(crate) ranges: Vec<[f32; 2]>,
}

impl Encoded {
    pub(crate) fn new(precision: Precision, width: usize) -> Self {
        let stride = width.next_multiple_of(COLUMNS);
        Self { precision, stride, buffer: Buffer::default(), ranges: Vec::new() }
    }

    /// Makes room for `rows`.
    pub(crate) fn reserve(&mut self, rows: usize) {
        self.buffer.reserve(rows * self.units());
        if self.precision == Precision::Int8 && self.ranges.len() < rows * self.groups() {
            self.ranges.resize(rows * self.groups(), [0.0; 2]);
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.buffer.bytes() + size_of_val(&self.ranges[..])
    }

    /// Units from a row to the next.
    pub(crate) fn units(&self) -> usize {
        self.stride / self.precision.per_unit()
    }

    /// Groups of a row, for int8.
    pub(crate) fn groups(&self) -> usize {
        self.units().div_ceil(GROUP)
    }

    /// The rows from `row` on.
    pub(crate) fn left(&self, row: usize) -> Left<'_> {
        Left { units: &self.buffer.units()[row * self.units()..], stride: self.units() }
    }
}
