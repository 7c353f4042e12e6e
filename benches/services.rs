//! What it takes to find a part of the system that is there already, and what the scheduler takes for a task
//! that does nothing.
use criterion::{Criterion, criterion_group, criterion_main};
use magray::{
    resources::scheduler::{Climate, Kind, Scheduler, SchedulerOptions, Task},
    services::{Life, ServiceError, Services},
};
use std::{
    hint::black_box,
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

struct Part<const N: u64>(u64);

/// As many parts as the engine has, each of the one before.
fn services() -> Services<ServiceError> {
    Services::builder()
        .register::<Part<0>, ()>(Life::Singleton, |()| Ok(Part(0)))
        .register::<Part<1>, (Part<0>,)>(Life::Singleton, |(before,): (&Part<0>,)| Ok(Part(before.0 + 1)))
        .register::<Part<2>, (Part<1>,)>(Life::Singleton, |(before,): (&Part<1>,)| Ok(Part(before.0 + 1)))
        .register::<Part<3>, (Part<2>,)>(Life::Lazy, |(before,): (&Part<2>,)| Ok(Part(before.0 + 1)))
        .register::<Part<4>, (Part<3>,)>(Life::Transient, |(before,): (&Part<3>,)| Ok(Part(before.0 + 1)))
        .register::<Part<5>, (Part<3>,)>(Life::Scoped, |(before,): (&Part<3>,)| Ok(Part(before.0 + 2)))
        .build_and_warm_up()
        .unwrap_or_else(|error: ServiceError| panic!("{error}"))
}

fn resolution(c: &mut Criterion) {
    let services = services();
    let number = |part: Result<&Part<3>, ServiceError>| part.map_or(0, |part| part.0);
    assert_eq!(number(services.get()), 3);
    c.bench_function("services/singleton", |b| b.iter(|| number(black_box(&services).get())));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        // The counters are shared, so another core that asks too is what makes it slow.
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                black_box(number(services.get()));
            }
        });
        c.bench_function("services/singleton, another thread asks too", |b| {
            b.iter(|| number(black_box(&services).get()));
        });
        stop.store(true, Ordering::Relaxed);
    });
    c.bench_function("services/transient", |b| {
        b.iter(|| services.make::<Part<4>>().map_or(0, |part| part.0));
    });
    let now = Instant::now();
    c.bench_function("services/scope and its service", |b| {
        b.iter(|| {
            let scope = services.scope("session", now);
            scope.get::<Part<5>, _>(&services).map_or(0, |part| part.0)
        });
    });
    c.bench_function("services/build and warm up six", |b| b.iter(self::services));
}

fn scheduling(c: &mut Criterion) {
    let (ran, runs) = mpsc::channel();
    let tasks = vec![Task::new("nothing", Kind::Seal, move |_| {
        ran.send(())?;
        Ok(Vec::new())
    })];
    let options = SchedulerOptions { threads: 1, cpu_share: 1e6, climate: Box::new(Climate::default) };
    let scheduler = Scheduler::start(tasks, options, |_| {}).unwrap_or_else(|error| panic!("{error}"));
    let Some(bell) = scheduler.bell("nothing") else { panic!("there is a task") };
    c.bench_function("scheduler/from the request to the end of a task", |b| {
        b.iter(|| {
            bell.ring();
            runs.recv_timeout(Duration::from_secs(60)).is_ok()
        });
    });
}

criterion_group!(benches, resolution, scheduling);
criterion_main!(benches);
