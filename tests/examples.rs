//! The example plugins build, pass their own tests, and load.
use crate::support::{Home, LRU, cargo, repository};
use std::fs;

#[test]
fn fifo_cache() {
    cargo("test", "examples/fifo-cache");
    let built = cargo("build", "examples/fifo-cache");
    let library = LRU.replace("magray_cache_lru_plugin", "fifo_cache");
    let home = Home::new();
    home.file(&format!("plugins/{library}"), fs::read(built.join(&library)).expect("the plugin"));
    home.run(&["--cache", "fifo", "add", "kept by a plugin of somebody else"]).expect(0);
    let info = home.run(&["plugin", "info", "fifo"]).expect(0).stdout;
    assert!(info.contains("acme-fifo") && info.contains("batch"), "{info}");
}

#[test]
fn the_guide_shows_the_example_as_it_is() {
    let code = fs::read_to_string(repository().join("examples/fifo-cache/src/lib.rs")).expect("the example");
    let (_, code) = code.split_once('\n').expect("a first line");
    let guide = fs::read_to_string(repository().join("docs/plugins.md")).expect("the guide");
    assert!(guide.contains(code), "docs/plugins.md and examples/fifo-cache differ");
}
