//! A host of plugin API 1.0: loads a library, makes the component that it is told to, and uses it.
//! `magray-old-host LIBRARY embedder|index|cache_policy NAME`
use magray_plugin_api::{
    CallContext, Hit, Host, IndexSpec, LogLevel, Metric, Result, Role, SearchParams,
    host::{PluginHandle, ROOT_SYMBOL},
};
use std::{env, path::PathBuf, time::Duration};

struct OldHost;
impl Host for OldHost {
    fn log_enabled(&self, _: LogLevel, _: &str) -> bool {
        true
    }
    fn log(&self, _: LogLevel, target: &str, message: &str) {
        println!("log {target}: {message}");
    }
    fn threads(&self) -> usize {
        1
    }
    fn memory_budget(&self) -> Option<u64> {
        None
    }
    fn data_dir(&self) -> Result<PathBuf> {
        Ok(env::temp_dir())
    }
    fn models_dir(&self) -> PathBuf {
        env::temp_dir()
    }
    fn count(&self, name: &str, value: u64) {
        println!("count {name} {value}");
    }
}

struct Free;
impl CallContext for Free {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _: u64, _: u64) {}
}

fn main() {
    let args: Vec<String> = env::args().skip(1).collect();
    let [library, kind, name] = &args[..] else { panic!("usage: LIBRARY KIND NAME") };
    let library = Box::leak(Box::new(unsafe { libloading::Library::new(library) }.expect("it opens")));
    let symbol = unsafe { library.get::<*const ()>(ROOT_SYMBOL) }.expect("it has a root");
    let address = unsafe { symbol.try_as_raw_ptr() }.expect("an address").cast_const().cast();
    let plugin =
        unsafe { PluginHandle::from_symbol(address, &OldHost) }.expect("it fits").expect("it starts");
    match kind.as_str() {
        "embedder" => {
            let embedder = plugin.embedder(name, "{}").expect("an embedder");
            let mut out = vec![0.0; embedder.info().dim];
            embedder.embed(&Free, &["an old friend"], Role::Passage, &mut out).expect("a vector");
            println!("norm {:.3}", out.iter().map(|v| v * v).sum::<f32>().sqrt());
        }
        "index" => {
            let spec = IndexSpec { dim: 2, metric: Metric::Cosine };
            let index = plugin.index(name, "{}", spec, None).expect("an index");
            index.upsert(&Free, &[4, 5], &[1.0, 0.0, 0.0, 1.0]).expect("two vectors");
            let mut out = [Hit::NONE; 1];
            index.search(&Free, &[0.1, 0.9], 1, SearchParams::default(), None, &mut out).expect("a hit");
            println!("nearest {}", out[0].id);
        }
        _ => {
            let mut policy = plugin.cache_policy(name, "{}").expect("a policy");
            policy.on_insert(1, 10, 0).expect("room");
            policy.evict(10, 1, |key| println!("victim {key}")).expect("a victim");
        }
    }
}
