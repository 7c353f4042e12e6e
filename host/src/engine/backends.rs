//! From the configuration to the backends of an [`Embedding`](crate::embedding::Embedding).
use crate::{
    config::{Config, Selected},
    embedding::{Candidate, Made},
    plugins::{PluginError, Plugins},
};
use magray_plugin_api::ComponentKind;
use std::sync::Arc;

/// The profile in force and its stand-ins, in the order in which they are asked. Loads none. A stand-in whose
/// plugin is not installed is passed over, with a warning.
///
/// # Errors
/// `Unknown` for a name that is neither a profile nor a component.
pub(super) fn candidates(config: &Config, plugins: &Arc<Plugins>) -> Result<Vec<Candidate>, PluginError> {
    let settings = &config.ai.embedding;
    let mut candidates = Vec::new();
    for selected in settings.chain() {
        let component = &selected.profile.plugin;
        if !candidates.is_empty() && !plugins.offers(ComponentKind::Embedder, component) {
            if !settings.profiles.contains_key(&selected.name) {
                return Err(plugins.unknown(ComponentKind::Embedder, component));
            }
            tracing::warn!(
                "no stand-in '{}' for '{}': the plugin of the embedding backend '{component}' is not installed",
                selected.name,
                settings.profile
            );
            continue;
        }
        let plugins = plugins.clone();
        let profile = selected.name.clone();
        candidates.push(Candidate { profile, make: Box::new(move || make(&plugins, &selected)) });
    }
    Ok(candidates)
}

fn make(plugins: &Plugins, selected: &Selected) -> Result<Made, PluginError> {
    let component = &selected.profile.plugin;
    let plugin = plugins.provider(ComponentKind::Embedder, component)?;
    let options = selected.options_json(&plugins.options_schema(ComponentKind::Embedder, component)?);
    let origin = format!("{} {} {component} {options}", plugin.id, plugin.version);
    Ok(Made { embedder: plugins.embedder(component, &options)?, origin })
}
