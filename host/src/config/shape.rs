//! Which keys exist. The built-in defaults name every one, so the shape is read off them.

use super::{
    error::Problem,
    tree::{Node, Tree},
};
use std::collections::BTreeMap;
use toml::Value;

/// What may stand at a place of the configuration.
#[derive(Debug)]
pub(super) enum Shape {
    /// A table of these keys.
    Table(BTreeMap<String, Shape>),
    /// A table of profiles under names of the user's choice.
    Profiles(Box<Shape>),
    /// Options of a plugin: anything; the plugin checks them.
    Free,
    /// A string.
    Text,
    /// Any other single value, or a list.
    Other,
}

/// How alike two names must be (0..=1) before one is suggested for the other.
const ALIKE: f64 = 0.6;

/// No key lies deeper; bounds the recursion over paths that a user makes up.
const MAX_DEPTH: usize = 16;

impl Shape {
    pub(super) fn of(defaults: &Node) -> Self {
        match &defaults.tree {
            Tree::Table(entries) => Self::Table(
                entries
                    .iter()
                    .map(|(key, node)| {
                        let shape = if key == "profiles" { Self::profiles(node) } else { Self::of(node) };
                        (key.clone(), shape)
                    })
                    .collect(),
            ),
            Tree::Scalar(Value::String(_)) => Self::Text,
            Tree::Scalar(_) | Tree::List(_) => Self::Other,
        }
    }

    /// A profile has the keys that the default ones have, and options of any name.
    fn profiles(defaults: &Node) -> Self {
        let mut keys = BTreeMap::new();
        if let Tree::Table(profiles) = &defaults.tree {
            for profile in profiles.values() {
                if let Self::Table(entries) = Self::of(profile) {
                    keys.extend(entries);
                }
            }
        }
        keys.insert("options".to_owned(), Self::Free);
        Self::Profiles(Box::new(Self::Table(keys)))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Table(entries) => entries.get(key),
            Self::Profiles(profile) => Some(profile),
            Self::Free => Some(self),
            Self::Text | Self::Other => None,
        }
    }

    /// The keys of a table of fixed keys.
    fn entries(&self) -> impl Iterator<Item = (&str, &Self)> {
        let entries = match self {
            Self::Table(entries) => Some(entries),
            _ => None,
        };
        entries.into_iter().flatten().map(|(key, shape)| (key.as_str(), shape))
    }

    fn is_table(&self) -> bool {
        !matches!(self, Self::Text | Self::Other)
    }

    /// Every key of fixed name, as (path of its table, key, shape).
    pub(super) fn keys(&self) -> Vec<(Vec<&str>, &str, &Self)> {
        let mut keys = Vec::new();
        let mut tables: Vec<(Vec<&str>, &Self)> = vec![(Vec::new(), self)];
        while let Some((path, table)) = tables.pop() {
            for (key, shape) in table.entries() {
                keys.push((path.clone(), key, shape));
                tables.push(([path.as_slice(), &[key]].concat(), shape));
            }
        }
        keys.sort_by(|a, b| (&a.0, a.1).cmp(&(&b.0, b.1)));
        keys
    }

    /// What may stand under a path. The error is the key that was probably meant: the most similar one that
    /// ends the same, or else that is alike at all.
    pub(super) fn find<K: AsRef<str>>(&self, path: &[K]) -> Result<&Self, Option<Vec<&str>>> {
        let path: Vec<_> = path.iter().map(K::as_ref).collect();
        let may_exist = path.len() <= MAX_DEPTH && !path.contains(&"");
        if may_exist && let Some(shape) = path.iter().try_fold(self, |shape, key| shape.get(key)) {
            return Ok(shape);
        }
        let wanted = path.join(".");
        let values = self.keys().into_iter().filter(|(_, _, shape)| !shape.is_table());
        let ranked = values.map(|(table, key, _)| {
            let other = [table.as_slice(), &[key]].concat();
            let likeness = strsim::normalized_damerau_levenshtein(&wanted, &other.join("."));
            (path.last() == Some(&key), likeness, other)
        });
        Err(ranked
            .filter(|(same_end, likeness, _)| *same_end || *likeness >= ALIKE)
            .max_by(|a, b| a.0.cmp(&b.0).then(a.1.total_cmp(&b.1)))
            .map(|(.., other)| other))
    }

    /// Takes out of a layer every key that does not exist and says so.
    pub(super) fn check(&self, layer: &mut Node, problems: &mut Vec<Problem>) {
        Check { root: self, problems }.table(self, layer, &mut Vec::new());
    }
}

struct Check<'a> {
    root: &'a Shape,
    problems: &'a mut Vec<Problem>,
}

impl Check<'_> {
    fn table(&mut self, shape: &Shape, node: &mut Node, path: &mut Vec<String>) {
        let Tree::Table(entries) = &mut node.tree else { return };
        entries.retain(|key, node| {
            let Some(inner) = shape.get(key) else {
                let message = self.unknown(shape, path, key, node.is_table());
                self.problems.push(Problem::at(&node.origin, message));
                return false;
            };
            // What a value or an option must be, the decoder and the plugin know.
            if !matches!(inner, Shape::Table(_) | Shape::Profiles(_)) {
                return true;
            }
            path.push(key.clone());
            let is_table = node.is_table();
            if is_table {
                self.table(inner, node, path);
            } else {
                let message = format!("'{key}' is a table: write its keys under [{}]", path.join("."));
                self.problems.push(Problem::at(&node.origin, message));
            }
            path.pop();
            is_table
        });
    }

    fn unknown(&self, table: &Shape, path: &[String], key: &str, is_table: bool) -> String {
        let path: Vec<_> = path.iter().map(String::as_str).collect();
        let what = match (is_table, path.as_slice()) {
            (true, _) => format!("table [{}]", join(&path, key)),
            (false, []) => format!("key '{key}' at the top level"),
            (false, _) => format!("key '{key}' in {}", header(&path)),
        };
        format!("unknown {what}; {}", self.suggestion(table, &path, key, is_table))
    }

    /// The same key of another table, or else the most similar key of this table or of any, or else all keys
    /// of this table. Tables are suggested for tables only, and other keys for other keys.
    fn suggestion(&self, table: &Shape, path: &[&str], key: &str, is_table: bool) -> String {
        let all: Vec<_> =
            self.root.keys().into_iter().filter(|(_, _, shape)| shape.is_table() == is_table).collect();
        let homes_of = |key: &str| -> Vec<_> {
            all.iter().filter(|(_, name, _)| *name == key).map(|(home, ..)| home.as_slice()).collect()
        };

        let homes = homes_of(key);
        if !homes.is_empty() && !is_table {
            return format!("it belongs in {}", or(homes.into_iter().map(header)));
        }
        let here = table.entries().filter(|(_, shape)| shape.is_table() == is_table).map(|(name, _)| name);
        let (name, homes) = if !homes.is_empty() {
            (key, homes)
        } else if let Some(name) = nearest(key, here) {
            (name, vec![path])
        } else if let Some(name) = nearest(key, all.iter().map(|(_, name, _)| *name)) {
            (name, homes_of(name))
        } else {
            let keys: Vec<_> = table.entries().map(|(name, _)| format!("'{name}'")).collect();
            return format!("the keys are {}", keys.join(", "));
        };
        let meant = homes.into_iter().map(|home| match is_table {
            true => format!("[{}]", join(home, name)),
            false if home == path => format!("'{name}'"),
            false => format!("'{name}' in {}", header(home)),
        });
        format!("did you mean {}?", or(meant))
    }
}

/// The most similar of the names, if one is alike at all.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    names
        .map(|other| (strsim::normalized_damerau_levenshtein(name, other), other))
        .filter(|(likeness, _)| *likeness >= ALIKE)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, other)| other)
}

fn header(path: &[&str]) -> String {
    format!("[{}]", path.join("."))
}

fn join(path: &[&str], key: &str) -> String {
    [path, &[key]].concat().join(".")
}

fn or(names: impl Iterator<Item = String>) -> String {
    let names: Vec<_> = names.collect();
    match names.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}
