//! A configuration before it is typed: a tree of values, each with the place that it came from.

use super::error::Problem;
use std::{collections::BTreeMap, fmt, path::Path, sync::Arc};
use toml::{
    Value,
    de::{DeTable, DeValue},
};

/// Where a value came from. A later kind wins over an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The built-in `config/default.toml`.
    Default,
    /// A config file; lines count from 1.
    File {
        /// As the user named it.
        path: Arc<Path>,
        /// The line of the key.
        line: usize,
    },
    /// The environment variable of this name.
    Env(String),
    /// A command-line flag.
    Flag,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File { path, line } => write!(f, "{}:{line}", path.display()),
            Self::Env(name) => write!(f, "env {name}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// A value and its origin; a table's origin is where it was first named.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Node {
    pub(super) origin: Origin,
    pub(super) tree: Tree,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Tree {
    /// A string, number, boolean or date.
    Scalar(Value),
    List(Vec<Node>),
    Table(BTreeMap<String, Node>),
}

impl Node {
    pub(super) fn empty_table(origin: Origin) -> Self {
        Self { origin, tree: Tree::Table(BTreeMap::new()) }
    }

    /// A whole value that came from one place.
    pub(super) fn from_value(value: Value, origin: &Origin) -> Self {
        let tree = match value {
            Value::Array(items) => {
                Tree::List(items.into_iter().map(|item| Self::from_value(item, origin)).collect())
            }
            Value::Table(entries) => Tree::Table(
                entries.into_iter().map(|(key, value)| (key, Self::from_value(value, origin))).collect(),
            ),
            scalar => Tree::Scalar(scalar),
        };
        Self { origin: origin.clone(), tree }
    }

    pub(super) fn to_value(&self) -> Value {
        match &self.tree {
            Tree::Scalar(value) => value.clone(),
            Tree::List(items) => Value::Array(items.iter().map(Self::to_value).collect()),
            Tree::Table(entries) => {
                Value::Table(entries.iter().map(|(key, node)| (key.clone(), node.to_value())).collect())
            }
        }
    }

    pub(super) fn is_table(&self) -> bool {
        matches!(self.tree, Tree::Table(_))
    }

    /// The node under a path of keys.
    pub(super) fn get<K: AsRef<str>>(&self, path: &[K]) -> Option<&Self> {
        path.iter().try_fold(self, |node, key| match &node.tree {
            Tree::Table(entries) => entries.get(key.as_ref()),
            _ => None,
        })
    }

    /// Puts a node under a path; tables on the way are made, anything else in the way is replaced.
    /// An empty path does nothing: the root stays a table.
    pub(super) fn insert<K: AsRef<str>>(&mut self, path: &[K], new: Self) {
        let Some((key, rest)) = path.split_first() else { return };
        if !self.is_table() {
            *self = Self::empty_table(new.origin.clone());
        }
        let Tree::Table(entries) = &mut self.tree else { return };
        if rest.is_empty() {
            entries.insert(key.as_ref().to_owned(), new);
        } else {
            let origin = new.origin.clone();
            let inner = entries.entry(key.as_ref().to_owned()).or_insert_with(|| Self::empty_table(origin));
            inner.insert(rest, new);
        }
    }

    pub(super) fn remove<K: AsRef<str>>(&mut self, path: &[K]) {
        if let (Some((key, rest)), Tree::Table(entries)) = (path.split_first(), &mut self.tree) {
            if rest.is_empty() {
                entries.remove(key.as_ref());
            } else if let Some(inner) = entries.get_mut(key.as_ref()) {
                inner.remove(rest);
            }
        }
    }

    /// Lays a higher layer over this one: tables are merged key by key, all else is replaced.
    pub(super) fn overlay(&mut self, above: Self) {
        let above = match (&mut self.tree, above) {
            (Tree::Table(entries), Self { tree: Tree::Table(above), .. }) => {
                // Options are written for one plugin: a profile that names another one starts afresh.
                if let (Some(old), Some(new)) = (entries.get("plugin"), above.get("plugin"))
                    && old.tree != new.tree
                {
                    entries.remove("options");
                }
                for (key, node) in above {
                    match entries.get_mut(&key) {
                        Some(below) => below.overlay(node),
                        None => {
                            entries.insert(key, node);
                        }
                    }
                }
                return;
            }
            (_, above) => above,
        };
        *self = above;
    }

    /// Parses a TOML document. `origin` gives a line its origin, `file` is for messages.
    ///
    /// # Errors
    /// One problem for a syntax error, or one for each number that does not fit 64 bits.
    pub(super) fn parse(
        text: &str,
        file: &Path,
        origin: &dyn Fn(usize) -> Origin,
    ) -> Result<Self, Vec<Problem>> {
        let lines = Lines::of(text);
        let document = DeTable::parse(text).map_err(|error| {
            let (line, column) = lines.position(error.span().map_or(0, |span| span.start));
            let message = error.message().split_whitespace().collect::<Vec<_>>().join(" ");
            vec![Problem::new(format_args!("{}:{line}:{column}", file.display()), message)]
        })?;
        let mut reader = Reader { lines, origin, problems: Vec::new() };
        let root = reader.table(document.into_inner(), 0);
        if reader.problems.is_empty() { Ok(root) } else { Err(reader.problems) }
    }
}

struct Reader<'a> {
    lines: Lines<'a>,
    origin: &'a dyn Fn(usize) -> Origin,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    fn table(&mut self, table: DeTable<'_>, offset: usize) -> Node {
        let mut entries = BTreeMap::new();
        for (key, value) in table {
            let offset = key.span().start;
            let node = self.value(value.into_inner(), offset);
            entries.insert(key.into_inner().into_owned(), node);
        }
        Node { origin: self.origin(offset), tree: Tree::Table(entries) }
    }

    fn value(&mut self, value: DeValue<'_>, offset: usize) -> Node {
        let scalar = match value {
            DeValue::Table(table) => return self.table(table, offset),
            DeValue::Array(items) => {
                let items = items.into_iter().map(|item| {
                    let offset = item.span().start;
                    self.value(item.into_inner(), offset)
                });
                let items = items.collect();
                return Node { origin: self.origin(offset), tree: Tree::List(items) };
            }
            DeValue::String(text) => Value::String(text.into_owned()),
            DeValue::Boolean(flag) => Value::Boolean(flag),
            DeValue::Datetime(date) => Value::Datetime(date),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => self.out_of_range(&number, offset),
            },
            // Too large a number becomes an infinity, which the decoder refuses.
            DeValue::Float(number) => match number.as_str().parse() {
                Ok(number) => Value::Float(number),
                Err(_) => self.out_of_range(&number, offset),
            },
        };
        Node { origin: self.origin(offset), tree: Tree::Scalar(scalar) }
    }

    fn out_of_range(&mut self, number: &dyn fmt::Display, offset: usize) -> Value {
        let origin = self.origin(offset);
        self.problems.push(Problem::at(&origin, format!("the number {number} does not fit 64 bits")));
        Value::Integer(0)
    }

    fn origin(&self, offset: usize) -> Origin {
        (self.origin)(self.lines.position(offset).0)
    }
}

/// Where the lines of a text begin.
struct Lines<'a> {
    text: &'a str,
    starts: Vec<usize>,
}

impl<'a> Lines<'a> {
    fn of(text: &'a str) -> Self {
        let starts = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1));
        Self { text, starts: starts.collect() }
    }

    /// Line and column in characters, both from 1, of a byte offset.
    fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.starts.partition_point(|start| *start <= offset);
        let start = self.starts[line - 1];
        let before = self.text.get(start..offset).unwrap_or_default();
        (line, before.chars().count() + 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Node, Vec<Problem>> {
        let path: Arc<Path> = Path::new("m.toml").into();
        Node::parse(text, &path, &|line| Origin::File { path: path.clone(), line })
    }

    fn line(node: &Node, path: &[&str]) -> String {
        node.get(path).unwrap().origin.to_string()
    }

    #[test]
    fn every_value_knows_its_line() {
        let node = parse("a.b = 1\n[t]\n\n  x = 'é'\ny = [\n 1,\n 2]\n[t.u]\nz = {q = 0x10}\n").unwrap();
        assert_eq!(line(&node, &["a", "b"]), "m.toml:1");
        assert_eq!(line(&node, &["t", "x"]), "m.toml:4");
        assert_eq!(line(&node, &["t", "y"]), "m.toml:5");
        assert_eq!(line(&node, &["t", "u"]), "m.toml:8");
        assert_eq!(line(&node, &["t", "u", "z", "q"]), "m.toml:9");
        assert_eq!(node.get(&["t", "u", "z", "q"]).unwrap().to_value(), Value::Integer(16));
        let Tree::List(items) = &node.get(&["t", "y"]).unwrap().tree else { panic!("a list") };
        assert_eq!(items[1].origin.to_string(), "m.toml:7");
    }

    #[test]
    fn syntax_errors_give_line_and_column() {
        let problems = parse("a = 1\n'é' = = 2\n").unwrap_err();
        assert_eq!(problems.len(), 1);
        assert_eq!(problems[0].place, "m.toml:2:7");
        assert!(!problems[0].message.contains('\n'));
    }

    #[test]
    fn a_number_beyond_64_bits_is_named() {
        let problems = parse("a = 99999999999999999999\n").unwrap_err();
        assert_eq!(problems[0].to_string(), "m.toml:1: the number 99999999999999999999 does not fit 64 bits");
    }

    #[test]
    fn nesting_without_end_is_refused_and_not_followed() {
        assert!(parse(&format!("{} = 1", vec!["a"; 100_000].join("."))).is_err());
        assert!(parse(&format!("[{}]", vec!["a"; 100_000].join("."))).is_err());
        assert!(parse(&format!("a = {}", "[".repeat(100_000))).is_err());
    }

    #[test]
    fn a_layer_replaces_values_and_merges_tables() {
        let mut below = parse("[t]\na = 1\nb = [1, 2]\n").unwrap();
        below.overlay(parse("[t]\nb = [3]\nc = 2\n").unwrap());
        assert_eq!(below.to_value().to_string(), "{ t = { a = 1, b = [3], c = 2 } }");
    }

    #[test]
    fn options_stay_with_their_plugin() {
        let below = "[p]\nplugin = 'hnsw'\noptions = { a = 1 }\n";
        let mut same = parse(below).unwrap();
        same.overlay(parse("[p]\nplugin = 'hnsw'\noptions.b = 2\n").unwrap());
        assert_eq!(same.get(&["p", "options"]).unwrap().to_value().to_string(), "{ a = 1, b = 2 }");
        let mut other = parse(below).unwrap();
        other.overlay(parse("[p]\nplugin = 'flat'\noptions.b = 2\n").unwrap());
        assert_eq!(other.get(&["p", "options"]).unwrap().to_value().to_string(), "{ b = 2 }");
    }

    #[test]
    fn insert_makes_tables_and_replaces_what_is_in_the_way() {
        let one = || Node::from_value(Value::Integer(1), &Origin::Flag);
        let mut node = Node::empty_table(Origin::Flag);
        node.insert(&["a"], one());
        node.insert(&["a", "b"], one());
        assert_eq!(node.to_value().to_string(), "{ a = { b = 1 } }");
        node.remove(&["a", "b"]);
        assert_eq!(node.get(&["a", "b"]), None);
    }
}
