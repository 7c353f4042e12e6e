use super::pooling::f16_to_f32;
use magray_plugin_api::{Error, ErrorCode, Result};
use memmap2::Mmap;
use safetensors::{
    Dtype, SafeTensors,
    tensor::{Metadata, TensorInfo},
};
use std::ops::Range;

/// The largest weight or scale that a model may have: the largest f16. So no sum overflows.
const MAX_WEIGHT: f32 = 65504.0;

/// The bytes of a `model.safetensors`.
pub(crate) enum File {
    /// A part of this library, which the system maps.
    Embedded(&'static [u8]),
    Mapped(Mmap),
}

impl File {
    pub(crate) fn bytes(&self) -> &[u8] {
        match self {
            Self::Embedded(bytes) => bytes,
            Self::Mapped(map) => map,
        }
    }
}

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Precision {
    /// With one f16 scale a row.
    Int8,
    F16,
    F32,
}

impl Precision {
    /// The name for reports.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Int8 => "int8",
            Self::F16 => "f16",
            Self::F32 => "f32",
        }
    }

    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::Int8 => 1,
            Self::F16 => 2,
            Self::F32 => 4,
        }
    }
}

/// One row of weights a token id, `[vocabulary, dim]`, used where the file is mapped.
pub(crate) struct Weights {
    file: File,
    rows: Range<usize>,
    pub(crate) precision: Precision,
    /// Width of a row, at least 1.
    pub(crate) dim: usize,
    /// `[vocabulary]` where the precision is int8, else empty.
    pub(crate) scales: Vec<f32>,
}

impl Weights {
    /// Reads the header of `file`, and the scales. The rows stay unread: see [`Weights::check`].
    ///
    /// # Errors
    /// `CORRUPT_DATA`, `UNSUPPORTED` for tensors that this backend does not know.
    pub(crate) fn new(file: File) -> Result<Self> {
        let (header_len, header) = SafeTensors::read_metadata(file.bytes())
            .map_err(|error| corrupt(format!("model.safetensors is damaged: {error}")))?;
        if let Some(foreign) = ["mapping", "weights"].iter().find(|name| header.info(name).is_some()) {
            let message = format!("model.safetensors has a tensor '{foreign}': a reduced vocabulary");
            return Err(Error::new(ErrorCode::UNSUPPORTED, message));
        }
        let embeddings = tensor(&header, "embeddings")?;
        let precision = match embeddings.dtype {
            Dtype::I8 => Precision::Int8,
            Dtype::F16 => Precision::F16,
            Dtype::F32 => Precision::F32,
            other => {
                let message = format!("'embeddings' are {other:?}; I8 with scales, F16 and F32 are possible");
                return Err(Error::new(ErrorCode::UNSUPPORTED, message));
            }
        };
        let (vocabulary, dim) = match embeddings.shape[..] {
            [vocabulary, dim] if vocabulary > 0 && dim > 0 => (vocabulary, dim),
            ref shape => {
                return Err(corrupt(format!("'embeddings' have the shape {shape:?}, not [rows, width]")));
            }
        };
        // The tensors start after 8 bytes, which hold the length of the header, and the header.
        let place = |tensor: &TensorInfo| {
            let (start, end) = tensor.data_offsets;
            8 + header_len + start..8 + header_len + end
        };
        let scales = if precision == Precision::Int8 {
            let scales = tensor(&header, "scales")?;
            if scales.dtype != Dtype::F16 || scales.shape != [vocabulary] {
                let message =
                    format!("'scales' are {:?} {:?}, not F16 [{vocabulary}]", scales.dtype, scales.shape);
                return Err(corrupt(message));
            }
            file.bytes()[place(scales)].as_chunks().0.iter().copied().map(f16_to_f32).collect()
        } else {
            Vec::new()
        };
        Ok(Self { rows: place(embeddings), file, precision, dim, scales })
    }

    /// All rows, as they are stored.
    #[inline]
    pub(crate) fn rows(&self) -> &[u8] {
        &self.file.bytes()[self.rows.clone()]
    }

    /// How many rows there are.
    pub(crate) fn vocabulary(&self) -> usize {
        self.rows.len() / (self.dim * self.precision.bytes())
    }

    /// Reads every number.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where one is not finite or too large.
    pub(crate) fn check(&self) -> Result<()> {
        let sane = |weight: f32| weight.abs() <= MAX_WEIGHT;
        let all_sane = match self.precision {
            Precision::Int8 => self.scales.iter().copied().all(sane),
            Precision::F16 => self.rows().as_chunks().0.iter().copied().map(f16_to_f32).all(sane),
            Precision::F32 => self.rows().as_chunks().0.iter().copied().map(f32::from_le_bytes).all(sane),
        };
        if all_sane { Ok(()) } else { Err(corrupt(format!("a weight is no number, or beyond {MAX_WEIGHT}"))) }
    }

    /// Bytes of the file, which the system maps.
    pub(crate) fn file_len(&self) -> usize {
        self.file.bytes().len()
    }
}

fn tensor<'a>(header: &'a Metadata, name: &str) -> Result<&'a TensorInfo> {
    header.info(name).ok_or_else(|| corrupt(format!("model.safetensors has no tensor '{name}'")))
}

fn corrupt(message: String) -> Error {
    Error::new(ErrorCode::CORRUPT_DATA, message)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use safetensors::tensor::TensorView;

    /// A `model.safetensors` of these tensors.
    pub(crate) fn file(tensors: &[(&str, Dtype, &[usize], &[u8])]) -> Vec<u8> {
        let views = tensors
            .iter()
            .map(|&(name, dtype, shape, data)| (name, TensorView::new(dtype, shape.to_vec(), data).unwrap()));
        safetensors::serialize(views, None).unwrap()
    }

    /// Weights that look random.
    pub(crate) fn weights(precision: Precision, rows: usize, dim: usize, seed: u64) -> Weights {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        // The upper half of an f32 between 1 and 2 is also a finite f16.
        let f16 = |value: f32| [(value.to_bits() >> 8) as u8, (value.to_bits() >> 16) as u8 & 0x3f];
        let count = rows * dim;
        let bytes = match precision {
            Precision::Int8 => {
                let bytes: Vec<u8> = (0..count).map(|_| (next() * 255.0) as i8 as u8).collect();
                let scales: Vec<u8> = (0..rows).flat_map(|_| f16(next())).collect();
                let embeddings = ("embeddings", Dtype::I8, &[rows, dim][..], &bytes[..]);
                file(&[embeddings, ("scales", Dtype::F16, &[rows], &scales)])
            }
            Precision::F16 => {
                let bytes: Vec<u8> = (0..count).flat_map(|_| f16(next())).collect();
                file(&[("embeddings", Dtype::F16, &[rows, dim], &bytes)])
            }
            Precision::F32 => {
                let bytes: Vec<u8> = (0..count).flat_map(|_| next().to_le_bytes()).collect();
                file(&[("embeddings", Dtype::F32, &[rows, dim], &bytes)])
            }
        };
        Weights::new(File::Embedded(bytes.leak())).unwrap()
    }

    impl Weights {
        /// One number, read apart from the engines.
        pub(crate) fn get(&self, row: usize, column: usize) -> f32 {
            let size = self.precision.bytes();
            let bytes = &self.rows()[(row * self.dim + column) * size..][..size];
            match *bytes {
                [byte] => f32::from(byte as i8) * self.scales[row],
                [low, high] => f16_to_f32([low, high]),
                _ => f32::from_le_bytes(bytes.try_into().unwrap()),
            }
        }
    }

    fn refused(bytes: Vec<u8>) -> Error {
        Weights::new(File::Embedded(bytes.leak())).and_then(|weights| weights.check()).unwrap_err()
    }

    #[test]
    fn a_damaged_file_is_refused() {
        let row = [0; 16];
        let nan = f32::NAN.to_le_bytes();
        let infinity = [0, 0x7c];
        for (bytes, code, says) in [
            (vec![], ErrorCode::CORRUPT_DATA, "damaged"),
            (vec![0xff; 100], ErrorCode::CORRUPT_DATA, "damaged"),
            (b"\x02\0\0\0\0\0\0\0{}".to_vec(), ErrorCode::CORRUPT_DATA, "no tensor 'embeddings'"),
            (
                file(&[("embeddings", Dtype::I8, &[4, 4], &row)]),
                ErrorCode::CORRUPT_DATA,
                "no tensor 'scales'",
            ),
            (file(&[("embeddings", Dtype::I8, &[16], &row)]), ErrorCode::CORRUPT_DATA, "the shape [16]"),
            (file(&[("embeddings", Dtype::I8, &[0, 4], &[])]), ErrorCode::CORRUPT_DATA, "the shape [0, 4]"),
            (
                file(&[("embeddings", Dtype::I8, &[4, 4], &row), ("scales", Dtype::F16, &[2], &[0; 4])]),
                ErrorCode::CORRUPT_DATA,
                "not F16 [4]",
            ),
            (file(&[("embeddings", Dtype::I64, &[2, 1], &row)]), ErrorCode::UNSUPPORTED, "I64"),
            (
                file(&[("embeddings", Dtype::F32, &[2, 2], &row), ("mapping", Dtype::I8, &[16], &row)]),
                ErrorCode::UNSUPPORTED,
                "'mapping'",
            ),
            (file(&[("embeddings", Dtype::F32, &[1, 1], &nan)]), ErrorCode::CORRUPT_DATA, "no number"),
            (file(&[("embeddings", Dtype::F16, &[1, 1], &infinity)]), ErrorCode::CORRUPT_DATA, "no number"),
        ] {
            let error = refused(bytes);
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message().contains(says), "{error}");
        }
    }

    #[test]
    fn a_truncated_file_is_refused_at_every_length() {
        let whole =
            file(&[("embeddings", Dtype::I8, &[4, 4], &[1; 16]), ("scales", Dtype::F16, &[4], &[1; 8])]);
        for len in 0..whole.len() {
            assert_eq!(refused(whole[..len].to_vec()).code(), ErrorCode::CORRUPT_DATA, "{len} bytes");
        }
    }
}
