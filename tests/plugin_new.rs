//! From nothing to a plugin in use: what `magray plugin new` writes builds, conforms, and works, and the guide
//! says how.
#![cfg(unix)]
use crate::support::{Home, Ran, cargo_in, other_workspaces, repository};
use std::{fs, path::Path, process::Command};

/// Makes `dir`, the folder of a new plugin, ready to be built without the network, into the folder that all other
/// workspaces share.
fn prepare(dir: &Path) {
    fs::copy(repository().join("Cargo.lock"), dir.join("Cargo.lock"))
        .expect("the versions of this repository");
    fs::create_dir_all(other_workspaces()).expect("a folder");
    std::os::unix::fs::symlink(other_workspaces(), dir.join("target")).expect("a link");
}

fn new(home: &Home, kind: &str, name: &str) {
    let repository = repository();
    let checkout = ["--api-path", repository.to_str().expect("UTF-8")];
    home.run(&[&["plugin", "new", "--kind", kind, name][..], &checkout].concat()).expect(0);
    prepare(&home.path().join(name));
}

#[test]
fn each_kind_builds_and_conforms_unchanged() {
    let home = Home::new();
    for (kind, name, flag) in [("embedding", "acme-letters", "--backend"), ("cache", "acme-fifo", "--cache")]
    {
        new(&home, kind, name);
        let dir = home.path().join(name);
        cargo_in(&dir, &["test", "--offline"]);
        cargo_in(&dir, &["build", "--offline"]);
        let library = dir.join(format!("target/debug/lib{}.so", name.replace('-', "_")));
        let library = if library.exists() { library } else { library.with_extension("dylib") };
        let checked = home.run(&["plugin", "check", library.to_str().expect("UTF-8"), "--json"]).expect(0);
        let report: serde_json::Value = serde_json::from_str(&checked.stdout).expect("JSON");
        let checks = report["checks"].as_array().expect("checks");
        // The new embedder is no cross-encoder, so the checks of its judgements have nothing to ask.
        let judges = |check: &serde_json::Value| check["reason"] == "its model does not judge pairs of texts";
        assert!(
            checks.iter().all(|check| check["outcome"] == "passed" || judges(check)),
            "{name}: {report:#}"
        );
        home.file(
            &format!("plugins/{}", library.file_name().expect("a name").to_string_lossy()),
            fs::read(&library).expect("it"),
        );
        home.run(&[flag, name, "add", "kept by a plugin of somebody else"]).expect(0);
    }
}

#[test]
fn what_it_writes_is_whole_and_nothing_is_overwritten() {
    let home = Home::new();
    home.run(&["plugin", "new", "--kind", "index", "acme-exact", "--dir", "a/b"]).expect(0);
    let read = |file: &str| fs::read_to_string(home.path().join("a/b").join(file)).expect(file);
    for file in [
        "Cargo.toml",
        "src/lib.rs",
        "tests/conformance.rs",
        "README.md",
        "LICENSE",
        ".gitignore",
        ".github/workflows/ci.yml",
    ] {
        let text = read(file);
        assert!(!text.contains("__"), "{file} has a place that was not filled: {text}");
    }
    // Without a checkout it asks for the published crates.
    let manifest = read("Cargo.toml");
    let api = format!("magray-plugin-api = \"{}\"", magray_plugin_api::manifest::API);
    assert!(manifest.contains(&api) && manifest.contains("[workspace]"), "{manifest}");
    home.run(&["plugin", "new", "--kind", "index", "other", "--dir", "a/b"])
        .expect(2)
        .says(&["is there already"]);
    for name in ["Upper", "under_score", "-a", "a--b", "a b", "../a", "test", ""] {
        home.run(&["plugin", "new", "--kind", "index", "--dir", "c", "--", name]).expect(2);
        assert!(!home.path().join("c").exists(), "{name}");
    }
    home.run(&["plugin", "new", "--kind", "index", "x", "--api-path", "nowhere"])
        .expect(3)
        .says(&["no checkout"]);
}

/// Runs the commands of the guide's transcript, and compares what they print with what it shows.
#[test]
fn the_transcript_of_the_guide_is_true() {
    let guide = fs::read_to_string(repository().join("docs/plugins.md")).expect("the guide");
    let (_, transcript) = guide.split_once("```console\n$ magray plugin new").expect("a transcript");
    let (transcript, _) = transcript.split_once("```").expect("its end");
    let transcript = format!("$ magray plugin new{transcript}");
    let home = Home::new();
    let mut folder = home.path().to_owned();
    for step in transcript.split("$ ").filter(|step| !step.is_empty()) {
        let (line, shown) = step.split_once('\n').expect("a line");
        let line = line.replace("~/src/magray", repository().to_str().expect("UTF-8"));
        if let Some(name) = line.strip_prefix("cd ") {
            folder.push(name);
            prepare(&folder);
            continue;
        }
        if let Some(command) = line.strip_prefix("cargo ") {
            cargo_in(&folder, &[command, "--offline"]);
            continue;
        }
        let words = line.strip_prefix("magray ").unwrap_or_else(|| panic!("what is '{line}'?"));
        // As a shell takes it: nothing but double quotes.
        let words: Vec<&str> = words
            .split('"')
            .enumerate()
            .flat_map(|(at, part)| if at % 2 == 1 { vec![part] } else { part.split_whitespace().collect() })
            .collect();
        let mut command: Command = home.command(&words);
        let ran =
            Ran::of(command.current_dir(&folder).env("MAGRAY_PLUGIN_PATH", home.data().join("plugins")))
                .expect(0);
        let (printed, shown) = (normalised(&ran.stdout, &home), normalised(shown, &home));
        // A line of three dots stands for any lines.
        match shown.iter().position(|line| line == "...") {
            None => assert_eq!(printed, shown, "of `magray {line}`"),
            Some(gap) => {
                assert_eq!(printed[..gap], shown[..gap], "of `magray {line}`");
                let tail = &shown[gap + 1..];
                assert_eq!(&printed[printed.len() - tail.len()..], tail, "of `magray {line}`");
            }
        }
    }
}

/// Without what differs from run to run: seeds, digests, ids, scores, times and the folder of the test.
fn normalised(text: &str, home: &Home) -> Vec<String> {
    let data = home.data();
    let text = text.replace(data.to_str().expect("UTF-8"), "~/.local/share/magray").replace(".dylib", ".so");
    let word = |word: &str| {
        let bare = word.trim_matches(|c: char| !c.is_alphanumeric());
        let digits = bare.chars().filter(char::is_ascii_digit).count();
        if bare.len() >= 16 && bare.chars().all(|c| c.is_ascii_alphanumeric()) && digits > 0 {
            "ID".to_owned()
        } else if digits > 0 && bare.chars().all(|c| c.is_ascii_digit() || ".:-".contains(c)) {
            "N".to_owned()
        } else {
            word.to_owned()
        }
    };
    let line = |line: &str| line.split_whitespace().map(word).collect::<Vec<_>>().join(" ");
    text.lines().map(line).filter(|line| !line.is_empty()).collect()
}
