use super::*;
use crate::{candidates::Candidates, rotation::Random};
use proptest::prelude::*;

/// Numbers in -1..1.
fn numbers(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| (random.next() >> 40) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Codes of `blocks` blocks of random rows, the rows `[16 * blocks, 32 / depth * words]` themselves, and a rotation.
struct Coded {
    rotation: Rotation,
    rows: Vec<f32>,
    bits: Vec<Word>,
    factors: Vec<Factors>,
}

fn coded(kernel: Kernel, random: &mut Random, words: usize, depth: usize, blocks: usize, l2: bool) -> Coded {
    let width = 32 / depth * words;
    let rotation = Rotation::new(width, 3);
    let rows = numbers(random, ROWS * blocks * width);
    let mut bits = vec![[0; ROWS]; words * blocks];
    let mut factors = Vec::new();
    for (rows, bits) in rows.chunks_exact(ROWS * width).zip(bits.chunks_exact_mut(words)) {
        let mut tile: Vec<Lane> =
            (0..width).map(|dim| std::array::from_fn(|row| rows[row * width + dim])).collect();
        let half_square = if l2 { 1.0 } else { 0.0 };
        factors.push(kernel.encode(&rotation, &mut tile, &vec![0.0; width], half_square, bits));
    }
    Coded { rotation, rows, bits, factors }
}

/// The bits a dimension that there are.
fn depths() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(2), Just(4)]
}

/// Whether codes are the same but for numbers so near to the border of two that the rounding of a rotation decides.
fn near_codes(a: &[Word], b: &[Word], depth: usize) -> bool {
    let numbers = |word: &u32| {
        let word = *word;
        (0..32 / depth).map(move |at| word >> (at * depth) & ((1 << depth) - 1))
    };
    let pairs = a.iter().flatten().flat_map(numbers).zip(b.iter().flatten().flat_map(numbers));
    let apart = pairs.clone().filter(|(a, b)| a != b).count();
    pairs.clone().all(|(a, b)| a.abs_diff(b) <= 1) && apart * 1000 <= pairs.count()
}

fn rotated(kernel: Kernel, rotation: &Rotation, query: &[f32]) -> Vec<f32> {
    let mut tile: Vec<[f32; 1]> = query.iter().map(|&v| [v]).collect();
    kernel.rotate(rotation, &mut tile);
    tile.into_iter().flatten().collect()
}

proptest! {
    /// Every kernel makes the same codes but for the rounding of their factors, and the same estimates
    /// of the same codes to the last bit.
    #[test]
    fn kernels_agree(words in 1usize..14, depth in depths(), blocks in 1usize..12, queries in 1usize..7, seed: u64, l2: bool) {
        let mut random = Random(seed);
        let coded = coded(Kernel::Scalar, &mut random, words, depth, blocks, l2);
        let queries: Vec<Query> = (0..queries).map(|_| {
            let query = numbers(&mut random, coded.rotation.width());
            Query::new(&rotated(Kernel::Scalar, &coded.rotation, &query), depth)
        }).collect();
        let limit = 1 + (random.next() % 40) as usize;
        let odd = |place: usize| place % 2 == 1;
        let found = |kernel: Kernel, accept: Option<Accept<'_>>| -> Vec<Vec<u32>> {
            let mut found = vec![Candidates::new(limit); queries.len()];
            let mut targets: Vec<Target<'_>> = queries.iter().zip(&mut found)
                .map(|(query, found)| Target { query, found }).collect();
            let scan = Scan { kernel, words, bits: &coded.bits, factors: &coded.factors };
            // Two runs, the first of which ends within a strip.
            let runs = [0..blocks / 2, blocks / 2..blocks].map(|blocks| Run { blocks, base: 0.25 });
            scan.run(&runs, &mut targets, accept);
            found.into_iter().map(|found| found.into_sorted().map(|(_, place)| place).collect()).collect()
        };
        for kernel in kernels() {
            for accept in [None, Some(&odd as Accept<'_>)] {
                prop_assert_eq!(found(kernel, accept), found(Kernel::Scalar, accept), "{:?}", kernel);
            }
            prop_assert!(found(kernel, Some(&odd)).iter().flatten().all(|place| place % 2 == 1));
            let mut again = Random(seed);
            let again = self::coded(kernel, &mut again, words, depth, blocks, l2);
            prop_assert!(near_codes(&again.bits, &coded.bits, depth));
            for (a, b) in again.factors.iter().zip(&coded.factors) {
                let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-3 * (1.0 + b.abs()));
                prop_assert!(near(&a.add, &b.add) && near(&a.scale, &b.scale));
            }
        }
    }

    /// Estimates scatter about the true scores as the theory says, on every kernel.
    #[test]
    fn estimates_are_unbiased(seed: u64, depth in depths(), l2: bool) {
        let (words, blocks, width) = (8 * depth, 8, 256);
        let mut random = Random(seed);
        let coded = coded(Kernel::detect(), &mut random, words, depth, blocks, l2);
        let query = numbers(&mut random, width);
        let table = Query::new(&rotated(Kernel::detect(), &coded.rotation, &query), depth);
        let truth: Vec<f64> = coded.rows.chunks_exact(width).map(|row| {
            let dot: f64 = row.iter().zip(&query).map(|(a, b)| f64::from(a * b)).sum();
            let square: f64 = row.iter().map(|v| f64::from(v * v)).sum();
            if l2 { dot - square / 2.0 } else { dot }
        }).collect();
        let estimates: Vec<f64> = (0..blocks).flat_map(|block| {
            let mut out = [[[0.0; ROWS]]];
            let (bits, factors) = (&coded.bits[block * words..][..words], &coded.factors[block..=block]);
            // SAFETY: it needs no registers.
            unsafe {
                <scalar::Scalar as scan::Strip>::strip::<1, 1>(bits, factors, 0.0, [&table], [0.0], &mut out)
            };
            out[0][0].map(f64::from)
        }).collect();
        let errors: Vec<f64> = estimates.iter().zip(&truth).map(|(a, b)| a - b).collect();
        let mean = errors.iter().sum::<f64>() / errors.len() as f64;
        let deviation = (errors.iter().map(|e| e * e).sum::<f64>() / errors.len() as f64).sqrt();
        // |row| and |query| are the root of width / 3. The root of pi / 2 - 1 is 0.76; of two and four bits a share of
        // .1188 and .01154 of the square of a number is lost (Max 1960), to which comes what the tables round off.
        let lost = match depth {
            1 => 0.76,
            2 => 0.365,
            _ => 0.125,
        };
        let expected = lost * width as f64 / 3.0 / (width as f64).sqrt();
        prop_assert!((0.6 * expected..1.5 * expected).contains(&deviation), "{deviation}, not {expected}");
        prop_assert!(mean.abs() < expected, "{mean}");
    }
}

/// So wide that sums of 16 bits overflow, with every sign set and every entry at its greatest.
#[test]
fn wide_codes_do_not_overflow() {
    let words = 300;
    let query = Query::new(&vec![1.0; 32 * words], 1);
    let bits = vec![[u32::MAX; ROWS]; words];
    let factors = [Factors { add: [0.0; ROWS], scale: [1.0; ROWS] }];
    for kernel in kernels() {
        let mut found = Candidates::new(ROWS);
        let target = Target { query: &query, found: &mut found };
        Scan { kernel, words, bits: &bits, factors: &factors }.run(
            &[Run { blocks: 0..1, base: 0.0 }],
            &mut [target],
            None,
        );
        let mut low = Candidates::new(1);
        low.offer(std::iter::once(32.0 * words as f32 - 1.0), &[0]);
        low.merge(found);
        assert_eq!(low.into_sorted().next(), Some((32.0 * words as f32, 0)), "{kernel:?}");
    }
}

/// A query that is the mean, and one that is out of all bounds, find something and do not panic.
#[test]
fn odd_queries() {
    let coded = coded(Kernel::Scalar, &mut Random(1), 2, 1, 2, false);
    for query in [vec![0.0; 64], vec![f32::MAX; 64], vec![f32::NAN; 64]] {
        let query = Query::new(&query, 1);
        for kernel in kernels() {
            let mut found = Candidates::new(4);
            let target = Target { query: &query, found: &mut found };
            Scan { kernel, words: 2, bits: &coded.bits, factors: &coded.factors }.run(
                &[Run { blocks: 0..2, base: 0.0 }],
                &mut [target],
                None,
            );
            assert!(found.into_sorted().count() <= 4);
        }
    }
}
