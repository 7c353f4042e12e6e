//! kill -9 in the middle of things: whatever was acknowledged is there afterwards.
use crate::support::{Home, Ran};
use serde_json::Value;
use std::{
    collections::HashSet,
    io::{BufRead as _, BufReader, Write as _},
    process::Stdio,
};

const ROUNDS: u64 = 12;

/// A number from 0 to `below`, the same in every run for one `seed`.
fn random(seed: u64, below: u64) -> u64 {
    let mut x = seed.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 31;
    x = x.wrapping_mul(0xbf58_476d_1ce4_e5b9);
    (x >> 20) % below
}

fn listed(home: &Home) -> Vec<Value> {
    let ran = home.run(&["list", "--json", "-n", "1000000"]);
    ran.stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect()
}

#[test]
fn what_add_acknowledged_survives() {
    let home = Home::new();
    let mut acknowledged = HashSet::new();
    for round in 0..ROUNDS {
        let mut child = home
            .command(&["add", "--lines", "-", "--json"])
            .env("MAGRAY_MEMORY__SYNC__SEAL_AFTER", "1500")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        let mut stdin = child.stdin.take().expect("its input");
        let writer = std::thread::spawn(move || {
            for line in 0..6000 {
                // The pipe breaks when the program is killed.
                if writeln!(stdin, "round {round} line {line} says something of its own").is_err() {
                    return;
                }
            }
        });
        let mut answers = BufReader::new(child.stdout.take().expect("its output")).lines();
        let stop_after = random(round, 5500);
        for answer in answers.by_ref().take(usize::try_from(stop_after).expect("small")) {
            let answer: Value = serde_json::from_str(&answer.expect("a line")).expect("JSON");
            acknowledged.insert(answer["id"].as_str().expect("an id").to_owned());
        }
        child.kill().expect("killed");
        child.wait().expect("it ends");
        // What it had already printed is acknowledged too.
        for answer in answers.map_while(Result::ok) {
            if let Ok(answer) = serde_json::from_str::<Value>(&answer) {
                acknowledged.insert(answer["id"].as_str().expect("an id").to_owned());
            }
        }
        drop(writer.join());
    }
    let there: HashSet<String> =
        listed(&home).iter().map(|record| record["id"].as_str().expect("an id").to_owned()).collect();
    let lost: Vec<_> = acknowledged.difference(&there).collect();
    assert!(lost.is_empty(), "lost {} of {}: {:?}", lost.len(), acknowledged.len(), &lost[..1]);
    assert!(acknowledged.len() > 1000, "only {} were acknowledged", acknowledged.len());
    let stats = home.json(&["stats"]);
    assert_eq!(stats["layers"][1]["records"], stats["layers"][1]["vectors"], "{stats}");
    let found = home.search(&["round 3 line 7 says something of its own", "-k", "1"]);
    assert!(found[0].starts_with("round"), "{found:?}");
}

#[test]
fn an_interrupted_index_goes_on_where_it_was() {
    let home = Home::new();
    const FILES: u64 = 400;
    for file in 0..FILES {
        let parts: Vec<String> = (0..20)
            .map(|part| format!("Part {part} of file {file}. {}", "It goes on for a while. ".repeat(30)))
            .collect();
        home.file(&format!("files/{:02}/{file}.txt", file % 20), parts.join("\n\n"));
    }
    let database = home.data().join("magray.db-wal");
    for round in 0..ROUNDS {
        let mut child = home
            .command(&["index", "files", "-q"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        // Killed once so much is written, or at the end where it is quicker.
        let limit = random(round, 3_000_000);
        while child.try_wait().expect("its state").is_none() {
            if std::fs::metadata(&database).map_or(0, |file| file.len()) > limit {
                child.kill().expect("killed");
                break;
            }
            std::thread::yield_now();
        }
        child.wait().expect("it ends");
        home.run(&["stats"]);
    }
    let last = home.json(&["index", "files"]);
    assert_eq!(
        last["files_indexed"].as_u64().unwrap() + last["files_unchanged"].as_u64().unwrap(),
        FILES,
        "{last}"
    );
    let mut passages = HashSet::new();
    for record in listed(&home) {
        let key = (record["path"].to_string(), record["line_start"].to_string(), record["text"].to_string());
        assert!(passages.insert(key), "twice: {record}");
    }
    let fresh = Home::new();
    let folder = home.path().join("files");
    Ran::of(&mut fresh.command(&["index", folder.to_str().expect("UTF-8")])).expect(0);
    assert_eq!(passages.len(), listed(&fresh).len());
    let stats = home.json(&["stats"]);
    assert_eq!(stats["layers"][2]["records"], stats["layers"][2]["vectors"], "{stats}");
}

#[test]
fn two_processes_write_and_a_third_reads_at_once() {
    let home = Home::new();
    home.run(&["add", "the first of all"]).expect(0);
    let writers: Vec<_> = (0..2)
        .map(|writer| {
            let lines: Vec<String> = (0..1500).map(|line| format!("writer {writer} line {line}")).collect();
            let mut child = home
                .command(&["add", "--lines", "-", "-q"])
                .stdin(Stdio::piped())
                .stdout(Stdio::null())
                .stderr(Stdio::piped())
                .spawn()
                .expect("it runs");
            let mut stdin = child.stdin.take().expect("its input");
            let feeder = std::thread::spawn(move || stdin.write_all(lines.join("\n").as_bytes()));
            (child, feeder)
        })
        .collect();
    for _ in 0..10 {
        assert!(home.search(&["the first of all", "-k", "1"]) == ["the first of all"]);
    }
    for (child, feeder) in writers {
        feeder.join().expect("the feeder ends").expect("all is read");
        Ran::from(child.wait_with_output().expect("it ends")).expect(0);
    }
    assert_eq!(home.json(&["stats"])["layers"][1]["records"], 3001);
    assert_eq!(home.search(&["writer 1 line 1499", "-k", "1"]), ["writer 1 line 1499"]);
}

#[test]
fn an_index_survives_being_killed_while_it_is_written() {
    let home = Home::new();
    let config = home.file(
        "small.toml",
        "[memory.sync]\nseal_after = 1000000\nbatch_size = 50\nmerge_factor = 2\npartition_max = 1000\n",
    );
    let config = config.to_str().expect("UTF-8");
    let (mut stored, mut killed) = (0, 0);
    // How often a command is looked at before it is killed, at most: fewer where the last one was faster, as on a busy
    // machine, where each look takes longer.
    let mut most = 12_000;
    for round in 0..3 * ROUNDS {
        let lines: Vec<String> =
            (stored..stored + 60).map(|line| format!("line {line} says something of its own")).collect();
        let add = ["--config", config, "add", "--lines", "-", "-q"];
        home.run_with_stdin(&add, lines.join("\n").as_bytes()).expect(0);
        stored += 60;
        let writes = [&["sync", "--all"][..], &["index", "rebuild"], &["index", "compact"]];
        let write = writes[usize::try_from(round % 3).expect("small")];
        let mut child = home
            .command(&[&["--config", config][..], write].concat())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("it runs");
        // Looked at so often and then killed, wherever it is.
        let looks = random(round, most);
        for _ in 0..looks {
            if child.try_wait().expect("its state").is_some() {
                break;
            }
            std::thread::yield_now();
        }
        let in_time = child.try_wait().expect("its state").is_none();
        most = if in_time { most * 2 } else { (most / 2).max(16) };
        killed += usize::from(in_time);
        child.kill().expect("killed");
        child.wait().expect("it ends");
        let verified = home.run(&["index", "verify"]).expect(0);
        assert!(!verified.stderr.contains("damaged"), "{verified:#?}");
        let last = &lines[59];
        assert_eq!(home.search(&["--config", config, last, "-k", "1"]), std::slice::from_ref(last));
    }
    assert!(killed > 3, "only {killed} were killed in time");
    home.run(&["--config", config, "index", "compact", "-q"]).expect(0);
    let stats = home.json(&["index", "stats"]);
    assert_eq!((&stats["layers"][1]["rows"], &stats["layers"][1]["tail"]), (&stored.into(), &0.into()));
    // Nothing is left of those that were killed.
    let mut folders = vec![home.data().join("index")];
    let mut names = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in folder.read_dir().expect("a folder") {
            let entry = entry.expect("an entry");
            names.push(entry.file_name().into_string().expect("UTF-8"));
            if entry.path().is_dir() {
                folders.push(entry.path());
            }
        }
    }
    assert!(
        !names.iter().any(|name| name.starts_with(".building") || name.starts_with(".retired")),
        "{names:?}"
    );
}
