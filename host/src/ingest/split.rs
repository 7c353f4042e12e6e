use text_splitter::{CodeSplitter, MarkdownSplitter, TextSplitter};

use super::FileKind;
use super::outline::Outline;

/// A text is handed to the splitter in windows of at least this many bytes and this many chunks.
///
/// For each chunk the splitter looks through all that remains, so its time grows with the square
/// of what it is given. Windows make it linear, and bound the memory too.
const WINDOW_BYTES: usize = 16 * 1024;
const WINDOW_CHUNKS: usize = 32;

/// A piece of a text, small enough to be embedded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Not empty. It starts on its first line with text, whose indentation code and Markdown keep,
    /// and ends without white space.
    pub text: String,
    /// First line, counted from 1.
    pub line_start: usize,
    /// Last line, inclusive.
    pub line_end: usize,
    /// Where in the document the chunk begins: `title > section > subsection`, or in code
    /// `title > type > method`. In a text above 1 MiB, the title alone.
    pub heading: Option<String>,
}

impl Chunk {
    /// What to embed: the heading, which the text alone often lacks, and the text.
    pub fn embedding_text(&self) -> String {
        match &self.heading {
            Some(heading) => format!("{heading}\n{}", self.text),
            None => self.text.clone(),
        }
    }
}

/// Cuts `text` into chunks of at most `max_chars` characters, in order.
///
/// Every character but white space is in exactly one chunk. Any `max_chars` works, 0 being taken
/// for 1; chunks of less than about 100 say little. `title` names the document and heads every
/// breadcrumb: for code give the file's stem. Time and memory grow linearly with the text.
pub fn split(text: &str, kind: FileKind, title: Option<&str>, max_chars: usize) -> Vec<Chunk> {
    let max_chars = max_chars.max(1);
    let mut outline = Outline::of(text, kind);
    let mut lines = LineCounter { text, offset: 0, line: 1 };
    let mut chunks = Vec::new();
    let limit = max_chars.saturating_mul(WINDOW_CHUNKS).max(WINDOW_BYTES);
    for (start, window) in windows(text, limit) {
        for (offset, chunk) in split_window(window, kind, max_chars) {
            // The splitter leaves a first line that has spaces only.
            let indentation = chunk.len() - chunk.trim_start().len();
            let blank = chunk[..indentation].rfind('\n').map_or(0, |at| at + 1);
            let (offset, chunk) = (start + offset + blank, &chunk[blank..]);

            let line_start = lines.line_at(offset);
            let line_end = lines.line_at(offset + chunk.len());
            let heading = outline.breadcrumb(title, offset + indentation - blank);
            chunks.push(Chunk { text: chunk.to_owned(), line_start, line_end, heading });
        }
    }
    chunks
}

fn split_window(window: &str, kind: FileKind, max_chars: usize) -> Vec<(usize, &str)> {
    if let FileKind::Code(language) = kind
        && let Ok(splitter) = CodeSplitter::new(language.grammar(), max_chars)
    {
        return splitter.chunk_indices(window).collect();
    }
    match kind {
        FileKind::Markdown => MarkdownSplitter::new(max_chars).chunk_indices(window).collect(),
        FileKind::Code(_) | FileKind::Text => TextSplitter::new(max_chars).chunk_indices(window).collect(),
    }
}

/// Consecutive pieces of `text`, of at most `limit` bytes (8 or more), with their byte offsets.
fn windows(text: &str, limit: usize) -> impl Iterator<Item = (usize, &str)> {
    let mut offset = 0;
    std::iter::from_fn(move || {
        let rest = &text[offset..];
        let window = &rest[..window_len(rest, limit)];
        let start = offset;
        offset += window.len();
        (!window.is_empty()).then_some((start, window))
    })
}

/// Bytes of the window that starts `text`: at most `limit`, and at least half of that if there is
/// as much text. It ends where the text breaks best.
fn window_len(text: &str, limit: usize) -> usize {
    if text.len() <= limit {
        return text.len();
    }
    let end = text.floor_char_boundary(limit);
    let half = text.floor_char_boundary(limit / 2);
    let tail = &text[half..end];
    // A blank line before one that is not indented parts sections and items.
    let between_items = tail
        .rmatch_indices("\n\n")
        .map(|(at, blank)| at + blank.len())
        .find(|&at| tail[at..].starts_with(|c: char| !c.is_whitespace()));
    let after = |pattern: &str| tail.rfind(pattern).map(|at| at + pattern.len());
    between_items
        .or_else(|| after("\n\n"))
        .or_else(|| after("\n"))
        .or_else(|| tail.rfind(char::is_whitespace))
        .map_or(end, |at| half + at)
}

/// Tells the line of ascending byte offsets, each stretch of text being read once.
struct LineCounter<'text> {
    text: &'text str,
    offset: usize,
    line: usize,
}

impl LineCounter<'_> {
    fn line_at(&mut self, offset: usize) -> usize {
        let passed = &self.text.as_bytes()[self.offset..offset];
        self.line += passed.iter().filter(|&&byte| byte == b'\n').count();
        self.offset = offset;
        self.line
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ingest::Language;

    const KINDS: [FileKind; 7] = [
        FileKind::Text,
        FileKind::Markdown,
        FileKind::Code(Language::C),
        FileKind::Code(Language::Go),
        FileKind::Code(Language::JavaScript),
        FileKind::Code(Language::Python),
        FileKind::Code(Language::Rust),
    ];

    /// What holds for the chunks of any text.
    fn check(text: &str, kind: FileKind, max_chars: usize) {
        let mut end = 0;
        for chunk in split(text, kind, None, max_chars) {
            assert!(chunk.text.chars().count() <= max_chars.max(1), "{chunk:?}");
            assert_eq!(chunk.text, chunk.text.trim_end());
            assert!(!chunk.text.lines().next().unwrap().trim().is_empty(), "{chunk:?}");

            let gap = text[end..].find(&chunk.text).unwrap();
            assert_eq!(text[end..][..gap].trim(), "", "text left out before {chunk:?}");
            let start = end + gap;
            end = start + chunk.text.len();
            assert_eq!(chunk.line_start, 1 + text[..start].matches('\n').count());
            assert_eq!(chunk.line_end, 1 + text[..end].matches('\n').count());
        }
        assert_eq!(text[end..].trim(), "", "text left out at the end");
    }

    /// Texts rich in what the splitters and grammars take for structure.
    fn any_text() -> impl Strategy<Value = String> {
        let token = prop::sample::select(vec![
            "# ",
            "## A\n",
            "===\n",
            "---\n",
            "```\n",
            "- ",
            "> ",
            "| a | b |\n",
            "<b>",
            "*",
            "`",
            "[a](",
            "\n",
            "\n\n",
            "\r\n",
            " ",
            "    ",
            "\t",
            "\u{a0}",
            "\u{2028}",
            "\0",
            "word ",
            "End. Next",
            "é",
            "👩‍👩‍👧",
            "中文",
            "fn f() {\n",
            "impl A for B {",
            "}\n",
            "(",
            ")",
            ";",
            "\"",
            "'",
            "//",
            "/*",
            "*/",
            "#if\n",
            "#define A \\\n",
            "def f():\n",
            "class A:\n",
            "func (a *B) c() {\n",
            "function f() {",
            "static int *f(void)\n{",
        ]);
        prop_oneof![
            3 => prop::collection::vec(token, 0..120).prop_map(|tokens| tokens.concat()),
            1 => any::<String>(),
        ]
    }

    proptest! {
        #[test]
        fn chunks_cover_any_text(
            text in any_text(), kind in prop::sample::select(&KINDS[..]), max_chars in 0_usize..80,
        ) {
            check(&text, kind, max_chars);
        }

        #[test]
        fn windows_cover_any_text(text in any_text(), limit in 8_usize..200) {
            let mut end = 0;
            for (start, window) in windows(&text, limit) {
                prop_assert_eq!(start, end);
                prop_assert!(window.len() <= limit);
                end += window.len();
            }
            prop_assert_eq!(end, text.len());
        }
    }

    #[test]
    fn chunks_cover_a_text_of_many_windows() {
        for kind in KINDS {
            check(&include_str!("split.rs").repeat(3), kind, 300);
        }
    }

    /// Without windows a kind takes from ten seconds to minutes here.
    #[test]
    fn one_long_line_takes_linear_time() {
        let text = "let a = [1, \"b\"]; ".repeat(30_000);
        for kind in [FileKind::Text, FileKind::Markdown, FileKind::Code(Language::JavaScript)] {
            let chunks = split(&text, kind, None, 1000);
            assert!(chunks.len() >= text.len() / 1000, "{kind:?}");
            assert!(chunks.iter().all(|chunk| (chunk.line_start, chunk.line_end) == (1, 1)));
        }
    }

    #[test]
    fn windows_end_between_items() {
        let text = "fn a() {\n    x();\n\n    y();\n}\n\nfn b() {\n    z();\n\n    z();\n}\n";
        let (_, first) = windows(text, 56).next().unwrap();
        assert!(first.ends_with("}\n\n"), "{first}");
    }

    #[test]
    fn text_is_cut_at_blank_lines() {
        let chunks = split("one\ntwo\n\nthree\nfour\n", FileKind::Text, None, 12);
        assert_eq!(chunks.len(), 2);
        assert_eq!((chunks[0].text.as_str(), chunks[0].line_start, chunks[0].line_end), ("one\ntwo", 1, 2));
        assert_eq!(
            (chunks[1].text.as_str(), chunks[1].line_start, chunks[1].line_end),
            ("three\nfour", 4, 5)
        );
        assert_eq!(chunks[0].embedding_text(), "one\ntwo");
    }

    #[test]
    fn code_is_cut_between_items_and_keeps_its_indentation() {
        let text =
            "impl A {\n    fn b() {\n        one();\n    }\n\n    fn c() {\n        two();\n    }\n}\n";
        let chunks = split(text, FileKind::Code(Language::Rust), Some("a"), 45);
        assert!(
            chunks.iter().any(|chunk| chunk.text.contains("fn c() {\n        two();\n    }")),
            "{chunks:?}"
        );
        let last = chunks.iter().find(|chunk| chunk.text.contains("two")).unwrap();
        assert!(last.embedding_text().starts_with("a > A"), "{last:?}");
    }

    #[test]
    fn nothing_but_white_space_gives_no_chunk() {
        for kind in KINDS {
            assert_eq!(split(" \n\t\r\n", kind, Some("a"), 10), []);
        }
    }
}
