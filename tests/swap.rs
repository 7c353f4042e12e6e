//! One line of TOML, or one flag, swaps each of the three kinds of plugin.
use crate::support::{CHAOS, CPU, FLAT, HNSW, Home, LRU, NATIVE, Ran};

#[test]
fn built_in_and_loaded_plugins_are_listed_with_what_they_are() {
    let home = Home::new();
    home.install(HNSW);
    home.install(CPU);
    let listed = home.run(&["plugin", "list"]).expect(0).stdout;
    for part in [
        "magray-index-hnsw",
        "magray-embed-cpu",
        "magray-index-flat",
        "magray-index-native",
        "built in",
        HNSW,
        "sha256",
        "hnsw",
        "embedding",
        "index",
        "cache",
    ] {
        assert!(listed.contains(part), "no {part} in {listed}");
    }
    let info = home.run(&["plugin", "info", "hnsw"]).expect(0).stdout;
    for part in ["magray-index-hnsw", "sha256", "ABI epoch 1", "rustc", "ef_search"] {
        assert!(info.contains(part), "no {part} in {info}");
    }
    home.run(&["plugin", "info", "none-such"]).expect(1);
}

#[test]
fn a_library_wins_over_the_built_in_of_the_same_name() {
    let home = Home::new();
    for library in [CPU, FLAT, NATIVE, LRU] {
        home.install(library);
    }
    let config = home.file("seal-at-once.toml", "[memory.sync]\nseal_after = 1\n");
    let config = config.to_str().expect("UTF-8");
    home.run(&["--config", config, "add", "through libraries"]).expect(0);
    assert_eq!(home.search(&["--config", config, "--cache", "lru", "libraries"]), ["through libraries"]);
    assert_eq!(home.search(&["--config", config, "--index", "native", "libraries"]), ["through libraries"]);
    // The trial of each file is on record only where it was really loaded.
    let trials = std::fs::read_to_string(home.data().join("plugins/trials.json")).expect("trials");
    for library in [CPU, FLAT, NATIVE, LRU] {
        assert!(trials.contains(library), "{trials}");
    }
}

/// From the config down to the plugin: one breadth for each layer.
#[test]
fn each_layer_is_searched_with_its_own_breadth() {
    let home = Home::new();
    home.install(CHAOS);
    let index = "[memory.index]\nprofile = \"asked\"\n[memory.sync]\nseal_after = 1\n\
                 [memory.index.profiles.asked]\nplugin = \"chaos\"\noptions = { fault = \"names_breadth\" }\n";
    let plain = home.file("plain.toml", index);
    let other = home.file("other.toml", format!("{index}[memory.layers.insights]\nef_search = 77\n"));
    let (plain, other) = (plain.to_str().expect("UTF-8"), other.to_str().expect("UTF-8"));
    for layer in ["interact", "insights", "assets"] {
        home.run(&["--config", plain, "add", "found by its layer", "--layer", layer]).expect(0);
    }
    for (config, layer, breadth) in [
        (plain, "interact", 50),
        (plain, "insights", 100),
        (plain, "assets", 200),
        (other, "insights", 77),
        (other, "assets", 200),
    ] {
        home.run(&["--config", config, "search", "found by its layer", "--layer", layer])
            .expect(0)
            .says(&[&format!("asked for a breadth of {breadth}")]);
    }
}

#[test]
fn a_flag_swaps_the_index() {
    let home = Home::new();
    home.install(HNSW);
    let lines: Vec<String> = (0..1200).map(|i| format!("entry {i} says {}", i * i)).collect();
    home.run_with_stdin(&["--index", "hnsw", "add", "--lines", "-", "-q"], lines.join("\n").as_bytes())
        .expect(0);
    let hnsw = home.json(&["--index", "hnsw", "search", "entry 77 says 5929", "-k", "3"]);
    let flat = home.json(&["--index", "flat", "search", "entry 77 says 5929", "-k", "3"]);
    assert_eq!((&hnsw["index"], &flat["index"]), (&"hnsw".into(), &"flat".into()));
    assert_eq!(hnsw["hits"][0]["text"], "entry 77 says 5929");
    assert_eq!(hnsw["hits"][0]["id"], flat["hits"][0]["id"]);
    let stats = home.json(&["--index", "hnsw", "stats"]);
    assert!(stats["layers"][1]["sealed"].as_u64() >= Some(1000), "{stats}");
}

/// Built in; with so few records it would compare each of them, were it not told to go by its codes.
#[test]
fn native_finds_what_flat_finds() {
    let home = Home::new();
    let lines: Vec<String> = (0..1200).map(|i| format!("entry {i} says {}", i * i)).collect();
    let options = "{ exact_below = 0 }";
    let by_codes = format!("[memory.index.profiles.native]\nplugin = \"native\"\noptions = {options}\n");
    let config = home.file("native.toml", by_codes);
    let native = ["--config", config.to_str().expect("UTF-8"), "--index", "native"];
    let run = |arguments: &[&'static str]| [&native[..], arguments].concat();
    home.run_with_stdin(&run(&["add", "--lines", "-", "-q"]), lines.join("\n").as_bytes()).expect(0);
    for query in ["entry 77 says 5929", "what says 1000000"] {
        let found = home.json(&run(&["search", query, "-k", "3"]));
        let flat = home.json(&["--index", "flat", "search", query, "-k", "3"]);
        assert_eq!((&found["index"], &flat["index"]), (&"native".into(), &"flat".into()));
        assert_eq!(found["hits"][0]["id"], flat["hits"][0]["id"], "{query}");
    }
    let stats = home.json(&run(&["stats"]));
    assert!(stats["layers"][1]["sealed"].as_u64() >= Some(1000), "{stats}");
}

#[test]
fn a_line_of_toml_swaps_each_kind() {
    let home = Home::new();
    home.install(HNSW);
    home.install(CHAOS);
    for (key, profile, field) in [
        ("ai.embedding", "chaos", Some("backend")),
        ("memory.index", "hnsw", Some("index")),
        ("memory.index", "native", Some("index")),
        ("memory.cache", "chaos", None),
    ] {
        let file = home.file(&format!("{key}.toml"), format!("[{key}]\nprofile = \"{profile}\"\n"));
        let config = file.to_str().expect("UTF-8");
        home.run(&["--config", config, "add", "swapped by one line"]).expect(0);
        let found = home.json(&["--config", config, "search", "swapped by one line"]);
        assert_eq!(found["hits"][0]["text"], "swapped by one line", "{key}");
        if let Some(field) = field {
            assert_eq!(found[field], profile);
        }
    }
}

#[test]
fn vectors_of_two_models_never_meet() {
    let home = Home::new();
    home.install(CHAOS);
    home.run(&["add", "embedded by the default model"]).expect(0);
    let ran = home.run(&["--backend", "chaos", "search", "embedded", "--mode", "vector"]).expect(1);
    ran.says(&["1 record without a vector of words"]);
    home.run(&["--backend", "chaos", "add", "embedded by the default model"]).expect(0);
    assert_eq!(
        home.search(&["--backend", "chaos", "embedded", "--mode", "vector"]),
        ["embedded by the default model"]
    );
    assert_eq!(home.search(&["embedded", "--mode", "vector"]), ["embedded by the default model"]);
}

#[test]
fn a_named_profile_carries_options() {
    let home = Home::new();
    home.install(CHAOS);
    let file = home.file(
        "profiles.toml",
        "[ai.embedding.profiles.broken]\nplugin = \"chaos\"\noptions = { fault = \"nan\" }\n",
    );
    let config = file.to_str().expect("UTF-8");
    home.run(&["--config", config, "--backend", "broken", "add", "text"])
        .expect(3)
        .says(&["'broken'", "NaN"]);
    let file = home.file(
        "typo.toml",
        "[ai.embedding.profiles.broken]\nplugin = \"chaos\"\noptions = { falt = \"nan\" }\n",
    );
    let ran = home.run(&["--config", file.to_str().expect("UTF-8"), "--backend", "broken", "add", "text"]);
    ran.expect(3).says(&["falt", "fault"]);
}

#[test]
fn a_profile_in_use_survives_a_broken_cache_policy() {
    let home = Home::new();
    home.install(CHAOS);
    let text = "[memory.cache]\nprofile = \"bad\"\n[memory.cache.profiles.bad]\nplugin = \"chaos\"\noptions = { fault = \"panic_in_call\" }\n";
    let file = home.file("cache.toml", text);
    let mut command = home.command(&["--config", file.to_str().expect("UTF-8"), "add", "goes on"]);
    Ran::of(&mut command).expect(0).says(&["cache is now off", "asked to panic in on_insert"]);
}
