//! Who waits for what.
use super::*;

#[test]
fn one_bad_text_spoils_its_own_request_only() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Wait);
    thread::scope(|scope| {
        let ahead = spawn(scope, || bed.embed(&Caller::default(), &["ahead"], Role::Query));
        first.until(|seen| seen.waiting == 1);
        let others = ["good", "bad", "fine"].map(|text| {
            let bed = &bed;
            (text, spawn(scope, move || bed.embed(&Caller::default(), &[text], Role::Query)))
        });
        bed.until_waiting(3);
        first.act(Act::RefuseText('b'));
        ahead.recv().unwrap().unwrap();
        for (text, answer) in others {
            match answer.recv().unwrap() {
                Ok(vectors) => {
                    assert_eq!((vectors.as_slice(), text != "bad"), (&vector(text, Role::Query)[..], true))
                }
                Err(error) => {
                    assert!(text == "bad" && error.to_string().contains("asked to refuse"), "{error}")
                }
            }
        }
    });
    assert_eq!((bed.states()[0], second.seen().made), ("closed", 0), "it is no fault of the backend");
}

#[test]
fn who_cancels_leaves_the_queue_at_once_and_the_backend_hears_of_it() {
    let only = script();
    let bed = Bed::new(&[&only]);
    only.act(Act::Wait);
    let (running, queued) = (Caller::default(), Caller::default());
    thread::scope(|scope| {
        let first = spawn(scope, || bed.embed(&running, &["a"], Role::Query));
        only.until(|seen| seen.waiting == 1);
        let second = spawn(scope, || bed.embed(&queued, &["b"], Role::Query));
        bed.until_waiting(1);
        queued.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        let error = second.recv().unwrap().unwrap_err();
        assert!(
            matches!(&error, EmbeddingError::Backend { error, .. } if error.code() == ErrorCode::CANCELLED)
        );
        assert_eq!(bed.embedding.pipeline.waiting_texts(), 0);
        running.cancelled.store(true, std::sync::atomic::Ordering::Relaxed);
        first.recv().unwrap().unwrap_err();
        only.until(|seen| seen.cancelled == 1);
    });
    only.act(Act::Work);
    bed.works();
    let status = bed.status();
    assert_eq!((status.members[0].state, status.members[0].failures.len()), ("closed", 0), "{status:?}");
    assert!(only.seen().batches.iter().flatten().all(|text| text != "b"));
}

#[test]
fn a_deadline_is_the_callers_and_no_fault_of_the_backend() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Wait);
    let hurried = Caller { deadline: Some(Duration::from_millis(20)), ..Caller::default() };
    thread::scope(|scope| {
        let answer = spawn(scope, || {
            let until = Instant::now() + Duration::from_millis(20);
            bed.embed(&UntilThen(until), &["a"], Role::Query)
        });
        let error = answer.recv().unwrap().unwrap_err();
        assert!(
            matches!(&error, EmbeddingError::Backend { error, .. } if error.code() == ErrorCode::DEADLINE)
        );
        first.until(|seen| seen.cancelled == 1);
    });
    let late = Caller { deadline: Some(Duration::ZERO), ..hurried };
    bed.embed(&late, &["a"], Role::Query).unwrap_err();
    first.act(Act::Work);
    bed.works();
    assert_eq!((bed.states()[0], second.seen().made), ("closed", 0));
}

struct UntilThen(Instant);

impl CallContext for UntilThen {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        Some(self.0.saturating_duration_since(Instant::now()))
    }
    fn progress(&self, _: u64, _: u64) {}
}

#[test]
fn above_the_bound_searches_are_turned_away_and_bulk_work_waits() {
    let only = script();
    let mut options = options();
    options.pipeline.queue_texts = 2;
    let bed = Bed::with(&[&only], &options, None).unwrap();
    only.act(Act::Wait);
    let free = Caller::default();
    thread::scope(|scope| {
        let mut answers = vec![spawn(scope, || bed.answer(&free, &["a"], Role::Query).map(drop))];
        only.until(|seen| seen.waiting == 1);
        answers.push(spawn(scope, || bed.answer(&free, &["b", "c"], Role::Query).map(drop)));
        bed.until_waiting(2);
        let error = bed.answer(&free, &["d"], Role::Query).unwrap_err();
        assert!(matches!(error, EmbeddingError::Overloaded { waiting: 2, .. }), "{error}");
        for _ in 0..4 {
            answers.push(spawn(scope, || bed.embed(&free, &["e", "f"], Role::Query).map(drop)));
        }
        bed.until_waiting(4);
        assert_eq!(bed.embedding.pipeline.waiting_texts(), 4, "bulk work has a bound of its own");
        // A request that is larger than the bound is taken when nothing else waits.
        answers.push(spawn(scope, || bed.embed(&free, &["g"; 5], Role::Query).map(drop)));
        only.act(Act::Work);
        answers.iter().for_each(|answer| answer.recv().unwrap().unwrap());
    });
    assert_eq!(bed.status().counters.overloads, 1);
}

#[test]
fn a_search_goes_before_all_bulk_work_but_the_batch_in_progress() {
    let only = script();
    let bed = Bed::new(&[&only]);
    only.act(Act::Wait);
    let free = Caller::default();
    let bulk: Vec<String> = (0..40).map(|n| format!("bulk {n}")).collect();
    let bulk: Vec<&str> = bulk.iter().map(String::as_str).collect();
    thread::scope(|scope| {
        let first = spawn(scope, || bed.embed(&free, &bulk, Role::Passage));
        only.until(|seen| seen.waiting == 1);
        let search = spawn(scope, || bed.answer(&free, &["search"], Role::Query));
        bed.until_waiting(25);
        only.act(Act::Work);
        search.recv().unwrap().unwrap();
        assert_eq!(first.recv().unwrap().unwrap(), direct(&bulk, Role::Passage));
    });
    let batches = &only.seen().batches;
    assert_eq!(batches[1], ["search"]);
    assert_eq!(batches.iter().map(Vec::len).collect::<Vec<_>>(), [16, 1, 16, 8]);
}

#[test]
fn requests_that_wait_share_batches_of_like_length_within_the_budget() {
    let only = script().with(|seen| seen.max_tokens = 512);
    let mut options = options();
    options.pipeline.token_budget = 100;
    let bed = Bed::with(&[&only], &options, None).unwrap();
    only.act(Act::Wait);
    let free = Caller::default();
    let texts: Vec<String> = (0..24).map(|n| "x".repeat(1 + n * 7 % 24)).collect();
    thread::scope(|scope| {
        let ahead = spawn(scope, || bed.embed(&free, &["ahead"], Role::Passage));
        only.until(|seen| seen.waiting == 1);
        let answers: Vec<_> = texts
            .chunks(3)
            .map(|texts| {
                let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                let (bed, free) = (&bed, &free);
                spawn(scope, move || {
                    let vectors = bed.embed(free, &texts, Role::Passage).unwrap();
                    assert_eq!(vectors, direct(&texts, Role::Passage));
                })
            })
            .collect();
        bed.until_waiting(24);
        only.act(Act::Work);
        ahead.recv().unwrap().unwrap();
        answers.iter().for_each(|answer| answer.recv().unwrap());
    });
    let seen = only.seen();
    assert!(seen.batches.iter().any(|batch| batch.len() > 3), "texts of several requests share a batch");
    for batch in &seen.batches {
        let longest = batch.iter().map(String::len).max().unwrap();
        assert!(batch.len() == 1 || batch.len() * longest <= 100, "{batch:?}");
    }
}
