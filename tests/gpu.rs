//! What a machine without a GPU is told; a variable of the CUDA driver makes any machine one. That of one with a GPU
//! is checked by `scripts/gpu-check.sh`.
use crate::support::{Home, Ran, repository};
use serde_json::{Value, json};
use std::process::Command;

fn without_a_gpu(home: &Home, args: &[&str]) -> Ran {
    Ran::of(home.command(args).env("CUDA_VISIBLE_DEVICES", "-1"))
}

#[test]
fn a_machine_without_a_gpu_is_told_so() {
    let home = Home::new();
    without_a_gpu(&home, &["gpu", "info"]).expect(1).says(&["no GPU: "]);
    let ran = without_a_gpu(&home, &["gpu", "info", "--json"]).expect(1);
    let info: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(info["gpus"], json!([]));
    assert!(info["absence"].as_str().is_some_and(|why| !why.is_empty()), "{info}");
    without_a_gpu(&home, &["gpu", "benchmark"]).expect(1).says(&["no GPU: "]);
}

#[test]
fn the_gpu_check_says_that_there_is_none() {
    let home = Home::new();
    let ran = Ran::of(
        Command::new("bash")
            .arg(repository().join("scripts/gpu-check.sh"))
            .arg(env!("CARGO_BIN_EXE_magray"))
            .env("MAGRAY_HOME", home.data())
            .env("CUDA_VISIBLE_DEVICES", "-1"),
    );
    ran.expect(1).says(&["no GPU: "]);
}
