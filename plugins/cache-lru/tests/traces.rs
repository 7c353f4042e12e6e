//! Hit ratios on traces, against published figures: LRU is exact, so every digit must agree. The largest
//! traces are left to `magray bench cache`.
use magray_cache_lru::{Lru, Options};
use magray_cache_testkit::{hit_ratio, published, trace};
use magray_plugin_api::CreateCachePolicy;
use magray_plugin_testkit::HOST;
use std::collections::HashMap;

#[test]
fn hit_ratios_are_the_published_ones() {
    let mut traces = HashMap::new();
    for figure in published("LRU") {
        if ["arc_OLTP", "lirs_loop", "scarab_scarab-recs"].contains(&&*figure.trace) {
            continue;
        }
        let requests = traces.entry(figure.trace.clone()).or_insert_with(|| trace(&figure.trace));
        let mut policy = Lru::create(Options { ttl_seconds: 0, evict_batch: 1 }, HOST).expect("a policy");
        let ratio = hit_ratio(&mut policy, requests, figure.capacity);
        assert_eq!(format!("{ratio:.4}"), figure.ratio, "{figure:?}");
    }
    assert_eq!(traces.len(), 10);
}
