//! Layers of single settings: environment variables and flags.
//! `MAGRAY_MEMORY__CACHE__PROFILE=lru` sets `memory.cache.profile`.

use super::{
    error::Problem,
    shape::Shape,
    tree::{Node, Origin},
};
use std::{collections::BTreeMap, ffi::OsString};
use toml::Value;

const PREFIX: &str = "MAGRAY_";

/// Names that other parts of the program, its benches and its tests read; they are no settings.
const NOT_SETTINGS: [&str; 6] = [
    "MAGRAY_HOME",
    "MAGRAY_PLUGIN_PATH",
    "MAGRAY_CONFIG",
    "MAGRAY_DATA",
    "MAGRAY_SHARED",
    "MAGRAY_TEST_ASSETS",
];

/// The layer that the variables of our prefix make.
pub(super) fn environment(
    env: &BTreeMap<OsString, OsString>,
    shape: &Shape,
    problems: &mut Vec<Problem>,
) -> Node {
    let mut layer = Node::empty_table(Origin::Default);
    for (name, value) in env {
        let name = name.to_string_lossy();
        let Some(rest) = name.strip_prefix(PREFIX) else { continue };
        if NOT_SETTINGS.contains(&&*name) {
            continue;
        }
        let path: Vec<String> = rest.split("__").map(str::to_lowercase).collect();
        let setting = match shape.find(&path) {
            Ok(Shape::Table(_) | Shape::Profiles(_)) => {
                Err(format!("[{}] is a table: name one of its keys after another '__'", path.join(".")))
            }
            Ok(setting) => {
                value.to_str().map(|text| (setting, text)).ok_or("the value is not UTF-8".to_owned())
            }
            Err(Some(meant)) => Err(format!("no setting has this name; did you mean {}?", variable(&meant))),
            Err(None) => Err("no setting has this name; `magray config show` lists them all".to_owned()),
        };
        match setting {
            Err(message) => problems.push(Problem::new(&name, message)),
            Ok((setting, text)) => {
                let value = match setting {
                    Shape::Text => Value::String(text.to_owned()),
                    _ => value_or_text(text),
                };
                layer.insert(&path, Node::from_value(value, &Origin::Env(name.into_owned())));
            }
        }
    }
    layer
}

/// The layer that flags make.
pub(super) fn flags(overrides: &[(String, Value)], shape: &Shape, problems: &mut Vec<Problem>) -> Node {
    let mut layer = Node::empty_table(Origin::Flag);
    for (key, value) in overrides {
        let path: Vec<_> = key.split('.').collect();
        let hint = match shape.find(&path) {
            Ok(_) => {
                layer.insert(&path, Node::from_value(value.clone(), &Origin::Flag));
                continue;
            }
            Err(Some(meant)) => format!("did you mean '{}'?", meant.join(".")),
            Err(None) => "`magray config show` lists them all".to_owned(),
        };
        problems.push(Problem::at(&Origin::Flag, format!("unknown key '{key}'; {hint}")));
    }
    layer
}

/// The variable that sets a key.
fn variable(path: &[&str]) -> String {
    format!("{PREFIX}{}", path.join("__").to_uppercase())
}

/// Numbers, booleans and lists as TOML writes them; all else is text.
fn value_or_text(text: &str) -> Value {
    let parsed =
        toml::de::ValueDeserializer::parse(text.trim()).and_then(<Value as serde::Deserialize>::deserialize);
    parsed.unwrap_or_else(|_| Value::String(text.to_owned()))
}
