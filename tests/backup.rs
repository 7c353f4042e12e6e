//! Everything to a file and back, while others write, and while the machine dies.
use crate::support::{CHAOS, Home, Ran};
use serde_json::Value;
use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

fn home_with(texts: &[String]) -> Home {
    let home = Home::new();
    home.run_with_stdin(&["add", "--lines", "-", "-q"], texts.join("\n").as_bytes()).expect(0);
    home
}

fn texts(what: &str, count: usize) -> Vec<String> {
    (0..count).map(|n| format!("{what} number {n} says something of its own")).collect()
}

fn stored(home: &Home) -> BTreeSet<String> {
    let ran = home.run(&["list", "--json", "-n", "1000000"]);
    let text =
        |line| serde_json::from_str::<Value>(line).expect("JSON")["text"].as_str().expect("text").to_owned();
    ran.stdout.lines().map(text).collect()
}

fn set(texts: &[String]) -> BTreeSet<String> {
    texts.iter().cloned().collect()
}

/// Files of a folder whose names begin so.
fn files(folder: &Path, prefix: &str) -> Vec<PathBuf> {
    let entries = folder.read_dir().expect("the folder").map(|entry| entry.expect("an entry"));
    let named = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    named.map(|entry| entry.path()).collect()
}

#[test]
fn a_backup_brings_everything_back() {
    let old = texts("old", 300);
    let home = home_with(&old);
    let report = home.json(&["backup", "saved.db"]);
    assert_eq!((&report["records"], &report["layers"][1]["vectors"]), (&300.into(), &300.into()), "{report}");
    home.run(&["backup", "saved.db"]).expect(2).says(&["saved.db", "--force"]);
    home.run(&["backup", "data/magray.db", "--force"]).expect(2).says(&["its own backup"]);
    home.run(&["backup", "saved.db", "--force"]).expect(0);
    home.run(&["backup", "."]).expect(0);
    assert_eq!(files(home.path(), "magray-").len(), 1);

    home.run(&["add", "said after the backup"]).expect(0);
    home.run(&["forget", "--yes", "--kind", "note"]).expect(0);
    home.run(&["add", "said instead"]).expect(0);
    home.run(&["restore", "saved.db"]).expect(2).says(&["--force", "keeps it"]);
    assert_eq!(home.json(&["restore", "saved.db", "--dry-run"])["restored"], false);
    assert_eq!(stored(&home), set(&["said instead".to_owned()]));

    let restored = home.json(&["restore", "saved.db", "--force"]);
    assert_eq!((&restored["records"], &restored["restored"]), (&300.into(), &true.into()), "{restored}");
    assert_eq!(stored(&home), set(&old));
    // What was derived from the former database does not answer for this one.
    let found = home.search(&["said instead", "-k", "300"]);
    assert_eq!((found.len(), found.contains(&"said instead".to_owned())), (300, false));
    // The former one is whole.
    let other = Home::new();
    fs::create_dir(other.data()).expect("its folder");
    fs::rename(restored["kept"].as_str().expect("a path"), other.data().join("magray.db")).expect("moved");
    assert_eq!(stored(&other), set(&["said instead".to_owned()]));
}

#[test]
fn a_backup_moves_to_another_folder() {
    let home = home_with(&texts("old", 20));
    home.run(&["backup", "saved.db"]).expect(0);
    let saved = home.path().join("saved.db");
    let other = Home::new();
    other.run(&["restore", saved.to_str().expect("UTF-8")]).expect(0);
    assert_eq!(stored(&other), stored(&home));
    assert_eq!(other.search(&["old number 7", "-k", "1"]), home.search(&["old number 7", "-k", "1"]));
}

#[test]
fn what_is_no_backup_replaces_nothing() {
    let home = home_with(&texts("old", 20));
    home.run(&["backup", "saved.db"]).expect(0);
    let whole = fs::read(home.path().join("saved.db")).expect("its bytes");
    home.file("cut.db", &whole[..whole.len() / 2]);
    let mut changed = whole.clone();
    changed[whole.len() / 2] ^= 1;
    home.file("changed.db", changed);
    home.file("letter.db", "Dear diary");
    fs::copy(home.data().join("magray.db"), home.path().join("copy.db")).expect("a copy");
    for file in ["cut.db", "changed.db", "letter.db", "copy.db", "missing.db"] {
        home.run(&["restore", file, "--force"]).expect(3).says(&[file, "is no whole backup"]);
        home.run(&["restore", file, "--dry-run"]).expect(3).says(&[file]);
    }
    assert_eq!(stored(&home).len(), 20);
    assert_eq!(files(&home.data(), "magray.db.re").len(), 0);
    Home::new().run(&["backup", "new.db"]).expect(1).says(&["nothing is stored"]);
}

#[test]
fn a_folder_that_is_in_use_is_not_restored_into() {
    let home = home_with(&texts("old", 20));
    home.run(&["backup", "saved.db"]).expect(0);
    let mut child = home
        .command(&["add", "--lines", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("its input");
    // Once a batch is answered it has the database open, and waits for more.
    stdin.write_all(texts("new", 1000).join("\n").as_bytes()).expect("written");
    stdin.write_all(b"\n").expect("written");
    let mut answers = BufReader::new(child.stdout.take().expect("its output")).lines();
    answers.next().expect("an answer").expect("a line");
    home.run(&["restore", "saved.db", "--force"]).expect(3).says(&["magray.db", "open in another process"]);
    drop(stdin);
    answers.for_each(drop);
    assert!(child.wait().expect("it ends").success());
    home.run(&["restore", "saved.db", "--force"]).expect(0);
    assert_eq!(stored(&home).len(), 20);
}

#[test]
fn a_backup_is_made_while_others_write() {
    let home = home_with(&texts("old", 500));
    let mut child = home
        .command(&["add", "--lines", "-", "--json"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("it runs");
    let mut stdin = child.stdin.take().expect("its input");
    let feeder = std::thread::spawn(move || {
        stdin.write_all(texts("new", 12_000).join("\n").as_bytes()).expect("all is read");
    });
    let mut answers = BufReader::new(child.stdout.take().expect("its output")).lines();
    let mut before = 0;
    for round in 0..3 {
        for _ in 0..2000 {
            let answer = answers.next().expect("an answer").expect("a line");
            before += usize::from(answer.contains("stored"));
        }
        let file = format!("{round}.db");
        let report = home.json(&["backup", &file]);
        // What was acknowledged before it began is in it.
        assert!(report["records"].as_u64().expect("a count") >= before as u64 + 500, "{report}");
        assert_eq!(report["layers"][1]["records"], report["layers"][1]["vectors"], "{report}");
        home.run(&["restore", &file, "--dry-run"]).expect(0);
    }
    answers.for_each(drop);
    feeder.join().expect("the feeder ends");
    assert!(child.wait().expect("it ends").success());
    assert_eq!(home.json(&["stats"])["layers"][1]["records"], 12_500);
}

/// A number from 0 to `below`, the same in every run for one `seed`.
fn random(seed: u64, below: u64) -> u64 {
    let mut x = seed.wrapping_add(11).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^= x >> 29;
    (x.wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 20) % below.max(1)
}

/// Kills the command `after` its start, or when `seen` is true.
fn kill(home: &Home, args: &[&str], after: Duration, seen: impl Fn() -> bool) {
    let mut child = home.command(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it runs");
    let start = Instant::now();
    while child.try_wait().expect("its state").is_none() {
        if start.elapsed() > after || seen() {
            child.kill().expect("killed");
            break;
        }
        std::thread::yield_now();
    }
    child.wait().expect("it ends");
}

#[test]
fn whenever_a_restore_is_killed_the_old_or_the_new_database_is_whole() {
    let (old, new) = (texts("old", 400), texts("new", 700));
    let home = home_with(&new);
    home.run(&["backup", "new.db"]).expect(0);
    home.run(&["forget", "--yes", "--kind", "note"]).expect(0);
    home.run_with_stdin(&["add", "--lines", "-", "-q"], old.join("\n").as_bytes()).expect(0);
    home.run(&["backup", "old.db"]).expect(0);
    let start = Instant::now();
    home.run(&["restore", "old.db", "--force"]).expect(0);
    let whole = start.elapsed();
    let (old, new) = (set(&old), set(&new));
    let (mut is_new, mut switched) = (false, 0);
    for round in 0..24u64 {
        let (file, other) = if is_new { ("old.db", &old) } else { ("new.db", &new) };
        let kept = files(&home.data(), "magray.db.replaced").len();
        let data = home.data();
        // At some time, or at a step that is over in a moment.
        let seen: Box<dyn Fn() -> bool> = match round % 4 {
            0 => Box::new(|| data.join("magray.db.restoring").exists()),
            1 => Box::new(|| files(&data, "magray.db.replaced").len() > kept),
            2 => Box::new(|| !data.join("index").exists()),
            _ => Box::new(|| false),
        };
        let after = whole.mul_f64(random(round, 1200) as f64 / 1000.0);
        let after = if round % 4 == 3 { after } else { Duration::MAX };
        kill(&home, &["restore", file, "--force"], after, &*seen);
        let there = stored(&home);
        if there == *other {
            (is_new, switched) = (!is_new, switched + 1);
        } else {
            let this = if is_new { &new } else { &old };
            assert!(there == *this, "round {round}: {} records", there.len());
        }
        // Answers come from what is there, whatever index is left.
        let word = if is_new { "new" } else { "old" };
        let query = format!("{word} number 3 says something of its own");
        assert_eq!(home.search(&[&query, "-k", "1"]), std::slice::from_ref(&query), "round {round}");
    }
    assert!(switched > 0, "it was always killed too early to show anything");
    home.run(&["restore", "old.db", "--force"]).expect(0);
    assert_eq!(stored(&home), old);
}

#[test]
fn a_killed_backup_is_none_and_is_cleared_away() {
    let home = home_with(&texts("old", 3000));
    let start = Instant::now();
    home.run(&["backup", "first.db"]).expect(0);
    let whole = start.elapsed();
    let folder = home.path().join("saved");
    fs::create_dir(&folder).expect("a folder");
    for round in 0..8 {
        let after = whole.mul_f64(random(round, 1000) as f64 / 1000.0);
        let begun = || round % 2 == 0 && !files(&folder, ".magray-backup-").is_empty();
        kill(&home, &["backup", "saved"], if round % 2 == 0 { Duration::MAX } else { after }, begun);
    }
    // What has a name is whole.
    for file in files(&folder, "magray-") {
        home.run(&["restore", file.to_str().expect("UTF-8"), "--dry-run"]).expect(0);
    }
    home.run(&["backup", "saved/last.db"]).expect(0);
    assert_eq!(files(&folder, ".magray-backup-").len(), 0);
    assert_eq!(home.json(&["stats"])["layers"][1]["records"], 3000);
}

/// Everything of each record but when it was last read.
fn exported(home: &Home, args: &[&str]) -> Vec<String> {
    let ran = home.run(&[&["export"], args].concat()).expect(0);
    ran.stdout.lines().filter(|line| !line.starts_with("{\"magray\"")).map(str::to_owned).collect()
}

#[test]
fn an_export_is_taken_in_elsewhere_with_every_field() {
    let home = home_with(&texts("plain", 30));
    home.file("files/tide.md", "# Tides\n\nThe tide follows the moon.\n\n## Hours\n\nTwice a day, about.\n");
    home.run(&["index", "files", "--project", "sea", "--tag", "water"]).expect(0);
    home.run(&[
        "add",
        "ein Wort: Füße \u{1f980}",
        "--layer",
        "interact",
        "--kind",
        "fact",
        "--tag",
        "x",
        "--session",
        "s",
    ])
    .expect(0);
    let report = home.json(&["export", "--vectors", "--out", "all.jsonl"]);
    let records = report["records"].as_u64().expect("a count");
    assert_eq!((&report["vectors"], records > 31), (&records.into(), true), "{report}");

    let other = Home::new();
    let file = home.path().join("all.jsonl");
    let file = file.to_str().expect("UTF-8");
    let taken = other.json(&["import", file]);
    let is = |taken: &Value, counts: [u64; 4]| {
        let found =
            ["new", "updated", "unchanged", "embedded"].map(|name| taken[name].as_u64().expect("a count"));
        assert_eq!(
            (found, &taken["whole"], &taken["blake3"]),
            (counts, &true.into(), &report["blake3"]),
            "{taken}"
        );
        assert_eq!(taken["verified"], records);
    };
    is(&taken, [records, 0, 0, 0]);
    assert_eq!(exported(&other, &["--vectors"]), exported(&home, &["--vectors"]));
    is(&other.json(&["import", file]), [0, 0, records, 0]);
    for query in ["when is high water", "plain number 3", "Wort"] {
        assert_eq!(other.search(&[query]), home.search(&[query]));
    }
    // The same files are known there.
    let again = other.json(&[
        "index",
        home.path().join("files").to_str().expect("UTF-8"),
        "--project",
        "sea",
        "--tag",
        "water",
    ]);
    assert_eq!((&again["chunks_added"], &again["embedded"]), (&0.into(), &0.into()), "{again}");

    // Through a pipe, without vectors, and of some records only.
    let part = home.run(&["export", "--project", "sea", "--tag", "water"]).expect(0);
    let piped = Home::new();
    let taken = piped.run_with_stdin(&["import", "-", "--json"], part.stdout.as_bytes()).expect(0);
    let taken: Value = serde_json::from_str(&taken.stdout).expect("JSON");
    assert!(taken["new"].as_u64() > Some(0) && taken["new"] == taken["embedded"], "{taken}");
    assert_eq!(exported(&piped, &["--vectors"]), exported(&home, &["--vectors", "--project", "sea"]));
    home.run(&["export", "--project", "nowhere"]).expect(1);
}

#[test]
fn an_array_and_its_records_go_together() {
    let home = home_with(&texts("plain", 30));
    for dtype in ["f32", "f16"] {
        let report = home.json(&["export", "--format", "npy", "--dtype", dtype, "--out", "v.npy"]);
        assert_eq!((&report["records"], &report["vectors"]), (&30.into(), &30.into()), "{report}");
        let bytes = fs::metadata(home.path().join("v.npy")).expect("the array").len();
        assert_eq!(bytes, 128 + 30 * 256 * if dtype == "f32" { 4 } else { 2 });
        let other = Home::new();
        let taken = other.json(&["import", home.path().join("v.npy").to_str().expect("UTF-8")]);
        assert_eq!(
            (&taken["new"], &taken["vectors"], &taken["embedded"]),
            (&30.into(), &30.into(), &0.into())
        );
        assert_eq!(exported(&other, &["--vectors"]), exported(&home, &["--vectors"]));
    }
    let array = fs::read(home.path().join("v.npy")).expect("the array");
    home.file("cut.npy", &array[..array.len() - 100]);
    fs::copy(home.path().join("v.jsonl"), home.path().join("cut.jsonl")).expect("the records");
    home.run(&["import", "cut.npy"]).expect(3).says(&["cut.npy"]);
    home.run(&["export", "--format", "npy"]).expect(2).says(&["--out"]);
    home.run(&["import", "nowhere.npy"]).expect(3).says(&["nowhere.jsonl"]);
}

#[test]
fn vectors_of_another_model_are_left() {
    let home = home_with(&texts("plain", 10));
    home.run(&["export", "--vectors", "--out", "all.jsonl"]).expect(0);
    let other = Home::new();
    other.install(CHAOS);
    let file = home.path().join("all.jsonl");
    let args = ["--backend", "chaos", "import", file.to_str().expect("UTF-8"), "--json"];
    let ran = other.run(&args).expect(0).says(&["another model", "anew"]);
    let taken: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!((&taken["vectors"], &taken["embedded"]), (&0.into(), &10.into()), "{taken}");
}

#[test]
fn bad_lines_are_named_and_what_came_before_is_kept() {
    let home = Home::new();
    let mut lines: Vec<String> =
        texts("good", 1500).iter().map(|text| format!("{{\"text\":\"{text}\"}}")).collect();
    lines[1200] = "{\"text\":\"bad\",\"layr\":\"assets\"}".to_owned();
    home.file("lines.jsonl", lines.join("\n"));
    home.run(&["import", "lines.jsonl"]).expect(2).says(&["line 1201", "layr", "1200 records", "--skip-bad"]);
    assert_eq!(stored(&home).len(), 1200);
    let taken = home.json(&["import", "lines.jsonl", "--skip-bad"]);
    assert_eq!(
        (&taken["new"], &taken["unchanged"], &taken["bad"]),
        (&299.into(), &1200.into(), &1.into()),
        "{taken}"
    );
    assert_eq!((&taken["bad_lines"][0]["line"], &taken["whole"]), (&1201.into(), &Value::Null));
    assert_eq!(home.json(&["stats"])["unembedded"], 0);
    for (line, reason) in [
        ("[1]", "line 1"),
        ("{\"text\":\"a\"", "line 1"),
        ("{\"text\":\"\"}", "needs a text"),
        (
            "{\"magray\":\"export\",\"version\":9,\"created_ms\":0,\"records\":0,\"space\":null}",
            "newer magray",
        ),
        ("{\"magray\":\"letter\"}", "letter"),
    ] {
        home.run_with_stdin(&["import", "-"], line.as_bytes()).expect(2).says(&[reason]);
    }
    home.run_with_stdin(&["import", "-"], b"{\"text\":\"\xff\"}").expect(2).says(&["line 1"]);
    home.run_with_stdin(&["import", "-"], b"").expect(1);
}

#[test]
fn a_cut_or_changed_export_is_told() {
    let home = home_with(&texts("plain", 10));
    let whole = home.run(&["export"]).expect(0).stdout;
    let lines: Vec<&str> = whole.lines().collect();
    let cut = lines[..6].join("\n");
    let changed = whole.replace("plain number 3 ", "other number 3 ");
    for (text, count) in [(cut, 5), (changed, 10)] {
        let other = Home::new();
        other.run_with_stdin(&["import", "-"], text.as_bytes()).expect(3).says(&["cut short or was changed"]);
        assert_eq!(stored(&other).len(), count);
        other.run_with_stdin(&["import", "-"], whole.as_bytes()).expect(0);
        assert_eq!(stored(&other), stored(&home));
    }
    let other = Home::new();
    other.run_with_stdin(&["import", "-"], lines[1..11].join("\n").as_bytes()).expect(0);
    assert_eq!(stored(&other).len(), 10);
}

#[test]
fn a_killed_import_goes_on_where_it_was() {
    let home = home_with(&texts("plain", 6000));
    home.run(&["export", "--vectors", "--out", "all.jsonl"]).expect(0);
    let file = home.path().join("all.jsonl");
    let file = file.to_str().expect("UTF-8");
    let other = Home::new();
    let log = other.data().join("magray.db-wal");
    for round in 0..6 {
        let limit = random(round, 6_000_000);
        kill(&other, &["import", file, "-q"], Duration::MAX, || {
            fs::metadata(&log).is_ok_and(|log| log.len() > limit)
        });
    }
    let taken = other.json(&["import", file]);
    let count = |name: &str| taken[name].as_u64().expect("a count");
    assert_eq!((count("new") + count("unchanged"), count("updated")), (6000, 0), "{taken}");
    assert_eq!(exported(&other, &["--vectors"]), exported(&home, &["--vectors"]));
    let stats = Ran::of(&mut other.command(&["stats", "--json"])).expect(0);
    assert!(stats.stdout.contains("\"unembedded\":0"), "{stats:?}");
}
