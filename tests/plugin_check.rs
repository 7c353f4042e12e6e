//! The conformance kit: each planted fault is found by the check that is meant for it, and what is right passes.
use crate::support::{CHAOS, CPU, CRASH, FAULTY, FLAT, HNSW, Home, LRU, NATIVE, Ran, built};
use magray_faulty_plugin::{FAULTS, Fault, Fifo};
use magray_plugin_api::ComponentKind::{self, CachePolicy, Embedder, Index};
use magray_plugin_testkit as testkit;
use serde_json::Value;
use std::{fs, thread};

/// `plugin check` of the component of this kind with its fault.
fn check(home: &Home, kind: ComponentKind, fault: &str, more: &[&str]) -> (Ran, Vec<Value>) {
    let (library, options) = (built(FAULTY), format!("{{\"fault\": \"{fault}\"}}"));
    let fixed = ["plugin", "check", library.to_str().expect("UTF-8"), "--json", "--options", &options];
    let ran = home.run(&[&fixed, more].concat());
    let reports = ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let checks = reports
        .filter(|report| report["kind"] == kind.name())
        .flat_map(|report| report["checks"].as_array().expect("checks").clone())
        .collect();
    (ran, checks)
}

/// What the check of this name is expected to say of a fault; all others fail.
fn expected(fault: &str, check: &str) -> &'static str {
    match (fault, check) {
        ("aborts" | "eats_memory", _) => "crashed",
        ("hangs", _) => "timed_out",
        (_, "refuses-unknown-options" | "asks-while-it-works") => "warned",
        _ => "failed",
    }
}

#[test]
fn every_fault_is_found_by_its_check() {
    // Over the boundary victims come in a list of their own, and `largest-batch` stands for the rest.
    let by_type = ["clears_victims"];
    let faults: Vec<_> = FAULTS.iter().filter(|(_, fault, _)| !by_type.contains(fault)).collect();
    let missed: Vec<String> = thread::scope(|scope| {
        let halves = faults.chunks(faults.len().div_ceil(2)).map(|faults| {
            scope.spawn(move || {
                let home = Home::new();
                let mut missed = Vec::new();
                for &&(kind, fault, name) in faults {
                    // Kept short where nothing comes back, and enough where one of two is slow.
                    let timeout = if fault == "hangs" { "2s" } else { "60s" };
                    let more = ["--only", name, "--timeout", timeout, "--memory", "512", "--seed", "3"];
                    let (_, checks) = check(&home, kind, fault, &more);
                    let outcome = checks.first().map(|check| check["outcome"].clone());
                    if outcome != Some(expected(fault, name).into()) {
                        missed.push(format!("{kind} {fault}: {name} says {checks:?}"));
                    }
                }
                missed
            })
        });
        let halves: Vec<_> = halves.collect();
        halves.into_iter().flat_map(|half| half.join().expect("no panic")).collect()
    });
    assert!(missed.is_empty(), "{missed:#?}");
}

#[test]
fn every_check_has_a_fault() {
    for kind in [Embedder, Index, CachePolicy] {
        let mut names: Vec<_> = testkit::checks(kind).into_iter().map(|check| check.0).collect();
        let without: Vec<_> = names
            .iter()
            .filter(|name| !FAULTS.iter().any(|fault| (fault.0, fault.2) == (kind, name)))
            .collect();
        assert!(without.is_empty(), "{kind}: {without:?}");
        let count = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), count, "a name twice");
    }
}

#[test]
fn a_type_is_checked_as_a_library_is() {
    let report = testkit::cache_policy(&|| Ok(Box::new(Fifo::new(Fault::ClearsVictims))));
    let failed: Vec<_> = report.failures().map(|check| check.name).collect();
    assert!(failed.contains(&"appends-victims"), "{report}");
    testkit::cache_policy(&|| Ok(Box::new(Fifo::new(Fault::None)))).assert();
    let linked = |kind| testkit::Component::linked(&magray_faulty_plugin::PLUGIN, kind, "faulty", "{}");
    for kind in [Embedder, Index, CachePolicy] {
        let report = linked(kind).report(testkit::Settings::default());
        report.assert();
        assert_eq!(report.checks.len(), testkit::checks(kind).len());
    }
}

#[test]
fn what_it_cannot_do_is_skipped() {
    let home = Home::new();
    let names = ["scores-dot", "scores-l2", "refuses-zero-under-cosine"];
    let only: Vec<_> = names.iter().flat_map(|name| ["--only", name]).collect();
    let (ran, checks) =
        check(&home, Index, "does_only_l2", &[&only[..], &["--component", "faulty"]].concat());
    // The other kinds have no such checks.
    ran.expect(0);
    let outcomes: Vec<_> = checks.iter().map(|check| (&check["name"], &check["outcome"])).collect();
    let wanted =
        [("refuses-zero-under-cosine", "skipped"), ("scores-dot", "skipped"), ("scores-l2", "passed")];
    for (name, outcome) in wanted {
        assert!(outcomes.contains(&(&name.into(), &outcome.into())), "{outcomes:?}");
    }
    let component = |options: &str| {
        testkit::Component::linked(&magray_faulty_plugin::PLUGIN, Embedder, "faulty", options)
            .report(testkit::Settings::default())
    };
    let (vectors, pairs) = (component("{}"), component("{\"fault\": \"judges_pairs\"}"));
    pairs.assert();
    let skipped = |report: &testkit::Report, name: &str| {
        let check = report.checks.iter().find(|check| check.name == name).expect("the check");
        matches!(check.outcome, testkit::Outcome::Skipped(_))
    };
    for (name, is_of_vectors) in [("unit-vectors", true), ("fuzz", true), ("judges-pairs", false)] {
        assert_eq!(
            (skipped(&vectors, name), skipped(&pairs, name)),
            (!is_of_vectors, is_of_vectors),
            "{name}"
        );
    }
    assert!(!skipped(&pairs, "healthy") && !skipped(&pairs, "counts-tokens"), "{pairs}");
}

#[test]
fn the_plugins_of_the_tree_pass() {
    let home = Home::new();
    for library in [CPU, FLAT, HNSW, LRU, NATIVE] {
        let path = built(library);
        let ran = home.run(&["plugin", "check", path.to_str().expect("UTF-8"), "--seed", "5"]);
        assert_eq!(ran.code, Some(0), "{library}: {ran:#?}");
        assert!(ran.stdout.contains("  pass ") && ran.stdout.contains(" passed"), "{ran:#?}");
    }
    // Built in, by the name of a component.
    home.run(&["plugin", "check", "lru", "--only", "evicts-enough"]).expect(0);
}

#[test]
fn a_finding_says_what_was_asked_and_how_to_see_it_again() {
    let home = Home::new();
    let (_, once) = check(&home, CachePolicy, "hates_chance", &["--only", "fuzz", "--reproduce", "3"]);
    let (_, again) = check(&home, CachePolicy, "hates_chance", &["--only", "fuzz", "--seed", "3"]);
    assert_eq!(once[0]["reason"], again[0]["reason"]);
    assert!(once[0]["reason"].as_str().expect("a reason").contains("asked to panic at 77"), "{once:?}");
    let library = built(FAULTY);
    let junit = home.path().join("report.xml");
    let args = ["plugin", "check", library.to_str().expect("UTF-8"), "--options", "{\"fault\": \"aborts\"}"];
    let more = ["--only", "unit-vectors", "--only", "evicts-enough", "--only", "scores-l2", "--junit"];
    let ran = home.run(&[&args[..], &more, &[junit.to_str().expect("UTF-8")]].concat()).expect(3);
    assert!(ran.stdout.contains("CRASH unit-vectors"), "{ran:#?}");
    assert!(ran.stdout.contains("crashed with signal 6"), "{ran:#?}");
    let xml = fs::read_to_string(junit).expect("the report");
    let document = roxmltree::Document::parse(&xml).expect("it is XML");
    let suite = document.descendants().find(|node| node.has_tag_name("testsuite")).expect("a suite");
    assert_eq!((suite.attribute("tests"), suite.attribute("errors")), (Some("3"), Some("3")), "{xml}");
    assert_eq!(document.descendants().filter(|node| node.has_tag_name("error")).count(), 3);
}

#[test]
fn files_that_cannot_be_checked_are_refused_with_the_reason() {
    let home = Home::new();
    let file = home.file("libnothing.so", "no library");
    home.run(&["plugin", "check", file.to_str().expect("UTF-8")]).expect(3).says(&["no shared library"]);
    home.run(&["plugin", "check", "none-such"]).expect(2).says(&["none-such", "plugin list"]);
    let chaos = built(CHAOS);
    let chaos = chaos.to_str().expect("UTF-8");
    home.run(&["plugin", "check", chaos, "--only", "none-such"]).expect(2).says(&["none-such", "creates"]);
    let crash = built(CRASH);
    let ran = home.run(&["plugin", "check", crash.to_str().expect("UTF-8")]).expect(3);
    assert!(ran.stdout.contains("CRASH creates") && ran.stdout.contains("skipped"), "{ran:#?}");
}
