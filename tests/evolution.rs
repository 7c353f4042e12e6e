//! Plugins and hosts of different minor versions of the API work together, both ways round.
use crate::support::{CHAOS, CPU, FLAT, Home, LRU, Ran, built, cargo};
use std::{path::PathBuf, process::Command, sync::LazyLock};

/// The folder with the plugin and the host of API 1.0.
static OLD: LazyLock<PathBuf> = LazyLock::new(|| cargo("build", "tests/evolution"));

fn old_plugin_home() -> Home {
    let home = Home::new();
    let library = CHAOS.replace("magray_chaos_plugin", "magray_old_plugin");
    home.file(&format!("plugins/{library}"), std::fs::read(OLD.join(&library)).expect("the old plugin"));
    home
}

#[test]
fn an_old_plugin_works_in_this_host() {
    let home = old_plugin_home();
    let info = home.run(&["plugin", "info", "old-letters"]).expect(0).stdout;
    assert!(info.contains("1.0.0"), "{info}");
    let lines: Vec<String> =
        (0..1200).map(|i| format!("{} and {}", "abc".repeat(i % 7), "xyz".repeat(i % 11))).collect();
    let lines: Vec<String> = lines.iter().enumerate().map(|(i, line)| format!("{line} {i}")).collect();
    let with = ["--backend", "old-letters", "--index", "old-map", "--cache", "old-fifo"];
    let add = [&with[..], &["add", "--lines", "-", "-q"]].concat();
    home.run_with_stdin(&add, lines.join("\n").as_bytes()).expect(0);
    let stats = home.json(&[&with[..], &["stats"]].concat());
    assert!(stats["layers"][1]["sealed"].as_u64() >= Some(1000), "the old index sealed a snapshot: {stats}");
    let found = home.json(&[&with[..], &["search", "abcabcabc and xyz 3", "--mode", "vector"]].concat());
    assert_eq!(found["model"], "letters");
    assert!(found["hits"][0]["score"].as_f64() > Some(0.95), "{found}");
}

#[test]
fn plugins_of_today_work_in_an_old_host() {
    let run = |library: &str, kind: &str, name: &str| {
        let mut command = Command::new(OLD.join("magray-old-host"));
        Ran::of(command.arg(built(library)).args([kind, name])).expect(0).stdout
    };
    assert!(run(CPU, "embedder", "cpu").contains("norm 1.000"));
    assert!(run(CHAOS, "embedder", "chaos").contains("norm 1.000"));
    assert!(run(FLAT, "index", "flat").contains("nearest 5"));
    assert!(run(LRU, "cache_policy", "lru").contains("victim 1"));
}
