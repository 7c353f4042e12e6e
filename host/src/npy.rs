//! NumPy arrays `[rows, dim]`, row-major: format 1.0 is written, all formats are read
//! (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
use clap::ValueEnum;
use half::{f16, slice::HalfFloatSliceExt as _};
use std::io::{self, Read};

/// Bytes before the numbers of an array that we write: room for any count, which is known at the end. A
/// multiple of 64, as the format wants it.
pub(super) const HEADER: usize = 128;

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
    header_of(dtype.descr(), rows, dim)
}

/// The header of an array of row numbers, little-endian i32.
pub(super) fn header_of_rows(rows: u64, width: usize) -> Vec<u8> {
    header_of("<i4", rows, width)
}

fn header_of(descr: &str, rows: u64, dim: usize) -> Vec<u8> {
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((HEADER - 10) as u16).to_le_bytes());
    header.extend(dict.as_bytes());
    header.resize(HEADER - 1, b' ');
    header.push(b'\n');
    header
}

/// What its numbers are, little-endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    F16,
    F32,
    I32,
}

impl Kind {
    pub(crate) fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F32 | Self::I32 => 4,
        }
    }

    /// Numbers of a table of floats.
    pub(crate) fn floats(self, bytes: &[u8]) -> Vec<f32> {
        match self {
            Self::F16 => bytes.as_chunks().0.iter().map(|&b| f16::from_le_bytes(b).to_f32()).collect(),
            Self::F32 => bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)).collect(),
            Self::I32 => bytes.as_chunks().0.iter().map(|&b| i32::from_le_bytes(b) as f32).collect(),
        }
    }
}

/// A header is some 120 bytes; format 2.0 allows it any length, which would be reserved.
const LONGEST_HEADER: usize = 1 << 16;

/// The text of the header, and where the numbers begin.
fn read_text(file: &mut impl Read) -> Result<(String, u64), String> {
    let truncated = |error: io::Error| match error.kind() {
        io::ErrorKind::UnexpectedEof => "its header is cut off".to_owned(),
        _ => error.to_string(),
    };
    let mut magic = [0; 8];
    file.read_exact(&mut magic).map_err(truncated)?;
    let [b'\x93', b'N', b'U', b'M', b'P', b'Y', major, _] = magic else {
        return Err("it is no NumPy array".into());
    };
    let mut length = [0; 4];
    let places = match major {
        1 => 2,
        2 | 3 => 4,
        other => return Err(format!("it is of NumPy's format {other}, which is not known")),
    };
    file.read_exact(&mut length[..places]).map_err(truncated)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > LONGEST_HEADER {
        return Err(format!("its header is said to have {length} bytes"));
    }
    let mut header = vec![0; length];
    file.read_exact(&mut header).map_err(truncated)?;
    let header = String::from_utf8(header).map_err(|_| "its header is no text".to_owned())?;
    Ok((header, (8 + places + length) as u64))
}

/// What a header says.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) kind: Kind,
    pub(crate) rows: usize,
    pub(crate) width: usize,
    /// Where the first row begins, in bytes.
    pub(crate) start: u64,
}

impl Header {
    /// Reads it, up to where the first row begins; else what is wrong with it.
    pub(crate) fn read(file: &mut impl Read) -> Result<Self, String> {
        let (text, start) = read_text(file)?;
        Self::parse(&text, start)
    }

    /// Parses what NumPy writes: `{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }`, the keys in any order.
    fn parse(text: &str, start: u64) -> Result<Self, String> {
        let value = |key: &str| {
            let (_, after) = text.split_once(&format!("'{key}':"))?;
            Some(after.trim_start())
        };
        let odd = || format!("its header is odd: {}", text.trim());
        let descr = value("descr").and_then(|value| value.strip_prefix('\'')?.split('\'').next());
        let kind = match descr.ok_or_else(odd)? {
            "<f2" => Kind::F16,
            "<f4" => Kind::F32,
            "<i4" => Kind::I32,
            other => return Err(format!("its numbers are '{other}'; '<f2', '<f4' and '<i4' are read")),
        };
        match value("fortran_order") {
            Some(order) if order.starts_with("False") => {}
            Some(order) if order.starts_with("True") => {
                return Err(
                    "it is stored by columns (fortran_order); numpy.ascontiguousarray stores by rows".into(),
                );
            }
            _ => return Err(odd()),
        }
        let shape = value("shape").and_then(|value| value.strip_prefix('(')?.split(')').next());
        let shape: Vec<&str> =
            shape.ok_or_else(odd)?.split(',').map(str::trim).filter(|number| !number.is_empty()).collect();
        let number = |text: &str| text.parse().map_err(|_| format!("'{text}' is no length"));
        match shape[..] {
            [rows, width] => match number(width)? {
                0 => Err("its rows are empty".into()),
                width => Ok(Self { kind, rows: number(rows)?, width, start }),
            },
            _ => Err(format!("it has {} dimensions and not two", shape.len())),
        }
    }
}

/// Reads an array row by row.
#[derive(Debug)]
pub(super) struct Rows<R> {
    input: R,
    kind: Kind,
    dim: usize,
    left: u64,
}

impl<R: Read> Rows<R> {
    /// Fails where it is no array of f32 or f16 with two dimensions.
    pub(super) fn open(mut input: R) -> io::Result<Self> {
        let wrong = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
        let Header { kind, rows, width, .. } = Header::read(&mut input).map_err(wrong)?;
        if kind == Kind::I32 || width > 1 << 20 {
            return Err(wrong("it is no array [n, dim] of little-endian f32 or f16 in rows".to_owned()));
        }
        Ok(Self { input, kind, dim: width, left: rows as u64 })
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
        let mut bytes = vec![0; self.dim * self.kind.bytes()];
        self.input.read_exact(&mut bytes)?;
        Ok(self.kind.floats(&bytes))
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
