//! Threads for the work of a call.
use magray_plugin_api::Result;
use rayon::{ThreadPool, ThreadPoolBuilder};
use std::{
    fmt, panic,
    sync::{Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Thread pools that are made when they are needed and kept. A lane is a pool that one batch runs in
/// at a time: candle's and gemm's own parallelism stays within it. Batches side by side in lanes of
/// one thread use the cores better than one batch spread over all, for candle spreads only the
/// products; a call with fewer batches than threads gets wider lanes.
pub(crate) struct Lanes {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Default)]
struct State {
    /// Threads of the lanes that are lent.
    busy: usize,
    idle: Vec<ThreadPool>,
}

/// How often one who waits for a thread looks whether to go on waiting.
const LOOK: Duration = Duration::from_millis(5);

impl fmt::Debug for Lanes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lanes").field("busy", &self.state().busy).finish_non_exhaustive()
    }
}

impl Lanes {
    pub(crate) fn new() -> Self {
        Self { state: Mutex::default(), freed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `work` for each of `items`, the first ones first, on at most `threads` threads together
    /// with all other calls; waits for one where there is none.
    ///
    /// # Errors
    /// The first one of `work`, after which nothing more is begun, and that of `check`.
    pub(crate) fn run<T: Send>(
        &self,
        threads: usize,
        items: Vec<T>,
        check: impl Fn() -> Result<()>,
        work: impl Fn(T) -> Result<()> + Sync,
    ) -> Result<()> {
        let lanes = self.lend(threads, items.len(), check)?;
        let items = Mutex::new(items.into_iter());
        let next = || items.lock().unwrap_or_else(PoisonError::into_inner).next();
        let run = || {
            while let Some(item) = next() {
                work(item).inspect_err(|_| while next().is_some() {})?;
            }
            Ok(())
        };
        let (own, others) =
            lanes.pools.split_first().map_or((None, &[][..]), |(own, others)| (Some(own), others));
        thread::scope(|scope| {
            let helpers: Vec<_> = others.iter().map(|pool| scope.spawn(|| pool.install(run))).collect();
            let result = own.map_or_else(run, |pool| pool.install(run));
            helpers.into_iter().fold(result, |result, helper| {
                result.and(helper.join().unwrap_or_else(|payload| panic::resume_unwind(payload)))
            })
        })
    }

    /// Takes lanes for `items` pieces of work, at least one.
    fn lend(&self, threads: usize, items: usize, check: impl Fn() -> Result<()>) -> Result<Lent<'_>> {
        let most = threads.max(1);
        let mut state = self.state();
        while state.busy >= most {
            check()?;
            state = self.freed.wait_timeout(state, LOOK).unwrap_or_else(PoisonError::into_inner).0;
        }
        let free = most - state.busy;
        let count = free.min(items).max(1);
        let width = free / count;
        state.busy += count * width;
        let mut lent = Lent { lanes: self, pools: Vec::new(), threads: count * width, most };
        let fitting: Vec<ThreadPool> =
            state.idle.extract_if(.., |pool| pool.current_num_threads() == width).take(count).collect();
        drop(state);
        lent.pools = fitting;
        while lent.pools.len() < count {
            // Where the system gives no thread, the pools that are there do the work, or the caller.
            match ThreadPoolBuilder::new().num_threads(width).build() {
                Ok(pool) => lent.pools.push(pool),
                Err(_) => break,
            }
        }
        Ok(lent)
    }
}

/// Lanes that go back when they are dropped.
struct Lent<'a> {
    lanes: &'a Lanes,
    pools: Vec<ThreadPool>,
    /// Threads of the pools.
    threads: usize,
    /// Threads of all lanes together.
    most: usize,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.lanes.state();
        state.busy -= self.threads;
        state.idle.append(&mut self.pools);
        // Lanes of a width that is not asked for any more go.
        while state.idle.iter().map(ThreadPool::current_num_threads).sum::<usize>() > 2 * self.most {
            state.idle.remove(0);
        }
        self.lanes.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_api::{Error, ErrorCode};
    use std::sync::{
        Barrier,
        atomic::{AtomicUsize, Ordering},
    };

    #[test]
    fn calls_together_keep_to_the_threads() {
        let (lanes, busy, most, done) =
            (Lanes::new(), AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        let work = |()| {
            most.fetch_max(busy.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::yield_now();
            busy.fetch_sub(1, Ordering::SeqCst);
            done.fetch_add(1, Ordering::SeqCst);
            Ok(())
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| lanes.run(3, vec![(); 50], || Ok(()), work).unwrap());
            }
        });
        assert_eq!(done.into_inner(), 200);
        assert!(most.into_inner() <= 3);
        assert_eq!(lanes.state().busy, 0);
    }

    #[test]
    fn one_piece_of_work_gets_all_threads_and_many_get_one_each() {
        let lanes = Lanes::new();
        let width = |items: usize| {
            let seen = Mutex::new(Vec::new());
            let note = |_| {
                seen.lock().unwrap().push(rayon::current_num_threads());
                Ok(())
            };
            lanes.run(4, vec![(); items], || Ok(()), note).unwrap();
            seen.into_inner().unwrap()
        };
        assert_eq!(width(1), [4]);
        assert_eq!(width(2), [2, 2]);
        assert_eq!(width(9), [1; 9]);
    }

    #[test]
    fn an_error_ends_the_call_and_frees_its_threads() {
        let lanes = Lanes::new();
        let failed = || Error::new(ErrorCode::INTERNAL, "no");
        let done = AtomicUsize::new(0);
        let work = |item| {
            done.fetch_add(1, Ordering::SeqCst);
            if item == 2 { Err(failed()) } else { Ok(()) }
        };
        assert!(lanes.run(1, (0..1000).collect(), || Ok(()), work).is_err());
        assert_eq!(done.into_inner(), 3);
        lanes.run(1, vec![()], || Ok(()), |()| Ok(())).unwrap();
    }

    #[test]
    fn one_who_waits_can_be_cancelled() {
        let lanes = Lanes::new();
        let (taken, over) = (Barrier::new(2), Barrier::new(2));
        let hold = |()| {
            taken.wait();
            over.wait();
            Ok(())
        };
        thread::scope(|scope| {
            scope.spawn(|| lanes.run(1, vec![()], || Ok(()), hold).unwrap());
            taken.wait();
            let cancelled = || Err(Error::new(ErrorCode::CANCELLED, "no"));
            let error = lanes.run(1, vec![()], cancelled, |()| Ok(())).unwrap_err();
            assert_eq!(error.code(), ErrorCode::CANCELLED);
            over.wait();
        });
    }
}
