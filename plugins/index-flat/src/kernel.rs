//! Dot products of few queries with many rows, by the widest registers that the processor has.

/// Which registers do the work; chosen at run time, so that one build fits every processor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kernel {
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    /// Arrays of eight numbers, which the compiler turns into NEON, SSE2 or whatever there is.
    Portable,
}

impl Kernel {
    /// The best for this processor.
    pub(crate) fn detect() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => "avx512",
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => "avx2",
            Self::Portable => "portable",
        }
    }

    /// Writes `out[q * n + r] = dot(queries[q], rows[r])` for `queries` `[m, dim]` and `rows`
    /// `[n, dim]`, all row-major.
    ///
    /// # Panics
    /// Where the lengths do not fit.
    pub(crate) fn dots(self, dim: usize, queries: &[f32], rows: &[f32], out: &mut [f32]) {
        let n = rows.len() / dim;
        assert!(rows.len() == n * dim && queries.len().is_multiple_of(dim));
        assert!(out.len() == queries.len() / dim * n);
        if n == 0 {
            return;
        }
        // SAFETY: the lengths fit, and `detect` has seen the features that each arm needs.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Self::Avx512 => x86::dots_avx512(dim, queries, rows, out),
                #[cfg(target_arch = "x86_64")]
                Self::Avx2 => x86::dots_avx2(dim, queries, rows, out),
                Self::Portable => dots::<[f32; 8]>(dim, queries, rows, out),
            }
        }
    }
}

/// A register of numbers.
///
/// Every method is unsafe for one reason: the processor must have the registers. `load` reads `LEN`
/// numbers from the pointer, `load_first` the first `n < LEN` with zeros for the others.
trait Lanes: Copy {
    const LEN: usize;
    unsafe fn zero() -> Self;
    unsafe fn load(from: *const f32) -> Self;
    unsafe fn load_first(from: *const f32, n: usize) -> Self;
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self;
    unsafe fn sum(self) -> f32;
}

/// [`Kernel::dots`] for registers `V`.
///
/// # Safety
/// The lengths fit, there is a row, and the processor has the registers.
#[inline(always)]
unsafe fn dots<V: Lanes>(dim: usize, queries: &[f32], rows: &[f32], out: &mut [f32]) {
    let n = rows.len() / dim;
    for (queries, out) in queries.chunks(4 * dim).zip(out.chunks_mut(4 * n)) {
        // Tiles of eight sums at most: they fit the 16 registers of AVX2 and hide the latency of
        // its multiply-add.
        // SAFETY: `chunks` gives as many queries as the arm says, with a row of `out` each.
        unsafe {
            match queries.len() / dim {
                1 => strip::<V, 1, 4>(dim, queries, rows, out),
                2 => strip::<V, 2, 4>(dim, queries, rows, out),
                3 => strip::<V, 3, 2>(dim, queries, rows, out),
                _ => strip::<V, 4, 2>(dim, queries, rows, out),
            }
        }
    }
}

/// `Q` queries with all rows, `R` rows at a time, one of each of `R` equal runs of rows.
///
/// Rows of the same run follow one another, so the processor sees `R` streams and reads ahead in each.
/// `R` neighbours at a time lie in one page or two, where it does not tell them apart: a query alone
/// took 2.4 times as long so, four 1.7 times even with rows asked for ahead (AVX-512, 100,000 rows of
/// width 384; the size of the pages changed nothing).
///
/// # Safety
/// As [`dots`], for `Q` queries.
#[inline(always)]
unsafe fn strip<V: Lanes, const Q: usize, const R: usize>(
    dim: usize,
    queries: &[f32],
    rows: &[f32],
    out: &mut [f32],
) {
    let n = rows.len() / dim;
    let run = n / R;
    for at in 0..run {
        // SAFETY: `at < run` and `R * run <= n`, so every row of the tile lies in `rows`.
        let sums = unsafe { tile::<V, Q, R>(dim, run, queries.as_ptr(), rows.as_ptr().add(at * dim)) };
        for (r, sums) in sums.iter().enumerate() {
            for (q, &sum) in sums.iter().enumerate() {
                out[q * n + at + r * run] = sum;
            }
        }
    }
    for at in R * run..n {
        // SAFETY: `at < n`, so the row lies in `rows`.
        let [sums] = unsafe { tile::<V, Q, 1>(dim, 0, queries.as_ptr(), rows.as_ptr().add(at * dim)) };
        for (q, &sum) in sums.iter().enumerate() {
            out[q * n + at] = sum;
        }
    }
}

/// The dot products of `R` rows, each `run` rows behind the one before, with `Q` queries.
///
/// # Safety
/// `queries` is readable for `Q * dim` numbers, `rows` for `dim` from each of the rows, and the
/// processor has the registers.
#[inline(always)]
unsafe fn tile<V: Lanes, const Q: usize, const R: usize>(
    dim: usize,
    run: usize,
    queries: *const f32,
    rows: *const f32,
) -> [[f32; Q]; R] {
    // Loops instead of closures: a closure has not the features of the function around it, and only
    // what is inlined into that function becomes single instructions.
    let mut sums = [[0.0; Q]; R];
    // SAFETY: `at + V::LEN <= dim` in the loop and `at + rest == dim` after it, so every read is of
    // numbers that the caller vouches for.
    unsafe {
        let mut lanes = [[V::zero(); Q]; R];
        let rest = dim % V::LEN;
        for at in (0..dim - rest).step_by(V::LEN) {
            step(&mut lanes, dim, run * dim, queries.add(at), rows.add(at), None);
        }
        if rest > 0 {
            let at = dim - rest;
            step(&mut lanes, dim, run * dim, queries.add(at), rows.add(at), Some(rest));
        }
        for r in 0..R {
            for q in 0..Q {
                sums[r][q] = lanes[r][q].sum();
            }
        }
    }
    sums
}

/// Adds the products of one register, or of the `first` numbers of one, to the sums of a tile whose
/// rows begin `apart` numbers from one another.
///
/// # Safety
/// As [`tile`], for `V::LEN` or `first` numbers of each row and query.
#[inline(always)]
unsafe fn step<V: Lanes, const Q: usize, const R: usize>(
    sums: &mut [[V; Q]; R],
    dim: usize,
    apart: usize,
    queries: *const f32,
    rows: *const f32,
    first: Option<usize>,
) {
    // SAFETY: the caller's.
    unsafe {
        let mut query = [V::zero(); Q];
        for (q, query) in query.iter_mut().enumerate() {
            *query = load(queries.add(q * dim), first);
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            let row: V = load(rows.add(r * apart), first);
            for q in 0..Q {
                sums[q] = row.mul_add(query[q], sums[q]);
            }
        }
    }
}

/// # Safety
/// As [`Lanes`].
#[inline(always)]
unsafe fn load<V: Lanes>(from: *const f32, first: Option<usize>) -> V {
    // SAFETY: the caller's.
    unsafe {
        match first {
            None => V::load(from),
            Some(n) => V::load_first(from, n),
        }
    }
}

impl Lanes for [f32; 8] {
    const LEN: usize = 8;
    #[inline(always)]
    unsafe fn zero() -> Self {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: the caller vouches for eight numbers.
        unsafe { from.cast::<Self>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: the caller vouches for `n` numbers.
        std::array::from_fn(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 })
    }
    #[inline(always)]
    unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
        // Not f32::mul_add, which calls a function where there is no such instruction.
        std::array::from_fn(|i| self[i] * factor[i] + sum[i])
    }
    #[inline(always)]
    unsafe fn sum(self) -> f32 {
        self.iter().sum()
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{Lanes, dots};
    use std::arch::x86_64::*;

    /// # Safety
    /// As [`dots`].
    #[target_feature(enable = "avx512f")]
    pub(super) unsafe fn dots_avx512(dim: usize, queries: &[f32], rows: &[f32], out: &mut [f32]) {
        // SAFETY: the caller's.
        unsafe { dots::<__m512>(dim, queries, rows, out) }
    }

    /// # Safety
    /// As [`dots`].
    #[target_feature(enable = "avx2,fma")]
    pub(super) unsafe fn dots_avx2(dim: usize, queries: &[f32], rows: &[f32], out: &mut [f32]) {
        // SAFETY: the caller's.
        unsafe { dots::<__m256>(dim, queries, rows, out) }
    }

    // SAFETY of every block below: the caller vouches for the registers and for what is read.
    #[expect(clippy::undocumented_unsafe_blocks, reason = "argued once, above")]
    impl Lanes for __m512 {
        const LEN: usize = 16;
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { _mm512_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm512_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> Self {
            unsafe { _mm512_maskz_loadu_ps((1 << n) - 1, from) }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
            unsafe { _mm512_fmadd_ps(self, factor, sum) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe { _mm512_reduce_add_ps(self) }
        }
    }

    #[expect(clippy::undocumented_unsafe_blocks, reason = "argued once, above")]
    impl Lanes for __m256 {
        const LEN: usize = 8;
        #[inline(always)]
        unsafe fn zero() -> Self {
            unsafe { _mm256_setzero_ps() }
        }
        #[inline(always)]
        unsafe fn load(from: *const f32) -> Self {
            unsafe { _mm256_loadu_ps(from) }
        }
        #[inline(always)]
        unsafe fn load_first(from: *const f32, n: usize) -> Self {
            unsafe {
                let lane = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
                _mm256_maskload_ps(from, _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), lane))
            }
        }
        #[inline(always)]
        unsafe fn mul_add(self, factor: Self, sum: Self) -> Self {
            unsafe { _mm256_fmadd_ps(self, factor, sum) }
        }
        #[inline(always)]
        unsafe fn sum(self) -> f32 {
            unsafe {
                let four = _mm_add_ps(_mm256_castps256_ps128(self), _mm256_extractf128_ps::<1>(self));
                let two = _mm_add_ps(four, _mm_movehl_ps(four, four));
                _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Every kernel that this processor can run.
    fn kernels() -> Vec<Kernel> {
        [
            #[cfg(target_arch = "x86_64")]
            (Kernel::Avx512, is_x86_feature_detected!("avx512f")),
            #[cfg(target_arch = "x86_64")]
            (Kernel::Avx2, is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma")),
            (Kernel::Portable, true),
        ]
        .into_iter()
        .filter_map(|(kernel, here)| here.then_some(kernel))
        .collect()
    }

    proptest! {
        #[test]
        fn equals_the_definition(
            (dim, queries, rows) in (1usize..70, 0usize..10, 0usize..24).prop_flat_map(|(dim, m, n)| {
                let numbers = |len| prop::collection::vec(-1.0f32..1.0, len);
                (Just(dim), numbers(m * dim), numbers(n * dim))
            })
        ) {
            let n = rows.len() / dim;
            for kernel in kernels() {
                let mut out = vec![f32::NAN; queries.len() / dim * n];
                kernel.dots(dim, &queries, &rows, &mut out);
                for (at, got) in out.into_iter().enumerate() {
                    let (query, row) = (&queries[at / n * dim..][..dim], &rows[at % n * dim..][..dim]);
                    let dot: f64 = query.iter().zip(row).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum();
                    prop_assert!((f64::from(got) - dot).abs() < 1e-4, "{kernel:?}: {got}, not {dot}");
                }
            }
        }
    }
}
