use super::*;
use crate::int8::{Panels, Queries, block_bytes, interleave, stride};
use proptest::prelude::*;

/// `n` bytes, half of them extreme ones.
fn bytes(n: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut random = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state >> 32
    };
    let extremes = [0, 1, 128, 255];
    (0..n)
        .map(|_| match random() % 8 {
            extreme @ 0..4 => extremes[extreme as usize],
            _ => random() as u8,
        })
        .collect()
}

proptest! {
    /// Every kernel gives the numbers of the definition, for extreme values too.
    #[test]
    fn all_kernels_agree(lanes in 1usize..14, n in 0usize..70, m in 0usize..20, seed: u64) {
        let width = lanes * 64;
        let codes = bytes((n + m) * width, seed);
        let rows = codes.len() / width;
        let half = vec![0; rows];
        let codes = Codes::new(width, &codes, &half).unwrap();
        let columns: Vec<u32> = (m as u32..rows as u32).collect();
        let value = |code: u8| i32::from((code.max(1) ^ 0x80) as i8);
        let stored = |code: u8| i32::from(code) - 128;
        let want = |query: usize, column: u32| -> i32 {
            let pairs = codes.row(query).iter().zip(codes.row(column as usize));
            pairs.map(|(&a, &b)| value(a) * stored(b)).sum()
        };
        for kernel in Kernel::available() {
            let mut queries = Queries::new(width);
            (0..m).for_each(|row| codes.push_query(kernel, row, &mut queries));
            let mut panels = Panels::new(width);
            panels.pack(&codes, &columns);
            let step = panels.padded();
            let mut product = vec![0; m * step];
            panels.dots(kernel, &queries, 0..m, &mut product);
            let mut dots = vec![0; columns.len()];
            let mut against = vec![0; m];
            for (at, &column) in columns.iter().enumerate() {
                kernel.against(codes.row(column as usize), &queries, 0..m, &mut against);
                for (query, &got) in against.iter().enumerate() {
                    prop_assert_eq!(got, want(query, column), "{:?} {}", kernel, at);
                }
            }
            for query in 0..m {
                kernel.dots(&codes, queries.get(query), &columns, &mut dots);
                for (at, &column) in columns.iter().enumerate() {
                    prop_assert_eq!(dots[at], want(query, column), "{:?}", kernel);
                    prop_assert_eq!(product[query * step + at], want(query, column), "{:?}", kernel);
                }
            }
        }
    }

    /// Rows side by side have the same products as one by one, and those that are near are found.
    #[test]
    fn all_kernels_compare_blocks_alike(dim in 1usize..150, pairs in 1usize..20, limit: i16, seed: u64) {
        let (blocks, limit) = (2 * pairs, i32::from(limit) * 4);
        let (width, n) = (stride(dim), blocks * ROWS);
        let mut codes = bytes((n + 1) * width, seed);
        codes.chunks_exact_mut(width).for_each(|code| code[dim..].fill(128));
        let half: Vec<i32> = bytes(n + 1, !seed).into_iter().map(|v| i32::from(v) * 500).collect();
        let rows = Codes::new(width, &codes, &half).unwrap();
        let mut laid = vec![0; blocks * block_bytes(dim)];
        for (codes, block) in codes.chunks_exact(ROWS * width).zip(laid.chunks_exact_mut(block_bytes(dim))) {
            interleave(codes, block);
        }
        for kernel in Kernel::available() {
            let mut queries = Queries::new(width);
            rows.push_query(kernel, n, &mut queries);
            let ids: Vec<u32> = (0..n as u32).collect();
            let (mut want, mut got, mut near) = (vec![0; n], vec![0; n], Vec::new());
            kernel.dots(&rows, queries.get(0), &ids, &mut want);
            kernel.block_dots(&laid, queries.get(0), &mut got);
            prop_assert_eq!(&got, &want, "{:?}", kernel);
            kernel.within(&got, &half[..n], n - 3, limit, &mut near);
            let all = ids[..n - 3].iter().map(|&row| (half[row as usize] - want[row as usize], row));
            prop_assert_eq!(near, all.filter(|row| row.0 <= limit).collect::<Vec<_>>(), "{:?}", kernel);
        }
    }

    /// Every kernel makes the same codes.
    #[test]
    fn all_kernels_encode_alike(
        (row, center) in (1usize..200).prop_flat_map(|dim| {
            let number = prop_oneof![-1.0f32..1.0, Just(f32::MAX), Just(f32::MIN), Just(0.0)];
            (prop::collection::vec(number, dim), prop::collection::vec(-1.0f32..1.0, dim))
        }),
        scale in 0.1f32..500.0,
    ) {
        for kernel in Kernel::available() {
            let mut code = vec![7; stride(row.len())];
            let square = kernel.encode(&row, &center, scale, &mut code);
            for (at, &code) in code.iter().enumerate() {
                let value = row.get(at).map_or(0.0, |v| (v - center[at]) * scale);
                let want = value.clamp(-127.0, 127.0).round_ties_even();
                prop_assert_eq!(f32::from(code) - 128.0, want, "{:?}", kernel);
            }
            let want: i32 = code.iter().map(|&code| (i32::from(code) - 128).pow(2)).sum();
            prop_assert_eq!(square, want);
        }
    }
}

proptest! {
    #[test]
    fn all_kernels_find_the_nearest(
        pairs in prop::collection::vec((-50i32..50, -50i32..50), 0..400),
        // With 0 all are as near.
        spread in prop::sample::select(vec![0, 1, 1000]),
        k in 0usize..20,
        skip in 0usize..500,
    ) {
        let count = pairs.len();
        let mut dots: Vec<i32> = pairs.iter().map(|pair| pair.0 * spread).collect();
        let mut half: Vec<i32> = pairs.iter().map(|pair| pair.1 * spread.min(1)).collect();
        let mut want: Vec<(i32, u32)> = (0..count)
            .filter(|&column| column != skip)
            .map(|column| (half[column] - dots[column], column as u32))
            .collect();
        want.sort_unstable();
        want.resize(k.max(want.len()), (i32::MAX, u32::MAX));
        want.truncate(k);
        // What lies beyond the columns would be nearer than all.
        dots.resize(count.next_multiple_of(32), 1000);
        half.resize(count.next_multiple_of(32), -1000);
        for kernel in Kernel::available() {
            let mut nearest = vec![(7, 7); k];
            kernel.nearest(&dots, &half, count, skip, &mut nearest);
            prop_assert_eq!(&nearest, &want, "{:?}", kernel);
        }
    }
}

/// The widest rows of the most extreme values: no sum may overflow.
#[test]
fn the_widest_rows_fit() {
    let width = crate::int8::MAX_DIM;
    let codes: Vec<u8> = [1, 255].iter().flat_map(|&code| vec![code; width]).collect();
    let half = vec![127 * 127 * width as i32 / 2; 2];
    let codes = Codes::new(width, &codes, &half).unwrap();
    for kernel in Kernel::available() {
        let mut queries = Queries::new(width);
        codes.push_query(kernel, 0, &mut queries);
        let mut dots = [0; 2];
        kernel.dots(&codes, queries.get(0), &[0, 1], &mut dots);
        let square = 127 * 127 * width as i32;
        assert_eq!(dots, [square, -square], "{kernel:?}");
        assert_eq!(half[0] + half[1] - dots[1], 2 * square, "{kernel:?}");
    }
}
