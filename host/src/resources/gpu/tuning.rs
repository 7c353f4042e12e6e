use serde::Serialize;

/// How to begin with a GPU, before anything is measured on it (SPEC B3). What is learnt while it runs (memory of
/// activations, out of memory) corrects it.
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
const MAX_BATCH: u32 = 256;
const USUAL_BATCH: u32 = 128;

/// Share of the memory that batches may take.
const SAFETY_PERCENT: u64 = 70;

/// Activations of one text, roughly and at most: 256 tokens of a model 768 wide, where a layer holds about ten
/// rows of that width in f32 and 12 heads of 256 x 256 weights.
const ACTIVATION_BYTES: u64 = 12 << 20;

impl Tuning {
    /// For a card of so much memory and this compute capability.
    pub fn of(total_bytes: u64, capability: (i32, i32)) -> Self {
        let max_batch = Self::max_batch(total_bytes, ACTIVATION_BYTES);
        Self {
            batch: USUAL_BATCH.min(max_batch),
            min_batch: MIN_BATCH,
            max_batch,
            streams: Self::streams(total_bytes),
            pinned_memory: gigabytes(total_bytes) >= 8,
            prefetch: if capability >= (7, 0) { 2 } else { 1 },
        }
    }

    /// The most texts of so many bytes of activations that may be computed at once.
    pub fn max_batch(total_bytes: u64, activation_bytes: u64) -> u32 {
        let fit = total_bytes / 100 * SAFETY_PERCENT / activation_bytes.max(1);
        u32::try_from(fit).unwrap_or(u32::MAX).clamp(MIN_BATCH, MAX_BATCH)
    }

    /// Execution streams for a card of so much memory.
    pub fn streams(total_bytes: u64) -> u32 {
        match gigabytes(total_bytes) {
            0..=4 => 2,
            5..=8 => 4,
            9..=16 => 6,
            _ => 8,
        }
    }
}

/// Memory as cards are sold: they report somewhat less.
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
    fn batches_stay_between_their_limits_and_within_the_memory() {
        assert_eq!(Tuning::max_batch(0, 1), 32);
        assert_eq!(Tuning::max_batch(u64::MAX, 0), 256);
        // 100 texts of 1 MiB fill 70% of 143 MiB.
        assert_eq!(Tuning::max_batch(mib(143), mib(1)), 100);
        let small = Tuning::of(mib(1500), (6, 1));
        assert_eq!((small.batch, small.min_batch, small.max_batch), (87, 32, 87));
        let large = Tuning::of(mib(81559), (9, 0));
        assert_eq!((large.batch, large.max_batch), (128, 256));
    }

    #[test]
    fn batches_are_made_ready_ahead_from_volta_on() {
        let prefetch =
            [(6, 1), (7, 0), (7, 5), (12, 0)].map(|capability| Tuning::of(mib(8188), capability).prefetch);
        assert_eq!(prefetch, [1, 2, 2, 2]);
    }
}
