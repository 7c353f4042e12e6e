//! What a user meets: layers, files and origins.

mod messages;

use super::*;
use proptest::prelude::*;
use std::time::Duration;
use toml::Value;

/// Loads a text as the file `m.toml`.
fn load(text: &str, env: &[(&str, &str)], flags: &[(&str, Value)]) -> Result<Resolved, String> {
    let env = env.iter().map(|(name, value)| (name.into(), value.into())).collect();
    let flags: Vec<_> = flags.iter().map(|(key, value)| ((*key).to_owned(), value.clone())).collect();
    resolve(Some("m.toml".into()), text, &env, &flags).map_err(|error| error.to_string())
}

fn production(name: &str) -> Resolved {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../config");
    Config::check(&folder.join(name)).unwrap()
}

#[test]
fn the_defaults_are_what_the_documentation_says() {
    let config = load("", &[], &[]).unwrap().config;
    assert_eq!(config.ai.embedding.selected().profile.plugin, "cpu");
    assert_eq!(config.memory.index.selected().profile.plugin, "flat");
    assert_eq!(config.memory.cache.selected().profile.plugin, "s3fifo");
    let day = Duration::from_secs(24 * 3600);
    assert_eq!(config.memory.lives(), [Some(day), Some(90 * day), None]);
    assert_eq!(config.memory.resource_manager.scaling_cache_bytes, 8 << 30);
    assert_eq!(config.memory.cache.max_bytes(16 << 30), 1 << 30);
    assert_eq!(config.store.durability, Durability::Full);
}

#[test]
fn a_chain_is_the_profile_and_its_stand_ins_and_theirs_do_not_count() {
    let text = "[ai.embedding]\nprofile = 'cuda'\n[ai.embedding.profiles.onnx]\nplugin = 'onnx'\nfallback = ['mine']\n";
    let embedding = load(text, &[], &[]).unwrap().config.ai.embedding;
    let names: Vec<_> = embedding.chain().into_iter().map(|selected| selected.name).collect();
    assert_eq!(names, ["cuda", "onnx", "candle", "cpu"]);
}

#[test]
fn what_goes_by_the_memory_of_the_gpu_is_left_to_the_plugin_while_that_is_unknown() {
    let schema = r#"{"properties": {"streams": {}, "use_pinned_memory": {}, "prefetch": {}}}"#;
    let options =
        |text: &str| load(text, &[], &[]).unwrap().config.ai.embedding.profile("candle").options_json(schema);
    assert_eq!(options(""), "{}");
    let eight = "ai.embedding.gpu_config.gpu_mem_limit = 8589934592\n";
    assert_eq!(
        options(&format!("{eight}ai.embedding.use_gpu = true")),
        r#"{"streams":4,"use_pinned_memory":true}"#
    );
    assert_eq!(options(eight), "{}", "on a CPU");
    let own = "[ai.embedding.pipeline]\nstreams = 3\nuse_pinned_memory = 'off'\nprefetch = 2\n";
    assert_eq!(options(own), r#"{"prefetch":2,"streams":3,"use_pinned_memory":false}"#);
}

/// No field has a serde default and none may be left out, so a key that is missing from the file fails to
/// load; this looks at the other side, an optional field that nobody wrote into the file.
#[test]
fn every_key_of_the_structs_is_in_the_default_file() {
    fn leaves(value: &serde_json::Value, path: &str, into: &mut Vec<String>) {
        match value.as_object() {
            Some(entries) if !path.ends_with(".options") => {
                entries.iter().for_each(|(key, value)| leaves(value, &format!("{path}.{key}"), into));
            }
            _ => into.push(path.to_owned()),
        }
    }
    let resolved = load("", &[], &[]).unwrap();
    let (mut typed, mut written) = (Vec::new(), Vec::new());
    leaves(&serde_json::to_value(&resolved.config).unwrap(), "", &mut typed);
    leaves(&serde_json::to_value(DEFAULT_TOML.parse::<toml::Table>().unwrap()).unwrap(), "", &mut written);
    assert_eq!(typed, written);
    assert!(typed.len() > 30);
}

#[test]
fn each_layer_wins_over_the_one_before() {
    let text = "[ai.embedding]\nbatch_size = 2\nmodel_name = 'a'\nuse_gpu = true\n";
    let env = [("MAGRAY_AI__EMBEDDING__BATCH_SIZE", "3"), ("MAGRAY_AI__EMBEDDING__MODEL_NAME", "7")];
    let flags = [("ai.embedding.batch_size", 4.into())];
    let resolved = load(text, &env, &flags).unwrap();
    let embedding = &resolved.config.ai.embedding;
    assert_eq!((embedding.batch_size, embedding.model_name.as_str(), embedding.use_gpu), (4, "7", true));
    let origin = |key: &str| resolved.origin(&format!("ai.embedding.{key}")).unwrap().to_string();
    assert_eq!(origin("batch_size"), "flag");
    assert_eq!(origin("model_name"), "env MAGRAY_AI__EMBEDDING__MODEL_NAME");
    assert_eq!(origin("use_gpu"), "m.toml:4");
    assert_eq!(origin("profile"), "default");
    assert_eq!(resolved.origin("ai.embedding.nothing"), None);
}

#[test]
fn environment_values_are_toml_or_text() {
    let env = [
        ("MAGRAY_PLUGINS__SEARCH_DEFAULTS", "false"),
        ("MAGRAY_PLUGINS__ALLOW", &format!("['{}']", "aB".repeat(32))),
        ("MAGRAY_MEMORY__CACHE__MAX_SIZE_BYTES", " 1_000 "),
        ("MAGRAY_MEMORY__LAYERS__ASSETS__TTL", "1h"),
        ("MAGRAY_MEMORY__INDEX__PROFILES__HNSW__OPTIONS__EF_SEARCH", "77"),
        ("MAGRAY_MEMORY__INDEX__PROFILES__HNSW__OPTIONS__PRESET", "realtime"),
        ("MAGRAY_MEMORY__INDEX__PROFILE", "hnsw"),
    ];
    let config = load("", &env, &[]).unwrap().config;
    assert!(!config.plugins.search_defaults);
    assert_eq!(config.plugins.allow, [Sha256([0xab; 32])]);
    assert_eq!(config.memory.cache.max_size_bytes, 1000);
    assert_eq!(config.memory.layers.assets.ttl, Ttl::After(Duration::from_secs(3600)));
    let options = config.memory.index.selected().options_json("{}");
    assert_eq!(options, r#"{"ef_search":77,"preset":"realtime"}"#);
}

#[test]
fn names_that_are_no_settings_are_passed_over() {
    let env = [
        ("MAGRAY_HOME", "/x"),
        ("MAGRAY_PLUGIN_PATH", "/x"),
        ("MAGRAY_CONFIG", "/x"),
        ("MAGRAY_DATA", "somewhere"),
        ("OTHER__NAME", "1"),
    ];
    assert_eq!(load("", &env, &[]).unwrap().config, load("", &[], &[]).unwrap().config);
}

#[test]
fn a_value_that_a_later_layer_replaces_may_be_wrong() {
    let flags = [("ai.embedding.batch_size", 5.into())];
    let resolved = load("ai.embedding.batch_size = 'many'", &[], &flags).unwrap();
    assert_eq!(resolved.config.ai.embedding.batch_size, 5);
}

#[test]
fn profiles_are_the_users_to_name() {
    let text = "[memory.index]\nprofile = 'my own'\n[memory.index.profiles.'my own']\nplugin = 'hnsw'\n";
    let config = load(text, &[], &[]).unwrap().config;
    let selected = config.memory.index.selected();
    assert_eq!((selected.name.as_str(), selected.profile.plugin.as_str()), ("my own", "hnsw"));
    assert_eq!(selected.options_json("{}"), "{}");
}

#[test]
fn the_embedding_plugin_gets_the_settings_that_it_has_options_for() {
    let text = "[ai.embedding]\nmodel_name = 'm'\nprofile = 'other'\ngpu_config.device_id = 1\n";
    let embedding = load(text, &[], &[]).unwrap().config.ai.embedding;
    let schema = r#"{"properties": {"model": {}, "batch_size": {}, "device_id": {}, "threads": {}}}"#;
    assert_eq!(embedding.selected().options_json(schema), r#"{"batch_size":128,"device_id":1,"model":"m"}"#);
    let cpu = embedding.profile("cpu").options_json(r#"{"properties": {"model": {}, "batch_size": {}}}"#);
    assert_eq!(cpu, r#"{"batch_size":4096,"model":"m"}"#);
}

#[test]
fn the_production_files_hold_their_values() {
    let server = production("production-server.toml").config;
    let embedding = &server.ai.embedding;
    assert_eq!(
        (embedding.model_name.as_str(), embedding.use_gpu, embedding.batch_size),
        ("qwen3emb", true, 256)
    );
    assert_eq!((embedding.gpu_config.device_id, embedding.gpu_config.gpu_mem_limit), (0, 12_884_901_888));
    // Stand-ins run on the CPU, where a stream is a copy of the model.
    let schema = r#"{"properties": {"use_gpu": {}, "streams": {}}}"#;
    let chain: Vec<_> =
        embedding.chain().iter().map(|it| (it.name.clone(), it.options_json(schema))).collect();
    let chain: Vec<_> = chain.iter().map(|(name, options)| (name.as_str(), options.as_str())).collect();
    let on_cpu = r#"{"use_gpu":false}"#;
    assert_eq!(
        chain[..3],
        [("cuda", r#"{"streams":6,"use_gpu":true}"#), ("onnx", on_cpu), ("candle", on_cpu)]
    );
    assert_eq!(chain[3].0, "cpu");
    let limits = &server.memory.resource_manager;
    assert_eq!((limits.base_max_vectors, limits.scaling_max_vectors), (1_000_000, 20_000_000));
    assert_eq!((limits.target_memory_usage_percent, limits.critical_memory_usage_percent), (70, 90));
    let cache = &server.memory.cache;
    assert_eq!(
        (cache.max_size_bytes, cache.max_entries, cache.ttl_seconds),
        (4_294_967_296, 2_000_000, 259_200)
    );

    let edge = production("production-edge.toml").config;
    let embedding = &edge.ai.embedding;
    assert_eq!(
        (embedding.model_name.as_str(), embedding.use_gpu, embedding.batch_size),
        ("qwen3emb", false, 32)
    );
    let limits = &edge.memory.resource_manager;
    assert_eq!((limits.base_max_vectors, limits.scaling_max_vectors), (100_000, 500_000));
    assert_eq!((limits.target_memory_usage_percent, limits.critical_memory_usage_percent), (80, 95));
    let cache = &edge.memory.cache;
    assert_eq!((cache.max_size_bytes, cache.max_entries, cache.ttl_seconds), (268_435_456, 100_000, 86_400));
}

#[test]
fn the_default_file_is_itself_a_config_file() {
    let resolved = production("default.toml");
    assert_eq!(resolved.config, load("", &[], &[]).unwrap().config);
}

#[test]
fn the_file_is_the_flag_or_the_variable_or_the_users_own() {
    let folder = tempfile::tempdir().unwrap();
    let write = |name: &str, level: &str| {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, format!("log.level = '{level}'\n")).unwrap();
        path
    };
    let (flag, variable) = (write("flag.toml", "error"), write("variable.toml", "info"));
    let own = write("magray/config.toml", "debug");
    let load = |flag: Option<&Path>, variable: &Path, config_home: &Path| {
        let env = [("MAGRAY_CONFIG", variable), ("XDG_CONFIG_HOME", config_home)];
        Config::load(flag, env.into_iter().map(|(name, path)| (name.into(), path.into())), &[]).unwrap()
    };
    let unset = Path::new("");
    assert_eq!(load(Some(&flag), &variable, folder.path()).config.log.level, LogLevel::Error);
    assert_eq!(load(None, &variable, folder.path()).config.log.level, LogLevel::Info);
    assert_eq!(load(None, unset, folder.path()).file, Some(own));
    assert_eq!(load(None, unset, &folder.path().join("empty")).file, None);
}

#[test]
fn a_named_file_must_be_readable_text() {
    let folder = tempfile::tempdir().unwrap();
    let gone = folder.path().join("gone.toml");
    let error = Config::check(&gone).unwrap_err().to_string();
    assert!(error.starts_with(&format!("{}: cannot read the config file: ", gone.display())), "{error}");
    let binary = folder.path().join("binary.toml");
    std::fs::write(&binary, [0xff, 0xfe]).unwrap();
    assert!(Config::check(&binary).unwrap_err().to_string().contains("UTF-8"));
}

#[test]
fn rendering_gives_every_value_its_origin() {
    let text = "[memory.index]\nprofile = 'x'\n";
    let rendered = render_resolved(&load(text, &[("MAGRAY_LOG__LEVEL", "info")], &[]).unwrap());
    assert!(rendered.contains("\n[memory.index]\nprofile = \"x\"  # m.toml:2\n"), "{rendered}");
    assert!(rendered.contains("merge_factor = 8  # default\n"), "{rendered}");
    assert!(rendered.ends_with("min_free_bytes = 67108864  # default\n"), "{rendered}");
    assert!(rendered.contains("[log]\nlevel = \"info\"  # env MAGRAY_LOG__LEVEL\n"));
}

/// A config file with a mistake here and there.
fn plausible_file() -> impl Strategy<Value = String> {
    let keys = "(ai|memory|store|plugins|x)(\\.(embedding|cache|index|layers|profiles|path|\"a b\"|\"\\\\n\"|'\"')){0,4}\
                (\\.(profile|batch_size|options|plugin|ttl))?";
    let value = "(-?[0-9]{1,20}|\"[a-z\\\\\"]{0,4}\"|true|\\[[0-9, ]{0,5}\\]|\\{ ?(a = 1)? ?\\}|inf|1\\.5|=)";
    let line = prop_oneof![
        keys.prop_map(|key| format!("[{key}]")),
        (keys, value).prop_map(|(key, value)| format!("{key} = {value}")),
    ];
    proptest::collection::vec(line, 0..6).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #[test]
    fn no_file_makes_it_panic(text in prop_oneof![any::<String>(), plausible_file()]) {
        if let Err(error) = load(&text, &[], &[]) {
            prop_assert!(error.lines().all(|line| line.starts_with("m.toml:")), "{}", error);
        }
    }

    #[test]
    fn no_variable_or_flag_makes_it_panic(
        name in "(MEMORY|AI|LOG|PLUGINS)?(_{0,3}(CACHE|INDEX|PROFILES|X|É|OPTIONS|PATH)){0,5}",
        value: String,
        key: String,
    ) {
        let _ = load("", &[(&format!("MAGRAY_{name}"), &value)], &[(&key, value.as_str().into())]);
    }

    #[test]
    fn what_is_rendered_reads_back_the_same(
        name: String,
        option: String,
        text: String,
        number: i64,
        real in -1e9..1e9,
    ) {
        let table = |entries: &[(&str, Value)]| -> Value {
            let entries = entries.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
            Value::Table(entries.collect())
        };
        let options = table(&[
            ("inner", table(&[(&option, Value::Float(real))])),
            ("list", Value::Array(vec![text.clone().into(), number.into()])),
            (&option, text.into()),
        ]);
        let profiles = table(&[(&name, table(&[("plugin", "p".into()), ("options", options)]))]);
        let resolved = load("", &[], &[("memory.index.profiles", profiles)]).unwrap();
        let again = load(&render_resolved(&resolved), &[], &[]).unwrap();
        prop_assert_eq!(resolved.config, again.config);
    }
}
