//! A disk that is full, and one that may not be written.
#![cfg(target_os = "linux")]
use crate::support::{Home, Ran};
use serde_json::Value;
use std::{collections::BTreeSet, fs, process::Command};

/// Runs a script of `sh` in the home, in which `$MAGRAY` is the program. Where a name space of one's own
/// may be had, the data folder is a file system of `mib` MiB for as long as the script runs, and the test
/// sees what a full disk is; else no file may grow beyond that, which is the nearest to it.
fn on_a_small_disk(home: &Home, mib: u32, script: &str) -> Ran {
    let own = ["--user", "--map-root-user", "--mount"];
    let mounts = Command::new("unshare")
        .args(own)
        .args(["sh", "-c", "mount -t tmpfs -o size=1m none /mnt"])
        .output()
        .is_ok_and(|ran| ran.status.success());
    fs::create_dir_all(home.data()).expect("the data folder");
    let magray = home.command(&[]);
    let mut command = if mounts {
        let mut command = Command::new("unshare");
        command.args(own).args(["sh", "-ec"]);
        // A folder that is no file system yet is seen through the old path.
        command.arg(format!("mount -t tmpfs -o size={mib}m none data; {script}"));
        command
    } else {
        #[expect(clippy::print_stderr, reason = "which of the two ways ran")]
        {
            eprintln!("no name space to mount a small file system in: file sizes are limited instead");
        }
        let mut command = Command::new("sh");
        command.args(["-ec", &format!("trap '' XFSZ; ulimit -f {}; {script}", mib * 2048 / 4)]);
        command
    };
    command.current_dir(home.path()).env_clear();
    command.envs(magray.get_envs().filter_map(|(name, value)| Some((name, value?))));
    command.env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin").env("MAGRAY", magray.get_program());
    Ran::of(&mut command)
}

fn lines(count: usize) -> String {
    let line = |n: usize| format!("line {n} says {}\n", format!("{} ", n * 7919 % 10_007).repeat(60));
    (0..count).map(line).collect()
}

fn json(text: &str) -> impl Iterator<Item = Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
}

fn ids(text: &str) -> BTreeSet<String> {
    json(text).map(|record| record["id"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn a_disk_that_fills_up_loses_nothing_that_was_acknowledged() {
    let home = Home::new();
    home.file("lines.txt", lines(20_000));
    let script = "
        export MAGRAY_STORE__MIN_FREE_BYTES=0
        code=0; $MAGRAY add --lines --json --file lines.txt > added.jsonl 2> added.err || code=$?
        echo $code > code
        $MAGRAY list --json -n 1000000 > there.jsonl
        $MAGRAY search 'line 7 says something' --json > found.json
        $MAGRAY export --out ../kept.jsonl 2> export.err || true
        $MAGRAY export > kept.jsonl
        $MAGRAY stats --json > stats.json";
    let script = script.replace("../kept", "./also");
    on_a_small_disk(&home, 12, &script).expect(0);
    let read = |name: &str| fs::read_to_string(home.path().join(name)).expect(name);
    assert_eq!(read("code").trim(), "3", "{}", read("added.err"));
    assert!(read("added.err").contains("magray.db"), "{}", read("added.err"));
    let (added, there) = (ids(&read("added.jsonl")), ids(&read("there.jsonl")));
    assert!(!added.is_empty() && added.len() < 20_000, "{}", added.len());
    assert!(added.is_subset(&there), "lost {}", added.difference(&there).count());
    let found: Value = serde_json::from_str(&read("found.json")).expect("JSON");
    assert!(!found["hits"].as_array().expect("hits").is_empty());
    let stats: Value = serde_json::from_str(&read("stats.json")).expect("JSON");
    assert_eq!(stats["layers"][1]["records"], stats["layers"][1]["vectors"]);
    // All of it can be taken elsewhere.
    let other = Home::new();
    let kept = home.path().join("kept.jsonl");
    let taken = other.json(&["import", kept.to_str().expect("UTF-8")]);
    assert_eq!(taken["new"].as_u64(), Some(there.len() as u64));
}

#[test]
fn a_backup_or_an_import_that_finds_no_room_leaves_nothing_half_done() {
    let home = Home::new();
    home.file("lines.txt", lines(6000));
    home.run(&["add", "--lines", "--file", "lines.txt", "-q"]).expect(0);
    home.run(&["backup", "saved.db"]).expect(0);
    home.run(&["export", "--out", "all.jsonl"]).expect(0);
    // Where the data folder is small and empty, and the rest is not.
    let script = "
        export MAGRAY_STORE__MIN_FREE_BYTES=0
        code=0; $MAGRAY restore saved.db 2> restore.err || code=$?; echo $code > restore.code
        ls -A data > left
        $MAGRAY add 'said before' -q > /dev/null
        code=0; $MAGRAY restore saved.db --force 2> forced.err || code=$?; echo $code > forced.code
        $MAGRAY search 'said before' -k 1 --json > before.json
        code=0; $MAGRAY import all.jsonl 2> import.err || code=$?; echo $code > import.code
        $MAGRAY export > kept.jsonl
        code=0; $MAGRAY backup data/own.db 2> backup.err || code=$?; echo $code > backup.code
        ls -A data > data.left";
    on_a_small_disk(&home, 4, script).expect(0);
    let read = |name: &str| fs::read_to_string(home.path().join(name)).expect(name);
    for command in ["restore", "forced", "import"] {
        let error = read(&format!("{command}.err"));
        assert_eq!(read(&format!("{command}.code")).trim(), "3", "{error}");
        assert!(!error.contains("internal"), "{error}");
    }
    assert!(!read("left").contains("restoring"), "{}", read("left"));
    assert!(read("before.json").contains("said before"));
    let kept = read("kept.jsonl");
    assert!(
        kept.contains("said before") && kept.lines().last().expect("a line").contains("\"end\""),
        "{kept}"
    );
    assert!(!read("data.left").contains(".magray-backup-"), "{}", read("data.left"));
}

#[test]
fn a_write_that_would_leave_too_little_is_refused_before_it_begins() {
    let home = Home::new();
    home.run(&["add", "said before"]).expect(0);
    home.file("files/a.txt", "a text");
    home.file("a.jsonl", "{\"text\":\"a line\"}");
    home.run(&["backup", "saved.db"]).expect(0);
    let refused = |args: &[&str]| {
        let mut command = home.command(args);
        command.env("MAGRAY_STORE__MIN_FREE_BYTES", (1u64 << 60).to_string());
        Ran::of(&mut command).expect(3).says(&["too little room", "MiB", "min_free_bytes"]);
    };
    refused(&["add", "more"]);
    refused(&["index", "files"]);
    refused(&["import", "a.jsonl"]);
    refused(&["backup", "other.db"]);
    refused(&["restore", "saved.db", "--force"]);
    refused(&["index", "rebuild"]);
    refused(&["--model", "potion-base-8M-int8", "reembed"]);
    assert_eq!(json(&home.run(&["list", "--json"]).expect(0).stdout).count(), 1);
    assert!(!home.path().join("other.db").exists());
}

#[test]
fn a_folder_that_may_not_be_written_is_read_by_every_command_that_reads() {
    let home = Home::new();
    home.file("lines.txt", lines(30));
    home.run(&["add", "--lines", "--file", "lines.txt", "-q"]).expect(0);
    home.run(&["backup", "saved.db"]).expect(0);
    let out = home.path().join("out");
    fs::create_dir(&out).expect("a folder");
    let read_only = ReadOnly::new(&home);
    let id = json(&read_only.run(&["list", "--json", "-n", "1"]).expect(0).stdout).next().expect("a record");
    let id = id["id"].as_str().expect("an id").to_owned();
    read_only.run(&["search", "line 7"]).expect(0);
    read_only.run(&["get", &id]).expect(0);
    read_only.run(&["stats"]).expect(0);
    let exported = read_only.run(&["export", "--vectors"]).expect(0).stdout;
    assert_eq!(exported.lines().count(), 32);
    let file = |name: &str| out.join(name).to_str().expect("UTF-8").to_owned();
    read_only.run(&["export", "--out", &file("all.jsonl")]).expect(0);
    read_only.run(&["backup", &file("copy.db")]).expect(0);
    read_only.run(&["restore", &file("copy.db"), "--dry-run"]).expect(0);
    let saved = home.path().join("saved.db");
    for args in [
        &["add", "more"][..],
        &["forget", "--yes", &id],
        &["import", &file("all.jsonl")],
        &["index", &file("")],
        &["restore", saved.to_str().expect("UTF-8"), "--force"],
    ] {
        let ran = read_only.run(args).expect(3).says(&["magray.db", "writable"]);
        assert_eq!(ran.stderr.matches("error:").count(), 1, "{args:?}: {ran:?}");
    }
    drop(read_only);
    assert_eq!(json(&home.run(&["list", "--json", "-n", "99"]).expect(0).stdout).count(), 30);
}

/// A home whose data folder may only be read. Root may write anywhere, so it runs as somebody else.
struct ReadOnly<'a>(&'a Home);

impl<'a> ReadOnly<'a> {
    fn new(home: &'a Home) -> Self {
        set_modes(home, 0o555, 0o444);
        Self(home)
    }

    fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&mut crate::bad_input::permissions::as_nobody(&self.0.command(args)))
    }
}

impl Drop for ReadOnly<'_> {
    fn drop(&mut self) {
        set_modes(self.0, 0o755, 0o644);
    }
}

fn set_modes(home: &Home, folder: u32, file: u32) {
    use std::os::unix::fs::PermissionsExt as _;
    let set = |path: &std::path::Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
    set(home.path(), 0o755).expect("permissions");
    set(&home.path().join("out"), 0o777).expect("permissions");
    for entry in home.data().read_dir().expect("the data folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() {
            set(&path, file).expect("permissions");
        }
    }
    set(&home.path().join("saved.db"), 0o644).expect("permissions");
    set(&home.data(), folder).expect("permissions");
}
