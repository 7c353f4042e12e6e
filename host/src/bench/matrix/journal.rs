//! The cells that were measured, one a line, so that a matrix that was interrupted goes on.
use super::super::{BenchError, data::fault_of, machine::Conditions};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use std::{
    collections::HashMap,
    fs::{self, File, OpenOptions},
    io::Write as _,
    path::{Path, PathBuf},
};

#[derive(Serialize, Deserialize)]
struct Heading {
    /// Of the data and of all that decides what is measured.
    matrix: String,
}

#[derive(Serialize, Deserialize)]
struct Line {
    cell: String,
    conditions: Conditions,
    figures: Value,
}

/// Measured cells, in memory and in a file where there is one.
#[derive(Debug)]
pub(super) struct Journal {
    file: Option<(PathBuf, File)>,
    cells: HashMap<String, Value>,
    /// In which each cell was measured.
    pub(super) conditions: Vec<Conditions>,
}

impl Journal {
    /// Reads what a run with the same `fingerprint` left in the file, but for a line that it did not finish.
    ///
    /// # Errors
    /// [`BenchError::Data`] for a file of another matrix, or of anything else.
    pub(super) fn open(path: Option<&Path>, fingerprint: &str) -> Result<Self, BenchError> {
        let mut journal = Self { file: None, cells: HashMap::new(), conditions: Vec::new() };
        let Some(path) = path else { return Ok(journal) };
        let failed = |error: std::io::Error| fault_of(path, error.to_string());
        let text = if path.exists() { fs::read_to_string(path).map_err(failed)? } else { String::new() };
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].lines();
        let heading = lines.next().map(|line| {
            let heading: Result<Heading, _> = serde_json::from_str(line);
            heading.map_err(|_| fault_of(path, "it is no file of `bench matrix --resume`"))
        });
        match heading.transpose()? {
            Some(Heading { matrix }) if matrix != fingerprint => {
                let fault = "it is of another matrix: the data, the settings or the flags have changed; \
                             name another file, or delete this one";
                return Err(fault_of(path, fault));
            }
            Some(_) => {}
            // A foreign file without a line break is not ours to cut.
            None if !text.is_empty() && !text.starts_with("{\"matrix\":") => {
                return Err(fault_of(path, "it is no file of `bench matrix --resume`"));
            }
            None => {}
        }
        for (at, line) in lines.enumerate() {
            let line: Line = serde_json::from_str(line)
                .map_err(|error| fault_of(path, format!("line {}: {error}", at + 2)))?;
            journal.cells.insert(line.cell, line.figures);
            journal.conditions.push(line.conditions);
        }
        let file = OpenOptions::new().create(true).append(true).open(path).map_err(failed)?;
        file.set_len(whole as u64).map_err(failed)?;
        journal.file = Some((path.to_owned(), file));
        if whole == 0 {
            journal.write(&Heading { matrix: fingerprint.to_owned() })?;
        }
        Ok(journal)
    }

    /// The figures of a cell, where it was measured.
    pub(super) fn get<T: DeserializeOwned>(&self, cell: &str) -> Option<T> {
        serde_json::from_value(self.cells.get(cell)?.clone()).ok()
    }

    /// Adds a cell that has just been measured.
    ///
    /// # Errors
    /// [`BenchError::Data`] where the file cannot be written.
    pub(super) fn put<T: Serialize>(&mut self, cell: &str, figures: &T) -> Result<(), BenchError> {
        let unfit = |error: serde_json::Error| fault_of(Path::new(cell), error.to_string());
        let figures = serde_json::to_value(figures).map_err(unfit)?;
        let line = Line { cell: cell.to_owned(), conditions: Conditions::now(), figures };
        self.write(&line)?;
        self.conditions.push(line.conditions);
        self.cells.insert(line.cell, line.figures);
        Ok(())
    }

    fn write(&mut self, line: &impl Serialize) -> Result<(), BenchError> {
        let Some((path, file)) = &mut self.file else { return Ok(()) };
        let mut write = || {
            let mut text = serde_json::to_string(line)?;
            text.push('\n');
            file.write_all(text.as_bytes())?;
            file.sync_data()
        };
        write().map_err(|error: std::io::Error| fault_of(path, error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_measured_is_there_again_but_for_a_line_that_was_cut_off() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("run.jsonl");
        let mut journal = Journal::open(Some(&path), "one").expect("a new file");
        journal.put("a", &[1, 2]).expect("it is written");
        journal.put("b", &[3]).expect("it is written");
        drop(journal);
        let text = fs::read_to_string(&path).expect("the file");
        fs::write(&path, &text[..text.len() - 4]).expect("cut off");
        let mut journal = Journal::open(Some(&path), "one").expect("the same");
        assert_eq!((journal.get::<Vec<u32>>("a"), journal.get::<Vec<u32>>("b")), (Some(vec![1, 2]), None));
        journal.put("b", &[4]).expect("it is written");
        drop(journal);
        let journal = Journal::open(Some(&path), "one").expect("the same");
        assert_eq!((journal.get("b"), journal.conditions.len()), (Some(vec![4]), 2));
        let error = Journal::open(Some(&path), "two").expect_err("another").to_string();
        assert!(error.contains("another matrix"), "{error}");
    }

    #[test]
    fn a_file_of_something_else_is_left_alone() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("letter.txt");
        for text in ["Dear Sir", "Dear Sir\nor Madam\n"] {
            fs::write(&path, text).expect("a file");
            assert!(Journal::open(Some(&path), "one").is_err());
            assert_eq!(fs::read_to_string(&path).expect("the file"), text);
        }
    }

    #[test]
    fn without_a_file_cells_are_kept_in_memory() {
        let mut journal = Journal::open(None, "one").expect("nothing to read");
        journal.put("a", &7).expect("kept");
        assert_eq!(journal.get::<u32>("a"), Some(7));
    }
}
