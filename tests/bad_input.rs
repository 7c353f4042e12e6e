//! Whatever a user gives it: a clear error, the right exit code, and nothing lost.
use crate::support::{Home, Ran};

#[test]
fn empty_texts_and_queries_are_refused() {
    let home = Home::new();
    for args in [&["add", ""][..], &["add", " \n\t"], &["search", ""], &["search", "  "]] {
        home.run(args).expect(2).says(&["empty"]);
    }
    home.run_with_stdin(&["add", "-"], b"").expect(2).says(&["empty"]);
    home.run_with_stdin(&["add", "--lines", "-"], b"\n\n").expect(2).says(&["no text"]);
}

#[test]
fn a_line_of_a_hundred_megabytes_is_refused_without_reading_it_all() {
    let home = Home::new();
    home.run(&["add", "kept"]).expect(0);
    let line = vec![b'x'; 100 << 20];
    home.run_with_stdin(&["add", "-"], &line).expect(2).says(&["8388608", "max_file_bytes"]);
    home.run_with_stdin(&["add", "--lines", "-"], &line).expect(2).says(&["8388608"]);
    let file = home.file("big/line.txt", &line);
    home.run(&["-v", "index", file.to_str().expect("UTF-8")]).expect(0).says(&["larger than the limit"]);
    assert_eq!(home.search(&["kept"]), ["kept"]);
}

#[test]
fn invalid_utf8_is_named_by_place() {
    let home = Home::new();
    home.run_with_stdin(&["add", "-"], b"good\xff\xfebad").expect(2).says(&["byte 4", "UTF-8"]);
    home.run_with_stdin(&["add", "--lines", "-"], b"good\nb\xc3(d\n").expect(2).says(&["line 2", "UTF-8"]);
}

#[test]
fn missing_files_are_named() {
    let home = Home::new();
    home.run(&["add", "--file", "no-such.txt"]).expect(3).says(&["no-such.txt"]);
    home.file("here/note.txt", "something to find");
    home.run(&["index", "here", "not-here"]).expect(3).says(&["not-here", "no such file"]);
    assert_eq!(home.search(&["something"]), ["something to find"]);
    home.run(&["--config", "no-such.toml", "search", "x"]).expect(2).says(&["no-such.toml"]);
}

#[test]
fn ids_that_name_nothing_or_too_much_are_said() {
    let home = Home::new();
    home.run(&["add", "one"]).expect(0);
    home.run(&["get", "ZZZZZZZZ"]).expect(1).says(&["ZZZZZZZZ"]);
    home.run(&["get", "ab"]).expect(2).says(&["4"]);
}

#[test]
fn numbers_out_of_range_are_wrong_usage() {
    let home = Home::new();
    for args in
        [&["search", "x", "-k", "0"][..], &["search", "x", "--min-score", "high"], &["list", "-n", "many"]]
    {
        home.run(args).expect(2);
    }
}

#[test]
fn unknown_backends_name_those_that_there_are() {
    let home = Home::new();
    home.run(&["add", "one"]).expect(0);
    for (flag, known) in [("--backend", "cpu"), ("--index", "flat"), ("--cache", "lru")] {
        home.run(&[flag, "none-such", "search", "one"]).expect(2).says(&["'none-such'", known]);
    }
}

#[test]
fn a_database_of_a_newer_version_is_left_alone() {
    let home = Home::new();
    home.run(&["add", "old"]).expect(0);
    let path = home.data().join("magray.db");
    let db = rusqlite::Connection::open(&path).expect("a database");
    db.pragma_update(None, "user_version", 99).expect("a newer version");
    drop(db);
    let before = std::fs::read(&path).expect("its bytes");
    for args in [&["add", "new"][..], &["search", "old"], &["stats"]] {
        home.run(args).expect(3).says(&["version 99", "newer magray"]);
    }
    assert_eq!(std::fs::read(&path).expect("its bytes"), before);
}

#[test]
fn a_file_that_is_no_database_is_left_alone() {
    let home = Home::new();
    let path = home.file("data/magray.db", "this is no database, but a letter to a friend".repeat(50));
    let before = std::fs::read(&path).expect("its bytes");
    home.run(&["search", "friend"]).expect(3).says(&["magray.db", "not a magray database"]);
    home.run(&["add", "friend"]).expect(3).says(&["magray.db"]);
    assert_eq!(std::fs::read(&path).expect("its bytes"), before);
}

/// Root may write anywhere, so these look through the eyes of another user.
#[cfg(target_os = "linux")]
pub(crate) mod permissions {
    use super::*;
    use std::{fs, os::unix::fs::PermissionsExt as _, process::Command};

    /// The same command as somebody who may only read.
    pub(crate) fn as_nobody(command: &Command) -> Command {
        // SAFETY: `geteuid` has no preconditions.
        let root = unsafe { libc::geteuid() } == 0;
        let mut other = Command::new(if root { "setpriv" } else { "env" });
        if root {
            other.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
        }
        other.arg(command.get_program()).args(command.get_args());
        other.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        other.current_dir("/");
        other
    }

    fn set_mode(home: &Home, folder: u32, file: u32) {
        fs::set_permissions(home.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
        for entry in home.data().read_dir().expect("the data folder") {
            let path = entry.expect("an entry").path();
            if path.is_file() {
                fs::set_permissions(path, fs::Permissions::from_mode(file)).expect("permissions");
            }
        }
        fs::set_permissions(home.data(), fs::Permissions::from_mode(folder)).expect("permissions");
    }

    #[test]
    fn a_read_only_folder_can_be_searched_and_not_written() {
        let home = Home::new();
        home.run(&["add", "still here"]).expect(0);
        set_mode(&home, 0o555, 0o444);
        let found = Ran::of(&mut as_nobody(&home.command(&["search", "still here", "--json"]))).expect(0);
        assert!(found.stdout.contains("still here"));
        Ran::of(&mut as_nobody(&home.command(&["add", "more"])))
            .expect(3)
            .says(&["cannot be written", "writable"]);
        set_mode(&home, 0o755, 0o644);
        assert_eq!(home.search(&["here"]), ["still here"]);
    }

    #[test]
    fn files_that_may_not_be_read_are_reported_and_the_others_are_indexed() {
        let home = Home::new();
        let open = home.file("files/open.txt", "an open secret");
        let closed = home.file("files/closed.txt", "a closed secret");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).expect("permissions");
        for folder in [home.path(), open.parent().expect("files")] {
            fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("permissions");
        }
        let files = open.parent().expect("files").to_str().expect("UTF-8");
        let mut command = as_nobody(&home.command(&["index", files]));
        Ran::of(&mut command).expect(3).says(&["closed.txt", "ermission"]);
        let found = Ran::of(&mut as_nobody(&home.command(&["search", "secret", "--json"]))).expect(0);
        assert!(found.stdout.contains("an open secret") && !found.stdout.contains("a closed secret"));
    }

    #[test]
    fn a_full_disk_loses_nothing_that_was_stored() {
        let home = Home::new();
        home.run(&["add", "before the disk was full"]).expect(0);
        // A limit on file size is the full disk that a test can have: SQLite sees the same failed write.
        let text = "x ".repeat(1 << 20);
        home.file("long.txt", &text);
        let command = home.command(&["add", "--file", "long.txt"]);
        let mut limited = Command::new("sh");
        limited.args(["-c", r#"trap '' XFSZ; ulimit -f 300; exec "$0" "$@""#]);
        limited.arg(command.get_program()).args(command.get_args()).current_dir(home.path());
        limited.env_clear().envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
        limited.env("PATH", "/usr/bin:/bin");
        Ran::of(&mut limited).expect(3).says(&["magray.db"]);
        assert_eq!(home.search(&["disk", "-k", "5"]), ["before the disk was full"]);
        home.run(&["add", "after"]).expect(0);
    }
}
