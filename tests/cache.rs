//! The cache of embeddings on disk, as a user meets it.
use crate::support::{Home, Ran};
use serde_json::Value;
use std::{fs, process::Command};

/// The program with a cache on disk that is used however quick the model is.
fn command(home: &Home, args: &[&str]) -> Command {
    let mut command = home.command(args);
    command.env("MAGRAY_MEMORY__CACHE__DISK_MIN_US", "0");
    command
}

fn run(home: &Home, args: &[&str]) -> Ran {
    Ran::of(&mut command(home, args))
}

fn stats(home: &Home) -> Value {
    let ran = run(home, &["cache", "stats", "--json"]).expect(0);
    serde_json::from_str(&ran.stdout).expect("JSON")
}

#[test]
fn another_process_finds_what_one_has_computed() {
    let home = Home::new();
    assert_eq!(stats(&home)["disk"]["entries"], 0);
    assert!(!home.data().exists(), "looking makes nothing");
    run(&home, &["add", "Backups run every night."]).expect(0);
    run(&home, &["search", "copies of data"]).expect(0);
    let first = stats(&home);
    let entries = first["disk"]["entries"].as_u64().expect("a number");
    assert!(entries >= 2, "{first}");
    let answer = |ran: Ran| {
        let answer: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        let score = answer["hits"][0]["explain"]["found"].as_f64().expect("a score");
        (answer["hits"][0]["id"].clone(), score, answer["cached"].clone())
    };
    let cached = answer(
        run(&home, &["search", "copies of data", "--mode", "vector", "--explain", "--json"]).expect(0),
    );
    let second = stats(&home);
    assert_eq!(second["disk"]["entries"], entries, "{second}");
    let hits = |stats: &Value| stats["disk"]["lifetime"]["hits"].as_u64().expect("a number");
    assert!(hits(&second) > hits(&first), "{second}");
    let space = &second["spaces"][0];
    assert_eq!((&space["model"], &space["dim"]), (&"potion-base-8M-int8".into(), &256.into()));

    // The same as without it, but for the rounding to half precision.
    let mut without =
        command(&home, &["search", "copies of data", "--mode", "vector", "--explain", "--json"]);
    let computed = answer(Ran::of(without.env("MAGRAY_MEMORY__CACHE__DISK", "false")).expect(0));
    assert_eq!(cached.0, computed.0);
    assert!((cached.1 - computed.1).abs() < 1e-3, "{cached:?} {computed:?}");
    // And the answer says which of them it was.
    assert_eq!((cached.2, computed.2), (true.into(), false.into()));

    let shown = run(&home, &["cache", "stats"]).expect(0).stdout;
    assert!(shown.contains("potion-base-8M-int8") && shown.contains("look-ups answered"), "{shown}");
    assert!(run(&home, &["stats"]).expect(0).stdout.contains("look-ups answered"));
}

#[test]
fn it_is_cleared_by_model_by_age_and_whole() {
    let home = Home::new();
    run(&home, &["add", "Backups run every night."]).expect(0);
    let dropped = |args: &[&str]| {
        let ran = run(&home, &[&["cache", "clear", "--json"], args].concat()).expect(0);
        serde_json::from_str::<Value>(&ran.stdout).expect("JSON")["dropped"].clone()
    };
    run(&home, &["cache", "clear", "--space", "no-such-model"]).expect(1).says(&["potion-base-8M-int8"]);
    assert_eq!(dropped(&["--expired"]), 0);
    assert_eq!(dropped(&["--space", "potion-base-8M-int8"]), 1);
    run(&home, &["add", "Another text."]).expect(0);
    assert_eq!(dropped(&[]), 1);
    assert_eq!(dropped(&[]), 0);
    assert_eq!(stats(&home)["spaces"].as_array().expect("spaces").len(), 0);
}

#[test]
fn a_damaged_file_is_a_warning_and_nothing_else() {
    let home = Home::new();
    run(&home, &["add", "Backups run every night."]).expect(0);
    let path = home.data().join("cache.db");
    fs::write(&path, "this is no database, and long enough to be seen as one ".repeat(100)).expect("written");
    let ran = run(&home, &["search", "copies of data"]).expect(0);
    assert!(ran.stdout.contains("Backups run every night."), "{ran:?}");
    ran.says(&["warning", "cache.db", "moved to", "begins anew"]);
    let again = run(&home, &["search", "copies of data"]).expect(0);
    assert!(!again.stderr.contains("warning"), "{again:?}");
    assert!(stats(&home)["disk"]["entries"].as_u64() >= Some(1));
}

#[test]
fn it_can_be_turned_off_and_is_not_used_where_it_does_not_pay() {
    let home = Home::new();
    let off = |key: &str, value: &str| {
        let mut add = home.command(&["add", "Backups run every night."]);
        Ran::of(add.env(key, value)).expect(0);
        assert!(!home.data().join("cache.db").exists(), "{key}");
    };
    off("MAGRAY_MEMORY__CACHE__DISK", "false");
    off("MAGRAY_MEMORY__CACHE__DISK_MIN_US", "1000000000");
}

#[test]
fn a_low_hit_rate_of_searches_is_an_alert_that_outlives_processes() {
    let home = Home::new();
    let with_window = |args: &[&str]| {
        let mut command = command(&home, args);
        Ran::of(command.env("MAGRAY_MEMORY__CACHE__ALERT_LOOKUPS", "5")).expect(0)
    };
    let searches = || -> Value {
        let stats: Value =
            serde_json::from_str(&with_window(&["cache", "stats", "--json"]).stdout).expect("JSON");
        stats["searches"].clone()
    };
    for text in ["a", "b", "c", "d", "e", "f"] {
        with_window(&["add", text]);
    }
    assert_eq!(searches()["lookups"], 0, "what is stored is no search");
    for text in ["one", "two", "three", "four"] {
        with_window(&["search", text]);
    }
    assert_eq!((&searches()["lookups"], &searches()["alert"]), (&4.into(), &Value::Null));
    with_window(&["search", "five"]);
    let low = searches();
    assert_eq!((&low["hits"], &low["hit_rate_percent"]), (&0.into(), &0.0.into()));
    assert!(low["alert"].as_str().is_some_and(|alert| alert.contains("max_size_bytes")), "{low}");
    assert!(with_window(&["cache", "stats"]).stdout.contains("max_size_bytes"));
    for _ in 0..6 {
        with_window(&["search", "five"]);
    }
    assert_eq!((&searches()["hit_rate_percent"], &searches()["alert"]), (&100.0.into(), &Value::Null));
}
