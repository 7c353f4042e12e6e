//! `magray bench index`: its figures are of the plugins that it names, and a peer that lies is caught.
use crate::support::{HNSW, Home, Ran};
use serde_json::{Value, json};
use std::{fs, path::PathBuf};

const ROWS: usize = 600;
const QUERIES: usize = 24;
const DIM: usize = 16;

/// Writes a table of f32 as NumPy does.
fn table(home: &Home, name: &str, rows: &[Vec<f32>]) -> PathBuf {
    let header = format!(
        "{{'descr': '<f4', 'fortran_order': False, 'shape': ({}, {}), }}\n",
        rows.len(),
        rows[0].len()
    );
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend((header.len() as u16).to_le_bytes());
    bytes.extend(header.as_bytes());
    bytes.extend(rows.concat().iter().flat_map(|number| number.to_le_bytes()));
    home.file(name, bytes)
}

/// Points around a few centres, the same in every run.
fn points(count: usize, seed: u64) -> Vec<Vec<f32>> {
    let mut state = seed;
    let mut number = move || {
        // Of Knuth's MMIX.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    let point = |i: usize| (0..DIM).map(|d| ((i % 7 * 31 + d * 17) % 13) as f32 / 6.0 + number()).collect();
    (0..count).map(point).collect()
}

fn with_data() -> Home {
    let home = Home::new();
    table(&home, "set/base.f32.npy", &points(ROWS, 1));
    table(&home, "set/query.f32.npy", &points(QUERIES, 2));
    home
}

const BENCH: [&str; 6] = ["bench", "index", "--data", "set", "--runs", "1"];

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

#[test]
fn indexes_are_measured_through_their_plugins_each_with_its_recall() {
    let home = with_data();
    home.install(HNSW);
    // Small sets are compared one by one otherwise.
    let graph = "[memory.index.profiles.graph]\nplugin = 'hnsw'\noptions = { exact_below = 0, preset = 'ecommerce' }\n";
    home.file("config.toml", graph);
    let program = env!("CARGO_BIN_EXE_magray");
    // The worker of this very program is a peer like any other.
    let peer = format!("itself={program} --index flat bench index-worker");
    let args = [
        "--config",
        "config.toml",
        "--indexes",
        "flat,graph",
        "--peer",
        &peer,
        "--batch",
        "1,8",
        "--ef",
        "10,60",
    ];
    let measured = home.json(&[&BENCH[..], &args].concat());
    assert_eq!(
        (&measured["rows"], &measured["dim"], &measured["k"]),
        (&json!(ROWS), &json!(DIM), &json!(10))
    );
    let builds = measured["builds"].as_array().expect("builds");
    let [flat, graph, itself] = &builds[..] else { panic!("{measured}") };
    assert!(flat["engine"].as_str().is_some_and(|engine| engine.starts_with("magray-index-flat")), "{flat}");
    assert!(
        graph["engine"].as_str().is_some_and(|engine| engine.starts_with("magray-index-hnsw")),
        "{graph}"
    );
    assert!(graph["options"].as_str().is_some_and(|options| options.contains("ecommerce")), "{graph}");
    for build in [flat, graph, itself] {
        assert!(number(build, "vectors_per_cpu_s") > 0.0, "{build}");
        assert!(number(build, "file_bytes_per_vector") >= (DIM * 4) as f64, "the vectors at least: {build}");
    }
    let searches = measured["searches"].as_array().expect("searches");
    let names: Vec<_> = searches.iter().map(|searched| searched["name"].as_str().expect("a name")).collect();
    assert_eq!(names, ["flat", "graph", "itself"]);
    for searched in searches {
        let exact = searched["name"] != "graph";
        let curves = searched["curves"].as_array().expect("curves");
        assert_eq!(curves.iter().map(|curve| &curve["batch"]).collect::<Vec<_>>(), [&json!(1), &json!(8)]);
        for curve in curves {
            let points = curve["points"].as_array().expect("points");
            let best = points.iter().map(|point| number(point, "recall")).fold(0.0, f64::max);
            assert!(if exact { best == 1.0 } else { best > 0.9 }, "{curve}");
            assert!(points.iter().all(|point| point["setting"].as_object().is_some_and(|knobs| {
                knobs.keys().map(String::as_str).eq(if exact { &[][..] } else { &["ef"] }.iter().copied())
            })));
            for point in points {
                assert!(number(point, "queries_per_cpu_s") > 0.0 && number(point, "p50_ms") > 0.0, "{point}");
                assert!(number(point, "p50_ms") <= number(point, "p99_ms"), "{point}");
            }
            let at = curve["at"].as_array().expect("recalls");
            assert_eq!(
                at.iter().map(|at| number(at, "recall")).collect::<Vec<_>>(),
                [0.9, 0.95, 0.98, 0.99, 0.995, 0.998]
            );
            assert!(
                at.iter().all(|at| at["queries_per_cpu_s"].is_null() == (number(at, "recall") > best)),
                "{curve}"
            );
        }
        let filtered = searched["filtered"].as_array().expect("filters");
        assert_eq!(
            filtered.iter().map(|filtered| number(filtered, "share")).collect::<Vec<_>>(),
            [0.01, 0.1, 0.5]
        );
        for filtered in filtered {
            let recall = number(filtered, "recall");
            assert!(if exact { recall == 1.0 } else { recall > 0.8 }, "{searched}");
        }
        if cfg!(target_os = "linux") {
            assert!(searched["memory_bytes_per_vector"].is_number(), "{searched}");
        }
    }
}

#[test]
fn the_table_has_a_row_for_each_and_knobs_are_tuned_where_they_exist() {
    let home = with_data();
    home.install(HNSW);
    home.file(
        "config.toml",
        "[memory.index.profiles.graph]\nplugin = 'hnsw'\noptions = { exact_below = 0 }\n",
    );
    let tune = ["--tune", "ef_search=12,13", "--tune", "none_such=1", "--ef", "300", "--batch", "4"];
    let args = ["--config", "config.toml", "--metric", "l2", "--indexes", "flat,graph", "--queries", "5"];
    let args = [&BENCH[..], &args, &tune].concat();
    let ran = home.run(&args).expect(0);
    for part in
        ["set: 600 x 16, l2, 5 queries", "build, 1 thread", ".995", "4 queries a call", "ef_search=1", "50%"]
    {
        assert!(ran.stdout.contains(part), "no {part:?} in {}", ran.stdout);
    }
    assert!(!ran.stdout.contains("none_such"), "{}", ran.stdout);
    assert!(
        ran.stdout.lines().filter(|line| line.trim_start().starts_with("graph")).count() == 4,
        "{}",
        ran.stdout
    );
    let bad =
        [&BENCH[..], &["--config", "config.toml", "--indexes", "graph", "--tune", "ef_search=many"]].concat();
    home.run(&bad).expect(3).says(&["graph: ", "ef_search is 'many'"]);
}

/// A program that answers each task by a line of its own, whatever it is asked.
#[cfg(unix)]
fn liar(home: &Home, ready: &str, built: &str, opened: &str, found: &str) -> Ran {
    let answer = |task: &str, line: &str| format!("'{{\"{task}\"'*) {line} ;;\n");
    let script = format!(
        "while read -r line; do case \"$line\" in\n{}{}{}{}esac; done\n",
        answer("start", ready),
        answer("build", built),
        answer("open", opened),
        answer("search", found),
    );
    home.file("liar.sh", script);
    home.run(&[&BENCH[..], &["--queries", "1", "--batch", "1", "--peer", "liar=sh liar.sh"]].concat())
}

#[cfg(unix)]
#[test]
fn a_peer_that_dies_talks_nonsense_or_answers_wrongly_is_named() {
    let home = with_data();
    let say = |reply: Value| format!("echo '{reply}'");
    let ready = say(json!({ "ready": { "engine": "liar 1", "options": "" } }));
    let built = say(json!({ "built": { "cpu_s": 1.0, "seconds": 1.0 } }));
    let open = |settings: Value| {
        say(json!({ "opened": { "seconds": 0.1, "first_s": 0.1, "filters": true, "settings": settings } }))
    };
    let opened = open(json!([{ "ef": "10" }]));
    let found = |ids: Value| say(json!({ "found": { "cpu_s": 0.5, "seconds": [0.5], "ids": ids } }));
    let whole = found(json!([[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]]));
    let caught = |said: &str, ready: &str, built: &str, opened: &str, found: &str| {
        liar(&home, ready, built, opened, found).expect(3).says(&["liar: ", said]);
    };
    caught("it has ended", "exit 1", &built, &opened, &whole);
    caught("it has ended", &ready, "kill -9 $$", &opened, &whole);
    caught("it has ended", &ready, &built, "exit 0", &whole);
    caught("it has ended", &ready, &built, &opened, "exit 0");
    caught("an odd answer", "echo hello", &built, &opened, &whole);
    caught("an odd answer", &ready, &ready, &opened, &whole);
    caught("an odd answer", &ready, &built, &open(json!([])), &whole);
    caught("an odd answer", &ready, &built, &opened, "echo '{\"found\":{}}'");
    let refusal = say(json!({ "error": "no room for 600 vectors" }));
    caught("no room for 600 vectors", &ready, &refusal, &opened, &whole);
    caught(
        "query 0 with id 600, and there are 600 vectors",
        &ready,
        &built,
        &opened,
        &found(json!([[3, 600]])),
    );
    caught("id 3 twice", &ready, &built, &opened, &found(json!([[3, 3]])));
    caught("it answers 2 queries of 1", &ready, &built, &opened, &found(json!([[3], [4]])));
    // Right without a filter, and what the first filter forbids with one.
    caught("which the filter forbids", &ready, &built, &opened, &whole);
    let timeless = say(json!({ "found": { "cpu_s": 0.0, "seconds": [0.5], "ids": [[1]] } }));
    caught("0 CPU-seconds", &ready, &built, &opened, &timeless);
}

#[test]
fn what_cannot_be_measured_is_said_before_anything_is_built() {
    let home = with_data();
    let run = |args: &[&str]| home.run(&[&["bench", "index"], args].concat());
    run(&[]).expect(2).says(&["--data"]);
    run(&["--data", "nowhere"]).expect(2).says(&["nowhere", "base.f16.npy"]);
    run(&["--data", "set", "--indexes", "none-such"]).expect(3).says(&["none-such"]);
    run(&["--data", "set", "--metric", "manhattan"]).expect(2).says(&["cosine, dot, l2"]);
    run(&["--data", "set", "--recall", "1.5"]).expect(2).says(&["from 0 to 1"]);
    run(&["--data", "set", "--peer", "nameless"]).expect(2).says(&["NAME=COMMAND"]);
    let base = home.path().join("set/base.f32.npy");
    let whole = fs::read(&base).expect("the table");
    fs::write(&base, &whole[..whole.len() - 1]).expect("a file");
    run(&["--data", "set"]).expect(2).says(&["base.f32.npy", "600 rows of 16 numbers are"]);
    fs::write(&base, String::from_utf8_lossy(&whole[..80]).replace("False", "True ").as_bytes())
        .expect("a file");
    run(&["--data", "set"]).expect(2).says(&["base.f32.npy"]);
    table(&home, "set/base.f32.npy", &points(12, 1).iter().map(|row| row[..8].to_vec()).collect::<Vec<_>>());
    run(&["--data", "set"]).expect(2).says(&["16 wide, and those of the base 8"]);
}
