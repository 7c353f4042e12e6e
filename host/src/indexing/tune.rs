//! How broadly a segment must be searched so that its answers have the share of the nearest vectors that
//! the settings ask for: measured when the segment is written, on a sample of its own vectors.
use super::{
    error::IndexError,
    exact::Judgement,
    layer::{LayerIndex, LayerSettings},
    segment::Listed,
};
use magray_plugin_api::{CallContext, Hit, SearchParams};

/// Segments of fewer rows are not measured: their search is quick however broad.
const LEAST_ROWS: usize = 4096;
/// At a recall of .95 the standard error of the measured one is then .009.
const QUERIES: usize = 64;
/// Neighbours of each, itself not counted: it would be found first, and flatter the recall.
const K: usize = 10;
/// The breadths that are tried, each about 1.4 times the one before.
const BREADTHS: [u32; 18] =
    [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 6144];

/// What was measured.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Tuned {
    /// `ef` of a search.
    breadth: u32,
    /// The recall@10 at this breadth, 0 to 1.
    recall: f32,
}

impl LayerIndex {
    /// Notes in `listed`, which holds `ids`, how broadly it must be searched, where that matters.
    pub(super) fn tune(
        &self,
        cx: &dyn CallContext,
        listed: &mut Listed,
        ids: &[u64],
    ) -> Result<(), IndexError> {
        let LayerSettings { backend, options, dir, sync, .. } = &self.settings;
        let target = sync.recall_target;
        if target <= 0.0 || ids.len() < LEAST_ROWS {
            return Ok(());
        }
        // As searches will find it.
        let index = self.plugins.index(backend, options, self.settings.spec(), Some(&listed.path(dir)))?;
        if index.capabilities().exact {
            return Ok(());
        }
        let sample: Vec<u64> = (0..QUERIES).map(|at| ids[at * ids.len() / QUERIES]).collect();
        let truth = self.truth(cx, ids, self.probes(cx, &sample)?, K, |_| {})?;
        let queries = truth.probes.iter().flat_map(|probe| probe.vector.iter().copied());
        let queries: Vec<f32> = queries.collect();
        let Tuned { breadth, recall } = least(target, |breadth| {
            let mut found = vec![Hit::NONE; truth.probes.len() * (K + 1)];
            let search = index.search(cx, &queries, K + 1, SearchParams::with_ef(breadth), None, &mut found);
            search.map_err(|error| self.failed(error))?;
            let found: Vec<Vec<Hit>> = found
                .chunks_exact(K + 1)
                .zip(&truth.probes)
                .map(|(hits, probe)| {
                    let others = hits.iter().filter(|hit| !hit.is_none() && Some(hit.id) != probe.own);
                    others.take(K).copied().collect()
                })
                .collect();
            let Judgement { recall, .. } = self.judge(cx, &truth, &found)?;
            Ok(recall as f32)
        })?;
        (listed.breadth, listed.recall) = (breadth, Some(recall));
        if recall < target {
            tracing::warn!(
                "{}: searches find {:.1}% of the nearest of {} vectors at most, not the {:.1}% of \
                 memory.index.recall_target; another index profile may do better",
                self.describe(),
                100.0 * recall,
                listed.rows,
                100.0 * target
            );
        }
        Ok(())
    }
}

/// The least breadth at which the recall is `target`; the greatest there is where none is so good.
fn least(target: f32, recall: impl FnMut(u32) -> Result<f32, IndexError>) -> Result<Tuned, IndexError> {
    let mut recall = recall;
    let mut at = |place: usize| -> Result<Tuned, IndexError> {
        Ok(Tuned { breadth: BREADTHS[place], recall: recall(BREADTHS[place])? })
    };
    // Recall rises with the breadth.
    let (mut low, mut high) = (0, BREADTHS.len() - 1);
    let mut tuned = at(high)?;
    while low < high && tuned.recall >= target {
        let middle = (low + high) / 2;
        let narrower = at(middle)?;
        if narrower.recall >= target {
            (high, tuned) = (middle, narrower);
        } else {
            low = middle + 1;
        }
    }
    Ok(tuned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_breadth_that_reaches_the_target_is_found() {
        let recall = |breadth: u32| (breadth as f32 / 500.0).min(1.0);
        for target in [0.01, 0.3, 0.6, 0.9, 1.0] {
            let tuned = least(target, |breadth| Ok(recall(breadth))).unwrap();
            assert!(tuned.recall >= target && tuned.recall == recall(tuned.breadth));
            let narrower = BREADTHS.iter().rev().find(|&&breadth| breadth < tuned.breadth);
            assert!(narrower.is_none_or(|&narrower| recall(narrower) < target), "{target}: {tuned:?}");
        }
    }

    #[test]
    fn what_cannot_be_reached_is_tried_once() {
        let mut tried = 0;
        let tuned = least(0.95, |_| {
            tried += 1;
            Ok(0.9)
        });
        assert_eq!((tuned.unwrap(), tried), (Tuned { breadth: 6144, recall: 0.9 }, 1));
    }
}
