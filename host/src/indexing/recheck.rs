//! The recall of searches as they come: now and then one of them is done again by comparing with every
//! vector of the store, by the worker.
use super::{
    error::IndexError,
    exact::{Judgement, Probe},
    layer::{LayerIndex, LayerSettings},
};
use magray_plugin_api::{CallContext, Hit};
use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// How often a layer's searches are checked, at most: a check reads every vector.
const EVERY: Duration = Duration::from_secs(60);
/// The weight of the newest check; the last thirty or so count.
const WEIGHT: f64 = 1.0 / 16.0;

/// Checks of answers.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct LiveRecall {
    /// Searches that were done again.
    pub checks: u64,
    /// The share of the nearest that they had found, 0 to 1; the newest weigh most.
    pub recall: f64,
}

/// An answer that is to be checked.
struct Answer {
    /// `[dim]`.
    query: Vec<f32>,
    hits: Vec<Hit>,
    k: usize,
    /// The last change that it shows.
    head: u64,
}

/// The next answer to check, and what the checks before said.
#[derive(Default)]
pub(super) struct Recheck(Mutex<State>);

#[derive(Default)]
struct State {
    /// Whether there is a worker.
    is_wanted: bool,
    next: Option<Answer>,
    last: Option<Instant>,
    live: LiveRecall,
}

impl Recheck {
    pub(super) fn want(&self, is_wanted: bool) {
        self.with(|state| state.is_wanted = is_wanted);
    }

    pub(super) fn live(&self) -> LiveRecall {
        self.with(|state| state.live)
    }

    /// Keeps an answer to an unfiltered search where it is time for one.
    pub(super) fn offer(&self, query: &[f32], hits: &[Hit], k: usize, head: u64) {
        // Whoever finds it locked has another search beside it that will do.
        let Ok(mut state) = self.0.try_lock() else { return };
        let is_time = state.last.is_none_or(|last| last.elapsed() >= EVERY);
        if state.is_wanted && state.next.is_none() && is_time {
            state.next = Some(Answer { query: query.to_vec(), hits: hits.to_vec(), k, head });
        }
    }

    fn with<T>(&self, work: impl FnOnce(&mut State) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl LayerIndex {
    /// Checks the answer that waits for it. One that was given before the last change says nothing.
    pub(super) fn recheck(&self, cx: &dyn CallContext) -> Result<(), IndexError> {
        let LayerSettings { space, layer, .. } = self.settings;
        let next = self.recheck.with(|state| {
            let next = state.next.take();
            state.last = next.as_ref().map(|_| Instant::now()).or(state.last);
            next
        });
        let Some(Answer { query, hits, k, head }) = next else { return Ok(()) };
        if self.store.head(space, layer)? != head {
            return Ok(());
        }
        let (ids, now) = self.store.vector_ids(space, layer)?;
        if now != head || ids.is_empty() {
            return Ok(());
        }
        let truth = self.truth(cx, &ids, vec![Probe::new(query, None)], k, |_| {})?;
        let Judgement { recall, .. } = self.judge(cx, &truth, &[hits])?;
        self.recheck.with(|state| {
            let live = &mut state.live;
            live.recall =
                if live.checks == 0 { recall } else { live.recall + WEIGHT * (recall - live.recall) };
            live.checks += 1;
        });
        Ok(())
    }
}
