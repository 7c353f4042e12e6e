use crate::{
    static_model::pieces_of,
    tokenizer::{Tokenizer, Unknown, sections},
};
use magray_model::{Architecture, ModelFolder, Prefixes};
use magray_plugin_api::{Error, ErrorCode, Result, Role};
use serde_json::Value;
use std::{borrow::Cow, fs};

/// Bytes of a text that are tokenized before it is asked whether its limit is reached.
const SECTION_BYTES: usize = 4096;

/// Turns texts into the ids that a model is run with.
pub(crate) enum TextEncoder {
    /// BERT's uncased WordPiece, by this crate's own tokenizer, which is many times faster.
    WordPiece(Box<WordPiece>),
    /// What `tokenizer.json` says, by the `tokenizers` crate.
    Other(Box<magray_model::Tokenizer>),
}

pub(crate) struct WordPiece {
    tokenizer: Tokenizer,
    first: u32,
    last: u32,
    prefixes: Prefixes,
    max_tokens: usize,
}

impl TextEncoder {
    /// Reads the `tokenizer.json` of a model.
    ///
    /// # Errors
    /// As [`ModelFolder::tokenizer`].
    pub(crate) fn open(folder: &ModelFolder) -> Result<Self> {
        match WordPiece::open(folder) {
            Some(own) => Ok(Self::WordPiece(Box::new(own))),
            None => Ok(Self::Other(Box::new(folder.tokenizer()?))),
        }
    }

    /// The name for reports.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::WordPiece(_) => "BERT uncased WordPiece",
            Self::Other(_) => "tokenizers",
        }
    }

    /// Bytes of memory that it takes, as far as it knows.
    pub(crate) fn memory(&self) -> usize {
        match self {
            Self::WordPiece(own) => own.tokenizer.memory(),
            Self::Other(_) => 0,
        }
    }

    /// Appends the ids of `text` with prefix and special tokens, cut to the model's limit. A text of
    /// nothing but white space gets none.
    ///
    /// # Errors
    /// `INTERNAL` where the tokenizer fails.
    pub(crate) fn encode(&self, text: &str, role: Role, ids: &mut Vec<u32>) -> Result<()> {
        match self {
            Self::WordPiece(own) => {
                own.encode(text, role, ids);
                Ok(())
            }
            Self::Other(other) => other.encode(text, role, ids),
        }
    }
}

impl WordPiece {
    /// The own tokenizer, where it does exactly what the model's `tokenizer.json` says.
    fn open(folder: &ModelFolder) -> Option<Self> {
        let Architecture::Bert(bert) = &folder.spec.architecture else { return None };
        let bytes = fs::read(folder.dir.join("tokenizer.json")).ok()?;
        // Others can be large, and need not be read twice.
        bytes.windows(11).find(|bytes| bytes == b"\"WordPiece\"")?;
        let json: Value = serde_json::from_slice(&bytes).ok()?;
        let pieces = pieces_of(&json, bert.vocab).ok()?;
        let (first, last) = special_tokens(&json["post_processor"])?;
        let tokenizer = Tokenizer::new(&pieces, Unknown::Keep).ok()?;
        (first.max(last) < bert.vocab as u64).then_some(Self {
            tokenizer,
            first: first as u32,
            last: last as u32,
            prefixes: folder.spec.prefixes.clone(),
            max_tokens: folder.spec.max_tokens,
        })
    }

    fn encode(&self, text: &str, role: Role, ids: &mut Vec<u32>) {
        if text.trim().is_empty() {
            return;
        }
        let prefix = match role {
            Role::Query => &self.prefixes.query,
            Role::Passage => &self.prefixes.passage,
        };
        let text =
            if prefix.is_empty() { Cow::Borrowed(text) } else { Cow::Owned(format!("{prefix}{text}")) };
        ids.push(self.first);
        let most = ids.len() + self.max_tokens - 2;
        for section in sections(&text, SECTION_BYTES) {
            self.tokenizer.encode(section, ids);
            if ids.len() >= most {
                break;
            }
        }
        ids.truncate(most);
        ids.push(self.last);
    }
}

/// The ids before and after a text; none where a `post_processor` does something else.
fn special_tokens(processor: &Value) -> Option<(u64, u64)> {
    match processor["type"].as_str()? {
        "BertProcessing" => Some((processor["cls"][1].as_u64()?, processor["sep"][1].as_u64()?)),
        "TemplateProcessing" => {
            let [first, text, last] = &processor["single"].as_array()?[..] else { return None };
            let id = |token: &Value| {
                let name = token["SpecialToken"]["id"].as_str()?;
                let [id] = &processor["special_tokens"][name]["ids"].as_array()?[..] else { return None };
                id.as_u64()
            };
            (text["Sequence"]["id"] == "A").then_some(())?;
            Some((id(first)?, id(last)?))
        }
        _ => None,
    }
}

/// Writes into `out[i]` how many ids `texts[i]` gets as a passage.
///
/// # Errors
/// `INVALID_INPUT` where the lengths differ, and as [`TextEncoder::encode`].
pub(crate) fn count(encoder: &TextEncoder, texts: &[&str], out: &mut [u32]) -> Result<()> {
    if out.len() != texts.len() {
        return Err(Error::invalid_input(format!("{} counts for {} texts", out.len(), texts.len())));
    }
    let mut ids = Vec::new();
    for (text, count) in texts.iter().zip(out) {
        ids.clear();
        encoder.encode(text, Role::Passage, &mut ids)?;
        *count = u32::try_from(ids.len())
            .map_err(|_| Error::new(ErrorCode::INVALID_INPUT, "a text of more than 2^32 tokens"))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_model::Overrides;
    use serde::Deserialize;

    #[derive(Deserialize)]
    struct Fixture {
        texts: Vec<(String, Vec<u32>)>,
    }

    fn folder(name: &str, overrides: &Overrides) -> ModelFolder {
        let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/../model/tests/data/architectures");
        ModelFolder::open(&std::path::Path::new(dir).join(name), overrides).unwrap()
    }

    /// The vocabulary is tiny, so nearly every text has what cannot be spelled.
    #[test]
    fn the_own_tokenizer_gives_the_ids_of_the_crate() {
        let fixture: Fixture = serde_json::from_str(include_str!("../../tests/data/tokenizer.json")).unwrap();
        assert!(fixture.texts.len() > 1500);
        for overrides in [
            Overrides::default(),
            Overrides {
                max_tokens: Some(7),
                query_prefix: Some("query: ".to_owned()),
                ..Overrides::default()
            },
        ] {
            let folder = folder("bert", &overrides);
            let own = TextEncoder::open(&folder).unwrap();
            assert_eq!(own.name(), "BERT uncased WordPiece");
            let other = folder.tokenizer().unwrap();
            for (text, _) in &fixture.texts {
                let (mut ids, mut expected) = (Vec::new(), Vec::new());
                own.encode(text, Role::Query, &mut ids).unwrap();
                other.encode(text, Role::Query, &mut expected).unwrap();
                assert_eq!(ids, expected, "{text:?}");
            }
        }
    }

    #[test]
    fn other_tokenizers_are_left_to_the_crate() {
        for name in ["xlm-roberta", "mpnet", "qwen3"] {
            let encoder = TextEncoder::open(&folder(name, &Overrides::default())).unwrap();
            assert_eq!(encoder.name(), "tokenizers", "{name}");
        }
    }
}
