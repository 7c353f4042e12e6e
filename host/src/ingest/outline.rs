use pulldown_cmark::{Event, HeadingLevel, Options, Tag, TagEnd};
use tree_sitter::{Node, Parser};

use super::{FileKind, Language};

/// A longer text gets no outline. A parse takes up to 270 times the size of the text in memory, and
/// so long a text was as a rule written by a program.
const MAX_BYTES: usize = 1 << 20;

/// Longest title of a section, in characters; the rest is dropped.
const TITLE_CHARS: usize = 80;

/// What joins the titles of nested sections.
const BREADCRUMB: &str = " > ";

/// The structure of a text: that of a Markdown document or of a program; of others nothing is known.
pub(super) struct Outline {
    /// By offset, each offset once.
    pub(super) breaks: Vec<Break>,
    pub(super) breadcrumbs: Breadcrumbs,
}

/// The first visible character of a line with which a block starts: a paragraph, a statement, an
/// item with the comments and attributes above it.
pub(super) struct Break {
    pub(super) at: usize,
    /// How many others the block lies in; to be compared within a text only.
    pub(super) depth: usize,
    /// Whether a section starts here which the text before should not run into: a Markdown section,
    /// or an item that lies in no other.
    pub(super) starts_section: bool,
}

/// Tells the sections, Markdown's or the items of a program, around ascending offsets.
pub(super) struct Breadcrumbs {
    /// Those not yet reached, by start from the end; they nest or are apart.
    sections: Vec<Section>,
    /// The sections around the last offset asked for, outermost first.
    open: Vec<Section>,
}

struct Section {
    start: usize,
    end: usize,
    title: String,
}

impl Outline {
    pub(super) fn of(text: &str, kind: FileKind) -> Self {
        let (breaks, mut sections) = match kind {
            _ if text.len() > MAX_BYTES => Default::default(),
            FileKind::Markdown => markdown(text),
            FileKind::Code(language) => program(text, language),
            FileKind::Text => Default::default(),
        };
        sections.reverse();
        Self { breaks, breadcrumbs: Breadcrumbs { sections, open: Vec::new() } }
    }
}

impl Breadcrumbs {
    /// The titles of the sections around the byte `offset`, outermost first, below `title`;
    /// `None` if there is none. Offsets must be asked for in ascending order.
    pub(super) fn at(&mut self, offset: usize, title: Option<&str>) -> Option<String> {
        while let Some(section) = self.sections.pop_if(|next| next.start <= offset) {
            self.open.push(section);
        }
        self.open.retain(|section| offset < section.end);
        let titles: Vec<_> =
            title.into_iter().chain(self.open.iter().map(|section| section.title.as_str())).collect();
        (!titles.is_empty()).then(|| titles.join(BREADCRUMB))
    }
}

fn markdown(text: &str) -> (Vec<Break>, Vec<Section>) {
    // Without this a front matter's last line would be taken for a heading.
    let options =
        Options::ENABLE_YAML_STYLE_METADATA_BLOCKS | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS;
    let mut breaks: Vec<Break> = Vec::new();
    let mut sections: Vec<Section> = Vec::new();
    let mut open: Vec<(HeadingLevel, usize)> = Vec::new();
    let mut title: Option<String> = None;
    let mut depth = 0;
    for (event, range) in pulldown_cmark::Parser::new_ext(text, options).into_offset_iter() {
        if starts_block(&event) {
            let at = text.len() - text[range.start..].trim_start().len();
            if breaks.last().is_none_or(|last| last.at < at) && begins_line(text, at) {
                let starts_section = matches!(event, Event::Start(Tag::Heading { .. }));
                breaks.push(Break { at, depth, starts_section });
            }
        }
        match event {
            Event::Start(_) => depth += 1,
            Event::End(_) => depth -= 1,
            _ => {}
        }
        match event {
            Event::Start(Tag::Heading { level, .. }) => {
                while let Some((_, ended)) = open.pop_if(|(above, _)| *above >= level) {
                    sections[ended].end = range.start;
                }
                open.push((level, sections.len()));
                sections.push(Section { start: range.start, end: text.len(), title: String::new() });
                title = Some(String::new());
            }
            Event::End(TagEnd::Heading(_)) => {
                if let (Some(title), Some(section)) = (title.take(), sections.last_mut()) {
                    section.title = shorten(&title);
                }
            }
            Event::Text(part) | Event::Code(part) => {
                if let Some(title) = &mut title {
                    title.push_str(&part);
                }
            }
            Event::SoftBreak | Event::HardBreak => {
                if let Some(title) = &mut title {
                    title.push(' ');
                }
            }
            _ => {}
        }
    }
    sections.retain(|section| !section.title.is_empty());
    (breaks, sections)
}

fn starts_block(event: &Event<'_>) -> bool {
    match event {
        Event::Start(tag) => matches!(
            tag,
            Tag::BlockQuote(_)
                | Tag::CodeBlock(_)
                | Tag::Heading { .. }
                | Tag::HtmlBlock
                | Tag::Item
                | Tag::List(_)
                | Tag::MetadataBlock(_)
                | Tag::Paragraph
        ),
        Event::Rule => true,
        _ => false,
    }
}

/// The first node that starts on a line, or what stands right above one and belongs to it.
#[derive(Clone, Copy)]
struct Lead {
    start: usize,
    depth: usize,
    /// The line below it, or for a node its own.
    row: usize,
}

fn program(text: &str, language: Language) -> (Vec<Break>, Vec<Section>) {
    let mut breaks: Vec<Break> = Vec::new();
    let mut sections: Vec<Section> = Vec::new();
    let mut parser = Parser::new();
    if parser.set_language(&language.grammar()).is_err() {
        return (breaks, sections);
    }
    let Some(tree) = parser.parse(text, None) else { return (breaks, sections) };

    let mut first_on_line: Option<Lead> = None;
    let mut above: Option<Lead> = None;
    let mut last_section_end = 0;
    let mut cursor = tree.walk();
    let mut depth = 0;
    loop {
        let node = cursor.node();
        let (first_row, last_row) = (node.start_position().row, last_row(node));
        // Whatever is on one line is in one chunk with its own name, as a rule.
        let long = first_row < last_row;
        let belongs_below = node.is_extra() || language.attributes().contains(&node.kind());
        if node.is_named() {
            let new_line = first_on_line.is_none_or(|first| first.row < first_row);
            let start = match (above.take(), first_on_line) {
                (Some(above), _) if above.depth == depth && first_row <= above.row => above.start,
                // An `export` or `type` around the item.
                (_, Some(first)) if first.row == first_row && first.depth < depth => first.start,
                _ => node.start_byte(),
            };
            if new_line {
                first_on_line = Some(Lead { start, depth, row: first_row });
                if breaks.last().is_none_or(|last| last.at < start) && begins_line(text, start) {
                    breaks.push(Break { at: start, depth, starts_section: false });
                }
            }
            if belongs_below && begins_line(text, node.start_byte()) {
                above = Some(Lead { start, depth, row: last_row + 1 });
            }
            if long
                && language.items().contains(&node.kind())
                && let Some(title) = item_name(node, text)
            {
                if let Some(last) = breaks.last_mut()
                    && last.at == start
                    && last_section_end <= start
                {
                    last.starts_section = true;
                    last_section_end = node.end_byte();
                }
                sections.push(Section { start, end: node.end_byte(), title });
            }
        }
        if long && !belongs_below && cursor.goto_first_child() {
            depth += 1;
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                return (breaks, sections);
            }
            depth -= 1;
        }
    }
}

/// The line on which a node ends, even if it includes the line end.
fn last_row(node: Node<'_>) -> usize {
    let (start, end) = (node.start_position(), node.end_position());
    if end.column == 0 && start.row < end.row { end.row - 1 } else { end.row }
}

fn begins_line(text: &str, at: usize) -> bool {
    let before = text[..at].trim_end_matches(|c: char| c != '\n' && c.is_whitespace());
    before.is_empty() || before.ends_with('\n')
}

/// The name of an item; of a Rust `impl` the type it is for.
fn item_name(item: Node<'_>, text: &str) -> Option<String> {
    let mut named =
        ["name", "declarator", "type"].iter().find_map(|field| item.child_by_field_name(field))?;
    // In C the name sits inside the parameters, and both inside the `*` of a returned pointer.
    while let Some(inner) = named.child_by_field_name("declarator") {
        named = inner;
    }
    let name = shorten(text.get(named.byte_range())?);
    (!name.is_empty()).then_some(name)
}

/// One line of at most [`TITLE_CHARS`] characters.
fn shorten(title: &str) -> String {
    let line = title.split_whitespace().collect::<Vec<_>>().join(" ");
    line.chars().take(TITLE_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The breadcrumb at the first place where the text has `needle`.
    fn at(text: &str, kind: FileKind, needle: &str) -> Option<String> {
        Outline::of(text, kind).breadcrumbs.at(text.find(needle).unwrap(), None)
    }

    #[test]
    fn markdown_sections_nest_by_level() {
        let text = "intro\n\n# A\n\na\n\n### `B` *deep*\n\nb\n\nC\n-\n\n```\n# no\n```\nc\n\n# D\nd\n";
        let at = |needle| at(text, FileKind::Markdown, needle);
        assert_eq!(at("intro"), None);
        assert_eq!(at("a\n").as_deref(), Some("A"));
        assert_eq!(at("### ").as_deref(), Some("A > B deep"));
        assert_eq!(at("b\n").as_deref(), Some("A > B deep"));
        assert_eq!(at("# no").as_deref(), Some("A > C"));
        assert_eq!(at("d\n").as_deref(), Some("D"));
    }

    #[test]
    fn front_matter_is_no_heading() {
        let text = "---\ntitle: x\n---\n\nbody\n";
        assert_eq!(at(text, FileKind::Markdown, "body"), None);
    }

    #[test]
    fn the_title_comes_first() {
        let at_start = |text, kind, title| Outline::of(text, kind).breadcrumbs.at(0, Some(title));
        assert_eq!(at_start("# A\n", FileKind::Markdown, "readme").as_deref(), Some("readme > A"));
        assert_eq!(at_start("a", FileKind::Text, "notes").as_deref(), Some("notes"));
    }

    #[test]
    fn items_of_every_language_have_names() {
        let cases = [
            (Language::C, "static char *\nname(int a,\n int b)\n{\n  here();\n}\n", "name"),
            (Language::Go, "package a\nfunc (s *Store) Name() {\n  here()\n}\n", "Name"),
            (Language::JavaScript, "export class A {\n  b() {\n    here();\n  }\n}\n", "A > b"),
            (Language::Python, "class A:\n    @x\n    def b(self):\n        here()\n", "A > b"),
            (
                Language::Rust,
                "mod m {\n impl X for A<T> {\n  fn b() {\n   here()\n  }\n }\n}\n",
                "m > A<T> > b",
            ),
        ];
        for (language, text, name) in cases {
            assert_eq!(at(text, FileKind::Code(language), "here").as_deref(), Some(name), "{language:?}");
        }
    }

    #[test]
    fn a_place_after_an_item_is_outside_it() {
        let text = "fn a() {\n}\n\nstatic S: u8 = 1;\n";
        assert_eq!(at(text, FileKind::Code(Language::Rust), "static"), None);
    }

    #[test]
    fn long_titles_are_cut() {
        let text = format!("# {}\n", "é ".repeat(200));
        let title = at(&text, FileKind::Markdown, "#").unwrap();
        assert_eq!(title.chars().count(), TITLE_CHARS);
    }

    #[test]
    fn a_very_long_text_has_no_outline() {
        let text = format!("# A\n{}", "word ".repeat(MAX_BYTES / 5));
        assert_eq!(at(&text, FileKind::Markdown, "word"), None);
    }

    #[test]
    fn an_item_starts_with_what_belongs_to_it() {
        let cases = [
            (Language::C, "x();\n/* it\n does */\ntypedef struct a {\n  int b;\n} a;\n", "/* it", "a"),
            (Language::Go, "package a\n\n// It\n// does.\ntype A struct {\n  b int\n}\n", "// It", "A"),
            (Language::JavaScript, "x();\n/** It. */\nexport class A {\n  b() {}\n}\n", "/** It", "A"),
            (Language::Python, "x()\n# It.\n@b\n@c\ndef a():\n    pass\n", "# It", "a"),
            (Language::Rust, "x!();\n/// It.\n/// b\n#[c]\npub fn a() {\n}\n", "/// It", "a"),
        ];
        for (language, text, start, name) in cases {
            let kind = FileKind::Code(language);
            assert_eq!(at(text, kind, start).as_deref(), Some(name), "{language:?}");
            let starts: Vec<_> = Outline::of(text, kind)
                .breaks
                .iter()
                .filter(|next| next.starts_section)
                .map(|next| next.at)
                .collect();
            assert_eq!(starts, [text.find(start).unwrap()], "{language:?}");
        }
    }

    #[test]
    fn a_comment_belongs_to_the_item_right_below_it_only() {
        let text = "const A: u8 = 1; // one\nfn a() {\n}\n\n// two\n\nfn b() {\n}\n";
        let kind = FileKind::Code(Language::Rust);
        assert_eq!(at(text, kind, "// one"), None);
        assert_eq!(at(text, kind, "fn a").as_deref(), Some("a"));
        assert_eq!(at(text, kind, "// two"), None);
    }

    #[test]
    fn breaks_are_as_deep_as_their_blocks() {
        let breaks = |text: &str, kind| -> Vec<(String, usize, bool)> {
            let breaks = Outline::of(text, kind).breaks;
            let line = |at: usize| text[at..].lines().next().unwrap_or_default().to_owned();
            breaks.iter().map(|next| (line(next.at), next.depth, next.starts_section)).collect()
        };
        let markdown = breaks("a\n\n# B\n\n- c\n  d\n\n  e\n- f\n", FileKind::Markdown);
        let expected =
            [("a", 0, false), ("# B", 0, true), ("- c", 0, false), ("e", 2, false), ("- f", 1, false)];
        assert_eq!(markdown, expected.map(|(line, depth, section)| (line.to_owned(), depth, section)));

        let rust = breaks("use a;\nmod b {\n fn c() {\n  d();\n }\n}\n", FileKind::Code(Language::Rust));
        let expected =
            [("use a;", 0, false), ("mod b {", 1, true), ("fn c() {", 3, false), ("d();", 5, false)];
        assert_eq!(rust, expected.map(|(line, depth, section)| (line.to_owned(), depth, section)));
    }
}
