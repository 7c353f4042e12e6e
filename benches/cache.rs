//! Time of one operation of the cache policies, in a full cache of 100,000 entries, and of a look into
//! the cache that they rule.

#![expect(clippy::print_stderr, reason = "sizes that criterion has no place for")]
use criterion::{Criterion, criterion_group, criterion_main};
use magray::{
    config::Config,
    embedding::{CacheLimits, Candidate, Embedding, EmbeddingCache, Made},
    plugins::{PluginOptions, Plugins},
    store::{CacheKey, CacheSpace, DiskCache, DiskCacheOptions},
};
use magray_cache_lru::{Lru, Options};
use magray_plugin_api::{
    CachePolicy, CallContext, CreateCachePolicy, DeviceReport, Embedder, EmbedderInfo, Result, Role,
};
use magray_plugin_testkit::{Cx, HOST};
use std::{env, fs, hint::black_box, sync::Arc};

const ENTRIES: u64 = 100_000;

/// Keys in no order that a cache of the processor could foresee.
fn key(i: u64) -> u64 {
    i.wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

fn lru(c: &mut Criterion) {
    let mut policy = Lru::create(Options::default(), HOST).unwrap_or_else(|error| panic!("{error}"));
    (0..ENTRIES).for_each(|i| policy.on_insert(key(i), 1, 0));
    let (mut newest, mut victims) = (ENTRIES, Vec::new());
    c.bench_function("lru/insert-and-evict", |b| {
        b.iter(|| {
            policy.on_insert(key(newest), 1, newest);
            newest += 1;
            victims.clear();
            policy.evict(1, newest, &mut victims);
            black_box(&victims);
        });
    });
    let mut hit = 0u64;
    c.bench_function("lru/hit", |b| {
        b.iter(|| {
            hit = hit.wrapping_add(7_919);
            policy.on_hit(key(newest - 1 - hit % ENTRIES), newest);
        });
    });
}

const DIM: usize = 384;

/// Unit vectors at no cost, so that what is left is the cache.
struct Axis(EmbedderInfo);

impl Embedder for Axis {
    fn info(&self) -> &EmbedderInfo {
        &self.0
    }
    fn device(&self) -> DeviceReport {
        DeviceReport::default()
    }
    fn count_tokens(&self, _: &[&str], out: &mut [u32]) -> Result<()> {
        out.fill(1);
        Ok(())
    }
    fn embed(&self, _: &dyn CallContext, texts: &[&str], _: Role, out: &mut [f32]) -> Result<()> {
        out.fill(0.0);
        (0..texts.len()).for_each(|row| out[row * DIM] = 1.0);
        Ok(())
    }
}

/// A query that is answered from memory: hash of the key, look-up, word to the policy, copy. The
/// policy is that of the plugin file.
fn hit(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let library = format!("{}magray_cache_lru_plugin{}", env::consts::DLL_PREFIX, env::consts::DLL_SUFFIX);
    let built = env::current_exe().expect("this program").with_file_name(&library);
    fs::copy(built, folder.path().join(library)).expect("the plugin is built");
    let options = PluginOptions { folders: vec![folder.path().into()], ..PluginOptions::default() };
    let policy = Plugins::discover(options, &[]).cache_policy("lru", "{}").expect("a policy");
    let limits = CacheLimits { max_bytes: u64::MAX, max_entries: ENTRIES as usize };
    let info =
        EmbedderInfo { dim: DIM, max_tokens: 256, max_batch: 4096, model: "axis".into(), space: [1; 32] };
    let make = move || Ok(Made { embedder: Box::new(Axis(info.clone())), origin: "axis".to_owned() });
    let axis = Candidate { profile: "axis".to_owned(), make: Box::new(make) };
    let defaults = Config::load(None, std::iter::empty(), &[]).expect("the defaults").config;
    let cache = EmbeddingCache::new(policy, limits);
    let embedding = Embedding::new(vec![axis], None, cache, &(&defaults).into()).expect("it starts");
    let texts: Vec<String> =
        (0..ENTRIES).map(|i| format!("how are the backups of machine {i} made and kept")).collect();
    let embed = |text: &str| embedding.embed(&Cx::free(), &[text], Role::Query).expect("a vector");
    texts.iter().for_each(|text| drop(embed(text)));
    let mut at = 0;
    c.bench_function("cache/hit in memory, 384 wide", |b| {
        b.iter(|| {
            at = (at + 7_919) % texts.len();
            black_box(embed(&texts[at]));
        });
    });
    assert_eq!(embedding.cache().memory().counts.evictions, 0);
}

/// The level on disk, with as many entries.
fn disk(c: &mut Criterion) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = DiskCacheOptions { ttl: None, max_bytes: u64::MAX, max_entries: u64::MAX, lookups: 1000 };
    let cache = DiskCache::new(&folder.path().join("cache.db"), options);
    let space = Arc::new(CacheSpace { digest: [1; 32], model: "axis".into(), dim: DIM });
    let vector: Vec<f32> = (0..DIM).map(|i| i as f32 / 1000.0).collect();
    let of = |i: u64| CacheKey { id: key(i), check: i };
    for i in 0..ENTRIES {
        cache.put(&space, of(i), &vector);
        if i % 1000 == 0 {
            cache.flush();
        }
    }
    cache.flush();
    let stats = cache.stats().expect("a file");
    let file = fs::metadata(cache.path()).expect("the file").len();
    eprintln!("{} entries, {} bytes on the books, {file} in the file", stats.entries, stats.bytes);
    let (mut at, mut out) = (0, vec![0.0; DIM]);
    c.bench_function("cache/hit on disk, 384 wide", |b| {
        b.iter(|| {
            at = (at + 7_919) % ENTRIES;
            cache.get(of(at), &mut out).expect("a hit");
        });
    });
    c.bench_function("cache/miss on disk", |b| {
        b.iter(|| {
            at += 1;
            black_box(cache.get(CacheKey { id: at, check: at }, &mut out));
        });
    });
    let mut next = ENTRIES;
    c.bench_function("cache/write to disk, a text of 512", |b| {
        b.iter(|| {
            for _ in 0..512 {
                next += 1;
                cache.put(&space, of(next), &vector);
            }
            cache.flush();
        });
    });
}

criterion_group!(benches, lru, hit, disk);
criterion_main!(benches);
