use crate::{
    options::{CpuOptions, SCHEMA, WantedPrecision},
    static_model::{EMBEDDED, Options, StaticEmbedder},
    transformer::TransformerEmbedder,
};
use magray_model::{ModelFolder, Overrides};
use magray_plugin_api::{
    CallContext, CreateEmbedder, DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Host, MemoryUse,
    Result, Role,
};
use serde_json::Value;
use std::{fmt, fs, path::Path};

/// Embeds texts by the static or transformer model that the options name.
pub struct CpuEmbedder(Box<dyn Embedder>);

impl fmt::Debug for CpuEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("CpuEmbedder").field(self.info()).finish()
    }
}

impl CreateEmbedder for CpuEmbedder {
    type Options = CpuOptions;

    const OPTIONS_SCHEMA: &'static str = SCHEMA;

    fn create(options: CpuOptions, host: &'static dyn Host) -> Result<Self> {
        let dir = ModelFolder::locate(&options.model, &host.models_dir());
        if options.model == EMBEDDED || options.model.is_empty() || !is_transformer(&dir) {
            let CpuOptions { model, batch_size, precision, overrides } = options;
            let Overrides { max_tokens, dim, query_prefix, passage_prefix } = overrides;
            for (given, option) in [
                (precision != WantedPrecision::Auto, "precision"),
                (max_tokens.is_some(), "max_tokens"),
                (dim.is_some(), "dim"),
                (query_prefix.is_some(), "query_prefix"),
                (passage_prefix.is_some(), "passage_prefix"),
            ] {
                if given {
                    let message =
                        format!("'{option}' is for transformer models, and '{model}' is a static one");
                    return Err(Error::new(ErrorCode::INVALID_CONFIG, message));
                }
            }
            return Ok(Self(Box::new(StaticEmbedder::create(Options { model, batch_size }, host)?)));
        }
        if options.batch_size == 0 {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "'batch_size' is 0; it is at least 1"));
        }
        Ok(Self(Box::new(TransformerEmbedder::open(&dir, options, host)?)))
    }
}

/// Whether the config of the model in `dir` is of anything but a static one. A folder without a config
/// is left to the static path, which says what is wrong with it.
fn is_transformer(dir: &Path) -> bool {
    let config = fs::read(dir.join("config.json")).ok();
    let config: Option<Value> = config.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    config.is_some_and(|config| config["model_type"] != "model2vec")
}

impl Embedder for CpuEmbedder {
    fn info(&self) -> &EmbedderInfo {
        self.0.info()
    }

    fn device(&self) -> DeviceReport {
        self.0.device()
    }

    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        self.0.count_tokens(texts, out)
    }

    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()> {
        self.0.embed(cx, texts, role, out)
    }

    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        self.0.warm_up(cx)
    }

    fn memory_use(&self) -> MemoryUse {
        self.0.memory_use()
    }

    fn describe(&self) -> String {
        self.0.describe()
    }
}
