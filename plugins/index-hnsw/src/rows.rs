use memmap2::Mmap;

/// The vectors of a graph, by row number: `[len, dim]` f32, append-only.
///
/// The graph of `hnsw_rs` holds row numbers in place of vectors. So a vector is stored once, the
/// vectors of an opened index stay in the file that is mapped, and comparing with given rows needs
/// no walk over the graph.
///
/// Threads: any number of readers beside one writer, without a lock.
pub(crate) struct Rows {
    dim: usize,
    /// Rows `0..mapped_len`, of a file that `files` has checked.
    mapped: Option<Mmap>,
    mapped_len: usize,
    /// The rows after those.
    added: boxcar::Vec<Box<[f32]>>,
}

impl Rows {
    pub(crate) fn new(dim: usize) -> Self {
        Self { dim, mapped: None, mapped_len: 0, added: boxcar::Vec::new() }
    }

    /// Rows that begin with those of `mapped`, `[n, dim]` f32 in the order of bytes of this
    /// machine.
    pub(crate) fn with_mapped(dim: usize, mapped: Mmap) -> Self {
        let mapped_len = mapped.len() / (dim * size_of::<f32>());
        Self { dim, mapped: Some(mapped), mapped_len, added: boxcar::Vec::new() }
    }

    pub(crate) fn len(&self) -> usize {
        self.mapped_len + self.added.count()
    }

    pub(crate) fn get(&self, row: u32) -> &[f32] {
        let row = row as usize;
        match (row.checked_sub(self.mapped_len), &self.mapped) {
            (Some(added), _) => &self.added[added],
            (None, Some(mapped)) => {
                let bytes = self.dim * size_of::<f32>();
                bytemuck::cast_slice(&mapped[row * bytes..][..bytes])
            }
            (None, None) => unreachable!("rows below `mapped_len` are those of the map"),
        }
    }

    pub(crate) fn push(&self, vector: Box<[f32]>) {
        debug_assert_eq!(vector.len(), self.dim);
        self.added.push(vector);
    }

    /// Bytes on the heap, and bytes mapped.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        // A slot of `added`, the vector, and what the allocator adds.
        let row = size_of::<Option<Box<[f32]>>>() + size_of::<usize>() + self.dim * size_of::<f32>() + 16;
        (self.added.count() * row, self.mapped.as_ref().map_or(0, |mapped| mapped.len()))
    }
}
