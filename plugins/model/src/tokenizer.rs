use crate::{Prefixes, corrupt};
use magray_plugin_api::{Error, ErrorCode, Result, Role};
use std::{borrow::Cow, fmt, path::Path};
use tokenizers::{Model, ModelWrapper, TruncationDirection, TruncationParams, TruncationStrategy};

/// Bytes of text a token of the limit that are tokenized at first, and whether they were enough is
/// looked at then: English has about 5 a token.
const BYTES_PER_TOKEN: usize = 24;

/// Turns texts into token ids, by a model's `tokenizer.json`.
///
/// The truncation and padding that are built into the file are replaced: all-MiniLM-L6-v2's cuts at
/// 128 and pads to 128, where the model is made for 256.
///
/// Threads: any number of calls at once.
pub struct Tokenizer {
    tokenizer: tokenizers::Tokenizer,
    prefixes: Prefixes,
    max_tokens: usize,
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("max_tokens", &self.max_tokens).finish_non_exhaustive()
    }
}

/// Token ids of several texts, without padding.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Packed {
    /// The ids of all texts, one text after the other.
    pub ids: Vec<u32>,
    /// Where the ids of each text end; a text without ids has no vector.
    pub ends: Vec<usize>,
}

impl Packed {
    /// The ids of each text, in order.
    pub fn texts(&self) -> impl Iterator<Item = &[u32]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, &end)| &self.ids[start..end])
    }
}

impl Tokenizer {
    /// Reads `tokenizer.json` in `dir`. A text gets at most `max_tokens` ids, special tokens
    /// included, each below `vocab`.
    ///
    /// # Errors
    /// `UNAVAILABLE` where the file is missing, `CORRUPT_DATA` where it cannot be used.
    pub fn open(dir: &Path, prefixes: Prefixes, max_tokens: usize, vocab: usize) -> Result<Self> {
        let path = dir.join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|error| {
            Error::new(ErrorCode::UNAVAILABLE, format!("cannot read tokenizer.json: {error}"))
        })?;
        let broken = |error: tokenizers::Error| corrupt(format!("tokenizer.json: {error}"));
        let mut tokenizer = tokenizers::Tokenizer::from_bytes(bytes).map_err(broken)?;
        tokenizer.with_padding(None);
        let truncation = TruncationParams {
            direction: TruncationDirection::Right,
            max_length: max_tokens,
            strategy: TruncationStrategy::LongestFirst,
            stride: 0,
        };
        tokenizer.with_truncation(Some(truncation)).map_err(broken)?;
        let largest = largest_id(&tokenizer);
        if largest as usize >= vocab {
            return Err(corrupt(format!("tokenizer.json has the id {largest}, and the model {vocab} rows")));
        }
        Ok(Self { tokenizer, prefixes, max_tokens })
    }

    /// Appends the ids of `text` as it is put to the model: prefix, text, special tokens, cut to the
    /// limit. A text of nothing but white space gets none.
    ///
    /// # Errors
    /// `INTERNAL` where the tokenizer fails.
    pub fn encode(&self, text: &str, role: Role, ids: &mut Vec<u32>) -> Result<()> {
        if text.trim().is_empty() {
            return Ok(());
        }
        let prefix = match role {
            Role::Query => &self.prefixes.query,
            Role::Passage => &self.prefixes.passage,
        };
        // What lies beyond the limit need not be tokenized. A cut at white space changes no token
        // before it, so the head is enough where it fills the limit.
        let mut bytes = self.max_tokens.saturating_mul(BYTES_PER_TOKEN);
        loop {
            let head = head(text, bytes);
            let whole = head.len() == text.len();
            let input =
                if prefix.is_empty() { Cow::Borrowed(head) } else { Cow::Owned(format!("{prefix}{head}")) };
            let encoding = self
                .tokenizer
                .encode_fast(&*input, true)
                .map_err(|error| Error::new(ErrorCode::INTERNAL, format!("the tokenizer failed: {error}")))?;
            if whole || encoding.len() >= self.max_tokens {
                ids.extend_from_slice(encoding.get_ids());
                return Ok(());
            }
            bytes = bytes.saturating_mul(4);
        }
    }

    /// Appends the ids of `query` and `passage` as a model that reads the two together takes them: both with
    /// special tokens, cut to the limit at the end of whichever is longer. Returns how many of the ids are of
    /// token type 0; the others, if any, come after them and are of type 1.
    ///
    /// # Errors
    /// `INTERNAL` where the tokenizer fails.
    pub fn encode_pair(&self, query: &str, passage: &str, ids: &mut Vec<u32>) -> Result<usize> {
        let mut bytes = self.max_tokens.saturating_mul(BYTES_PER_TOKEN);
        loop {
            let heads = (head(query, bytes), head(passage, bytes));
            let whole = heads.0.len() == query.len() && heads.1.len() == passage.len();
            let encoding = self
                .tokenizer
                .encode_fast(heads, true)
                .map_err(|error| Error::new(ErrorCode::INTERNAL, format!("the tokenizer failed: {error}")))?;
            if whole || encoding.len() >= self.max_tokens {
                ids.extend_from_slice(encoding.get_ids());
                return Ok(encoding.get_type_ids().iter().take_while(|&&kind| kind == 0).count());
            }
            bytes = bytes.saturating_mul(4);
        }
    }

    /// The ids of several texts.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_all(&self, texts: &[&str], role: Role) -> Result<Packed> {
        let mut packed = Packed::default();
        for text in texts {
            self.encode(text, role, &mut packed.ids)?;
            packed.ends.push(packed.ids.len());
        }
        Ok(packed)
    }

    /// Writes into `out[i]` how many ids `texts[i]` gets as a passage.
    ///
    /// # Errors
    /// `INVALID_INPUT` where the lengths differ, and as [`Tokenizer::encode`].
    pub fn count(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        if out.len() != texts.len() {
            return Err(Error::invalid_input(format!("{} counts for {} texts", out.len(), texts.len())));
        }
        let mut ids = Vec::new();
        for (text, count) in texts.iter().zip(out) {
            ids.clear();
            self.encode(text, Role::Passage, &mut ids)?;
            *count = u32::try_from(ids.len()).unwrap_or(u32::MAX);
        }
        Ok(())
    }
}

/// The largest id that a text can get.
fn largest_id(tokenizer: &tokenizers::Tokenizer) -> u32 {
    let of_model = match tokenizer.get_model() {
        // Ids are places in a list; a copy of the vocabulary, 250,000 strings in a multilingual one, takes long.
        ModelWrapper::Unigram(model) => {
            u32::try_from(model.get_vocab_size()).unwrap_or(u32::MAX).saturating_sub(1)
        }
        model => model.get_vocab().into_values().max().unwrap_or(0),
    };
    tokenizer.get_added_tokens_decoder().into_keys().fold(of_model, u32::max)
}

/// The start of `text` up to the first white space after `bytes`.
fn head(text: &str, bytes: usize) -> &str {
    let from = text.floor_char_boundary(bytes);
    match text[from..].find(char::is_whitespace) {
        Some(cut) => &text[..from + cut],
        None => text,
    }
}
