//! `magray index`: files to records, several files at a time, each file whole or not at all.
#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests;

use super::{Engine, EngineError, room};
use crate::{
    ingest::{self, Chunk, FileEntry, FileKind, Skip, WalkOptions},
    store::{Layer, NewRecord, NewSource, SourceRef},
};
use magray_plugin_api::{CallContext, Role};
use std::{
    collections::{BTreeSet, HashSet},
    io::ErrorKind,
    num::NonZero,
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    thread,
};

/// Chunks embedded and committed at a time. More amortises the wait for the disk, fewer lose less
/// when interrupted.
const BATCH_CHUNKS: usize = 2048;
/// Files that may wait for the embedder, so that reading never runs far ahead.
const READ_AHEAD: usize = 64;
/// Unchanged files whose records are prolonged at a time, so that other writers get their turn.
const PROLONG_BATCH: usize = 1024;
/// Raise it when [`ingest::split`] cuts otherwise than before, so that every file is split again.
const SPLIT_VERSION: u32 = 1;

/// What to index, and how to label it.
#[derive(Clone, Debug, Default)]
pub struct IndexRequest {
    /// Files and folders.
    pub paths: Vec<PathBuf>,
    /// The layer of the records; `assets` where none is given.
    pub layer: Option<Layer>,
    /// The project of the records.
    pub project: Option<String>,
    /// Labels of the records.
    pub tags: Vec<String>,
    /// Whether to take hidden files too.
    pub hidden: bool,
}

/// How far it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexProgress {
    /// Files dealt with.
    pub files: usize,
    /// Files in all.
    pub total: usize,
    /// Chunks stored or found unchanged.
    pub chunks: u64,
}

/// What was done.
#[derive(Clone, Debug, Default)]
#[expect(missing_docs, reason = "counts by their names")]
pub struct IndexReport {
    pub files_indexed: u64,
    pub files_unchanged: u64,
    /// Files that are gone, or are ignored now, and whose records were removed.
    pub files_removed: u64,
    pub chunks_added: u64,
    pub chunks_kept: u64,
    pub chunks_removed: u64,
    /// Records of other commands that had no vector of this model and got one.
    pub embedded: u64,
    /// Files passed over, each with the reason.
    pub skipped: Vec<FileReport>,
}

/// A file that was passed over.
#[derive(Clone, Debug)]
pub struct FileReport {
    /// The file; none where the message names it.
    pub path: Option<PathBuf>,
    /// Why.
    pub reason: String,
    /// Whether that is an error, and not a file that is no text.
    pub is_error: bool,
}

/// What the walk found.
#[derive(Default)]
struct Listing {
    files: Vec<FileEntry>,
    /// The given paths that are listed to the last file.
    complete: Vec<PathBuf>,
    /// Sources at and below given paths that are gone.
    vanished: BTreeSet<String>,
}

/// A file on its way.
enum Read {
    Unchanged { path: String },
    Skipped { reason: String, is_error: bool },
    Changed { source: NewSource, chunks: Vec<Chunk> },
}

impl From<Skip> for Read {
    fn from(why: Skip) -> Self {
        Self::Skipped { reason: why.to_string(), is_error: matches!(why, Skip::Unreadable(_)) }
    }
}

impl Engine {
    /// Makes the records of all files at and below the paths be what the files say now: new and
    /// changed files are split, embedded and stored, unchanged ones are found by their hash and
    /// left alone but for their expiry, which is prolonged, and records of files that are gone are
    /// removed; a given path may itself be gone. Each file is replaced in one transaction, so an
    /// interrupted run goes on where it was. Passages of a file keep their records where their text
    /// stays the same. Other labels or another size of chunks make a file a changed one.
    ///
    /// # Errors
    /// [`EngineError`]; a file that cannot be read is only reported.
    pub fn index_files(
        &self,
        cx: &dyn CallContext,
        request: &IndexRequest,
        progress: &mut dyn FnMut(IndexProgress),
    ) -> Result<IndexReport, EngineError> {
        let mut report = IndexReport::default();
        let listing = self.list(cx, request, &mut report)?;
        self.embedding()?.keep_standby();
        let mut state = IndexProgress { total: listing.files.len(), ..IndexProgress::default() };
        progress(state);
        self.index_each(cx, request, &listing.files, &mut report, &mut |files, chunks| {
            state.files += files;
            state.chunks += chunks;
            progress(state);
        })?;
        report.files_removed = self.remove_vanished(listing, &report)?;
        report.embedded = self.embed_missing(cx)?;
        Ok(report)
    }

    /// Lists the files at and below the paths, each once.
    fn list(
        &self,
        cx: &dyn CallContext,
        request: &IndexRequest,
        report: &mut IndexReport,
    ) -> Result<Listing, EngineError> {
        let options = WalkOptions { hidden: request.hidden, follow_links: false };
        let (mut listing, mut seen) = (Listing::default(), HashSet::new());
        for path in &request.paths {
            let vanished = match vanished(path).as_deref().and_then(Path::to_str) {
                Some(path) => self.store.source_paths(path)?,
                None => Vec::new(),
            };
            if !vanished.is_empty() {
                listing.vanished.extend(vanished);
                continue;
            }
            let mut is_complete = true;
            for found in ingest::walk(std::slice::from_ref(path), &options) {
                check(cx)?;
                match found {
                    Ok(file) => {
                        if seen.insert(file.path.clone()) {
                            listing.files.push(file);
                        }
                    }
                    Err(error) => {
                        is_complete = false;
                        let reason = error.to_string();
                        report.skipped.push(FileReport { path: None, reason, is_error: true });
                    }
                }
            }
            if is_complete {
                listing.complete.extend(path.canonicalize());
            }
        }
        Ok(listing)
    }

    fn index_each(
        &self,
        cx: &dyn CallContext,
        request: &IndexRequest,
        files: &[FileEntry],
        report: &mut IndexReport,
        done: &mut dyn FnMut(usize, u64),
    ) -> Result<(), EngineError> {
        let next = AtomicUsize::new(0);
        let settings = self.source_settings(request);
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let (sender, receiver) = mpsc::sync_channel(READ_AHEAD);
        thread::scope(|scope| {
            for _ in 0..workers {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // The receiver is gone when the run was interrupted.
                        if sender.send((file, self.read(file, request, settings))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let (mut batch, mut unchanged) = (Vec::new(), Vec::new());
            for (file, read) in receiver {
                check(cx)?;
                match read? {
                    Read::Unchanged { path } => {
                        unchanged.push(path);
                        report.files_unchanged += 1;
                        done(1, 0);
                    }
                    Read::Skipped { reason, is_error } => {
                        report.skipped.push(FileReport { path: Some(file.path.clone()), reason, is_error });
                        done(1, 0);
                    }
                    Read::Changed { source, chunks } => batch.push((source, chunks)),
                }
                if batch.iter().map(|(_, chunks)| chunks.len().max(1)).sum::<usize>() >= BATCH_CHUNKS {
                    self.store_files(cx, request, std::mem::take(&mut batch), report, done)?;
                }
            }
            self.store_files(cx, request, batch, report, done)?;
            self.prolong(request, &unchanged)
        })
    }

    fn read(
        &self,
        file: &FileEntry,
        request: &IndexRequest,
        settings: [u8; 32],
    ) -> Result<Read, EngineError> {
        let Some(path) = file.path.to_str() else {
            let reason = "its path is not UTF-8; rename it to index it".to_owned();
            return Ok(Read::Skipped { reason, is_error: false });
        };
        let ingest = &self.setup.config.ingest;
        let content = match ingest::read_text(&file.path, ingest.max_file_bytes) {
            Ok(content) => content,
            Err(why) => return Ok(why.into()),
        };
        let layer = layer(request);
        let source = NewSource {
            path: path.to_owned(),
            content_hash: *content.hash.as_bytes(),
            settings,
            size: file.size,
            mtime_ms: u64::try_from(file.mtime_ms).unwrap_or(0),
            project: request.project.clone(),
            layer,
        };
        if let Some(known) = self.store.source(&source.path)?
            && known.file.content_hash == source.content_hash
            && known.file.settings == source.settings
            && known.file.layer == source.layer
            && known.file.project == source.project
        {
            return Ok(Read::Unchanged { path: source.path });
        }
        let kind = FileKind::of(&file.path, &content.text);
        let stem = file.path.file_stem().map(|stem| stem.to_string_lossy());
        let chunks = ingest::split(&content.text, kind, stem.as_deref(), ingest.chunk_chars);
        Ok(Read::Changed { source, chunks })
    }

    /// Digest of what the records of a file depend on beside its bytes, layer and project.
    fn source_settings(&self, request: &IndexRequest) -> [u8; 32] {
        let tags: BTreeSet<&str> = request.tags.iter().map(|tag| tag.trim()).collect();
        let settings = (SPLIT_VERSION, self.setup.config.ingest.chunk_chars, tags);
        // Debug quotes the tags, so that no two lists look alike.
        *blake3::hash(format!("{settings:?}").as_bytes()).as_bytes()
    }

    /// Lets the records of unchanged files live as long as if they were stored now.
    fn prolong(&self, request: &IndexRequest, unchanged: &[String]) -> Result<(), EngineError> {
        if let Some(expires_ms) = self.expiry(layer(request)) {
            for paths in unchanged.chunks(PROLONG_BATCH) {
                self.store.prolong_sources(paths, expires_ms)?;
            }
        }
        Ok(())
    }

    fn store_files(
        &self,
        cx: &dyn CallContext,
        request: &IndexRequest,
        batch: Vec<(NewSource, Vec<Chunk>)>,
        report: &mut IndexReport,
        done: &mut dyn FnMut(usize, u64),
    ) -> Result<(), EngineError> {
        let vectors = self.vectors()?;
        let mut sources: Vec<(NewSource, Vec<NewRecord>)> = Vec::with_capacity(batch.len());
        // Passages that were there before keep their vectors: (source, record, text to embed).
        let mut missing = Vec::new();
        for (source, chunks) in batch {
            let mut texts: Vec<String> = chunks.iter().map(Chunk::embedding_text).collect();
            let records: Vec<_> =
                chunks.into_iter().map(|chunk| self.record(request, &source, chunk)).collect();
            for at in self.store.records_to_embed(&source, &records, vectors.space)? {
                missing.push((sources.len(), at, std::mem::take(&mut texts[at])));
            }
            sources.push((source, records));
        }
        let records = sources.iter().map(|(_, records)| records.len() as u64).sum();
        let bytes =
            sources.iter().flat_map(|(_, records)| records).map(|record| record.text.len() as u64).sum();
        let needed = room::record_bytes(records, bytes, vectors.embedding.info().dim);
        self.setup.ensure_room(&self.setup.data_dir, needed, "the next passages")?;
        self.ensure_capacity(vectors.space, missing.len() as u64)?;
        let texts: Vec<&str> = missing.iter().map(|(_, _, text)| text.as_str()).collect();
        let embedded = vectors.embedding.embed(cx, &texts, Role::Passage)?;
        let dim = vectors.embedding.info().dim;
        for ((source, record, _), vector) in missing.iter().zip(embedded.chunks_exact(dim)) {
            sources[*source].1[*record].vector = Some(vector.to_vec());
        }
        for outcome in self.store.replace_sources(sources, Some(vectors.space))? {
            report.files_indexed += 1;
            report.chunks_added += outcome.added as u64;
            report.chunks_kept += outcome.kept as u64;
            report.chunks_removed += outcome.removed as u64;
            done(1, (outcome.added + outcome.kept) as u64);
        }
        Ok(())
    }

    fn record(&self, request: &IndexRequest, source: &NewSource, chunk: Chunk) -> NewRecord {
        NewRecord {
            kind: "chunk".to_owned(),
            title: chunk.heading,
            tags: request.tags.clone(),
            project: request.project.clone(),
            source: Some(SourceRef {
                path: source.path.clone(),
                line_start: u32::try_from(chunk.line_start).unwrap_or(u32::MAX),
                line_end: u32::try_from(chunk.line_end).unwrap_or(u32::MAX),
            }),
            expires_ms: self.expiry(source.layer),
            ..NewRecord::new(source.layer, chunk.text)
        }
    }

    /// Drops the records of files at and below the paths that the walk no longer lists. A file that
    /// is there but cannot be read now keeps its records.
    fn remove_vanished(&self, listing: Listing, report: &IndexReport) -> Result<u64, EngineError> {
        let mut listed: HashSet<&str> = listing.files.iter().filter_map(|file| file.path.to_str()).collect();
        // What is no text any more is listed, but has nothing to say.
        for no_text in report.skipped.iter().filter(|skipped| !skipped.is_error) {
            if let Some(path) = no_text.path.as_deref().and_then(Path::to_str) {
                listed.remove(path);
            }
        }
        let mut vanished = listing.vanished;
        for root in listing.complete.iter().filter_map(|root| root.to_str()) {
            vanished.extend(self.store.source_paths(root)?);
        }
        let vanished: Vec<String> =
            vanished.into_iter().filter(|path| !listed.contains(path.as_str())).collect();
        self.store.remove_sources(&vanished)?;
        Ok(vanished.len() as u64)
    }
}

/// The layer of the records.
fn layer(request: &IndexRequest) -> Layer {
    request.layer.unwrap_or(Layer::Assets)
}

/// Where a path that is gone would lead: absolute and, as far as it is there, free of links.
fn vanished(path: &Path) -> Option<PathBuf> {
    let error = path.canonicalize().err()?;
    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) {
        return None;
    }
    let path = std::path::absolute(path).ok()?;
    path.ancestors().find_map(|there| Some(there.canonicalize().ok()?.join(path.strip_prefix(there).ok()?)))
}

fn check(cx: &dyn CallContext) -> Result<(), EngineError> {
    cx.check().map_err(|_| EngineError::Interrupted)
}
