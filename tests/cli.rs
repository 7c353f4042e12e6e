//! The commands as a user meets them.
use crate::support::Home;

const NOTES: [&str; 4] = [
    "Backups run every night at two and are copied to another city.",
    "The cat sleeps on the warm keyboard in the afternoon.",
    "Deploy with the blue button; roll back with the red one.",
    "Grandmother's borscht needs beets, cabbage and patience.",
];

fn home_with_notes() -> Home {
    let home = Home::new();
    for note in NOTES {
        home.run(&["add", note]).expect(0);
    }
    home
}

#[test]
fn a_text_is_found_by_meaning() {
    let home = home_with_notes();
    assert_eq!(home.search(&["when do we save copies of the data", "-k", "1"]), [NOTES[0]]);
    assert_eq!(home.search(&["a soup recipe", "-k", "1"]), [NOTES[3]]);
    assert_eq!(home.search(&["pet animal", "-k", "1"]), [NOTES[1]]);
}

#[test]
fn an_answer_names_who_gave_it() {
    let home = home_with_notes();
    let answer = home.json(&["search", "pets"]);
    assert_eq!(answer["backend"], "cpu");
    assert_eq!(answer["model"], "potion-base-8M-int8");
    assert_eq!(answer["index"], "flat");
    assert_eq!(answer["device"], "cpu");
    let best = &answer["hits"][0];
    assert!(best["score"].as_f64().expect("a score") > 0.2, "{best}");
    assert_eq!(best["layer"], "insights");
    assert_eq!(best["text"], NOTES[1]);
}

#[test]
fn exit_codes_tell_found_from_nothing_and_from_wrong_usage() {
    let home = home_with_notes();
    home.run(&["search", "pets"]).expect(0);
    home.run(&["search", "pets", "--tag", "none-such"]).expect(1).says(&["nothing found"]);
    home.run(&["search", "pets", "--min-score", "0.999"]).expect(1);
    home.run(&["search", "pets", "--layer", "cellar"])
        .expect(2)
        .says(&["cellar", "interact", "insights", "assets"]);
    home.run(&["search"]).expect(2);
    home.run(&["serach", "pets"]).expect(2).says(&["search"]);
    let blocked = home.file("not-a-folder", "");
    let blocked = blocked.to_str().expect("UTF-8");
    home.run(&["--data-dir", blocked, "add", "text"]).expect(3).says(&["not-a-folder"]);
}

#[test]
fn nothing_stored_is_no_error_and_creates_nothing() {
    let home = Home::new();
    home.run(&["search", "anything"]).expect(1).says(&["nothing is stored"]);
    home.run(&["list"]).expect(1);
    assert!(!home.data().exists());
}

#[test]
fn a_word_that_the_model_does_not_know_is_said() {
    let home = home_with_notes();
    home.run(&["search", "\u{e000}\u{e001}"]).expect(1).says(&["knows no word"]);
}

#[test]
fn filters_hold() {
    let home = Home::new();
    home.run(&["add", "alpha one", "--tag", "a", "--tag", "b", "--project", "p", "--layer", "assets"])
        .expect(0);
    home.run(&["add", "alpha two", "--tag", "a", "--session", "s", "--layer", "interact"]).expect(0);
    home.run(&["add", "alpha three", "--kind", "idea"]).expect(0);
    let search = |args: &[&str]| {
        let mut found = home.search(&[&["alpha"], args].concat());
        found.sort();
        found
    };
    assert_eq!(search(&[]), ["alpha one", "alpha three", "alpha two"]);
    assert_eq!(search(&["--tag", "a"]), ["alpha one", "alpha two"]);
    assert_eq!(search(&["--tag", "a", "--tag", "b"]), ["alpha one"]);
    assert_eq!(search(&["--project", "p"]), ["alpha one"]);
    assert_eq!(search(&["--session", "s"]), ["alpha two"]);
    assert_eq!(search(&["--kind", "idea"]), ["alpha three"]);
    assert_eq!(search(&["--layer", "interact", "--layer", "assets"]), ["alpha one", "alpha two"]);
}

#[test]
fn the_same_text_is_one_record() {
    let home = Home::new();
    let first = home.json(&["add", "said twice", "--tag", "x"]);
    let second = home.json(&["add", "said twice", "--tag", "y"]);
    assert_eq!(first["outcome"], "stored");
    assert_eq!(second["outcome"], "refreshed");
    assert_eq!(first["id"], second["id"]);
    let record = home.json(&["get", first["id"].as_str().expect("an id")]);
    assert_eq!(record["tags"], serde_json::json!(["x", "y"]));
}

#[test]
fn a_forgotten_record_is_gone_at_once() {
    let home = home_with_notes();
    let found = home.json(&["search", "soup", "-k", "1"]);
    let id = found["hits"][0]["id"].as_str().expect("an id").to_owned();
    home.run(&["forget", &id[..20]]).expect(0);
    assert!(!home.search(&["soup"]).contains(&NOTES[3].to_owned()));
    home.run(&["get", &id]).expect(1);
    home.run(&["forget", &id]).expect(1);
}

#[test]
fn forgetting_many_asks_first() {
    let home = home_with_notes();
    home.run(&["forget"]).expect(2);
    home.run(&["forget", "--layer", "insights"]).expect(2).says(&["4 records", "--yes"]);
    assert_eq!(home.json(&["forget", "--layer", "insights", "--yes"])["forgotten"], 4);
    home.run(&["search", "soup"]).expect(1);
}

#[test]
fn standard_input_and_files_are_read() {
    let home = Home::new();
    home.run_with_stdin(&["add", "-"], "one text\nof two lines\n".as_bytes()).expect(0);
    let ran = home
        .run_with_stdin(&["add", "--lines", "-", "--json"], "first\n\n  second  \nthird".as_bytes())
        .expect(0);
    assert_eq!(ran.stdout.lines().count(), 3);
    let file = home.file("note.txt", "from a file");
    home.run(&["add", "--file", file.to_str().expect("UTF-8")]).expect(0);
    let mut texts: Vec<String> = home
        .run(&["list", "--json"])
        .expect(0)
        .stdout
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).expect("JSON")["text"]
                .as_str()
                .expect("text")
                .into()
        })
        .collect();
    texts.sort();
    assert_eq!(texts, ["first", "from a file", "one text\nof two lines", "second", "third"]);
}

const GARDEN: &str = "\
# Garden

Water the tomatoes in the morning, before the sun is high, and never from above: wet leaves fall ill.
Feed them every other week once the first fruit has set, with little nitrogen and much potash.

## Winter

Cover the roses with straw.
";

#[test]
fn a_folder_is_indexed_and_kept_up_with() {
    let home = Home::new();
    home.file("notes/garden.md", GARDEN);
    home.file("notes/code.rs", "/// Adds two numbers.\nfn add(a: i32, b: i32) -> i32 {\n    a + b\n}\n");
    home.file("notes/ignored.log", "secret tomatoes");
    home.file("notes/.gitignore", "*.log\n");
    home.file("notes/picture.png", b"\x89PNG\r\n\x1a\n\0\0");
    let first = home.json(&["index", "notes"]);
    assert_eq!((&first["files_indexed"], &first["files_skipped"]), (&2.into(), &1.into()), "{first}");

    let best = home.json(&["search", "protect flowers from frost", "-k", "1"])["hits"][0].clone();
    assert!(best["path"].as_str().expect("a path").ends_with("garden.md"), "{best}");
    let passage = best["passage"].as_str().expect("a passage");
    assert!(passage.contains("Cover the roses") && !passage.contains("tomatoes"), "{best}");
    assert!(best["line"].as_u64() >= Some(4), "the line of the passage, not of the record: {best}");
    assert!(home.search(&["secret"]).iter().all(|text| !text.contains("secret")));

    let again = home.json(&["index", "notes"]);
    assert_eq!((&again["files_indexed"], &again["files_unchanged"]), (&0.into(), &2.into()), "{again}");

    home.file("notes/garden.md", "# Garden\n\nWater the tomatoes in the evening.\n");
    std::fs::remove_file(home.path().join("notes/code.rs")).expect("removed");
    let changed = home.json(&["index", "notes"]);
    assert_eq!((&changed["files_indexed"], &changed["files_removed"]), (&1.into(), &1.into()), "{changed}");
    let texts = home.search(&["roses tomatoes numbers", "-k", "10"]);
    assert!(texts.iter().all(|text| !text.contains("straw") && !text.contains("fn add")), "{texts:?}");
    assert!(texts.iter().any(|text| text.contains("evening")), "{texts:?}");
}

#[test]
fn a_snapshot_is_sealed_and_answers_like_the_tail() {
    let home = Home::new();
    let lines: Vec<String> = (0..1500).map(|i| format!("note number {i} about topic {}", i % 37)).collect();
    let before = {
        home.run_with_stdin(
            &["add", "--lines", "-", "-q", "--data-dir", "tail"],
            lines[..900].join("\n").as_bytes(),
        )
        .expect(0);
        home.search(&["--data-dir", "tail", "topic 5", "-k", "20"])
    };
    home.run_with_stdin(&["add", "--lines", "-", "-q"], lines.join("\n").as_bytes()).expect(0);
    let stats = home.json(&["stats"]);
    let layer = &stats["layers"][1];
    assert_eq!((&layer["records"], &layer["vectors"]), (&1500.into(), &1500.into()), "{stats}");
    assert!(layer["sealed"].as_u64() >= Some(1000), "{stats}");
    assert_eq!(before.len(), 20);
    let found = home.search(&["note number 1499 about topic 19", "-k", "1"]);
    assert_eq!(found, [lines[1499].as_str()]);
}

#[test]
fn an_expired_record_is_not_found() {
    let home = Home::new();
    let brief = ("MAGRAY_MEMORY__LAYERS__INTERACT__TTL", "1ms");
    let mut add = home.command(&["add", "gone in a moment", "--layer", "interact"]);
    crate::support::Ran::of(add.env(brief.0, brief.1)).expect(0);
    home.run(&["search", "gone in a moment"]).expect(1);
}

#[test]
fn help_completions_and_manual_come_with_it() {
    let home = Home::new();
    let help = home.run(&["--help"]).expect(0).stdout;
    assert!(help.contains("Examples:") && help.contains("Exit codes"), "{help}");
    assert!(home.run(&["search", "--help"]).expect(0).stdout.contains("Examples:"));
    assert!(home.run(&["completions", "bash"]).expect(0).stdout.contains("_magray"));
    assert!(home.run(&["man"]).expect(0).stdout.contains(".TH magray"));
    home.run(&["man", "--out", "pages"]).expect(0);
    assert!(home.path().join("pages/magray-search.1").exists());
}

#[test]
fn colour_is_only_for_terminals() {
    let home = home_with_notes();
    let ran = home.run(&["search", "pets"]).expect(0);
    assert!(!ran.stdout.contains('\x1b') && !ran.stderr.contains('\x1b'), "{ran:?}");
    let mut forced = home.command(&["search", "pets"]);
    assert!(crate::support::Ran::of(forced.env("CLICOLOR_FORCE", "1")).stdout.contains('\x1b'));
    let mut never = home.command(&["search", "pets"]);
    assert!(!crate::support::Ran::of(never.env("NO_COLOR", "1")).stdout.contains('\x1b'));
}
