//! What the tests of cache policies share: recorded traces with published hit ratios, and steps that a policy
//! and a plain model of it are led through side by side.
//!
//! Everything here panics with a message where something is missing or wrong, as tests want it.
use magray_plugin_api::CachePolicy;
use proptest::{prelude::*, test_runner::TestCaseError};
use std::{
    collections::{HashMap, HashSet},
    env, fs,
    io::Read as _,
    path::{Path, PathBuf},
};

/// Traces of real servers that a test has time for: a database, a web shop, virtual disks. The largest,
/// scarab-recs, is left to `magray bench cache`.
pub const RECORDED: [&str; 3] = ["arc_OLTP", "cache2k_web07", "cloudPhysicsIO"];

/// A published hit ratio.
#[derive(Clone, Debug)]
#[expect(missing_docs, reason = "the names say it")]
pub struct Published {
    pub trace: String,
    /// In entries.
    pub capacity: usize,
    /// Hits in a hundred requests, with four decimals.
    pub ratio: String,
}

/// The folder of the traces: in `$MAGRAY_SHARED`, else in `shared` beside the repository.
fn traces() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../../shared");
    let folder = env::var_os("MAGRAY_SHARED").map_or_else(beside, PathBuf::from).join("data/traces");
    assert!(
        folder.is_dir(),
        "there are no traces in {}: put the shared data beside the repository, or name its folder in MAGRAY_SHARED",
        folder.display()
    );
    folder
}

/// The keys of a trace, one a request.
pub fn trace(name: &str) -> Vec<u64> {
    let file = traces().join(format!("{name}.u32.zst"));
    let compressed = fs::File::open(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
    let mut bytes = Vec::new();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(compressed).expect("zstd");
    decoder.read_to_end(&mut bytes).expect("the whole trace");
    bytes.as_chunks().0.iter().map(|key| u64::from(u32::from_le_bytes(*key))).collect()
}

/// The published hit ratios of a policy, by its name in `ref_hit_ratios.tsv`.
pub fn published(policy: &str) -> Vec<Published> {
    let table = fs::read_to_string(traces().join("ref_hit_ratios.tsv")).expect("the published figures");
    let mut lines = table.lines().map(|line| line.split('\t').collect::<Vec<_>>());
    let column = lines.next().expect("names").iter().position(|&name| name == policy).expect("the policy");
    lines
        .map(|line| Published {
            trace: line[0].to_owned(),
            capacity: line[1].parse().expect("a size"),
            ratio: line[column].to_owned(),
        })
        .collect()
}

/// Requests in a hundred that a cache of `capacity` entries answers.
pub fn hit_ratio(policy: &mut dyn CachePolicy, requests: &[u64], capacity: usize) -> f64 {
    let (mut held, mut victims, mut hits) = (HashSet::new(), Vec::new(), 0u32);
    policy.on_capacity(capacity as u64);
    for &key in requests {
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

/// Something that happens to a cache.
#[derive(Clone, Debug)]
pub enum Step {
    /// A key is asked for, and inserted with this weight where it is not there.
    Ask(u64, u64),
    /// A key is inserted with this weight, there or not.
    Insert(u64, u64),
    /// A key is dropped for a reason of the host.
    Remove(u64),
    /// The cache may hold so much from now on.
    Capacity(u64),
    /// So much room is made beyond what must be.
    Room(u64),
    /// So many milliseconds pass.
    Wait(u64),
}

/// Steps with few keys, so that they meet again.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let key = || 0u64..40;
    let weight = || prop_oneof![3 => Just(1u64), 2 => 0u64..20];
    let step = prop_oneof![
        20 => (key(), weight()).prop_map(|(key, weight)| Step::Ask(key, weight)),
        2 => (key(), weight()).prop_map(|(key, weight)| Step::Insert(key, weight)),
        1 => key().prop_map(Step::Remove),
        1 => (0u64..100).prop_map(Step::Capacity),
        1 => (0u64..30).prop_map(Step::Room),
        1 => (0u64..1_500).prop_map(Step::Wait),
    ];
    prop::collection::vec(step, 0..400)
}

/// Leads a policy and a model of it through the same steps, as a host does. Both must name the same victims in
/// the same order; each victim is held, and named once; what is left fits; and at the end nothing is lost.
///
/// # Errors
/// What a property test makes of a failure.
pub fn agree(
    policy: &mut dyn CachePolicy,
    model: &mut dyn CachePolicy,
    steps: &[Step],
) -> Result<(), TestCaseError> {
    let mut held: HashMap<u64, u64> = HashMap::new();
    let (mut capacity, mut now_ms, mut room) = (50, 0, 0);
    for step in steps.iter().chain([&Step::Room(u64::MAX)]) {
        match *step {
            Step::Ask(key, _) if held.contains_key(&key) => {
                policy.on_hit(key, now_ms);
                model.on_hit(key, now_ms);
            }
            Step::Ask(key, weight) | Step::Insert(key, weight) => {
                policy.on_insert(key, weight, now_ms);
                model.on_insert(key, weight, now_ms);
                held.insert(key, weight);
            }
            Step::Remove(key) => {
                policy.on_remove(key);
                model.on_remove(key);
                held.remove(&key);
            }
            Step::Capacity(weight) => {
                capacity = weight;
                policy.on_capacity(weight);
                model.on_capacity(weight);
            }
            Step::Room(weight) => room = weight,
            Step::Wait(ms) => now_ms += ms,
        }
        let weight: u64 = held.values().sum();
        let over = weight.saturating_sub(capacity).max(std::mem::take(&mut room));
        let (mut victims, mut expected) = (Vec::new(), Vec::new());
        policy.evict(over, now_ms, &mut victims);
        model.evict(over, now_ms, &mut expected);
        let mut freed = 0;
        for key in &victims {
            let weight = held.remove(key);
            prop_assert!(weight.is_some(), "{key} is not there, in {victims:?} after {step:?}");
            freed += weight.unwrap_or(0);
        }
        prop_assert!(freed >= over.min(weight), "{freed} of {over} after {step:?}");
        prop_assert_eq!(victims, expected, "after {:?}", step);
    }
    prop_assert!(held.is_empty(), "lost: {held:?}");
    Ok(())
}
