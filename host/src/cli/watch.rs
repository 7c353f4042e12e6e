//! `magray sync --watch`: the background work of a data folder, until it is interrupted.
use super::{
    Failure, Outcome,
    args::Global,
    open,
    terminal::{BOLD, DIM, Terminal},
    view,
};
use crate::{resources::scheduler::Run, services::ServiceMetrics};
use serde_json::{Map, Value, json};
use std::{
    sync::{Arc, mpsc},
    time::{Duration, SystemTime},
};

/// What reaches the thread that prints.
enum Event {
    Ran { task: &'static str, did: Vec<(&'static str, u64)>, took: Duration, cpu: Duration },
    Interrupted,
}

impl Event {
    /// Of a run that did something. What fails is in the log.
    fn of(run: &Run<'_>) -> Option<Self> {
        let did: Vec<_> =
            run.outcome.as_ref().ok()?.iter().copied().filter(|&(_, count)| count > 0).collect();
        (!did.is_empty()).then_some(Self::Ran { task: run.task, did, took: run.took, cpu: run.cpu })
    }
}

pub(super) fn run(global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
    let engine = Arc::new(open(global, terminal)?);
    let (events, received) = mpsc::channel();
    let interrupted = events.clone();
    // Where nobody listens any more, it is ending already.
    terminal.on_interrupt(move || drop(interrupted.send(Event::Interrupted)));
    terminal.stop_gently_on_termination();
    // Without a model there is nothing to watch over, which is to be said at once.
    engine.indexes()?;
    let background = engine
        .start_background(move |run| {
            if let Some(event) = Event::of(run) {
                drop(events.send(event));
            }
        })
        .map_err(Failure::io("cannot start the background work"))?;
    terminal.hint(&format!("watching {}; Ctrl-C ends it", engine.setup().data_dir.display()));
    while let Ok(Event::Ran { task, did, took, cpu }) = received.recv() {
        print(terminal, task, &did, took, cpu)?;
    }
    let metrics = background.metrics();
    drop(background);
    // What was under way has come to its end.
    for event in received.try_iter() {
        if let Event::Ran { task, did, took, cpu } = event {
            print(terminal, task, &did, took, cpu)?;
        }
    }
    if terminal.json {
        let tasks = metrics.iter().map(|task| {
            json!({
                "task": task.task, "queued": task.queued, "runs": task.runs, "failed": task.failed,
                "cancelled": task.cancelled, "waited_ms": ms(task.waited), "longest_wait_ms": ms(task.longest_wait),
                "took_ms": ms(task.took), "cpu_ms": ms(task.cpu),
            })
        });
        let tasks: Vec<Value> = tasks.collect();
        let services: Vec<Value> = engine.service_metrics().iter().map(service_json).collect();
        terminal
            .print_json(&json!({ "at": now(), "stopped": true, "tasks": tasks, "services": services }))?;
    }
    let cpu: Duration = metrics.iter().map(|task| task.cpu).sum();
    let runs: u64 = metrics.iter().map(|task| task.runs).sum();
    terminal.hint(&format!(
        "stopped after {}, {:.1} s of CPU time",
        view::counted(runs, "run"),
        cpu.as_secs_f64()
    ));
    Ok(Outcome::Done)
}

fn print(
    terminal: &Terminal,
    task: &str,
    did: &[(&str, u64)],
    took: Duration,
    cpu: Duration,
) -> Result<(), Failure> {
    if terminal.json {
        let counts: Map<String, Value> =
            did.iter().map(|&(what, count)| (format!("{what}s"), count.into())).collect();
        let line =
            json!({ "at": now(), "task": task, "did": counts, "took_ms": ms(took), "cpu_ms": ms(cpu) });
        return terminal.print_json(&line);
    }
    if terminal.quiet {
        return Ok(());
    }
    let did: Vec<_> = did.iter().map(|&(what, count)| view::counted(count, what)).collect();
    terminal.print(format_args!("{DIM}{}{DIM:#} {BOLD}{task:<8}{BOLD:#} {}", now(), did.join(", ")))
}

fn service_json(service: &ServiceMetrics) -> Value {
    json!({
        "service": service.name, "life": format!("{:?}", service.life).to_lowercase(),
        "resolutions": service.resolutions, "mean_ns": service.mean_ns, "made": service.made,
        "making_ms": ms(service.making), "failed": service.failed,
    })
}

fn now() -> String {
    humantime::format_rfc3339_seconds(SystemTime::now()).to_string()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
