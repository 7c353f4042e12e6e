use crate::{Asks, Checked, HOST, Outcome, Report, Run, Settings, cache, embedder, index};
use magray_plugin_api::{
    CachePolicy, ComponentKind, Error, ErrorCode, IndexSpec, MemoryUse, Metric, Plugin, Result,
    host::{ContainedPolicy, PluginHandle},
};

const CREATES: Asks = ("creates", "create() succeeds with the options that are given");
const OPTIONS: Asks = ("refuses-unknown-options", "a mistyped option should give INVALID_CONFIG");

/// The checks of a kind in their order, each with what the contract asks.
pub fn checks(kind: ComponentKind) -> Vec<(&'static str, &'static str)> {
    let mut all = vec![CREATES, OPTIONS];
    match kind {
        ComponentKind::Embedder => all.extend(embedder::asks()),
        ComponentKind::Index => all.extend(index::asks()),
        ComponentKind::CachePolicy => all.extend(cache::asks()),
    }
    all
}

/// A component of a plugin, called as the host calls it: made by name from its options, over the boundary.
#[derive(Clone, Debug)]
pub struct Component {
    handle: PluginHandle,
    kind: ComponentKind,
    name: String,
    options: String,
}

impl Component {
    /// A component of a loaded plugin; `options` is a JSON object.
    pub fn new(handle: PluginHandle, kind: ComponentKind, name: &str, options: &str) -> Self {
        Self { handle, kind, name: name.to_owned(), options: options.to_owned() }
    }

    /// A component of a plugin that is linked in, for the author's tests: `Component::linked(&PLUGIN, ...)`.
    pub fn linked(plugin: &'static Plugin, kind: ComponentKind, name: &str, options: &str) -> Self {
        Self::new(PluginHandle::linked(plugin, HOST), kind, name, options)
    }

    /// Runs every check.
    pub fn report(&self, settings: Settings) -> Report {
        self.run(Run::new(None, settings))
    }

    /// Runs the check `name`; the report is empty where there is none of that name.
    pub fn check(&self, name: &str, settings: Settings) -> Report {
        self.run(Run::new(Some(name), settings))
    }

    fn run(&self, mut run: Run<'_>) -> Report {
        run.check(CREATES, || Ok(self.create(&self.options)?));
        run.check(OPTIONS, || self.refuses_unknown_options());
        let Self { handle, name, options, .. } = self;
        match self.kind {
            // One for all checks: a model may take long to load.
            ComponentKind::Embedder => match handle.embedder(name, options) {
                Ok(made) => embedder::run(&mut run, &*made),
                Err(error) => {
                    embedder::asks().for_each(|asks| run.check(asks, || Err(error.clone().into())));
                }
            },
            ComponentKind::Index => index::run(
                &mut run,
                &|spec| handle.index(name, options, spec, None),
                Some(&|spec, dir| handle.index(name, options, spec, Some(dir))),
            ),
            ComponentKind::CachePolicy => cache::run(&mut run, &|| {
                Ok(Box::new(Panicking(handle.cache_policy(name, options)?)) as Box<dyn CachePolicy>)
            }),
        }
        run.report
    }

    fn create(&self, options: &str) -> Result<()> {
        let Self { handle, name, .. } = self;
        match self.kind {
            ComponentKind::Embedder => handle.embedder(name, options).map(drop),
            ComponentKind::CachePolicy => handle.cache_policy(name, options).map(drop),
            ComponentKind::Index => {
                let make =
                    |metric| handle.index(name, options, IndexSpec { dim: 16, metric }, None).map(drop);
                let unsupported = |made: &Result<()>| {
                    made.as_ref().is_err_and(|error| error.code() == ErrorCode::UNSUPPORTED)
                };
                let made = [Metric::Cosine, Metric::L2, Metric::Dot].map(make);
                let done = made.iter().position(|made| !unsupported(made)).unwrap_or_default();
                made.into_iter().nth(done).unwrap_or(Ok(()))
            }
        }
    }

    fn refuses_unknown_options(&self) -> Checked {
        const UNKNOWN: &str = "no_such_option_as_this";
        let mut options: serde_json::Map<_, _> = serde_json::from_str(&self.options)
            .map_err(|error| Outcome::Failed(format!("the options are no JSON object: {error}")))?;
        options.insert(UNKNOWN.to_owned(), true.into());
        match self.create(&serde_json::Value::from(options).to_string()) {
            Err(error) if error.code() == ErrorCode::INVALID_CONFIG => Ok(()),
            Err(error) => Err(error.into()),
            Ok(()) => Err(Outcome::Warned(format!(
                "an option '{UNKNOWN}' is taken silently; use #[serde(deny_unknown_fields)]"
            ))),
        }
    }
}

/// A policy over the boundary, where an error of a call is the panic that it was.
struct Panicking(ContainedPolicy);

fn succeeded<T>(result: Result<T>) -> T {
    result.unwrap_or_else(|error: Error| panic!("{error}"))
}

impl CachePolicy for Panicking {
    fn on_insert(&mut self, key: u64, weight: u64, now_ms: u64) {
        succeeded(self.0.on_insert(key, weight, now_ms));
    }
    fn on_hit(&mut self, key: u64, now_ms: u64) {
        succeeded(self.0.on_hit(key, now_ms));
    }
    fn on_remove(&mut self, key: u64) {
        succeeded(self.0.on_remove(key));
    }
    fn evict(&mut self, weight: u64, now_ms: u64, victims: &mut Vec<u64>) {
        succeeded(self.0.evict(weight, now_ms, |key| victims.push(key)));
    }
    fn on_capacity(&mut self, weight: u64) {
        succeeded(self.0.on_capacity(weight));
    }
    fn memory_use(&self) -> MemoryUse {
        self.0.memory_use()
    }
    fn tune(&mut self, name: &str, value: &str) -> Result<()> {
        self.0.tune(name, value)
    }
    fn describe(&self) -> String {
        self.0.describe()
    }
}
