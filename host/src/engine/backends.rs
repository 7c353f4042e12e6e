//! From the configuration to the backends of an [`Embedding`](crate::embedding::Embedding).
use crate::{
    config::{Config, Selected},
    embedding::{BreakerOptions, Candidate, EmbeddingOptions, Made, PipelineOptions},
    plugins::{PluginError, Plugins},
    resources::gpu::Tuning,
};
use magray_plugin_api::ComponentKind;
use std::{sync::Arc, time::Duration};

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

/// How the backends are used.
pub(super) fn options(config: &Config) -> EmbeddingOptions {
    let settings = &config.ai.embedding;
    let (pipeline, breaker) = (&settings.pipeline, &settings.breaker);
    EmbeddingOptions {
        pipeline: PipelineOptions {
            max_wait_interactive: Duration::from_millis(pipeline.max_wait_interactive_ms),
            max_wait_bulk: Duration::from_millis(pipeline.max_wait_bulk_ms),
            queue_texts: pipeline.queue_texts,
            queue_bytes: pipeline.queue_bytes,
            token_budget: pipeline.token_budget,
            workers: pipeline.workers,
            threads: config.plugins.thread_budget(),
            gpu_texts: Tuning::max_batch(settings.gpu_config.gpu_mem_limit) as usize,
        },
        breaker: BreakerOptions {
            failures: breaker.failures,
            error_rate: f64::from(breaker.error_rate_percent) / 100.0,
            window: breaker.window,
            cool_down: Duration::from_millis(breaker.cool_down_ms),
            max_cool_down: Duration::from_millis(breaker.max_cool_down_ms),
        },
        call_timeout: Duration::from_millis(pipeline.call_timeout_ms),
    }
}
