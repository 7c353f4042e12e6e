//! Hit ratios on recorded traces, beside published ones.
use magray_cache_testkit::{RECORDED, hit_ratio, published, trace};
use magray_cache_tinylfu::{Options, TinyLfu};
use magray_plugin_api::CreateCachePolicy;
use magray_plugin_testkit::HOST;

#[test]
fn it_beats_lru_on_recorded_traces() {
    for name in RECORDED {
        let requests = trace(name);
        for lru in published("LRU").iter().filter(|figure| figure.trace == name) {
            let mut policy = TinyLfu::create(Options::default(), HOST).expect("a policy");
            let ratio = hit_ratio(&mut policy, &requests, lru.capacity);
            let published: f64 = lru.ratio.parse().expect("a figure");
            assert!(ratio > published, "{ratio:.4}, {lru:?}");
        }
    }
}
