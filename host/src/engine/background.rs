//! What a process that lives long does beside its answers.
#[cfg(test)]
#[cfg(feature = "cpu")]
mod tests;

use super::{Engine, EngineError};
use crate::{
    plugins::limit_threads,
    resources::scheduler::{
        Climate, Counts, Kind, Run, Scheduler, SchedulerOptions, Task, TaskMetrics, memory_pressure,
        system_load,
    },
};
use magray_plugin_api::CallContext;
use std::{io, sync::Arc, time::Duration};

/// How long accesses stay in memory, and how often it is looked for sessions that are over.
const ACCESSES_SECONDS: u64 = 5;
const SESSIONS_SECONDS: u64 = 60;

type Chore = fn(&Engine, &dyn CallContext) -> Result<Counts, EngineError>;

/// Background work under way. Dropped, it stops what runs, and waits for it.
#[expect(missing_debug_implementations, reason = "tasks have nothing to show")]
pub struct Background {
    scheduler: Scheduler,
}

impl Background {
    /// What became of each task.
    pub fn metrics(&self) -> Vec<TaskMetrics> {
        self.scheduler.metrics()
    }
}

impl Engine {
    /// Every task of the background: its name, what kind of work it is, how many seconds after its end it comes
    /// again (0: never), and what it does. This is the place to add one.
    fn chores(&self) -> Vec<(&'static str, Kind, u64, Chore)> {
        let every = &self.setup.config.background;
        vec![
            ("seal", Kind::Seal, every.seal_seconds, Self::seal),
            ("merge", Kind::Build, every.merge_seconds, Self::merge),
            ("embed", Kind::Build, every.embed_seconds, |engine, cx| {
                Ok(vec![("record", engine.embed_missing(cx)?)])
            }),
            ("expire", Kind::Cleanup, every.expire_seconds, Self::expire),
            ("promote", Kind::Refine, self.setup.config.memory.promotion.every_seconds, Self::promote_all),
            ("trim", Kind::Cleanup, every.trim_seconds, Self::trim_cache),
            ("accesses", Kind::Cleanup, ACCESSES_SECONDS, |engine, _| {
                engine.store.flush()?;
                Ok(Counts::new())
            }),
            ("sessions", Kind::Cleanup, SESSIONS_SECONDS, Self::end_sessions),
            (
                "govern",
                Kind::Cleanup,
                self.setup.config.memory.resource_manager.interval().as_secs(),
                Self::govern,
            ),
            ("recall", Kind::Refine, every.recall_seconds, Self::recheck),
            ("scrub", Kind::Refine, every.scrub_seconds, |engine, _| engine.scrub()),
        ]
    }

    /// Starts the background work of this process, which goes on until what is returned is dropped. `on_run` is
    /// told of each run, by the thread that ran it.
    ///
    /// # Errors
    /// What the system says where it gives no thread.
    pub fn start_background(
        self: &Arc<Self>,
        on_run: impl Fn(&Run<'_>) + Send + Sync + 'static,
    ) -> io::Result<Background> {
        let config = &self.setup.config;
        let (settings, sync) = (&config.background, &config.memory.sync);
        let chores = self.chores().into_iter().filter(|&(_, _, seconds, _)| seconds > 0);
        let tasks = chores.map(|(name, kind, seconds, chore)| {
            let (engine, threads) = (Arc::clone(self), sync.threads);
            let work = move |cx: &dyn CallContext| {
                limit_threads(threads);
                Ok(chore(&engine, cx)?)
            };
            Task::new(name, kind, work).every(Duration::from_secs(seconds))
        });
        let options = SchedulerOptions {
            threads: settings.threads,
            cpu_share: f64::from(settings.cpu_percent) / 100.0,
            climate: Box::new(|| Climate { load: system_load(), pressure: memory_pressure() }),
        };
        let scheduler = Scheduler::start(tasks.collect(), options, on_run)?;
        if sync.is_immediate()
            && let Some(seal) = scheduler.bell("seal")
        {
            // It looks itself whether enough has come.
            self.store.on_commit(move |_| seal.ring());
        }
        Ok(Background { scheduler })
    }
}
