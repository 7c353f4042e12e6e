//! A random rotation in `O(width log width)`: flips of signs, Walsh-Hadamard transforms and, where the
//! width is no power of two, transforms of its two ends in turn with a step that mixes the halves (the
//! "FHT-Kac" rotation of the RaBitQ library, arXiv:2409.09913).
//!
//! Sixteen vectors are turned at once, a number of each in one [`Lane`], so that every step is the same
//! for all of them and the compiler has whole registers to work on.

/// Vectors that are turned at once.
pub(crate) const LANES: usize = 16;

/// One dimension of [`LANES`] vectors.
pub(crate) type Lane = [f32; LANES];

/// Rounds of signs and transform.
const ROUNDS: usize = 4;

/// A rotation of vectors of one width, the same for the same seed on every machine.
#[derive(Debug)]
pub(crate) struct Rotation {
    width: usize,
    /// `[ROUNDS, width]` row-major, each 1 or -1.
    signs: Vec<f32>,
}

impl Rotation {
    /// `width` is even.
    pub(crate) fn new(width: usize, seed: u64) -> Self {
        let mut random = Random(seed);
        let signs = (0..ROUNDS * width).map(|_| if random.next() >> 63 == 1 { 1.0 } else { -1.0 });
        Self { width, signs: signs.collect() }
    }

    pub(crate) fn width(&self) -> usize {
        self.width
    }

    /// Turns the vectors of a tile, `[width]` lanes.
    ///
    /// # Panics
    /// Where the tile has another width.
    #[inline(always)]
    pub(crate) fn apply<const L: usize>(&self, tile: &mut [[f32; L]]) {
        assert!(tile.len() == self.width);
        // The greatest power of two that fits.
        let span = 1 << self.width.ilog2();
        for (round, signs) in self.signs.chunks_exact(self.width).enumerate() {
            for (lane, &sign) in tile.iter_mut().zip(signs) {
                lane.iter_mut().for_each(|v| *v *= sign);
            }
            if round % 2 == 0 {
                hadamard(&mut tile[..span]);
            } else {
                hadamard(&mut tile[self.width - span..]);
                if span < self.width {
                    let (low, high) = tile.split_at_mut(self.width / 2);
                    low.iter_mut()
                        .zip(high)
                        .for_each(|(a, b)| butterfly(a, b, std::f32::consts::FRAC_1_SQRT_2));
                }
            }
        }
    }
}

/// The Walsh-Hadamard transform, which keeps lengths; the tile's length is a power of two.
#[inline(always)]
fn hadamard<const L: usize>(tile: &mut [[f32; L]]) {
    let length = tile.len();
    let mut half = 1;
    while half < length {
        // The last step brings the result to scale.
        let scale = if half * 2 == length { 1.0 / (length as f32).sqrt() } else { 1.0 };
        for pair in tile.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            low.iter_mut().zip(high).for_each(|(a, b)| butterfly(a, b, scale));
        }
        half *= 2;
    }
}

#[inline(always)]
fn butterfly<const L: usize>(a: &mut [f32; L], b: &mut [f32; L], scale: f32) {
    for (a, b) in a.iter_mut().zip(b) {
        (*a, *b) = ((*a + *b) * scale, (*a - *b) * scale);
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014).
#[derive(Clone, Debug)]
pub(crate) struct Random(pub(crate) u64);

impl Random {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn dot(tile: &[Lane], a: usize, b: usize) -> f64 {
        tile.iter().map(|lane| f64::from(lane[a]) * f64::from(lane[b])).sum()
    }

    proptest! {
        #[test]
        fn keeps_lengths_and_angles(width in (1usize..30).prop_map(|w| w * 32), seed: u64, content: u64) {
            let mut random = Random(content);
            let mut tile = vec![[0.0; LANES]; width];
            tile.iter_mut().flatten().for_each(|v| *v = (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0);
            let before = tile.clone();
            Rotation::new(width, seed).apply(&mut tile);
            let mut alone: Vec<[f32; 1]> = before.iter().map(|lane| [lane[3]]).collect();
            Rotation::new(width, seed).apply(&mut alone);
            prop_assert!(alone.iter().zip(&tile).all(|(one, lane)| one[0] == lane[3]));
            for b in 0..LANES {
                let (turned, kept) = (dot(&tile, 0, b), dot(&before, 0, b));
                prop_assert!((turned - kept).abs() < 1e-4 * width as f64, "{turned}, not {kept}");
            }
        }
    }

    /// A vector along one axis is spread over all of them.
    #[test]
    fn spreads() {
        for width in [32usize, 96, 384, 800] {
            let mut tile = vec![[0.0; LANES]; width];
            for lane in 0..LANES {
                tile[lane * width / LANES][lane] = 1.0;
            }
            Rotation::new(width, 7).apply(&mut tile);
            let greatest = tile.iter().flatten().fold(0.0f32, |most, v| most.max(v.abs()));
            assert!(greatest < 6.0 / (width as f32).sqrt(), "{width}: {greatest}");
        }
    }
}
