//! `magray sync --watch`: the background work of a data folder, for all processes that write to it.
#![cfg(unix)]
use crate::support::{Home, Ran};
use serde_json::Value;
use std::{
    fs::File,
    io::{BufRead as _, BufReader, Lines},
    path::Path,
    process::{Child, ChildStdout, Stdio},
    time::Duration,
};

/// A watcher whose lines are read as they come.
struct Watch {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(home: &Home, flags: &[&str], settings: &[(&str, &str)]) -> Self {
        let mut command = home.command(&[flags, &["sync", "--watch"]].concat());
        for (key, value) in settings {
            command.env(format!("MAGRAY_{key}"), value);
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
        let lines = BufReader::new(child.stdout.take().expect("its output")).lines();
        Self { child, lines }
    }

    fn line(&mut self) -> Value {
        let line = self.lines.next().expect("a line").expect("UTF-8");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"))
    }

    /// Reads on until one of these tasks has done something.
    fn until(&mut self, tasks: &[&str]) -> Value {
        loop {
            let line = self.line();
            if line["task"].as_str().is_some_and(|task| tasks.contains(&task)) {
                return line["did"].clone();
            }
        }
    }

    /// Ctrl-C. Returns what it had still to say.
    fn stop(self) -> Ran {
        self.stop_by(libc::SIGINT)
    }

    fn stop_by(self, signal: libc::c_int) -> Ran {
        // SAFETY: a signal to a process that we started and have not waited for.
        assert_eq!(unsafe { libc::kill(self.child.id().cast_signed(), signal) }, 0);
        let rest: Vec<String> = self.lines.map(|line| line.expect("UTF-8")).collect();
        let ran = Ran::from(self.child.wait_with_output().expect("it ends"));
        Ran { stdout: rest.join("\n"), ..ran }.expect(0)
    }
}

/// A command whose own upkeep seals nothing, so that whatever is sealed was by a watcher.
fn run(home: &Home, args: &[&str], input: Option<&Path>) -> Ran {
    let mut command = home.command(args);
    command.env("MAGRAY_MEMORY__SYNC__SEAL_AFTER", "100000");
    if let Some(input) = input {
        command.stdin(File::open(input).expect("its input"));
    }
    Ran::of(&mut command).expect(0)
}

fn add(home: &Home, range: std::ops::Range<u32>) {
    let lines: Vec<String> = range.map(|i| format!("entry {i} says {}", i * i)).collect();
    run(home, &["add", "--lines", "-", "-q"], Some(&home.file("lines", lines.join("\n"))));
}

fn insights(home: &Home) -> Value {
    let stats = home.json(&["index", "stats"]);
    let layers = stats["layers"].as_array().expect("layers");
    layers.iter().find(|layer| layer["layer"] == "insights").expect("insights").clone()
}

#[test]
fn a_watcher_does_what_other_processes_leave_to_be_done() {
    let home = Home::new();
    let quick = [
        ("MEMORY__SYNC__SEAL_AFTER", "20"),
        ("BACKGROUND__EXPIRE_SECONDS", "1"),
        ("BACKGROUND__RECALL_SECONDS", "1"),
    ];
    let mut watch = Watch::start(&home, &["--json"], &quick);
    add(&home, 0..60);
    // Each of two does, and whichever comes first.
    assert_eq!(watch.until(&["seal", "merge"])["changes"], 60);
    let sealed = insights(&home);
    assert_eq!((&sealed["rows"], &sealed["tail"]), (&60.into(), &0.into()));

    run(&home, &["add", "gone in a moment", "--layer", "interact", "-q"], None);
    // Not by a short life: the command, which drops what is past its time too, may take longer than that.
    let db = rusqlite::Connection::open(home.data().join("magray.db")).expect("the database");
    db.busy_timeout(Duration::from_secs(60)).expect("it waits");
    let brief = "UPDATE records SET expires_ms = 1 WHERE text = 'gone in a moment'";
    assert_eq!(db.execute(brief, []).expect("it is written"), 1);
    drop(db);
    assert_eq!(watch.until(&["expire", "promote"])["records"], 1);

    // Searches of other processes are checked.
    let mut stats = insights(&home);
    assert_eq!(stats["live_recall"], Value::Null);
    while stats["rechecked"] == 0 {
        assert_eq!(home.search(&["entry 7 says 49", "-k", "1"]), ["entry 7 says 49"]);
        stats = insights(&home);
    }
    assert_eq!(stats["live_recall"], 1.0);
    assert!(home.run(&["index", "stats"]).expect(0).stdout.contains("1.000"));

    let ran = watch.stop();
    let last: Value = serde_json::from_str(ran.stdout.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["stopped"], true);
    let task = |name: &str| {
        let tasks = last["tasks"].as_array().expect("tasks");
        tasks.iter().find(|task| task["task"] == name).expect("the task").clone()
    };
    assert!(last["tasks"].as_array().expect("tasks").iter().all(|task| task["failed"] == 0), "{last}");
    assert!(task("seal")["runs"].as_u64() >= Some(1) && task("recall")["cpu_ms"].as_f64() > Some(0.0));
    let services = last["services"].as_array().expect("services");
    assert!(services.iter().any(|service| service["life"] == "transient" && service["made"] == 1), "{last}");
    assert!(ran.stderr.contains("stopped after"), "{ran:?}");
    home.run(&["index", "verify"]).expect(0);
}

#[test]
fn two_watchers_of_one_folder_do_the_work_once() {
    let home = Home::new();
    home.run(&["add", "the first of all", "-q"]).expect(0);
    let eager = [("MEMORY__SYNC__WORKLOAD", "realtime_chat"), ("MEMORY__SYNC__BATCH_SIZE", "10")];
    let watches = [Watch::start(&home, &["--json"], &eager), Watch::start(&home, &["--json"], &eager)];
    for round in 0..6 {
        add(&home, 100 * round..100 * round + 30);
        let text = format!("entry {} says {}", 100 * round + 29, (100 * round + 29) * (100 * round + 29));
        assert!(run(&home, &["search", &text, "-k", "1"], None).stdout.contains(&text));
    }
    // Until one of them has sealed all of it.
    while insights(&home)["tail"].as_u64() >= Some(10) {}
    let mut changes = 0;
    for ran in watches.map(Watch::stop) {
        assert!(!ran.stderr.contains("warning") && !ran.stderr.contains("error"), "{ran:?}");
        let lines = ran.stdout.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        let sealed = lines.filter_map(|line| line["did"]["changes"].as_u64());
        changes += sealed.sum::<u64>();
    }
    let stats = insights(&home);
    assert_eq!(stats["changes"].as_u64(), Some(changes), "{stats}");
    assert_eq!(stats["rows"].as_u64().zip(stats["tail"].as_u64()).map(|(rows, tail)| rows + tail), Some(181));
    home.run(&["index", "verify"]).expect(0);
}

#[test]
fn a_watcher_says_what_it_did_in_words_and_quiet_nothing() {
    let home = Home::new();
    let mut watch = Watch::start(&home, &[], &[]);
    add(&home, 0..50);
    let said = watch.lines.next().expect("a line").expect("UTF-8");
    assert!((said.contains("seal") || said.contains("merge")) && said.contains("50 changes"), "{said}");
    watch.stop().says(&["watching", "Ctrl-C"]);

    // A service manager ends it as gently as Ctrl-C does.
    let mut watch = Watch::start(&home, &["--json"], &[("MEMORY__SYNC__SEAL_AFTER", "10")]);
    add(&home, 100..150);
    watch.until(&["seal", "merge"]);
    let ran = watch.stop_by(libc::SIGTERM);
    let last: Value = serde_json::from_str(ran.stdout.lines().last().expect("a line")).expect("JSON");
    assert_eq!(last["stopped"], true);

    // Quiet, it has nothing to say at all.
    let watch = Watch::start(&home, &["-q"], &[("MEMORY__SYNC__SEAL_AFTER", "10")]);
    add(&home, 50..100);
    while insights(&home)["tail"] != 0 {}
    let ran = watch.stop();
    assert_eq!((ran.stdout.as_str(), ran.stderr.as_str()), ("", ""));

    home.run(&["sync", "--watch", "--all"]).expect(2);
}
