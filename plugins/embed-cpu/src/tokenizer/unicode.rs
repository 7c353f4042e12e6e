use super::classes::RUNS;
use unicode_normalization::UnicodeNormalization as _;

/// What a character means to an uncased BERT tokenizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Class {
    /// Part of a word.
    Word,
    /// Ends a word.
    Space,
    /// A word of its own.
    Punctuation,
    /// A Chinese character: a word of its own.
    Ideograph,
    /// An accent: dropped once the characters are decomposed.
    Mark,
    /// A control or format character: as if it were not there.
    Removed,
}

impl Class {
    /// The class of `c`.
    #[inline]
    pub(super) fn of(c: char) -> Self {
        match BASIC.get(c as usize) {
            Some(&class) => class,
            // The first run starts at 0, so there is always one before the partition point.
            None => RUNS[RUNS.partition_point(|&(first, _)| first <= c as u32) - 1].1,
        }
    }

    /// The class of an ASCII `byte`; [`Class::Word`] for a byte of a longer character.
    #[inline]
    pub(super) fn of_byte(byte: u8) -> Self {
        ASCII[byte as usize]
    }
}

/// The classes of the characters below 2^16. Static, so that only the pages in use are ever read.
static BASIC: [Class; 0x10000] = classes();
static ASCII: [Class; 256] = ascii();

const fn classes<const N: usize>() -> [Class; N] {
    let mut classes = [Class::Word; N];
    let (mut code, mut run) = (0, 0);
    while code < N {
        if run + 1 < RUNS.len() && RUNS[run + 1].0 as usize == code {
            run += 1;
        }
        classes[code] = RUNS[run].1;
        code += 1;
    }
    classes
}

const fn ascii() -> [Class; 256] {
    let mut ascii = [Class::Word; 256];
    let (low, _) = ascii.split_at_mut(128);
    low.copy_from_slice(&classes::<128>());
    ascii
}

/// What [`normalize`] makes of a text, one at a time.
pub(super) enum Part {
    /// The next character of the current word.
    Letter(char),
    /// The end of the current word.
    Break,
    /// A word of its own.
    Single(char),
}

/// Cleans `text`, spaces out Chinese characters, decomposes, strips accents and lowercases, in the
/// order of Hugging Face's `BertNormalizer`, and splits the result as its `BertPreTokenizer` does.
///
/// Canonical order concerns neighbours: start and end `text` where an ASCII character that is not
/// [`Class::Removed`] stands next to it.
pub(super) fn normalize(text: &str, mut part: impl FnMut(Part)) {
    let spaced = text.chars().flat_map(|c| {
        let (before, c, after) = match Class::of(c) {
            Class::Removed => (None, None, None),
            Class::Space => (None, Some(' '), None),
            Class::Ideograph => (Some(' '), Some(c), Some(' ')),
            _ => (None, Some(c), None),
        };
        before.into_iter().chain(c).chain(after)
    });
    for c in spaced.nfd().filter(|&c| Class::of(c) != Class::Mark).flat_map(char::to_lowercase) {
        part(match Class::of(c) {
            Class::Space => Part::Break,
            Class::Punctuation => Part::Single(c),
            _ => Part::Letter(c),
        });
    }
}
