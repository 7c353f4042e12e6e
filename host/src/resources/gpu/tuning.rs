use serde::Serialize;

/// How to begin with a GPU, before anything is measured on it. What is learnt while it runs, such as that its memory
/// ran out, corrects it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tuning {
    /// Texts in one call.
    pub batch: u32,
    /// The fewest and the most that it may become.
    pub min_batch: u32,
    #[expect(missing_docs, reason = "as above")]
    pub max_batch: u32,
    /// Execution streams.
    pub streams: u32,
    /// Whether texts go to it through pinned memory.
    pub pinned_memory: bool,
    /// Batches that are made ready ahead.
    pub prefetch: u32,
}

const MIN_BATCH: u32 = 32;
const USUAL_BATCH: u32 = 128;

impl Tuning {
    /// For a card of so much memory and this compute capability.
    pub fn of(total_bytes: u64, capability: (i32, i32)) -> Self {
        let max_batch = Self::max_batch(total_bytes);
        Self {
            batch: USUAL_BATCH.min(max_batch),
            min_batch: MIN_BATCH,
            max_batch,
            streams: Self::streams(total_bytes),
            pinned_memory: Self::pinned_memory(total_bytes),
            prefetch: if capability >= (7, 0) { 2 } else { 0 },
        }
    }

    /// The most texts of a batch for so many bytes: 70% of them at 90 MiB a text, which a long text takes in a wide
    /// model, to the next power of two. The usual batch where it is 0, unknown.
    pub fn max_batch(memory: u64) -> u32 {
        match gigabytes(memory) {
            _ if memory == 0 => USUAL_BATCH,
            0..=4 => MIN_BATCH,
            5..=8 => 64,
            9..=16 => 128,
            _ => 256,
        }
    }

    /// Execution streams for so many bytes.
    pub fn streams(memory: u64) -> u32 {
        match gigabytes(memory) {
            0..=4 => 2,
            5..=8 => 4,
            9..=16 => 6,
            _ => 8,
        }
    }

    /// Whether pinned memory pays with so many bytes.
    pub fn pinned_memory(memory: u64) -> bool {
        gigabytes(memory) >= 8
    }
}

/// GiB as the box of a card says them: it reports somewhat less.
fn gigabytes(bytes: u64) -> u64 {
    (bytes + (1 << 29)) >> 30
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn mib(count: u64) -> u64 {
        count << 20
    }

    #[test]
    fn streams_and_pinned_memory_go_by_the_size_that_is_on_the_box() {
        // As nvidia-smi reports cards of 2, 4, 6, 8, 12, 16, 24 and 80 GB.
        let cards = [2048, 4096, 6144, 8188, 12288, 16376, 24564, 81559].map(mib);
        assert_eq!(cards.map(Tuning::streams), [2, 2, 4, 4, 6, 6, 8, 8]);
        let pinned = cards.map(|bytes| Tuning::of(bytes, (8, 0)).pinned_memory);
        assert_eq!(pinned, [false, false, false, true, true, true, true, true]);
        // Some report less than the number on the box.
        assert!(Tuning::of(mib(7982), (7, 5)).pinned_memory);
        assert_eq!(Tuning::streams(mib(3911)), 2);
    }

    #[test]
    fn batches_go_by_the_memory_and_are_the_usual_ones_where_it_is_unknown() {
        let cards = [1500, 4096, 6144, 8188, 12288, 16376, 24564, 81559].map(mib);
        assert_eq!(cards.map(Tuning::max_batch), [32, 32, 64, 64, 128, 128, 256, 256]);
        assert_eq!(cards.map(|bytes| Tuning::of(bytes, (8, 0)).batch), [32, 32, 64, 64, 128, 128, 128, 128]);
        assert_eq!(Tuning::max_batch(0), 128);
    }

    #[test]
    fn batches_are_made_ready_ahead_from_volta_on() {
        let prefetch =
            [(6, 1), (7, 0), (7, 5), (12, 0)].map(|capability| Tuning::of(mib(8188), capability).prefetch);
        assert_eq!(prefetch, [0, 2, 2, 2]);
    }
}
