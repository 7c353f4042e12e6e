//! Searches by words, by meaning and by both, and records that others replace.
use crate::support::{CHAOS, Home};
use serde_json::Value;
use std::time::Duration;

fn texts(answer: &Value) -> Vec<&str> {
    answer["hits"].as_array().expect("hits").iter().map(|hit| hit["text"].as_str().expect("a text")).collect()
}

fn add(home: &Home, text: &str, more: &[&str]) -> String {
    let added = home.json(&[&["add", text], more].concat());
    added["id"].as_str().expect("an id").to_owned()
}

#[test]
fn words_are_found_in_any_form_and_names_by_their_parts() {
    let home = Home::new();
    let notes = [
        "Backups are made at night",
        "Резервные копии лежат в гавани",
        "node.js runs the gateway",
        "The café opens at nine",
    ];
    home.run_with_stdin(&["add", "--lines", "-"], notes.join("\n").as_bytes()).expect(0);
    let cases = [
        ("how is a backup made", 0),
        ("резервная копия", 1),
        ("гавань", 1),
        ("NodeJS", 2),
        ("node", 2),
        ("CAFE opening", 3),
    ];
    for (query, wanted) in cases {
        let answer = home.json(&["search", query, "--mode", "keyword"]);
        assert_eq!(texts(&answer), [notes[wanted]], "{query}");
        assert_eq!(texts(&home.json(&["search", query]))[0], notes[wanted], "{query}");
    }
    home.run(&["search", "nothing of that is here", "--mode", "keyword"]).expect(1).says(&["nothing found"]);
}

#[test]
fn words_alone_need_no_model_and_both_do_without_one_that_is_not_to_be_had() {
    let home = Home::new();
    home.run(&["add", "the ferry leaves at nine"]).expect(0);
    let missing = ["--model", "no-such-model"];
    let answer = home.json(&[&missing[..], &["search", "ferries", "--mode", "keyword"]].concat());
    assert_eq!((texts(&answer), &answer["model"]), (vec!["the ferry leaves at nine"], &Value::Null));
    home.run(&[&missing[..], &["search", "ferries", "--mode", "vector"]].concat())
        .expect(3)
        .says(&["no-such-model"]);
    let ran = home.run(&[&missing[..], &["search", "ferries"]].concat()).expect(0);
    ran.says(&["words alone", "no-such-model"]);
    let answer = home.json(&[&missing[..], &["search", "ferries"]].concat());
    assert!(answer["without_vectors"].as_str().is_some_and(|why| why.contains("no-such-model")), "{answer}");
}

#[test]
fn what_is_past_its_time_goes_whether_a_model_can_be_had_or_not() {
    let home = Home::new();
    home.run(&["add", "the ferry leaves at nine"]).expect(0);
    let db = rusqlite::Connection::open(home.data().join("magray.db")).expect("the database");
    db.busy_timeout(Duration::from_secs(60)).expect("it waits");
    let count = || db.query_row("SELECT count(*) FROM records", [], |row| row.get::<_, u64>(0));
    for how in
        [&["--model", "no-such-model", "search", "ferries"][..], &["search", "ferries", "--mode", "keyword"]]
    {
        home.run(&["add", "the ferry is late today"]).expect(0);
        let due = "UPDATE records SET expires_ms = 1 WHERE text LIKE '%today'";
        assert_eq!(db.execute(due, []).expect("it is written"), 1);
        assert_eq!(texts(&home.json(how)), ["the ferry leaves at nine"]);
        assert_eq!(count().expect("a count"), 1, "{how:?}");
    }
}

#[test]
fn a_query_of_the_cache_is_answered_where_the_backend_has_failed() {
    let home = Home::new();
    home.install(CHAOS);
    let control = home.file("control", "work");
    let config = home.file(
        "chaos.toml",
        format!(
            "[memory.cache]\ndisk_min_us = 0\n[ai.embedding]\nprofile = 'main'\n\
             [ai.embedding.profiles.main]\nplugin = 'chaos'\noptions = {{ control = {control:?} }}\n"
        ),
    );
    let run = |args: &[&str]| home.run(&[&["--config", config.to_str().expect("UTF-8")], args].concat());
    // Of more than one passage, so that one has to be chosen.
    let long = |name: &str| format!("{} {name}. ", "The ferry leaves at nine, and not before").repeat(12);
    run(&["add", &long("north")]).expect(0);
    run(&["search", "the ferry"]).expect(0);
    run(&["add", &long("south")]).expect(0);
    std::fs::write(&control, "fail 1000").expect("the control file");
    let ran = run(&["search", "the ferry", "--json"]).expect(0).says(&["by words alone", "asked to fail"]);
    let answer: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((texts(&answer).len(), &answer["cached"]), (2, &true.into()), "{answer}");
    run(&["search", "the ferry", "--mode", "vector"]).expect(3).says(&["asked to fail"]);
}

#[test]
fn a_search_explains_itself() {
    let home = Home::new();
    home.run(&["add", "the tide follows the moon"]).expect(0);
    home.run(&["add", "a table of hours"]).expect(0);
    let answer = home.json(&["search", "tides and moons", "--explain"]);
    let best = &answer["hits"][0]["explain"];
    assert_eq!((&best["keyword"]["rank"], &best["vector"]["rank"]), (&1.into(), &1.into()), "{answer}");
    assert_eq!(best["factor"], 1.0);
    assert_eq!(answer["hits"][0]["score"], best["found"]);
    assert_eq!(answer["legs"]["keyword"]["terms"], serde_json::json!(["tide", "moon"]));
    assert_eq!((&answer["legs"]["vector"]["found"], &answer["mode"]), (&2.into(), &"hybrid".into()));
    assert_eq!(answer["hits"][1]["explain"]["keyword"], Value::Null);
    assert!(home.json(&["search", "tides"])["hits"][0]["explain"].is_null());
    let shown = home.run(&["search", "tides", "--explain", "--fusion", "rrf"]).expect(0).stdout;
    assert!(
        shown.contains("keyword #1") && shown.contains("vector #1") && shown.contains(" x 1."),
        "{shown}"
    );
    // Each mode has scores of its own, and so has --min-score.
    let best = |mode: &str| {
        home.json(&["search", "tides", "--mode", mode])["hits"][0]["score"].as_f64().expect("a score")
    };
    assert!(best("vector") < 1.0 && best("hybrid") >= 1.0);
    home.run(&["search", "tides", "--mode", "vector", "--min-score", "0.999"]).expect(1);
    home.run(&["search", "tides", "--min-score", "0.999"]).expect(0);
    home.run(&["search", "tides", "--mode", "sideways"]).expect(2).says(&["hybrid"]);
}

#[test]
fn a_record_is_found_until_another_replaces_it_and_by_its_time_after_that() {
    let home = Home::new();
    let (monday, tuesday) = ("The key rotates on Mondays", "The key rotates on Tuesdays");
    let old = add(&home, monday, &["--valid-from", "2026-01-01"]);
    let new = add(&home, tuesday, &["--supersedes", &old[..12], "--valid-from", "2026-03-01"]);
    for mode in ["hybrid", "keyword", "vector"] {
        let found = |more: &[&str]| home.search(&[&["rotates", "--mode", mode], more].concat());
        assert_eq!(found(&[]), [tuesday], "{mode}");
        assert_eq!(found(&["--as-of", "2026-02-28"]), [monday], "{mode}");
        assert_eq!(found(&["--as-of", "2026-03-01"]), [tuesday], "{mode}");
        let mut all = found(&["--any-time"]);
        all.sort();
        assert_eq!(all, [monday, tuesday], "{mode}");
    }
    home.run(&["search", "rotates", "--as-of", "2025-12-31"]).expect(1);
    let shown = home.json(&["get", &old]);
    assert_eq!(
        (&shown["superseded_by"], &shown["valid_to"]),
        (&new.as_str().into(), &"2026-03-01T00:00:00Z".into())
    );
    assert!(home.run(&["list"]).expect(0).stdout.contains(&format!("superseded by {new}")));

    // An export carries it all.
    let file = home.path().join("all.jsonl");
    let file = file.to_str().expect("UTF-8");
    home.run(&["export", "--out", file]).expect(0);
    let other = Home::new();
    other.run(&["import", file]).expect(0);
    assert_eq!(other.search(&["rotates"]), [tuesday]);
    assert_eq!(other.search(&["rotates", "--as-of", "2026-02-28"]), [monday]);

    // What is said again is true again.
    add(&home, monday, &["--supersedes", &new]);
    assert_eq!(home.search(&["rotates"]), [monday]);
    home.run(&["add", "x", "--supersedes", "ZZZZZZ"]).expect(2).says(&["ZZZZZZ", "nothing was stored"]);
    home.run(&["add", "x", "--valid-from", "2026-02-01", "--valid-to", "2026-01-01"]).expect(2);
    home.run(&["add", "x", "--valid-to", "soon"]).expect(2).says(&["2026-03-01"]);
    home.run(&["add", "not yet", "--valid-from", "+30d"]).expect(0);
    home.run(&["search", "not yet", "--mode", "keyword"]).expect(1);
    assert_eq!(home.search(&["not yet", "--mode", "keyword", "--as-of", "+31d"]), ["not yet"]);
}

#[test]
fn records_are_chosen_by_when_they_were_stored() {
    let home = Home::new();
    let line = |text: &str, created_ms: u64| format!("{{\"text\":\"{text}\",\"created_ms\":{created_ms}}}\n");
    let file = home.file(
        "old.jsonl",
        line("tide of 2001", 1_000_000_000_000) + &line("tide of 2017", 1_500_000_000_000),
    );
    home.run(&["import", file.to_str().expect("UTF-8")]).expect(0);
    home.run(&["add", "tide of today"]).expect(0);
    assert_eq!(home.search(&["tide", "--before", "2010-01-01"]), ["tide of 2001"]);
    assert_eq!(home.search(&["tide", "--after", "2010-01-01", "--before", "1h"]), ["tide of 2017"]);
    assert_eq!(home.search(&["tide", "--after", "1h", "--mode", "keyword"]), ["tide of today"]);
}

#[test]
fn age_counts_for_the_rank_unless_it_is_turned_off() {
    let home = Home::new();
    let old = "{\"text\":\"the tide table of the harbour\",\"created_ms\":1000000000000,\"last_access_ms\":1000000000000}\n";
    let file = home.file("old.jsonl", old);
    home.run(&["import", file.to_str().expect("UTF-8")]).expect(0);
    home.run(&["add", "the tide table of that harbour"]).expect(0);
    let answer = home.json(&["search", "tide table harbour", "--explain", "--mode", "keyword"]);
    assert_eq!(texts(&answer), ["the tide table of that harbour", "the tide table of the harbour"]);
    assert_eq!(answer["hits"][0]["explain"]["factor"], 1.0);
    assert!(
        (answer["hits"][1]["explain"]["factor"].as_f64().expect("a factor") - 0.8).abs() < 0.01,
        "{answer}"
    );
    home.file("c.toml", "[memory.search]\nage_weight = 0\naccess_weight = 0\n");
    let answer =
        home.json(&["--config", "c.toml", "search", "tide table harbour", "--explain", "--mode", "keyword"]);
    assert_eq!(texts(&answer)[0], "the tide table of the harbour");
    assert_eq!(answer["hits"][1]["explain"]["factor"], 1.0);
}

#[test]
fn retrieval_is_judged_by_the_search_itself() {
    let home = Home::new();
    let corpus = [
        r#"{"_id":"c1/s1:1","title":"","text":"the ferry leaves the harbour at nine"}"#,
        r#"{"_id":"c1/s2:1","title":"","text":"bread is baked in the morning"}"#,
        r#"{"_id":"c2/s1:1","title":"","text":"the ferry of another talk"}"#,
    ];
    home.file("set/corpus.jsonl", corpus.join("\n"));
    home.file("set/queries.jsonl", r#"{"_id":"c1/q1","text":"when do ferries leave"}"#);
    home.file("set/qrels/test.tsv", "query-id\tcorpus-id\tscore\nc1/q1\tc1/s1:1\t1\n");
    let ran = home.run(&["bench", "retrieval", "--data", "set", "--json", "--tune"]).expect(0);
    let rows: Vec<Value> = ran.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    assert_eq!(rows.len(), 13);
    for row in &rows[..4] {
        assert_eq!((&row["set"], &row["ndcg_10"]), (&"set/test".into(), &1.0.into()), "{row}");
        assert_eq!((&row["session_recall_5"], &row["recall_100"]), (&1.0.into(), &1.0.into()), "{row}");
    }
    assert!(!home.data().exists(), "it stores nothing in the data folder");
    home.file("none/readme", "");
    home.run(&["bench", "retrieval", "--data", "none"]).expect(2);
}
