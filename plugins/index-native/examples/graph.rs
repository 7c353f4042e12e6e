//! Measures the graph alone: build, then recall and speed of search over breadths.
//!
//! `cargo run --release -p magray-index-native --example graph -- BASE.npy QUERIES.npy TRUTH.npy cosine`
//!
//! The files are of numpy: vectors `[n, dim]` as f16 or f32, the true neighbours `[m, k]` as i32.
//! Times are of the CPU, for machines are shared.
#![allow(clippy::print_stdout, clippy::unwrap_used, dead_code, unused_imports, reason = "an example")]

#[path = "../src/graph/mod.rs"]
mod graph;
#[path = "../src/int8/mod.rs"]
mod int8;

use graph::{ByCodes, Candidate, Graph, Params, Scratch, build};
use half::f16;
use int8::{Codes, Kernel, Quantizer, Queries};
use magray_plugin_api::{CallContext, Metric};
use std::{fs, time::Duration};

/// Never cancelled.
struct Context;
impl CallContext for Context {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _: u64, _: u64) {}
}

/// Rows and width of a file, and its numbers as 32 bits each.
fn load(path: &str) -> (usize, Vec<f32>) {
    let bytes = fs::read(path).unwrap();
    let header = u16::from_le_bytes([bytes[8], bytes[9]]) as usize;
    let (header, data) = bytes[10..].split_at(header);
    let header = std::str::from_utf8(header).unwrap();
    let shape = header.split('(').nth(1).unwrap().split(')').next().unwrap();
    let dim: usize = shape.split(',').nth(1).unwrap().trim().parse().unwrap();
    let numbers = match header {
        h if h.contains("<f2") => {
            data.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect()
        }
        h if h.contains("<f4") => {
            data.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
        }
        h if h.contains("<i4") => {
            data.chunks_exact(4).map(|b| i32::from_le_bytes(b.try_into().unwrap()) as f32).collect()
        }
        h => panic!("{h}"),
    };
    (dim, numbers)
}

fn normalize(dim: usize, rows: &mut [f32]) {
    for row in rows.chunks_exact_mut(dim) {
        let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
        row.iter_mut().for_each(|v| *v /= length);
    }
}

/// Seconds that this process has computed.
fn cpu() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes the time where it is told to.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

struct Counted<S>(S, usize);
impl<S: graph::Scorer> graph::Scorer for Counted<S> {
    fn score(&mut self, rows: &[u32], out: &mut [f32]) {
        self.1 += rows.len();
        self.0.score(rows, out);
    }
}

fn parameter(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |value| value.parse().unwrap())
}

/// A copy on huge pages.
fn huge<T: Copy>(of: &[T]) -> Vec<T> {
    let mut copy: Vec<T> = Vec::with_capacity(of.len() + (4 << 20) / size_of::<T>());
    // SAFETY: the range is memory that the vector has.
    unsafe {
        libc::madvise(
            copy.as_mut_ptr().cast::<u8>().wrapping_add(copy.as_ptr().cast::<u8>().align_offset(4096)).cast(),
            size_of_val(of),
            libc::MADV_HUGEPAGE,
        )
    };
    copy.extend_from_slice(of);
    copy
}

#[inline(never)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0; 16];
    let (a, a_rest) = a.as_chunks::<16>();
    let (b, b_rest) = b.as_chunks::<16>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..16 {
            sums[i] += a[i] * b[i];
        }
    }
    sums.iter().sum::<f32>() + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

fn main() {
    let args: Vec<String> = std::env::args().collect();
    let metric = match args[4].as_str() {
        "cosine" => Metric::Cosine,
        "dot" => Metric::Dot,
        _ => Metric::L2,
    };
    let (dim, mut base) = load(&args[1]);
    let (_, mut queries) = load(&args[2]);
    let (depth, truth) = load(&args[3]);
    if metric == Metric::Cosine {
        normalize(dim, &mut base);
        normalize(dim, &mut queries);
    }
    let base = huge(&base);
    let n = base.len() / dim;
    let kernel = Kernel::detect();
    let start = cpu();
    let quantizer = Quantizer::fit(dim, &base[..n.min(20_000) * dim]);
    let fitted = cpu();
    let stride = int8::stride(dim);
    let (mut bytes, mut half) = (vec![0; n * stride], vec![0; n]);
    quantizer.encode(kernel, &base, &mut bytes, &mut half);
    let (bytes, half) = (huge(&bytes), huge(&half));
    println!(
        "{n} x {dim}, {}: fit {:.2} s, encode {:.0} vectors/CPU-s",
        kernel.name(),
        fitted - start,
        n as f64 / (cpu() - fitted)
    );
    let codes = Codes::new(stride, &bytes, &half).unwrap();
    let default = Params::default();
    let params = Params {
        degree: parameter("DEGREE", default.degree),
        passes: parameter("PASSES", default.passes),
        nearest: parameter("NEAREST", default.nearest),
        leaf: parameter("LEAF", default.leaf),
        seed: default.seed,
    };
    let lift: Option<Vec<f32>> = (metric == Metric::Dot).then(|| {
        let squares: Vec<f32> = base.chunks_exact(dim).map(|row| dot(row, row)).collect();
        let most = squares.iter().fold(0.0f32, |a, &b| a.max(b));
        squares.iter().map(|square| (most - square).sqrt() * quantizer.scale()).collect()
    });
    let start = cpu();
    let section = build(&Context, kernel, codes, lift.as_deref(), &params, parameter("THREADS", 2)).unwrap();
    let took = cpu() - start;
    let section = huge(&section);
    println!("{params:?}: {:.0} vectors/CPU-s, {} twins", n as f64 / took, section[2]);
    let graph = Graph::open(n, &section).unwrap();
    let mut scratch = Scratch::default();
    {
        // The cost of a distance when nothing else is to be done.
        let mut query_codes = Queries::new(stride);
        quantizer.push_query(metric, &queries[..dim], &mut query_codes);
        let mut scorer = ByCodes::new(kernel, codes, query_codes.get(0), metric == Metric::L2);
        let mut state = 7u64;
        let start = cpu();
        let mut ids = [0; 16];
        let mut out = [0.0; 16];
        for _ in 0..20_000 {
            ids.fill_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state % n as u64) as u32
            });
            graph::Scorer::score(&mut scorer, &ids, &mut out);
        }
        println!("{:.0} ns a random row", (cpu() - start) / 320_000.0 * 1e9);
    }
    for ef in [10, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512] {
        let (mut hits, mut compared) = (0, 0);
        let mut query_codes = Queries::new(stride);
        let mut scored: Vec<Candidate> = Vec::new();
        let start = cpu();
        for (query, truth) in queries.chunks_exact(dim).zip(truth.chunks_exact(depth)) {
            query_codes.clear();
            quantizer.push_query(metric, query, &mut query_codes);
            let scorer = ByCodes::new(kernel, codes, query_codes.get(0), metric == Metric::L2);
            let mut scorer = Counted(scorer, 0);
            let found = graph.search(&mut scorer, ef, &mut scratch);
            compared += scorer.1;
            scored.clear();
            for candidate in found.iter().take(28) {
                let row = &base[candidate.row as usize * dim..][..dim];
                let near = match metric {
                    Metric::L2 => dot(row, row) / 2.0 - dot(row, query),
                    _ => -dot(row, query),
                };
                scored.push(Candidate { distance: near, row: candidate.row });
            }
            scored.sort_unstable();
            hits += scored.iter().take(10).filter(|c| truth[..10].contains(&(c.row as f32))).count();
        }
        let took = cpu() - start;
        let asked = truth.len() / depth;
        let recall = hits as f64 / (10 * asked) as f64;
        println!(
            "ef {ef}: recall@10 {recall:.4}, {:.0} queries/CPU-s, {} compared",
            asked as f64 / took,
            compared / asked
        );
        if recall > 0.999 {
            break;
        }
    }
}
