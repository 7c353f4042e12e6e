//! One file from a hub: in pieces where the connection breaks, whole in the end.
use super::{
    ModelError,
    digest::{Digest, PIECE, read_some},
    error::io_error,
    hub::{Hub, HubError, Listing, RemoteFile, Reply, Trouble},
};
use magray_plugin_api::CallContext;
use std::{
    fmt,
    fs::{File, OpenOptions},
    io::{Seek as _, SeekFrom, Write as _},
    path::Path,
    thread,
    time::{Duration, Instant},
};
use ureq::http::header;

/// The longest wait before another attempt.
const LONGEST_WAIT: Duration = Duration::from_secs(30);
/// How often a wait looks whether it is still wanted.
const GLANCE: Duration = Duration::from_millis(100);

/// A file of a repository, and what it must be.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub(super) repo: &'a str,
    pub(super) commit: &'a str,
    pub(super) name: &'a str,
    pub(super) size: u64,
    pub(super) digest: Digest,
}

impl Hub {
    /// The files of `repo` at `revision`.
    pub(super) fn listing(
        &self,
        cx: &dyn CallContext,
        repo: &str,
        revision: &str,
    ) -> Result<Listing, ModelError> {
        self.again(cx, &self.page(repo), &mut || 0, &mut || self.list(repo, revision))
    }

    /// Size and digest of a file, asked of the server where the listing left them out.
    pub(super) fn wanted<'a>(
        &self,
        cx: &dyn CallContext,
        repo: &'a str,
        commit: &'a str,
        file: &'a RemoteFile,
    ) -> Result<Wanted<'a>, ModelError> {
        let name = file.name.as_str();
        if let (Some(size), Some(digest)) = (file.size, file.digest.clone()) {
            return Ok(Wanted { repo, commit, name, size, digest });
        }
        let url = self.file_url(repo, commit, name);
        let reply = self.again(cx, &url, &mut || 0, &mut || self.get(&url, repo, commit, None))?;
        match reply.stated() {
            (Some(digest), Some(size)) => Ok(Wanted { repo, commit, name, size, digest }),
            _ => {
                let reason = "the server names no digest to check it by".to_owned();
                Err(HubError::Nonsense { url, reason }.into())
            }
        }
    }

    /// Downloads a file to `part`, going on from what is there. `at` is told how many bytes are there. The digest is
    /// not checked.
    pub(super) fn download(
        &self,
        cx: &dyn CallContext,
        wanted: &Wanted<'_>,
        part: &Path,
        at: &mut dyn FnMut(u64),
    ) -> Result<(), ModelError> {
        let url = self.file_url(wanted.repo, wanted.commit, wanted.name);
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(part)
            .map_err(io_error("write", part))?;
        let there = || part.metadata().map_or(0, |metadata| metadata.len());
        self.again(cx, &url, &mut { there }, &mut || self.attempt(cx, wanted, &url, part, &mut file, at))
    }

    fn attempt(
        &self,
        cx: &dyn CallContext,
        wanted: &Wanted<'_>,
        url: &str,
        part: &Path,
        file: &mut File,
        at: &mut dyn FnMut(u64),
    ) -> Result<(), Trouble> {
        let nonsense = |reason: String| Trouble::from(HubError::Nonsense { url: url.to_owned(), reason });
        let unwritable = || io_error("write", part);
        let begin_anew = |file: &mut File| -> Result<u64, ModelError> {
            file.set_len(0).and_then(|()| file.rewind()).map_err(unwritable())?;
            Ok(0)
        };
        let mut there = file.seek(SeekFrom::End(0)).map_err(unwritable())?;
        if there > wanted.size {
            there = begin_anew(file)?;
        }
        at(there);
        if there == wanted.size {
            return Ok(());
        }
        let from = (there > 0).then_some(there);
        let Reply { response, .. } = self.get(url, wanted.repo, wanted.commit, from)?;
        let whole = match response.status().as_u16() {
            206 => {
                let range =
                    response.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
                match range.and_then(content_range) {
                    Some((start, size)) if start == there => size,
                    _ => {
                        begin_anew(file)?;
                        let reason = "the server sends another part than was asked for".to_owned();
                        return Err(Trouble::Passing(reason, None));
                    }
                }
            }
            // It takes no notice of the range, and sends all.
            _ => {
                there = begin_anew(file)?;
                let len = response.headers().get(header::CONTENT_LENGTH).and_then(|len| len.to_str().ok());
                len.and_then(|len| len.parse().ok())
            }
        };
        if let Some(size) = whole.filter(|&size| size != wanted.size) {
            return Err(nonsense(format!("the server sends {size} bytes, and lists {}", wanted.size)));
        }

        let mut body = response.into_body().into_reader();
        let mut piece = vec![0; PIECE];
        loop {
            if cx.is_cancelled() {
                return Err(ModelError::Interrupted.into());
            }
            let broke = |how: &dyn fmt::Display| {
                let reason = format!("the connection broke after {there} of {} bytes ({how})", wanted.size);
                Trouble::Passing(reason, None)
            };
            let read = read_some(&mut body, &mut piece).map_err(|error| broke(&error))?;
            if read == 0 && there < wanted.size {
                return Err(broke(&"it ended"));
            }
            if read == 0 {
                return Ok(());
            }
            there += read as u64;
            if there > wanted.size {
                return Err(nonsense(format!(
                    "the server sends more than the {} bytes that it lists",
                    wanted.size
                )));
            }
            file.write_all(&piece[..read]).map_err(unwritable())?;
            at(there);
        }
    }

    /// Tries until it succeeds, fails for good, or has failed too often in a row without any further byte.
    fn again<T>(
        &self,
        cx: &dyn CallContext,
        url: &str,
        progress: &mut dyn FnMut() -> u64,
        attempt: &mut dyn FnMut() -> Result<T, Trouble>,
    ) -> Result<T, ModelError> {
        let mut failures = 0;
        loop {
            if cx.is_cancelled() {
                return Err(ModelError::Interrupted);
            }
            let before = progress();
            let (reason, asked) = match attempt() {
                Ok(done) => return Ok(done),
                Err(Trouble::Final(error)) => return Err(error),
                Err(Trouble::Passing(reason, asked)) => (reason, asked),
            };
            failures = if progress() > before { 1 } else { failures + 1 };
            if failures > self.options.retries {
                return Err(HubError::GaveUp { url: url.to_owned(), reason, attempts: failures }.into());
            }
            let doubled =
                1_u32.checked_shl(u32::try_from(failures - 1).unwrap_or(u32::MAX)).unwrap_or(u32::MAX);
            let wait = self.options.retry_wait.saturating_mul(doubled).max(asked.unwrap_or_default());
            let wait = wait.min(LONGEST_WAIT);
            tracing::warn!("{url}: {reason}; trying again in {:.1} s", wait.as_secs_f64());
            wait_for(cx, wait);
        }
    }
}

/// Start and size of the whole, from `bytes 100-199/200`; the size may be unknown, as `*`.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, size) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, size.trim().parse().ok()))
}

/// Waits, as long as it is wanted: a back-off, which nothing could end sooner.
fn wait_for(cx: &dyn CallContext, wait: Duration) {
    let end = Instant::now() + wait;
    while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
        if cx.is_cancelled() {
            return;
        }
        thread::sleep(left.min(GLANCE));
    }
}
