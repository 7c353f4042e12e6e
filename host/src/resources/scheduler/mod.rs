//! Background work of a process that lives long: a fixed number of threads at a low priority run tasks in the
//! order that `queue.rs` says, within the CPU time that `budget.rs` grants.
//!
//! A task can be run at any time, and again: whatever is cut short is done by its next run.
mod budget;
mod climate;
mod queue;
#[cfg(test)]
mod tests;

pub use climate::{memory_pressure, system_load};
pub use queue::{Climate, Kind};

use budget::Budget;
use cpu_time::ThreadTime;
use magray_plugin_api::CallContext;
use queue::{Picked, Queue, Spec, TaskId};
use std::{
    error::Error,
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a task that failed rests, which is often for lack of disk.
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// How long what the machine said is believed.
const CLIMATE: Duration = Duration::from_secs(1);

/// What a run did, as numbers of things (`("record", 3)`); empty where there was nothing to do.
pub type Counts = Vec<(&'static str, u64)>;
/// How a run ended.
pub type Outcome = Result<Counts, Box<dyn Error + Send + Sync>>;

type Work = dyn Fn(&dyn CallContext) -> Outcome + Send + Sync;

/// Something to be done now and then.
#[expect(missing_debug_implementations, reason = "work has nothing to show")]
pub struct Task {
    name: &'static str,
    spec: Spec,
    work: Box<Work>,
}

impl Task {
    /// A task that runs when it is asked for. `work` should look at its context at least every 10 ms or so, and
    /// stop where that says so.
    pub fn new(
        name: &'static str,
        kind: Kind,
        work: impl Fn(&dyn CallContext) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        let spec = Spec { kind, patience: kind.patience(), every: None };
        Self { name, spec, work: Box::new(work) }
    }

    /// It also runs at the start, and so long after each of its ends.
    #[must_use]
    pub fn every(mut self, period: Duration) -> Self {
        self.spec.every = Some(period);
        self
    }
}

/// How a [`Scheduler`] works.
#[expect(missing_debug_implementations, reason = "functions have nothing to show")]
pub struct SchedulerOptions {
    /// Tasks that run at once, at most.
    pub threads: usize,
    /// CPU seconds that all tasks take a second, on average. What a plugin computes in threads of its own does
    /// not count.
    pub cpu_share: f64,
    /// How the machine is; asked once a second at most.
    pub climate: Box<dyn Fn() -> Climate + Send + Sync>,
}

/// A run that has ended.
#[derive(Debug)]
pub struct Run<'a> {
    /// The task.
    pub task: &'static str,
    /// How long it had waited since it was due.
    pub waited: Duration,
    /// How long it took, and the time of its thread on a processor.
    pub took: Duration,
    /// See `took`.
    pub cpu: Duration,
    /// What it did.
    pub outcome: &'a Outcome,
}

/// What became of a task since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TaskMetrics {
    /// Its name.
    pub task: &'static str,
    /// Whether it waits for its turn.
    pub queued: bool,
    /// Runs that have ended; those that failed, and those that were asked to stop and did not succeed.
    pub runs: u64,
    /// See `runs`.
    pub failed: u64,
    /// See `runs`.
    pub cancelled: u64,
    /// How long it has waited, in all and at most.
    pub waited: Duration,
    /// See `waited`.
    pub longest_wait: Duration,
    /// How long it ran, and the time of its threads on a processor.
    pub took: Duration,
    /// See `took`.
    pub cpu: Duration,
}

/// Where threads and whoever asks for tasks meet. Holds nothing of the tasks, so that whoever holds a [`Bell`]
/// keeps nothing of them alive.
struct Desk {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    queue: Queue,
    budget: Budget,
    metrics: Vec<TaskMetrics>,
    /// The runs that are under way are asked to stop by these, as all are by `is_stopping`.
    cancel: Vec<Arc<AtomicBool>>,
    is_stopping: bool,
}

impl Desk {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Shared {
    desk: Arc<Desk>,
    tasks: Vec<Task>,
    climate: Box<dyn Fn() -> Climate + Send + Sync>,
    last_climate: Mutex<Option<(Instant, Climate)>>,
    on_run: Box<dyn Fn(&Run<'_>) + Send + Sync>,
}

/// Asks for one task, from any thread; quick, and waits for no task.
#[derive(Clone)]
pub struct Bell {
    desk: Arc<Desk>,
    id: TaskId,
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.id.fmt(f)
    }
}

impl Bell {
    /// The task is due now, if it does not wait already; one that runs will run once more. False where the
    /// scheduler has stopped.
    pub fn ring(&self) -> bool {
        let mut state = self.desk.lock();
        state.queue.request(self.id, Instant::now());
        let is_stopping = state.is_stopping;
        drop(state);
        self.desk.changed.notify_one();
        !is_stopping
    }

    /// A run that waits does not take place, and one that is under way is asked to stop.
    pub fn cancel(&self) {
        let mut state = self.desk.lock();
        state.queue.cancel(self.id, Instant::now());
        state.cancel[self.id.0].store(true, Ordering::Relaxed);
    }
}

/// Runs tasks until it is dropped: then those that run are asked to stop, and waited for.
///
/// Threads: any number of calls at once.
#[expect(missing_debug_implementations, reason = "tasks have nothing to show")]
pub struct Scheduler {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts the threads. `on_run` is told of each run that has ended, by the thread that ran it.
    ///
    /// # Errors
    /// What the system says where it gives no thread.
    pub fn start(
        tasks: Vec<Task>,
        options: SchedulerOptions,
        on_run: impl Fn(&Run<'_>) + Send + Sync + 'static,
    ) -> io::Result<Self> {
        let now = Instant::now();
        let metrics = |task: &Task| TaskMetrics { task: task.name, ..TaskMetrics::default() };
        let state = State {
            queue: Queue::new(tasks.iter().map(|task| task.spec), now),
            budget: Budget::new(options.cpu_share, now),
            metrics: tasks.iter().map(metrics).collect(),
            cancel: tasks.iter().map(|_| Arc::default()).collect(),
            is_stopping: false,
        };
        let shared = Arc::new(Shared {
            desk: Arc::new(Desk { state: Mutex::new(state), changed: Condvar::new() }),
            tasks,
            climate: options.climate,
            last_climate: Mutex::new(None),
            on_run: Box::new(on_run),
        });
        // Dropped where a later thread is not to be had, it stops the earlier ones.
        let mut scheduler = Self { shared, threads: Vec::new() };
        for _ in 0..options.threads.max(1) {
            let shared = Arc::clone(&scheduler.shared);
            let thread = thread::Builder::new().name("background".to_owned());
            scheduler.threads.push(thread.spawn(move || shared.work())?);
        }
        Ok(scheduler)
    }

    /// What asks for the task of this name; none where there is none.
    pub fn bell(&self, task: &str) -> Option<Bell> {
        let place = self.shared.tasks.iter().position(|known| known.name == task)?;
        Some(Bell { desk: Arc::clone(&self.shared.desk), id: TaskId(place) })
    }

    /// What became of each task.
    pub fn metrics(&self) -> Vec<TaskMetrics> {
        let state = self.shared.desk.lock();
        let metrics = state.metrics.iter().enumerate();
        metrics
            .map(|(place, &task)| TaskMetrics { queued: state.queue.is_waiting(TaskId(place)), ..task })
            .collect()
    }
}

impl Drop for Scheduler {
    fn drop(&mut self) {
        let mut state = self.shared.desk.lock();
        state.is_stopping = true;
        state.cancel.iter().for_each(|cancel| cancel.store(true, Ordering::Relaxed));
        drop(state);
        self.shared.desk.changed.notify_all();
        for thread in self.threads.drain(..) {
            // Panics of tasks are contained, and reported where they happened.
            drop(thread.join());
        }
    }
}

/// What a task may ask of the scheduler while it runs.
struct UntilCancelled(Arc<AtomicBool>);

impl CallContext for UntilCancelled {
    fn is_cancelled(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

impl Shared {
    /// One thread, until the scheduler stops.
    fn work(&self) {
        lower_priority();
        loop {
            let climate = self.climate();
            let mut state = self.desk.lock();
            if state.is_stopping {
                return;
            }
            let now = Instant::now();
            let rest = state.budget.rest(now);
            let picked = if rest.is_zero() { state.queue.pick(now, climate) } else { None };
            if let Some(picked) = picked {
                let cancel: Arc<AtomicBool> = Arc::default();
                state.cancel[picked.id.0] = Arc::clone(&cancel);
                drop(state);
                self.run(picked, UntilCancelled(cancel));
                continue;
            }
            let until = if rest.is_zero() { state.queue.next_due() } else { now.checked_add(rest) };
            // Woken or not, the next round looks at all of it again.
            match until {
                Some(until) => {
                    drop(self.desk.changed.wait_timeout(state, until.saturating_duration_since(now)));
                }
                None => drop(self.desk.changed.wait(state)),
            }
        }
    }

    fn run(&self, Picked { id, waited }: Picked, cx: UntilCancelled) {
        let Task { name, work, .. } = &self.tasks[id.0];
        let (started, before) = (Instant::now(), ThreadTime::try_now().ok());
        let outcome =
            catch_unwind(AssertUnwindSafe(|| work(&cx))).unwrap_or_else(|_| Err("it panicked".into()));
        let took = started.elapsed();
        let cpu = before.and_then(|before| Some(ThreadTime::try_now().ok()?.duration_since(before)));
        // Where the system does not say, all of it counts.
        let cpu = cpu.unwrap_or(took);
        let is_cancelled = outcome.is_err() && cx.is_cancelled();
        match &outcome {
            Err(error) if is_cancelled => tracing::debug!("background task {name}: it was stopped: {error}"),
            Err(error) => tracing::warn!("background task {name}: {error}"),
            Ok(_) => {}
        }
        let is_failed = outcome.is_err() && !is_cancelled;
        let run = Run { task: name, waited, took, cpu, outcome: &outcome };
        // Whoever is told must not cost us the thread.
        drop(catch_unwind(AssertUnwindSafe(|| (self.on_run)(&run))));
        let mut state = self.desk.lock();
        state.budget.spend(cpu);
        let pause = if is_failed { AFTER_FAILURE } else { Duration::ZERO };
        state.queue.finish(id, Instant::now(), pause);
        let metrics = &mut state.metrics[id.0];
        metrics.runs += 1;
        metrics.failed += u64::from(is_failed);
        metrics.cancelled += u64::from(is_cancelled);
        metrics.waited += waited;
        metrics.longest_wait = metrics.longest_wait.max(waited);
        metrics.took += took;
        metrics.cpu += cpu;
    }

    fn climate(&self) -> Climate {
        let mut last = self.last_climate.lock().unwrap_or_else(PoisonError::into_inner);
        match *last {
            Some((at, climate)) if at.elapsed() < CLIMATE => climate,
            _ => {
                let climate = (self.climate)();
                *last = Some((Instant::now(), climate));
                climate
            }
        }
    }
}

/// Others come first where processors are scarce.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        const NICE: i32 = 10;
        // SAFETY: it takes no pointer. On Linux 0 is the calling thread, and its own threads inherit it.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
            tracing::debug!("the priority of background work is that of everything else");
        }
    }
}
