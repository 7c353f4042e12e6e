//! A real transformer engine that dies in the middle of concurrent work: every request is answered, none wrongly, and
//! each answer names the backend that computed it.
use crate::support::{CPU, Home, MORTAL, assets};
use magray::{
    config::Config,
    embedding::{
        BreakerOptions, CacheLimits, Candidate, Embedding, EmbeddingCache, EmbeddingOptions, Gate, Made,
    },
    plugins::{PluginOptions, Plugins},
    store::{Store, StoreOptions},
};
use magray_model_testkit::{apart, embed};
use magray_plugin_api::Role;
use magray_plugin_testkit::Cx;
use serde_json::json;
use std::{
    collections::HashSet,
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

const CALLERS: usize = 8;
const ROUNDS: usize = 12;
/// Answers after which the backend dies.
const HEALTHY: usize = CALLERS * ROUNDS / 3;

/// The texts of one request: short and long, and no two alike.
fn texts(caller: usize, round: usize) -> Vec<String> {
    let text = |n: usize| {
        let report = format!("Report {caller}-{round}-{n}: the night backup was whole.");
        report + &" The lighthouse keeper counted the ships.".repeat(n * n)
    };
    (0..=(caller + round) % 4).map(text).collect()
}

/// Two backends of the same model by its real engine: `mortal`, and `cpu`, which stands in for it.
struct Bed {
    home: Home,
    plugins: Arc<Plugins>,
    model: String,
}

impl Bed {
    fn new() -> Self {
        let home = Home::new();
        home.install(MORTAL);
        home.install(CPU);
        let options = PluginOptions {
            folders: vec![home.path().join("plugins")],
            data_dir: home.data(),
            threads: 2,
            ..PluginOptions::default()
        };
        let plugins = Arc::new(Plugins::discover(options, &[&magray_cache_lru::PLUGIN]));
        let model = assets("models/all-MiniLM-L6-v2").to_str().expect("UTF-8").to_owned();
        Self { home, plugins, model }
    }

    fn candidate(&self, component: &'static str, options: &serde_json::Value) -> Candidate {
        let (plugins, options) = (self.plugins.clone(), options.to_string());
        let make = move || {
            let embedder = plugins.embedder(component, &options)?;
            Ok(Made { embedder, origin: format!("{component} {options}") })
        };
        Candidate { profile: component.to_owned(), make: Box::new(make) }
    }

    /// Without a cache, so that every text is computed; a backend that died is not tried again.
    fn embedding(&self, call_timeout: Duration) -> Embedding {
        let control = self.home.path().join("control");
        let mortal = json!({ "model": self.model, "control": control, "log": self.home.path().join("log") });
        let cpu = json!({ "model": self.model, "precision": "f32" });
        let candidates = vec![self.candidate("mortal", &mortal), self.candidate("cpu", &cpu)];
        let policy = self.plugins.cache_policy("lru", "{}").expect("it is linked in");
        let cache = EmbeddingCache::new(policy, CacheLimits { max_bytes: 0, max_entries: 0 });
        let store = Store::open(&self.home.path().join("magray.db"), &StoreOptions::default());
        let gate = Gate::new(Arc::new(store.expect("a database")));
        let defaults = Config::load(None, std::iter::empty(), &[]).expect("the defaults").config;
        let defaults = EmbeddingOptions::from(&defaults);
        let hour = Duration::from_secs(3600);
        let breaker = BreakerOptions { cool_down: hour, max_cool_down: hour, ..defaults.breaker };
        let options = EmbeddingOptions { breaker, call_timeout, ..defaults };
        Embedding::new(candidates, Some(gate), cache, &options).expect("the backend starts")
    }
}

/// `mortal` is made to die by `command` while requests of many callers run.
#[expect(
    clippy::print_stdout,
    reason = "for `cargo test -- --nocapture`: a time is for people, not for tests"
)]
fn dies(command: &str, call_timeout: Duration, why: &str) {
    let bed = Bed::new();
    let plain = json!({ "model": bed.model, "precision": "f32" });
    let plain = bed.plugins.embedder("cpu", &plain.to_string()).expect("the plain backend");
    let embedding = bed.embedding(call_timeout);
    embedding.keep_standby();
    let (control, log) = (bed.home.path().join("control"), bed.home.path().join("log"));
    let (answered, by) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    thread::scope(|scope| {
        for caller in 0..CALLERS {
            let (embedding, plain, answered, by, control) = (&embedding, &plain, &answered, &by, &control);
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let texts = texts(caller, round);
                    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
                    let reply = embedding.answer(&Cx::free(), &texts, Role::Passage);
                    let reply =
                        reply.unwrap_or_else(|error| panic!("{command}: a request was lost: {error}"));
                    let difference = apart(&reply.vectors, &embed(&**plain, &texts, Role::Passage));
                    assert!(difference <= 1e-4, "{command}: a vector is off by {difference}");
                    if answered.fetch_add(1, Ordering::Relaxed) == HEALTHY {
                        fs::write(control, command).expect("the control file");
                    }
                    let reply = (texts.join("\n"), reply.backend, reply.fallback);
                    by.lock().expect("no caller panics with it").push(reply);
                }
            });
        }
    });
    assert_eq!(answered.into_inner(), CALLERS * ROUNDS);
    let log = fs::read_to_string(log).expect("the log");
    let by_mortal: HashSet<&str> = log.lines().collect();
    let by = by.into_inner().expect("no caller panicked");
    for (texts, backend, fallback) in &by {
        let computed = texts.lines().all(|text| by_mortal.contains(text));
        assert_eq!(computed, backend == "mortal", "{command}: {backend} says that it computed {texts:?}");
        let said = fallback.as_deref().is_none_or(|said| said.contains(why));
        assert!(said && fallback.is_some() == (backend == "cpu"), "{command}: {fallback:?} by {backend}");
    }
    let stood_in = by.iter().filter(|(_, backend, _)| backend == "cpu").count();
    assert!((1..CALLERS * ROUNDS - HEALTHY).contains(&stood_in), "{command}: {stood_in} by the stand-in");
    let counters = embedding.status().counters;
    assert!(counters.fallbacks > 0, "{command}: {counters:?}");
    println!("{command}: from the failure to the call of the stand-in {:.3} ms", counters.switch_max_ms);
    // One that hangs goes on when it is let.
    fs::remove_file(control).expect("the control file");
}

const LONG: Duration = Duration::from_secs(120);

#[test]
fn a_panic_loses_nothing() {
    dies("panic", LONG, "asked to panic");
}

#[test]
fn want_of_memory_loses_nothing() {
    dies("oom", LONG, "asked to run out of memory");
}

#[test]
fn vectors_of_nan_reach_nobody() {
    dies("nan", LONG, "NaN");
}

#[test]
fn a_hang_is_noticed_and_loses_nothing() {
    dies("hang", Duration::from_secs(5), "hangs");
}
