//! The governor of resources: below a real limit of memory, with a real leak, and a configuration that cannot fit.
use crate::support::{CHAOS, Home, Ran, repository};
use magray::{
    config::{Config, Origin},
    engine::{Engine, Governor, ModelOrigins, Setup},
    resources::pressure::Pressure,
};
use magray_plugin_api::Role;
use magray_plugin_testkit::Cx;
use serde_json::Value;
use std::{env, fs, io::Write as _, process::Command, time::Instant};

/// Grants small enough for a test to outgrow them, and thresholds far enough from the limit for it to live.
const SMALL: &str = "\
[memory.resource_manager]
base_max_vectors = 1000
base_cache_bytes = 1048576
cool_down_seconds = 60
leak_warm_up_seconds = 0
leak_window_seconds = 600
[store]
durability = 'normal'
";

/// Bytes that the process may take.
const LIMIT: u64 = 320 << 20;

/// A control group of its own below that of this process, gone when it is dropped.
#[cfg(target_os = "linux")]
struct Group(std::path::PathBuf);

#[cfg(target_os = "linux")]
impl Group {
    /// None where control groups of memory cannot be made here.
    fn new() -> Option<Self> {
        let own = fs::read_to_string("/proc/self/cgroup").ok()?;
        let mounts = fs::read_to_string("/proc/self/mountinfo").ok()?;
        let path_of = |controller: &str| {
            own.lines().find_map(|line| {
                let (_, rest) = line.split_once(':')?;
                let (controllers, path) = rest.split_once(':')?;
                controllers.split(',').any(|name| name == controller).then(|| path.to_owned())
            })
        };
        mounts.lines().find_map(|line| {
            let (place, kind) = line.split_once(" - ")?;
            let mount = std::path::Path::new(place.split(' ').nth(4)?);
            let (path, file) = match kind.split(' ').next()? {
                "cgroup2" => (path_of("")?, "memory.max"),
                "cgroup" if kind.ends_with(",memory") => (path_of("memory")?, "memory.limit_in_bytes"),
                _ => return None,
            };
            let name = format!("magray-test-{}", std::process::id());
            let group = mount.join(path.trim_start_matches('/')).join(name);
            fs::create_dir(&group).ok()?;
            let group = Self(group);
            // Where the file is not there, the group has no say over memory.
            let is_limited =
                group.0.join(file).exists() && fs::write(group.0.join(file), LIMIT.to_string()).is_ok();
            is_limited.then_some(group)
        })
    }

    fn run(&self, command: &Command) -> Command {
        let script = format!("echo $$ > '{}/cgroup.procs' && exec \"$0\" \"$@\"", self.0.display());
        wrapped(command, &script)
    }
}

#[cfg(target_os = "linux")]
impl Drop for Group {
    fn drop(&mut self) {
        // The kernel lets go of it a moment after the last process has ended, and a folder that stays does no harm.
        drop(fs::remove_dir(&self.0));
    }
}

/// The same command by way of a shell.
fn wrapped(command: &Command, script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.arg("-c").arg(script).arg(command.get_program()).args(command.get_args()).env_clear();
    shell.envs(command.get_envs().filter_map(|(name, value)| Some((name, value?))));
    shell.current_dir(command.get_current_dir().expect("the home"));
    shell
}

/// A load that outgrows its grants while memory becomes short. Returns the limit that was filled.
#[cfg(target_os = "linux")]
fn outgrows(limited: impl Fn(&Command) -> Command) -> String {
    let home = Home::new();
    let config = home.file("small.toml", SMALL);
    let trace = home.path().join("trace.csv");
    let (config, csv) = (config.to_str().expect("UTF-8"), trace.to_str().expect("UTF-8"));
    let mut command = home.command(&["--config", config, "bench", "governor"]);
    command.args(["--looks", "12", "--texts", "200", "--csv", csv, "--json"]);
    // That it ends at all says that nobody killed it.
    let ran = Ran::of(&mut limited(&command)).expect(0);
    let figures: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    let points = figures["points"].as_array().expect("points");
    let granted = |at: usize| points[at]["granted_bytes"].as_u64().expect("bytes");
    let used = |at: usize| points[at]["used_percent"].as_f64().expect("a share");
    let reasons = |range: std::ops::Range<usize>| -> Vec<&str> {
        points[range].iter().map(|point| point["cache_reason"].as_str().expect("a word")).collect()
    };
    assert_eq!(points.len(), 36);
    // It grew with its use,
    assert!(granted(11) > granted(0) && reasons(0..12).contains(&"demand"), "{points:#?}");
    // shrank when memory was short, at once and to its base, and so did what was held,
    assert!(used(23) > 85.0 && granted(23) == 1 << 20, "{points:#?}");
    assert!(reasons(12..24).contains(&"critical") && !reasons(18..24).contains(&"demand"), "{points:#?}");
    assert!(points[23]["cached_bytes"].as_u64() <= Some(1 << 20), "{points:#?}");
    // and grew again when there was memory.
    assert!(used(35) < 85.0 && granted(35) > 1 << 20, "{points:#?}");
    for point in points {
        assert!(point["cached_bytes"].as_u64() <= point["granted_bytes"].as_u64(), "{point}");
    }
    assert_eq!((&figures["stored"], &figures["lost"]), (&7200.into(), &0.into()));
    assert!(figures["checked"].as_u64() > Some(700));
    assert!(figures["cleaned_bytes"].as_u64() > Some(0), "{}", figures["cleaned_bytes"]);
    assert_eq!(fs::read_to_string(trace).expect("the trace").lines().count(), 37);
    figures["limit"].as_str().expect("a name").to_owned()
}

#[cfg(target_os = "linux")]
#[test]
fn a_control_group_that_fills_shrinks_what_is_held_and_nothing_is_lost() {
    let Some(group) = Group::new() else {
        // Past the test runner, which keeps what a test prints to itself.
        let said =
            b"NOT TESTED: no control group of memory can be made here; `ulimit -d` is tested instead\n";
        std::io::stderr().write_all(said).expect("standard error");
        return;
    };
    assert!(outgrows(|command| group.run(command)).contains("magray-test"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_limit_of_the_process_that_fills_shrinks_what_is_held_and_nothing_is_lost() {
    let script = format!("ulimit -d {} && exec \"$0\" \"$@\"", LIMIT >> 10);
    assert_eq!(outgrows(|command| wrapped(command, &script)), "data size");
}

#[test]
fn without_a_limit_there_is_nothing_to_fill() {
    let ran = Home::new().run(&["bench", "governor"]);
    ran.expect(2).says(&["systemd-run --user --scope -p MemoryMax=512M"]);
}

/// Set where this program runs as the child of a test of its own.
const CHILD: &str = "MAGRAY_TEST_LEAK";

/// Runs a test of this module in a process of its own, whose memory no other test disturbs.
fn alone(test: &str, value: &str) {
    let mut command = Command::new(env::current_exe().expect("this program"));
    command.args([&format!("governor::{test}"), "--exact", "--nocapture"]).env(CHILD, value);
    Ran::of(&mut command).expect(0);
}

/// Forty looks at an engine whose backend does what `control` says; who is suspected at each.
#[cfg(target_os = "linux")]
fn suspects(control: &str) -> Vec<Option<String>> {
    let home = Home::new();
    home.install(CHAOS);
    let file = home.file("control", control);
    let toml =
        format!("{SMALL}[ai.embedding.profiles.bad]\nplugin = 'chaos'\noptions = {{ control = {file:?} }}\n");
    let toml = home.file("small.toml", toml);
    let flags = [("ai.embedding.profile".to_owned(), "bad".into())];
    let config = Config::load(Some(&toml), std::iter::empty(), &flags).expect("it is right").config;
    let origins = ModelOrigins { profile: Origin::Flag, model: Origin::Default };
    let plugin_dirs = vec![home.path().join("plugins")];
    let engine = Engine::open(Setup {
        config,
        origins,
        data_dir: home.data(),
        plugin_dirs,
        executable: None,
        project: None,
    });
    let engine = engine.expect("an engine");
    let (mut governor, start) =
        (Governor::begin(&engine, &Pressure::sample()).expect("a governor"), Instant::now());
    let mut look = |number: u32| {
        let texts: Vec<String> = (0..4).map(|text| format!("text {number} {text}")).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        engine.embedding().expect("the backend").embed(&Cx::free(), &texts, Role::Passage).expect("vectors");
        let tick = governor.tick_at(&engine, start + governor.interval() * number, Pressure::sample());
        tick.leak.map(|leak| leak.suspect)
    };
    (0..40).map(&mut look).collect()
}

#[cfg(target_os = "linux")]
fn finds(test: &str, control: &str, suspect: Option<&str>) {
    if env::var(CHILD).as_deref() != Ok(test) {
        return alone(test, test);
    }
    let found = suspects(control);
    // A window and a half after the start there is no doubt any more, and before it is over none can be.
    assert_eq!(found.last().expect("looks").as_deref(), suspect, "{found:?}");
    assert!(found[..20].iter().all(Option::is_none), "{found:?}");
}

#[cfg(target_os = "linux")]
#[test]
fn a_plugin_that_leaks_and_tells_is_named() {
    finds("a_plugin_that_leaks_and_tells_is_named", "leak 3145728", Some("embedder bad"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_plugin_that_leaks_in_silence_is_unaccounted() {
    finds("a_plugin_that_leaks_in_silence_is_unaccounted", "hoard 3145728", Some("unaccounted"));
}

#[cfg(target_os = "linux")]
#[test]
fn a_plugin_that_does_not_leak_is_not_suspected() {
    finds("a_plugin_that_does_not_leak_is_not_suspected", "", None);
}

#[test]
fn a_profile_that_cannot_fit_is_refused_with_the_numbers() {
    let home = Home::new();
    let file = repository().join("config/production-server.toml");
    let check =
        |memory: &str| home.run(&["config", "check", file.to_str().expect("UTF-8"), "--memory", memory]);
    let refused = check("24GiB").expect(2);
    let refused = refused.says(&[
        "production-server.toml",
        "20000000 cannot fit",
        "1024 numbers",
        "24.0 GiB",
        "or less",
    ]);
    assert!(refused.stdout.is_empty());
    assert!(check("128GiB").expect(0).stdout.contains("20000000 fits"));
    // A default is as many as fit.
    let ran = home.run(&["config", "check", "--memory", "1GiB"]).expect(0);
    ran.says(&["vectors are held in memory", "cannot fit"]);
    // A file that names it means no other.
    let file = home.path().join("init.toml");
    let file = file.to_str().expect("UTF-8");
    home.run(&["config", "init", file]).expect(0);
    home.run(&["config", "check", file, "--memory", "1GiB"]).expect(0);
    home.run(&["config", "check", "--memory", "much"]).expect(2);
}

#[test]
fn a_command_works_with_a_profile_that_cannot_fit_and_says_so() {
    let home = Home::new();
    let toml = "[memory.resource_manager]\nscaling_max_vectors = 9000000000000\n";
    let file = home.file("huge.toml", toml);
    let ran = home.run(&["--config", file.to_str().expect("UTF-8"), "add", "the tide is high"]);
    ran.expect(0).says(&["9000000000000 cannot fit", "256 numbers"]);
}

#[test]
fn more_vectors_than_may_be_are_refused_and_those_stored_stay() {
    let home = Home::new();
    let toml = "[memory.resource_manager]\nbase_max_vectors = 3\nscaling_max_vectors = 3\n";
    let config = home.file("few.toml", toml);
    let config = ["--config", config.to_str().expect("UTF-8")];
    let add = |text: &str| home.run(&[&config[..], &["add", text]].concat());
    for text in ["the first", "the second", "the third"] {
        add(text).expect(0);
    }
    add("the fourth").expect(3).says(&[
        "3 vectors are stored",
        "scaling_max_vectors, 3",
        "magray config check",
    ]);
    home.file("notes/a.txt", "A fifth is in a file about lanterns.");
    home.run(&[&config[..], &["index", "notes"]].concat()).expect(3).says(&["scaling_max_vectors"]);
    let found = home.json(&[&config[..], &["search", "the second", "-k", "1"]].concat());
    assert_eq!(found["hits"][0]["text"], "the second");
    let id = found["hits"][0]["id"].as_str().expect("an id").to_owned();
    home.run(&[&config[..], &["forget", &id, "--yes"]].concat()).expect(0);
    add("the fourth").expect(0);
    add("the fifth").expect(3);
}

#[test]
fn stats_say_whose_memory_it_is() {
    let home = Home::new();
    home.run(&["add", "the tide is high"]).expect(0);
    let memory = home.json(&["stats", "--memory"]);
    let components = memory["components"].as_array().expect("components");
    let named = |name: &str| components.iter().find(|component| component["name"] == name).expect(name);
    assert!(named("embedder cpu")["resident"].as_u64() > Some(0), "{memory}");
    assert!(named("changes insights")["resident"].as_u64() > Some(500), "{memory}");
    assert!(named("SQLite")["resident"].as_u64() > Some(10_000), "{memory}");
    for name in ["index assets", "cached embeddings", "cache policy"] {
        named(name);
    }
    assert_eq!(memory["grants"]["vectors"], 500_000);
    if cfg!(target_os = "linux") {
        let told: u64 = components.iter().filter_map(|component| component["resident"].as_u64()).sum();
        let all = memory["pressure"]["process"]["anonymous"].as_u64().expect("bytes");
        assert_eq!(memory["unaccounted"].as_u64(), Some(all - told), "{memory}");
        assert!(memory["pressure"]["limits"].as_array().is_some_and(|limits| !limits.is_empty()));
    }
    let shown = home.run(&["stats", "--memory"]).expect(0).stdout;
    for part in [
        "embedder cpu",
        "unaccounted",
        "a process that lives long may cache",
        "scaling_max_vectors = 10000000",
    ] {
        assert!(shown.contains(part), "no {part:?} in {shown}");
    }
}
