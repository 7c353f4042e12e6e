//! NumPy arrays `[rows, dim]`, row-major, format version 1.0
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
use clap::ValueEnum;
use half::{f16, slice::HalfFloatSliceExt as _};
use std::io::{self, Read};

/// Bytes before the numbers of an array that we write: room for any count, which is known at the end. A
/// multiple of 64, as the format wants it.
pub(super) const HEADER: usize = 128;
/// A longer header is none.
const MAX_HEADER: usize = 4096;

/// Numbers of an array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Dtype {
    F32,
    F16,
}

impl Dtype {
    fn descr(self) -> &'static str {
        match self {
            Self::F32 => "<f4",
            Self::F16 => "<f2",
        }
    }

    fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 => 2,
        }
    }

    /// A row as the array has it.
    pub(super) fn encode(self, row: &[f32]) -> Vec<u8> {
        match self {
            Self::F32 => row.iter().flat_map(|number| number.to_le_bytes()).collect(),
            Self::F16 => {
                let mut halves = vec![f16::ZERO; row.len()];
                halves.convert_from_f32_slice(row);
                halves.iter().flat_map(|number| number.to_le_bytes()).collect()
            }
        }
    }
}

/// The header of an array.
pub(super) fn header(dtype: Dtype, rows: u64, dim: usize) -> Vec<u8> {
    let descr = dtype.descr();
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((HEADER - 10) as u16).to_le_bytes());
    header.extend(dict.as_bytes());
    header.resize(HEADER - 1, b' ');
    header.push(b'\n');
    header
}

/// Reads an array row by row.
#[derive(Debug)]
pub(super) struct Rows<R> {
    input: R,
    dtype: Dtype,
    dim: usize,
    left: u64,
}

impl<R: Read> Rows<R> {
    /// Fails where it is no array of f32 or f16 with two dimensions.
    pub(super) fn open(mut input: R) -> io::Result<Self> {
        let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
        let mut start = [0; 10];
        input.read_exact(&mut start)?;
        let length = usize::from(u16::from_le_bytes([start[8], start[9]]));
        if !start.starts_with(b"\x93NUMPY\x01\x00") || length > MAX_HEADER {
            return Err(wrong("it is no NumPy array of format 1.0"));
        }
        let mut header = vec![0; length];
        input.read_exact(&mut header)?;
        let header = String::from_utf8_lossy(&header);
        let dtype = [Dtype::F32, Dtype::F16].into_iter().find(|dtype| {
            header.contains(&format!("'descr': '{}'", dtype.descr()))
                && header.contains("'fortran_order': False")
        });
        let shape = header.split_once("'shape': (").and_then(|(_, shape)| shape.split_once(')'));
        let shape: Vec<u64> = shape
            .map(|(shape, _)| shape.split(',').filter_map(|number| number.trim().parse().ok()).collect())
            .unwrap_or_default();
        match (dtype, shape.as_slice()) {
            (Some(dtype), &[left, dim]) if (1..=1 << 20).contains(&dim) => {
                Ok(Self { input, dtype, dim: dim as usize, left })
            }
            _ => Err(wrong("it is no array [n, dim] of little-endian f32 or f16 in rows")),
        }
    }

    /// Rows that are left.
    pub(super) fn left(&self) -> u64 {
        self.left
    }

    /// The next row.
    pub(super) fn next(&mut self) -> io::Result<Vec<f32>> {
        self.left = self.left.checked_sub(1).ok_or_else(|| {
            io::Error::new(io::ErrorKind::InvalidData, "the array has fewer rows than there are records")
        })?;
        let mut bytes = vec![0; self.dim * self.dtype.bytes()];
        self.input.read_exact(&mut bytes)?;
        Ok(match self.dtype {
            Dtype::F32 => bytes.as_chunks().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect(),
            Dtype::F16 => {
                bytes.as_chunks().0.iter().map(|&bytes| f16::from_le_bytes(bytes).to_f32()).collect()
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_of_any_size_has_the_same_length() {
        for (rows, dim) in [(0, 1), (1, 384), (u64::MAX, usize::MAX)] {
            let header = header(Dtype::F16, rows, dim);
            assert_eq!(header.len(), HEADER);
            let text = String::from_utf8_lossy(&header[10..]);
            assert!(
                text.contains(&format!("'shape': ({rows}, {dim}), }}")) && text.ends_with('\n'),
                "{text}"
            );
        }
    }

    #[test]
    fn rows_are_read_as_they_were_written() {
        for dtype in [Dtype::F32, Dtype::F16] {
            let mut file = header(dtype, 2, 3);
            file.extend(dtype.encode(&[1.0, -0.5, 2.0]));
            file.extend(dtype.encode(&[0.0, 0.25, -4.0]));
            let mut rows = Rows::open(file.as_slice()).unwrap();
            assert_eq!(rows.next().unwrap(), [1.0, -0.5, 2.0]);
            assert_eq!((rows.left(), rows.next().unwrap()), (1, vec![0.0, 0.25, -4.0]));
            assert!(rows.next().unwrap_err().to_string().contains("fewer rows"));
            let mut cut = Rows::open(&file[..file.len() - 1]).unwrap();
            cut.next().unwrap();
            assert_eq!(cut.next().unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        }
    }

    #[test]
    fn what_is_no_such_array_is_refused() {
        let mut three = header(Dtype::F32, 2, 3);
        let at = three.windows(4).position(|window| window == b"3), ").unwrap();
        three[at..at + 4].copy_from_slice(b"3,1)");
        let double = String::from_utf8_lossy(&header(Dtype::F32, 2, 3)[10..]).replace("<f4", "<f8");
        let double = [&header(Dtype::F32, 2, 3)[..10], double.as_bytes()].concat();
        for file in [&three[..], &double, b"{\"text\": \"a\"}", b"\x93NUMPY\x01\x00\x10\x00short"] {
            assert!(Rows::open(file).is_err(), "{}", String::from_utf8_lossy(file));
        }
    }
}
