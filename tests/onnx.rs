//! A real model on a real ONNX Runtime, through the real library.
use crate::support::{Home, ONNX, Ran, assets};
use std::process::Command;

/// The program with ONNX Runtime and a configuration that names the model.
fn command(home: &Home, args: &[&str]) -> Command {
    let model = assets("models/all-MiniLM-L6-v2");
    let config = home.file(
        "onnx.toml",
        format!("[ai.embedding]\nprofile = \"onnx\"\nmodel_name = {:?}\n", model.to_str().expect("UTF-8")),
    );
    let mut command = home.command(&[&["--config", config.to_str().expect("UTF-8")], args].concat());
    command.env("ORT_DYLIB_PATH", assets("onnxruntime/libonnxruntime.so"));
    command
}

#[test]
fn a_transformer_indexes_and_searches() {
    let home = Home::new();
    home.install(ONNX);
    home.file("notes/animals.md", "The cat sleeps on the warm windowsill all afternoon.");
    home.file("notes/money.md", "Interest rates rose for the third time this year.");
    Ran::of(&mut command(&home, &["index", "notes"])).expect(0);
    let found = Ran::of(&mut command(&home, &["search", "a kitten taking a nap", "--json"])).expect(0);
    let found: serde_json::Value = serde_json::from_str(&found.stdout).expect("JSON");
    assert!(found["hits"][0]["text"].as_str().expect("a text").contains("cat"), "{found}");
    assert_eq!(found["backend"], "onnx", "{found}");
    assert_eq!(found["device"], "cpu", "{found}");
}

#[test]
fn a_missing_runtime_is_one_line_with_the_remedy() {
    let home = Home::new();
    home.install(ONNX);
    let mut command = command(&home, &["add", "anything"]);
    let ran = Ran::of(command.env("ORT_DYLIB_PATH", "/no/such/library.so")).expect(3);
    let ran = ran.says(&["/no/such/library.so", "scripts/fetch-models.sh"]);
    assert_eq!(ran.stderr.trim().lines().count(), 1, "{ran:#?}");
}
