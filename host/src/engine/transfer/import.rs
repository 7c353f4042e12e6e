use super::{MARK, Mark, SpaceMark, VERSION};
use crate::{
    engine::{Engine, EngineError, now_ms, room::record_bytes},
    store::{ImportDefaults, ImportRecord, Imported, Layer, PortableRecord, PortableVector, Space},
};
use magray_plugin_api::CallContext;
use std::io::{self, BufRead, Read as _};

/// Records that share a transaction.
const BATCH: usize = 1000;
/// Bytes of a line beside its text: a vector in digits, and the other fields.
const LINE_BYTES: u64 = 1 << 20;
/// Bytes that a byte of text takes in JSON at most, as `\u0000`.
const ESCAPED: u64 = 6;
/// Bad lines that are told one by one.
const TOLD: usize = 100;

/// Where records come from.
#[expect(missing_debug_implementations, reason = "it is a stream")]
pub struct ImportInput<'a> {
    /// Lines of JSON.
    pub lines: &'a mut dyn BufRead,
    /// The vector of each line, where these stand apart.
    pub rows: Option<&'a mut dyn FnMut() -> io::Result<Vec<f32>>>,
    /// Whether lines that cannot be taken in are passed over, or end it.
    pub skip_bad: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImportProgress {
    /// Records read, of as many as the file says.
    Records {
        /// Read and taken in.
        done: u64,
        /// In all, where it is known.
        total: Option<u64>,
    },
    /// Records without a vector that got one.
    Embedded(u64),
}

/// A line that was passed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadLine {
    /// Its number, from 1.
    pub line: u64,
    /// Why.
    pub reason: String,
}

/// What was taken in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImportReport {
    /// Records that were read.
    pub records: u64,
    /// Records that are new, by layer in the order of [`Layer::ALL`].
    pub new: [u64; Layer::ALL.len()],
    /// Records that were there and are other now.
    pub updated: u64,
    /// Records that were there, the same.
    pub unchanged: u64,
    /// Records whose time was over.
    pub expired: u64,
    /// Lines that were passed over.
    pub bad: u64,
    /// The first of them.
    pub bad_lines: Vec<BadLine>,
    /// Records that were found in the database after they were committed.
    pub verified: u64,
    /// Vectors that came along, of the model in force.
    pub vectors: u64,
    /// The model of vectors that came along and were left, for another is in force.
    pub foreign_model: Option<String>,
    /// Records that got a vector here.
    pub embedded: u64,
    /// Links to records that are not there.
    pub broken_links: u64,
    /// BLAKE3 of the lines of records, in hexadecimal digits.
    pub blake3: String,
    /// Whether count and digest are those that the export says. None where it does not say any.
    pub whole: Option<bool>,
}

impl Engine {
    /// Takes in what [`Engine::export`] wrote, or lines of records by others, which need no more than a
    /// `text`. A record is known by its id, else by what it says, so that the same file may be taken in
    /// again: it then changes nothing. Records are committed by the thousand, and what is committed stays,
    /// whatever comes later in the file. In the end records that have no vector are embedded.
    ///
    /// # Errors
    /// [`EngineError::Invalid`] for a bad line, with its number; `Io` where it cannot be read, `NoRoom`,
    /// `Interrupted`, and what the store says.
    pub fn import(
        &self,
        cx: &dyn CallContext,
        input: ImportInput<'_>,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<ImportReport, EngineError> {
        let vectors = self.vectors()?;
        let id = vectors.space;
        let space = self.store.spaces()?.into_iter().find(|space| space.id == id);
        let space = space.ok_or_else(|| EngineError::Invalid("the space of the model is gone".into()))?;
        let defaults = ImportDefaults {
            layer: self.default_layer(),
            expires_ms: Layer::ALL.map(|layer| self.expiry(layer)),
        };
        let mut import = Import {
            engine: self,
            space,
            defaults,
            has_rows: input.rows.is_some(),
            skip_bad: input.skip_bad,
            export: None,
            foreign: None,
            end: None,
            batch: Vec::with_capacity(BATCH),
            links: Vec::new(),
            hasher: blake3::Hasher::new(),
            report: ImportReport::default(),
        };
        import.read(cx, input, progress)?;
        let mut report = import.finish(cx)?;
        report.embedded = self.embed_missing_in(cx, vectors, &mut |done| {
            progress(ImportProgress::Embedded(done));
        })?;
        Ok(report)
    }
}

/// An import under way.
struct Import<'a> {
    engine: &'a Engine,
    space: Space,
    defaults: ImportDefaults,
    has_rows: bool,
    skip_bad: bool,
    /// Records that the export announces.
    export: Option<u64>,
    /// Why the vectors of the file are of no use: the model that they are of.
    foreign: Option<String>,
    /// Records and digest, as the last line has them.
    end: Option<(u64, String)>,
    /// Records, each with the number of its line.
    batch: Vec<(u64, ImportRecord)>,
    links: Vec<(String, String)>,
    hasher: blake3::Hasher,
    report: ImportReport,
}

impl Import<'_> {
    fn read(
        &mut self,
        cx: &dyn CallContext,
        input: ImportInput<'_>,
        progress: &mut dyn FnMut(ImportProgress),
    ) -> Result<(), EngineError> {
        let ImportInput { lines, mut rows, .. } = input;
        // What nothing names the model of is of no use.
        self.foreign = Some("an unnamed model".to_owned());
        let text_limit = self.engine.setup.config.ingest.max_file_bytes;
        let limit = text_limit.saturating_mul(ESCAPED).saturating_add(LINE_BYTES);
        let (mut line, mut number) = (Vec::new(), 0);
        loop {
            line.clear();
            number += 1;
            if (&mut *lines).take(limit).read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if line.len() as u64 == limit {
                // Where it ends nobody knows, so there is no way on.
                return Err(self.stop(cx, number, &format!("it has more than {limit} bytes")));
            }
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            if line.starts_with(MARK) {
                self.mark(cx, number, &line)?;
                continue;
            }
            if self.end.is_some() {
                return Err(self.stop(cx, number, "the export ended before"));
            }
            self.report.records += 1;
            self.hasher.update(&line);
            let row = rows.as_mut().map(|rows| rows()).transpose()?;
            match self.record(&line, row, text_limit) {
                Ok(record) => self.batch.push((number, record)),
                Err(reason) if self.skip_bad => self.pass_over(number, reason),
                Err(reason) => return Err(self.stop(cx, number, &reason)),
            }
            if self.batch.len() == BATCH {
                self.store(cx)?;
                progress(ImportProgress::Records { done: self.report.records, total: self.export });
            }
        }
        self.store(cx)?;
        progress(ImportProgress::Records { done: self.report.records, total: self.export });
        Ok(())
    }

    /// The line that begins or ends an export.
    fn mark(&mut self, cx: &dyn CallContext, number: u64, line: &[u8]) -> Result<(), EngineError> {
        match serde_json::from_slice(line) {
            Ok(Mark::Export { version, .. }) if version > VERSION => {
                Err(self.stop(cx, number, &format!("it is of format {version}; a newer magray reads it")))
            }
            Ok(Mark::Export { records, space, .. }) if self.report.records == 0 && self.export.is_none() => {
                self.export = Some(records);
                self.foreign = match space {
                    Some(space) if space == SpaceMark::from(&self.space) => None,
                    Some(space) => Some(space.model),
                    None => self.foreign.take(),
                };
                Ok(())
            }
            Ok(Mark::End { records, blake3 }) if self.end.is_none() => {
                self.end = Some((records, blake3));
                Ok(())
            }
            Ok(_) => {
                Err(self.stop(cx, number, "an export begins and ends once; give several to several runs"))
            }
            Err(error) => Err(self.stop(cx, number, &error.to_string())),
        }
    }

    fn record(&mut self, line: &[u8], row: Option<Vec<f32>>, limit: u64) -> Result<ImportRecord, String> {
        let mut record: PortableRecord = serde_json::from_slice(line).map_err(|error| {
            // It always says line 1.
            let (column, text) = (error.column(), error.to_string());
            let text = text.split(" at line 1").next().unwrap_or(&text);
            format!("{text}, at column {column}")
        })?;
        if record.text.len() as u64 > limit {
            return Err(format!(
                "the text has {} bytes, and the limit is {limit}; raise [ingest] max_file_bytes",
                record.text.len()
            ));
        }
        if self.has_rows {
            record.vector =
                row.map(|row| PortableVector::new(&row)).transpose().map_err(|e| e.to_string())?;
        }
        if let (Some(_), Some(model)) = (&record.vector, &self.foreign) {
            self.report.foreign_model.get_or_insert_with(|| model.clone());
            record.vector = None;
        }
        let has_vector = record.vector.is_some();
        let record = ImportRecord::new(record, &self.defaults, self.space.dim).map_err(|e| e.to_string())?;
        self.report.vectors += u64::from(has_vector);
        Ok(record)
    }

    /// Commits what was read.
    fn store(&mut self, cx: &dyn CallContext) -> Result<(), EngineError> {
        cx.check().map_err(|_| EngineError::Interrupted)?;
        let now = now_ms();
        let (numbers, records): (Vec<u64>, Vec<ImportRecord>) = self
            .batch
            .drain(..)
            .filter(|(_, record)| {
                let is_over = record.expires_ms().is_some_and(|due| due <= now);
                self.report.expired += u64::from(is_over);
                !is_over
            })
            .unzip();
        if records.is_empty() {
            return Ok(());
        }
        let texts = records.iter().map(|record| record.text_bytes() as u64).sum();
        let bytes = record_bytes(records.len() as u64, texts, self.space.dim);
        self.engine.setup.ensure_room(&self.engine.setup.data_dir, bytes, "the next records")?;
        self.engine.ensure_capacity(self.space.id, records.len() as u64)?;
        self.links.extend(records.iter().filter_map(ImportRecord::link));
        let layers: Vec<Layer> = records.iter().map(ImportRecord::layer).collect();
        let imported = self.engine.store.import(self.space.id, records)?;
        let ids: Vec<_> = imported.iter().filter_map(Imported::id).collect();
        self.report.verified += self.engine.store.count_of(&ids)?;
        let mut refused = None;
        for ((number, imported), layer) in numbers.into_iter().zip(imported).zip(layers) {
            match imported {
                Imported::New(_) => self.report.new[layer as usize] += 1,
                Imported::Updated(_) => self.report.updated += 1,
                Imported::Unchanged(_) => self.report.unchanged += 1,
                Imported::Refused(reason) if self.skip_bad => self.pass_over(number, reason),
                Imported::Refused(reason) => refused = refused.or(Some((number, reason))),
            }
        }
        match refused {
            Some((number, reason)) => Err(self.stop(cx, number, &reason)),
            None => Ok(()),
        }
    }

    fn pass_over(&mut self, line: u64, reason: String) {
        self.report.bad += 1;
        if self.report.bad_lines.len() < TOLD {
            self.report.bad_lines.push(BadLine { line, reason });
        }
    }

    /// Commits what came before a bad line, and says what is wrong with it.
    fn stop(&mut self, cx: &dyn CallContext, number: u64, reason: &str) -> EngineError {
        if let Err(error) = self.store(cx) {
            return error;
        }
        EngineError::Invalid(format!(
            "line {number}: {reason}; the {} records before it are taken in, and the corrected file may be taken in \
             again; --skip-bad passes over such lines",
            self.report.verified
        ))
    }

    /// Makes the links, and holds what was read against what the export says.
    fn finish(mut self, cx: &dyn CallContext) -> Result<ImportReport, EngineError> {
        for links in self.links.chunks(BATCH) {
            cx.check().map_err(|_| EngineError::Interrupted)?;
            self.report.broken_links += self.engine.store.supersede(links.to_vec())?;
        }
        self.report.blake3 = self.hasher.finalize().to_hex().to_string();
        self.report.whole = match (&self.end, self.export) {
            (Some((records, blake3)), _) => {
                Some(*records == self.report.records && *blake3 == self.report.blake3)
            }
            // Its last line is missing.
            (None, Some(_)) => Some(false),
            (None, None) => None,
        };
        Ok(self.report)
    }
}
