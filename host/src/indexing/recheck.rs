//! The recall of searches as they come: now and then one of them is done again by comparing with every
//! vector of the store.
//!
//! Whoever does so, in the background, wants a search by an empty file; the next search of any process puts its
//! answer there. So a process that only searches, for a moment, is checked too, and pays for it only where
//! somebody wants to know.
use super::{
    error::IndexError,
    exact::{Judgement, Probe},
    layer::{LayerIndex, LayerSettings},
};
use magray_plugin_api::{CallContext, Hit};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{
    fs,
    io::{self, Write as _},
    path::Path,
    time::{Duration, Instant},
};

/// The answer to be checked; empty where one is wanted.
const WANTED: &str = "recheck";
/// What the checks said.
const LIVE: &str = "recall.json";
/// How often a process looks whether an answer is wanted, at most.
const LOOK: Duration = Duration::from_secs(1);
/// The weight of the newest check; the last thirty or so count.
const WEIGHT: f64 = 1.0 / 16.0;

/// Checks of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LiveRecall {
    /// Searches that were done again.
    pub checks: u64,
    /// The share of the nearest that they had found, 0 to 1; the newest weigh most.
    pub recall: f64,
}

/// An answer that is to be checked.
#[derive(Serialize, Deserialize)]
struct Answer {
    /// `[dim]`.
    query: Vec<f32>,
    /// Id and score of each hit, best first.
    hits: Vec<(u64, f32)>,
    k: usize,
    /// The last change that it shows.
    head: u64,
}

impl LayerIndex {
    /// Keeps an answer to an unfiltered search where one is wanted.
    pub(super) fn offer(&self, query: &[f32], hits: &[Hit], k: usize, head: u64) {
        // Whoever finds it locked has another search beside it that will do.
        let Ok(mut looked) = self.looked.try_lock() else { return };
        if looked.is_some_and(|last| last.elapsed() < LOOK) {
            return;
        }
        *looked = Some(Instant::now());
        let path = self.settings.dir.join(WANTED);
        if fs::metadata(&path).is_ok_and(|file| file.len() == 0) {
            let hits = hits.iter().map(|hit| (hit.id, hit.score)).collect();
            if let Err(error) = put(&path, &Answer { query: query.to_vec(), hits, k, head }) {
                tracing::debug!("{}: a search is not kept to be checked: {error}", self.describe());
            }
        }
    }

    /// Checks the answer that waits for it, and wants the next one. One that was given before the last change
    /// says nothing. Returns whether there was one that did.
    pub(super) fn recheck(&self, cx: &dyn CallContext) -> Result<bool, IndexError> {
        let LayerSettings { space, layer, dim, dir, .. } = &self.settings;
        let path = dir.join(WANTED);
        let answer = get::<Answer>(&path);
        // Nothing is searched in a layer that has no index.
        if !dir.exists() {
            return Ok(false);
        }
        let cannot = |error| IndexError::Write { path: path.clone(), error };
        fs::write(&path, []).map_err(cannot)?;
        let Some(Answer { query, hits, k, head }) = answer else { return Ok(false) };
        if query.len() != *dim || self.store.head(*space, *layer)? != head {
            return Ok(false);
        }
        let (ids, now) = self.store.vector_ids(*space, *layer)?;
        if now != head || ids.is_empty() {
            return Ok(false);
        }
        let hits = hits.into_iter().map(|(id, score)| Hit::new(id, score)).collect();
        let truth = self.truth(cx, &ids, vec![Probe::new(query, None)], k, |_| {})?;
        let Judgement { recall, .. } = self.judge(cx, &truth, &[hits])?;
        let LiveRecall { checks, recall: before } = self.live_recall();
        let recall = if checks == 0 { recall } else { before + WEIGHT * (recall - before) };
        put(&dir.join(LIVE), &LiveRecall { checks: checks + 1, recall }).map_err(cannot)?;
        Ok(true)
    }

    /// What the checks of all processes said.
    pub(super) fn live_recall(&self) -> LiveRecall {
        get(&self.settings.dir.join(LIVE)).unwrap_or_default()
    }
}

/// Puts a file into its place, whole, with its digest before it. It does no harm where the disk loses it.
fn put(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let body = serde_json::to_vec(value)?;
    let dir = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    let mut file = tempfile::Builder::new().prefix(super::snapshot::BUILDING).tempfile_in(dir)?;
    writeln!(file, "{}", blake3::hash(&body))?;
    file.write_all(&body)?;
    file.persist(path)?;
    Ok(())
}

/// None where there is no such file, or it is not as it was written.
fn get<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let text = fs::read_to_string(path).ok()?;
    let (digest, body) = text.split_once('\n')?;
    (blake3::hash(body.as_bytes()).to_hex().as_str() == digest).then(|| serde_json::from_str(body).ok())?
}
