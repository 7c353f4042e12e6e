//! The governor of resources under a load that grows and memory that becomes short.
use crate::{
    engine::{Engine, EngineError, Governor, NewMemory, Setup, Tick},
    resources::{governor::Reason, pressure::Pressure},
    store::{Layer, RecordId},
};
use magray_plugin_api::{CallContext, Role, SearchParams};
use memmap2::MmapMut;
use serde::Serialize;
use std::time::Instant;

/// A limit above this is not filled: whoever shares the machine would feel it.
const MOST: u64 = 4 << 30;
const BLOCK: usize = 1 << 20;
/// Records that are looked for at each look of the governor, and at the end.
const CHECKED: u64 = 10;
const CHECKED_AT_END: u64 = 500;
/// One record in so many is of another layer, which is searched at one look in so many only.
const SELDOM: usize = 3;
const SELDOM_SEARCHED: u32 = 10;

/// What is done.
#[derive(Clone, Copy, Debug)]
pub struct GovernorRequest {
    /// Looks of the governor in each of three phases: the load grows; other memory grows beside it until the limit is
    /// nearly reached; that memory is free again.
    pub looks: u32,
    /// Texts that are stored between two looks.
    pub texts: u32,
}

/// How things were at one look.
#[derive(Clone, Debug, Serialize)]
#[expect(missing_docs, reason = "as in Tick and Pressure")]
pub struct GovernorPoint {
    /// By the clock of the governor, which is not that of the run.
    pub seconds: u64,
    /// Memory in use of the limit that was filled.
    pub used_percent: f64,
    pub stalled_percent: f64,
    /// Memory that the measurement took to make it short.
    pub ballast_bytes: u64,
    /// What the process allocated beside that.
    pub anonymous_bytes: u64,
    pub granted_bytes: u64,
    pub cached_bytes: u64,
    pub cache_reason: Reason,
    pub granted_vectors: u64,
    pub held_vectors: u64,
    pub vectors_reason: Reason,
    pub stored: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct GovernorFigures {
    /// The limit that was filled, and its bytes.
    pub limit: String,
    /// See `limit`.
    pub limit_bytes: u64,
    /// In order of time.
    pub points: Vec<GovernorPoint>,
    /// Records that were stored, and that were looked for, and that were not found.
    pub stored: u64,
    /// See `stored`.
    pub checked: u64,
    /// See `stored`.
    pub lost: u64,
    /// By how many bytes a cleanup at the end made the process smaller.
    pub cleaned_bytes: u64,
}

struct Run<'a> {
    cx: &'a dyn CallContext,
    engine: Engine,
    ids: Vec<RecordId>,
    /// Pages of their own, so that all of it is free at once.
    ballast: Vec<MmapMut>,
    checked: u64,
    lost: u64,
}

/// Runs an engine in a data folder of its own with the governor of its configuration. The clock of the governor is set
/// forward, so that this takes no longer than its work.
///
/// # Errors
/// [`EngineError::Invalid`] where this process has no limit of memory that may be filled.
pub fn measure_governor(
    cx: &dyn CallContext,
    mut setup: Setup,
    request: GovernorRequest,
) -> Result<GovernorFigures, EngineError> {
    let limit = look().tightest().cloned().filter(|limit| limit.name != "machine" && limit.total <= MOST);
    let Some(limit) = limit else {
        return Err(EngineError::Invalid(
            "this fills its memory up to a limit, and this process has none of 4 GiB or less; give it one, as in \
             `systemd-run --user --scope -p MemoryMax=512M magray bench governor`"
                .into(),
        ));
    };
    let critical = f64::from(setup.config.memory.resource_manager.critical_memory_usage_percent);
    let folder = tempfile::tempdir()?;
    setup.data_dir = folder.path().to_owned();
    let engine = Engine::open(setup)?;
    let mut governor = Governor::begin(&engine, &look())?;
    let (start, interval) = (Instant::now(), governor.interval());
    let mut run = Run { cx, engine, ids: Vec::new(), ballast: Vec::new(), checked: 0, lost: 0 };
    let mut points = Vec::new();
    for number in 0..3 * request.looks {
        run.store(request.texts)?;
        match number / request.looks {
            0 => {}
            1 => {
                // Past the critical value halfway, and there until the end.
                let part = (2.0 * f64::from(number % request.looks + 1) / f64::from(request.looks)).min(1.0);
                run.fill(part * (critical + (100.0 - critical) / 3.0))?;
            }
            _ => run.ballast.clear(),
        }
        run.check(CHECKED, number % SELDOM_SEARCHED == 0)?;
        let mut pressure = look();
        // It stands for other programs.
        let process = &mut pressure.process;
        process.anonymous = process.anonymous.saturating_sub(run.ballast_bytes());
        let tick = governor.tick_at(&run.engine, start + interval * number, pressure);
        points.push(run.point(&tick, interval.as_secs() * u64::from(number)));
        cx.progress(u64::from(number + 1), u64::from(3 * request.looks));
    }
    run.check(CHECKED_AT_END, true)?;
    let cleaned_bytes = run.engine.force_cleanup();
    run.check(CHECKED, true)?;
    let Run { checked, lost, ids, .. } = run;
    let stored = ids.len() as u64;
    Ok(GovernorFigures {
        limit: limit.name,
        limit_bytes: limit.total,
        points,
        stored,
        checked,
        lost,
        cleaned_bytes,
    })
}

/// How memory is below the limits of this process: that others use the machine does not belong to the measurement.
fn look() -> Pressure {
    let mut pressure = Pressure::sample();
    if pressure.limits.len() > 1 {
        pressure.limits.retain(|limit| limit.name != "machine");
    }
    pressure
}

fn text(number: usize) -> String {
    format!("entry {number} says {}", number * number)
}

fn layer(number: usize) -> Layer {
    if number.is_multiple_of(SELDOM) { Layer::Assets } else { Layer::Insights }
}

impl Run<'_> {
    fn store(&mut self, texts: u32) -> Result<(), EngineError> {
        self.cx.check().map_err(|_| EngineError::Interrupted)?;
        let numbers = self.ids.len()..self.ids.len() + texts as usize;
        let memory =
            |number| NewMemory { text: text(number), layer: Some(layer(number)), ..NewMemory::default() };
        let added = self.engine.add(self.cx, numbers.map(memory).collect())?;
        self.ids.extend(added.iter().map(|added| added.id));
        self.engine.upkeep(self.cx)
    }

    /// Takes memory until so many percent of the limit are in use.
    fn fill(&mut self, percent: f64) -> Result<(), EngineError> {
        while look().tightest().is_some_and(|limit| limit.percent() < percent) {
            let mut block = MmapMut::map_anon(BLOCK)?;
            // A page takes no memory until it is written.
            block.fill(1);
            self.ballast.push(block);
        }
        Ok(())
    }

    /// Looks for some of all records, those that were stored last among them; of both layers, or of the busy one.
    fn check(&mut self, count: u64, both: bool) -> Result<(), EngineError> {
        let stored = self.ids.len();
        let step = (stored / count as usize).max(1);
        let numbers = (0..stored).rev().step_by(step);
        for number in numbers.filter(|&number| both || layer(number) == Layer::Insights) {
            let vector = self.engine.embedding()?.embed(self.cx, &[&text(number)], Role::Passage)?;
            let params = SearchParams::default();
            let hits = self.engine.indexes()?.search(self.cx, layer(number), &vector, 10, params, None)?;
            self.checked += 1;
            self.lost += u64::from(hits.iter().all(|hit| hit.id != self.ids[number].index_id()));
        }
        Ok(())
    }

    fn ballast_bytes(&self) -> u64 {
        (self.ballast.len() * BLOCK) as u64
    }

    fn point(&self, tick: &Tick, seconds: u64) -> GovernorPoint {
        let pressure = &tick.memory.pressure;
        GovernorPoint {
            seconds,
            used_percent: pressure.tightest().map_or(0.0, |limit| limit.percent()),
            stalled_percent: pressure.stalled.unwrap_or(0.0),
            ballast_bytes: self.ballast_bytes(),
            anonymous_bytes: pressure.process.anonymous,
            granted_bytes: tick.cache.granted,
            cached_bytes: tick.cached_bytes,
            cache_reason: tick.cache.reason,
            granted_vectors: tick.vectors.granted,
            held_vectors: tick.held_vectors,
            vectors_reason: tick.vectors.reason,
            stored: self.ids.len() as u64,
        }
    }
}
