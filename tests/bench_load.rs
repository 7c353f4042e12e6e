//! `magray bench workload`, `soak`, `search` and `sync`: what is due is done, counted and judged. No figure of time is looked
//! at, for any machine may be busy.
use crate::support::{HNSW, Home, Ran};
use serde_json::Value;

fn with_texts() -> Home {
    let home = Home::new();
    let text =
        |n: usize| format!("note {n} of the log says that the backup of machine {} was whole\n", n * 7 % 13);
    home.file("texts.txt", (0..50).map(text).collect::<String>());
    home
}

fn report(ran: &Ran) -> Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

const LOAD: [&str; 14] = [
    "--texts",
    "texts.txt",
    "--warm-up",
    "1",
    "--inserts",
    "20",
    "--searches",
    "50",
    "--records",
    "30",
    "--queries",
    "10",
    "--threads",
    "2",
];

#[test]
fn a_load_does_what_is_due_and_a_missed_limit_is_a_failure() {
    let home = with_texts();
    let args = [&["bench", "workload", "--seconds", "2", "--batch", "1,10", "--json"], &LOAD[..]].concat();
    let ran = home.run(&args).expect(3).says(&["missed"]);
    let load = report(&ran);
    assert_eq!((number(&load, "error_rate"), number(&load["search"], "calls")), (0.0, 100.0), "{load}");
    let inserts = load["inserts"].as_array().expect("inserts");
    let calls: Vec<_> = inserts.iter().map(|of| (number(of, "batch"), number(of, "calls"))).collect();
    assert_eq!(calls, [(1.0, 20.0), (10.0, 2.0)]);
    // Those before the load, and a second each of warm-up, of ones and of tens.
    assert_eq!(number(&load, "records"), 30.0 + 20.0 + 20.0 + 20.0);
    assert_eq!(number(&load, "items_per_s"), (100.0 + 40.0) / 2.0);
    assert!(number(&load, "hit_rate") > 0.8, "ten queries, all of them asked in the warm-up: {load}");
    for times in [&load["search"]["latency"], &load["search"]["service"], &inserts[0]["latency"]] {
        let [p50, p99, max] = ["p50", "p99", "max"].map(|name| number(times, name));
        assert!(0.0 < p50 && p50 <= p99 && p99 <= max, "{times}");
    }
    let verdicts = load["verdicts"].as_array().expect("verdicts");
    let met =
        |what: &str| verdicts.iter().find(|verdict| verdict["what"] == what).map(|verdict| &verdict["met"]);
    assert_eq!(met("items a second"), Some(&Value::Bool(false)), "70 of 500");
    assert_eq!(met("error rate"), Some(&Value::Bool(true)));
    assert!(!home.data().join("magray.db").exists(), "nothing of the user's is touched");
    // The second search is due in more seconds than there are.
    let seldom =
        ["--searches", "1e-300", "--inserts", "0", "--records", "1", "--seconds", "1", "--warm-up", "0"];
    let args = [&["bench", "workload", "--texts", "texts.txt", "--json"], &seldom[..]].concat();
    assert_eq!(number(&report(&home.run(&args).expect(3))["search"], "calls"), 1.0);
}

#[test]
fn a_soak_keeps_what_is_stored_as_much_and_watches_memory() {
    let home = with_texts();
    let args =
        [&["bench", "soak", "--minutes", "0.05", "--max-growth", "1e12", "--json"], &LOAD[..]].concat();
    let load = report(&home.run(&args).expect(0));
    assert_eq!(number(&load, "records"), 30.0);
    let whats: Vec<_> = load["verdicts"].as_array().expect("verdicts").iter().map(|of| &of["what"]).collect();
    assert_eq!(whats, ["error rate", "growth, MiB an hour"]);
    if cfg!(target_os = "linux") {
        let memory = &load["memory"];
        assert!(memory["samples"].as_array().is_some_and(|samples| samples.len() >= 3), "{memory}");
        assert!(number(memory, "peak_bytes") >= number(memory, "start_bytes"), "{memory}");
        // Memory is not told to shrink by terabytes.
        let args = [&["bench", "soak", "--minutes", "0.02", "--max-growth", "0.000001"], &LOAD[..]].concat();
        let ran = home.run(&args);
        assert!(ran.stdout.contains("growth, MiB an hour"), "{ran:?}");
    }
}

#[test]
fn whole_searches_are_measured_with_and_without_the_embedding() {
    let home = with_texts();
    home.run(&["add", "--lines", "--file", "texts.txt"]).expect(0);
    home.file("queries.txt", "which backup was whole\nmachine 3\nnote 12\n");
    let found = home.json(&["bench", "search", "--queries", "queries.txt"]);
    assert_eq!((number(&found, "records"), &found["index"]), (50.0, &Value::from("flat")));
    for round in ["embedded", "cached"] {
        assert_eq!(number(&found[round], "calls"), 3.0);
        assert!(number(&found[round]["latency"], "max") > 0.0, "{found}");
    }
    assert_eq!(number(&found, "empty"), 0.0);
    let own = home.json(&["bench", "search", "--count", "4"]);
    assert_eq!(number(&own["embedded"], "calls"), 4.0);
    let ran = home.run(&["bench", "search", "--count", "4"]).expect(0);
    assert!(ran.stdout.contains("embedding cached"), "{}", ran.stdout);
}

#[test]
fn without_texts_there_is_no_load() {
    let home = Home::new();
    home.run(&["bench", "workload"]).expect(2).says(&["no record is long enough"]);
    home.run(&["bench", "search"]).expect(2);
    home.run(&["bench", "workload", "--searches=-1"]).expect(2).says(&["--searches"]);
}

#[test]
fn commits_are_found_and_what_that_takes_is_measured() {
    let home = Home::new();
    home.install(HNSW);
    let measured = home.json(&["--index", "flat", "bench", "sync", "--rows", "50,10000", "--runs", "1"]);
    assert_eq!(measured["index"], "flat");
    let [few, many] = measured["stored"].as_array().expect("a list").as_slice() else { panic!("{measured}") };
    let commits = |of: &Value| of["commits"].as_array().map(Vec::len);
    assert_eq!((number(few, "rows"), commits(few), commits(many)), (50.0, Some(3), Some(4)));
    assert!(number(&many["commits"][3], "receive_us") > 0.0 && number(many, "add_open_us") > 0.0, "{many}");
    assert!(!home.data().join("magray.db").exists(), "nothing of the user's is touched");
    let ran = home.run(&["--index", "hnsw", "bench", "sync", "--rows", "100", "--runs", "1"]).expect(0);
    assert!(ran.stdout.contains("100 stored") && ran.stdout.contains("read back"), "{}", ran.stdout);
    home.run(&["bench", "sync", "--rows", "0"]).expect(2);
}
