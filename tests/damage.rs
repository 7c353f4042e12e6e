//! Damaged index snapshots are found, set aside and rebuilt: never a wrong answer.
use crate::support::{HNSW, Home};
use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file of the index, but for the note of what was checked, which can only be of no use.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in folder.read_dir().expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.file_name().is_some_and(|name| name != "lock" && name != "magray.verified") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Where what is damaged is set aside.
fn damaged(index: &Path) -> PathBuf {
    let space = index.read_dir().expect("spaces").next().expect("one").expect("one").path();
    let backend =
        space.join("insights").read_dir().expect("backends").next().expect("one").expect("one").path();
    backend.join("damaged")
}

fn damage_and_search(index: &str) {
    let home = Home::new();
    home.install(HNSW);
    let config = home.file("seal-early.toml", "[memory.sync]\nseal_after = 100\n");
    let config = config.to_str().expect("UTF-8");
    let lines: Vec<String> = (0..120).map(|i| format!("record {i} of the damaged index")).collect();
    let add = ["--config", config, "--index", index, "add", "--lines", "-", "-q"];
    home.run_with_stdin(&add, lines.join("\n").as_bytes()).expect(0);
    let search = [
        "--config",
        config,
        "--index",
        index,
        "search",
        "record 60 of the damaged index",
        "-k",
        "1",
        "--json",
    ];
    let folder = home.data().join("index");
    let count = files(&folder).len();
    assert!(count >= 4, "a snapshot, a manifest, ids and data: {:?}", files(&folder));
    for number in 0..count {
        for cut in [false, true] {
            // What was set aside in the last round is not used any more; what was rebuilt has the same files.
            let _ = fs::remove_dir_all(damaged(&folder));
            let file = files(&folder)[number].clone();
            let mut bytes = fs::read(&file).expect("its bytes");
            let at = bytes.len() * (number + 1) / (count + 1);
            if cut {
                bytes.truncate(at)
            } else {
                bytes[at] ^= 0x10
            }
            fs::write(&file, bytes).expect("damaged");
            let ran = home.run(&search).expect(0).says(&["damaged", "rebuilt from the store"]);
            assert!(ran.stdout.contains("record 60 of the damaged index"), "{ran:#?}");
            let again = home.run(&search).expect(0);
            assert!(!again.stderr.contains("damaged"), "rebuilt by the search before: {again:#?}");
            assert!(again.stdout.contains("record 60 of the damaged index"), "{again:#?}");
        }
    }
}

#[test]
fn flat() {
    damage_and_search("flat");
}

#[test]
fn hnsw() {
    damage_and_search("hnsw");
}

#[test]
fn an_index_folder_that_is_gone_is_rebuilt() {
    let home = Home::new();
    let lines: Vec<String> = (0..1200).map(|i| format!("record {i}")).collect();
    home.run_with_stdin(&["add", "--lines", "-", "-q"], lines.join("\n").as_bytes()).expect(0);
    fs::remove_dir_all(home.data().join("index")).expect("removed");
    assert_eq!(home.search(&["record 1111", "-k", "1"]), ["record 1111"]);
    assert!(!files(&home.data().join("index")).is_empty());
}
