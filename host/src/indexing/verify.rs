//! Whether an index is what the store says: every byte of its files, every id, and a sample of answers.
use super::{
    error::{IndexError, Unusable},
    exact::{Judgement, Probe},
    layer::{LayerIndex, LayerSettings, Query},
    segment::{self, Care, Ids},
    snapshot::{self, Snapshot},
};
use crate::store::Layer;
use magray_plugin_api::{CallContext, SearchParams};
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

/// Queries that are compared with an exact search, and results of each.
const QUERIES: usize = 32;
const K: usize = 10;
/// Cosine by which a score of an index that quantizes may be off.
const SCORE_TOLERANCE: f32 = 0.05;
/// Share of the true nearest that an exact index must find, but for ties, and any other.
const EXACT_RECALL: f64 = 0.99;
const LEAST_RECALL: f64 = 0.5;
/// How often to begin again where another process replaces what is looked at.
const ATTEMPTS: usize = 5;

/// What was found in one layer.
#[derive(Clone, Debug)]
pub struct LayerVerdict {
    /// The layer.
    pub layer: Layer,
    /// Segments of the snapshot.
    pub segments: usize,
    /// Vectors in them that count.
    pub rows: u64,
    /// Bytes that were hashed.
    pub bytes: u64,
    /// How good the answers are; none where there was nothing to ask, or files are damaged.
    pub recall: Option<Recall>,
    /// What is wrong; empty where all is well.
    pub findings: Vec<String>,
    /// What is not wrong, and worth knowing.
    pub notes: Vec<String>,
    /// How long it took.
    pub took: Duration,
}

/// Answers against exact search.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recall {
    /// Vectors of the store that were searched for.
    pub queries: usize,
    /// The share of their ten nearest that was found, 0 to 1.
    pub recall: f64,
}

impl LayerIndex {
    /// Looks at everything; changes nothing but what a search would.
    pub(super) fn verify(&self, cx: &dyn CallContext) -> Result<LayerVerdict, IndexError> {
        let started = Instant::now();
        let mut verdict = None;
        for _ in 0..ATTEMPTS {
            verdict = self.verify_files(cx)?;
            if verdict.is_some() {
                break;
            }
        }
        let mut verdict = verdict.unwrap_or_else(|| LayerVerdict {
            notes: vec!["another process kept replacing the snapshot, so its files were not compared".into()],
            ..self.blank()
        });
        if verdict.findings.is_empty() {
            self.verify_answers(cx, &mut verdict)?;
        }
        verdict.took = started.elapsed();
        Ok(verdict)
    }

    fn blank(&self) -> LayerVerdict {
        LayerVerdict {
            layer: self.settings.layer,
            segments: 0,
            rows: 0,
            bytes: 0,
            recall: None,
            findings: Vec::new(),
            notes: Vec::new(),
            took: Duration::ZERO,
        }
    }

    /// None where the snapshot was replaced meanwhile.
    fn verify_files(&self, cx: &dyn CallContext) -> Result<Option<LayerVerdict>, IndexError> {
        let mut verdict = self.blank();
        let identity = self.identity()?;
        let dir = &self.settings.dir;
        let Some(&generation) = snapshot::generations(dir).first() else {
            verdict.notes.push("nothing is sealed yet: every search is exact".into());
            return Ok(Some(verdict));
        };
        let snapshot = match snapshot::read(dir, generation, &identity) {
            Ok(snapshot) => snapshot,
            Err(Unusable::Gone) => return Ok(None),
            Err(Unusable::Stale(why)) => {
                verdict.notes.push(format!("the snapshot is not used: {why}"));
                return Ok(Some(verdict));
            }
            Err(why) => {
                verdict.findings.push(why.to_string());
                return Ok(Some(verdict));
            }
        };
        (verdict.segments, verdict.rows) = (snapshot.segments.len(), snapshot.live());
        let total: u64 = snapshot.segments.iter().map(|listed| listed.bytes).sum();
        let mut held = BTreeSet::new();
        for listed in &snapshot.segments {
            match self.verify_segment(cx, listed, &mut held) {
                Ok(bytes) => verdict.bytes += bytes,
                Err(Unusable::Cancelled(error)) => return Err(self.failed(error)),
                Err(Unusable::Gone) if !snapshot::path(dir, generation).exists() => return Ok(None),
                Err(why) => verdict.findings.push(format!("segment {}: {why}", listed.name)),
            }
            cx.progress(verdict.bytes, total);
        }
        if verdict.findings.is_empty() && !self.verify_ids(&snapshot, &held, &mut verdict)? {
            return Ok(None);
        }
        Ok(Some(verdict))
    }

    fn verify_segment(
        &self,
        cx: &dyn CallContext,
        listed: &segment::Listed,
        held: &mut BTreeSet<u64>,
    ) -> Result<u64, Unusable> {
        let dir = &self.settings.dir;
        let bytes = segment::check(cx, dir, listed, Care::Hash)?;
        let dead = snapshot::read_tombstones(dir, listed.tombstones.as_deref())?;
        let ids = Ids::open(dir, listed)?;
        let damaged = |what: &str| Err(Unusable::Damaged(what.to_owned()));
        if !ids.iter().is_sorted_by(|a, b| a < b) || ids.iter().next() != Some(listed.first) {
            return damaged("its ids are not as they were listed");
        }
        if dead.len() as u64 != listed.dead || !dead.iter().all(|&id| ids.contains(id)) {
            return damaged("its tombstones are not of its rows");
        }
        for id in ids.iter().filter(|id| dead.binary_search(id).is_err()) {
            if !held.insert(id) {
                return Err(Unusable::Damaged(format!("vector {id} is in another segment too")));
            }
        }
        Ok(bytes)
    }

    /// Compares the ids of the segments with those of the store, but for what changed since. False where
    /// the log does not reach back, because another process has sealed.
    fn verify_ids(
        &self,
        snapshot: &Snapshot,
        held: &BTreeSet<u64>,
        verdict: &mut LayerVerdict,
    ) -> Result<bool, IndexError> {
        let LayerSettings { layer, space, dir, .. } = &self.settings;
        let (stored, _) = self.store.vector_ids(*space, *layer)?;
        // Later than the ids, so that it names all that may differ.
        let changed = self.store.changed_after(*space, *layer, snapshot.covered_seq)?;
        if !changed.complete {
            if snapshot::generations(dir).first() != Some(&snapshot.generation) {
                return Ok(false);
            }
            verdict
                .notes
                .push("the change log does not reach back to the snapshot: it will be rebuilt".into());
            return Ok(true);
        }
        let stored: BTreeSet<u64> = stored.into_iter().collect();
        let is_unchanged = |id: &&u64| changed.ids.binary_search(id).is_err();
        for (what, count) in [
            (
                "vectors of the store are not in the index",
                stored.difference(held).filter(is_unchanged).count(),
            ),
            (
                "vectors of the index are not in the store",
                held.difference(&stored).filter(is_unchanged).count(),
            ),
        ] {
            if count > 0 {
                verdict.findings.push(format!("{count} {what}"));
            }
        }
        Ok(true)
    }

    /// Searches for a sample of what is stored, and compares with all of it.
    fn verify_answers(&self, cx: &dyn CallContext, verdict: &mut LayerVerdict) -> Result<(), IndexError> {
        let LayerSettings { layer, space, backend, options, .. } = &self.settings;
        let (ids, _) = self.store.vector_ids(*space, *layer)?;
        if ids.is_empty() {
            return Ok(());
        }
        let sample: Vec<u64> = ids.iter().copied().step_by(ids.len().div_ceil(QUERIES)).collect();
        let probes = self.probes(cx, &sample)?.into_iter().map(|probe| Probe { own: None, ..probe });
        let total = ids.len() as u64;
        let truth = self.truth(cx, &ids, probes.collect(), K, |done| cx.progress(done, total))?;
        let search = |probe: &Probe| {
            let vector = &probe.vector;
            self.search(cx, Query { vector, k: K, params: SearchParams::default(), filter: None })
        };
        let found = truth.probes.iter().map(search).collect::<Result<Vec<_>, _>>()?;
        let Judgement { recall, error } = self.judge(cx, &truth, &found)?;
        verdict.recall = Some(Recall { queries: truth.probes.len(), recall });
        let empty = self.plugins.index(backend, options, self.settings.spec(), None)?;
        let least = if empty.capabilities().exact { EXACT_RECALL } else { LEAST_RECALL };
        if recall < least {
            verdict.findings.push(format!(
                "searches for {} stored vectors found {:.1}% of the nearest, and {:.0}% are the least",
                truth.probes.len(),
                100.0 * recall,
                100.0 * least
            ));
        }
        if error > SCORE_TOLERANCE {
            verdict.findings.push("scores of answers are not those of the stored vectors".into());
        }
        Ok(())
    }
}
