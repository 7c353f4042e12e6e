//! BERT's uncased WordPiece, id for id as Hugging Face's `tokenizers` does it.
//!
//! A static model does little beside, so speed counts here. Words of ASCII, which is nearly all of
//! English, never leave the registers: 16 bytes are classed and lowercased at once (SWAR), and the
//! word is looked up by its bytes. Everything else takes the way of [`unicode`].

mod classes;
mod unicode;
mod vocab;

use magray_plugin_api::Result;
use unicode::{Class, Part};
use vocab::{SHORT, Vocab, first_bytes, window};

/// Words of more characters than this are unknown.
const MAX_WORD_CHARS: usize = 100;

/// The pieces with a meaning of their own. They match in the raw text, case and all.
pub(crate) const SPECIAL: [&str; 5] = [UNKNOWN, "[PAD]", "[CLS]", "[SEP]", "[MASK]"];
/// Stands for what cannot be spelled.
const UNKNOWN: &str = "[UNK]";

/// What becomes of a word that cannot be spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// It is left out, as static models do.
    Drop,
    /// It is [`UNKNOWN`], as transformers do, where the vocabulary has that.
    Keep,
}

pub(crate) struct Tokenizer {
    vocab: Vocab,
    /// Those of [`SPECIAL`] that the vocabulary has.
    special: Vec<(&'static str, u32)>,
}

impl Tokenizer {
    /// Takes the pieces in the order of their ids.
    ///
    /// # Errors
    /// `CORRUPT_DATA` for a piece that stands there twice, `UNSUPPORTED` for too many pieces.
    pub(crate) fn new(pieces: &[&str], unknown: Unknown) -> Result<Self> {
        let special = SPECIAL.iter().filter_map(|&name| {
            let id = pieces.iter().position(|&piece| piece == name)?;
            Some((name, u32::try_from(id).ok()?))
        });
        let special: Vec<_> = special.collect();
        let id = special.iter().find(|(name, _)| *name == UNKNOWN).map(|&(_, id)| id);
        let unknown = id.filter(|_| unknown == Unknown::Keep);
        Ok(Self { vocab: Vocab::new(pieces, unknown)?, special })
    }

    /// Bytes of memory that it takes.
    pub(crate) fn memory(&self) -> usize {
        self.vocab.memory()
    }

    /// Appends the ids of `text`, without special tokens around it.
    pub(crate) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        let bytes = text.as_bytes();
        let mut at = 0;
        while at < bytes.len() {
            let next = window(&bytes[at..]);
            let len = leading_word_bytes(next);
            let end = at + len;
            let after = bytes.get(end).map_or(Class::Space, |&byte| Class::of_byte(byte));
            match after {
                Class::Space | Class::Punctuation if len > 0 => {
                    self.vocab.spell_short(first_bytes(lowercase(next), len), len, ids);
                    // Most often a space comes next, and a word after it.
                    at = end + usize::from(after == Class::Space);
                }
                Class::Space => at += 1,
                Class::Punctuation => at += self.encode_punctuation(&text[at..], ids),
                _ => at += self.encode_run(&text[at..], ids),
            }
        }
    }

    /// Encodes the ASCII punctuation mark at the start of `text`, or a special piece that it opens,
    /// and returns how many bytes that was.
    fn encode_punctuation(&self, text: &str, ids: &mut Vec<u32>) -> usize {
        let first = text.as_bytes()[0];
        if first == b'['
            && let Some(&(name, id)) = self.special.iter().find(|(name, _)| text.starts_with(name))
        {
            if name == UNKNOWN {
                self.vocab.add_unknown(ids);
            } else {
                ids.push(id);
            }
            return name.len();
        }
        self.vocab.spell_short(first.into(), 1, ids);
        1
    }

    /// Encodes the start of `text` up to an ASCII space or punctuation mark, and returns how many
    /// bytes that was.
    fn encode_run(&self, text: &str, ids: &mut Vec<u32>) -> usize {
        let ends = |&byte: &u8| matches!(Class::of_byte(byte), Class::Space | Class::Punctuation);
        let len = text.as_bytes().iter().position(ends).unwrap_or(text.len());
        let mut word = Word::default();
        unicode::normalize(&text[..len], |part| match part {
            Part::Letter(c) => word.push(c),
            Part::Break => word.spell(&self.vocab, ids),
            Part::Single(c) => {
                word.spell(&self.vocab, ids);
                word.push(c);
                word.spell(&self.vocab, ids);
            }
        });
        word.spell(&self.vocab, ids);
        len
    }
}

/// A word that is being put together.
struct Word {
    bytes: [u8; MAX_WORD_CHARS * 4],
    len: usize,
    chars: usize,
}

impl Default for Word {
    fn default() -> Self {
        Self { bytes: [0; MAX_WORD_CHARS * 4], len: 0, chars: 0 }
    }
}

impl Word {
    fn push(&mut self, c: char) {
        if self.chars < MAX_WORD_CHARS {
            self.len += c.encode_utf8(&mut self.bytes[self.len..]).len();
        }
        self.chars += 1;
    }

    /// Appends its ids and starts the next word.
    fn spell(&mut self, vocab: &Vocab, ids: &mut Vec<u32>) {
        match self.chars {
            0 => {}
            1..=MAX_WORD_CHARS => vocab.spell(&self.bytes[..self.len], ids),
            _ => vocab.add_unknown(ids),
        }
        (self.len, self.chars) = (0, 0);
    }
}

/// Cuts `text` into sections of `target` bytes (at least 4) or a little more. Each ends between
/// words, so the ids of the sections are the ids of the whole.
pub(crate) fn sections(text: &str, target: usize) -> impl Iterator<Item = &str> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let from = rest.floor_char_boundary(target);
        let cut = rest[from..].find(|c| matches!(Class::of(c), Class::Space | Class::Ideograph));
        let section;
        (section, rest) = rest.split_at(cut.map_or(rest.len(), |cut| from + cut));
        (!section.is_empty()).then_some(section)
    })
}

/// The same byte in every place.
const fn every(byte: u8) -> u128 {
    u128::from_ne_bytes([byte; SHORT])
}

const HIGH: u128 = every(0x80);

/// The high bit of every byte of `bytes`, all below 0x80, that is at least `least`.
#[inline]
const fn at_least(bytes: u128, least: u8) -> u128 {
    bytes + every(0x80 - least)
}

/// How many bytes at the start of `text` are ASCII letters or digits.
#[inline]
fn leading_word_bytes(text: u128) -> usize {
    let low = text & !HIGH;
    let folded = low | every(0x20);
    let letters = at_least(folded, b'a') & !at_least(folded, b'z' + 1);
    let digits = at_least(low, b'0') & !at_least(low, b'9' + 1);
    let others = !((letters | digits) & !text) & HIGH;
    others.trailing_zeros() as usize / 8
}

/// Lowercases ASCII letters; digits stay, other bytes become anything.
#[inline]
fn lowercase(text: u128) -> u128 {
    text | (text & every(0x40)) >> 1
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde::Deserialize;
    use std::sync::LazyLock;

    static TOKENIZER: LazyLock<Tokenizer> = LazyLock::new(|| {
        let pieces: Vec<&str> = crate::static_model::EMBEDDED_VOCAB.lines().collect();
        Tokenizer::new(&pieces, Unknown::Drop).unwrap()
    });

    fn encode(text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        TOKENIZER.encode(text, &mut ids);
        ids
    }

    /// What `tests/make_tokenizer_fixture.py` says of itself.
    #[derive(Deserialize)]
    struct Fixture {
        characters: Vec<(u32, String)>,
        texts: Vec<(String, Vec<u32>)>,
    }

    static FIXTURE: LazyLock<Fixture> =
        LazyLock::new(|| serde_json::from_str(include_str!("../../tests/data/tokenizer.json")).unwrap());

    #[test]
    fn texts_get_the_ids_of_hugging_face() {
        assert!(FIXTURE.texts.len() > 1500);
        for (text, ids) in &FIXTURE.texts {
            assert_eq!(encode(text), *ids, "{text:?}");
        }
    }

    #[test]
    fn characters_get_the_ids_of_hugging_face() {
        for (first, expected) in &FIXTURE.characters {
            let mut digest = 0xcbf2_9ce4_8422_2325_u64;
            for c in (*first..first + 4096).filter_map(char::from_u32) {
                let ids = encode(&format!("a{c}b"));
                for byte in ids.into_iter().chain([u32::MAX]).flat_map(u32::to_le_bytes) {
                    digest = (digest ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
                }
            }
            assert_eq!(format!("{digest:016x}"), *expected, "one of the 4096 characters from U+{first:X}");
        }
    }

    #[test]
    fn sections_have_the_ids_of_the_whole() {
        for (text, ids) in &FIXTURE.texts {
            let mut joined = Vec::new();
            sections(text, 4).for_each(|section| TOKENIZER.encode(section, &mut joined));
            assert_eq!(joined, *ids, "{text:?}");
        }
    }

    #[test]
    fn a_piece_that_stands_there_twice_is_an_error() {
        let error = Tokenizer::new(&["a", "##a", "b", "a"], Unknown::Drop).err().unwrap();
        assert!(error.message().contains("'a' twice, as 0 and 3"), "{error}");
        let error =
            Tokenizer::new(&["##abcdefghijklmnopq", "##abcdefghijklmnopq"], Unknown::Drop).err().unwrap();
        assert!(error.message().contains("twice, as 0 and 1"), "{error}");
    }

    #[test]
    fn the_longest_piece_wins_at_every_length() {
        let long = "abcdefghijklmnopqrstuvwxyz";
        let tokenizer =
            Tokenizer::new(&["a", "abcdefghijklmnopq", "##r", "##stuvwxyzabcdefghijkl"], Unknown::Drop)
                .unwrap();
        let mut ids = Vec::new();
        tokenizer.encode(&format!("{long}abcdefghijkl {long}abcdefghijklm {}r", &long[..17]), &mut ids);
        assert_eq!(ids, [1, 2, 3, 1, 2]);
    }

    proptest! {
        #[test]
        fn any_text_is_encoded(text in any::<String>(), target in 4_usize..64) {
            let ids = encode(&text);
            prop_assert!(ids.iter().all(|&id| id < 29_528));
            let mut joined = Vec::new();
            sections(&text, target).for_each(|section| TOKENIZER.encode(section, &mut joined));
            prop_assert_eq!(joined, ids);
        }

        #[test]
        fn registers_agree_with_bytes(word in "[a-zA-Z0-9]{0,16}", rest in any::<[u8; SHORT]>()) {
            let mut text = rest;
            text[..word.len()].copy_from_slice(word.as_bytes());
            let word = text.iter().take_while(|byte| byte.is_ascii_alphanumeric()).count();
            let register = u128::from_le_bytes(text);
            prop_assert_eq!(leading_word_bytes(register), word);
            if word > 0 {
                let lower = first_bytes(lowercase(register), word).to_le_bytes();
                prop_assert_eq!(&lower[..word], text[..word].to_ascii_lowercase());
            }
        }
    }
}
