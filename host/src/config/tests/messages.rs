//! What a user is told about mistakes.

use super::*;

fn file_error(text: &str) -> String {
    load(text, &[], &[]).unwrap_err()
}

fn env_error(name: &str, value: &str) -> String {
    load("", &[(name, value)], &[]).unwrap_err()
}

fn flag_error(key: &str, value: impl Into<Value>) -> String {
    load("", &[], &[(key, value.into())]).unwrap_err()
}

#[test]
fn unknown_variables_are_named_with_the_nearest() {
    assert_eq!(
        env_error("MAGRAY_MEMORY__CACHE__PROFIL", "lru"),
        "MAGRAY_MEMORY__CACHE__PROFIL: no setting has this name; did you mean MAGRAY_MEMORY__CACHE__PROFILE?"
    );
    assert_eq!(
        env_error("MAGRAY_MEMORY__CACHE", "lru"),
        "MAGRAY_MEMORY__CACHE: [memory.cache] is a table: name one of its keys after another '__'"
    );
    assert!(env_error("MAGRAY_Z", "1").contains("`magray config show`"));
    assert!(env_error("MAGRAY_", "1").starts_with("MAGRAY_: no setting has this name"));
    assert!(env_error("MAGRAY_MEMORY__INDEX__PROFILES____PLUGIN", "x").contains("no setting"));
}

#[test]
fn bad_values_say_what_is_right() {
    let key = |line: &str| file_error(&format!("[ai.embedding]\n{line}\n"));
    let whole = "m.toml:2: 'batch_size' must be a whole number from 1 to 4096, not";
    assert_eq!(key("batch_size = 'many'"), format!("{whole} \"many\""));
    assert_eq!(key("batch_size = 0"), format!("{whole} 0"));
    assert_eq!(key("batch_size = 1.5"), format!("{whole} 1.5"));
    assert_eq!(key("batch_size = {}"), format!("{whole} a table"));
    assert_eq!(key("batch_size = [1, 2]"), format!("{whole} [1, 2]"));
    assert_eq!(key("use_gpu = 'yes'"), "m.toml:2: 'use_gpu' must be true or false, not \"yes\"");
    assert_eq!(key("profile = ' '"), "m.toml:2: 'profile' must be a name, not \" \"");
    assert_eq!(key("profile = 3"), "m.toml:2: 'profile' must be a name, not 3");
    assert_eq!(
        key("gpu_config.gpu_mem_limit = -1"),
        "m.toml:2: 'gpu_mem_limit' must be a whole number of 0 or more, not -1"
    );
    assert_eq!(
        file_error("store.durability = 'some'"),
        "m.toml:1: 'durability' must be \"full\" or \"normal\", not \"some\""
    );
    assert_eq!(
        file_error("store.durability = 1"),
        "m.toml:1: 'durability' must be \"full\" or \"normal\", not 1"
    );
    assert_eq!(
        file_error("memory.layers.assets.ttl = 'soon'"),
        "m.toml:1: 'ttl' must be a duration such as \"24h\" or \"90d\", \"never\" or \"preset\", not \"soon\""
    );
    assert_eq!(
        file_error("[plugins]\nallow = [\n  'abc',\n]"),
        "m.toml:3: 'allow' must be a list of SHA-256 digests of 64 hexadecimal digits, not \"abc\""
    );
    assert_eq!(
        file_error("plugins.path = ['here']"),
        "m.toml:1: 'path' must be a list of folders by absolute path, not \"here\""
    );
    assert_eq!(file_error("plugins.path = 'here'"), "m.toml:1: 'path' must be a list, not \"here\"");
    assert_eq!(
        file_error("memory.index.profiles.x = { plugin = 'x', options = { a = [inf] } }"),
        "m.toml:1: 'a' must be a finite number, not inf"
    );
}

#[test]
fn bad_values_name_their_variable_or_flag() {
    assert_eq!(
        env_error("MAGRAY_AI__EMBEDDING__USE_GPU", "maybe"),
        "MAGRAY_AI__EMBEDDING__USE_GPU: 'use_gpu' must be true or false, not \"maybe\""
    );
    assert_eq!(
        flag_error("ai.embedding.batch_size", "many"),
        "command line: 'ai.embedding.batch_size' must be a whole number from 1 to 4096, not \"many\""
    );
    assert_eq!(
        flag_error("ai.embedding.batchsize", 3),
        "command line: unknown key 'ai.embedding.batchsize'; did you mean 'ai.embedding.batch_size'?"
    );
    assert_eq!(
        flag_error("cache.max_entries", 3),
        "command line: unknown key 'cache.max_entries'; did you mean 'memory.cache.max_entries'?"
    );
    assert_eq!(flag_error("zz", 3), "command line: unknown key 'zz'; `magray config show` lists them all");
    assert!(flag_error(&vec!["a"; 1000].join("."), 3).ends_with("lists them all"));
    assert!(flag_error("", 3).contains("unknown key ''"));
}

#[test]
fn a_problem_is_one_short_line_whatever_the_file_holds() {
    assert_eq!(file_error("\"a\\nb\" = 1").lines().count(), 1);
    let error = file_error(&format!("log.level = \"\"\"a\n{}\"\"\"", "é".repeat(500)));
    assert_eq!(error.lines().count(), 1);
    assert!(error.chars().count() < 200 && error.ends_with("..."), "{error}");
}

#[test]
fn unknown_keys_are_answered_with_the_nearest() {
    assert_eq!(
        file_error("[ai.embedding]\nbatchsize = 3\n"),
        "m.toml:2: unknown key 'batchsize' in [ai.embedding]; did you mean 'batch_size'?"
    );
    assert_eq!(
        file_error("[memory]\nmax_entries = 3\n"),
        "m.toml:2: unknown key 'max_entries' in [memory]; it belongs in [memory.cache]"
    );
    assert_eq!(
        file_error("[memory]\nef_search = 3\n"),
        "m.toml:2: unknown key 'ef_search' in [memory]; it belongs in [memory.layers.assets], \
         [memory.layers.insights] or [memory.layers.interact]"
    );
    assert_eq!(
        file_error("max_entires = 3\n"),
        "m.toml:1: unknown key 'max_entires' at the top level; did you mean 'max_entries' in [memory.cache]?"
    );
    assert_eq!(
        file_error("[store]\nzzz = 3\n"),
        "m.toml:2: unknown key 'zzz' in [store]; the keys are 'busy_timeout_ms', 'durability', 'min_free_bytes'"
    );
    assert_eq!(
        file_error("log.level.deeper = 3\n"),
        "m.toml:1: 'level' must be \"off\", \"error\", \"warn\", \"info\", \"debug\" or \"trace\", not a table"
    );
}

#[test]
fn unknown_tables_are_answered_with_the_nearest() {
    let error = |header: &str| file_error(&format!("\n[{header}]\nx = 3\n"));
    assert_eq!(error("memory.cahce"), "m.toml:2: unknown table [memory.cahce]; did you mean [memory.cache]?");
    assert_eq!(error("embedding"), "m.toml:2: unknown table [embedding]; did you mean [ai.embedding]?");
    assert_eq!(error("embeding"), "m.toml:2: unknown table [embeding]; did you mean [ai.embedding]?");
    assert_eq!(
        file_error("[memory]\ncache = 3\n"),
        "m.toml:2: 'cache' is a table: write its keys under [memory.cache]"
    );
}

#[test]
fn every_problem_is_reported() {
    let text = "[ai.embedding]\nbatch_size = 0\nuse_gpu = 1\nmodel = 'x'\n[stor]\n";
    let error = load(text, &[("MAGRAY_LOG__LEVEL", "loud")], &[]).unwrap_err();
    let places: Vec<_> = error.lines().map(|line| line.split(": ").next().unwrap()).collect();
    assert_eq!(places, ["m.toml:4", "m.toml:5", "m.toml:2", "m.toml:3", "MAGRAY_LOG__LEVEL"], "{error}");
}

#[test]
fn syntax_errors_give_the_column() {
    let error = file_error("[ai.embedding]\nbatch_size = = 3\n");
    assert!(error.starts_with("m.toml:2:14: "), "{error}");
    assert_eq!(error.lines().count(), 1);
    assert!(file_error("[log]\nlevel = 'off'\nlevel = 'warn'\n").starts_with("m.toml:3:1: "));
}

#[test]
fn settings_that_contradict_each_other_are_named() {
    assert_eq!(
        file_error("[memory.resource_manager]\ntarget_memory_usage_percent = 85\n"),
        "m.toml:2: 'target_memory_usage_percent' (85, m.toml:2) must be below \
         'critical_memory_usage_percent' (85, default)"
    );
    assert_eq!(
        env_error("MAGRAY_MEMORY__RESOURCE_MANAGER__SCALING_MAX_VECTORS", "7"),
        "MAGRAY_MEMORY__RESOURCE_MANAGER__SCALING_MAX_VECTORS: 'base_max_vectors' (500000, default) must be \
         at most 'scaling_max_vectors' (7, env MAGRAY_MEMORY__RESOURCE_MANAGER__SCALING_MAX_VECTORS)"
    );
    assert!(
        file_error("memory.resource_manager.base_cache_bytes = 8589934593").contains("scaling_cache_bytes")
    );
    assert!(file_error("memory.resource_manager.scale_up_percent = 60").contains("scale_down_percent"));
}

#[test]
fn thresholds_in_a_row_must_be_in_order() {
    let error = |text: &str| file_error(&format!("[memory.resource_manager]\n{text}\n"));
    let percents = "m.toml:2: 'pressure_percents' must be three whole numbers from 1 to 100, each above the one before it";
    for wrong in [
        "[50, 50, 85]",
        "[50, 70]",
        "[0, 70, 85]",
        "[50, 70, 101]",
        "[50, 70, 85, 90]",
        "50",
        "['a', 'b', 'c']",
    ] {
        let error = error(&format!("pressure_percents = {wrong}"));
        assert!(error.starts_with(percents), "{wrong}: {error}");
    }
    let factors =
        "m.toml:2: 'pressure_factors' must be four numbers from 0.1 to 10, none above the one before it";
    for wrong in ["[1.0, 1.1, 0.9, 0.7]", "[1.3, 1.1, 0.9]", "[1.3, 1.1, 0.9, 0]", "[11, 1, 1, 1]", "1.5"] {
        let error = error(&format!("pressure_factors = {wrong}"));
        assert!(error.starts_with(factors), "{wrong}: {error}");
    }
    assert!(error("scale_factor = 0.5").contains("a number from 1 to 10"));
    assert!(load("memory.resource_manager.pressure_factors = [2, 1, 1, 0.5]", &[], &[]).is_ok());
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_no_text_is_named() {
    use std::os::unix::ffi::OsStringExt;
    let env = [("MAGRAY_LOG__LEVEL".into(), OsString::from_vec(vec![0xff]))].into();
    let error = resolve(None, "", &env, &[]).unwrap_err().to_string();
    assert_eq!(error, "MAGRAY_LOG__LEVEL: the value is not UTF-8");
}

#[test]
fn a_profile_that_is_not_one_is_named() {
    assert_eq!(
        file_error("[memory.index.profiles.mine]\n"),
        "m.toml:1: [memory.index.profiles.mine] lacks the key 'plugin'"
    );
    assert_eq!(
        file_error("[memory.index.profiles.mine]\nplugn = 'hnsw'\n").lines().next().unwrap(),
        "m.toml:2: unknown key 'plugn' in [memory.index.profiles.mine]; did you mean 'plugin'?"
    );
    assert_eq!(
        file_error("[memory.index.profiles.mine]\nplugin = 'x'\noptions = 3\n"),
        "m.toml:3: 'options' must be a table, not 3"
    );
}
