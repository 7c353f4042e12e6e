//! What the plugin boundary costs: a call, and a load.
use criterion::{BatchSize, Criterion, criterion_group, criterion_main};
use magray::plugins::{PluginOptions, Plugins};
use magray_plugin_api::CachePolicy;
use std::{
    env, fs,
    hint::black_box,
    path::{Path, PathBuf},
};

/// The policy behind the boundary does nothing in `on_hit`, and so does this.
struct Nothing;
impl CachePolicy for Nothing {
    fn on_insert(&mut self, _: u64, _: u64, _: u64) {}
    fn on_hit(&mut self, key: u64, _: u64) {
        black_box(key);
    }
    fn on_remove(&mut self, _: u64) {}
    fn evict(&mut self, _: u64, _: u64, _: &mut Vec<u64>) {}
}

/// A library that cargo built for this bench.
fn built(library: &str) -> PathBuf {
    let bench = env::current_exe().expect("this program");
    let file = format!("{}{library}{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    bench.parent().expect("its folder").join(file)
}

fn install(library: &str, folder: &Path) {
    let from = built(library);
    fs::copy(&from, folder.join(from.file_name().expect("a name"))).expect("the plugin is built");
}

fn call(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    install("magray_chaos_plugin", folder.path());
    let options = PluginOptions { folders: vec![folder.path().into()], ..PluginOptions::default() };
    let plugins = Plugins::discover(options, &[]);
    let mut policy = plugins.cache_policy("chaos", "{}").expect("a policy");
    let mut group = c.benchmark_group("call");
    group.bench_function("through a loaded library, panics caught", |b| {
        b.iter(|| policy.on_hit(black_box(7), black_box(9)).expect("no panic"));
    });
    let mut direct: Box<dyn CachePolicy> = Box::new(Nothing);
    group.bench_function("through a trait object in this program", |b| {
        b.iter(|| direct.on_hit(black_box(7), black_box(9)));
    });
    group.finish();
}

/// From the manifest to a started plugin. Each load is of a copy, since the linker knows a file
/// that it has opened.
fn load(c: &mut Criterion) {
    let mut group = c.benchmark_group("load");
    group.sample_size(20);
    for library in ["magray_cache_lru_plugin", "magray_index_hnsw_plugin", "magray_embed_cpu_plugin"] {
        group.bench_function(library, |b| {
            b.iter_batched(
                || {
                    let folder = tempfile::tempdir().expect("a folder");
                    install(library, folder.path());
                    let file =
                        folder.path().read_dir().expect("a folder").next().expect("a file").expect("a file");
                    (file.path(), folder)
                },
                |(path, folder)| {
                    let verdict = Plugins::try_library(&path, folder.path());
                    assert!(verdict.ends_with(':'), "{verdict}");
                    folder
                },
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

criterion_group!(benches, call, load);
criterion_main!(benches);
