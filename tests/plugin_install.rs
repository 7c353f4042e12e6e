//! Installing, removing and trusting plugins.
use crate::support::{CHAOS, FAULTY, Home, LRU, ONNX, Ran, built};
use std::{fs, path::Path};

fn text(path: &Path) -> &str {
    path.to_str().expect("UTF-8")
}

/// With the data folder's `plugins` among the folders, as it is by default.
fn run(home: &Home, args: &[&str]) -> Ran {
    let plugins = home.data().join("plugins");
    Ran::of(home.command(args).env("MAGRAY_PLUGIN_PATH", plugins))
}

#[test]
fn what_is_installed_is_found_pinned_and_removed() {
    let home = Home::new();
    let library = built(LRU);
    let ran = run(&home, &["plugin", "install", text(&library)]).expect(0);
    assert!(ran.stdout.contains("magray-cache-lru") && ran.stdout.contains("sha256"), "{ran:#?}");
    let installed = home.data().join("plugins").join(LRU);
    run(&home, &["--cache", "lru", "add", "kept by the installed policy"]).expect(0);
    let trials = fs::read_to_string(home.data().join("plugins/trials.json")).expect("it was loaded");
    assert!(trials.contains(LRU), "{trials}");

    // Another file in its place is not the one that was checked.
    fs::copy(built(CHAOS), &installed).expect("it is overwritten");
    let listed = run(&home, &["plugin", "list"]).expect(0).stdout;
    assert!(listed.contains("not the file that was installed"), "{listed}");
    run(&home, &["--cache", "chaos", "search", "policy", "--mode", "vector"])
        .expect(3)
        .says(&["not the file that was installed"]);
    run(&home, &["plugin", "install", text(&library), "--no-check"]).expect(0);
    run(&home, &["--cache", "lru", "search", "policy"]).expect(0);

    run(&home, &["plugin", "remove", "magray-cache-lru"]).expect(0);
    assert!(!installed.exists());
    run(&home, &["plugin", "remove", "magray-cache-lru"]).expect(1);
    // Nothing is pinned any more: a file that is put there by hand is let in.
    fs::copy(built(CHAOS), &installed).expect("another file");
    run(&home, &["--backend", "chaos", "add", "by a plugin of the user"]).expect(0);
}

#[test]
fn what_fails_its_check_is_not_installed() {
    let home = Home::new();
    let library = built(FAULTY);
    let options = ["--options", "{\"fault\": \"keeps_one\"}"];
    let ran = run(&home, &[&["plugin", "install", text(&library)][..], &options].concat()).expect(3);
    assert!(ran.stdout.contains("FAIL  evicts-everything"), "{ran:#?}");
    assert!(!home.data().join("plugins").join(FAULTY).exists());
    let odd = home.path().join("plugin.bin");
    fs::copy(built(LRU), &odd).expect("a copy");
    run(&home, &["plugin", "install", text(&odd), "--no-check"]).expect(2).says(&["not named as a library"]);
}

#[test]
fn a_project_cannot_make_the_program_load_its_library() {
    let home = Home::new();
    let library = home.file(&format!("clone/lib/{CHAOS}"), fs::read(built(CHAOS)).expect("built"));
    let folder = library.parent().expect("a folder");
    let config = format!(
        "[plugins]\npath = [{}]\n[ai.embedding]\nprofile = \"chaos\"\n",
        serde_json::to_string(folder).expect("JSON")
    );
    let config = home.file("clone/magray.toml", config);
    let with = |args: &[&str]| home.run(&[&["--config", text(&config)], args].concat());
    with(&["add", "a text"]).expect(3).says(&["have not trusted", "magray plugin trust", CHAOS]);
    let by_environment =
        |home: &Home| Ran::of(home.command(&["add", "a text"]).env("MAGRAY_CONFIG", &config));
    by_environment(&home).expect(3).says(&["have not trusted"]);
    with(&["plugin", "check", "chaos"]).expect(2).says(&["no usable plugin"]);
    assert!(!home.data().join("plugins/trials.json").exists(), "nothing of it ran");
    let listed = with(&["plugin", "list"]).expect(0).stdout;
    assert!(listed.contains("have not trusted"), "{listed}");
    assert!(with(&["plugin", "trust"]).expect(0).stdout.contains(CHAOS));

    with(&["plugin", "trust", text(&library)]).expect(0);
    with(&["add", "a text"]).expect(0);
    by_environment(&home).expect(0);
    with(&["plugin", "trust"]).expect(1);
    // Another version of the file is another file.
    fs::copy(built(FAULTY), &library).expect("it is overwritten");
    assert!(with(&["plugin", "list"]).expect(0).stdout.contains("have not trusted"));
    fs::copy(built(CHAOS), &library).expect("as it was");
    with(&["plugin", "trust", text(&library), "--revoke"]).expect(0);
    with(&["add", "another text"]).expect(3).says(&["have not trusted"]);

    // The user's own config, and the user's own flag, need no trust.
    let own = home.file(".config/magray/config.toml", fs::read(&config).expect("the config"));
    assert!(own.exists());
    home.run(&["add", "by the user's own config"]).expect(0);
    with(&["--plugin-dir", text(folder), "add", "by the user's own flag"]).expect(0);
    // Where the book cannot be read nothing is vouched for.
    fs::write(home.data().join("plugins/trust.json"), "{").expect("damage");
    with(&["add", "a third text"]).expect(3).says(&["trust.json", "cannot be read"]);
}

#[test]
fn a_project_cannot_name_a_library_that_a_plugin_loads() {
    let home = Home::new();
    home.install(ONNX);
    let config = |options: &str| {
        format!(
            "[ai.embedding]\nprofile = \"onnx\"\n[ai.embedding.profiles.onnx]\nplugin = \"onnx\"\n\
             options = {{ model = \"nowhere\"{options} }}\n"
        )
    };
    let named = config(", runtime = \"clone/libonnxruntime.so\"");
    let project = home.file("clone/magray.toml", &named);
    let with = |args: &[&str]| home.run(&[&["--config", text(&project)], args].concat());
    with(&["add", "a text"]).expect(3).says(&["clone/magray.toml", "'onnx'", "its option 'runtime'"]);
    with(&["plugin", "check", "onnx"]).expect(3).says(&["its option 'runtime'"]);
    // The plugin itself is asked where the config names none, or is the user's own: by its name, or by a link.
    let nowhere = ["nowhere"];
    fs::write(&project, config(", runtime = \"\"")).expect("the config");
    with(&["add", "a text"]).expect(3).says(&nowhere);
    let own = home.file(".config/magray/config.toml", &named);
    home.run(&["add", "a text"]).expect(3).says(&nowhere);
    #[cfg(unix)]
    {
        fs::rename(&own, home.path().join("dotfile")).expect("moved");
        std::os::unix::fs::symlink(home.path().join("dotfile"), &own).expect("a link");
        home.run(&["add", "a text"]).expect(3).says(&nowhere);
    }
}
