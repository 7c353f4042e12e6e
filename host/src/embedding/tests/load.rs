//! Many callers at once.
use super::*;
use proptest::prelude::*;

/// Eight callers, half of them searching, on two workers; `spoil` runs beside them.
fn under_load(spoil: impl FnOnce(&Bed, &Script) + Send) -> Bed {
    let (first, second) = (script(), script());
    let mut options = options();
    options.pipeline.workers = 2;
    let bed = Bed::with(&[&first, &second], &options, None).unwrap();
    bed.keep_standby();
    bed.wait_for_helpers();
    thread::scope(|scope| {
        for caller in 0..8 {
            let bed = &bed;
            scope.spawn(move || {
                for round in 0..40 {
                    let texts: Vec<String> =
                        (0..1 + round % 5 * 7).map(|n| format!("{caller} {round} {n}")).collect();
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let free = Caller::default();
                    let (vectors, role) = if caller % 2 == 0 {
                        (bed.embed(&free, &texts, Role::Passage).unwrap(), Role::Passage)
                    } else {
                        (bed.answer(&free, &texts, Role::Query).unwrap().vectors, Role::Query)
                    };
                    assert_eq!(vectors, direct(&texts, role), "caller {caller}, round {round}");
                }
            });
        }
        scope.spawn(|| spoil(&bed, &first));
    });
    first.act(Act::Work);
    assert_eq!(second.seen().made, 1, "the standby");
    bed
}

#[test]
fn under_load_a_backend_that_dies_loses_no_request() {
    let bed = under_load(|_, first| {
        first.until(|seen| seen.calls > 20);
        first.act(Act::Panic);
    });
    assert_eq!(bed.states()[0], "open");
    assert!(bed.status().counters.fallbacks > 0);
}

#[test]
fn under_load_a_backend_that_runs_out_of_memory_loses_no_request() {
    let bed = under_load(|_, first| {
        first.until(|seen| seen.calls > 20);
        first.act(Act::OutOfMemory(5));
    });
    assert_eq!(bed.status().counters.fallbacks, 0);
    assert!(bed.status().counters.halvings > 0);
    let bed = under_load(|_, first| {
        first.until(|seen| seen.calls > 20);
        first.act(Act::OutOfMemory(0));
    });
    assert_eq!(bed.states()[0], "open");
}

#[test]
fn under_load_a_backend_that_hangs_loses_no_request() {
    let bed = under_load(|bed, first| {
        first.until(|seen| seen.calls > 20);
        first.act(Act::Hang);
        // Half of the callers come with another role, so both workers get work.
        first.until(|seen| seen.waiting == 2);
        bed.pass(TIMEOUT);
    });
    assert_eq!(bed.status().members[0].failures["hung"], 2);
    while bed.states()[0] == "hung" {
        thread::yield_now();
    }
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(bed.states()[0], "closed");
}

#[derive(Clone, Debug)]
struct Ask {
    lengths: Vec<usize>,
    role: Role,
    urgency: Urgency,
    cancels: bool,
}

fn ask() -> impl Strategy<Value = Ask> {
    let role = prop_oneof![Just(Role::Passage), Just(Role::Query)];
    let urgency = prop_oneof![Just(Urgency::Interactive), Just(Urgency::Bulk)];
    (prop::collection::vec(0_usize..60, 0..50), role, urgency, prop::bool::weighted(0.2))
        .prop_map(|(lengths, role, urgency, cancels)| Ask { lengths, role, urgency, cancels })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn whoever_asks_whatever_meanwhile_gets_the_vectors_of_its_texts_in_order(
        callers in prop::collection::vec(prop::collection::vec(ask(), 1..5), 1..6),
        max_batch in 1_usize..20,
        token_budget in 1_usize..300,
        workers in 1_usize..4,
        counts: bool,
    ) {
        let only = script().with(|seen| {
            seen.max_batch = max_batch;
            seen.max_tokens = if counts { 512 } else { usize::MAX };
        });
        let mut options = options();
        options.pipeline = PipelineOptions { token_budget, workers, ..options.pipeline };
        let bed = Bed::with(&[&only], &options, None).unwrap();
        thread::scope(|scope| {
            for (caller, asks) in callers.iter().enumerate() {
                let bed = &bed;
                scope.spawn(move || {
                    for (n, ask) in asks.iter().enumerate() {
                        let text = |(at, length): (usize, &usize)| format!("{caller} {n} {at} {}", "x".repeat(*length));
                        let texts: Vec<String> = ask.lengths.iter().enumerate().map(text).collect();
                        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                        let cx = CancelsWhenAsked(std::sync::atomic::AtomicUsize::new(if ask.cancels { 2 } else { usize::MAX }));
                        match bed.embed_by(&cx, &texts, ask.role, ask.urgency) {
                            Ok((vectors, _)) => assert_eq!(vectors, direct(&texts, ask.role)),
                            Err(error) => assert!(ask.cancels, "{error}"),
                        }
                    }
                });
            }
        });
        assert_eq!(bed.embedding.pipeline.waiting_texts(), 0);
        assert!(only.seen().batches.iter().all(|batch| batch.len() <= max_batch));
    }
}

/// Cancels once it was asked so many times.
struct CancelsWhenAsked(std::sync::atomic::AtomicUsize);

impl CallContext for CancelsWhenAsked {
    fn is_cancelled(&self) -> bool {
        let left = self.0.load(std::sync::atomic::Ordering::Relaxed);
        self.0
            .store(left.saturating_sub(usize::from(left < usize::MAX)), std::sync::atomic::Ordering::Relaxed);
        left == 0
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _: u64, _: u64) {
        self.is_cancelled();
    }
}
