//! Embeds by asking a server: OpenAI's `/v1/embeddings`, which many speak, or Ollama's `/api/embed`.
mod options;
mod server;

use magray_plugin_api::{
    CallContext, CreateEmbedder, DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Health, HealthLevel,
    Host, Result, Role,
};
use options::Options;
use server::Server;
use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

magray_plugin_api::export_plugin! {
    id: "embed-http",
    summary: "asks an OpenAI-compatible or Ollama server",
    embedders: { "http" => HttpEmbedder },
}

/// What is told of a server that has not answered is remembered for `health`.
pub struct HttpEmbedder {
    info: EmbedderInfo,
    options: Options,
    server: Server,
    last_failure: Mutex<Option<String>>,
}

impl CreateEmbedder for HttpEmbedder {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = options::SCHEMA;

    fn create(options: Options, _host: &'static dyn Host) -> Result<Self> {
        options.check()?;
        let server = Server::new(&options)?;
        let dim = match options.dimensions {
            // The one way to learn it that every server has.
            0 => server.embed(&Patient, &["dimensions"])?.first().map_or(0, Vec::len),
            dim => dim,
        };
        if dim == 0 {
            return Err(Error::new(
                ErrorCode::UNAVAILABLE,
                format!("{} answers with empty vectors", options.url),
            ));
        }
        // How a server counts tokens it does not tell, and it cuts long texts itself.
        let info = EmbedderInfo {
            dim,
            max_tokens: usize::MAX,
            max_batch: options.batch,
            model: options.model.clone(),
            space: options.space(dim),
        };
        Ok(Self { info, options, server, last_failure: Mutex::default() })
    }
}

impl HttpEmbedder {
    fn ask(&self, cx: &dyn CallContext, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let answered = self.server.embed(cx, texts);
        // A caller that goes away says nothing about the server.
        let failure = answered.as_ref().err().filter(|error| error.code() == ErrorCode::UNAVAILABLE);
        *self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) =
            failure.map(|error| error.message().to_owned());
        answered
    }

    /// Writes a vector as one of length 1, which those of some servers are not. A zero vector stays zero: the model
    /// has no token for the text.
    fn write(&self, text: &str, vector: &[f32], row: &mut [f32]) -> Result<()> {
        let length = vector.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        if vector.len() != row.len() || !length.is_finite() {
            let shown: String = text.chars().take(40).collect();
            let what = format!("{} numbers of length {length}, expected {}", vector.len(), row.len());
            return Err(Error::new(
                ErrorCode::UNAVAILABLE,
                format!("{}: for {shown:?} {what}", self.options.url),
            ));
        }
        for (out, &v) in row.iter_mut().zip(vector) {
            *out = if length > 0.0 { (f64::from(v) / length) as f32 } else { 0.0 };
        }
        Ok(())
    }
}

impl Embedder for HttpEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn device(&self) -> DeviceReport {
        let (engine, precision) = (self.options.api().to_owned(), "f32".to_owned());
        DeviceReport { device: self.options.url.clone(), engine, precision, fallback_reason: String::new() }
    }

    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        if texts.len() != out.len() {
            return Err(Error::invalid_input(format!("{} counts for {} texts", out.len(), texts.len())));
        }
        for (text, out) in texts.iter().zip(out) {
            // A rule of thumb for English; the host builds batches by it.
            *out = u32::try_from(text.len().div_ceil(4)).unwrap_or(u32::MAX);
        }
        Ok(())
    }

    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()> {
        self.info.check_call(texts, out)?;
        cx.check()?;
        let prefix = match role {
            Role::Query => &self.options.query_prefix,
            Role::Passage => &self.options.passage_prefix,
        };
        out.fill(0.0);
        // Servers refuse a text without a character that counts; it has no direction, so its vector stays zero.
        let asked = || texts.iter().zip(0..).filter(|(text, _)| !is_blank(text));
        let sent: Vec<String> = asked().map(|(text, _)| format!("{prefix}{text}")).collect();
        if sent.is_empty() {
            return Ok(());
        }
        let sent: Vec<&str> = sent.iter().map(String::as_str).collect();
        let vectors = self.ask(cx, &sent)?;
        let dim = self.info.dim;
        asked()
            .zip(&vectors)
            .try_for_each(|((text, at), vector)| self.write(text, vector, &mut out[at * dim..][..dim]))
    }

    fn warm_up(&self, cx: &dyn CallContext) -> Result<()> {
        self.ask(cx, &["warm up"]).map(drop)
    }

    fn health(&self) -> Health {
        match &*self.last_failure.lock().unwrap_or_else(PoisonError::into_inner) {
            None => Health::ok(),
            Some(why) => Health { level: HealthLevel::Degraded, message: why.clone() },
        }
    }
}

fn is_blank(text: &str) -> bool {
    text.chars().all(|c| c.is_whitespace() || c.is_control())
}

/// Waits as long as the options say: while a backend is made there is no caller to ask.
struct Patient;

impl CallContext for Patient {
    fn is_cancelled(&self) -> bool {
        false
    }
    fn remaining(&self) -> Option<Duration> {
        None
    }
    fn progress(&self, _done: u64, _total: u64) {}
}
