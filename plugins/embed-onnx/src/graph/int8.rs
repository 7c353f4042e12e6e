//! Linear layers in int8. Every token is quantized alone, so that a vector does not depend on the
//! batch: ONNX Runtime's own dynamic quantization takes one scale for all tokens of a run, which on
//! all-MiniLM-L6-v2 moves a vector by up to .02 with its neighbours and has a least cosine of .983.
//!
//! Layers take one scale a token and one a column of the weights, or, where what goes in has outliers,
//! one for each 32 inputs, which is slower. With the former alone the least cosine is .990, with the
//! latter for the projections into the attention .995, and for the first feed-forward layer too .998.
use super::INPUT_IDS;
use super::builder::{Builder, CONTRIB, ONNX, attribute};
use magray_plugin_api::Result;
use std::collections::HashMap;

/// Inputs that share a scale in [`Blocks`].
const BLOCK: usize = 32;

/// The unsigned number that stands for 0.
const ZERO: u8 = 128;

/// Weights with one scale a column.
pub(super) struct Columns {
    /// `[k, n]`
    weights: Vec<i8>,
    /// `[n]`
    scales: Vec<f32>,
}

impl Columns {
    /// Quantizes `rows`, `[n, k]`.
    pub(super) fn new(rows: &[f32], k: usize) -> Self {
        let n = rows.len() / k;
        let largest = largest_weight();
        let mut weights = vec![0; rows.len()];
        let mut scales = Vec::with_capacity(n);
        for (column, row) in rows.chunks_exact(k).enumerate() {
            let scale = scale(row, largest);
            for (k, weight) in row.iter().enumerate() {
                weights[k * n + column] = (weight / scale).round() as i8;
            }
            scales.push(scale);
        }
        Self { weights, scales }
    }

    /// Adds to `out`, `[n]`, the product of a row of numbers that are all `x`.
    pub(super) fn add_product_of(&self, x: f32, out: &mut [f32]) {
        let mut sums = vec![0i32; self.scales.len()];
        for row in self.weights.chunks_exact(self.scales.len()) {
            sums.iter_mut().zip(row).for_each(|(sum, &weight)| *sum += i32::from(weight));
        }
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(&self.scales) {
            *out += x * sum as f32 * scale;
        }
    }
}

/// The scale by which the largest of `numbers` becomes `largest`.
fn scale(numbers: &[f32], largest: f32) -> f32 {
    let most = numbers.iter().fold(0.0f32, |most, number| most.max(number.abs()));
    if most > 0.0 { most / largest } else { 1.0 }
}

/// Without VNNI, x86 adds pairs of products in 16 bits, which overflow with weights of 8 bits.
fn largest_weight() -> f32 {
    #[cfg(target_arch = "x86_64")]
    let exact = is_x86_feature_detected!("avx512vnni") || is_x86_feature_detected!("avxvnni");
    #[cfg(not(target_arch = "x86_64"))]
    let exact = true;
    if exact { 127.0 } else { 63.0 }
}

/// The nodes that quantize tokens, and the constants that they share.
pub(super) struct Quantizer {
    one: String,
    zero: String,
    /// One step of a scale: `1 / 127` and `1 / 255`.
    signed_step: String,
    unsigned_step: String,
    tiny: String,
    last_axis: String,
    flat: String,
    /// Of the ids, `[batch, seq]`.
    shape: String,
    /// By width: the shape `[tokens, width]` and the shape `[batch, seq, width]`.
    shapes: HashMap<usize, [String; 2]>,
}

impl Quantizer {
    pub(super) fn new(build: &mut Builder<'_>) -> Result<Self> {
        Ok(Self {
            one: build.constant("int8.one", &[], &[1.0f32])?,
            zero: build.constant("int8.zero", &[], &[ZERO])?,
            signed_step: build.constant("int8.signed_step", &[], &[1.0f32 / 127.0])?,
            unsigned_step: build.constant("int8.unsigned_step", &[], &[1.0f32 / 255.0])?,
            tiny: build.constant("int8.tiny", &[], &[1e-12f32])?,
            last_axis: build.constant("int8.last_axis", &[1], &[-1i64])?,
            flat: build.constant("int8.flat", &[1], &[-1i64])?,
            shape: build.node(ONNX, "Shape", &[INPUT_IDS], "int8.shape", [])?,
            shapes: HashMap::new(),
        })
    }

    /// The product of `x`, `[batch, seq, k]`, and weights. Where there is a `least` number, `x - least`
    /// is multiplied, by all 8 bits: the caller adds the product of `least`.
    pub(super) fn product(
        &mut self,
        build: &mut Builder<'_>,
        name: &str,
        x: &str,
        columns: &Columns,
        least: Option<f32>,
    ) -> Result<String> {
        let n = columns.scales.len();
        let k = columns.weights.len() / n;
        let weights = build.constant(&format!("{name}.weight"), &[k, n], &columns.weights)?;
        let scales = build.constant(&format!("{name}.scale"), &[n], &columns.scales)?;

        let [flat_shape, _] = self.shapes(build, k)?;
        let mut x = build.node(ONNX, "Reshape", &[x, &flat_shape], &format!("{name}.x"), [])?;
        let (sizes, step) = match least {
            None => {
                let sizes = build.node(ONNX, "Abs", &[&x], &format!("{name}.abs"), [])?;
                (sizes, &self.signed_step)
            }
            Some(least) => {
                if least != 0.0 {
                    let least = build.constant(&format!("{name}.least"), &[], &[least])?;
                    x = build.node(ONNX, "Sub", &[&x, &least], &format!("{name}.above"), [])?;
                }
                (x.clone(), &self.unsigned_step)
            }
        };
        let keep = attribute("keepdims", 1i64)?;
        let inputs = [&*sizes, &self.last_axis];
        let most = build.node(ONNX, "ReduceMax", &inputs, &format!("{name}.most"), [keep])?;
        let steps = build.node(ONNX, "Mul", &[&most, step], &format!("{name}.steps"), [])?;
        let steps = build.node(ONNX, "Max", &[&steps, &self.tiny], &format!("{name}.token_scale"), [])?;

        let flat = build.node(ONNX, "Reshape", &[&steps, &self.flat], &format!("{name}.token_scales"), [])?;
        let axis = attribute("axis", 0i64)?;
        let output = format!("{name}.quantized");
        let product = if least.is_some() {
            let x = build.node(ONNX, "QuantizeLinear", &[&x, &flat], &output, [axis])?;
            let inputs = [&*x, &weights, &self.one, &scales];
            build.node(CONTRIB, "MatMulIntegerToFloat", &inputs, &format!("{name}.product"), [])?
        } else {
            let shape = build.node(ONNX, "Shape", &[&flat], &format!("{name}.tokens"), [])?;
            let zeros = build.node(ONNX, "Expand", &[&self.zero, &shape], &format!("{name}.zeros"), [])?;
            let x = build.node(ONNX, "QuantizeLinear", &[&x, &flat, &zeros], &output, [axis])?;
            let inputs = [&*x, &weights, &self.one, &scales, &self.zero];
            build.node(CONTRIB, "MatMulIntegerToFloat", &inputs, &format!("{name}.product"), [])?
        };
        let product = build.node(ONNX, "Mul", &[&product, &steps], &format!("{name}.scaled"), [])?;
        let [_, full_shape] = self.shapes(build, n)?;
        build.node(ONNX, "Reshape", &[&product, &full_shape], name, [])
    }

    fn shapes(&mut self, build: &mut Builder<'_>, width: usize) -> Result<[String; 2]> {
        if let Some(shapes) = self.shapes.get(&width) {
            return Ok(shapes.clone());
        }
        let number = width as i64;
        let flat = build.constant(&format!("int8.flat.{width}"), &[2], &[-1, number])?;
        let last = build.constant(&format!("int8.width.{width}"), &[1], &[number])?;
        let axis = attribute("axis", 0i64)?;
        let full =
            build.node(ONNX, "Concat", &[&self.shape, &last], &format!("int8.full.{width}"), [axis])?;
        self.shapes.insert(width, [flat.clone(), full.clone()]);
        Ok([flat, full])
    }
}

/// Weights with one scale for each [`BLOCK`] inputs of a column.
pub(super) struct Blocks {
    k: usize,
    /// `[n, blocks, BLOCK]`, where [`ZERO`] is 0.
    weights: Vec<u8>,
    /// `[n, blocks]`
    scales: Vec<f32>,
}

impl Blocks {
    /// Quantizes `rows`, `[n, k]`.
    pub(super) fn new(rows: &[f32], k: usize) -> Self {
        let mut blocks = Self { k, weights: Vec::with_capacity(rows.len()), scales: Vec::new() };
        for block in rows.chunks_exact(k).flat_map(|row| row.chunks(BLOCK)) {
            let scale = scale(block, 127.0);
            let quantized =
                block.iter().map(|weight| ((weight / scale).round() as i16 + i16::from(ZERO)) as u8);
            blocks.weights.extend(quantized);
            blocks.weights.resize(blocks.weights.len().next_multiple_of(BLOCK), ZERO);
            blocks.scales.push(scale);
        }
        blocks
    }

    /// The product of `x`, `[batch, seq, k]`, and these weights.
    pub(super) fn product(&self, build: &mut Builder<'_>, name: &str, x: &str) -> Result<String> {
        let count = self.k.div_ceil(BLOCK);
        let n = self.scales.len() / count;
        let weights = build.constant(&format!("{name}.weight"), &[n, count, BLOCK], &self.weights)?;
        let scales = build.constant(&format!("{name}.scale"), &[n, count], &self.scales)?;
        let attributes = [
            attribute("K", self.k as i64)?,
            attribute("N", n as i64)?,
            attribute("bits", 8i64)?,
            attribute("block_size", BLOCK as i64)?,
            // Tokens are quantized to int8, too.
            attribute("accuracy_level", 4i64)?,
        ];
        build.node(CONTRIB, "MatMulNBits", &[x, &weights, &scales], name, attributes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantized_weights_are_near_the_true_ones() {
        let (n, k) = (3, 70);
        let rows: Vec<f32> = (0..n * k).map(|x| (x as f32 * 0.7).sin() * (x / k + 1) as f32).collect();
        let columns = Columns::new(&rows, k);
        for (at, &weight) in columns.weights.iter().enumerate() {
            let (input, column) = (at / n, at % n);
            let error = (f32::from(weight) * columns.scales[column] - rows[column * k + input]).abs();
            assert!(error <= columns.scales[column] * 0.501, "{error}");
        }
        let blocks = Blocks::new(&rows, k);
        assert_eq!((blocks.weights.len(), blocks.scales.len()), (n * 96, n * 3));
        for (row, weights) in rows.chunks(k).zip(blocks.weights.chunks(96)) {
            let row_of_blocks = row.as_ptr() as usize - rows.as_ptr() as usize;
            let first = row_of_blocks / size_of::<f32>() / k * 3;
            for (at, &weight) in weights.iter().enumerate() {
                let scale = blocks.scales[first + at / BLOCK];
                let is = f32::from(i16::from(weight) - i16::from(ZERO)) * scale;
                let error = (is - row.get(at).copied().unwrap_or(0.0)).abs();
                assert!(error <= scale * 0.501, "{error}");
            }
        }
    }

    #[test]
    fn a_row_of_zeros_has_a_scale() {
        assert_eq!(Columns::new(&[0.0; 4], 2).scales, [1.0; 2]);
        assert_eq!(Blocks::new(&[0.0; 4], 2).scales, [1.0; 2]);
    }

    #[test]
    fn the_product_of_a_constant_is_that_of_the_quantized_weights() {
        let columns = Columns { weights: vec![1, -2, 3, 4], scales: vec![0.5, 2.0] };
        let mut out = [1.0, 1.0];
        columns.add_product_of(10.0, &mut out);
        assert_eq!(out, [1.0 + 10.0 * 4.0 * 0.5, 1.0 + 10.0 * 2.0 * 2.0]);
    }
}
