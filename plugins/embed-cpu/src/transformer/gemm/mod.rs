//! Matrix products: rows of activations by a packed matrix, in f32, bf16 or int8.
//!
//! All precisions share one layout. A *unit* is four bytes along the inner dimension: one f32, two bf16
//! or four int8. The left side stays row-major. The right side is packed into panels of up to 64
//! columns; a panel holds the units of its columns, step after step, so that one step is a run of memory:
//! `[panels][steps][columns]`. A tile of up to 6 x 64 sums stands in registers while its panel streams
//! through (Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication", 2008).
//!
//! The sums of a row are added in the same order whatever rows stand beside it, so vectors do not
//! depend on their neighbours in a batch, to the bit.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

use super::cpu::Isa;
use serde::Deserialize;

/// How the numbers of a product are stored. Sums are f32, those of int8 are exact.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Precision {
    F32,
    Bf16,
    /// Left sides are 0 to 255 with a scale and an offset a row, right sides -127 to 127 with a scale
    /// a column, both for each [`GROUP`] of steps.
    Int8,
}

impl Precision {
    /// The name for reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Int8 => "int8",
        }
    }

    /// Numbers in a unit.
    pub(crate) fn per_unit(self) -> usize {
        match self {
            Self::F32 => 1,
            Self::Bf16 => 2,
            Self::Int8 => 4,
        }
    }
}

/// Rows of a tile, at most.
pub(crate) const ROWS: usize = 6;
/// Columns of a panel, at most.
pub(crate) const COLUMNS: usize = 64;
/// Columns of a panel are a multiple of this many: the numbers of the widest register.
pub(crate) const VECTOR: usize = 16;

/// Steps that int8 sums before they are scaled: 192 numbers of the inner dimension have a scale of their
/// own on both sides, so that a large one makes only those near it coarse. With a scale a row instead, the
/// least cosine of all-MiniLM-L6-v2 over the reference texts is .9961, with this .9976; groups of 128 numbers give
/// .9985 and take a fifth more time.
pub(crate) const GROUP: usize = 48;

/// The sums of up to [`ROWS`] x [`COLUMNS`].
#[repr(align(64))]
pub(crate) struct Tile(pub(crate) [[f32; COLUMNS]; ROWS]);

impl Tile {
    pub(crate) const ZERO: Self = Self([[0.0; COLUMNS]; ROWS]);
}

/// Sums `steps` units of some rows and columns, both fixed by the function, into `out`: `left` is the
/// first row, each `stride` units after the last; `right` is a panel.
///
/// # Safety
/// The CPU has the instructions; `left` holds the rows, `right` the panel.
type TileFn = unsafe fn(left: *const u32, stride: usize, right: *const u32, steps: usize, out: &mut Tile);

/// What multiplies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kernel {
    precision: Precision,
    /// By rows and vectors, each less one; none means the portable one.
    tiles: Option<&'static [[TileFn; COLUMNS / VECTOR]; ROWS]>,
}

impl Kernel {
    /// The kernel of `precision` on `isa`; none where it has no instructions that are faster than f32.
    /// The portable one has all.
    pub(crate) fn new(precision: Precision, isa: Isa) -> Option<Self> {
        #[cfg(target_arch = "x86_64")]
        let tiles = match (isa, precision) {
            (Isa::Portable, _) => None,
            (Isa::Avx512, Precision::F32) => Some(&avx512::F32),
            (Isa::Avx512, Precision::Bf16) if is_x86_feature_detected!("avx512bf16") => Some(&avx512::BF16),
            (Isa::Avx512, Precision::Int8) if is_x86_feature_detected!("avx512vnni") => Some(&avx512::INT8),
            (Isa::Avx2, Precision::F32) => Some(&avx2::F32),
            (Isa::Avx2, Precision::Int8) if is_x86_feature_detected!("avxvnni") => Some(&avx2::INT8),
            _ => return None,
        };
        #[cfg(not(target_arch = "x86_64"))]
        let (Isa::Portable, tiles) = (isa, None);
        Some(Self { precision, tiles })
    }

    pub(crate) fn precision(self) -> Precision {
        self.precision
    }

    /// Steps that a tile sums at once, of `steps`.
    fn group(self, steps: usize) -> usize {
        if self.precision == Precision::Int8 { GROUP } else { steps.max(1) }
    }

    /// The product of the first `rows` rows of `left` and `right`, tile by tile.
    #[inline(always)]
    pub(crate) fn product<'a>(self, left: Left<'a>, rows: usize, right: Panels<'a>) -> Product<'a> {
        let Panels { steps, columns, units } = right;
        assert!(rows == 0 || (rows - 1) * left.stride + steps <= left.units.len());
        assert!(units.len() >= Panels::len(steps, columns));
        Product { kernel: self, left, rows, right, row: 0, column: 0, group: 0 }
    }
}

/// A product that is being computed. No closure is given the tiles, because it would not be compiled for
/// the instructions of its caller.
#[derive(Debug)]
pub(crate) struct Product<'a> {
    kernel: Kernel,
    left: Left<'a>,
    rows: usize,
    /// From the present panel on; `columns` is that of the whole.
    right: Panels<'a>,
    row: usize,
    column: usize,
    group: usize,
}

/// Where a tile stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) row: usize,
    /// Rows of the tile.
    pub(crate) tall: usize,
    pub(crate) column: usize,
    /// Which group of steps it sums: there is more than one only for int8.
    pub(crate) group: usize,
    /// Whether that is the last group.
    pub(crate) last: bool,
}

impl Product<'_> {
    /// Computes the next tile: all groups of steps of one, down a panel, then the next panel.
    #[inline(always)]
    pub(crate) fn next(&mut self, tile: &mut Tile) -> Option<Place> {
        let Self { kernel, left, rows, right: Panels { steps, columns, ref mut units }, .. } = *self;
        if self.column >= columns || rows == 0 {
            return None;
        }
        let group = kernel.group(steps);
        let first = self.group * group;
        let place = Place {
            row: self.row,
            tall: (rows - self.row).min(ROWS),
            column: self.column,
            group: self.group,
            last: first + group >= steps,
        };
        let vectors = (columns - place.column).min(COLUMNS).div_ceil(VECTOR);
        let at = left.units[place.row * left.stride + first..].as_ptr();
        let panel = units[first * vectors * VECTOR..].as_ptr();
        let (stride, part) = (left.stride, group.min(steps - first));
        // SAFETY: the features were found when the kernel was made; `product` asserted the lengths, and
        // `units` holds `steps` times the columns from this one on.
        unsafe {
            match kernel.tiles {
                Some(tiles) => tiles[place.tall - 1][vectors - 1](at, stride, panel, part, tile),
                None => {
                    let size = (place.tall, vectors);
                    portable::tile(kernel.precision, size, at, stride, panel, part, tile);
                }
            }
        }
        self.group += 1;
        if place.last {
            self.group = 0;
            self.row += place.tall;
        }
        if self.row == rows {
            self.row = 0;
            self.column += COLUMNS;
            *units = &units[steps * vectors * VECTOR..];
        }
        Some(place)
    }
}

/// The left side of a product, row-major.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Left<'a> {
    pub(crate) units: &'a [u32],
    /// Units from a row to the next.
    pub(crate) stride: usize,
}

/// The right side of a product, packed. Columns beyond `columns` up to a multiple of [`VECTOR`] exist
/// in memory.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Panels<'a> {
    pub(crate) units: &'a [u32],
    /// Units of a column.
    pub(crate) steps: usize,
    pub(crate) columns: usize,
}

impl Panels<'_> {
    /// Units that a right side of `columns` columns takes.
    pub(crate) fn len(steps: usize, columns: usize) -> usize {
        steps * columns.next_multiple_of(VECTOR)
    }
}

/// Packs `columns` columns into `out`, `[Panels::len]`. `unit(column, step)` reads one unit.
#[inline(always)]
pub(crate) fn pack(steps: usize, columns: usize, unit: impl Fn(usize, usize) -> u32, out: &mut [u32]) {
    let mut rest = out;
    for first in (0..columns).step_by(COLUMNS) {
        let wide = (columns - first).min(COLUMNS);
        let width = wide.next_multiple_of(VECTOR);
        let panel;
        (panel, rest) = rest.split_at_mut(steps * width);
        for (step, run) in panel.chunks_exact_mut(width).enumerate() {
            for (column, out) in run[..wide].iter_mut().enumerate() {
                *out = unit(first + column, step);
            }
            run[wide..].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Units that are sane numbers in every precision.
    fn units(precision: Precision, count: usize, mut seed: u64) -> Vec<u32> {
        let mut next = move || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 33) as u32
        };
        let mut number = || (next() as f32 / (1_u32 << 31) as f32 - 0.5).to_bits();
        (0..count)
            .map(|_| match precision {
                Precision::F32 => number(),
                Precision::Bf16 => number() >> 16 | number() & 0xffff_0000,
                Precision::Int8 => number() << 4 ^ number() << 17,
            })
            .collect()
    }

    fn product(kernel: Kernel, left: Left, rows: usize, right: Panels) -> Vec<f32> {
        let mut out = vec![0.0; rows * right.columns];
        let (mut product, mut tile) = (kernel.product(left, rows, right), Tile::ZERO);
        while let Some(Place { row, tall, column, .. }) = product.next(&mut tile) {
            let wide = (right.columns - column).min(COLUMNS);
            for (at, sums) in tile.0.iter().enumerate().take(tall) {
                for (out, sum) in out[(row + at) * right.columns + column..][..wide].iter_mut().zip(sums) {
                    *out += sum;
                }
            }
        }
        out
    }

    proptest! {
        #[test]
        fn kernels_agree_with_the_portable_one(
            (rows, columns, steps) in (1_usize..20, 1_usize..150, 0_usize..70),
            spare in 0_usize..3,
            seed in any::<u64>(),
        ) {
            for precision in [Precision::F32, Precision::Bf16, Precision::Int8] {
                let stride = steps + spare;
                let left = units(precision, rows * stride, seed);
                let left = Left { units: &left, stride };
                let right = units(precision, columns * steps, !seed);
                let mut packed = vec![0; Panels::len(steps, columns)];
                pack(steps, columns, |column, step| right[column * steps + step], &mut packed);
                let right = Panels { units: &packed, steps, columns };
                let oracle = product(Kernel::new(precision, Isa::Portable).unwrap(), left, rows, right);
                for kernel in Isa::available().filter_map(|isa| Kernel::new(precision, isa)) {
                    let all = product(kernel, left, rows, right);
                    for (sum, oracle) in all.iter().zip(&oracle) {
                        prop_assert!((sum - oracle).abs() <= 1e-4, "{kernel:?}: {sum} {oracle}");
                    }
                    // A row alone has the same bits as among others.
                    let last = Left { units: &left.units[(rows - 1) * stride..], stride };
                    prop_assert_eq!(&all[(rows - 1) * columns..], product(kernel, last, 1, right));
                }
            }
        }
    }
}
