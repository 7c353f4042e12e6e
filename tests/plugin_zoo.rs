//! Broken plugins of every kind: the host survives each with the right line.
use crate::support::{CHAOS, CRASH, Home, Ran, built};
use serde_json::Value;
use std::fs;

/// A home with one record and the plugin folder holding `bytes` as a library.
fn home_with(bytes: &[u8]) -> Home {
    let home = Home::new();
    home.file(&format!("plugins/{CHAOS}"), bytes);
    home
}

fn chaos() -> Vec<u8> {
    fs::read(built(CHAOS)).expect("the plugin is built")
}

/// `bytes` with every `from` replaced by `to`, which is as long.
fn patched(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let mut bytes = bytes.to_vec();
    let places: Vec<usize> = bytes
        .windows(from.len())
        .enumerate()
        .filter(|(_, window)| *window == from)
        .map(|(at, _)| at)
        .collect();
    assert!(!places.is_empty(), "{} is there", String::from_utf8_lossy(from));
    for at in places {
        bytes[at..at + to.len()].copy_from_slice(to);
    }
    bytes
}

/// The host works on, says what is wrong with the file, and lists it as unusable.
#[track_caller]
fn survives(home: &Home, why: &[&str]) {
    home.run(&["add", "the host survives"]).expect(0).says(why).says(&[CHAOS]);
    let ran = home.run(&["search", "host"]).expect(0).says(why);
    assert_eq!(ran.stderr.lines().filter(|line| line.contains(CHAOS)).count(), 1, "one line: {ran:#?}");
    assert!(ran.stdout.contains("the host survives"));
    let listed = home.run(&["plugin", "list"]).expect(0).stdout;
    assert!(listed.contains("not usable") && why.iter().all(|why| listed.contains(why)), "{listed}");
    home.run(&["--backend", "chaos", "search", "host"]).expect(2).says(&["'chaos'"]);
}

#[test]
fn files_that_are_no_libraries() {
    survives(&home_with(b"a text file\n"), &["no shared library"]);
    survives(&home_with(b""), &["no shared library"]);
    survives(&home_with(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0]), &["no shared library"]);
}

#[test]
fn libraries_cut_short_at_many_lengths() {
    let whole = chaos();
    for part in 1..16 {
        let home = home_with(&whole[..whole.len() * part / 16]);
        let ran = home.run(&["add", "the host survives"]).expect(0);
        assert!(
            ran.stderr.contains("cut short") || ran.stderr.contains("no shared library"),
            "{part}/16: {ran:#?}"
        );
        home.run(&["--backend", "chaos", "search", "host"]).expect(2);
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_library_that_is_no_plugin_is_passed_over() {
    let libc = ["/lib/x86_64-linux-gnu/libm.so.6", "/lib/aarch64-linux-gnu/libm.so.6", "/lib64/libm.so.6"];
    let libc = libc.iter().find_map(|path| fs::read(path).ok()).expect("the system's libm");
    let home = home_with(&libc);
    let ran = home.run(&["add", "the host survives"]).expect(0);
    assert!(!ran.stderr.contains(CHAOS), "other libraries may lie beside plugins: {ran:#?}");
    assert!(home.run(&["plugin", "list"]).expect(0).stdout.contains("no magray plugin"));
}

#[test]
fn plugins_of_another_epoch_target_or_panic_strategy() {
    let whole = chaos();
    survives(
        &home_with(&patched(&whole, b"\"abi_epoch\":1,", b"\"abi_epoch\":7,")),
        &["plugin ABI 7", "rebuild it"],
    );
    let target = magray_plugin_api::manifest::TARGET.as_bytes();
    let other = [&target[..target.len() - 3], b"xyz"].concat();
    let (from, to) = ([b"\"target\":\"", target].concat(), [&b"\"target\":\""[..], &other].concat());
    survives(&home_with(&patched(&whole, &from, &to)), &["built for", "xyz"]);
    survives(
        &home_with(&patched(&whole, b"\"panic\":\"unwind\"", b"\"panic\":\"abort\" ")),
        &["panic=\"abort\""],
    );
    survives(
        &home_with(&patched(&whole, b"{\"abi_epoch\":1,", b"{\"abi_epoch\":1;")),
        &["manifest is unreadable"],
    );
}

#[test]
fn a_plugin_without_its_symbol() {
    let home = home_with(&patched(&chaos(), b"MAGRAY_PLUGIN_ROOT_1", b"MAGRAY_PLUGIN_ROOT_X"));
    home.run(&["add", "the host survives"]).expect(0);
    home.run(&["--backend", "chaos", "search", "host", "--mode", "vector"])
        .expect(3)
        .says(&[CHAOS, "no entry point"]);
}

/// As a GPU's driver that is installed after the plugin.
#[test]
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn a_library_that_another_one_needs_may_come_later() {
    let home = home_with(&patched(&chaos(), b"libgcc_s.so.1", b"libgcc_x.so.1"));
    home.run(&["--backend", "chaos", "add", "the host survives"]).expect(3).says(&[CHAOS, "libgcc_x.so.1"]);
    let listed = home.run(&["plugin", "list"]).expect(0).stdout;
    assert!(listed.contains("libgcc_x.so.1"), "{listed}");

    let maps = fs::read_to_string("/proc/self/maps").expect("what this program has loaded");
    let real = maps.split_whitespace().find(|word| word.ends_with("/libgcc_s.so.1")).expect("libgcc_s");
    home.file("lib/libgcc_x.so.1", fs::read(real).expect("the library"));
    let mut command = home.command(&["--backend", "chaos", "add", "the host survives"]);
    Ran::of(command.env("LD_LIBRARY_PATH", home.path().join("lib"))).expect(0);
}

#[test]
fn a_library_that_ends_the_process_that_loads_it() {
    let home = Home::new();
    home.install(CRASH);
    home.run(&["add", "the host survives"]).expect(0);
    home.run(&["--cache", "crash", "search", "host", "--mode", "vector"]).expect(3).says(&[
        CRASH,
        "crashed with signal",
        "trial process",
    ]);
    assert_eq!(home.search(&["host"]), ["the host survives"]);
}

#[test]
#[cfg(unix)]
fn files_and_folders_that_anyone_may_change() {
    use std::os::unix::fs::PermissionsExt as _;
    let home = Home::new();
    let library = home.install(CHAOS);
    fs::set_permissions(&library, fs::Permissions::from_mode(0o666)).expect("permissions");
    survives(&home, &["anyone on this machine may change", "chmod o-w"]);
    fs::set_permissions(&library, fs::Permissions::from_mode(0o644)).expect("permissions");
    let folder = library.parent().expect("the plugin folder");
    fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).expect("permissions");
    survives(&home, &["anyone on this machine may change", "chmod o-w"]);
}

#[test]
fn digests_that_are_not_allowed() {
    let home = Home::new();
    home.install(CHAOS);
    let allow = |digest: &str| format!("[plugins]\nallow = [\"{digest}\"]\n");
    let wrong = home.file("wrong.toml", allow(&"0".repeat(64)));
    let wrong = wrong.to_str().expect("UTF-8");
    home.run(&["--config", wrong, "--backend", "chaos", "add", "text"]).expect(3).says(&["SHA-256", "allow"]);
    home.run(&["--config", wrong, "add", "built-in plugins need no entry"]).expect(0);

    let listed = home.run(&["plugin", "info", "chaos", "--json"]).expect(0).stdout;
    let info: serde_json::Value = serde_json::from_str(&listed).expect("JSON");
    let right = home.file("right.toml", allow(info["sha256"].as_str().expect("a digest")));
    home.run(&["--config", right.to_str().expect("UTF-8"), "--backend", "chaos", "add", "text"]).expect(0);
}

#[test]
fn faults_of_an_embedding_backend() {
    let faults = [
        ("panic_in_create", 3, "asked to panic in create"),
        ("panic_in_call", 3, "asked to panic in embed"),
        ("nan", 3, "NaN"),
        ("unwritten", 3, "unwritten"),
        ("wrong_length", 3, "length 3"),
        ("zero_width", 3, "width of 0"),
        ("panic_in_drop", 0, "asked to panic in drop"),
    ];
    let home = Home::new();
    home.install(CHAOS);
    home.run(&["add", "the host survives"]).expect(0);
    for (fault, code, says) in faults {
        let options =
            format!("[ai.embedding.profiles.bad]\nplugin = \"chaos\"\noptions = {{ fault = \"{fault}\" }}\n");
        let config = home.file(&format!("{fault}.toml"), options);
        let ran =
            home.run(&["--config", config.to_str().expect("UTF-8"), "--backend", "bad", "add", "a text"]);
        ran.expect(code).says(&[says]);
    }
    assert_eq!(home.search(&["host", "-k", "1"]), ["the host survives"]);
}

#[test]
fn an_index_backend_that_cannot_search_is_sealed_all_the_same() {
    let home = Home::new();
    home.install(CHAOS);
    let config = home.file(
        "bad.toml",
        "[memory.index]\nprofile = \"bad\"\n\
         [memory.index.profiles.bad]\nplugin = \"chaos\"\noptions = { fault = \"panic_in_call\" }\n",
    );
    let config = ["--config", config.to_str().expect("UTF-8")];
    // So many that how well they are searched is measured.
    let lines: Vec<String> = (0..4200).map(|i| format!("the host survives {i}")).collect();
    home.run_with_stdin(&["add", "--lines", "-", "-q"], lines.join("\n").as_bytes()).expect(0);
    let args = [&config[..], &["sync", "--all", "--layer", "insights"]].concat();
    home.run(&args).expect(0).says(&["not measured", "asked to panic in search"]);
    let stats = home.json(&[&config[..], &["index", "stats"]].concat());
    assert_eq!((&stats["layers"][1]["rows"], &stats["layers"][1]["recall"]), (&4200.into(), &Value::Null));
    let found = home.run(&[&config[..], &["search", "the host survives 500", "--json"]].concat()).expect(0);
    assert!(found.stdout.contains("the host survives 500"), "{found:#?}");
}

#[test]
fn faults_of_an_index_backend_never_hide_a_record() {
    let home = Home::new();
    home.install(CHAOS);
    // Enough records that the backend gets to seal a snapshot.
    let lines: Vec<String> = (0..1100).map(|i| format!("the host survives {i}")).collect();
    home.run_with_stdin(&["add", "--lines", "-", "-q"], lines.join("\n").as_bytes()).expect(0);
    let faults = [
        ("panic_in_create", "asked to panic in create"),
        ("panic_in_call", "asked to panic in search"),
        ("nan", "NaN; searching exactly instead"),
        ("drops_vectors", "holds 0 of 1101 vectors"),
    ];
    for (fault, says) in faults {
        let profile =
            format!("[memory.index.profiles.bad]\nplugin = \"chaos\"\noptions = {{ fault = \"{fault}\" }}\n");
        let config =
            home.file(&format!("{fault}.toml"), format!("[memory.index]\nprofile = \"bad\"\n{profile}"));
        let config = config.to_str().expect("UTF-8");
        let added = home.run(&["--config", config, "add", "one more"]).expect(0);
        // The first search may find the snapshot of the last fault, and leaves one of its own.
        let mut said = added.stderr;
        for _ in 0..2 {
            let found =
                home.run(&["--config", config, "search", "the host survives 500", "--json"]).expect(0);
            assert!(found.stdout.contains("the host survives 500"), "{fault}: {found:#?}");
            said += &found.stderr;
        }
        assert!(said.contains(says), "{fault}: {said}");
    }
    assert_eq!(home.search(&["the host survives 500", "-k", "1"]), ["the host survives 500"]);
}
