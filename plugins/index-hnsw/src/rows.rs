use memmap2::{Mmap, MmapMut};
use parking_lot::Mutex;
use std::{
    io,
    ptr::NonNull,
    sync::{
        OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
};

/// Rows of the first bucket; each further one is twice as large, so that none ever moves.
const FIRST_BUCKET: usize = 64;
const BUCKETS: usize = 32;

/// The vectors of a graph, by row number: `[len, dim]` f32, append-only.
///
/// The graph of `hnsw_rs` holds row numbers in place of vectors. So a vector is stored once, the
/// vectors of an opened index stay in the file that is mapped, and comparing with given rows needs
/// no walk over the graph.
///
/// Threads: any number of readers beside one writer, without a lock; writers take turns.
pub(crate) struct Rows {
    dim: usize,
    /// Rows `0..mapped_len`, of a file that `files` has measured.
    mapped: Option<Mmap>,
    mapped_len: usize,
    /// The rows after those, in huge pages where the system has them: with pages of 4 KiB a walk
    /// over 100,000 rows waits for the page table more than for the rows.
    added: [OnceLock<Bucket>; BUCKETS],
    added_len: AtomicUsize,
    writer: Mutex<()>,
}

impl Rows {
    pub(crate) fn new(dim: usize) -> Self {
        Self {
            dim,
            mapped: None,
            mapped_len: 0,
            added: [const { OnceLock::new() }; BUCKETS],
            added_len: AtomicUsize::new(0),
            writer: Mutex::default(),
        }
    }

    /// Rows that begin with those of `mapped`, `[n, dim]` f32 in the order of bytes of this
    /// machine.
    pub(crate) fn with_mapped(dim: usize, mapped: Mmap) -> Self {
        let mapped_len = mapped.len() / (dim * size_of::<f32>());
        Self { mapped: Some(mapped), mapped_len, ..Self::new(dim) }
    }

    pub(crate) fn len(&self) -> usize {
        self.mapped_len + self.added_len.load(Ordering::Acquire)
    }

    #[inline]
    pub(crate) fn get(&self, row: u32) -> &[f32] {
        let row = row as usize;
        match (row.checked_sub(self.mapped_len), &self.mapped) {
            (Some(added), _) => self.added(added),
            (None, Some(mapped)) => {
                let bytes = self.dim * size_of::<f32>();
                bytemuck::cast_slice(&mapped[row * bytes..][..bytes])
            }
            (None, None) => unreachable!("rows below `mapped_len` are those of the map"),
        }
    }

    #[inline]
    fn added(&self, at: usize) -> &[f32] {
        assert!(at < self.added_len.load(Ordering::Acquire), "there is no such row");
        let (bucket, at) = place(at);
        let Some(bucket) = self.added[bucket].get() else { unreachable!("a row below the length has one") };
        // SAFETY: the row is below the length, so it lies in its bucket, `push` has written it, and
        // nobody writes it again.
        unsafe { std::slice::from_raw_parts(bucket.begin.add(at * self.dim).as_ptr(), self.dim) }
    }

    /// Makes room for `more` rows.
    ///
    /// # Errors
    /// Where the system gives no memory.
    pub(crate) fn reserve(&self, more: usize) -> io::Result<()> {
        let Some(last) = self.added_len.load(Ordering::Relaxed).checked_add(more) else {
            return Err(io::ErrorKind::OutOfMemory.into());
        };
        let _writer = self.writer.lock();
        for (at, bucket) in self.added.iter().enumerate().take(place(last).0 + 1) {
            if bucket.get().is_none() {
                // The lock is held, so nobody else sets it.
                let _ = bucket.set(Bucket::new((FIRST_BUCKET << at) * self.dim)?);
            }
        }
        Ok(())
    }

    /// Appends a row and returns its number.
    ///
    /// # Panics
    /// Where no room was reserved for it.
    pub(crate) fn push(&self, vector: &[f32]) -> usize {
        assert_eq!(vector.len(), self.dim);
        let _writer = self.writer.lock();
        let len = self.added_len.load(Ordering::Relaxed);
        let (bucket, at) = place(len);
        let Some(bucket) = self.added[bucket].get() else { unreachable!("room is reserved before") };
        // SAFETY: `place` gives a row of the bucket, and no reader looks at rows from `len` on.
        unsafe {
            bucket.begin.add(at * self.dim).copy_from_nonoverlapping(NonNull::from(vector).cast(), self.dim);
        }
        self.added_len.store(len + 1, Ordering::Release);
        self.mapped_len + len
    }

    /// Reads what is mapped into memory, where the system can be asked to.
    pub(crate) fn warm_up(&self) {
        #[cfg(target_os = "linux")]
        if let Some(map) = &self.mapped {
            // A wish: an old kernel does not know it, and the first searches read the file then.
            let _ = map.advise(memmap2::Advice::PopulateRead);
        }
    }

    /// Bytes of memory, and bytes mapped.
    pub(crate) fn bytes(&self) -> (usize, usize) {
        let added = self.added_len.load(Ordering::Acquire) * self.dim * size_of::<f32>();
        (added, self.mapped.as_ref().map_or(0, |mapped| mapped.len()))
    }
}

/// The bucket of an added row, and which one it is in it.
#[inline]
fn place(added: usize) -> (usize, usize) {
    let at = added + FIRST_BUCKET;
    let bucket = at.ilog2() - FIRST_BUCKET.ilog2();
    (bucket as usize, at - (FIRST_BUCKET << bucket))
}

/// Numbers that are written through `begin` alone.
struct Bucket {
    begin: NonNull<f32>,
    /// Keeps them.
    _memory: MmapMut,
}

// SAFETY: a bucket is memory of its own, and `Rows` says who reads and writes what of it when.
unsafe impl Send for Bucket {}
// SAFETY: as above.
unsafe impl Sync for Bucket {}

impl Bucket {
    fn new(numbers: usize) -> io::Result<Self> {
        let bytes = numbers.checked_mul(size_of::<f32>()).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut memory = MmapMut::map_anon(bytes)?;
        #[cfg(target_os = "linux")]
        // A wish: the system may have no huge pages.
        let _ = memory.advise(memmap2::Advice::HugePage);
        Ok(Self { begin: NonNull::from(&mut memory[..]).cast(), _memory: memory })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_follow_one_another_without_a_gap() {
        let mut expected = (0, 0);
        for added in 0..1000 {
            assert_eq!(place(added), expected);
            expected.1 += 1;
            if expected.1 == FIRST_BUCKET << expected.0 {
                expected = (expected.0 + 1, 0);
            }
        }
    }

    #[test]
    fn rows_stay_while_others_come() {
        let rows = Rows::new(3);
        rows.reserve(2000).expect("memory");
        let vector = |row: usize| [row as f32, 0.5, -1.0];
        std::thread::scope(|scope| {
            let readers = [(); 2].map(|()| {
                scope.spawn(|| {
                    while rows.len() < 2000 {
                        let last = rows.len();
                        for row in (0..last).step_by(17) {
                            assert_eq!(rows.get(row as u32), vector(row));
                        }
                    }
                })
            });
            for row in 0..2000 {
                assert_eq!(rows.push(&vector(row)), row);
            }
            for reader in readers {
                reader.join().expect("a reader found a wrong row");
            }
        });
    }
}
