//! How a text becomes the terms that the keyword index holds and a query asks for.
use rust_stemmers::{Algorithm, Stemmer};
use unicode_normalization::UnicodeNormalization;

/// Characters of a term at most; what is longer is cut, in texts and queries alike.
const MAX_CHARS: usize = 64;

/// The terms of a record, one space between two.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Terms {
    pub(super) title: String,
    pub(super) text: String,
}

impl Terms {
    pub(super) fn of(title: Option<&str>, text: &str) -> Self {
        let analyser = Analyser::new();
        let joined = |text: &str| {
            let mut terms = String::with_capacity(text.len());
            analyser.each_term(text, &mut |_, term| {
                terms.push_str(term);
                terms.push(' ');
            });
            terms
        };
        Self { title: joined(title.unwrap_or_default()), text: joined(text) }
    }
}

/// What a query asks the keyword index for: its terms, each once, in their order, without the words that
/// say nothing; where it has no others, with them.
pub fn query_terms(query: &str) -> Vec<String> {
    let (mut telling, mut others) = (Vec::new(), Vec::new());
    Analyser::new().each_term(query, &mut |word, term| {
        let terms = if STOP_WORDS.contains(&word) { &mut others } else { &mut telling };
        if !terms.iter().any(|known| known == term) {
            terms.push(term.to_owned());
        }
    });
    if telling.is_empty() { others } else { telling }
}

/// The terms of a text, in their order, for comparison with those of a query.
pub fn text_terms(text: &str) -> Vec<String> {
    let mut terms = Vec::new();
    Analyser::new().each_term(text, &mut |_, term| terms.push(term.to_owned()));
    terms
}

/// Makes terms of words: lower case, without diacritics, and without the endings of Russian (in words of Cyrillic
/// letters) and English (in words of a to z). A name of several parts (`node.js`, `snake_case`, `camelCase`, `e-mail`)
/// is each of them and all of them as one word. Chinese and Japanese, which have no spaces, are pairs of characters.
struct Analyser {
    english: Stemmer,
    russian: Stemmer,
}

impl Analyser {
    fn new() -> Self {
        Self { english: Stemmer::create(Algorithm::English), russian: Stemmer::create(Algorithm::Russian) }
    }

    /// Tells `visit` each word, in lower case, and its term.
    fn each_term(&self, text: &str, visit: &mut dyn FnMut(&str, &str)) {
        let mut folded = String::new();
        for name in names(text) {
            let mut parts = 0;
            for part in parts_of(name) {
                parts += 1;
                fold(part, &mut folded);
                if part.chars().any(is_unspaced) {
                    pairs(&folded, visit);
                } else if !folded.is_empty() {
                    visit(&folded, &self.stem(&folded));
                }
            }
            if parts > 1 {
                fold(name, &mut folded);
                if !folded.is_empty() {
                    visit(&folded, &self.stem(&folded));
                }
            }
        }
    }

    fn stem<'a>(&self, word: &'a str) -> std::borrow::Cow<'a, str> {
        if word.bytes().all(|byte| byte.is_ascii_lowercase()) {
            self.english.stem(word)
        } else if word.chars().all(|c| ('\u{400}'..='\u{52f}').contains(&c)) {
            self.russian.stem(word)
        } else {
            word.into()
        }
    }
}

/// The runs of characters of words, and of those that join words where they stand between two.
fn names(text: &str) -> impl Iterator<Item = &str> {
    let runs = text.split(|c: char| !is_word(c) && !is_joiner(c));
    runs.flat_map(|run| {
        // A joiner next to another one, as in `a--b` and `and so on...`, joins nothing.
        let mut rest = run;
        std::iter::from_fn(move || {
            rest = rest.trim_start_matches(is_joiner);
            let mut last = ' ';
            let end = rest.find(|c: char| is_joiner(std::mem::replace(&mut last, c)) && is_joiner(c));
            let (name, after) = rest.split_at(end.unwrap_or(rest.len()));
            rest = after;
            let name = name.trim_end_matches(is_joiner);
            (!name.is_empty()).then_some(name)
        })
    })
}

/// The words of a name: between joiners, and where small letters end and a capital begins a word.
fn parts_of(name: &str) -> impl Iterator<Item = &str> {
    name.split(is_joiner).flat_map(|part| {
        let mut rest = part;
        std::iter::from_fn(move || {
            let (mut before, mut at) = (' ', 0);
            for (next, c) in rest.char_indices() {
                let is_hump = before.is_lowercase() && c.is_uppercase() && next > 1 && rest.len() - next > 1;
                if is_hump || (at > 0 && is_unspaced(before) != is_unspaced(c)) {
                    break;
                }
                (before, at) = (c, next + c.len_utf8());
            }
            let (word, after) = rest.split_at(at);
            rest = after;
            (!word.is_empty()).then_some(word)
        })
    })
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || unicode_normalization::char::is_combining_mark(c)
}

fn is_joiner(c: char) -> bool {
    matches!(c, '.' | '_' | '-')
}

/// Of a script that is written without spaces: Han, Hiragana, Katakana.
fn is_unspaced(c: char) -> bool {
    matches!(c, '\u{3040}'..='\u{30ff}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}'
        | '\u{f900}'..='\u{faff}' | '\u{20000}'..='\u{3ffff}')
}

/// A word or name in lower case, without diacritics and joiners. The breve of й is none: it is another letter than и.
fn fold(word: &str, out: &mut String) {
    out.clear();
    if word.is_ascii() {
        let kept = word.chars().filter(char::is_ascii_alphanumeric);
        out.extend(kept.take(MAX_CHARS).map(|c| c.to_ascii_lowercase()));
        return;
    }
    for c in word.nfkd().flat_map(char::to_lowercase).take(MAX_CHARS) {
        match c {
            '\u{306}' if out.ends_with('и') => {
                out.pop();
                out.push('й');
            }
            '\u{300}'..='\u{36f}' => {}
            c if c.is_ascii_alphanumeric() || !c.is_ascii() => out.push(c),
            // A joiner, or a part of what a single character stands for.
            _ => {}
        }
    }
}

fn pairs(word: &str, visit: &mut dyn FnMut(&str, &str)) {
    let starts: Vec<usize> = word.char_indices().map(|(at, _)| at).chain([word.len()]).collect();
    if starts.len() == 2 {
        visit(word, word);
    }
    for pair in starts.windows(3) {
        visit(&word[pair[0]..pair[2]], &word[pair[0]..pair[2]]);
    }
}

/// Words that stand in every text, in lower case. They are in the index, for a query may have no others.
const STOP_WORDS: &[&str] = &[
    "a",
    "about",
    "after",
    "all",
    "also",
    "am",
    "an",
    "and",
    "any",
    "are",
    "as",
    "at",
    "be",
    "because",
    "been",
    "before",
    "being",
    "but",
    "by",
    "can",
    "could",
    "d",
    "did",
    "do",
    "does",
    "doing",
    "don",
    "for",
    "from",
    "had",
    "has",
    "have",
    "having",
    "he",
    "her",
    "here",
    "hers",
    "him",
    "his",
    "how",
    "i",
    "if",
    "in",
    "into",
    "is",
    "it",
    "its",
    "just",
    "ll",
    "m",
    "me",
    "more",
    "most",
    "my",
    "no",
    "nor",
    "not",
    "of",
    "on",
    "or",
    "other",
    "our",
    "out",
    "over",
    "own",
    "re",
    "s",
    "she",
    "should",
    "so",
    "some",
    "such",
    "t",
    "than",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "this",
    "those",
    "through",
    "to",
    "too",
    "under",
    "until",
    "up",
    "ve",
    "very",
    "was",
    "we",
    "were",
    "what",
    "when",
    "where",
    "which",
    "while",
    "who",
    "whom",
    "why",
    "will",
    "with",
    "would",
    "you",
    "your",
    "yours", //
    "а",
    "без",
    "бы",
    "был",
    "была",
    "были",
    "было",
    "быть",
    "в",
    "вам",
    "вас",
    "весь",
    "во",
    "вот",
    "все",
    "всего",
    "вы",
    "где",
    "да",
    "даже",
    "для",
    "до",
    "его",
    "ее",
    "если",
    "есть",
    "еще",
    "ж",
    "же",
    "за",
    "и",
    "из",
    "или",
    "им",
    "их",
    "к",
    "как",
    "какая",
    "какие",
    "какой",
    "ко",
    "когда",
    "кто",
    "ли",
    "либо",
    "мне",
    "можно",
    "мой",
    "мы",
    "на",
    "над",
    "надо",
    "нам",
    "нас",
    "не",
    "него",
    "нее",
    "нет",
    "ни",
    "них",
    "но",
    "ну",
    "о",
    "об",
    "он",
    "она",
    "они",
    "оно",
    "от",
    "очень",
    "по",
    "под",
    "при",
    "с",
    "со",
    "так",
    "также",
    "такой",
    "там",
    "то",
    "того",
    "тоже",
    "той",
    "только",
    "том",
    "ты",
    "у",
    "уже",
    "хотя",
    "чего",
    "чей",
    "чем",
    "что",
    "чтобы",
    "эта",
    "эти",
    "это",
    "этот",
    "я",
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn terms(text: &str) -> String {
        text_terms(text).join(" ")
    }

    #[test]
    fn inflected_words_have_the_same_term() {
        assert_eq!(terms("backups backup"), "backup backup");
        assert_eq!(terms("Connected connections connecting"), "connect connect connect");
        assert_eq!(terms("Резервные копии, резервных копий"), "резервн коп резервн коп");
        assert_eq!(terms("Ёлки и ЁЛКА"), "елк и елк");
        // й as one character and as two.
        assert_eq!(terms("й"), terms("и\u{306}"));
        assert_ne!(terms("й"), terms("и"));
    }

    #[test]
    fn a_name_is_its_parts_and_the_whole() {
        assert_eq!(terms("node.js"), "node js nodej");
        assert_eq!(terms("snake_case_names"), "snake case name snakecasenam");
        assert_eq!(terms("getUserName HTTPServer"), "get user name getusernam httpserver");
        // What would leave a letter alone is no word of its own.
        assert_eq!(terms("mRNA iPhone"), "mrna iphon");
        assert_eq!(terms("e-mail on 2026-03-01."), "e mail email on 2026 03 01 20260301");
        assert_eq!(terms("__init__ ... a--b -x-"), "init a b x");
        assert_eq!(terms("Caroline's café"), "carolin s cafe");
        assert_eq!(terms("x86 v1.2.3"), "x86 v1 2 3 v123");
    }

    #[test]
    fn scripts_without_spaces_are_pairs() {
        assert_eq!(terms("東京都 A級"), "東京 京都 a 級 a級");
        assert_eq!(terms("水"), "水");
    }

    #[test]
    fn a_query_leaves_out_what_says_nothing_unless_it_says_nothing_else() {
        assert_eq!(query_terms("How are the Backups made, the backups?"), ["backup", "made"]);
        assert_eq!(query_terms("где лежат копии"), ["лежат", "коп"]);
        assert_eq!(query_terms("to be or not to be"), ["to", "be", "or", "not"]);
        assert_eq!(query_terms("?! \0"), [""; 0]);
    }

    /// Marks without a letter, joiners, humps, scripts side by side, and letters that fold into several.
    fn hard() -> impl Strategy<Value = String> {
        let parts = [
            "a",
            "B",
            "ий",
            "И",
            "ſ",
            "İ",
            "ß",
            "ﬁ",
            "ﷺ",
            "水",
            "ー",
            "か\u{3099}",
            "\u{301}",
            "\u{306}",
            "\u{20dd}",
            ".",
            "-",
            "_",
            " ",
            "ing",
            "ся",
            "ость",
            "ё",
            "Ѡ",
            "\u{483}",
            "1",
            "½",
            "²",
            "\0",
            "💥",
        ];
        prop::collection::vec(prop::sample::select(parts.to_vec()), 0..12).prop_map(|parts| parts.concat())
    }

    proptest! {
        /// The index takes a term as one token, so a query finds what a text has.
        #[test]
        fn a_term_is_one_token_of_the_index(text in prop_oneof![any::<String>(), hard()]) {
            for term in text_terms(&text) {
                prop_assert!(!term.is_empty());
                prop_assert!(term.chars().all(|c| !c.is_ascii() || c.is_ascii_alphanumeric()), "{term}");
            }
        }
    }
}
