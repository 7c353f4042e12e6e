//! `magray bench cache`: its figures are the published ones, of the plugins that it names.
use crate::support::{Home, LRU, S3FIFO, TINYLFU, shared};
use serde_json::Value;

fn bench(home: &Home, args: &[&str]) -> Value {
    let ran = home.run(&[&["bench", "cache", "--json"], args].concat()).expect(0);
    serde_json::from_str(&ran.stdout).expect("JSON")
}

fn ratio(answered: &Value) -> f64 {
    100.0 * answered["hit_ratio"].as_f64().expect("a ratio")
}

/// With the policies as files, which win over those that are built in.
fn with_plugins() -> Home {
    let home = Home::new();
    for plugin in [LRU, S3FIFO, TINYLFU] {
        home.install(plugin);
    }
    home
}

#[test]
fn lru_and_belady_are_the_published_ones_and_two_policies_beat_lru() {
    let home = with_plugins();
    let table = std::fs::read_to_string(shared("data/traces/ref_hit_ratios.tsv")).expect("figures");
    let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split('\t').collect()).collect();
    let column = |name: &str| rows[0].iter().position(|&of| of == name).expect("a column");
    for name in ["cache2k_web07", "cloudPhysicsIO"] {
        let rows: Vec<_> = rows.iter().filter(|row| row[0] == name).collect();
        let sizes = rows.iter().map(|row| row[1]).collect::<Vec<_>>().join(",");
        let trace = shared(&format!("data/traces/{name}.u32.zst"));
        let args = ["--trace", &*trace, "--caches", "lru,s3fifo,tinylfu", "--sizes", &*sizes];
        let measured = bench(&home, &args);
        for (row, size) in rows.iter().zip(measured["sizes"].as_array().expect("sizes")) {
            assert_eq!(size["capacity"].to_string(), row[1]);
            let policies = size["policies"].as_array().expect("policies");
            let ratios: Vec<f64> = policies.iter().map(ratio).collect();
            assert_eq!(format!("{:.4}", ratios[0]), row[column("LRU")], "{row:?}");
            assert_eq!(format!("{:.4}", ratio(&size["belady"])), row[column("OPT")], "{row:?}");
            assert!(ratios[1] > ratios[0] && ratios[2] > ratios[0], "{row:?}: {ratios:?}");
        }
        for cost in measured["operations"].as_array().expect("operations") {
            assert!(cost["hit_ns"].as_f64() > Some(0.0) && cost["miss_ns"].as_f64() > Some(0.0), "{cost}");
        }
    }
}

#[test]
fn misses_by_bytes_are_those_of_libcachesim() {
    let trace = shared("data/traces/cloudPhysicsIO.oracleGeneral.bin.zst");
    let sizes = (1..=8).map(|step| format!("{}MiB", 128 * step)).collect::<Vec<_>>().join(",");
    let measured = bench(&Home::new(), &["--trace", &trace, "--caches", "lru", "--sizes", &sizes]);
    let misses: Vec<u64> = measured["sizes"]
        .as_array()
        .expect("sizes")
        .iter()
        .map(|size| size["policies"][0]["misses"].as_u64().expect("a number"))
        .collect();
    assert_eq!(misses, [93374, 89783, 83572, 81722, 72494, 72104, 71972, 71704]);
}

#[test]
fn nine_of_ten_queries_like_zipf_are_answered() {
    let args = ["--zipf", "2000,1.0", "--requests", "100000", "--sizes", "75%"];
    let measured = bench(&Home::new(), &args);
    for policy in measured["sizes"][0]["policies"].as_array().expect("policies") {
        let in_use = policy["in_cache_hit_ratio"].as_f64().expect("a ratio");
        assert!(in_use > 0.9, "{policy}");
    }
}

#[test]
fn what_cannot_be_replayed_is_an_error() {
    let home = Home::new();
    home.file("t.u32", [1, 2, 3]);
    home.run(&["bench", "cache", "--trace", "t.u32"]).expect(2).says(&["t.u32", "bytes are left"]);
    home.run(&["bench", "cache"]).expect(2);
    home.run(&["bench", "cache", "--zipf", "9,1", "--sizes", "much"]).expect(2).says(&["percent"]);
    let unknown = home.run(&["bench", "cache", "--zipf", "9,1", "--caches", "no-such-policy"]);
    unknown.expect(2).says(&["no-such-policy", "s3fifo"]);
}
