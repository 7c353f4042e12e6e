//! What the tests of embedding backends share: where models and reference vectors are, and how far a backend is
//! from them.
//!
//! Everything here panics with a message where something is missing or wrong, as tests want it.
use magray_plugin_api::{Embedder, Host, LogLevel, Result, Role};
use magray_plugin_testkit::{Cx, HOST};
use serde::Deserialize;
use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::atomic::{AtomicUsize, Ordering},
};

/// Folder of the repository.
pub fn repository() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.ancestors().nth(3).unwrap_or(own).to_owned()
}

/// What `scripts/fetch-models.sh` has fetched, such as `models/all-MiniLM-L6-v2` or
/// `onnxruntime/libonnxruntime.so`: below `$MAGRAY_TEST_ASSETS`, else below `target/test-assets`.
pub fn fetched(path: &str) -> PathBuf {
    let assets = env::var_os("MAGRAY_TEST_ASSETS")
        .map_or_else(|| repository().join("target/test-assets"), PathBuf::from);
    let path = assets.join(path);
    assert!(path.exists(), "{} is missing; run scripts/fetch-models.sh", path.display());
    path
}

/// A file of evaluation data: below `$MAGRAY_SHARED`, else below `shared` beside the repository.
pub fn shared(path: &str) -> PathBuf {
    let folder = env::var_os("MAGRAY_SHARED").map_or_else(|| repository().join("../shared"), PathBuf::from);
    let path = folder.join(path);
    assert!(path.exists(), "{} is not there: set MAGRAY_SHARED to the folder of shared data", path.display());
    path
}

/// The folder of a tiny model with random weights, one for each network
/// (`plugins/model/tests/make_architecture_fixtures.py`). The empty name is the folder that holds them.
pub fn tiny(name: &str) -> PathBuf {
    repository().join("plugins/model/tests/data/architectures").join(name)
}

/// A text, its tokens, and its vector by the reference implementation.
#[derive(Debug, Deserialize)]
#[expect(missing_docs, reason = "as above")]
pub struct Item {
    pub text: String,
    #[serde(default)]
    role: String,
    pub token_ids: Vec<u32>,
    pub embedding: Vec<f32>,
}

impl Item {
    fn role(&self) -> Role {
        if self.role == "query" { Role::Query } else { Role::Passage }
    }
}

/// The reference of the tiny model in `dir`.
pub fn tiny_reference(dir: &Path) -> Vec<Item> {
    items(&dir.join("expected.json"))
}

/// 36 texts, with their vectors by sentence-transformers with all-MiniLM-L6-v2.
pub fn minilm_reference() -> Vec<Item> {
    let items = items(&shared("data/ref/embeddings_ref.json"));
    assert_eq!(items.len(), 36);
    items
}

fn items(path: &Path) -> Vec<Item> {
    #[derive(Deserialize)]
    struct Reference {
        items: Vec<Item>,
    }
    let json = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let reference: Reference =
        serde_json::from_slice(&json).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    reference.items
}

/// The vectors of `texts` in one call, `[texts, dim]`.
pub fn embed(embedder: &dyn Embedder, texts: &[&str], role: Role) -> Vec<f32> {
    let mut out = vec![f32::NAN; texts.len() * embedder.info().dim];
    let embedded = embedder.embed(&Cx::free(), texts, role, &mut out);
    embedded.unwrap_or_else(|error| panic!("{error}"));
    out
}

/// How near the vectors of a backend are to their reference.
#[derive(Clone, Copy, Debug)]
pub struct Agreement {
    /// The least cosine.
    pub cosine: f32,
    /// The largest difference of a number.
    pub difference: f32,
}

/// Embeds all items of each role in one call, and each alone, and compares. Tokens must be as many as the reference
/// has.
pub fn compare(embedder: &dyn Embedder, items: &[Item]) -> Agreement {
    let mut agreement = Agreement { cosine: 1.0, difference: 0.0 };
    for role in [Role::Query, Role::Passage] {
        let items: Vec<&Item> = items.iter().filter(|item| item.role() == role).collect();
        let texts: Vec<&str> = items.iter().map(|item| item.text.as_str()).collect();
        if role == Role::Passage {
            let mut counts = vec![0; texts.len()];
            embedder.count_tokens(&texts, &mut counts).unwrap_or_else(|error| panic!("{error}"));
            let expected: Vec<u32> = items.iter().map(|item| item.token_ids.len() as u32).collect();
            assert_eq!(counts, expected, "tokens");
        }
        let together = embed(embedder, &texts, role);
        for (item, row) in items.iter().zip(together.chunks(embedder.info().dim)) {
            for row in [row, &embed(embedder, &[&item.text], role)] {
                agreement.cosine = agreement.cosine.min(dot(row, &item.embedding));
                agreement.difference = agreement.difference.max(apart(row, &item.embedding));
            }
        }
    }
    agreement
}

/// The cosine of two unit vectors.
pub fn dot(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// The largest difference of a number of two vectors.
pub fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// The testkit's host, with as many threads as are asked for.
#[derive(Debug)]
pub struct Threads(AtomicUsize);

impl Threads {
    /// So many threads.
    pub const fn new(threads: usize) -> Self {
        Self(AtomicUsize::new(threads))
    }

    /// From now on so many.
    pub fn set(&self, threads: usize) {
        self.0.store(threads, Ordering::Relaxed);
    }
}

impl Host for Threads {
    fn log_enabled(&self, level: LogLevel, target: &str) -> bool {
        HOST.log_enabled(level, target)
    }
    fn log(&self, level: LogLevel, target: &str, message: &str) {
        HOST.log(level, target, message);
    }
    fn threads(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
    fn memory_budget(&self) -> Option<u64> {
        HOST.memory_budget()
    }
    fn data_dir(&self) -> Result<PathBuf> {
        HOST.data_dir()
    }
    fn models_dir(&self) -> PathBuf {
        HOST.models_dir()
    }
    fn count(&self, name: &str, value: u64) {
        HOST.count(name, value);
    }
}
