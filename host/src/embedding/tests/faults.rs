//! What one backend does wrong, and what comes of it.
use super::*;

#[test]
fn the_first_backend_answers_and_is_named() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    let answer = bed.answer(&Caller::default(), &["a", "b"], Role::Query).unwrap();
    assert_eq!(answer.vectors, direct(&["a", "b"], Role::Query));
    assert_eq!((answer.backend.as_str(), answer.fallback), ("first", None));
    assert_eq!((answer.device.engine.as_str(), answer.device.precision.as_str()), ("script", "f32"));
    assert_eq!(bed.states(), ["closed", "not loaded"]);
    assert_eq!(second.seen().made, 0, "nobody pays for a stand-in that is not needed");
}

#[test]
fn whatever_a_backend_does_the_next_one_answers_and_says_why() {
    let faults = [
        (Act::Fail(ErrorCode::INTERNAL), "asked to fail"),
        (Act::Fail(ErrorCode::CANCELLED), "asked to fail"),
        (Act::Fail(ErrorCode::DEADLINE), "asked to fail"),
        (Act::OutOfMemory(0), "asked to run out"),
        (Act::Nan, "NaN"),
        (Act::Long, "length 3"),
        (Act::Panic, "asked to panic"),
    ];
    for (act, says) in faults {
        let (first, second) = (script(), script());
        let bed = Bed::new(&[&first, &second]);
        first.act(act);
        let answer = bed.answer(&Caller::default(), &["a", "b"], Role::Passage).unwrap();
        assert_eq!(answer.vectors, direct(&["a", "b"], Role::Passage), "{act:?}");
        assert_eq!(answer.backend, "second");
        assert!(answer.fallback.as_ref().unwrap().contains(says), "{answer:?}");
        let status = bed.status();
        assert_eq!(status.counters.fallbacks, 1, "{status:?}");
        assert_eq!(status.members[0].failures.values().sum::<u64>(), 1, "{status:?}");
        assert!(status.members[0].last_error.as_ref().unwrap().contains(says), "{status:?}");
    }
}

#[test]
fn a_backend_that_cannot_start_is_stood_in_for_and_tried_again() {
    let (first, second) = (script().with(|seen| seen.act = Act::FailToStart), script());
    let bed = Bed::new(&[&first, &second]);
    assert_eq!(bed.backend(), "first");
    let answer = bed.answer(&Caller::default(), &["a"], Role::Query).unwrap();
    assert!(answer.fallback.unwrap().contains("asked not to start"));
    assert_eq!(bed.states(), ["failed to load", "closed"]);
    first.act(Act::Work);
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(bed.states(), ["closed", "closed"]);
    assert_eq!(bed.answer(&Caller::default(), &["a"], Role::Query).unwrap().backend, "first");
}

#[test]
fn where_none_works_the_error_tells_of_each() {
    let scripts = [script(), script()];
    let bed = Bed::new(&[&scripts[0], &scripts[1]]);
    scripts[0].act(Act::Fail(ErrorCode::IO));
    scripts[1].act(Act::Nan);
    for _ in 0..5 {
        let error = bed.embed(&Caller::default(), &["a"], Role::Query).unwrap_err().to_string();
        assert!(error.contains("'first' failed") && error.contains("'second' is broken"), "{error}");
    }
    // A breaker never turns a text away where nobody else is left.
    scripts[1].act(Act::Work);
    bed.works();
}

#[test]
fn a_backend_that_keeps_failing_is_left_alone_until_a_trial_succeeds() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Fail(ErrorCode::INTERNAL));
    (0..3).for_each(|_| bed.works());
    assert_eq!((bed.states()[0], first.seen().calls), ("open", 3));
    (0..10).for_each(|_| bed.works());
    assert_eq!(first.seen().calls, 3, "it is not asked while it is open");

    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!((bed.states()[0], first.seen().calls), ("open", 4), "the trial failed");
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(first.seen().calls, 4, "the cool-down has doubled");

    first.act(Act::Work);
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(bed.states()[0], "closed");
    assert_eq!(bed.answer(&Caller::default(), &["a"], Role::Query).unwrap().backend, "first");
    assert_eq!(first.seen().made, 1, "it is the same backend");
}

#[test]
fn a_backend_that_panicked_is_made_anew() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Panic);
    bed.works();
    assert_eq!(bed.states()[0], "open", "one panic is enough");
    first.act(Act::Work);
    bed.pass(COOL_DOWN);
    bed.works();
    bed.wait_for_helpers();
    assert_eq!((bed.states()[0], first.seen().made), ("closed", 2));
}

#[test]
fn a_call_that_hangs_is_left_behind_and_its_late_answer_is_void() {
    let (first, second) = (script(), script());
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Hang);
    thread::scope(|scope| {
        let answers: Vec<_> = (0..4)
            .map(|n| {
                let (bed, text) = (&bed, format!("text {n}"));
                spawn(scope, move || bed.answer(&Caller::default(), &[&text], Role::Query).map(|a| (text, a)))
            })
            .collect();
        first.until(|seen| seen.waiting == 1);
        bed.pass(TIMEOUT);
        for answer in answers {
            let (text, answer) = answer.recv().unwrap().unwrap();
            assert_eq!(answer.vectors, vector(&text, Role::Query));
            assert_eq!(answer.backend, "second");
            assert!(answer.fallback.unwrap().contains("hangs"));
        }
    });
    assert_eq!(bed.states()[0], "hung");
    bed.pass(COOL_DOWN);
    bed.works();
    assert_eq!(first.seen().calls, 1, "not even a trial while it hangs");

    first.act(Act::Work);
    while bed.states()[0] == "hung" {
        thread::yield_now();
    }
    bed.works();
    bed.wait_for_helpers();
    assert_eq!(bed.states()[0], "closed");
    bed.works();
}

#[test]
fn where_the_only_backend_hangs_callers_are_told_so_and_served_again_later() {
    let only = script();
    let bed = Bed::new(&[&only]);
    only.act(Act::Hang);
    thread::scope(|scope| {
        let answer = spawn(scope, || bed.embed(&Caller::default(), &["a"], Role::Query));
        only.until(|seen| seen.waiting == 1);
        bed.pass(TIMEOUT);
        assert!(answer.recv().unwrap().unwrap_err().to_string().contains("hangs"));
    });
    assert!(bed.embed(&Caller::default(), &["a"], Role::Query).unwrap_err().to_string().contains("hangs"));
    only.act(Act::Work);
    while bed.states()[0] == "hung" {
        thread::yield_now();
    }
    bed.works();
}

#[test]
fn out_of_memory_halves_the_batch_and_the_limit_is_kept() {
    let only = script();
    let bed = Bed::new(&[&only]);
    only.act(Act::OutOfMemory(3));
    let texts: Vec<String> = (0..40).map(|n| format!("text {n}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    assert_eq!(bed.embed(&Caller::default(), &texts, Role::Passage).unwrap(), direct(&texts, Role::Passage));
    let status = bed.status();
    assert_eq!(status.counters.halvings, 3, "16 to 8 to 4 to 2, and never again");
    assert_eq!((status.members[0].learnt_batch, status.members[0].state), (Some(2), "closed"));
}

#[test]
fn a_standby_is_made_and_warm_before_it_is_needed() {
    let (first, second, third) = (script(), script(), script());
    let bed = Bed::new(&[&first, &second, &third]);
    bed.keep_standby();
    bed.wait_for_helpers();
    assert_eq!((second.made_and_called(), third.made_and_called()), ((1, 1), (0, 0)));
    assert_eq!(second.seen().warmed, 1);
    first.act(Act::Panic);
    bed.works();
    assert_eq!(second.seen().made, 1, "it was there");
    bed.wait_for_helpers();
    assert_eq!(third.seen().made, 1, "now the third is the standby");
    let switch = bed.status().counters;
    assert!(switch.switch_last_ms > 0.0 && switch.switch_max_ms >= switch.switch_last_ms, "{switch:?}");
}

#[test]
fn a_standby_that_does_not_work_makes_room_for_the_next() {
    let (first, second, third) = (script(), script(), script());
    second.act(Act::Nan);
    let bed = Bed::new(&[&first, &second, &third]);
    bed.keep_standby();
    while third.seen().made == 0 {
        bed.wait_for_helpers();
    }
    assert_eq!(bed.states()[1], "open");
}

#[test]
fn a_backend_of_another_space_is_never_mixed_in() {
    let (first, second) = (script(), script().with(|seen| seen.space = 2));
    let bed = Bed::new(&[&first, &second]);
    first.act(Act::Nan);
    for _ in 0..2 {
        let error = bed.embed(&Caller::default(), &["a"], Role::Query).unwrap_err().to_string();
        assert!(error.contains("NaN"), "{error}");
        assert!(error.contains("'second' cannot stand in for 'first'"), "{error}");
    }
    assert_eq!((bed.states()[1], second.made_and_called()), ("refused", (1, 0)));
}
