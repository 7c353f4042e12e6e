use magray_plugin_api::{Error, ErrorCode, Result};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
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
        let mut digest = Sha256::new();
        for part in [url, model, &dim.to_string(), query_prefix, passage_prefix] {
            // The length keeps the parts apart.
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_decides_the_space() {
        let options = |url: &str, model: &str, query: &str, passage: &str| Options {
            url: url.to_owned(),
            model: model.to_owned(),
            query_prefix: query.to_owned(),
            passage_prefix: passage.to_owned(),
            ..Options::default()
        };
        // The same bytes in all, cut elsewhere, are another space, too.
        let spaces = [
            options("http://a", "m", "", "").space(3),
            options("http://b", "m", "", "").space(3),
            options("http://a", "n", "", "").space(3),
            options("http://am", "", "", "").space(3),
            options("http://a", "m", "", "").space(4),
            options("http://a", "m", "q", "").space(3),
            options("http://a", "m", "", "q").space(3),
        ];
        for (at, space) in spaces.iter().enumerate() {
            assert!(!spaces[..at].contains(space), "{at}");
        }
        // What does not decide a vector does not.
        let other = Options { batch: 7, retries: 0, ..options("http://a", "m", "", "") };
        assert_eq!(other.space(3), spaces[0]);
        // SHA-256, as sha256sum has it: whoever computes it otherwise loses what was embedded.
        let hex: String = spaces[0].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(hex, "9826da8eb08d6592cdd381a076d9fc54aa533a1acebcd4dcdedea400b10abf94");
    }
}
