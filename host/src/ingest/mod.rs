//! From files to chunks: the front half of `magray index PATH...`.
//!
//! [`walk`] lists the files, [`read_text`] turns a file into text, [`FileKind::of`] names its kind
//! and [`split`] cuts the text into chunks. All are plain functions without database or embedding;
//! any thread may call them, and different files may be handled at the same time.

mod cut;
mod error;
mod kind;
mod outline;
mod read;
mod split;
mod walk;

pub use error::IngestError;
pub use kind::{FileKind, Language};
pub use read::{Content, Skip, read_text};
pub use split::{Chunk, split};
pub use walk::{FileEntry, WalkOptions, walk};
