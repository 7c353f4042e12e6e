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

/// The sections of a text: Markdown sections, or the items of a program.
pub(super) struct Outline {
    /// By start; sections nest or are apart.
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
        let mut sections = match kind {
            _ if text.len() > MAX_BYTES => Vec::new(),
            FileKind::Markdown => markdown_sections(text),
            FileKind::Code(language) => items(text, language),
            FileKind::Text => Vec::new(),
        };
        sections.reverse();
        Self { sections, open: Vec::new() }
    }

    /// The titles of the sections around the byte `offset`, outermost first, below `title`;
    /// `None` if there is none. Offsets must be asked for in ascending order.
    pub(super) fn breadcrumb(&mut self, title: Option<&str>, offset: usize) -> Option<String> {
        while let Some(section) = self.sections.pop_if(|next| next.start <= offset) {
            self.open.push(section);
        }
        self.open.retain(|section| offset < section.end);
        let titles: Vec<_> =
            title.into_iter().chain(self.open.iter().map(|section| section.title.as_str())).collect();
        (!titles.is_empty()).then(|| titles.join(BREADCRUMB))
    }
}

fn markdown_sections(text: &str) -> Vec<Section> {
    // Without this a front matter's last line would be taken for a heading.
    let options =
        Options::ENABLE_YAML_STYLE_METADATA_BLOCKS | Options::ENABLE_PLUSES_DELIMITED_METADATA_BLOCKS;
    let mut sections: Vec<Section> = Vec::new();
    let mut open: Vec<(HeadingLevel, usize)> = Vec::new();
    let mut title: Option<String> = None;
    for (event, range) in pulldown_cmark::Parser::new_ext(text, options).into_offset_iter() {
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
    sections
}

fn items(text: &str, language: Language) -> Vec<Section> {
    let mut parser = Parser::new();
    if parser.set_language(&language.grammar()).is_err() {
        return Vec::new();
    }
    let Some(tree) = parser.parse(text, None) else { return Vec::new() };

    let mut sections = Vec::new();
    let mut cursor = tree.walk();
    loop {
        let node = cursor.node();
        // Whatever is on one line is in one chunk with its own name, as a rule.
        let long = node.start_position().row < node.end_position().row;
        if long
            && language.items().contains(&node.kind())
            && let Some(title) = item_name(node, text)
        {
            sections.push(Section { start: node.start_byte(), end: node.end_byte(), title });
        }
        if long && cursor.goto_first_child() {
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                return sections;
            }
        }
    }
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
        Outline::of(text, kind).breadcrumb(None, text.find(needle).unwrap())
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
        let mut outline = Outline::of("# A\n", FileKind::Markdown);
        assert_eq!(outline.breadcrumb(Some("readme"), 0).as_deref(), Some("readme > A"));
        assert_eq!(Outline::of("a", FileKind::Text).breadcrumb(Some("notes"), 0).as_deref(), Some("notes"));
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
}
