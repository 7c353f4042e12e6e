//! Records to lines of JSON and back.
//!
//! An export begins with a line that says what it is and ends with one that counts and digests what is
//! between; every other line is a [`PortableRecord`]. Lines of records alone are taken in, too.
mod import;

pub use import::{BadLine, ImportInput, ImportProgress, ImportReport};

use super::{Engine, EngineError, now_ms};
use crate::store::{Filter, Layer, PortableRecord, PortableVector, Space, StoreError};
use magray_plugin_api::CallContext;
use serde::{Deserialize, Serialize};
use std::{
    io::{self, Write},
    ops::ControlFlow,
};

/// The version of the format that is written, and the newest that is read.
const VERSION: u32 = 1;
/// How the first and the last line begin, and no record.
const MARK: &[u8] = b"{\"magray\":";

/// A line that is no record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "magray", rename_all = "lowercase")]
enum Mark {
    Export {
        version: u32,
        created_ms: u64,
        /// Records that follow.
        records: u64,
        /// That of the vectors.
        space: Option<SpaceMark>,
    },
    End {
        records: u64,
        /// BLAKE3 of the lines of records, in hexadecimal digits.
        blake3: String,
    },
}

/// A space, wherever it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct SpaceMark {
    digest: String,
    model: String,
    dim: usize,
}

impl From<&Space> for SpaceMark {
    fn from(space: &Space) -> Self {
        let digest = space.digest.iter().map(|byte| format!("{byte:02x}")).collect();
        Self { digest, model: space.model.clone(), dim: space.dim }
    }
}

/// What to do with vectors.
#[expect(missing_debug_implementations, reason = "it has a closure")]
pub enum ExportVectors<'a> {
    /// Leave them out.
    Omit,
    /// Write them into the lines.
    Inline,
    /// Hand them over, `[dim]` each, in the order of the lines; records without one are left out.
    Rows(&'a mut dyn FnMut(&[f32]) -> io::Result<()>),
}

/// What was exported.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ExportReport {
    /// Records in all.
    pub records: u64,
    /// Records by layer, in the order of [`Layer::ALL`].
    pub layers: [u64; Layer::ALL.len()],
    /// Vectors.
    pub vectors: u64,
    /// Records that were left out, for they have no vector.
    pub left_out: u64,
    /// BLAKE3 of the lines of records, in hexadecimal digits.
    pub blake3: String,
}

impl Engine {
    /// Width of the vectors of the model in force.
    ///
    /// # Errors
    /// [`EngineError`] where the model cannot be had.
    pub fn dim(&self) -> Result<usize, EngineError> {
        Ok(self.vectors()?.embedding.info().dim)
    }

    /// Writes the records that fit as lines of JSON, as they are at one moment, one after the other, so
    /// that any number takes no memory. Vectors are those of the model in force. `progress` is told how
    /// many of how many are written.
    ///
    /// # Errors
    /// [`EngineError::Io`] where `out` fails, `Interrupted`, and what the store says.
    pub fn export(
        &self,
        cx: &dyn CallContext,
        filter: &Filter,
        mut vectors: ExportVectors<'_>,
        out: &mut dyn Write,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<ExportReport, EngineError> {
        match self.store.flush() {
            Err(StoreError::ReadOnly { .. }) | Ok(()) => {}
            Err(error) => return Err(error.into()),
        }
        let space = match vectors {
            ExportVectors::Omit => None,
            _ => {
                let id = self.vectors()?.space;
                self.store.spaces()?.into_iter().find(|space| space.id == id)
            }
        };
        let (mut report, mut hasher) = (ExportReport::default(), blake3::Hasher::new());
        let (mut begun, mut failure, mut line) = (false, None, Vec::new());
        let created_ms = now_ms();
        let begin = |out: &mut dyn Write, records| {
            let space = space.as_ref().map(SpaceMark::from);
            write_line(out, &Mark::Export { version: VERSION, created_ms, records, space })
        };
        let visited =
            self.store.export(filter, space.as_ref().map(|space| space.id), &mut |total, record| {
                let write = || -> Result<(), EngineError> {
                    cx.check().map_err(|_| EngineError::Interrupted)?;
                    if !std::mem::replace(&mut begun, true) {
                        begin(out, total)?;
                    }
                    if let Some(record) = apart(record, &mut vectors, space.as_ref(), &mut report)? {
                        line.clear();
                        serde_json::to_writer(&mut line, &record).map_err(io::Error::from)?;
                        line.push(b'\n');
                        hasher.update(&line);
                        out.write_all(&line)?;
                        report.records += 1;
                        report.layers[record.layer.unwrap_or(Layer::Insights) as usize] += 1;
                    }
                    Ok(())
                };
                match write() {
                    Ok(()) => {
                        progress(report.records + report.left_out, total);
                        ControlFlow::Continue(())
                    }
                    Err(error) => {
                        failure = Some(error);
                        ControlFlow::Break(())
                    }
                }
            });
        if let Some(failure) = failure {
            return Err(failure);
        }
        if visited? == 0 {
            begin(out, 0)?;
        }
        report.blake3 = hasher.finalize().to_hex().to_string();
        write_line(out, &Mark::End { records: report.records, blake3: report.blake3.clone() })?;
        out.flush()?;
        Ok(report)
    }
}

/// The record as its line has it; none where it is left out.
fn apart(
    mut record: PortableRecord,
    vectors: &mut ExportVectors<'_>,
    space: Option<&Space>,
    report: &mut ExportReport,
) -> io::Result<Option<PortableRecord>> {
    if let (ExportVectors::Rows(row), Some(space)) = (vectors, space) {
        let Some(vector) = record.vector.take() else {
            report.left_out += 1;
            return Ok(None);
        };
        row(&PortableVector::numbers(&vector, space.dim))?;
        report.vectors += 1;
    }
    report.vectors += u64::from(record.vector.is_some());
    Ok(Some(record))
}

fn write_line(out: &mut dyn Write, mark: &Mark) -> io::Result<()> {
    serde_json::to_writer(&mut *out, mark)?;
    out.write_all(b"\n")
}
