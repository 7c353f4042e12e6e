//! A backend that fails is stood in for, and the answer says so.
use crate::support::{CHAOS, Home, Ran};
use std::{fs, path::PathBuf};

const NOTE: &str = "the lighthouse keeper counts the ships";

/// `main` with `options`, and `spare`, which stands in for it: both are `chaos`, and of one space.
struct Bed {
    home: Home,
    config: PathBuf,
    control: PathBuf,
}

impl Bed {
    /// `more` is added to the config, `options` to those of `main`.
    fn new(more: &str, options: &str) -> Self {
        let home = Home::new();
        home.install(CHAOS);
        let control = home.path().join("control");
        let config = home.file(
            "fallback.toml",
            format!(
                "[memory.cache]\ndisk = false\n[ai.embedding]\nprofile = \"main\"\n{more}\n\
                 [ai.embedding.profiles.main]\nplugin = \"chaos\"\nfallback = [\"spare\"]\n\
                 options = {{ control = {control:?}, {options} }}\n\
                 [ai.embedding.profiles.spare]\nplugin = \"chaos\"\n"
            ),
        );
        let bed = Self { home, config, control };
        bed.run(&["--backend", "spare", "add", NOTE]).expect(0);
        bed
    }

    fn run(&self, args: &[&str]) -> Ran {
        self.home.run(&[&["--config", self.config.to_str().expect("UTF-8")], args].concat())
    }

    /// The answer to a search while the control file says `command`, of which stderr says `why`.
    #[track_caller]
    fn search(&self, command: &str, why: &str) -> serde_json::Value {
        fs::write(&self.control, command).expect("the control file");
        let ran = self.run(&["search", "lighthouse ships", "--json"]).expect(0);
        let ran = if why.is_empty() { ran } else { ran.says(&[why, "'spare' goes on"]) };
        let answer: serde_json::Value = serde_json::from_str(&ran.stdout).expect("JSON");
        assert_eq!(answer["hits"][0]["text"], NOTE, "{answer}");
        answer
    }
}

#[test]
fn whatever_goes_wrong_the_answer_comes_and_says_who_gave_it() {
    let bed = Bed::new("[ai.embedding.pipeline]\ncall_timeout_ms = 1000", "");
    let answer = bed.search("work", "");
    assert_eq!((&answer["backend"], &answer["fallback"]), (&"main".into(), &serde_json::Value::Null));
    assert_eq!((&answer["engine"], &answer["precision"]), (&"chaos".into(), &"f32".into()));
    for (command, why) in [
        ("nan", "NaN"),
        ("panic", "asked to panic by file"),
        ("fail 100", "asked to fail"),
        ("oom 0", "asked to run out of memory"),
        ("hang", "hangs"),
    ] {
        let answer = bed.search(command, why);
        assert_eq!(answer["backend"], "spare", "{command}: {answer}");
        assert!(answer["fallback"].as_str().expect("a reason").contains(why), "{command}: {answer}");
    }
    // And in words.
    fs::write(&bed.control, "nan").expect("the control file");
    bed.run(&["search", "lighthouse"])
        .expect(0)
        .says(&["by spare on cpu (chaos, f32)", "not what was asked for"]);
}

#[test]
fn a_backend_that_cannot_start_is_stood_in_for() {
    let bed = Bed::new("", "fault = \"panic_in_create\"");
    let answer = bed.search("work", "asked to panic in create");
    assert_eq!(answer["backend"], "spare");
}

#[test]
fn out_of_memory_makes_smaller_batches_and_loses_nothing() {
    let bed = Bed::new("", "");
    fs::write(&bed.control, "oom 1").expect("the control file");
    let lines: Vec<String> = (0..20).map(|n| format!("line {n} of many")).collect();
    let config = bed.config.to_str().expect("UTF-8");
    let args = ["--config", config, "add", "--lines", "-", "-q"];
    let ran = bed.home.run_with_stdin(&args, lines.join("\n").as_bytes()).expect(0);
    assert!(!ran.stderr.contains("spare"), "{ran:#?}");
    assert_eq!(bed.home.json(&["--config", config, "stats"])["unembedded"], 0);
}

#[test]
fn an_index_run_prepares_its_stand_in_and_finishes_with_it() {
    let bed = Bed::new("", "");
    for n in 0..30 {
        bed.home.file(&format!("docs/{n}.txt"), format!("document {n} about the sea"));
    }
    fs::write(&bed.control, "panic").expect("the control file");
    bed.run(&["index", "docs"]).expect(0).says(&["asked to panic by file"]);
    assert_eq!(bed.home.json(&["--config", bed.config.to_str().expect("UTF-8"), "stats"])["unembedded"], 0);
}

#[test]
fn a_stand_in_must_be_known_installed_and_of_the_same_model() {
    let home = Home::new();
    home.install(CHAOS);
    let run = |fallback: &str, args: &[&str]| {
        let text = format!(
            "[ai.embedding]\nprofile = \"main\"\n[ai.embedding.profiles.main]\nplugin = \"chaos\"\n\
             options = {{ fault = \"nan\" }}\nfallback = {fallback}\n"
        );
        let config = home.file("config.toml", text);
        home.run(&[&["--config", config.to_str().expect("UTF-8")], args].concat())
    };
    run("[\"onnx\", \"chaos\"]", &["add", NOTE]).expect(0).says(&["no stand-in 'onnx'", "not installed"]);
    run("[\"nonsense\"]", &["add", NOTE]).expect(2).says(&["no embedding backend 'nonsense'"]);
    run("[\"chaos\", \"main\"]", &["add", NOTE]).expect(2).says(&["config.toml:6", "the profile itself"]);
    run("[\"chaos\", \"chaos\"]", &["add", NOTE]).expect(2).says(&["config.toml:6", "named twice"]);
    // It started, with a model of its own, before it turned out that it returns nonsense.
    run("[\"cpu\"]", &["add", NOTE]).expect(3).says(&[
        "NaN",
        "'cpu' cannot stand in for 'main'",
        "same model",
    ]);
    let text = "[memory.index.profiles.flat]\nfallback = [\"hnsw\"]\n";
    let config = home.file("index.toml", text);
    home.run(&["config", "check", config.to_str().expect("UTF-8")])
        .expect(2)
        .says(&["index.toml:2", "fallback"]);
}

#[test]
fn backends_that_disagree_are_told_apart_before_they_are_used() {
    let home = Home::new();
    home.install(CHAOS);
    let log = home.path().join("calls");
    let run = |options: &str, args: &[&str]| {
        let text = format!(
            "[memory.cache]\ndisk = false\n[ai.embedding.profiles.other]\nplugin = \"chaos\"\n\
             options = {{ log = {log:?}, {options} }}\n"
        );
        let config = home.file("config.toml", text);
        home.run(&[&["--config", config.to_str().expect("UTF-8"), "--backend", "other"], args].concat())
    };
    let embedded = || fs::read_to_string(&log).map_or(0, |log| log.matches("embed").count());
    home.run(&["--backend", "chaos", "add", NOTE]).expect(0);
    run("skew = 0.2", &["add", "another text"]).expect(3).says(&[
        "'other' does not compute what 'chaos' computes",
        "words",
        "cosine is 0.98",
    ]);
    run("skew = 0.1", &["search", "ships", "--mode", "vector"]).expect(3).says(&["0.999 is the least"]);
    run("skew = 0.1, precision = \"int8\"", &["search", "ships"]).expect(0);
    let first = embedded();
    run("skew = 0.1, precision = \"int8\"", &["search", "ships"]).expect(0);
    assert_eq!(embedded(), first + 1, "the verdict is remembered: only the query is embedded");
}

#[test]
fn a_flag_picks_the_model() {
    let home = Home::new();
    home.run(&["--model", "no-such-model", "add", NOTE]).expect(3).says(&["no-such-model"]);
    home.run(&["--model", "potion-base-8M-int8", "add", NOTE]).expect(0);
}

#[test]
fn stats_tell_how_the_backends_are() {
    let bed = Bed::new("", "");
    fs::write(&bed.control, "work").expect("the control file");
    let stats = bed.home.json(&["--config", bed.config.to_str().expect("UTF-8"), "stats"]);
    let members = &stats["embedding"]["members"];
    assert_eq!((&members[0]["profile"], &members[0]["state"]), (&"main".into(), &"closed".into()), "{stats}");
    assert_eq!(
        (&members[1]["profile"], &members[1]["state"]),
        (&"spare".into(), &"not loaded".into()),
        "{stats}"
    );
    assert_eq!(members[0]["device"]["engine"], "chaos");
    assert_eq!(stats["embedding"]["serving"], "main");
    let text = bed.run(&["stats"]).expect(0).stdout;
    assert!(text.contains("embedding backend main: closed, cpu (chaos, f32)"), "{text}");
}
