//! Vectors as lines of JSON, or as a NumPy array. A file appears under its name when it is whole.
use super::{super::Failure, input::Text};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use clap::ValueEnum;
use half::{f16, slice::HalfFloatSliceExt as _};
use serde::Serialize;
use serde_json::Value;
use std::{
    io::{self, BufWriter, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

/// Bytes before the numbers: room for the count, which is known at the end. A multiple of 64, as the
/// format wants it (<https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>).
const HEADER: usize = 128;

/// Numbers of a NumPy array.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Dtype {
    F32,
    F16,
}

/// How a line of JSON holds a vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Encoding {
    Float,
    Base64,
}

#[derive(Serialize)]
struct LineJson<'a> {
    id: &'a Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<&'a str>,
    embedding: VectorJson<'a>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum VectorJson<'a> {
    Float(&'a [f32]),
    Base64(String),
}

/// Takes vectors.
pub(super) struct Sink {
    out: Out,
    form: Form,
}

enum Out {
    Stdout(BufWriter<io::Stdout>),
    File { file: BufWriter<NamedTempFile>, path: PathBuf },
}

enum Form {
    Jsonl { encoding: Encoding, with_text: bool },
    Npy { dtype: Dtype, dim: usize },
}

impl Sink {
    /// Standard output, or a file beside `output` that takes its name in the end.
    pub(super) fn open(
        output: Option<&Path>,
        dim: usize,
        dtype: Dtype,
        encoding: Encoding,
        with_text: bool,
    ) -> Result<Self, Failure> {
        let is_npy = output.is_some_and(|path| path.extension().is_some_and(|extension| extension == "npy"));
        if !is_npy && dtype != Dtype::F32 {
            return Err(Failure::Usage("--dtype is for a NumPy array: name one by --output FILE.npy".into()));
        }
        if is_npy && (encoding != Encoding::Float || with_text) {
            return Err(Failure::Usage(
                "a NumPy array holds numbers only: --encoding and --with-text are for JSONL".into(),
            ));
        }
        let form = if is_npy { Form::Npy { dtype, dim } } else { Form::Jsonl { encoding, with_text } };
        let out = match output {
            None => Out::Stdout(BufWriter::new(io::stdout())),
            Some(path) => {
                let folder =
                    path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
                let mut options = tempfile::Builder::new();
                options.prefix(".magray-embed-");
                // As any file that a program makes, and not as a temporary one, for its owner alone.
                #[cfg(unix)]
                options.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
                let file = options.tempfile_in(folder).map_err(cannot_write(path))?;
                Out::File { file: BufWriter::new(file), path: path.to_owned() }
            }
        };
        let mut sink = Self { out, form };
        if is_npy {
            sink.bytes(&[0; HEADER])?;
        }
        Ok(sink)
    }

    /// Writes the vector of a text; `number` is its id where it has none.
    pub(super) fn write(&mut self, text: &Text, number: u64, vector: &[f32]) -> Result<(), Failure> {
        match self.form {
            Form::Npy { dtype: Dtype::F32, .. } => {
                let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                self.bytes(&bytes)
            }
            Form::Npy { dtype: Dtype::F16, .. } => {
                let mut halves = vec![f16::ZERO; vector.len()];
                halves.convert_from_f32_slice(vector);
                let bytes: Vec<u8> = halves.iter().flat_map(|v| v.to_le_bytes()).collect();
                self.bytes(&bytes)
            }
            Form::Jsonl { encoding, with_text } => {
                let number = Value::from(number);
                let embedding = match encoding {
                    Encoding::Float => VectorJson::Float(vector),
                    Encoding::Base64 => {
                        let bytes: Vec<u8> = vector.iter().flat_map(|v| v.to_le_bytes()).collect();
                        VectorJson::Base64(STANDARD.encode(bytes))
                    }
                };
                let id = text.id.as_ref().unwrap_or(&number);
                let line = LineJson { id, text: with_text.then_some(&text.text), embedding };
                let mut line =
                    serde_json::to_vec(&line).map_err(|error| self.failure()(io::Error::from(error)))?;
                line.push(b'\n');
                self.bytes(&line)
            }
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        let written = match &mut self.out {
            Out::Stdout(out) => out.write_all(bytes),
            Out::File { file, .. } => file.write_all(bytes),
        };
        written.map_err(self.failure())
    }

    /// Hands on what is buffered.
    pub(super) fn flush(&mut self) -> Result<(), Failure> {
        let flushed = match &mut self.out {
            Out::Stdout(out) => out.flush(),
            Out::File { file, .. } => file.flush(),
        };
        flushed.map_err(self.failure())
    }

    /// Completes the output, which has `rows` vectors.
    pub(super) fn finish(mut self, rows: u64) -> Result<(), Failure> {
        self.flush()?;
        let failure = self.failure();
        let Out::File { file, path } = self.out else { return Ok(()) };
        let finish = || {
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            if let Form::Npy { dtype, dim } = self.form {
                file.seek(SeekFrom::Start(0))?;
                file.write_all(&header(dtype, rows, dim))?;
            }
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        finish().map_err(failure)
    }

    fn failure(&self) -> impl FnOnce(io::Error) -> Failure + use<> {
        match &self.out {
            Out::Stdout(_) => Failure::io("cannot write to standard output".to_owned()),
            Out::File { path, .. } => Failure::io(format!("cannot write {}", path.display())),
        }
    }
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> Failure + use<> {
    Failure::io(format!("cannot write {}", path.display()))
}

/// The header of an array `[rows, dim]`, row-major, format version 1.0.
fn header(dtype: Dtype, rows: u64, dim: usize) -> Vec<u8> {
    let descr = match dtype {
        Dtype::F32 => "<f4",
        Dtype::F16 => "<f2",
    };
    let dict = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': ({rows}, {dim}), }}");
    let mut header = b"\x93NUMPY\x01\x00".to_vec();
    header.extend(((HEADER - 10) as u16).to_le_bytes());
    header.extend(dict.as_bytes());
    header.resize(HEADER - 1, b' ');
    header.push(b'\n');
    header
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
}
