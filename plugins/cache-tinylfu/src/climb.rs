//! The share of the window, by hill climbing: a step is gone on with while more is answered than before, and
//! turned round where less is.

/// Requests for each entry that is held, after which a step is judged. Caffeine has 10, and steps twice as
/// large; over the recorded traces of `tests/traces.rs` this gives more hits at most sizes.
const SAMPLE: usize = 2;
/// Requests at least.
const LEAST: usize = 1_000;
/// The first step, and that after a change of the hit ratio as large as [`RESTART`].
const STEP: f64 = 0.03;
const RESTART: f64 = 0.05;
/// What a step is of the one before, so that it comes to rest.
const DECAY: f64 = 0.98;
const SHARES: std::ops::RangeInclusive<f64> = 0.01..=0.8;

#[derive(Debug)]
pub(crate) struct Climb {
    window: f64,
    step: f64,
    hits: usize,
    requests: usize,
    /// The hit ratio of the sample before; none at first.
    before: Option<f64>,
}

impl Climb {
    pub(crate) fn new(window: f64) -> Self {
        Self { window, step: STEP, hits: 0, requests: 0, before: None }
    }

    /// The share of the window.
    pub(crate) fn window(&self) -> f64 {
        self.window
    }

    /// Counts a request, of a cache that holds `entries`.
    #[inline]
    pub(crate) fn note(&mut self, is_hit: bool, entries: usize) {
        self.hits += usize::from(is_hit);
        self.requests += 1;
        if self.requests >= (SAMPLE * entries).max(LEAST) {
            self.judge();
        }
    }

    fn judge(&mut self) {
        let ratio = self.hits as f64 / self.requests as f64;
        (self.hits, self.requests) = (0, 0);
        let Some(before) = self.before.replace(ratio) else { return };
        let change = ratio - before;
        let direction = if change >= 0.0 { self.step } else { -self.step };
        self.window = (self.window + direction).clamp(*SHARES.start(), *SHARES.end());
        self.step = if change.abs() >= RESTART { STEP.copysign(direction) } else { DECAY * direction };
    }
}
