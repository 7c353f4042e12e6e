use super::weights::{File, Weights};
use crate::tokenizer::{SPECIAL, Tokenizer, Unknown};
use magray_plugin_api::{Error, ErrorCode, Result};
use memmap2::Mmap;
use serde_json::Value;
use std::{collections::BTreeMap, env, fs, io, path::Path};

/// Name of the embedded model.
pub(crate) const EMBEDDED: &str = "potion-base-8M-int8";
pub(crate) const EMBEDDED_VOCAB: &str = include_str!("../../model/potion-base-8M-int8/vocab.txt");
/// [`space`] of the embedded model, known beforehand so that no start hashes it. A test compares.
const EMBEDDED_SPACE: [u8; 32] = [
    0x67, 0x4f, 0x5c, 0xba, 0x96, 0xac, 0xd6, 0x71, 0x14, 0x88, 0xf9, 0x01, 0xac, 0xdd, 0x4a, 0xcc, 0x8f,
    0x8f, 0x59, 0xba, 0xdc, 0x73, 0x1c, 0xd5, 0x20, 0x09, 0x2c, 0xd6, 0xf6, 0x5d, 0xdd, 0x87,
];

/// A static model: one row of weights a token, and nothing else.
pub(crate) struct Model {
    pub(crate) name: String,
    pub(crate) tokenizer: Tokenizer,
    pub(crate) weights: Weights,
    /// Digest of everything that decides a vector.
    pub(crate) space: [u8; 32],
}

impl Model {
    /// The model that is a part of this library.
    pub(crate) fn embedded() -> Result<Self> {
        let file = File::Embedded(include_bytes!("../../model/potion-base-8M-int8/model.safetensors"));
        let pieces: Vec<&str> = EMBEDDED_VOCAB.lines().collect();
        Ok(Self {
            name: EMBEDDED.to_owned(),
            tokenizer: Tokenizer::new(&pieces, Unknown::Drop)?,
            weights: Weights::new(file)?,
            space: EMBEDDED_SPACE,
        })
    }

    /// Opens a folder with `model.safetensors`, `config.json` and either `tokenizer.json`, which
    /// comes first because it says how to tokenize, or `vocab.txt`. The weights are mapped.
    ///
    /// # Errors
    /// `UNAVAILABLE` where a file is not there, `CORRUPT_DATA` where one is damaged, `UNSUPPORTED`
    /// for another kind of model, `IO`.
    pub(crate) fn open(dir: &Path) -> Result<Self> {
        Self::open_files(dir).map_err(|error| {
            Error::new(error.code(), format!("model {}: {}", dir.display(), error.message()))
        })
    }

    fn open_files(dir: &Path) -> Result<Self> {
        if !dir.is_dir() {
            return Err(Error::new(
                ErrorCode::UNAVAILABLE,
                format!("no such folder; correct the option 'model', or leave it out to use '{EMBEDDED}'"),
            ));
        }
        let config = json(dir, "config.json")?;
        if config["model_type"] != "model2vec" {
            let message = format!(
                "config.json has the model_type {}, and what is built into the program runs only 'model2vec'; put \
                 the plugin file of 'cpu' ({}magray_embed_cpu_plugin{}) beside the program or into the folder \
                 `plugins` of the data folder, or use another backend",
                config["model_type"],
                env::consts::DLL_PREFIX,
                env::consts::DLL_SUFFIX,
            );
            return Err(Error::new(ErrorCode::UNSUPPORTED, message));
        }
        let weights = Weights::new(File::Mapped(map(&dir.join("model.safetensors"))?))?;
        weights.check()?;
        if config["hidden_dim"].as_u64().is_some_and(|dim| dim != weights.dim as u64) {
            return Err(corrupt(format!(
                "config.json has the hidden_dim {}, model.safetensors the width {}",
                config["hidden_dim"], weights.dim
            )));
        }

        let (tokenizer_json, vocab_txt);
        let pieces = if dir.join("tokenizer.json").exists() {
            tokenizer_json = json(dir, "tokenizer.json")?;
            pieces_of(&tokenizer_json, weights.vocabulary())?
        } else {
            let bytes = read(dir, "vocab.txt")?;
            vocab_txt = String::from_utf8(bytes).map_err(|_| corrupt("vocab.txt is not UTF-8".to_owned()))?;
            vocab_txt.lines().collect()
        };
        if pieces.len() != weights.vocabulary() {
            return Err(corrupt(format!(
                "the vocabulary has {} pieces, model.safetensors {} rows",
                pieces.len(),
                weights.vocabulary()
            )));
        }
        let name = dir.file_name().unwrap_or(dir.as_os_str()).to_string_lossy().into_owned();
        Ok(Self {
            name,
            tokenizer: Tokenizer::new(&pieces, Unknown::Drop)?,
            space: space(&weights, &pieces),
            weights,
        })
    }
}

/// Digest of all that decides a vector of this backend.
fn space(weights: &Weights, pieces: &[&str]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(b"magray static 1: bert uncased wordpiece, without [UNK], mean, l2\n");
    hasher.update(format!("{} {}\n", weights.precision.name(), weights.dim).as_bytes());
    for piece in pieces {
        hasher.update(&(piece.len() as u64).to_le_bytes()).update(piece.as_bytes());
    }
    for scale in &weights.scales {
        hasher.update(&scale.to_le_bytes());
    }
    hasher.update(weights.rows());
    hasher.finalize().into()
}

/// The pieces of a `tokenizer.json` in the order of their ids, `""` for an id without a piece.
pub(crate) fn pieces_of(tokenizer: &Value, rows: usize) -> Result<Vec<&str>> {
    let unsupported = |message| Err(Error::new(ErrorCode::UNSUPPORTED, format!("tokenizer.json: {message}")));
    let demands: [(&str, Value); 9] = [
        ("/model/type", "WordPiece".into()),
        ("/model/unk_token", "[UNK]".into()),
        ("/model/continuing_subword_prefix", "##".into()),
        ("/model/max_input_chars_per_word", 100.into()),
        ("/normalizer/type", "BertNormalizer".into()),
        ("/normalizer/clean_text", true.into()),
        ("/normalizer/handle_chinese_chars", true.into()),
        ("/normalizer/lowercase", true.into()),
        ("/pre_tokenizer/type", "BertPreTokenizer".into()),
    ];
    for (place, wanted) in demands {
        let found = tokenizer.pointer(place).unwrap_or(&Value::Null);
        if *found != wanted {
            return unsupported(format!("{place} is {found}; only {wanted} is possible"));
        }
    }
    if tokenizer["normalizer"]["strip_accents"] == false {
        return unsupported("/normalizer/strip_accents is false; only true and null are possible".to_owned());
    }

    let Some(vocab) = tokenizer["model"]["vocab"].as_object() else {
        return Err(corrupt("tokenizer.json has no /model/vocab".to_owned()));
    };
    let mut pieces = vec![""; rows];
    for (piece, id) in vocab {
        let place = id.as_u64().and_then(|id| pieces.get_mut(usize::try_from(id).ok()?));
        match place {
            Some(place) if place.is_empty() => *place = piece,
            Some(other) => {
                return Err(corrupt(format!("tokenizer.json gives '{piece}' and '{other}' the id {id}")));
            }
            None => {
                return Err(corrupt(format!("tokenizer.json gives '{piece}' the id {id}, of {rows} rows")));
            }
        }
    }

    let none = Vec::new();
    let added = tokenizer["added_tokens"].as_array().unwrap_or(&none);
    let added: BTreeMap<_, _> = added.iter().map(|token| (token["content"].as_str(), &token["id"])).collect();
    let known = vocab.iter().filter(|(piece, _)| SPECIAL.contains(&piece.as_str()));
    let known: BTreeMap<_, _> = known.map(|(piece, id)| (Some(piece.as_str()), id)).collect();
    if added != known {
        return unsupported(format!("/added_tokens must be those of {SPECIAL:?} that the vocabulary has"));
    }
    Ok(pieces)
}

fn json(dir: &Path, name: &str) -> Result<Value> {
    serde_json::from_slice(&read(dir, name)?).map_err(|error| corrupt(format!("{name} is no JSON: {error}")))
}

fn read(dir: &Path, name: &str) -> Result<Vec<u8>> {
    fs::read(dir.join(name)).map_err(|error| unreadable(name, &error))
}

fn map(path: &Path) -> Result<Mmap> {
    let file = fs::File::open(path).map_err(|error| unreadable("model.safetensors", &error))?;
    // SAFETY: only bytes are read from it, for which every value is valid. Whoever changes the
    // folder of a model in use gets other vectors; whoever truncates the file ends the process, as
    // with every mapped file.
    unsafe { Mmap::map(&file) }.map_err(|error| unreadable("model.safetensors", &error))
}

fn unreadable(name: &str, error: &io::Error) -> Error {
    if error.kind() == io::ErrorKind::NotFound {
        let message = format!(
            "{name} is missing; a static model is a folder with model.safetensors, config.json and \
             vocab.txt or tokenizer.json"
        );
        return Error::new(ErrorCode::UNAVAILABLE, message);
    }
    Error::new(ErrorCode::IO, format!("cannot read {name}: {error}"))
}

fn corrupt(message: String) -> Error {
    Error::new(ErrorCode::CORRUPT_DATA, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::static_model::weights::tests::file;
    use safetensors::Dtype;
    use serde_json::json;
    use tempfile::TempDir;

    const FILE: &[u8] = include_bytes!("../../model/potion-base-8M-int8/model.safetensors");

    /// A folder with these files.
    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            fs::write(dir.path().join(name), bytes).unwrap();
        }
        dir
    }

    const CONFIG: (&str, &[u8]) = ("config.json", br#"{"model_type": "model2vec", "hidden_dim": 2}"#);

    /// Four rows of two numbers.
    fn weights() -> Vec<u8> {
        let numbers: Vec<u8> = (0..8).flat_map(|number| (number as f32).to_le_bytes()).collect();
        file(&[("embeddings", Dtype::F32, &[4, 2], &numbers)])
    }

    fn tokenizer() -> Value {
        json!({
            "added_tokens": [{"id": 0, "content": "[UNK]"}],
            "normalizer": {
                "type": "BertNormalizer",
                "clean_text": true,
                "handle_chinese_chars": true,
                "strip_accents": null,
                "lowercase": true,
            },
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "model": {
                "type": "WordPiece",
                "unk_token": "[UNK]",
                "continuing_subword_prefix": "##",
                "max_input_chars_per_word": 100,
                "vocab": {"[UNK]": 0, "a": 1, "##b": 2, "c": 3},
            },
        })
    }

    #[test]
    fn the_embedded_space_is_what_its_files_say() {
        let embedded = Model::embedded().unwrap();
        embedded.weights.check().unwrap();
        let pieces: Vec<&str> = EMBEDDED_VOCAB.lines().collect();
        assert_eq!(pieces.len(), embedded.weights.vocabulary());
        let digest = space(&embedded.weights, &pieces);
        assert_eq!(embedded.space, digest, "EMBEDDED_SPACE must be {digest:02x?}");
    }

    #[test]
    fn a_folder_of_the_same_files_has_the_same_space() {
        let config = include_bytes!("../../model/potion-base-8M-int8/config.json");
        let dir = folder(&[
            ("model.safetensors", FILE),
            ("vocab.txt", EMBEDDED_VOCAB.as_bytes()),
            ("config.json", config),
        ]);
        let model = Model::open(dir.path()).unwrap();
        assert_eq!(model.space, Model::embedded().unwrap().space);
        assert_eq!(model.name, dir.path().file_name().unwrap().to_string_lossy());
    }

    #[test]
    fn either_vocabulary_gives_the_same_model() {
        let weights = weights();
        let text = folder(&[CONFIG, ("model.safetensors", &weights), ("vocab.txt", b"[UNK]\na\n##b\nc\n")]);
        let tokenizer = tokenizer().to_string();
        let json =
            folder(&[CONFIG, ("model.safetensors", &weights), ("tokenizer.json", tokenizer.as_bytes())]);
        let (text, json) = (Model::open(text.path()).unwrap(), Model::open(json.path()).unwrap());
        assert_eq!(text.space, json.space);
        for model in [text, json] {
            let mut ids = Vec::new();
            model.tokenizer.encode("AB b c [UNK] d", &mut ids);
            assert_eq!(ids, [1, 2, 3]);
        }
    }

    #[test]
    fn other_weights_pieces_or_widths_are_another_space() {
        let open = |weights: &[u8], vocab: &str| {
            let config = ("config.json", &br#"{"model_type": "model2vec"}"#[..]);
            let dir = folder(&[config, ("model.safetensors", weights), ("vocab.txt", vocab.as_bytes())]);
            Model::open(dir.path()).unwrap().space
        };
        let one = file(&[("embeddings", Dtype::F32, &[2, 1], &[0, 0, 0, 0, 1, 0, 0, 0])]);
        let other = file(&[("embeddings", Dtype::F32, &[2, 1], &[0, 0, 0, 0, 2, 0, 0, 0])]);
        let half = file(&[("embeddings", Dtype::F16, &[2, 2], &[0, 0, 0, 0, 1, 0, 0, 0])]);
        let spaces = [open(&one, "a\nb"), open(&other, "a\nb"), open(&half, "a\nb"), open(&one, "b\na")];
        for (at, space) in spaces.iter().enumerate() {
            assert!(!spaces[..at].contains(space), "{at}");
        }
    }

    #[test]
    fn a_folder_that_does_not_fit_is_refused() {
        let (weights, vocab) = (weights(), &b"[UNK]\na\n##b\nc\n"[..]);
        let with = |vocab, config: &[u8]| {
            folder(&[("model.safetensors", &weights), ("vocab.txt", vocab), ("config.json", config)])
        };
        for (dir, code, says) in [
            (folder(&[]), ErrorCode::UNAVAILABLE, "config.json is missing"),
            (folder(&[CONFIG]), ErrorCode::UNAVAILABLE, "model.safetensors is missing"),
            (
                folder(&[CONFIG, ("model.safetensors", &weights)]),
                ErrorCode::UNAVAILABLE,
                "vocab.txt is missing",
            ),
            (folder(&[CONFIG, ("model.safetensors", b"")]), ErrorCode::CORRUPT_DATA, "damaged"),
            (with(vocab, b"{"), ErrorCode::CORRUPT_DATA, "config.json is no JSON"),
            (with(vocab, br#"{"model_type": "bert"}"#), ErrorCode::UNSUPPORTED, "\"bert\""),
            (
                with(vocab, br#"{"model_type": "model2vec", "hidden_dim": 3}"#),
                ErrorCode::CORRUPT_DATA,
                "hidden_dim 3",
            ),
            (with(b"a\nb", CONFIG.1), ErrorCode::CORRUPT_DATA, "2 pieces, model.safetensors 4 rows"),
            (with(b"a\nb\nc\n\xff", CONFIG.1), ErrorCode::CORRUPT_DATA, "not UTF-8"),
            (with(b"a\nb\nc\na", CONFIG.1), ErrorCode::CORRUPT_DATA, "twice"),
        ] {
            let error = Model::open(dir.path()).err().unwrap();
            assert_eq!(error.code(), code, "{error}");
            assert!(error.message().contains(says), "{error}");
            assert!(error.message().contains(&dir.path().display().to_string()), "{error}");
        }
    }

    #[test]
    fn another_tokenizer_is_refused() {
        let weights = weights();
        for (place, value, code) in [
            ("/model/type", json!("Unigram"), ErrorCode::UNSUPPORTED),
            ("/normalizer/lowercase", json!(false), ErrorCode::UNSUPPORTED),
            ("/normalizer/strip_accents", json!(false), ErrorCode::UNSUPPORTED),
            ("/normalizer", json!(null), ErrorCode::UNSUPPORTED),
            ("/added_tokens", json!([]), ErrorCode::UNSUPPORTED),
            ("/added_tokens/0/content", json!("<s>"), ErrorCode::UNSUPPORTED),
            ("/model/vocab", json!([]), ErrorCode::CORRUPT_DATA),
            ("/model/vocab/c", json!(4), ErrorCode::CORRUPT_DATA),
            ("/model/vocab/c", json!(-1), ErrorCode::CORRUPT_DATA),
            ("/model/vocab/c", json!(1), ErrorCode::CORRUPT_DATA),
        ] {
            let mut tokenizer = tokenizer();
            *tokenizer.pointer_mut(place).unwrap() = value;
            let tokenizer = tokenizer.to_string();
            let dir =
                folder(&[CONFIG, ("model.safetensors", &weights), ("tokenizer.json", tokenizer.as_bytes())]);
            let error = Model::open(dir.path()).err().unwrap();
            assert_eq!(error.code(), code, "{place}: {error}");
            assert!(error.message().contains("tokenizer.json"), "{place}: {error}");
        }
    }
}
