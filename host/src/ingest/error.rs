use std::path::PathBuf;

/// Why a path given to [`walk`](super::walk), or something below it, could not be listed.
///
/// Each concerns one path; the walk goes on with the next.
#[derive(Debug, thiserror::Error)]
pub enum IngestError {
    #[error("{}: no such file or folder; check the spelling", path.display())]
    Missing { path: PathBuf },

    #[error("{}: neither a file nor a folder, so there is nothing to index", path.display())]
    NotAFile { path: PathBuf },

    #[error("{}: {source}; check its permissions, or leave it out", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },

    /// A folder that cannot be listed, a loop of links, or a bad pattern in an ignore file. The
    /// cause names the path.
    #[error("{0}; its other files are indexed")]
    Walk(#[from] ignore::Error),
}
