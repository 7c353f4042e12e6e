//! Sealing in the background of a process that lives long.
use super::{Extent, Shared};
use magray_plugin_api::CallContext;
use std::{
    io,
    sync::{
        Arc, Condvar, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How often it looks whether anything is due, at least.
const ROUND: Duration = Duration::from_secs(1);
/// How long it waits after one that failed, which is often for lack of disk.
const AFTER_FAILURE: Duration = Duration::from_secs(60);
/// How often it looks at a part of a file for damage.
const SCRUB: Duration = Duration::from_secs(30);

/// Wakes a worker.
#[derive(Default)]
pub(super) struct Wake {
    is_woken: Mutex<bool>,
    changed: Condvar,
}

impl Wake {
    pub(super) fn wake(&self) {
        *self.is_woken.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.changed.notify_all();
    }

    fn wait(&self, at_most: Duration) {
        let woken = self.is_woken.lock().unwrap_or_else(PoisonError::into_inner);
        let wait = self.changed.wait_timeout_while(woken, at_most, |is_woken| !*is_woken);
        *wait.unwrap_or_else(PoisonError::into_inner).0 = false;
    }
}

/// Seals and merges what is due until it is dropped; then it stops at the next batch. Its thread has a low
/// priority, and plugins that it calls keep as few threads busy as the settings say.
#[derive(Debug)]
pub struct SyncWorker {
    /// Wakes it to stop.
    stop: Arc<Stop>,
    thread: Option<JoinHandle<()>>,
}

struct Stop {
    is_asked: AtomicBool,
    shared: Weak<Shared>,
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.is_asked.fmt(f)
    }
}

impl CallContext for Stop {
    fn is_cancelled(&self) -> bool {
        self.is_asked.load(Ordering::Relaxed)
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

impl SyncWorker {
    pub(super) fn start(shared: &Arc<Shared>) -> io::Result<Self> {
        let stop = Arc::new(Stop { is_asked: AtomicBool::new(false), shared: Arc::downgrade(shared) });
        let worker = Arc::clone(&stop);
        shared.layers.iter().for_each(|index| index.recheck.want(true));
        let thread = thread::Builder::new().name("index-sync".to_owned()).spawn(move || run(&worker))?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for SyncWorker {
    fn drop(&mut self) {
        self.stop.is_asked.store(true, Ordering::Relaxed);
        if let Some(shared) = self.stop.shared.upgrade() {
            shared.layers.iter().for_each(|index| index.recheck.want(false));
            shared.wake.wake();
        }
        if let Some(thread) = self.thread.take() {
            // A panic was reported where it happened.
            drop(thread.join());
        }
    }
}

fn run(stop: &Stop) {
    lower_priority();
    let (mut scrubbed, mut pick) = (Instant::now(), 0u64);
    while let Some(shared) = stop.shared.upgrade()
        && !stop.is_cancelled()
    {
        crate::plugins::limit_threads(shared.sync.worker_threads);
        let mut round = ROUND.min(shared.sync.max_age);
        for index in &shared.layers {
            // Whatever a step takes, searches do not wait for it.
            let step_rows = shared.step_rows.load(Ordering::Relaxed);
            match index.sync(stop, Extent::Due { step_rows }) {
                Err(error) if error.is_cancelled() => return,
                Err(error) => {
                    tracing::warn!("{}: {error}", index.describe());
                    round = AFTER_FAILURE;
                }
                Ok(_) => {}
            }
            match index.recheck(stop) {
                Err(error) if error.is_cancelled() => return,
                Err(error) => tracing::debug!("{}: a search was not checked: {error}", index.describe()),
                Ok(()) => {}
            }
        }
        if scrubbed.elapsed() >= SCRUB {
            scrubbed = Instant::now();
            let layers = shared.layers.len() as u64;
            shared.layers[(pick % layers) as usize].scrub(pick / layers);
            pick += 1;
        }
        shared.wake.wait(round);
    }
}

/// Others come first where processors are scarce.
fn lower_priority() {
    #[cfg(target_os = "linux")]
    {
        const NICE: i32 = 10;
        // SAFETY: it takes no pointer. On Linux 0 is the calling thread, and its own threads inherit it.
        if unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE) } != 0 {
            tracing::debug!("the priority of sealing in the background is that of everything else");
        }
    }
}
