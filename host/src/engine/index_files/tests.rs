use super::*;
use crate::{config::Config, engine::Setup, store::Filter};
use std::{fs, time::Duration};
use tempfile::TempDir;

struct Patient;

impl CallContext for Patient {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}

/// An engine on a data folder of its own, and a folder of notes.
struct Home {
    folder: TempDir,
    settings: Vec<(String, toml::Value)>,
}

impl Home {
    fn new(files: &[(&str, &str)]) -> Self {
        let home = Self { folder: tempfile::tempdir().unwrap(), settings: Vec::new() };
        for (name, text) in files {
            let path = home.at(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        home
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn set(&mut self, key: &str, value: impl Into<toml::Value>) {
        self.settings.push((key.to_owned(), value.into()));
    }

    fn engine(&self) -> Engine {
        let file = self.at("config.toml");
        fs::write(&file, "").unwrap();
        let config = Config::load(Some(&file), std::iter::empty(), &self.settings).unwrap().config;
        let data_dir = self.at("data");
        Engine::open(Setup {
            config,
            origins: crate::engine::ModelOrigins::default(),
            data_dir,
            plugin_dirs: Vec::new(),
            project: None,
            executable: None,
        })
        .unwrap()
    }

    fn index(&self, paths: &[&str]) -> IndexReport {
        self.index_as(paths, IndexRequest::default())
    }

    fn index_as(&self, paths: &[&str], labels: IndexRequest) -> IndexReport {
        let request = IndexRequest { paths: paths.iter().map(|path| self.at(path)).collect(), ..labels };
        self.engine().index_files(&Patient, &request, &mut |_| ()).unwrap()
    }

    fn texts(&self) -> Vec<String> {
        let records = self.engine().store().list(&Filter::default(), 99, 0).unwrap();
        let mut texts: Vec<_> = records.into_iter().map(|record| record.text).collect();
        texts.sort();
        texts
    }
}

fn counts(report: &IndexReport) -> (u64, u64, u64) {
    (report.files_indexed, report.files_unchanged, report.files_removed)
}

#[test]
fn other_labels_and_other_chunks_make_a_file_a_changed_one() {
    let mut home = Home::new(&[("notes/a.md", "The tide is high.\n")]);
    assert_eq!(counts(&home.index(&["notes"])), (1, 0, 0));
    assert_eq!(counts(&home.index(&["notes"])), (0, 1, 0));
    let tags = |tags: &[&str]| IndexRequest {
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        ..IndexRequest::default()
    };
    let report = home.index_as(&["notes"], tags(&["sea", "moon"]));
    assert_eq!((counts(&report), report.chunks_kept), ((1, 0, 0), 1));
    assert_eq!(home.engine().store().list(&Filter::default(), 9, 0).unwrap()[0].tags, ["moon", "sea"]);
    assert_eq!(counts(&home.index_as(&["notes"], tags(&["moon", " sea", "sea"]))), (0, 1, 0));

    let project = IndexRequest { project: Some("p".to_owned()), ..tags(&["moon", "sea"]) };
    assert_eq!(counts(&home.index_as(&["notes"], project.clone())), (1, 0, 0));
    home.set("ingest.chunk_chars", 500);
    assert_eq!(counts(&home.index_as(&["notes"], project.clone())), (1, 0, 0));
    assert_eq!(counts(&home.index_as(&["notes"], project)), (0, 1, 0));
}

#[test]
fn a_forgotten_record_comes_back_with_its_file_and_what_is_left_goes_with_it() {
    let long = "The moon moves the tide twice a day.\n\n".repeat(100);
    let home = Home::new(&[("a.md", "The sun is hot."), ("b.md", &long)]);
    let chunks = home.index(&["a.md", "b.md"]).chunks_added;
    assert!(chunks > 2, "{chunks}");
    let forget_one_of_b = || {
        let engine = home.engine();
        let path = home.at("b.md").canonicalize().unwrap();
        let of_b = Filter { source: path.to_str().map(str::to_owned), ..Filter::default() };
        let record = engine.store().list(&of_b, 1, 0).unwrap().remove(0);
        assert_eq!(engine.store().forget(&[record.id]).unwrap(), 1);
    };
    forget_one_of_b();
    let report = home.index(&["a.md", "b.md"]);
    assert_eq!((counts(&report), report.chunks_added), ((1, 1, 0), 1));
    assert_eq!(home.texts().len() as u64, chunks);

    forget_one_of_b();
    fs::remove_file(home.at("b.md")).unwrap();
    assert_eq!(counts(&home.index(&["a.md", "b.md"])), (0, 1, 1));
    assert_eq!(home.texts(), ["The sun is hot."]);
}

#[test]
fn the_records_of_an_unchanged_file_live_on() {
    let mut home = Home::new(&[("a.md", "The tide is high.\n")]);
    home.set("memory.layers.assets.ttl", "1h");
    home.index(&["a.md"]);
    let expiry =
        |home: &Home| home.engine().store().list(&Filter::default(), 9, 0).unwrap()[0].expires_ms.unwrap();
    let first = expiry(&home);
    home.set("memory.layers.assets.ttl", "2h");
    assert_eq!(counts(&home.index(&["a.md"])), (0, 1, 0));
    assert!(expiry(&home) >= first + 3_600_000);
}

#[test]
fn given_paths_that_are_gone_take_their_records_along() {
    let home = Home::new(&[
        ("notes/a.md", "Tide."),
        ("notes/deep/b.md", "Moon."),
        ("notes-old/c.md", "Sun."),
        ("d.md", "Star."),
    ]);
    home.index(&["notes", "notes-old", "d.md"]);
    fs::remove_file(home.at("d.md")).unwrap();
    fs::remove_dir_all(home.at("notes")).unwrap();
    let report = home.index(&["notes", "d.md"]);
    assert_eq!((counts(&report), report.skipped.len()), ((0, 0, 3), 0));
    assert_eq!(home.texts(), ["Sun."]);
    // What was never there is an error.
    let report = home.index(&["notes"]);
    assert_eq!((counts(&report), report.skipped.len()), ((0, 0, 0), 1));
    assert!(report.skipped[0].is_error && report.skipped[0].reason.contains("no such file"));
}

#[test]
fn what_is_wrong_with_one_path_keeps_only_its_own_records() {
    let home = Home::new(&[
        ("good/a.md", "Tide."),
        ("good/b.md", "Moon."),
        ("bad/c.md", "Sun."),
        ("bad/d.md", "Star."),
    ]);
    home.index(&["good", "bad"]);
    fs::write(home.at("bad/.magrayignore"), "[z-a]\n").unwrap();
    for gone in ["good/b.md", "bad/d.md"] {
        fs::remove_file(home.at(gone)).unwrap();
    }
    let report = home.index(&["bad", "nowhere", "good"]);
    assert_eq!((counts(&report), report.skipped.len()), ((0, 2, 1), 2));
    assert_eq!(home.texts(), ["Star.", "Sun.", "Tide."]);
}

#[cfg(target_os = "linux")]
#[test]
fn a_path_that_is_not_utf8_is_passed_over() {
    use std::os::unix::ffi::OsStrExt;
    let home = Home::new(&[("notes/a.md", "Tide.")]);
    let name = std::ffi::OsStr::from_bytes(b"\xff.md");
    fs::write(home.at("notes").join(name), "Moon.").unwrap();
    let report = home.index(&["notes"]);
    assert_eq!((counts(&report), report.skipped.len()), ((1, 0, 0), 1));
    assert!(report.skipped[0].reason.contains("not UTF-8") && !report.skipped[0].is_error);
    assert_eq!(home.texts(), ["Tide."]);
}

#[test]
fn a_text_without_a_known_word_is_embedded_once() {
    let home = Home::new(&[("a.md", "\u{2603}\u{2603}\n")]);
    assert_eq!(home.index(&["a.md"]).embedded, 0);
    assert_eq!(home.engine().unembedded().unwrap(), 0);
}
