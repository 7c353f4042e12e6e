//! Real threads, which wait for one another and never for a time.
use super::*;
use std::sync::{
    atomic::{AtomicU64, AtomicUsize},
    mpsc::{self, Receiver, Sender},
};

fn options(threads: usize) -> SchedulerOptions {
    // So much that no test has to wait for it.
    SchedulerOptions { threads, cpu_share: 1000.0, climate: Box::new(Climate::default) }
}

fn start(threads: usize, tasks: Vec<Task>) -> Scheduler {
    Scheduler::start(tasks, options(threads), |_| {}).unwrap()
}

/// A task that says that it has begun and goes on when it is let.
fn gate(name: &'static str) -> (Task, Receiver<()>, Sender<()>) {
    let ((begun, begins), (go, goes)) = (mpsc::channel(), mpsc::channel::<()>());
    let goes = Mutex::new(goes);
    let task = Task::new(name, Kind::Seal, move |_| {
        begun.send(())?;
        // Nobody is left to let it where the test has failed.
        let _ = goes.lock().unwrap().recv();
        Ok(Counts::new())
    });
    (task, begins, go)
}

/// What has run to its end is in the metrics a moment later.
fn wait_for(scheduler: &Scheduler, is_so: impl Fn(&[TaskMetrics]) -> bool) -> Vec<TaskMetrics> {
    loop {
        let metrics = scheduler.metrics();
        if is_so(&metrics) {
            return metrics;
        }
        thread::yield_now();
    }
}

#[test]
fn tasks_that_wait_run_in_the_order_of_their_kinds() {
    let (gate, begins, go) = gate("gate");
    let (ran, order) = mpsc::channel();
    let task = |name, kind| {
        let ran = ran.clone();
        Task::new(name, kind, move |_| {
            ran.send(name)?;
            Ok(vec![("thing", 3)])
        })
    };
    let tasks = vec![
        gate,
        task("refine", Kind::Refine),
        task("cleanup", Kind::Cleanup),
        task("build", Kind::Build),
        task("seal", Kind::Seal),
    ];
    let (told, runs) = mpsc::channel();
    let busy = || Climate { load: 1.0, pressure: 0.0 };
    let options = SchedulerOptions { climate: Box::new(busy), ..options(1) };
    let scheduler = Scheduler::start(tasks, options, move |run| {
        told.send((run.task, run.outcome.as_ref().map_or(0, Vec::len))).unwrap();
    })
    .unwrap();
    let ring = |task| assert!(scheduler.bell(task).unwrap().ring());
    ring("gate");
    begins.recv().unwrap();
    ["refine", "cleanup", "build", "seal", "seal", "build"].into_iter().for_each(ring);
    assert_eq!(scheduler.metrics().iter().filter(|task| task.queued).count(), 4);
    go.send(()).unwrap();
    assert_eq!([(); 4].map(|()| order.recv().unwrap()), ["seal", "build", "cleanup", "refine"]);
    let told = [(); 5].map(|()| runs.recv().unwrap());
    assert_eq!(told, [("gate", 0), ("seal", 1), ("build", 1), ("cleanup", 1), ("refine", 1)]);
    let metrics = wait_for(&scheduler, |tasks| tasks.iter().all(|task| task.runs == 1));
    assert!(metrics[1].longest_wait >= metrics[4].longest_wait && metrics[1].waited > Duration::ZERO);
    assert!(scheduler.bell("no such").is_none());
}

#[test]
fn a_request_is_never_lost_and_a_task_never_runs_beside_itself() {
    const ROUNDS: u64 = 500;
    let (asked, seen, inside) = (Arc::new(AtomicU64::new(0)), mpsc::channel(), Arc::new(AtomicUsize::new(0)));
    let (sees, seen) = seen;
    let work = {
        let (asked, inside) = (Arc::clone(&asked), Arc::clone(&inside));
        move |_: &dyn CallContext| {
            assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
            sees.send(asked.load(Ordering::SeqCst))?;
            inside.fetch_sub(1, Ordering::SeqCst);
            Ok(Counts::new())
        }
    };
    let scheduler = start(3, vec![Task::new("work", Kind::Seal, work)]);
    thread::scope(|scope| {
        for _ in 0..4 {
            let (bell, asked) = (scheduler.bell("work").unwrap(), &asked);
            scope.spawn(move || {
                for _ in 0..ROUNDS {
                    asked.fetch_add(1, Ordering::SeqCst);
                    bell.ring();
                }
            });
        }
    });
    // A run that began after the last request has seen it.
    let mut runs = 1;
    while seen.recv().unwrap() < 4 * ROUNDS {
        runs += 1;
    }
    assert!(runs <= 4 * ROUNDS);
    assert_eq!(wait_for(&scheduler, |tasks| tasks[0].runs >= runs)[0].failed, 0);
}

#[test]
fn what_fails_or_panics_is_counted_and_takes_nobody_along() {
    let task = |name, work: fn() -> Outcome| Task::new(name, Kind::Build, move |_| work());
    let tasks = vec![
        task("panics", || panic!("as it must in this test")),
        task("fails", || Err("no disk".into())),
        task("works", || Ok(Counts::new())),
    ];
    let scheduler = Scheduler::start(tasks, options(1), |run| assert_ne!(run.task, "works")).unwrap();
    for task in ["panics", "fails", "works", "panics"] {
        let before = scheduler.metrics().iter().map(|task| task.runs).sum::<u64>();
        scheduler.bell(task).unwrap().ring();
        wait_for(&scheduler, |tasks| tasks.iter().map(|task| task.runs).sum::<u64>() > before);
    }
    let metrics = scheduler.metrics();
    assert_eq!(
        metrics.iter().map(|task| (task.runs, task.failed)).collect::<Vec<_>>(),
        [(2, 2), (1, 1), (1, 0)]
    );
}

#[test]
fn a_run_that_is_cancelled_stops_and_one_that_waits_never_begins() {
    let (begun, begins) = mpsc::channel();
    let until_cancelled = Task::new("runs", Kind::Seal, move |cx| {
        begun.send(())?;
        loop {
            cx.check()?;
            thread::yield_now();
        }
    });
    let waits = Task::new("waits", Kind::Seal, |_| Ok(Counts::new()));
    let scheduler = start(1, vec![until_cancelled, waits]);
    let (runs, waits) = (scheduler.bell("runs").unwrap(), scheduler.bell("waits").unwrap());
    for round in 1..=3 {
        runs.ring();
        begins.recv().unwrap();
        waits.ring();
        waits.cancel();
        runs.cancel();
        let metrics = wait_for(&scheduler, |tasks| tasks[0].runs == round);
        assert_eq!((metrics[0].cancelled, metrics[0].failed, metrics[1].runs), (round, 0, 0));
    }
    waits.ring();
    wait_for(&scheduler, |tasks| tasks[1].runs == 1);
}

#[test]
fn a_scheduler_that_is_dropped_has_ended_what_ran_and_begins_nothing() {
    let (begun, begins) = mpsc::channel();
    let (ended, after) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let held = Arc::new(());
    let runs = {
        let (ended, held) = (Arc::clone(&ended), Arc::clone(&held));
        Task::new("runs", Kind::Seal, move |cx| {
            begun.send(())?;
            while !cx.is_cancelled() {
                thread::yield_now();
            }
            ended.store(Arc::strong_count(&held) > 1, Ordering::SeqCst);
            Ok(Counts::new())
        })
        .every(Duration::ZERO)
    };
    let waits = {
        let after = Arc::clone(&after);
        Task::new("waits", Kind::Refine, move |_| {
            after.store(true, Ordering::SeqCst);
            Ok(Counts::new())
        })
    };
    let scheduler = start(1, vec![runs, waits]);
    let bell = scheduler.bell("waits").unwrap();
    begins.recv().unwrap();
    assert!(bell.ring());
    drop(scheduler);
    assert!(ended.load(Ordering::SeqCst) && !after.load(Ordering::SeqCst));
    // A bell that is left holds nothing of the tasks, and nobody hears it.
    assert_eq!(Arc::strong_count(&held), 1);
    assert!(!bell.ring());
}

#[test]
fn a_periodic_task_comes_again_by_itself() {
    let (ran, runs) = mpsc::channel();
    let task = Task::new("ticks", Kind::Cleanup, move |_| Ok(ran.send(()).map(|()| Counts::new())?));
    let scheduler = start(2, vec![task.every(Duration::from_millis(1))]);
    (0..5).for_each(|_| runs.recv().unwrap());
    drop(scheduler);
}

#[test]
fn who_has_taken_too_much_waits_until_it_is_made_up_for() {
    let (ran, runs) = mpsc::channel();
    let burn = Task::new("burns", Kind::Seal, move |_| {
        let start = ThreadTime::now();
        while start.elapsed() < Duration::from_millis(200) {}
        Ok(ran.send(()).map(|()| Counts::new())?)
    });
    // 200 ms of 5 a second are those of 40 seconds, of which five are saved up.
    let scheduler =
        Scheduler::start(vec![burn], SchedulerOptions { cpu_share: 0.005, ..options(2) }, |_| {}).unwrap();
    let bell = scheduler.bell("burns").unwrap();
    bell.ring();
    runs.recv().unwrap();
    assert!(wait_for(&scheduler, |tasks| tasks[0].runs == 1)[0].cpu >= Duration::from_millis(200));
    bell.ring();
    assert!(scheduler.metrics()[0].queued);
    // Nor does whoever stops have to wait for that.
    drop(scheduler);
    assert!(runs.try_recv().is_err());
}
