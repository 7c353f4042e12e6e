//! Tables in NumPy's `.npy` format, read some rows at a time: the files may be larger than memory.
use super::{BenchError, data::fault_of};
use crate::npy::{self, Dtype, Header, Kind};
use std::{
    fs::{self, File},
    io::{self, BufWriter, Read as _, Seek as _, SeekFrom, Write as _},
    ops::Range,
    path::{Path, PathBuf},
};

/// A table on disk, `[rows, width]` row-major.
#[derive(Debug)]
pub(super) struct Npy {
    path: PathBuf,
    file: File,
    kind: Kind,
    rows: usize,
    width: usize,
    /// Where the first row begins, in bytes.
    start: u64,
}

impl Npy {
    /// Reads the header only.
    ///
    /// # Errors
    /// [`BenchError::Data`] where the file is no such table or not as long as its header says.
    pub(super) fn open(path: &Path) -> Result<Self, BenchError> {
        let failed = |error: io::Error| fault_of(path, error.to_string());
        let mut file = File::open(path).map_err(failed)?;
        let length = file.metadata().map_err(failed)?.len();
        let Header { kind, rows, width, start } =
            Header::read(&mut file).map_err(|fault| fault_of(path, fault))?;
        let wanted = rows.checked_mul(width).and_then(|numbers| numbers.checked_mul(kind.bytes()));
        let wanted = wanted.and_then(|bytes| u64::try_from(bytes).ok()?.checked_add(start));
        match wanted {
            Some(wanted) if wanted == length => {}
            Some(wanted) => {
                let fault =
                    format!("it has {length} bytes, and {rows} rows of {width} numbers are {wanted} bytes");
                return Err(fault_of(path, fault));
            }
            None => {
                return Err(fault_of(path, format!("{rows} rows of {width} numbers fit into no memory")));
            }
        }
        Ok(Self { path: path.to_owned(), file, kind, rows, width, start })
    }

    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    /// These rows of a table of floats, one after the other.
    ///
    /// # Errors
    /// [`BenchError::Data`], also where a number is not finite.
    pub(super) fn floats(&mut self, rows: Range<usize>) -> Result<Vec<f32>, BenchError> {
        let first = rows.start;
        let bytes = self.bytes(rows)?;
        if self.kind == Kind::I32 {
            return Err(fault_of(&self.path, "it holds whole numbers where floats must be"));
        }
        let numbers = self.kind.floats(&bytes);
        match numbers.iter().position(|number| !number.is_finite()) {
            Some(at) => {
                let row = first + at / self.width;
                Err(fault_of(&self.path, format!("row {row} has a number that is not finite")))
            }
            None => Ok(numbers),
        }
    }

    /// These rows of a table of row numbers, each of which must be below `end`.
    ///
    /// # Errors
    /// [`BenchError::Data`].
    pub(super) fn row_numbers(&mut self, rows: Range<usize>, end: usize) -> Result<Vec<u32>, BenchError> {
        if self.kind != Kind::I32 {
            return Err(fault_of(&self.path, "it holds floats where row numbers (i32) must be"));
        }
        let bytes = self.bytes(rows)?;
        let number = |&bytes: &[u8; 4]| {
            let number = i32::from_le_bytes(bytes);
            u32::try_from(number)
                .ok()
                .filter(|&number| (number as usize) < end)
                .ok_or_else(|| fault_of(&self.path, format!("{number} is no row of {end}")))
        };
        bytes.as_chunks().0.iter().map(number).collect()
    }

    fn bytes(&mut self, rows: Range<usize>) -> Result<Vec<u8>, BenchError> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(fault_of(&self.path, format!("it has {} rows and not {}", self.rows, rows.end)));
        }
        // Neither overflows: the whole file is that long.
        let row = self.width * self.kind.bytes();
        let mut bytes = vec![0; rows.len() * row];
        self.file
            .seek(SeekFrom::Start(self.start + (rows.start * row) as u64))
            .and_then(|_| self.file.read_exact(&mut bytes))
            .map_err(|error| fault_of(&self.path, error.to_string()))?;
        Ok(bytes)
    }
}

/// Writes a table of f32, `[n, width]` row-major.
pub(super) fn write_floats(path: &Path, width: usize, numbers: &[f32]) -> Result<(), BenchError> {
    let write = |file: File| {
        let mut file = BufWriter::new(file);
        file.write_all(&npy::header(Dtype::F32, (numbers.len() / width) as u64, width))?;
        numbers.chunks_exact(width).try_for_each(|row| file.write_all(&Dtype::F32.encode(row)))?;
        file.flush()
    };
    File::create(path).and_then(write).map_err(|error| fault_of(path, error.to_string()))
}

/// Writes a table of row numbers, all rows of the same width.
pub(super) fn write_row_numbers(path: &Path, rows: &[Vec<u32>]) -> Result<(), BenchError> {
    let mut bytes = npy::header_of_rows(rows.len() as u64, rows.first().map_or(0, Vec::len));
    bytes.extend(rows.iter().flatten().flat_map(|row| row.to_le_bytes()));
    fs::write(path, bytes).map_err(|error| fault_of(path, error.to_string()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use half::f16;

    /// A table of f32 as a file.
    pub(in crate::bench) fn table_of<const WIDTH: usize>(rows: &[[f32; WIDTH]]) -> Vec<u8> {
        let shape = format!("'shape': ({}, {WIDTH})", rows.len());
        let body: Vec<u8> = rows.as_flattened().iter().flat_map(|number| number.to_le_bytes()).collect();
        npy(1, &format!("{{'descr': '<f4', 'fortran_order': False, {shape}, }}"), &body)
    }

    /// A table of row numbers as a file.
    pub(in crate::bench) fn row_numbers(rows: &[Vec<i32>]) -> Vec<u8> {
        let shape = format!("'shape': ({}, {})", rows.len(), rows[0].len());
        let body: Vec<u8> = rows.concat().iter().flat_map(|number| number.to_le_bytes()).collect();
        npy(1, &format!("{{'descr': '<i4', 'fortran_order': False, {shape}, }}"), &body)
    }

    fn npy(major: u8, header: &str, body: &[u8]) -> Vec<u8> {
        let length = (header.len() as u32).to_le_bytes();
        let mut bytes = b"\x93NUMPY".to_vec();
        bytes.extend([major, 0]);
        bytes.extend(&length[..if major == 1 { 2 } else { 4 }]);
        bytes.extend(header.as_bytes());
        bytes.extend(body);
        bytes
    }

    fn open(bytes: &[u8]) -> Result<Npy, String> {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("table.npy");
        fs::write(&path, bytes).expect("the file");
        Npy::open(&path).map_err(|error| error.to_string())
    }

    fn fault(bytes: &[u8]) -> String {
        open(bytes).expect_err("it is wrong")
    }

    const F32: &str = "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }\n";

    fn floats() -> Vec<u8> {
        (0..6).flat_map(|i| (i as f32).to_le_bytes()).collect()
    }

    #[test]
    fn rows_are_read_where_they_lie_in_every_format() {
        for major in [1, 2, 3] {
            let mut table = open(&npy(major, F32, &floats())).expect("it is whole");
            assert_eq!((table.rows(), table.width()), (3, 2));
            assert_eq!(table.floats(1..3).expect("rows"), [2.0, 3.0, 4.0, 5.0]);
            assert_eq!(table.floats(0..1).expect("a row"), [0.0, 1.0]);
            assert!(table.floats(2..4).is_err());
        }
        let half: Vec<u8> = [1.5, -2.0].iter().flat_map(|&v| f16::from_f32(v).to_le_bytes()).collect();
        let header = "{'shape': (1,2),'fortran_order':False, 'descr':'<f2'}";
        assert_eq!(
            open(&npy(1, header, &half)).expect("it is whole").floats(0..1).expect("a row"),
            [1.5, -2.0]
        );
    }

    #[test]
    fn row_numbers_must_be_rows() {
        let header = "{'descr': '<i4', 'fortran_order': False, 'shape': (2, 1), }";
        let body = |second: i32| [7i32.to_le_bytes(), second.to_le_bytes()].concat();
        let mut table = open(&npy(1, header, &body(8))).expect("it is whole");
        assert_eq!(table.row_numbers(0..2, 9).expect("rows"), [7, 8]);
        assert!(table.row_numbers(0..2, 8).expect_err("8 is none").to_string().contains("8 is no row of 8"));
        assert!(table.floats(0..1).is_err());
        let mut table = open(&npy(1, header, &body(-1))).expect("it is whole");
        assert!(table.row_numbers(0..2, 9).is_err());
        let mut table = open(&npy(1, F32, &floats())).expect("it is whole");
        assert!(table.row_numbers(0..1, 9).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_file_is_said() {
        let whole = npy(1, F32, &floats());
        assert!(fault(b"").contains("cut off"));
        assert!(fault(&whole[..9]).contains("cut off"));
        assert!(fault(&whole[..40]).contains("cut off"));
        assert!(fault(&whole[..whole.len() - 1]).contains("3 rows of 2 numbers are"));
        assert!(fault(&[&whole[..], b"x"].concat()).contains("3 rows of 2 numbers are"));
        assert!(fault(b"PK\x03\x04 and so on").contains("no NumPy array"));
        assert!(fault(&npy(9, F32, &floats())).contains("format 9"));
        assert!(
            fault(&npy(2, F32, &floats()).into_iter().map(|b| b.max(0x80)).collect::<Vec<_>>())
                .contains("no NumPy")
        );
        let mut long = npy(2, F32, &floats());
        long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
        assert!(fault(&long).contains("4294967295 bytes"));
        let of = |header: &str| fault(&npy(1, header, &floats()));
        assert!(of(&F32.replace("False", "True")).contains("by columns"));
        assert!(of(&F32.replace("False", "maybe")).contains("odd"));
        assert!(of(&F32.replace("<f4", ">f4")).contains("'>f4'"));
        assert!(of(&F32.replace("<f4", "<f8")).contains("'<f8'"));
        assert!(of(&F32.replace("(3, 2)", "(6,)")).contains("1 dimensions"));
        assert!(of(&F32.replace("(3, 2)", "(3, 2, 1)")).contains("3 dimensions"));
        assert!(of(&F32.replace("(3, 2)", "(3, 0)")).contains("empty"));
        assert!(of(&F32.replace("(3, 2)", "(3, -2)")).contains("'-2' is no length"));
        assert!(of("{}").contains("odd"));
        // As many bytes as there are, once they have gone round: the product must not.
        let huge = format!("({}, 4)", 1usize << 62);
        assert!(of(&F32.replace("(3, 2)", &huge)).contains("no memory"));
        assert!(of(&F32.replace("(3, 2)", "(99999999999999999999999, 2)")).contains("no length"));
    }

    #[test]
    fn a_number_that_is_not_finite_is_found_with_its_row() {
        let mut body = floats();
        body[12..16].copy_from_slice(&f32::NAN.to_le_bytes());
        let error =
            open(&npy(1, F32, &body)).expect("it is whole").floats(0..3).expect_err("NaN").to_string();
        assert!(error.contains("row 1 has a number that is not finite"), "{error}");
    }
}
