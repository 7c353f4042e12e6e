//! `magray index`: files to records, several files at a time, each file whole or not at all.
use super::{Engine, EngineError, add::direction};
use crate::{
    ingest::{self, Chunk, FileEntry, FileKind, Skip, WalkOptions},
    store::{Layer, NewRecord, NewSource, SourceRef},
};
use magray_plugin_api::{CallContext, Role};
use std::{
    collections::HashSet,
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

/// A file on its way.
enum Read {
    Unchanged,
    Skipped(Skip),
    Changed { source: NewSource, chunks: Vec<Chunk> },
}

impl Engine {
    /// Makes the records of all files at and below the paths be what the files say now: new and
    /// changed files are split, embedded and stored, unchanged ones are found by their hash and
    /// left alone, and records of files that are gone are removed. Each file is replaced in one
    /// transaction, so an interrupted run goes on where it was. Passages of a file keep their
    /// records where their text stays the same.
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
        let mut files = Vec::new();
        for found in
            ingest::walk(&request.paths, &WalkOptions { hidden: request.hidden, follow_links: false })
        {
            check(cx)?;
            match found {
                Ok(file) => files.push(file),
                Err(error) => {
                    report.skipped.push(FileReport { path: None, reason: error.to_string(), is_error: true });
                }
            }
        }
        let mut state = IndexProgress { total: files.len(), ..IndexProgress::default() };
        progress(state);
        self.index_each(cx, request, &files, &mut report, &mut |files, chunks| {
            state.files += files;
            state.chunks += chunks;
            progress(state);
        })?;
        if !report.skipped.iter().any(|skipped| skipped.path.is_none()) {
            report.files_removed = self.remove_vanished(request, &files, &report)?;
        }
        report.embedded = self.embed_missing(cx)?;
        Ok(report)
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
        let workers = thread::available_parallelism().map_or(1, NonZero::get);
        let (sender, receiver) = mpsc::sync_channel(READ_AHEAD);
        thread::scope(|scope| {
            for _ in 0..workers {
                let (sender, next) = (sender.clone(), &next);
                scope.spawn(move || {
                    while let Some(file) = files.get(next.fetch_add(1, Ordering::Relaxed)) {
                        // The receiver is gone when the run was interrupted.
                        if sender.send((file, self.read(file, request))).is_err() {
                            return;
                        }
                    }
                });
            }
            drop(sender);
            let mut batch = Vec::new();
            for (file, read) in receiver {
                check(cx)?;
                match read? {
                    Read::Unchanged => {
                        report.files_unchanged += 1;
                        done(1, 0);
                    }
                    Read::Skipped(why) => {
                        let is_error = matches!(why, Skip::Unreadable(_));
                        let (path, reason) = (Some(file.path.clone()), why.to_string());
                        report.skipped.push(FileReport { path, reason, is_error });
                        done(1, 0);
                    }
                    Read::Changed { source, chunks } => batch.push((source, chunks)),
                }
                if batch.iter().map(|(_, chunks)| chunks.len().max(1)).sum::<usize>() >= BATCH_CHUNKS {
                    self.store_files(cx, request, std::mem::take(&mut batch), report, done)?;
                }
            }
            self.store_files(cx, request, batch, report, done)
        })
    }

    fn read(&self, file: &FileEntry, request: &IndexRequest) -> Result<Read, EngineError> {
        let settings = &self.setup.config.ingest;
        let content = match ingest::read_text(&file.path, settings.max_file_bytes) {
            Ok(content) => content,
            Err(why) => return Ok(Read::Skipped(why)),
        };
        let layer = request.layer.unwrap_or(Layer::Assets);
        let source = NewSource {
            path: path_text(&file.path),
            content_hash: *content.hash.as_bytes(),
            size: file.size,
            mtime_ms: u64::try_from(file.mtime_ms).unwrap_or(0),
            project: request.project.clone(),
            layer,
        };
        if let Some(known) = self.store.source(&source.path)?
            && known.file.content_hash == source.content_hash
            && known.file.layer == source.layer
            && known.file.project == source.project
        {
            return Ok(Read::Unchanged);
        }
        let kind = FileKind::of(&file.path, &content.text);
        let stem = file.path.file_stem().map(|stem| stem.to_string_lossy());
        let chunks = ingest::split(&content.text, kind, stem.as_deref(), settings.chunk_chars);
        Ok(Read::Changed { source, chunks })
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
        let texts: Vec<&str> = missing.iter().map(|(_, _, text)| text.as_str()).collect();
        let embedded = vectors.embedding.embed(cx, &texts, Role::Passage)?;
        let dim = vectors.embedding.info().dim;
        for ((source, record, _), vector) in missing.iter().zip(embedded.chunks_exact(dim)) {
            sources[*source].1[*record].vector = direction(vector);
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

    /// Drops the records of files below the paths that the walk no longer lists. A file that is
    /// there but cannot be read now keeps its records.
    fn remove_vanished(
        &self,
        request: &IndexRequest,
        files: &[FileEntry],
        report: &IndexReport,
    ) -> Result<u64, EngineError> {
        let listed: HashSet<String> = files.iter().map(|file| path_text(&file.path)).collect();
        // What is no text any more is listed, but has nothing to say.
        let no_text = report.skipped.iter().filter(|skipped| !skipped.is_error);
        let no_text: HashSet<String> =
            no_text.filter_map(|skipped| skipped.path.as_deref().map(path_text)).collect();
        let mut vanished = Vec::new();
        for root in request.paths.iter().filter_map(|path| path.canonicalize().ok()) {
            for source in self.store.sources(&path_text(&root))? {
                let is_below = Path::new(&source.file.path).starts_with(&root);
                let is_text = listed.contains(&source.file.path) && !no_text.contains(&source.file.path);
                if is_below && !is_text {
                    vanished.push(source.file.path);
                }
            }
        }
        vanished.sort();
        vanished.dedup();
        self.store.remove_sources(&vanished)?;
        Ok(vanished.len() as u64)
    }
}

fn path_text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn check(cx: &dyn CallContext) -> Result<(), EngineError> {
    cx.check().map_err(|_| EngineError::Interrupted)
}
