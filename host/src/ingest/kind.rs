use std::path::Path;

/// What a text is, which decides where [`split`](super::split) prefers to cut it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// Cut between sections, then blocks; headed by the titles of its sections.
    Markdown,
    /// Cut along the syntax tree; headed by the names of the enclosing items.
    Code(Language),
    /// Anything else, languages without a grammar here included: cut at blank lines, then lines,
    /// sentences and words.
    Text,
}

/// A programming language whose grammar is built in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Language {
    C,
    Go,
    JavaScript,
    Python,
    Rust,
}

impl FileKind {
    /// Tells the kind by the file's extension, or, if it has none, by the interpreter that the
    /// text's `#!` line names.
    pub fn of(path: &Path, text: &str) -> Self {
        let Some(extension) = path.extension() else { return Self::by_interpreter(text) };
        match extension.to_string_lossy().to_ascii_lowercase().as_str() {
            "md" | "markdown" | "mdx" => Self::Markdown,
            "c" | "h" => Self::Code(Language::C),
            "go" => Self::Code(Language::Go),
            "js" | "mjs" | "cjs" | "jsx" => Self::Code(Language::JavaScript),
            "py" | "pyi" | "pyw" => Self::Code(Language::Python),
            "rs" => Self::Code(Language::Rust),
            _ => Self::Text,
        }
    }

    fn by_interpreter(text: &str) -> Self {
        let Some(line) = text.strip_prefix("#!").and_then(|rest| rest.lines().next()) else {
            return Self::Text;
        };
        // "/usr/bin/env -S python3 -u" and "/usr/bin/python3.13" alike.
        let interpreter = line
            .split_whitespace()
            .map(|word| word.rsplit('/').next().unwrap_or(word))
            .find(|word| *word != "env" && !word.starts_with('-'))
            .unwrap_or_default();
        match interpreter.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.') {
            "python" => Self::Code(Language::Python),
            "node" => Self::Code(Language::JavaScript),
            _ => Self::Text,
        }
    }
}

impl Language {
    /// The tree-sitter grammar.
    pub(super) fn grammar(self) -> tree_sitter::Language {
        match self {
            Self::C => tree_sitter_c::LANGUAGE,
            Self::Go => tree_sitter_go::LANGUAGE,
            Self::JavaScript => tree_sitter_javascript::LANGUAGE,
            Self::Python => tree_sitter_python::LANGUAGE,
            Self::Rust => tree_sitter_rust::LANGUAGE,
        }
        .into()
    }

    /// The kinds of syntax node that are items: what a reader would name to say where a line is.
    pub(super) fn items(self) -> &'static [&'static str] {
        match self {
            Self::C => &["function_definition", "struct_specifier", "union_specifier", "enum_specifier"],
            Self::Go => &["function_declaration", "method_declaration", "type_spec"],
            Self::JavaScript => &[
                "class_declaration",
                "function_declaration",
                "generator_function_declaration",
                "method_definition",
            ],
            Self::Python => &["class_definition", "function_definition"],
            Self::Rust => &[
                "enum_item",
                "function_item",
                "impl_item",
                "macro_definition",
                "mod_item",
                "struct_item",
                "trait_item",
                "union_item",
            ],
        }
    }

    /// The kinds of syntax node that stand before an item and belong to it, besides comments.
    pub(super) fn attributes(self) -> &'static [&'static str] {
        match self {
            Self::C | Self::Go => &[],
            Self::JavaScript | Self::Python => &["decorator"],
            Self::Rust => &["attribute_item"],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(path: &str, text: &str) -> FileKind {
        FileKind::of(Path::new(path), text)
    }

    #[test]
    fn extension_decides_whatever_its_case() {
        assert_eq!(of("a/README.MD", ""), FileKind::Markdown);
        assert_eq!(of("lib.rs", "#!/usr/bin/python"), FileKind::Code(Language::Rust));
        assert_eq!(of("notes.txt", "#!/usr/bin/python"), FileKind::Text);
    }

    #[test]
    fn interpreter_decides_where_there_is_no_extension() {
        let python = FileKind::Code(Language::Python);
        assert_eq!(of("run", "#!/usr/bin/python3.13 -u\n"), python);
        assert_eq!(of("run", "#!/usr/bin/env -S python3 -u\n"), python);
        assert_eq!(of("run", "#! /usr/bin/env node"), FileKind::Code(Language::JavaScript));
        assert_eq!(of("run", "#!/bin/sh\npython3 x.py"), FileKind::Text);
        assert_eq!(of("run", "#!"), FileKind::Text);
        assert_eq!(of("Makefile", "all:"), FileKind::Text);
    }

    #[test]
    fn every_grammar_fits_the_parser_and_knows_its_items() {
        for language in [Language::C, Language::Go, Language::JavaScript, Language::Python, Language::Rust] {
            let grammar = language.grammar();
            tree_sitter::Parser::new().set_language(&grammar).unwrap();
            for kind in language.items().iter().chain(language.attributes()) {
                assert_ne!(grammar.id_for_node_kind(kind, true), 0, "{language:?} has no {kind}");
            }
        }
    }
}
