use serde::Serialize;

/// Share of a GPU's memory that is planned with.
pub const GPU_MEMORY_SHARE: f64 = 0.7;

const MIN_BATCH: u32 = 32;
const USUAL_BATCH: u32 = 128;

/// How to begin with a GPU, before anything is measured on it. What is learnt while it runs, such as that its memory
/// ran out, corrects it.
///
/// The host plans by it, and so does a plugin that asks the card itself. Sizes are those on the box of a card, in
/// GiB: cards report somewhat less, so that the next whole number counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct GpuTuning {
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

impl GpuTuning {
    /// For a card of so many bytes of memory and this major number of its compute capability.
    pub fn of(memory: u64, capability: u32) -> Self {
        let max_batch = Self::max_batch(memory);
        Self {
            batch: USUAL_BATCH.min(max_batch),
            min_batch: MIN_BATCH,
            max_batch,
            streams: Self::streams(memory),
            pinned_memory: Self::pinned_memory(memory),
            prefetch: Self::prefetch(capability),
        }
    }

    /// The most texts of a batch for so many bytes: [`GPU_MEMORY_SHARE`] of them at 90 MiB a text, which a long text
    /// takes in a wide model, to the next power of two. The usual batch where it is 0, unknown.
    pub fn max_batch(memory: u64) -> u32 {
        match gigabytes(memory) {
            0 => USUAL_BATCH,
            1..=4 => MIN_BATCH,
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

    /// Batches that are made ready ahead, by the major number of the compute capability.
    pub fn prefetch(capability: u32) -> u32 {
        if capability >= 7 { 2 } else { 0 }
    }
}

fn gigabytes(bytes: u64) -> u64 {
    bytes.div_ceil(1 << 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As nvidia-smi reports cards of 2, 4, 6, 8, 12, 16, 24 and 80 GB.
    const CARDS: [u64; 8] = [2048, 4096, 6144, 8188, 12288, 16376, 24564, 81559];

    fn cards<T>(of: fn(u64) -> T) -> [T; 8] {
        CARDS.map(|mib| of(mib << 20))
    }

    #[test]
    fn settings_go_by_the_size_that_is_on_the_box() {
        assert_eq!(cards(GpuTuning::streams), [2, 2, 4, 4, 6, 6, 8, 8]);
        assert_eq!(cards(GpuTuning::pinned_memory), [false, false, false, true, true, true, true, true]);
        assert_eq!(cards(GpuTuning::max_batch), [32, 32, 64, 64, 128, 128, 256, 256]);
        assert_eq!(cards(|memory| GpuTuning::of(memory, 8).batch), [32, 32, 64, 64, 128, 128, 128, 128]);
        // Some report far less than the number on the box.
        assert!(GpuTuning::pinned_memory(7982 << 20));
        assert_eq!(GpuTuning::streams(3911 << 20), 2);
        // A limit that is a little above a step is above it.
        assert_eq!(GpuTuning::streams((4 << 30) + 1), 4);
    }

    #[test]
    fn unknown_memory_gets_the_usual_batch() {
        assert_eq!(GpuTuning::max_batch(0), 128);
    }

    #[test]
    fn batches_are_made_ready_ahead_from_volta_on() {
        assert_eq!([6, 7, 12].map(|capability| GpuTuning::of(8 << 30, capability).prefetch), [0, 2, 2]);
    }
}
