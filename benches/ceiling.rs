//! What one core can multiply and add at most, from registers alone: the ceiling under which the
//! matrix products of embedding and search run. An element is one multiplication with its addition.
//!
//! A token of all-MiniLM-L6-v2 takes 10.6 million of them in its matrix products (6 layers of
//! 4 x 384 x 384 + 2 x 384 x 1536), not counting attention, so elements a second divided by that is
//! the ceiling in tokens a second.

use criterion::{Criterion, criterion_group, criterion_main};

#[cfg(target_arch = "x86_64")]
mod x86 {
    use criterion::{Criterion, Throughput};
    use std::{arch::x86_64::*, hint::black_box, mem::transmute};

    /// Enough to hide the latency of two units.
    const SUMS: usize = 12;
    const ROUNDS: usize = 10_000;

    macro_rules! loops {
        ($name:ident, $features:literal, $zero:ident, $step:expr) => {
            #[target_feature(enable = $features)]
            fn $name() {
                let mut sums = [$zero(); SUMS];
                let (a, b) = (black_box($zero()), black_box($zero()));
                for _ in 0..ROUNDS {
                    for sum in &mut sums {
                        *sum = $step(*sum, a, b);
                    }
                    // Keeps the sums in their registers, and the loop from being folded.
                    // SAFETY: it has no instructions.
                    unsafe { std::arch::asm!("", options(nomem, nostack, preserves_flags)) };
                }
                black_box(sums);
            }
        };
    }

    loops!(f32, "avx512f", _mm512_setzero_ps, |sum, a, b| _mm512_fmadd_ps(a, b, sum));
    loops!(bf16, "avx512f,avx512bf16", _mm512_setzero_ps, |sum, a, b| {
        // SAFETY: both are 64 bytes that may hold anything.
        let (a, b) = unsafe { (transmute::<__m512, __m512bh>(a), transmute::<__m512, __m512bh>(b)) };
        _mm512_dpbf16_ps(sum, a, b)
    });
    loops!(int8, "avx512f,avx512vnni", _mm512_setzero_si512, |sum, a, b| _mm512_dpbusd_epi32(sum, a, b));

    pub(super) fn benches(criterion: &mut Criterion) {
        let mut group = criterion.benchmark_group("ceiling");
        let mut measure = |name, is_there, lanes: usize, run: unsafe fn()| {
            if is_there {
                group.throughput(Throughput::Elements((SUMS * ROUNDS * lanes) as u64));
                // SAFETY: the processor has what it needs.
                group.bench_function(name, |bencher| bencher.iter(|| unsafe { run() }));
            }
        };
        measure("f32", is_x86_feature_detected!("avx512f"), 16, f32);
        measure("bf16", is_x86_feature_detected!("avx512bf16"), 32, bf16);
        measure("int8", is_x86_feature_detected!("avx512vnni"), 64, int8);
    }
}

fn benches(criterion: &mut Criterion) {
    #[cfg(target_arch = "x86_64")]
    x86::benches(criterion);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = criterion;
}

criterion_group!(ceiling, benches);
criterion_main!(ceiling);
