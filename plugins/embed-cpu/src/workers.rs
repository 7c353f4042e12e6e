use magray_plugin_api::Result;
use std::{
    panic,
    sync::{Mutex, PoisonError},
    thread,
};

/// Has up to `threads` threads work on `jobs`, this one among them: each calls `run` with what gives
/// it the next job. The first error of a thread ends that thread and is returned at the end.
///
/// # Panics
/// As a thread does.
pub(crate) fn run<J: Send>(
    threads: usize,
    jobs: impl Iterator<Item = J> + Send,
    run: impl Fn(&mut dyn FnMut() -> Option<J>) -> Result<()> + Sync,
) -> Result<()> {
    let jobs = Mutex::new(jobs);
    let work = || run(&mut || jobs.lock().unwrap_or_else(PoisonError::into_inner).next());
    thread::scope(|scope| {
        // Where the system gives no more threads, the others do the work.
        let start = |_| thread::Builder::new().spawn_scoped(scope, work).ok();
        let helpers: Vec<_> = (1..threads).filter_map(start).collect();
        let own = work();
        helpers.into_iter().fold(own, |result, helper| {
            result.and(helper.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
        })
    })
}
