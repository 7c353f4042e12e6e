//! RaBitQ (Gao and Long, arXiv:2405.12497): a vector is kept as the signs of its numbers after a random
//! rotation, one bit a dimension, and two factors with which an unbiased estimate of a score is had
//! from them.
//!
//! With `g` the mean of all vectors, `c` the centroid of a row's list (`g` where there are no lists),
//! `u = R(x - c)` for the row `x`, `s` its signs and `v = R(q - g)` for the query, `<u, v>` is estimated
//! as `|u|²/|u|₁ <s, v>`. The rest of a score does not need the query's product with the row:
//!
//! - dot: `q·x = q·c + <g, x - c> + <u, v>`
//! - l2: `-|q - x|²/2 = -|q - c|²/2 + <g - c, x - c> - |u|²/2 + <u, v>`
//!
//! The first term is of the query and the list ([`Query`] and `base` of a scan), the middle ones are of
//! the row ([`Factors::add`]). Cosine is the dot product of vectors of length 1.
//!
//! Over few dimensions one bit of each says little. Then `s` are not signs but numbers of two or four bits, as in Gao
//! and others' extension (arXiv:2409.09913): of the odd numbers from `1 - 2^b` to `2^b - 1` the one that is nearest to
//! the row's number, at steps that suit its length; and the estimate is `|u|²/<u, s> <s, v>`, of which the above is the
//! case of one bit.
//!
//! `<s, v>` is summed by table: for every half byte of a code, which has four dimensions of one bit, two of two or one
//! of four, the sums of all sixteen choices are kept as numbers of seven bits, so a scan looks up half a byte and adds.
//! That is André, Kermarrec, Le Scouarnec's fast scan (arXiv:1704.07355) for such codes.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "aarch64")]
mod neon;
mod scalar;
mod scan;
#[cfg(test)]
mod tests;

pub(crate) use scan::{Accept, Run, Scan, Target};

use crate::rotation::{LANES, Lane, Rotation};
use bytemuck::{Pod, Zeroable};

/// Rows of a block: their codes are interleaved word by word.
pub(crate) const ROWS: usize = LANES;

/// 32 bits of the codes of the rows of a block, the first dimension in the lowest.
pub(crate) type Word = [u32; ROWS];

/// Words of a code of `bits` a dimension, 1, 2 or 4.
pub(crate) fn words(dim: usize, bits: usize) -> usize {
    (dim * bits).div_ceil(32)
}

/// The dimensions of a code, up to which the vectors are filled up with zeros.
pub(crate) fn width(dim: usize, bits: usize) -> usize {
    words(dim, bits) * 32 / bits
}

/// The distance between the numbers of a code, half of it to the first, by which most of a number with a normal
/// distribution of deviation 1 is kept (Max 1960).
fn step(bits: usize) -> f32 {
    match bits {
        1 => 1.596,
        2 => 0.996,
        _ => 0.335,
    }
}

/// What an estimate needs of the rows of a block beside their signs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub(crate) struct Factors {
    /// Negative infinity for a place without a row.
    pub(crate) add: [f32; ROWS],
    pub(crate) scale: [f32; ROWS],
}

/// Which registers do the work; chosen at run time, so that one build fits every processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    /// With VBMI and VNNI, so from Ice Lake and Zen 4 on.
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    #[cfg_attr(all(target_arch = "aarch64", not(test)), expect(dead_code, reason = "the oracle of tests"))]
    Scalar,
}

impl Kernel {
    /// The best for this processor.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if avx512::detected() {
                return Self::Avx512;
            }
            if avx2::detected() {
                return Self::Avx2;
            }
            Self::Scalar
        }
        #[cfg(target_arch = "aarch64")]
        return Self::Neon;
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        Self::Scalar
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            #[cfg(target_arch = "aarch64")]
            Self::Neon => "neon",
            Self::Scalar => "scalar",
        }
    }

    /// Encodes a block. `tile` holds `x - c` of its rows, [`width`] lanes, and is used up;
    /// `shift` is `g` (cosine, dot) or `g - c` (l2), as wide; `half_square` is 1 under l2, else 0.
    pub(crate) fn encode(
        self,
        rotation: &Rotation,
        tile: &mut [Lane],
        shift: &[f32],
        half_square: f32,
        bits: &mut [Word],
    ) -> Factors {
        match self {
            // SAFETY: `detect` has seen the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 => unsafe { avx2::encode(rotation, tile, shift, half_square, bits) },
            _ => encode(rotation, tile, shift, half_square, bits),
        }
    }

    /// Turns the vectors of a tile, `q - g` of queries.
    pub(crate) fn rotate<const L: usize>(self, rotation: &Rotation, tile: &mut [[f32; L]]) {
        match self {
            // SAFETY: `detect` has seen the features.
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 | Self::Avx2 => unsafe { avx2::rotate(rotation, tile) },
            _ => rotation.apply(tile),
        }
    }
}

/// See [`Kernel::encode`]. Every step is for all rows at once, so the compiler makes registers of it: of AVX2 also where
/// there are wider ones, for of these it makes slower code (a quarter to a third fewer vectors a second built).
#[inline(always)]
fn encode(
    rotation: &Rotation,
    tile: &mut [Lane],
    shift: &[f32],
    half_square: f32,
    bits: &mut [Word],
) -> Factors {
    let mut add = [0.0; ROWS];
    for (lane, &shift) in tile.iter().zip(shift) {
        for (add, v) in add.iter_mut().zip(lane) {
            *add += shift * v;
        }
    }
    rotation.apply(tile);
    let mut squares = [0.0f32; ROWS];
    for lane in tile.iter() {
        squares.iter_mut().zip(lane).for_each(|(square, v)| *square += v * v);
    }
    let depth = 32 * bits.len() / tile.len();
    let half = (1 << (depth - 1)) as f32;
    let mut inverse = [0.0; ROWS];
    for (inverse, square) in inverse.iter_mut().zip(squares) {
        let step = (square / tile.len() as f32).sqrt() * step(depth);
        *inverse = if step > 0.0 { 1.0 / step } else { 0.0 };
    }
    // The lowest bits of a number that is added to this are its own.
    const WHOLE: f32 = (1 << 23) as f32;
    let mask = (1 << depth) - 1;
    let mut sums = [0.0f32; ROWS];
    for (word, lanes) in bits.iter_mut().zip(tile.chunks_exact(32 / depth)) {
        let mut codes = [0; ROWS];
        for (at, lane) in lanes.iter().enumerate() {
            for row in 0..ROWS {
                let number = (lane[row] * inverse[row] + half).floor().clamp(0.0, 2.0 * half - 1.0);
                sums[row] += lane[row] * (2.0 * (number - half) + 1.0);
                codes[row] |= ((number + WHOLE).to_bits() & mask) << (depth * at);
            }
        }
        *word = codes;
    }
    let mut scale = [0.0; ROWS];
    for row in 0..ROWS {
        add[row] -= 0.5 * half_square * squares[row];
        // The centroid itself has no direction; its estimate is its factor alone.
        scale[row] = if sums[row] > 0.0 { squares[row] / sums[row] } else { 0.0 };
    }
    Factors { add, scale }
}

/// A query as a scan looks it up.
#[derive(Clone, Debug)]
pub(crate) struct Query {
    tables: Vec<Table>,
    /// `<s, v> = mul * sum of the entries + add`.
    mul: f32,
    add: f32,
}

/// The sums of the dimensions of a word: entry `16 * byte + nibble` of `low` is for the lower nibble of a byte of
/// a row's word, that of `high` for the upper one. None exceeds [`ENTRY_MAX`], so that the two add up
/// in a byte.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug)]
struct Table {
    low: [u8; 64],
    high: [u8; 64],
}

const ENTRY_MAX: f32 = 127.0;

impl Query {
    /// `rotated` is `v`, [`width`] numbers, for codes of `bits` a dimension.
    pub(crate) fn new(rotated: &[f32], bits: usize) -> Self {
        let (dims, most) = (4 / bits, ((1 << bits) - 1) as f32);
        let range = |group: &[f32]| most * group.iter().map(|v| v.abs()).sum::<f32>();
        let widest = rotated.chunks_exact(dims).map(range).fold(0.0, f32::max);
        let step = widest / ENTRY_MAX;
        // A query at the mean has only zeros; so has one that is out of all bounds.
        let inverse = if step > 0.0 && step.is_finite() { 1.0 / step } else { 0.0 };
        // What each of the four bits of a nibble adds to its entry, and where it is set.
        let set: [[f32; 16]; 4] =
            std::array::from_fn(|bit| std::array::from_fn(|nibble| (nibble >> bit & 1) as f32));
        let mut least = 0.0;
        let mut fill = |entries: &mut [u8], group: &[f32]| {
            let low: f32 = group.iter().map(|v| most * v.min(0.0)).sum();
            let mut sums = [0.5 - low * inverse; 16];
            for (bit, set) in set.iter().enumerate() {
                let adds = group[bit / bits] * (1 << (bit % bits)) as f32 * inverse;
                sums.iter_mut().zip(set).for_each(|(sum, set)| *sum += adds * set);
            }
            for (entry, sum) in entries.iter_mut().zip(sums) {
                *entry = sum.clamp(0.0, ENTRY_MAX) as u8;
            }
            least += low;
        };
        let mut tables = vec![Table { low: [0; 64], high: [0; 64] }; rotated.len() * bits / 32];
        for (table, numbers) in tables.iter_mut().zip(rotated.chunks_exact(8 * dims)) {
            for (byte, numbers) in numbers.chunks_exact(2 * dims).enumerate() {
                let (low, high) = numbers.split_at(dims);
                fill(&mut table.low[16 * byte..][..16], low);
                fill(&mut table.high[16 * byte..][..16], high);
            }
        }
        Self { tables, mul: 2.0 * step, add: 2.0 * least - most * rotated.iter().sum::<f32>() }
    }
}

/// Every kernel that this processor can run.
#[cfg(test)]
pub(crate) fn kernels() -> Vec<Kernel> {
    let mut kernels = vec![Kernel::Scalar];
    #[cfg(target_arch = "x86_64")]
    {
        if avx2::detected() {
            kernels.push(Kernel::Avx2);
        }
        if avx512::detected() {
            kernels.push(Kernel::Avx512);
        }
    }
    #[cfg(target_arch = "aarch64")]
    kernels.push(Kernel::Neon);
    kernels
}
