//! The example plugins build, pass their own tests, and load.
use crate::support::{Home, LRU, cargo};
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
    assert!(info.contains("fifo-cache") && info.contains("max_age_ms"), "{info}");
}
