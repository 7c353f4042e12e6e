//! The backend `candle` as a user has it: MiniLM, by one flag.
use crate::support::{CANDLE, Home, assets};
use std::path::PathBuf;

/// A home with the plugin, and a config that names the model `all-MiniLM-L6-v2` and has `more` in it.
fn home(more: &str) -> (Home, PathBuf) {
    let model = assets("models/all-MiniLM-L6-v2");
    let home = Home::new();
    home.install(CANDLE);
    let config =
        home.file("config.toml", format!("[ai.embedding]\nmodel_name = '{}'\n{more}", model.display()));
    (home, config)
}

#[test]
fn indexes_and_searches_and_says_who_answered() {
    let (home, config) = home("");
    let candle = ["--config", config.to_str().expect("UTF-8"), "--backend", "candle"];
    home.file("notes/cat.md", "# Cat\n\nThe cat sleeps on the warm window sill all afternoon.\n");
    home.file("notes/backup.md", "# Backup\n\nDatabase backups run every night at two o'clock.\n");
    home.run(&[&candle[..], &["index", "notes"]].concat()).expect(0);
    let found = home.json(&[&candle[..], &["search", "when is our data saved"]].concat());
    let best = found["hits"][0]["text"].as_str().expect("a text");
    assert!(best.contains("every night"), "{found}");
    assert_eq!(
        (&found["backend"], &found["model"], &found["device"]),
        (&"candle".into(), &"all-MiniLM-L6-v2".into(), &"cpu".into()),
        "{found}"
    );
}

#[test]
fn a_gpu_is_another_plugin() {
    let (home, config) = home("use_gpu = true\n");
    let config = config.to_str().expect("UTF-8");
    home.run(&["--config", config, "--backend", "candle", "add", "a text"]).expect(3).says(&[
        "'use_gpu' is true",
        "candle-cuda",
        "use_gpu = false",
    ]);
}
