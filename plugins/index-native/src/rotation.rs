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
                scale(lane, sign);
            }
            if round % 2 == 0 {
                hadamard(&mut tile[..span]);
                continue;
            }
            hadamard(&mut tile[self.width - span..]);
            if span < self.width {
                steps::<2, L>(tile, self.width / 2, std::f32::consts::FRAC_1_SQRT_2);
            }
        }
    }
}

/// The Walsh-Hadamard transform, which keeps lengths; the tile's length is a power of two.
#[inline(always)]
fn hadamard<const L: usize>(tile: &mut [[f32; L]]) {
    let length = tile.len();
    let factor = 1.0 / (length as f32).sqrt();
    let mut half = 1;
    while half < length {
        let left = length / half;
        match left {
            2 => steps::<2, L>(tile, half, factor),
            4 => steps::<4, L>(tile, half, factor),
            8 => steps::<8, L>(tile, half, factor),
            _ => steps::<8, L>(tile, half, 1.0),
        }
        half *= left.min(8);
    }
}

/// `log2(N)` steps of a transform without a look at memory between them, the first of lanes `half` apart, and the result
/// times `factor`.
#[inline(always)]
fn steps<const N: usize, const L: usize>(tile: &mut [[f32; L]], half: usize, factor: f32) {
    for part in tile.chunks_exact_mut(N * half) {
        for at in 0..half {
            let mut lanes = [[0.0; L]; N];
            for n in 0..N {
                lanes[n] = part[n * half + at];
            }
            let mut apart = 1;
            while apart < N {
                for n in 0..N {
                    if n & apart == 0 {
                        let (a, b) = (lanes[n], lanes[n + apart]);
                        lanes[n] = add(a, b);
                        lanes[n + apart] = sub(a, b);
                    }
                }
                apart *= 2;
            }
            for n in 0..N {
                scale(&mut lanes[n], factor);
                part[n * half + at] = lanes[n];
            }
        }
    }
}

#[inline(always)]
fn add<const L: usize>(mut a: [f32; L], b: [f32; L]) -> [f32; L] {
    for (a, b) in a.iter_mut().zip(b) {
        *a += b;
    }
    a
}

#[inline(always)]
fn sub<const L: usize>(mut a: [f32; L], b: [f32; L]) -> [f32; L] {
    for (a, b) in a.iter_mut().zip(b) {
        *a -= b;
    }
    a
}

#[inline(always)]
fn scale<const L: usize>(lane: &mut [f32; L], factor: f32) {
    for v in lane {
        *v *= factor;
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

    /// Files hold what was turned, so it must stay the same to the last bit.
    #[test]
    fn a_transform_is_that_of_plain_steps() {
        for length in (0..11).map(|log| 1 << log) {
            let mut random = Random(length as u64);
            let mut tile: Vec<[f32; 1]> = (0..length).map(|_| [(random.next() >> 40) as f32]).collect();
            let mut plain = tile.clone();
            let mut half = 1;
            while half < length {
                for low in (0..length).filter(|at| at & half == 0) {
                    let ([a], [b]) = (plain[low], plain[low + half]);
                    (plain[low], plain[low + half]) = ([a + b], [a - b]);
                }
                half *= 2;
            }
            let factor = 1.0 / (length as f32).sqrt();
            plain.iter_mut().flatten().for_each(|v| *v *= factor);
            hadamard(&mut tile);
            assert_eq!(tile, plain, "{length}");
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
