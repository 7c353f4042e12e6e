use super::{Policy, interest::Interests};
use crate::store::{
    Candidate, CycleNote, Layer, Move, Moved, PromotionRecord, RecordId, Score, SpaceId, Stay, Store,
    StoreError,
};
use magray_plugin_api::CallContext;
use serde::Serialize;
use std::collections::HashSet;

/// Records that are read at a time.
const CHUNK: usize = 1000;

/// How to promote.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromotionOptions {
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
    /// Records to move at most; else as many as the settings say.
    pub limit: Option<usize>,
    /// Only records of this layer.
    pub layer: Option<Layer>,
    /// Only these, whatever they score: they go one layer on. Empty for all that deserve it.
    pub ids: Vec<RecordId>,
    /// Whether to report what stays, too.
    pub explain: bool,
}

/// What a cycle did, or would do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PromotionReport {
    /// Its number, by which it can be undone, where something has moved.
    pub cycle: Option<i64>,
    /// What moved, in the order in which it did.
    pub moves: Vec<PromotionRecord>,
    /// What does not: where that was asked for, the best first.
    pub stays: Vec<Weighing>,
    /// Records that were weighed.
    pub weighed: u64,
    /// Records that deserve to move and will be looked at again: they are too young, the limit was
    /// reached, or something happened to them meanwhile.
    pub waiting: u64,
    /// Records that were deleted because their time was over.
    pub expired: u64,
    /// Whether the caller cancelled it. What has moved is all in the report.
    pub interrupted: bool,
}

/// A record that stays where it is, for now.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Weighing {
    /// Its id for people.
    pub id: String,
    /// Where it is.
    pub layer: Layer,
    /// What it deserves.
    pub score: Score,
    /// What that would have to reach.
    pub threshold: f64,
    /// Why it stays.
    pub reason: Reason,
}

/// Why a record stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// It does not score enough.
    Low,
    /// It came to its layer too lately.
    Young,
    /// As many as may move at once do.
    Limit,
    /// What says the same in the next layer is outdated.
    Outdated,
    /// It was used, moved or deleted at the same time.
    Changed,
}

/// Moves what deserves it at `now_ms`, and deletes what is due and does not. Each batch is a transaction
/// of its own, so whatever ends it leaves whole moves that can be explained and undone. Vectors count in
/// `space`; where there is none, without any.
///
/// # Errors
/// What the store says; the batches before that stand.
pub fn promote(
    cx: &dyn CallContext,
    store: &Store,
    space: Option<SpaceId>,
    policy: &Policy,
    options: &PromotionOptions,
    now_ms: u64,
) -> Result<PromotionReport, StoreError> {
    // What was used by this process counts.
    store.flush()?;
    let mut cycle = Cycle {
        cx,
        store,
        policy,
        options,
        now_ms,
        all: store.promotion_state()?.is_some_and(|(_, settings)| settings != policy.digest),
        moves: Vec::new(),
        stays: Vec::new(),
        keep_due: false,
        report: PromotionReport::default(),
    };
    cycle.weigh(space)?;
    cycle.choose();
    cycle.apply()?;
    cycle.expire()?;
    let mut report = cycle.report;
    report.stays.sort_by(|a, b| b.score.value.total_cmp(&a.score.value).then(a.id.cmp(&b.id)));
    Ok(report)
}

/// A cycle on its way.
struct Cycle<'a> {
    cx: &'a dyn CallContext,
    store: &'a Store,
    policy: &'a Policy,
    options: &'a PromotionOptions,
    now_ms: u64,
    /// Whether the settings have changed since the last cycle, so that all that was used is weighed again.
    all: bool,
    /// What is to move, and whether it would be deleted else.
    moves: Vec<(Move, bool)>,
    stays: Vec<Stay>,
    /// Whether something that is due may deserve to stay.
    keep_due: bool,
    report: PromotionReport,
}

impl Cycle<'_> {
    /// Whether everything is looked at, not some layer or record.
    fn is_whole(&self) -> bool {
        self.options.layer.is_none() && self.options.ids.is_empty()
    }

    fn is_stopped(&mut self) -> bool {
        self.report.interrupted |= self.cx.check().is_err();
        self.report.interrupted
    }

    /// Decides about every candidate.
    fn weigh(&mut self, space: Option<SpaceId>) -> Result<(), StoreError> {
        let mut interests = Interests::new(self.store, space, self.policy.sample);
        if !self.options.ids.is_empty() {
            for candidate in self.store.as_candidates(space, &self.options.ids)? {
                self.decide(&candidate, interests.similarity(&candidate)?);
            }
            return Ok(());
        }
        for layer in [Layer::Insights, Layer::Interact] {
            if self.options.layer.is_some_and(|only| only != layer) {
                continue;
            }
            let mut after = RecordId(0);
            while !self.is_stopped() {
                let candidates = self.store.promotion_candidates(space, layer, self.all, after, CHUNK)?;
                let Some(last) = candidates.last() else { break };
                after = last.id;
                for candidate in &candidates {
                    self.decide(candidate, interests.similarity(candidate)?);
                }
            }
        }
        Ok(())
    }

    fn decide(&mut self, candidate: &Candidate, similarity: Option<f32>) {
        let Some((to, threshold)) = candidate.layer.next().zip(self.policy.threshold(candidate.layer)) else {
            return;
        };
        self.report.weighed += 1;
        // What is due is judged as of then, however late that is.
        let due = candidate.expires_ms.filter(|&due| due <= self.now_ms);
        let at_ms = due.unwrap_or(self.now_ms);
        let score = self.policy.score(candidate, similarity, at_ms);
        let by_hand = !self.options.ids.is_empty();
        let it = Move {
            id: candidate.id,
            ulid: candidate.ulid.clone(),
            from: candidate.layer,
            to,
            access_count: candidate.access_count,
            carried: self.policy.carried(candidate),
            score,
            threshold: (!by_hand).then_some(threshold),
            former_expires_ms: candidate.expires_ms,
            expires_ms: self.policy.expiry(candidate, to, self.now_ms),
        };
        if !by_hand && score.value < threshold {
            let (id, access_count) = (candidate.id, candidate.access_count);
            self.stays.push(Stay { id, access_count, score: score.value, weighed: true });
            self.explain(&it, Reason::Low);
        } else if !by_hand && self.policy.is_young(candidate, at_ms) {
            self.wait(&it, Reason::Young);
        } else {
            self.moves.push((it, due.is_some()));
        }
    }

    /// Takes as many moves as may be: first what would be deleted, then what deserves it most.
    fn choose(&mut self) {
        self.moves.sort_by(|(a, a_due), (b, b_due)| {
            b_due.cmp(a_due).then(b.score.value.total_cmp(&a.score.value)).then(a.id.cmp(&b.id))
        });
        let limit = self.options.limit.unwrap_or(self.policy.max_moves).min(self.moves.len());
        for (it, due) in self.moves.split_off(limit) {
            self.keep_due |= due;
            self.wait(&it, Reason::Limit);
        }
        // Who leaves a layer makes room for who comes to it.
        self.moves.sort_by_key(|(it, _)| std::cmp::Reverse(it.from));
    }

    fn apply(&mut self) -> Result<(), StoreError> {
        let (moves, due): (Vec<Move>, Vec<bool>) = std::mem::take(&mut self.moves).into_iter().unzip();
        let outcomes = match self.options.dry_run {
            true => self.store.foresee_promotions(&moves)?,
            false => self.write(&moves)?,
        };
        for ((it, due), outcome) in moves.iter().zip(due).zip(outcomes) {
            let merged_into = match outcome {
                Moved::Moved => None,
                Moved::Merged { into } => Some(into),
                Moved::Outdated => {
                    self.explain(it, Reason::Outdated);
                    continue;
                }
                Moved::Changed => {
                    // It may have been used in its last moment: the next cycle looks at it.
                    self.keep_due |= due;
                    self.wait(it, Reason::Changed);
                    continue;
                }
            };
            self.report.moves.push(PromotionRecord {
                id: it.ulid.clone(),
                from: it.from,
                to: it.to,
                score: it.score,
                threshold: it.threshold,
                expires_ms: it.expires_ms,
                former_expires_ms: it.former_expires_ms,
                merged_into,
                undone_ms: None,
            });
        }
        Ok(())
    }

    /// Writes all in batches; where it is stopped, fewer outcomes come back than there are moves.
    fn write(&mut self, moves: &[Move]) -> Result<Vec<Moved>, StoreError> {
        let stays = std::mem::take(&mut self.stays);
        let (total, size) = (moves.len() + stays.len(), self.policy.batch_size);
        let settings_changed = self.all && self.is_whole();
        let history_ms = u64::try_from(self.policy.history.as_millis()).unwrap_or(u64::MAX);
        let mut outcomes = Vec::with_capacity(moves.len());
        let mut start = 0;
        while (start < total || (total == 0 && settings_changed)) && !self.is_stopped() {
            let end = (start + size).min(total);
            let move_range = start.min(moves.len())..end.min(moves.len());
            let stay_range = start.max(moves.len()) - moves.len()..end.max(moves.len()) - moves.len();
            let is_last = end == total;
            let note = CycleNote {
                cycle: self.report.cycle,
                now_ms: self.now_ms,
                settings: (is_last && self.is_whole()).then_some(self.policy.digest),
                keep_from_ms: self.now_ms.saturating_sub(history_ms),
            };
            let (cycle, batch) =
                self.store.apply_promotions(note, moves[move_range].to_vec(), stays[stay_range].to_vec())?;
            self.report.cycle = cycle;
            outcomes.extend(batch);
            self.cx.progress(end as u64, total as u64);
            if is_last {
                break;
            }
            start = end;
        }
        Ok(outcomes)
    }

    /// Deletes what is due, where everything was weighed, so that what is left does not deserve to stay.
    fn expire(&mut self) -> Result<(), StoreError> {
        if !self.is_whole() || self.keep_due || self.report.interrupted {
            return Ok(());
        }
        let now_ms = self.now_ms;
        if !self.options.dry_run {
            self.report.expired = self.store.expire(now_ms)? as u64;
            return Ok(());
        }
        let is_due = |expires_ms: Option<u64>| expires_ms.is_some_and(|due| due <= now_ms);
        let moves = &self.report.moves;
        let moved = moves.iter().filter(|it| it.merged_into.is_none() && is_due(it.former_expires_ms));
        let mut kept = moved.count() as u64;
        // What another record is merged into lives on, too.
        let merged: HashSet<&String> = moves.iter().filter_map(|it| it.merged_into.as_ref()).collect();
        for ulid in merged {
            kept += u64::from(self.store.get(ulid)?.is_some_and(|record| is_due(record.expires_ms)));
        }
        self.report.expired = self.store.count_due(now_ms)?.saturating_sub(kept);
        Ok(())
    }

    /// A record deserves to move, and the next cycle looks at it again.
    fn wait(&mut self, it: &Move, reason: Reason) {
        self.report.waiting += 1;
        if self.all {
            // It was weighed by the settings before, and would not be looked at.
            let (id, access_count) = (it.id, it.access_count);
            self.stays.push(Stay { id, access_count, score: it.score.value, weighed: false });
        }
        self.explain(it, reason);
    }

    fn explain(&mut self, it: &Move, reason: Reason) {
        if let Some(threshold) = it.threshold.filter(|_| self.options.explain) {
            let (id, layer, score) = (it.ulid.clone(), it.from, it.score);
            self.report.stays.push(Weighing { id, layer, score, threshold, reason });
        }
    }
}
