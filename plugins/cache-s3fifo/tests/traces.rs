//! Hit ratios on recorded traces, beside published ones.
use magray_cache_s3fifo::{Options, S3Fifo};
use magray_cache_testkit::{RECORDED, hit_ratio, published, trace};
use magray_plugin_api::CreateCachePolicy;
use magray_plugin_testkit::HOST;

#[test]
fn it_beats_lru_on_recorded_traces() {
    for name in RECORDED {
        let requests = trace(name);
        for lru in published("LRU").iter().filter(|figure| figure.trace == name) {
            let mut policy = S3Fifo::create(Options::default(), HOST).expect("a policy");
            let ratio = hit_ratio(&mut policy, &requests, lru.capacity);
            let published: f64 = lru.ratio.parse().expect("a figure");
            assert!(ratio > published, "{ratio:.4}, {lru:?}");
        }
    }
}

#[test]
fn it_is_the_published_one() {
    for figure in published("S3FIFO") {
        if ["arc_OLTP", "scarab_scarab-recs", "lirs_loop"].contains(&&*figure.trace) {
            continue;
        }
        let requests = trace(&figure.trace);
        let mut policy = S3Fifo::create(Options::default(), HOST).expect("a policy");
        let ratio = hit_ratio(&mut policy, &requests, figure.capacity);
        let published: f64 = figure.ratio.parse().expect("a figure");
        // Both leave open how the cache is filled at first, which decides at the smallest sizes.
        assert!(ratio > published - 2.0, "{ratio:.4}, {figure:?}");
    }
}
