//! `magray config`, and what a wrong configuration says.
use crate::support::{Home, Ran, repository};

#[test]
fn shipped_profiles_are_valid() {
    let home = Home::new();
    for name in ["default", "production-server", "production-edge"] {
        let file = repository().join(format!("config/{name}.toml"));
        // Whether this machine is large enough for each of them is not the question here.
        home.run(&["config", "check", file.to_str().expect("UTF-8"), "--memory", "128GiB"]).expect(0);
    }
}

#[test]
fn an_unknown_key_names_file_line_and_the_nearest_key() {
    let home = Home::new();
    home.file("bad.toml", "[ai.embedding]\nprofile = \"cpu\"\nbatchsize = 3\n");
    home.run(&["config", "check", "bad.toml"]).expect(2).says(&["bad.toml:3", "'batchsize'", "'batch_size'"]);
    home.run(&["--config", "bad.toml", "search", "x"]).expect(2).says(&["bad.toml:3"]);
}

#[test]
fn a_bad_value_says_what_would_be_good() {
    let home = Home::new();
    home.file(
        "bad.toml",
        "[ai.embedding]\nbatch_size = \"many\"\n[memory.layers.interact]\nttl = \"soon\"\n",
    );
    home.run(&["config", "check", "bad.toml"]).expect(2).says(&[
        "bad.toml:2",
        "batch_size",
        "bad.toml:4",
        "ttl",
    ]);
    home.file("broken.toml", "[ai.embedding\n");
    home.run(&["config", "check", "broken.toml"]).expect(2).says(&["broken.toml:1"]);
}

#[test]
fn later_layers_win_and_say_so() {
    let home = Home::new();
    let file = home.file("mine.toml", "[memory.index]\nprofile = \"hnsw\"\n[memory.sync]\nseal_after = 77\n");
    let mut command = home.command(&[
        "--config",
        file.to_str().expect("UTF-8"),
        "--index",
        "flat",
        "config",
        "show",
        "--resolved",
    ]);
    let shown = Ran::of(command.env("MAGRAY_MEMORY__CACHE__TTL_SECONDS", "60")).expect(0).stdout;
    let line = |key: &str| {
        shown.lines().find(|line| line.starts_with(key)).unwrap_or_else(|| panic!("{key} in {shown}"))
    };
    assert!(line("seal_after").contains("77") && line("seal_after").contains("mine.toml:4"), "{shown}");
    assert!(
        line("ttl_seconds").contains("60")
            && line("ttl_seconds").contains("MAGRAY_MEMORY__CACHE__TTL_SECONDS")
    );
    let index = shown.split("[memory.index]").nth(1).expect("the section");
    assert!(
        index.trim_start().starts_with("profile = \"flat\"")
            && index.lines().nth(1).expect("a line").contains("flag")
    );
}

#[test]
fn a_wrong_variable_is_named() {
    let home = Home::new();
    let mut command = home.command(&["search", "x"]);
    command.env("MAGRAY_MEMORY__CACHE__PROFIL", "lru");
    Ran::of(&mut command)
        .expect(2)
        .says(&["MAGRAY_MEMORY__CACHE__PROFIL:", "MAGRAY_MEMORY__CACHE__PROFILE?"]);
}

#[test]
fn init_writes_a_file_that_checks_and_never_overwrites() {
    let home = Home::new();
    home.run(&["config", "init", "new.toml"]).expect(0);
    home.run(&["config", "check", "new.toml"]).expect(0);
    home.run(&["config", "init", "new.toml"]).expect(2).says(&["--force"]);
    home.run(&["config", "init", "new.toml", "--force"]).expect(0);
}
