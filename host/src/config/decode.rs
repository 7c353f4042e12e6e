//! From the merged tree to [`Config`], with errors that say what a key must be.

use super::{
    Config,
    error::Problem,
    tree::{Node, Origin, Tree},
};
use serde::{
    Deserialize, Deserializer, de,
    de::{IntoDeserializer, Unexpected, value::SeqDeserializer},
    forward_to_deserialize_any,
};
use std::{collections::btree_map, fmt};
use toml::Value;

/// Longest value that a message repeats, in characters.
const SHOWN: usize = 60;

/// Types the tree. Each value that does not fit is a problem; to find them all, it makes way for the
/// default and the rest is read again. `None` only beside a problem.
pub(super) fn decode(mut tree: Node, defaults: &Node, problems: &mut Vec<Problem>) -> Option<Config> {
    loop {
        let mut invalid = match Config::deserialize(&tree) {
            Ok(config) => return Some(config),
            Err(invalid) => invalid,
        };
        invalid.path.reverse();
        let origin = tree.get(&invalid.path).map_or(Origin::Default, |node| node.origin.clone());
        problems.push(invalid.problem(&origin));
        // The defaults are right by test; were they not, a second round would find the same.
        if origin == Origin::Default || invalid.path.is_empty() {
            return None;
        }
        match defaults.get(&invalid.path) {
            Some(default) => tree.insert(&invalid.path, default.clone()),
            None => tree.remove(&invalid.path),
        }
    }
}

/// A value that does not fit its key.
#[derive(Debug)]
pub(super) struct Invalid {
    fault: Fault,
    /// Keys from the value up to the root.
    path: Vec<String>,
    /// The innermost value that does not fit, as TOML, and its origin.
    found: Option<(String, Origin)>,
}

#[derive(Debug)]
enum Fault {
    MustBe(String),
    Missing(&'static str),
}

impl Invalid {
    fn must_be(what: impl Into<String>) -> Self {
        Self { fault: Fault::MustBe(what.into()), path: Vec::new(), found: None }
    }

    fn found_in(mut self, node: &Node) -> Self {
        self.found.get_or_insert_with(|| (shown(node), node.origin.clone()));
        self
    }

    fn problem(&self, origin: &Origin) -> Problem {
        let key = match (origin, self.path.last()) {
            (Origin::Flag, _) => self.path.join("."),
            (_, key) => key.cloned().unwrap_or_default(),
        };
        match (&self.fault, &self.found) {
            (Fault::Missing(name), _) => {
                Problem::at(origin, format!("[{}] lacks the key '{name}'", self.path.join(".")))
            }
            (Fault::MustBe(what), Some((found, origin))) => {
                Problem::at(origin, format!("'{key}' must be {what}, not {found}"))
            }
            (Fault::MustBe(what), None) => Problem::at(origin, format!("'{key}' must be {what}")),
        }
    }
}

fn shown(node: &Node) -> String {
    if node.is_table() {
        return "a table".to_owned();
    }
    let text = match node.to_value() {
        Value::String(text) => format!("{text:?}"),
        value => value.to_string(),
    };
    match text.char_indices().nth(SHOWN) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

impl std::error::Error for Invalid {}

impl de::Error for Invalid {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::must_be(message.to_string())
    }

    fn invalid_type(_: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        let expected = expected.to_string();
        // What serde's own visitors say, in a user's words.
        Self::must_be(match expected.as_str() {
            "a boolean" => "true or false",
            "a map" => "a table",
            "a sequence" => "a list",
            other => other,
        })
    }

    fn invalid_value(unexpected: Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(unexpected, expected)
    }

    fn unknown_variant(_: &str, expected: &'static [&'static str]) -> Self {
        Self::must_be(one_of(expected))
    }

    fn missing_field(field: &'static str) -> Self {
        Self { fault: Fault::Missing(field), path: Vec::new(), found: None }
    }
}

fn one_of(names: &[&str]) -> String {
    let names: Vec<_> = names.iter().map(|name| format!("{name:?}")).collect();
    match names.as_slice() {
        [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
        _ => names.concat(),
    }
}

impl<'de> Deserializer<'de> for &'de Node {
    type Error = Invalid;

    fn deserialize_any<V: de::Visitor<'de>>(self, visitor: V) -> Result<V::Value, Invalid> {
        match &self.tree {
            Tree::Scalar(Value::String(text)) => visitor.visit_str(text),
            Tree::Scalar(Value::Integer(number)) => visitor.visit_i64(*number),
            Tree::Scalar(Value::Float(number)) if !number.is_finite() => {
                Err(Invalid::must_be("a finite number"))
            }
            Tree::Scalar(Value::Float(number)) => visitor.visit_f64(*number),
            Tree::Scalar(Value::Boolean(flag)) => visitor.visit_bool(*flag),
            Tree::Scalar(date) => visitor.visit_string(date.to_string()),
            Tree::List(items) => visitor.visit_seq(SeqDeserializer::new(items.iter())),
            Tree::Table(entries) => visitor.visit_map(Entries { entries: entries.iter(), current: None }),
        }
        .map_err(|invalid| invalid.found_in(self))
    }

    fn deserialize_enum<V: de::Visitor<'de>>(
        self,
        _: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Invalid> {
        match &self.tree {
            Tree::Scalar(Value::String(text)) => visitor.visit_enum(text.as_str().into_deserializer()),
            _ => Err(Invalid::must_be(one_of(variants))),
        }
        .map_err(|invalid| invalid.found_in(self))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

impl<'de> IntoDeserializer<'de, Invalid> for &'de Node {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

struct Entries<'de> {
    entries: btree_map::Iter<'de, String, Node>,
    current: Option<(&'de String, &'de Node)>,
}

impl<'de> de::MapAccess<'de> for Entries<'de> {
    type Error = Invalid;

    fn next_key_seed<K: de::DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, Invalid> {
        self.current = self.entries.next();
        self.current.map(|(key, _)| seed.deserialize(key.as_str().into_deserializer())).transpose()
    }

    fn next_value_seed<V: de::DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Invalid> {
        let (key, node) = self.current.ok_or_else(|| Invalid::must_be("read key first"))?;
        seed.deserialize(node).map_err(|mut invalid| {
            invalid.path.push(key.clone());
            invalid
        })
    }
}
