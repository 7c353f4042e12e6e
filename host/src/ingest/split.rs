use super::FileKind;
use super::cut::cut;
use super::outline::Outline;

/// A piece of a text, small enough to be embedded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Not empty. It keeps the indentation of its first line, unless that is longer than a quarter of
    /// the chunk may be, and starts and ends without other white space.
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
    let Outline { breaks, mut breadcrumbs } = Outline::of(text, kind);
    let mut lines = LineCounter { text, offset: 0, line: 1 };
    let mut chunks = Vec::new();
    for range in cut(text, &breaks, max_chars.max(1)) {
        let chunk = &text[range.clone()];
        let indentation = chunk.len() - chunk.trim_start().len();
        chunks.push(Chunk {
            text: chunk.to_owned(),
            line_start: lines.line_at(range.start),
            line_end: lines.line_at(range.end),
            heading: breadcrumbs.at(range.start + indentation, title),
        });
    }
    chunks
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
    }

    #[test]
    fn chunks_cover_a_text_of_many_chunks() {
        for kind in KINDS {
            check(&include_str!("split.rs").repeat(3), kind, 300);
        }
    }

    #[test]
    fn one_long_line_takes_linear_time() {
        let text = "let a = [1, \"b\"]; ".repeat(30_000);
        for kind in [FileKind::Text, FileKind::Markdown, FileKind::Code(Language::JavaScript)] {
            let chunks = split(&text, kind, None, 1000);
            assert!(chunks.len() >= text.len() / 1000, "{kind:?}");
            assert!(chunks.iter().all(|chunk| (chunk.line_start, chunk.line_end) == (1, 1)));
        }
    }

    fn texts(text: &str, kind: FileKind, max_chars: usize) -> Vec<String> {
        split(text, kind, None, max_chars).into_iter().map(|chunk| chunk.text).collect()
    }

    #[test]
    fn a_text_breaks_at_the_strongest_place_that_fits() {
        let cut = |text: &str| texts(text, FileKind::Text, 24);
        assert_eq!(cut("one two\n\nthree\nfour five six"), ["one two", "three\nfour five six"]);
        assert_eq!(cut("one. two three\nfour five six"), ["one. two three", "four five six"]);
        assert_eq!(cut("One two (three.) Four five six"), ["One two (three.)", "Four five six"]);
        assert_eq!(cut("one two three four five six"), ["one two three four", "five six"]);
        assert_eq!(
            cut("一二三四五六七八九十。一二三四五六七八九十一二三四"),
            ["一二三四五六七八九十。", "一二三四五六七八九十一二三四"]
        );
        assert_eq!(cut(&"é".repeat(30)), ["é".repeat(24), "é".repeat(6)]);
        // Six are a quarter: no piece is smaller.
        assert_eq!(cut(&"é".repeat(25)), ["é".repeat(19), "é".repeat(6)]);
    }

    #[test]
    fn a_markdown_section_starts_a_chunk_unless_little_stands_before_it() {
        let text = "# A\n\n## B\n\nbody of b, no more\n\n### C\n\nbody of c, no more\n\n## D\n\nd\n";
        let chunks = split(text, FileKind::Markdown, None, 60);
        let starts: Vec<_> =
            chunks.iter().map(|chunk| (chunk.line_start, chunk.heading.as_deref())).collect();
        assert_eq!(starts, [(1, Some("A")), (7, Some("A > B > C"))]);
        assert!(chunks[1].text.ends_with("## D\n\nd"), "{chunks:?}");
    }

    #[test]
    fn an_item_takes_its_comment_along_and_names_its_chunk() {
        let item = |name: &str| format!("/// About {name}.\n#[test]\nfn {name}() {{\n    call();\n}}\n\n");
        let text = ["a", "b", "c"].map(item).concat();
        let chunks = split(&text, FileKind::Code(Language::Rust), None, 100);
        let headings: Vec<_> = chunks.iter().map(|chunk| chunk.heading.as_deref()).collect();
        assert_eq!(headings, [Some("a"), Some("b"), Some("c")]);
        assert!(chunks[1].text.starts_with("/// About b"), "{chunks:?}");
    }

    #[test]
    fn what_is_left_of_a_section_is_not_small() {
        let text = format!("# A\n\n{}\n\n# B\n\n{}", "word. ".repeat(17), "word. ".repeat(100));
        let chunks = split(&text, FileKind::Markdown, None, 100);
        assert_eq!(chunks[2].heading.as_deref(), Some("B"));
        assert!(chunks.iter().all(|chunk| chunk.text.len() >= 20), "{chunks:?}");
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
