//! Functions of one number, without branches, so that loops over them are vectorised.

/// `a * b + c`, in one instruction where there is one.
#[inline(always)]
pub(crate) fn fma<const FUSED: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FUSED { a.mul_add(b, c) } else { a * b + c }
}

#[inline(always)]
fn clamp(x: f32, low: f32, high: f32) -> f32 {
    let x = if x > low { x } else { low };
    if x < high { x } else { high }
}

/// `e^x`, within 2 units in the last place for -87 <= x <= 88 and clamped to that beyond. Reduction
/// and coefficients are those of Cephes' `expf`.
#[inline(always)]
pub(crate) fn exp<const FUSED: bool>(x: f32) -> f32 {
    /// Added to a number below 2^22, it leaves the number rounded to an integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = clamp(x, -87.0, 88.0);
    let shifted = fma::<FUSED>(x, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = fma::<FUSED>(n, -0.693_359_4, x);
    let r = fma::<FUSED>(n, 2.121_944_4e-4, r);
    let mut p = 1.987_569_1e-4;
    for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
        p = fma::<FUSED>(p, r, c);
    }
    let p = fma::<FUSED>(p * r, r, r) + 1.0;
    // 2^n by adding n to the exponent of p, which is in [0.7, 1.42].
    f32::from_bits(p.to_bits().wrapping_add(shifted.to_bits() << 23))
}

/// The error function, within 4e-7. A rational approximation on [-4, 4] (Eigen's `perf`).
#[inline(always)]
fn erf<const FUSED: bool>(x: f32) -> f32 {
    let x = clamp(x, -4.0, 4.0);
    let x2 = x * x;
    let mut p = -2.726_142e-10;
    for c in [2.770_681_4e-8, -2.101_024e-6, -5.692_506_4e-5, -7.349_906_3e-4, -2.954_6e-3, -1.609_603_3e-2] {
        p = fma::<FUSED>(p, x2, c);
    }
    let mut q = -1.456_607_2e-5;
    for c in [-2.133_740_6e-4, -1.682_827e-3, -7.373_329e-3, -1.426_473_9e-2] {
        q = fma::<FUSED>(q, x2, c);
    }
    x * p / q
}

/// GELU by the error function.
#[inline(always)]
pub(crate) fn gelu<const FUSED: bool>(x: f32) -> f32 {
    let half = 0.5 * x;
    fma::<FUSED>(half, erf::<FUSED>(x * std::f32::consts::FRAC_1_SQRT_2), half)
}

/// GELU by its tanh approximation.
#[inline(always)]
pub(crate) fn gelu_tanh<const FUSED: bool>(x: f32) -> f32 {
    let inner = 0.797_884_6 * fma::<FUSED>(0.044_715 * x * x, x, x);
    // (1 + tanh(y)) / 2 = 1 / (1 + e^-2y)
    x / (1.0 + exp::<FUSED>(-2.0 * inner))
}

/// `x / (1 + e^-x)`, called SiLU or swish.
#[inline(always)]
pub(crate) fn silu<const FUSED: bool>(x: f32) -> f32 {
    x / (1.0 + exp::<FUSED>(-x))
}

/// The upper half of an f32, rounded to the nearest, ties to even: a bf16. Not for NaN.
#[inline(always)]
pub(crate) fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn worst(range: std::ops::RangeInclusive<i32>, step: f64, error: impl Fn(f32) -> f64) -> f64 {
        range.map(|n| error((f64::from(n) * step) as f32)).fold(0.0, f64::max)
    }

    /// The error function by its Taylor series (Abramowitz and Stegun 7.1.5), in f64.
    fn exact_erf(x: f64) -> f64 {
        if x.abs() > 5.0 {
            return x.signum();
        }
        let (mut term, mut sum) = (x, x);
        for n in 1..200 {
            let n = f64::from(n);
            term *= -x * x / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    #[test]
    fn functions_are_accurate() {
        let relative = worst(-8600..=8700, 0.01, |x| {
            let exact = f64::from(x).exp();
            [exp::<true>(x), exp::<false>(x)].map(|y| (f64::from(y) - exact).abs() / exact)[0]
        });
        assert!(relative < 3e-7, "exp: {relative:e}");
        let gelu_error = worst(-9000..=9000, 0.001, |x| {
            let wide = f64::from(x);
            let exact = 0.5 * wide * (1.0 + exact_erf(wide / std::f64::consts::SQRT_2));
            (f64::from(gelu::<true>(x)) - exact).abs().max((f64::from(gelu::<false>(x)) - exact).abs())
        });
        assert!(gelu_error < 2e-6, "gelu: {gelu_error:e}");
        let tanh_error = worst(-9000..=9000, 0.001, |x| {
            let wide = f64::from(x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (wide + 0.044_715 * wide.powi(3));
            (f64::from(gelu_tanh::<true>(x)) - 0.5 * wide * (1.0 + inner.tanh())).abs()
        });
        assert!(tanh_error < 2e-6, "gelu_tanh: {tanh_error:e}");
        let silu_error = worst(-9000..=9000, 0.01, |x| {
            let wide = f64::from(x);
            (f64::from(silu::<true>(x)) - wide / (1.0 + (-wide).exp())).abs() / wide.abs().max(1.0)
        });
        assert!(silu_error < 1e-6, "silu: {silu_error:e}");
    }

    #[test]
    fn bf16_is_rounded_as_half_does_it() {
        for bits in (0..0x7f7f_0000_u32).step_by(9973) {
            let x = f32::from_bits(bits);
            assert_eq!(bf16(x), half::bf16::from_f32(x).to_bits(), "{x}");
            assert_eq!(bf16(-x), half::bf16::from_f32(-x).to_bits(), "{x}");
        }
    }
}
