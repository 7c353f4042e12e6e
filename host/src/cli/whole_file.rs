//! A file that appears under its name when it is whole.
use super::Failure;
use std::{
    io::{self, BufWriter, Seek as _, SeekFrom, Write},
    path::{Path, PathBuf},
};
use tempfile::NamedTempFile;

#[derive(Debug)]
pub(super) struct WholeFile {
    file: BufWriter<NamedTempFile>,
    path: PathBuf,
}

impl WholeFile {
    /// Begins a file beside `path`.
    pub(super) fn create(path: &Path) -> Result<Self, Failure> {
        let folder = path.parent().filter(|folder| *folder != Path::new("")).unwrap_or(Path::new("."));
        let mut options = tempfile::Builder::new();
        options.prefix(".magray-");
        // As any file that a program makes, and not as a temporary one, for its owner alone.
        #[cfg(unix)]
        options.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        let file = options.tempfile_in(folder).map_err(cannot_write(path))?;
        Ok(Self { file: BufWriter::new(file), path: path.to_owned() })
    }

    /// Writes `start` over its beginning, waits until it is on disk, and gives it its name.
    pub(super) fn finish(self, start: &[u8]) -> Result<(), Failure> {
        let Self { file, path } = self;
        let finish = || {
            let mut file = file.into_inner().map_err(io::IntoInnerError::into_error)?;
            if !start.is_empty() {
                file.seek(SeekFrom::Start(0))?;
                file.write_all(start)?;
            }
            file.as_file().sync_all()?;
            file.persist(&path).map_err(|error| error.error)?;
            Ok(())
        };
        finish().map_err(cannot_write(&path))
    }

    /// The failure of a write.
    pub(super) fn failure(&self) -> impl FnOnce(io::Error) -> Failure + use<> {
        cannot_write(&self.path)
    }
}

impl Write for WholeFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn cannot_write(path: &Path) -> impl FnOnce(io::Error) -> Failure + use<> {
    Failure::io(format!("cannot write {}", path.display()))
}
