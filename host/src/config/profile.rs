use super::values::name;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::BTreeMap;

/// A plugin component with its options, under a name that `profile`, `--backend`, `--index` or `--cache`
/// picks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// Name of the component, as its plugin gives it.
    #[serde(deserialize_with = "name")]
    pub plugin: String,
    /// Options of the component; only the plugin knows which there are.
    #[serde(default)]
    pub options: Map<String, Value>,
    /// Profiles or components that stand in for it where it fails, in this order. Embedding only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub fallback: Vec<String>,
}

impl Profile {
    /// The component of a plugin, without options.
    pub(super) fn of(plugin: &str) -> Self {
        Self { plugin: plugin.to_owned(), options: Map::new(), fallback: Vec::new() }
    }
}

/// Profiles by name.
pub type Profiles = BTreeMap<String, Profile>;

/// A profile that was picked, with the settings that its section has for every plugin.
#[derive(Debug, Clone, PartialEq)]
pub struct Selected {
    /// Name of the profile.
    pub name: String,
    /// The plugin and the options that were written for it.
    pub profile: Profile,
    shared: Map<String, Value>,
}

impl Selected {
    /// Picks a profile. A name without a table means the component of that name, without options.
    pub(super) fn pick(profiles: &Profiles, name: &str, shared: Map<String, Value>) -> Self {
        let profile = profiles.get(name).cloned().unwrap_or_else(|| Profile::of(name));
        Self { name: name.to_owned(), profile, shared }
    }

    /// The options to make the component with, as JSON. Settings of the section are added where the
    /// component's JSON Schema names them under `properties`; the profile's own options win.
    pub fn options_json(&self, schema: &str) -> String {
        let schema: Value = serde_json::from_str(schema).unwrap_or_default();
        let named = |option: &str| schema["properties"].get(option).is_some();
        let mut options = self.profile.options.clone();
        for (option, value) in &self.shared {
            if named(option) {
                options.entry(option).or_insert_with(|| value.clone());
            }
        }
        Value::Object(options).to_string()
    }
}

/// Settings under the names of the options that they become.
pub(super) fn shared<const N: usize>(settings: [(&str, Value); N]) -> Map<String, Value> {
    settings.into_iter().map(|(option, value)| (option.to_owned(), value)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const SCHEMA: &str = r#"{"type": "object", "properties": {"model": {"type": "string"}, "x": {}}}"#;

    fn selected(name: &str) -> Selected {
        let options = shared([("x", json!(1)), ("more", json!([true]))]);
        let profiles = [("mine".to_owned(), Profile { options, ..Profile::of("cpu") })].into();
        Selected::pick(&profiles, name, shared([("model", json!("m")), ("x", json!(2)), ("batch", json!(3))]))
    }

    #[test]
    fn own_options_win_over_the_shared_settings_that_the_schema_names() {
        assert_eq!(selected("mine").options_json(SCHEMA), r#"{"model":"m","more":[true],"x":1}"#);
    }

    #[test]
    fn a_name_without_a_table_is_the_component_of_that_name() {
        let selected = selected("other");
        assert_eq!((selected.name.as_str(), selected.profile.plugin.as_str()), ("other", "other"));
        assert_eq!(selected.options_json(SCHEMA), r#"{"model":"m","x":2}"#);
    }

    #[test]
    fn a_schema_that_names_nothing_gets_no_shared_setting() {
        for schema in ["{}", "", "[]", "{\"properties\": 3}"] {
            assert_eq!(selected("mine").options_json(schema), r#"{"more":[true],"x":1}"#);
        }
    }
}
