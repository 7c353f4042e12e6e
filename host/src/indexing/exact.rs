//! The truth that answers are held against: comparison with every stored vector.
use super::{delta::best_first, error::IndexError, layer::LayerIndex, scan};
use half::f16;
use magray_plugin_api::{CallContext, Hit};
use std::ops::ControlFlow;

/// Rows that are read at a time.
const BATCH: usize = 4096;
/// Of equally near vectors any will do, and equally near is what differs by no more.
const TIE: f32 = 1e-4;

/// What is looked for.
#[derive(Clone, Debug)]
pub(super) struct Probe {
    /// `[dim]`, of length 1.
    pub(super) vector: Vec<f32>,
    /// The stored vector that it is, where that does not count as a neighbour of its own.
    pub(super) own: Option<u64>,
}

impl Probe {
    /// `vector` is not zero.
    pub(super) fn new(mut vector: Vec<f32>, own: Option<u64>) -> Self {
        let length = vector.iter().map(|v| v * v).sum::<f32>().sqrt();
        vector.iter_mut().for_each(|v| *v /= length);
        Self { vector, own }
    }
}

/// Probes with their nearest vectors, best first.
#[derive(Debug)]
pub(super) struct Truth {
    pub(super) probes: Vec<Probe>,
    nearest: Vec<Vec<Hit>>,
}

/// What answers are worth.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Judgement {
    /// The share of the nearest that was found, 0 to 1.
    pub(super) recall: f64,
    /// By how much a score differs from that of the stored vector, at most.
    pub(super) error: f32,
}

impl LayerIndex {
    /// Stored vectors as probes, of those that are still there.
    pub(super) fn probes(&self, cx: &dyn CallContext, ids: &[u64]) -> Result<Vec<Probe>, IndexError> {
        let mut probes = Vec::with_capacity(ids.len());
        self.each(cx, ids, |ids, vectors| {
            for (&id, row) in ids.iter().zip(vectors.chunks_exact(self.settings.dim)) {
                probes.push(Probe::new(row.iter().map(|v| v.to_f32()).collect(), Some(id)));
            }
        })?;
        Ok(probes)
    }

    /// The `k` nearest of the vectors `ids` to each probe. `progress` is told how many of them are done.
    pub(super) fn truth(
        &self,
        cx: &dyn CallContext,
        ids: &[u64],
        probes: Vec<Probe>,
        k: usize,
        mut progress: impl FnMut(u64),
    ) -> Result<Truth, IndexError> {
        let mut nearest: Vec<Vec<Hit>> = vec![Vec::new(); probes.len()];
        let (mut scales, mut dots, mut done) = (Vec::new(), Vec::new(), 0);
        self.each(cx, ids, |ids, vectors| {
            scales.resize(ids.len(), 0.0);
            dots.resize(ids.len(), 0.0);
            scan::scales(self.settings.dim, vectors, &mut scales);
            for (probe, nearest) in probes.iter().zip(&mut nearest) {
                scan::dots(&probe.vector, vectors, &mut dots);
                let worst = k.checked_sub(1).and_then(|last| nearest.get(last)).copied();
                let rows = ids.iter().zip(dots.iter().zip(&scales));
                let hits = rows.map(|(&id, (dot, scale))| Hit::new(id, dot * scale));
                nearest.extend(hits.filter(|hit| {
                    Some(hit.id) != probe.own && worst.is_none_or(|worst| best_first(hit, &worst).is_lt())
                }));
                nearest.sort_unstable_by(best_first);
                nearest.truncate(k);
            }
            done += ids.len() as u64;
            progress(done);
        })?;
        Ok(Truth { probes, nearest })
    }

    /// The cosines of the vectors `ids`, which are ascending, to `query`, which is not zero; of those that are there.
    pub(super) fn cosines(
        &self,
        cx: &dyn CallContext,
        query: &[f32],
        ids: &[u64],
    ) -> Result<Vec<Hit>, IndexError> {
        let probe = Probe::new(query.to_vec(), None);
        Ok(self.truth(cx, ids, vec![probe], ids.len(), |_| {})?.nearest.remove(0))
    }

    /// Holds what was found for each probe of `truth` against it, by the scores of the stored vectors: those
    /// that a backend gives may be anything.
    pub(super) fn judge(
        &self,
        cx: &dyn CallContext,
        truth: &Truth,
        found: &[Vec<Hit>],
    ) -> Result<Judgement, IndexError> {
        let (mut right, mut wanted, mut error) = (0usize, 0usize, 0.0f32);
        for ((probe, nearest), found) in truth.probes.iter().zip(&truth.nearest).zip(found) {
            let mut ids: Vec<u64> = found.iter().map(|hit| hit.id).collect();
            ids.sort_unstable();
            ids.dedup();
            let known =
                self.truth(cx, &ids, vec![Probe { own: None, ..probe.clone() }], ids.len(), |_| {})?;
            let known = &known.nearest[0];
            let least = nearest.last().map_or(f32::NEG_INFINITY, |hit| hit.score) - TIE;
            right += known.iter().filter(|hit| hit.score >= least).count().min(nearest.len());
            wanted += nearest.len();
            for hit in found {
                let stored = known.iter().find(|known| known.id == hit.id);
                error = stored.map_or(error, |stored| error.max((stored.score - hit.score).abs()));
            }
        }
        Ok(Judgement { recall: right as f64 / wanted.max(1) as f64, error })
    }

    fn each(
        &self,
        cx: &dyn CallContext,
        ids: &[u64],
        mut visit: impl FnMut(&[u64], &[f16]),
    ) -> Result<(), IndexError> {
        let mut stopped = Ok(());
        self.store.vectors_of(self.settings.space, self.settings.layer, ids, BATCH, |ids, vectors| {
            visit(ids, vectors);
            stopped = cx.check();
            if stopped.is_err() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        })?;
        stopped.map_err(|error| self.failed(error))
    }
}
