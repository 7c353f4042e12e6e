//! Hit ratios on recorded traces, against published figures (`ref_hit_ratios.tsv` says which; LRU is
//! exact, so every digit must agree). The quicker traces only.
use magray_cache_lru::{Lru, Options};
use magray_plugin_api::{CachePolicy, CreateCachePolicy};
use magray_plugin_testkit::HOST;
use std::{
    collections::HashSet,
    env, fs,
    io::Read as _,
    path::{Path, PathBuf},
};

const TRACES: [&str; 9] = [
    "cache2k_web07",
    "lirs_2_pools",
    "lirs_cpp",
    "lirs_cs",
    "lirs_gli",
    "lirs_multi1",
    "lirs_multi2",
    "lirs_ps",
    "lirs_sprite",
];

/// The folder of the traces: in `$MAGRAY_SHARED`, else in `shared` beside the repository.
fn traces() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared");
    let folder = env::var_os("MAGRAY_SHARED").map_or_else(beside, PathBuf::from).join("data/traces");
    assert!(
        folder.is_dir(),
        "there are no traces in {}: put the shared data beside the repository, or name its folder in MAGRAY_SHARED",
        folder.display()
    );
    folder
}

/// The keys of a trace, one a request.
fn requests(file: &Path) -> Vec<u32> {
    let compressed = fs::File::open(file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut bytes = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(compressed).expect("zstd");
    decoder.read_to_end(&mut bytes).expect("the whole trace");
    bytes.as_chunks().0.iter().map(|key| u32::from_le_bytes(*key)).collect()
}

/// Requests in a hundred that a cache of `capacity` entries answers.
fn hit_ratio(requests: &[u32], capacity: usize) -> f64 {
    let mut policy = Lru::create(Options { ttl_seconds: 0, evict_batch: 1 }, HOST).expect("a policy");
    let (mut held, mut victims, mut hits) = (HashSet::new(), Vec::new(), 0u32);
    for &request in requests {
        let key = u64::from(request);
        if held.contains(&key) {
            hits += 1;
            policy.on_hit(key, 0);
            continue;
        }
        held.insert(key);
        policy.on_insert(key, 1, 0);
        if held.len() > capacity {
            policy.evict(1, 0, &mut victims);
            for victim in victims.drain(..) {
                assert!(held.remove(&victim), "a victim that is not held");
            }
        }
        assert!(held.len() <= capacity);
    }
    100.0 * f64::from(hits) / requests.len() as f64
}

#[test]
fn hit_ratios_are_the_published_ones() {
    let folder = traces();
    let table = fs::read_to_string(folder.join("ref_hit_ratios.tsv")).expect("the published figures");
    let mut lines = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let column = lines.next().expect("names").iter().position(|&name| name == "LRU").expect("LRU");
    let published: Vec<_> = lines.collect();
    for trace in TRACES {
        let requests = requests(&folder.join(format!("{trace}.u32.zst")));
        let sizes: Vec<_> = published.iter().filter(|line| line[0] == trace).collect();
        assert!(!sizes.is_empty(), "{trace} is not in the table");
        for line in sizes {
            let ratio = hit_ratio(&requests, line[1].parse().expect("a size"));
            assert_eq!(format!("{ratio:.4}"), line[column], "{trace}, {} entries", line[1]);
        }
    }
}
