//! Work cut into parts for as many threads as the host grants.

use magray_plugin_api::Result;
use std::{
    panic::resume_unwind,
    sync::{Mutex, PoisonError},
    thread,
};

/// Has at most `threads` threads take task after task until none is left or one fails; each has a `state`
/// of its own.
///
/// # Errors
/// One that a task gives; tasks that no thread has taken by then are left out.
pub(crate) fn each<T, S>(
    threads: usize,
    tasks: impl Iterator<Item = T> + Send,
    state: impl Fn() -> S + Sync,
    run: impl Fn(&mut S, T) -> Result<()> + Sync,
) -> Result<()> {
    let tasks = Mutex::new(tasks.fuse());
    let take = || tasks.lock().unwrap_or_else(PoisonError::into_inner).next();
    let worker = || {
        let mut state = state();
        while let Some(task) = take() {
            if let Err(error) = run(&mut state, task) {
                // Nobody takes another.
                while take().is_some() {}
                return Err(error);
            }
        }
        Ok(())
    };
    thread::scope(|scope| {
        // Where the system has no thread to give, the others do the work.
        let helpers: Vec<_> =
            (1..threads).filter_map(|_| thread::Builder::new().spawn_scoped(scope, worker).ok()).collect();
        let own = worker();
        helpers.into_iter().fold(own, |before, helper| {
            before.and(helper.join().unwrap_or_else(|panic| resume_unwind(panic)))
        })
    })
}

/// `work` of each part, in the order of the parts, by at most `threads` threads.
///
/// # Errors
/// As [`each`].
pub(crate) fn map<P: Send, R: Send>(
    threads: usize,
    parts: Vec<P>,
    work: impl Fn(P) -> Result<R> + Sync,
) -> Result<Vec<R>> {
    let mut results: Vec<Option<R>> = parts.iter().map(|_| None).collect();
    let threads = threads.min(parts.len());
    each(
        threads,
        parts.into_iter().zip(&mut results),
        || (),
        |(), (part, result)| {
            *result = Some(work(part)?);
            Ok(())
        },
    )?;
    Ok(results.into_iter().flatten().collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_api::Error;

    #[test]
    fn keeps_the_order_and_the_first_error() {
        let parts: Vec<usize> = (0..100).collect();
        for threads in [1, 3] {
            let doubled = map(threads, parts.clone(), |part| Ok(part * 2)).unwrap();
            assert_eq!(doubled, parts.iter().map(|part| part * 2).collect::<Vec<_>>());
            let failed = map(threads, parts.clone(), |part| {
                if part == 40 { Err(Error::invalid_input("forty")) } else { Ok(()) }
            });
            assert!(failed.unwrap_err().to_string().contains("forty"));
        }
    }
}
