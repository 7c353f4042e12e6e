//! `magray promote`: what moves, why, and back again, and several processes at it.
use crate::support::Home;
use serde_json::Value;
use std::process::Stdio;

/// A memory whose records move as soon as they are used three times.
fn home(texts: &[&str]) -> Home {
    let home = Home::new();
    // `magray` finds it as the user's own.
    home.file(
        ".config/magray/config.toml",
        "[memory.promotion]\npreset = 'minimal'\ninteract_min_age_seconds = 0\ninsights_min_age_seconds = 0\n\
         frequency_uses = 1\n",
    );
    for text in texts {
        home.run(&["add", text, "--layer", "interact"]).expect(0);
    }
    home
}

fn texts(home: &Home, args: &[&str]) -> Vec<String> {
    home.search(&[&["the sea", "-k", "50"], args].concat())
}

fn layer(home: &Home, id: &str) -> String {
    home.json(&["get", id])["layer"].as_str().expect("a layer").to_owned()
}

fn id_of(home: &Home, text: &str) -> String {
    let ran = home.run(&["list", "--json", "-n", "1000"]).expect(0);
    let records = ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    let mut found = records.filter(|record| record["text"] == text);
    found.next().expect("the record")["id"].as_str().expect("an id").to_owned()
}

/// Keeps the commands from promoting by themselves, so that what is tested does it.
fn not_by_itself(home: &Home) {
    let path = home.path().join(".config/magray/config.toml");
    let text = std::fs::read_to_string(&path).expect("the file");
    std::fs::write(path, text.replacen("]\n", "]\nenabled = false\n", 1)).expect("written");
}

fn use_it(home: &Home, text: &str, times: usize) {
    for _ in 0..times {
        assert_eq!(home.search(&[text, "-k", "1"]), [text]);
    }
}

#[test]
fn what_is_used_moves_can_be_explained_and_taken_back() {
    const USED: &str = "The tide is high at noon by the sea";
    let home = home(&[USED, "Nobody asks for this remark about the sea"]);
    not_by_itself(&home);
    home.run(&["promote", "--history"]).expect(1);
    home.run(&["promote", "--undo"]).expect(1).says(&["nothing to undo"]);
    use_it(&home, USED, 4);
    let id = id_of(&home, USED);

    let dry = home.json(&["promote", "--dry-run", "--explain"]);
    assert_eq!(
        (&dry["dry_run"], &dry["cycle"], layer(&home, &id)),
        (&true.into(), &Value::Null, "interact".into())
    );
    let shown = home.run(&["promote", "--dry-run", "--explain"]).expect(0).stdout;
    for part in ["interact > insights", &id, USED, "= 0.30 x recency", "+ 0.20 x similarity", "at least 0.70"]
    {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
    let report = home.json(&["promote", "--explain"]);
    assert_eq!(report["moves"][0]["id"], *id);
    for field in ["weighed", "waiting", "expired", "stays"] {
        assert_eq!(report[field], dry[field], "{field}");
    }
    assert_eq!(report["moves"][0]["to"], dry["moves"][0]["to"]);
    assert_eq!(layer(&home, &id), "insights");
    for index in ["flat", "native"] {
        assert_eq!(texts(&home, &["--index", index, "--layer", "insights"]), [USED]);
        assert_eq!(texts(&home, &["--index", index, "--layer", "interact"]).len(), 1);
        let verified = home.json(&["--index", index, "index", "verify"]);
        assert_eq!(verified["ok"], true, "{verified}");
    }

    let history = home.json(&["promote", "--history"]);
    assert_eq!((&history["cycle"], &history["moves"][0]["id"]), (&1.into(), &id.clone().into()));
    let undone = home.json(&["promote", "--undo", "1"]);
    assert_eq!((undone["undone"][0].as_str(), layer(&home, &id)), (Some(&*id), "interact".into()));
    for index in ["flat", "native"] {
        let there = texts(&home, &["--index", index, "--layer", "interact"]);
        assert!(there.contains(&USED.to_owned()) && there.len() == 2, "{there:?}");
        home.run(&["--index", index, "search", "the sea", "--layer", "insights"]).expect(1);
    }
    assert!(home.run(&["promote", "--history", "--explain"]).expect(0).stdout.contains(", undone 2"));
    home.run(&["promote", "--undo", "1"]).expect(1);
}

#[test]
fn a_record_that_is_used_on_reaches_assets_by_itself() {
    const USED: &str = "Ships need a pilot in the strait";
    let home = home(&[USED, "Something else"]);
    let id = id_of(&home, USED);
    // Each command counts the uses of those before it. Not to wait an hour for the next cycle:
    let search = || {
        let mut search = home.command(&["search", USED, "-k", "1", "--json"]);
        search.env("MAGRAY_MEMORY__PROMOTION__EVERY_SECONDS", "0");
        assert!(search.output().expect("it runs").status.success());
    };
    let mut seen = vec!["interact".to_owned()];
    for _ in 0..20 {
        search();
        seen.push(layer(&home, &id));
    }
    seen.dedup();
    assert_eq!(seen, ["interact", "insights", "assets"]);
    assert_eq!(home.search(&[USED, "--layer", "assets", "-k", "1"]), [USED]);
}

#[test]
fn by_hand_a_record_moves_and_is_merged_into_what_says_the_same() {
    let home = home(&["Said twice"]);
    not_by_itself(&home);
    let id = id_of(&home, "Said twice");
    let there = home.json(&["add", "Said twice", "--layer", "insights", "--tag", "kept"]);
    let report = home.json(&["promote", &id]);
    assert_eq!(report["moves"][0]["merged_into"], there["id"]);
    home.run(&["promote", &id]).expect(2).says(&["is superseded"]);
    home.run(&["promote", there["id"].as_str().expect("an id")]).expect(0);
    home.run(&["promote", there["id"].as_str().expect("an id")]).expect(2).says(&["in assets already"]);
    home.run(&["promote", "--undo"]).expect(0);
    home.run(&["promote", "--undo", "last"]).expect(0);
    assert_eq!(layer(&home, &id), "interact");

    home.file("notes/a.md", "# Title\n\nWords of a file.\n");
    home.run(&["index", "notes", "--layer", "insights"]).expect(0);
    let chunk = home.json(&["list", "--kind", "chunk"])["id"].as_str().expect("an id").to_owned();
    home.run(&["promote", &chunk]).expect(2).says(&["is of the file", "a.md", "--layer"]);
    home.run(&["promote", "ZZZZ"]).expect(2).says(&["there is no record ZZZZ"]);
    home.run(&["promote", "--undo", "some"]).expect(2).says(&["'some' is no cycle"]);
    home.run(&["promote", "--undo", "--dry-run"]).expect(2);
    home.run(&["promote", &id, "--layer", "interact"]).expect(2);
    let config = home.file("bad.toml", "[memory.promotion]\ninteract_threshold = 1.0\n");
    home.run(&["--config", config.to_str().expect("UTF-8"), "promote"])
        .expect(2)
        .says(&["bad.toml:2", "no record could leave interact"]);
}

#[test]
fn several_processes_promote_each_record_once() {
    let lines: Vec<String> = (0..40).map(|n| format!("entry {n} about the sea")).collect();
    let home = home(&[]);
    not_by_itself(&home);
    home.run_with_stdin(&["add", "--lines", "-", "--layer", "interact"], lines.join("\n").as_bytes())
        .expect(0);
    for _ in 0..4 {
        assert_eq!(texts(&home, &[]).len(), 40);
    }
    let running: Vec<_> = (0..4)
        .map(|_| {
            let mut promote = home.command(&["promote", "--json"]);
            promote.stdout(Stdio::piped()).spawn().expect("it runs")
        })
        .collect();
    let moved: usize = running
        .into_iter()
        .map(|running| {
            let output = running.wait_with_output().expect("it ends");
            let report: Value = serde_json::from_slice(&output.stdout).expect("JSON");
            report["moves"].as_array().expect("moves").len()
        })
        .sum();
    assert_eq!(moved, 40);
    assert_eq!(texts(&home, &["--layer", "insights"]).len(), 40);
    let history = home.run(&["promote", "--history", "--json"]).expect(0).stdout;
    let cycles = history.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
    assert_eq!(cycles.map(|cycle| cycle["moves"].as_array().expect("moves").len()).sum::<usize>(), 40);
    assert_eq!(home.json(&["index", "verify"])["ok"], true);
}
