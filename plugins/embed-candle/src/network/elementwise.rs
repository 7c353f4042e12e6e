//! GELU and softmax on the CPU, in place and by the SIMD instructions that there are. candle calls the
//! system's `erff` and `expf` for every number, which takes as long as the products do.
use candle_core::{CpuStorage, DType, InplaceOp1, Layout, Result, Tensor, bail};
use pulp::Arch;

/// `x (1 + erf(x / sqrt 2)) / 2`
pub(super) fn gelu(states: Tensor) -> Result<Tensor> {
    in_place(states, Op::Gelu, Tensor::gelu_erf)
}

/// Softmax over the last dimension.
pub(super) fn softmax(scores: Tensor) -> Result<Tensor> {
    in_place(scores, Op::Softmax, candle_nn::ops::softmax_last_dim)
}

/// `op` on `tensor`, which nobody else holds; by `candle` where it is not f32 on the CPU.
fn in_place(tensor: Tensor, op: Op, candle: impl Fn(&Tensor) -> Result<Tensor>) -> Result<Tensor> {
    if tensor.device().is_cpu() && tensor.dtype() == DType::F32 && tensor.is_contiguous() {
        tensor.inplace_op1(&op)?;
        return Ok(tensor);
    }
    candle(&tensor)
}

enum Op {
    Gelu,
    Softmax,
}

impl InplaceOp1 for Op {
    fn name(&self) -> &'static str {
        match self {
            Self::Gelu => "gelu",
            Self::Softmax => "softmax",
        }
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let (CpuStorage::F32(numbers), Some((start, end))) = (storage, layout.contiguous_offsets()) else {
            bail!("{} is for contiguous f32", self.name())
        };
        let (numbers, width) = (&mut numbers[start..end], layout.dims().last().copied().unwrap_or(1));
        match self {
            Self::Gelu => Arch::new().dispatch(|| numbers.iter_mut().for_each(|x| *x = gelu_of(*x))),
            Self::Softmax => Arch::new().dispatch(|| numbers.chunks_exact_mut(width).for_each(softmax_of)),
        }
        Ok(())
    }
}

/// e^x for x <= 0, to 3e-7 of it; e^-87 below that.
#[inline(always)]
fn exp(x: f32) -> f32 {
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // Added to a number it leaves its nearest integer in the lowest bits.
    const ROUND: f32 = 12_582_912.0;
    let power = x.max(-87.0) * LOG2_E;
    let rounded = power + ROUND;
    let rest = (power - (rounded - ROUND)) * std::f32::consts::LN_2;
    // Taylor's series up to ln 2 / 2 on both sides of 0.
    let fraction = 1.0
        + rest
            * (1.0
                + rest
                    * (1.0 / 2.0
                        + rest
                            * (1.0 / 6.0
                                + rest * (1.0 / 24.0 + rest * (1.0 / 120.0 + rest * (1.0 / 720.0))))));
    fraction * f32::from_bits((rounded.to_bits() << 23).wrapping_add(1.0_f32.to_bits()))
}

/// By Abramowitz and Stegun 7.1.26, which is within 1.5e-7 of erf.
#[expect(clippy::excessive_precision, reason = "as published")]
#[inline(always)]
fn gelu_of(x: f32) -> f32 {
    let y = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * y);
    let series = t
        * (0.254_829_592
            + t * (-0.284_496_736 + t * (1.421_413_741 + t * (-1.453_152_027 + t * 1.061_405_429))));
    // erfc(|x| / sqrt 2)
    let rest = series * exp(-y * y);
    0.5 * x * if x < 0.0 { rest } else { 2.0 - rest }
}

/// Numbers that are reduced side by side, for the compiler may not reorder a sum.
const LANES: usize = 16;

#[inline(always)]
fn softmax_of(scores: &mut [f32]) {
    let largest = reduce(scores, f32::NEG_INFINITY, f32::max);
    scores.iter_mut().for_each(|score| *score = exp(*score - largest));
    let scale = 1.0 / reduce(scores, 0.0, |a, b| a + b);
    scores.iter_mut().for_each(|score| *score *= scale);
}

#[inline(always)]
fn reduce(numbers: &[f32], start: f32, join: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, rest) = numbers.as_chunks::<LANES>();
    let mut lanes = [start; LANES];
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, &number)| *lane = join(*lane, number));
    }
    lanes.iter().chain(rest).fold(start, |all, &number| join(all, number))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
        (a - b).unwrap().abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar().unwrap()
    }

    #[test]
    fn gelu_is_that_of_candle() {
        let states = Tensor::arange(-12.0_f32, 12.0, &Device::Cpu).unwrap();
        let fine = (Tensor::arange(-100_000.0_f32, 100_000.0, &Device::Cpu).unwrap() / 15_000.0).unwrap();
        for states in [states, fine] {
            let expected = states.gelu_erf().unwrap();
            let found = gelu(states.copy().unwrap()).unwrap();
            let apart = largest_difference(&found, &expected);
            assert!(apart < 1e-6, "{apart}");
        }
    }

    #[test]
    fn softmax_is_that_of_candle() {
        for width in [1, 7, 16, 145] {
            let scores = Tensor::randn(0.0_f32, 20.0, (3, 5, width), &Device::Cpu).unwrap();
            let expected = candle_nn::ops::softmax_last_dim(&scores).unwrap();
            let apart = largest_difference(&softmax(scores.copy().unwrap()).unwrap(), &expected);
            assert!(apart < 1e-6, "{width}: {apart}");
        }
        let masked = Tensor::new(&[[1.0_f32, f32::NEG_INFINITY, 1.0]], &Device::Cpu).unwrap();
        let found = softmax(masked).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!(found[1] < 1e-30 && (found[0] - 0.5).abs() < 1e-6, "{found:?}");
    }
}
