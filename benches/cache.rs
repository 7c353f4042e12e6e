//! Time of one operation of the cache policies, in a full cache of 100,000 entries.

use criterion::{Criterion, criterion_group, criterion_main};
use magray_cache_lru::{Lru, Options};
use magray_plugin_api::{CachePolicy, CreateCachePolicy};
use magray_plugin_testkit::HOST;
use std::hint::black_box;

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

criterion_group!(benches, lru);
criterion_main!(benches);
