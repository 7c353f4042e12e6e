use magray_plugin_api::{Error, ErrorCode, Result};
use serde::Deserialize;
use std::env;

/// The options in the user's TOML.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    pub(crate) url: String,
    pub(crate) model: String,
    pub(crate) api_key_env: String,
    pub(crate) dimensions: usize,
    pub(crate) query_prefix: String,
    pub(crate) passage_prefix: String,
    pub(crate) batch: usize,
    pub(crate) timeout_ms: u64,
    pub(crate) retries: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            url: String::new(),
            model: String::new(),
            api_key_env: String::new(),
            dimensions: 0,
            query_prefix: String::new(),
            passage_prefix: String::new(),
            batch: 64,
            timeout_ms: 30_000,
            retries: 3,
        }
    }
}

pub(crate) const SCHEMA: &str = r#"{
    "type": "object",
    "required": ["url", "model"],
    "properties": {
        "url": {"type": "string", "format": "uri", "description": "address of the server: .../v1/embeddings, or .../api/embed of Ollama"},
        "model": {"type": "string", "description": "name of the model at the server"},
        "api_key_env": {"type": "string", "description": "environment variable that holds the key"},
        "dimensions": {"type": "integer", "minimum": 0, "default": 0, "description": "width to ask for; 0 takes what comes"},
        "query_prefix": {"type": "string", "default": "", "description": "put before a text that asks"},
        "passage_prefix": {"type": "string", "default": "", "description": "put before a text that is searched for"},
        "batch": {"type": "integer", "minimum": 1, "maximum": 2048, "default": 64, "description": "the most texts in one request"},
        "timeout_ms": {"type": "integer", "minimum": 1, "default": 30000, "description": "how long one request may take"},
        "retries": {"type": "integer", "minimum": 0, "maximum": 20, "default": 3, "description": "how often a busy server is asked again"}
    },
    "additionalProperties": false
}"#;

impl Options {
    pub(crate) fn check(&self) -> Result<()> {
        let wrong = |why: &str| Err(Error::new(ErrorCode::INVALID_CONFIG, why));
        if !self.url.starts_with("http://") && !self.url.starts_with("https://") {
            return wrong("url is the address of a server, such as http://localhost:11434/api/embed");
        }
        if self.url.starts_with("https://") && !cfg!(feature = "tls") {
            return wrong("this build speaks no https; build it with the feature tls");
        }
        if self.model.is_empty() {
            return wrong("model is the name of a model at the server");
        }
        if !(1..=2048).contains(&self.batch) || self.timeout_ms == 0 || self.retries > 20 {
            return wrong("batch is 1 to 2048, timeout_ms at least 1, retries at most 20");
        }
        Ok(())
    }

    /// The key, where one is asked for; no message ever shows it.
    pub(crate) fn api_key(&self) -> Result<Option<String>> {
        let name = &self.api_key_env;
        match env::var(name) {
            _ if name.is_empty() => Ok(None),
            Ok(key) if !key.is_empty() => Ok(Some(key)),
            _ => Err(Error::new(ErrorCode::INVALID_CONFIG, format!("api_key_env: ${name} is not set"))),
        }
    }

    pub(crate) fn is_ollama(&self) -> bool {
        self.url.trim_end_matches('/').ends_with("/api/embed")
    }

    pub(crate) fn api(&self) -> &'static str {
        if self.is_ollama() { "ollama" } else { "openai" }
    }

    /// Of everything that decides a vector, as far as it is known here.
    pub(crate) fn space(&self, dim: usize) -> [u8; 32] {
        let Self { url, model, query_prefix, passage_prefix, .. } = self;
        let text = format!("{url}\0{model}\0{dim}\0{query_prefix}\0{passage_prefix}");
        // FNV-1a from four starts.
        let word = |start: u64| {
            let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
            text.bytes().fold(0xcbf2_9ce4_8422_2325 ^ start, step).to_le_bytes()
        };
        let mut space = [0; 32];
        space.copy_from_slice([1, 2, 3, 4].map(word).as_flattened());
        space
    }
}
