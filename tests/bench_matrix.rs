//! `magray bench matrix`: all combinations, a file to go on from, a recommendation that is a configuration, and a
//! report that a browser shows without network.
use crate::support::{HNSW, Home};
use serde_json::Value;
use std::{
    collections::HashSet,
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const SUBJECTS: [&str; 6] = [
    "the backup of the database runs every night and is verified before it counts",
    "a plugin that panics is an error of one call and never the end of the program",
    "the staging key rotates on mondays and the old one is good for another day",
    "vectors of two models never meet in one index, for their distances mean nothing",
    "the scheduler gives way to searches while the machine is busy with other work",
    "a cache keeps what was asked for often and drops what nobody asked for lately",
];

/// A set in BEIR's layout of 72 documents and 12 questions.
fn with_set(home: &Home) {
    let document = |n: usize| {
        let (subject, other) = (SUBJECTS[n % 6], SUBJECTS[(n / 6 + n) % 6]);
        let middle = other.split(' ').skip(n / 6 % 5).take(5).collect::<Vec<_>>().join(" ");
        format!(
            "{{\"_id\":\"d{n}\",\"title\":\"note {n}\",\"text\":\"{subject}. room {n} says: {middle}\"}}\n"
        )
    };
    home.file("set/corpus.jsonl", (0..72).map(document).collect::<String>());
    let question = |n: usize| {
        let words = SUBJECTS[n % 6].split(' ').skip(n / 6).step_by(2).collect::<Vec<_>>().join(" ");
        format!("{{\"_id\":\"q{n}\",\"text\":\"{words}\"}}\n")
    };
    home.file("set/queries.jsonl", (0..12).map(question).collect::<String>());
    let judged = |n: usize| (0..12).map(move |i| format!("q{n}\td{}\t1\n", n % 6 + 6 * i));
    home.file(
        "set/qrels/test.tsv",
        "query-id\tcorpus-id\tscore\n".to_owned() + &(0..12).flat_map(judged).collect::<String>(),
    );
}

const MATRIX: [&str; 14] = [
    "bench",
    "matrix",
    "--caches",
    "lru",
    "--runs",
    "2",
    "--ef",
    "16,100",
    "--rescore",
    "20",
    "--requests",
    "3000",
    "--cache-share",
    "0.1,0.5",
];

fn measure(home: &Home, args: &[&str]) -> Value {
    home.json(&[&MATRIX[..], args].concat())
}

fn number(value: &Value, name: &str) -> f64 {
    value[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {value}"))
}

fn list<'a>(value: &'a Value, name: &str) -> &'a [Value] {
    value[name].as_array().unwrap_or_else(|| panic!("no list {name} in {value}"))
}

/// With a graph that is one for so few vectors too.
fn with_graph() -> Home {
    let home = Home::new();
    home.install(HNSW);
    home.file(
        "config.toml",
        "[memory.index.profiles.graph]\nplugin = 'hnsw'\noptions = { exact_below = 0, preset = 'realtime' }\n",
    );
    with_set(&home);
    home
}

const PARTS: [&str; 8] =
    ["--config", "config.toml", "--data", "set", "--backends", "cpu", "--indexes", "flat,graph"];

#[test]
fn every_combination_is_measured_and_an_interrupted_matrix_goes_on() {
    let home = with_graph();
    let args = [&PARTS[..], &["--resume", "run.jsonl"]].concat();
    let matrix = measure(&home, &args);
    assert_eq!((number(&matrix, "documents"), number(&matrix, "questions")), (72.0, 12.0));
    assert!(list(&matrix, "faults").is_empty(), "{matrix}");
    let [backend] = list(&matrix, "backends") else { panic!("{matrix}") };
    let exact = number(&backend["exact"], "ndcg_10");
    // Each question has the words of its twelve documents.
    assert!(exact > 0.5 && number(&backend["texts_per_s"], "low") > 0.0, "{backend}");
    let [flat, graph] = list(&matrix, "indexes") else { panic!("{matrix}") };
    let [point] = list(flat, "points") else { panic!("{flat}") };
    assert_eq!(number(point, "recall"), 1.0);
    assert!((number(point, "ndcg_10") - exact).abs() < 1e-6, "{point} {exact}");
    assert!(!list(graph, "points").is_empty(), "{graph}");
    for index in [flat, graph] {
        assert!(number(index, "disk_bytes") >= 72.0 * 256.0 * 4.0 / 4.0, "{index}");
        assert!(number(&index["held"], "resident") + number(&index["held"], "mapped") > 0.0, "{index}");
        for point in list(index, "points") {
            let calls = point["calls"].as_object().expect("a histogram");
            assert!(calls.values().map(|count| count.as_u64().unwrap_or(0)).sum::<u64>() >= 24, "{point}");
        }
    }
    let [small, large] = list(&matrix, "caches") else { panic!("{matrix}") };
    assert_eq!((number(small, "capacity"), number(large, "capacity")), (8.0, 42.0));
    assert!(number(small, "hit_ratio") < number(large, "hit_ratio"), "{small} {large}");
    let rows = list(&matrix, "rows");
    let names: HashSet<_> =
        rows.iter().map(|row| (row["index"].to_string(), row["cache_share"].to_string())).collect();
    assert_eq!((rows.len(), names.len()), (4, 4));
    for row in rows {
        assert!(number(row, "p50_ms") <= number(row, "p99_ms") && number(row, "memory_bytes") > 0.0, "{row}");
    }

    // Two runs of a backend, two indexes and two caches, below a heading.
    let file = home.path().join("run.jsonl");
    let whole = fs::read_to_string(&file).expect("the file");
    let lines: Vec<&str> = whole.lines().collect();
    assert_eq!(lines.len(), 1 + 2 * 5);
    let kept = lines[..4].join("\n") + "\n";
    fs::write(&file, format!("{kept}{}", &lines[4][..20])).expect("cut off");
    measure(&home, &args);
    let again = fs::read_to_string(&file).expect("the file");
    assert!(again.starts_with(&kept), "what was measured is measured once: {again}");
    let cells = |text: &str| {
        let cell = |line: &str| serde_json::from_str::<Value>(line).expect("a line")["cell"].to_string();
        text.lines().skip(1).map(cell).collect::<HashSet<_>>()
    };
    assert_eq!((again.lines().count(), cells(&again)), (11, cells(&whole)));
    // Nothing is left to do, and an index that is added is all that is measured.
    measure(&home, &args);
    assert_eq!(fs::read_to_string(&file).expect("the file"), again);
    let more = [&PARTS[..7], &["flat,graph,native", "--resume", "run.jsonl"]].concat();
    assert_eq!(list(&measure(&home, &more), "rows").len(), 6);
    assert_eq!(fs::read_to_string(&file).expect("the file").lines().count(), 13);

    home.run(&[&MATRIX[..], &args, &["--batch", "8"]].concat())
        .expect(2)
        .says(&["run.jsonl", "another matrix"]);
    // Who deletes it, as is said then, leaves the vectors of the other matrix beside it.
    fs::remove_file(&file).expect("it is there");
    let other = measure(&home, &[&args[..], &["--limit", "2"]].concat());
    let exact = number(&list(&other, "backends")[0]["exact"], "ndcg_10");
    let found = number(&list(&list(&other, "indexes")[0], "points")[0], "ndcg_10");
    assert!(number(&other, "documents") < 72.0 && (found - exact).abs() < 1e-6, "{found} {exact}");
}

#[test]
fn one_that_cannot_be_measured_is_named_and_the_others_are_measured() {
    let home = with_graph();
    let parts = ["--data", "set", "--runs", "1", "--backends", "cpu,onnx", "--indexes", "flat,none-such"];
    let run = |parts: &[&str]| home.run(&[&["bench", "matrix", "--requests", "100"], parts].concat());
    let ran = run(&parts).expect(0).says(&["onnx", "none-such"]);
    assert!(ran.stdout.contains("cpu + flat + lru"), "{}", ran.stdout);
    assert!(!ran.stdout.contains("none-such"), "{}", ran.stdout);
    run(&["--data", "set", "--backends", "onnx"]).expect(3).says(&["no backend could be measured"]);
    run(&["--data", "nowhere"]).expect(2).says(&["nowhere"]);
    run(&["--backends", "cpu"]).expect(2).says(&["no record is long enough"]);
    run(&["--data", "set", "--max-memory", "much"]).expect(2).says(&["number of bytes"]);
}

#[test]
fn what_is_recommended_of_own_records_is_a_configuration_that_works() {
    let home = with_graph();
    let lines: String =
        (0..40).map(|n| format!("{}. It was said in meeting {n} of the year.\n", SUBJECTS[n % 6])).collect();
    home.file("own.txt", lines);
    home.run(&["add", "--lines", "--file", "own.txt"]).expect(0);
    let parts = ["--config", "config.toml", "--backends", "cpu", "--indexes", "graph", "--recommend"];
    let args = [&MATRIX[..], &parts, &["--objective", "latency", "--min-recall", "0.2"]].concat();
    let toml = home.run(&args).expect(0).stdout;
    assert!(toml.contains("# ") && toml.contains("40 texts and 40 questions"), "{toml}");
    // The profile is the user's, so it is there beside what is recommended.
    let own = fs::read_to_string(home.path().join("config.toml")).expect("the config");
    home.file("new.toml", own + &toml);
    home.run(&["config", "check", "new.toml"]).expect(0);
    let found = home.json(&["--config", "new.toml", "search", "which key rotates on mondays"]);
    assert_eq!(found["index"], "graph");
    let none = [&MATRIX[..], &parts, &["--max-memory", "1K"]].concat();
    home.run(&none).expect(1).says(&["nothing finds 0.95 of the nearest in 1.00 KiB"]);
}

/// Chromium, or a browser of its kind.
fn browser() -> PathBuf {
    let names = ["chromium", "chromium-browser", "google-chrome", "chrome"];
    let folders: Vec<PathBuf> = env::split_paths(&env::var_os("PATH").unwrap_or_default()).collect();
    let found = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    let named = env::var_os("MAGRAY_CHROMIUM").map(PathBuf::from);
    named.into_iter().chain(found).find(|path| path.is_file()).unwrap_or_else(|| {
        panic!("no Chromium to open the report in: apt-get install chromium, or name one by MAGRAY_CHROMIUM")
    })
}

/// The page after its scripts have run, and what they said on the console.
fn opened(home: &Home, page: &Path) -> (String, Vec<String>) {
    let profile = format!("--user-data-dir={}", home.path().join("browser").display());
    let output = Command::new(browser())
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"])
        .args(["--enable-logging=stderr", "--v=0", "--host-resolver-rules=MAP * ~NOTFOUND", "--dump-dom"])
        .arg(profile)
        .arg(format!("file://{}", page.display()))
        .output()
        .expect("the browser runs");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{said}");
    let console = said.lines().filter(|line| line.contains(":CONSOLE")).map(str::to_owned).collect();
    (String::from_utf8(output.stdout).expect("UTF-8"), console)
}

#[test]
fn the_report_is_shown_by_a_browser_without_network() {
    let home = with_graph();
    // The worker of this very program is a peer like any other.
    let peer = format!("itself={} --index flat bench index-worker", env!("CARGO_BIN_EXE_magray"));
    let matrix = measure(&home, &[&PARTS[..], &["--peer", &peer, "--html", "report.html"]].concat());
    let peers =
        list(&matrix, "indexes").iter().filter(|index| index["peer"] == true).map(|index| &index["name"]);
    assert_eq!(peers.collect::<Vec<_>>(), ["itself"]);
    assert_ne!(matrix["recommendation"]["row"]["index"], "itself", "no configuration names it");
    let page = home.path().join("report.html");
    let text = fs::read_to_string(&page).expect("the report");
    assert!(!text.replace("http://www.w3.org/2000/svg", "").contains("http"), "it asks for nothing");
    let (dom, console) = opened(&home, &page);
    assert_eq!(console, [""; 0]);
    let count = |part: &str| dom.matches(part).count();
    let points: usize = list(&matrix, "indexes").iter().map(|index| list(index, "points").len()).sum();
    let [backends, indexes, caches] = ["backends", "indexes", "caches"].map(|part| list(&matrix, part).len());
    assert_eq!(count("class=\"mark point\""), points);
    assert_eq!((count("class=\"front\""), count("class=\"cdf\"")), (indexes, indexes));
    assert_eq!(count("class=\"mark percentile\""), 3 * indexes);
    assert_eq!(count("class=\"mark bar\""), 2 * backends + indexes + caches);
    assert_eq!(count("class=\"whisker\""), backends);
    // Of the headings and of all rows.
    let lines = list(&matrix, "rows").len() + backends + points + caches;
    assert_eq!(count("<tr>"), 4 + lines, "{dom}");
    for part in ["all runs together", "72 texts", "profile = \"cpu\""] {
        assert!(dom.contains(part), "no {part:?} in {dom}");
    }

    // A page that is broken is seen to be.
    let broken = home.file("broken.html", text.replace("pareto(); latency();", "paretto();"));
    let (_, console) = opened(&home, &broken);
    assert!(console.iter().any(|line| line.contains("paretto")), "{console:?}");
}
