//! `magray sync`, `magray index verify | rebuild | compact | stats`, and several processes on one index.
use crate::support::{HNSW, Home};
use serde_json::Value;
use std::{fs, path::PathBuf};

fn lines(range: std::ops::Range<u32>) -> Vec<u8> {
    let lines: Vec<String> = range.map(|i| format!("entry {i} says {}", i * i)).collect();
    lines.join("\n").into_bytes()
}

/// With so many changes that nothing is sealed by itself.
fn lazy(home: &Home) -> String {
    let file = home.file("lazy.toml", "[memory.sync]\nseal_after = 100000\nbatch_size = 10\n");
    file.to_str().expect("UTF-8").to_owned()
}

fn insights(answer: &Value) -> Value {
    let layers = answer["layers"].as_array().expect("layers");
    layers.iter().find(|layer| layer["layer"] == "insights").expect("insights").clone()
}

fn segments(home: &Home, index: &str) -> Vec<PathBuf> {
    let space =
        home.data().join("index").read_dir().expect("spaces").next().expect("one").expect("one").path();
    let folder = space.join("insights").join(index).join("segments");
    let mut found: Vec<PathBuf> =
        folder.read_dir().expect("segments").map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    found
}

#[test]
fn sync_builds_in_what_waits_and_says_what_it_did() {
    let home = Home::new();
    let config = lazy(&home);
    let lazy = ["--config", &config];
    home.run_with_stdin(&[&lazy[..], &["add", "--lines", "-", "-q"]].concat(), &lines(0..60)).expect(0);
    let nothing = insights(&home.json(&[&lazy[..], &["sync"]].concat()));
    assert_eq!((&nothing["synced"], &nothing["changes"]), (&false.into(), &0.into()));
    let all = insights(&home.json(&[&lazy[..], &["sync", "--all", "--layer", "insights"]].concat()));
    assert_eq!((&all["synced"], &all["changes"], &all["segments"]), (&true.into(), &60.into(), &1.into()));
    home.run_with_stdin(&[&lazy[..], &["add", "--lines", "-", "-q"]].concat(), &lines(60..90)).expect(0);
    let more = insights(&home.json(&[&lazy[..], &["sync", "--all"]].concat()));
    assert_eq!(
        (&more["changes"], &more["rows_written"], &more["segments"]),
        (&30.into(), &30.into(), &2.into())
    );
    let stats = insights(&home.json(&["index", "stats"]));
    assert_eq!((&stats["rows"], &stats["tail"], &stats["syncs"]), (&90.into(), &0.into(), &2.into()));
    assert!(stats["spared"].as_f64() >= Some(0.95), "{stats}");
    let compacted = insights(&home.json(&[&lazy[..], &["index", "compact"]].concat()));
    assert_eq!(compacted["segments"], 1);
    assert_eq!(segments(&home, "flat").len(), 1);
    assert_eq!(home.search(&["entry 77 says 5929", "-k", "1"]), ["entry 77 says 5929"]);
    let shown = home.run(&["sync", "--all"]).expect(0);
    assert!(shown.stdout.contains("insights"), "{shown:?}");
}

#[test]
fn verify_finds_damage_and_rebuild_mends_it() {
    let home = Home::new();
    home.install(HNSW);
    for index in ["flat", "hnsw"] {
        let named = ["--index", index];
        home.run(&[&named[..], &["add", &format!("for {index}")]].concat()).expect(0);
        home.run_with_stdin(&[&named[..], &["add", "--lines", "-", "-q"]].concat(), &lines(0..120)).expect(0);
        home.run(&[&named[..], &["sync", "--all", "-q"]].concat()).expect(0);
        let well = home.json(&[&named[..], &["index", "verify"]].concat());
        assert_eq!((&well["ok"], &insights(&well)["recall"]), (&true.into(), &1.0.into()), "{well}");
        let folder = &segments(&home, index)[0];
        for entry in folder.read_dir().expect("files") {
            let file = entry.expect("a file").path();
            if file.file_name().is_some_and(|name| name == "magray.verified") {
                continue;
            }
            let whole = fs::read(&file).expect("its bytes");
            let mut bytes = whole.clone();
            let at = bytes.len() / 2;
            bytes[at] ^= 0x04;
            fs::write(&file, bytes).expect("damaged");
            let ran = home.run(&[&named[..], &["index", "verify"]].concat()).expect(3);
            let name = file.file_name().expect("a name").to_str().expect("UTF-8");
            assert!(ran.stdout.contains("damaged") && ran.stdout.contains(name), "{ran:#?}");
            let ran = ran.says(&["the index is damaged", "magray index rebuild"]);
            assert!(!ran.stderr.contains("panicked"), "{ran:#?}");
            fs::write(&file, whole).expect("as it was");
        }
        let file = folder.join("manifest.json");
        fs::write(&file, "{}").expect("damaged");
        home.run(&[&named[..], &["index", "rebuild"]].concat()).expect(0);
        home.run(&[&named[..], &["index", "verify"]].concat()).expect(0);
        assert_eq!(
            home.search(&[&named[..], &["entry 77 says 5929", "-k", "1"]].concat()),
            ["entry 77 says 5929"]
        );
    }
}

#[test]
fn a_path_named_like_a_command_is_still_a_path() {
    let home = Home::new();
    home.file("verify", "A file named verify holds the words of the tide.");
    home.file("stats/a.txt", "A folder named stats holds a note about lanterns.");
    let indexed = home.run(&["--json", "index", "--", "verify"]).expect(0);
    assert!(indexed.stdout.contains("\"files_indexed\":1"), "{indexed:?}");
    let indexed = home.json(&["index", "./stats", "verify"]);
    assert_eq!((&indexed["files_indexed"], &indexed["files_unchanged"]), (&1.into(), &1.into()));
    home.run(&["index"]).expect(2);
    home.run(&["index", "verify", "stats"]).expect(2);
    let help = home.run(&["index", "--help"]).expect(0).stdout;
    for part in ["./verify", "rebuild", "compact", "stats", "<PATH>"] {
        assert!(help.contains(part), "no {part} in {help}");
    }
}

#[test]
fn processes_share_an_index_and_each_reads_what_was_written() {
    let home = Home::new();
    let config =
        home.file("eager.toml", "[memory.sync]\nseal_after = 20\nbatch_size = 20\nmerge_factor = 2\n");
    let config = config.to_str().expect("UTF-8").to_owned();
    home.run(&["--config", &config, "add", "the first of all"]).expect(0);
    std::thread::scope(|scope| {
        for writer in 0..2u32 {
            let (home, config) = (&home, &config);
            scope.spawn(move || {
                for round in 0..6u32 {
                    let first = 10_000 * (writer + 1) + 100 * round;
                    let add = ["--config", config, "add", "--lines", "-", "-q"];
                    home.run_with_stdin(&add, &lines(first..first + 30)).expect(0);
                    // Whoever seals meanwhile, what is acknowledged is found.
                    let last = first + 29;
                    let text = format!("entry {last} says {}", last * last);
                    assert_eq!(home.search(&["--config", config, &text, "-k", "1"]), [text]);
                }
            });
        }
    });
    home.run(&["--config", &config, "index", "compact"]).expect(0);
    let verdict = home.json(&["index", "verify"]);
    assert_eq!((&verdict["ok"], &insights(&verdict)["rows"]), (&true.into(), &361.into()), "{verdict}");
}

#[test]
fn a_damaged_note_of_what_was_checked_does_no_harm() {
    let home = Home::new();
    home.run_with_stdin(&["add", "--lines", "-", "-q"], &lines(0..80)).expect(0);
    let note = segments(&home, "flat")[0].join("magray.verified");
    for bytes in [&b"{"[..], b"", b"\xff\xff"] {
        fs::write(&note, bytes).expect("written");
        let ran = home.run(&["search", "entry 77 says 5929", "-k", "1"]).expect(0);
        assert!(ran.stdout.contains("entry 77") && !ran.stderr.contains("damaged"), "{ran:#?}");
    }
    fs::remove_file(&note).expect("removed");
    assert_eq!(home.search(&["entry 77 says 5929", "-k", "1"]), ["entry 77 says 5929"]);
}
