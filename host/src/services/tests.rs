use super::*;
use proptest::{collection::vec, prelude::*};
use std::sync::{
    Arc, Barrier,
    atomic::{AtomicUsize, Ordering::SeqCst},
};

#[derive(Debug, PartialEq, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Service(#[from] ServiceError),
    #[error("attempt {0}")]
    Attempt(usize),
}

type Builder = super::Builder<Failure>;

struct Base(u32);
struct Top(u32);
struct Visit(usize);

fn builder() -> Builder {
    Services::builder()
}

fn counter() -> (Arc<AtomicUsize>, Arc<AtomicUsize>) {
    let counter = Arc::new(AtomicUsize::new(0));
    (Arc::clone(&counter), counter)
}

#[test]
fn a_service_is_made_of_what_it_needs_when_it_is_wanted() {
    let (count, made) = counter();
    let services = builder()
        .register::<Top, (Base,)>(Life::Lazy, |(base,): (&Base,)| Ok(Top(base.0 + 1)))
        .register::<Base, ()>(Life::Singleton, move |()| {
            count.fetch_add(1, SeqCst);
            Ok(Base(1))
        })
        .build()
        .unwrap();
    assert_eq!(made.load(SeqCst), 0);
    let top = services.get::<Top>().unwrap();
    assert_eq!((top.0, made.load(SeqCst)), (2, 1));
    assert!(std::ptr::eq(top, services.get::<Top>().unwrap()));
    assert_eq!(services.get::<Visit>().err(), Some(ServiceError::Unknown(Key::of::<Visit>().name).into()));
}

#[test]
fn eight_threads_that_race_make_one() {
    for _ in 0..50 {
        let (count, made) = counter();
        let services = builder()
            .register::<Top, (Base,)>(Life::Lazy, |(base,): (&Base,)| Ok(Top(base.0)))
            .register::<Base, ()>(Life::Lazy, move |()| {
                count.fetch_add(1, SeqCst);
                thread::yield_now();
                Ok(Base(7))
            })
            .build()
            .unwrap();
        let together = Barrier::new(8);
        thread::scope(|scope| {
            for thread in 0..8 {
                let (services, together) = (&services, &together);
                scope.spawn(move || {
                    together.wait();
                    // From both ends at once.
                    let number = match thread % 2 {
                        0 => services.get::<Base>().unwrap().0,
                        _ => services.get::<Top>().unwrap().0,
                    };
                    assert_eq!(number, 7);
                });
            }
        });
        assert_eq!(made.load(SeqCst), 1);
    }
}

#[test]
fn each_caller_is_told_of_its_own_failure_and_the_next_tries_again() {
    let (count, made) = counter();
    let services = builder()
        .register::<Base, ()>(Life::Lazy, move |()| match count.fetch_add(1, SeqCst) {
            attempt @ 0..3 => Err(Failure::Attempt(attempt)),
            _ => Ok(Base(1)),
        })
        .build()
        .unwrap();
    let together = Barrier::new(8);
    let mut failures: Vec<usize> = thread::scope(|scope| {
        let ask = || {
            together.wait();
            services.get::<Base>().err()
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        let answers = threads.into_iter().map(|thread| thread.join().unwrap());
        answers
            .flatten()
            .map(|failure| match failure {
                Failure::Attempt(attempt) => attempt,
                other => panic!("{other}"),
            })
            .collect()
    });
    failures.sort_unstable();
    assert_eq!((failures, made.load(SeqCst)), (vec![0, 1, 2], 4));
    let metrics = &services.metrics()[0];
    assert_eq!((metrics.made, metrics.failed, metrics.resolutions), (1, 3, 8));
}

#[test]
fn one_that_panics_is_made_by_the_next() {
    let (count, _) = counter();
    let services = builder()
        .register::<Base, ()>(Life::Lazy, move |()| {
            assert!(count.fetch_add(1, SeqCst) > 0, "as it must in this test");
            Ok(Base(1))
        })
        .build()
        .unwrap();
    thread::scope(|scope| assert!(scope.spawn(|| services.get::<Base>().is_ok()).join().is_err()));
    assert_eq!(services.get::<Base>().unwrap().0, 1);
}

#[test]
fn warming_up_makes_singletons_side_by_side_and_nothing_else() {
    // Each waits for the other: one after the other they would never be made.
    let both = Arc::new(Barrier::new(2));
    let (left, right) = (Arc::clone(&both), both);
    let (count, made) = counter();
    struct Lazy;
    let services = builder()
        .register::<Top, (Base,)>(Life::Singleton, |(base,): (&Base,)| Ok(Top(base.0)))
        .register::<Base, ()>(Life::Singleton, move |()| {
            left.wait();
            Ok(Base(1))
        })
        .register::<Visit, ()>(Life::Singleton, move |()| {
            right.wait();
            Ok(Visit(1))
        })
        .register::<Lazy, ()>(Life::Lazy, move |()| {
            count.fetch_add(1, SeqCst);
            Ok(Lazy)
        })
        .build_and_warm_up()
        .unwrap();
    let made_of =
        |services: &Services<Failure>| services.metrics().iter().map(|it| it.made).collect::<Vec<_>>();
    assert_eq!(made_of(&services), [1, 1, 1, 0]);
    services.get::<Lazy>().unwrap();
    assert_eq!((made.load(SeqCst), services.get::<Top>().unwrap().0), (1, 1));

    let failed = builder()
        .register::<Base, ()>(Life::Singleton, |()| Err(Failure::Attempt(1)))
        .register::<Visit, ()>(Life::Singleton, |()| Ok(Visit(1)))
        .build_and_warm_up();
    assert_eq!(failed.err(), Some(Failure::Attempt(1)));
}

#[test]
fn mistakes_are_found_when_the_services_are_put_together() {
    struct A;
    struct B;
    struct C;
    let name = |key: Key| key.name;
    let (a, b, c) = (name(Key::of::<A>()), name(Key::of::<B>()), name(Key::of::<C>()));
    let cycle = builder()
        .register::<Base, (A,)>(Life::Singleton, |_| Ok(Base(1)))
        .register::<A, (B,)>(Life::Singleton, |_| Ok(A))
        .register::<C, (A,)>(Life::Scoped, |_| Ok(C))
        .register::<B, (A,)>(Life::Singleton, |_| Ok(B))
        .build();
    assert_eq!(cycle.err(), Some(ServiceError::Cycle(vec![a, b, a])));
    let own = builder().register::<A, (A,)>(Life::Lazy, |_| Ok(A)).build().err().unwrap();
    assert!(own.to_string().contains(&format!("{a} -> {a}")), "{own}");

    let twice = builder()
        .register::<A, ()>(Life::Lazy, |()| Ok(A))
        .register::<A, ()>(Life::Transient, |()| Ok(A))
        .build();
    assert_eq!(twice.err(), Some(ServiceError::Twice(a)));
    assert_eq!(
        builder().register::<A, (B,)>(Life::Lazy, |_| Ok(A)).build().err(),
        Some(ServiceError::Unknown(b))
    );
    let captive = builder()
        .register::<A, (C,)>(Life::Lazy, |_| Ok(A))
        .register::<C, ()>(Life::Scoped, |()| Ok(C))
        .build()
        .err()
        .unwrap();
    assert!(matches!(captive, ServiceError::OutOfReach { service, needs, .. } if (service, needs) == (a, c)));
    let kept = builder()
        .register::<A, (C,)>(Life::Lazy, |_| Ok(A))
        .register::<C, ()>(Life::Transient, |()| Ok(C))
        .build()
        .err()
        .unwrap();
    assert!(matches!(kept, ServiceError::OutOfReach { .. }), "{kept}");
}

#[test]
fn a_transient_service_is_made_for_each_who_asks() {
    let (count, _) = counter();
    let services = builder()
        .register::<Base, ()>(Life::Singleton, |()| Ok(Base(10)))
        .register::<Visit, (Base,)>(Life::Transient, move |(base,): (&Base,)| {
            Ok(Visit(base.0 as usize + count.fetch_add(1, SeqCst)))
        })
        .build()
        .unwrap();
    let visit = || services.make::<Visit>().unwrap().0;
    assert_eq!((visit(), visit()), (10, 11));
    assert!(services.make::<Base>().is_err() && services.get::<Visit>().is_err());
}

#[test]
fn scopes_are_apart_and_go_when_they_idle() {
    const LIFE: Duration = Duration::from_secs(7200);
    let (count, made) = counter();
    let services = builder()
        .register::<Base, ()>(Life::Singleton, |()| Ok(Base(1)))
        .register::<Visit, (Base,)>(Life::Scoped, move |_| Ok(Visit(count.fetch_add(1, SeqCst))))
        .register::<Top, (Base, Visit)>(Life::Scoped, |(base, visit): (&Base, &Visit)| {
            Ok(Top(base.0 + visit.0 as u32))
        })
        .scope_life(Some(LIFE))
        .build()
        .unwrap();
    let start = Instant::now();
    let visit = |name: &str, at| services.scope(name, start + at).get::<Visit, _>(&services).unwrap().0;
    let zero = Duration::ZERO;
    assert_eq!((visit("a", zero), visit("b", zero), visit("a", zero)), (0, 1, 0));
    let held = services.scope("b", start);
    assert_eq!(held.get::<Top, _>(&services).unwrap().0, 2);
    assert!(std::ptr::eq(held.get::<Base, _>(&services).unwrap(), services.get::<Base>().unwrap()));
    assert!(services.get::<Visit>().is_err(), "outside of a scope there is none");

    assert_eq!(visit("a", LIFE / 2), 0);
    assert_eq!(services.sweep(start + LIFE - Duration::from_nanos(1)), 0);
    assert_eq!(services.sweep(start + LIFE), 1);
    // Who holds it goes on with it; who comes later gets another.
    assert_eq!((held.get::<Visit, _>(&services).unwrap().0, visit("b", LIFE)), (1, 2));
    assert_eq!((visit("a", LIFE), made.load(SeqCst)), (0, 3));
    assert_eq!(services.sweep(start + LIFE * 3), 2);
}

#[test]
fn resolutions_are_counted_and_timed() {
    let services =
        builder().register::<Base, ()>(Life::Singleton, |()| Ok(Base(1))).build_and_warm_up().unwrap();
    assert_eq!(services.metrics()[0].resolutions, 0);
    (0..1000).for_each(|_| drop(services.get::<Base>()));
    let metrics = &services.metrics()[0];
    assert_eq!((metrics.resolutions, metrics.made, metrics.life), (1000, 1, Life::Singleton));
    assert!(metrics.mean_ns > 0.0);
}

proptest! {
    #[test]
    fn levels_put_each_after_what_it_needs_or_name_a_cycle(
        edges in vec((0..8usize, 0..8usize), 0..14),
    ) {
        let mut needs = vec![Vec::new(); 8];
        edges.iter().for_each(|&(from, to)| needs[from].push(to));
        match levels(&needs) {
            Ok(levels) => {
                let level = |place| levels.iter().position(|level| level.contains(&place)).unwrap();
                prop_assert_eq!(levels.iter().map(Vec::len).sum::<usize>(), 8);
                prop_assert!(edges.iter().all(|&(from, to)| level(from) > level(to)));
            }
            Err(cycle) => {
                prop_assert!(cycle.len() >= 2 && cycle.first() == cycle.last());
                prop_assert!(cycle.windows(2).all(|pair| needs[pair[0]].contains(&pair[1])));
            }
        }
    }
}
