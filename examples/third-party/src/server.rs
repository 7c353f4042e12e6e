//! One server: requests, what it says when it fails, and asking again.
use crate::options::Options;
use magray_plugin_api::{CallContext, Error, ErrorCode, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::{
    thread,
    time::{Duration, Instant},
};
use ureq::{Agent, http};

/// How often a wait looks at its caller.
const LOOK: Duration = Duration::from_millis(10);
/// The first wait before asking again; each further one is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(30);

pub(crate) struct Server {
    agent: Agent,
    options: Options,
    key: Option<String>,
}

/// A request that failed: whether it may succeed another time, and when the server wants that.
struct Failure {
    error: Error,
    again: Option<Option<Duration>>,
}

impl Server {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let config = Agent::config_builder()
            .http_status_as_error(false)
            // A redirect would carry texts, and the key, to somebody else.
            .max_redirects(0)
            .user_agent(concat!("magray-embed-http/", env!("CARGO_PKG_VERSION")));
        Ok(Self { agent: config.build().into(), key: options.api_key()?, options: options.clone() })
    }

    /// One vector a text, as the server gives them. Asks again where that makes sense, within what the caller
    /// waits for.
    ///
    /// A request that is under way is not interrupted by a cancellation, but by the caller's deadline and by
    /// `timeout_ms`; so it runs on a thread of its own, and the caller is let go.
    pub(crate) fn embed(&self, cx: &dyn CallContext, texts: &[&str]) -> Result<Vec<Vec<f32>>> {
        let body = self.body(texts);
        let mut waits = (0..self.options.retries).map(|attempt| FIRST_WAIT * 2_u32.pow(attempt));
        loop {
            cx.check()?;
            let failure = match self.request(cx, &body, texts.len()) {
                Ok(vectors) => return Ok(vectors),
                Err(failure) => failure,
            };
            let (Some(asked), Some(wait)) = (failure.again, waits.next()) else { return Err(failure.error) };
            let pause = asked.unwrap_or(wait).min(LONGEST_WAIT);
            if cx.remaining().is_some_and(|left| left <= pause) {
                return Err(failure.error);
            }
            tracing::debug!("{}; asking again in {} ms", failure.error.message(), pause.as_millis());
            sleep(cx, pause)?;
        }
    }

    fn body(&self, texts: &[&str]) -> Vec<u8> {
        let Options { model, dimensions, .. } = &self.options;
        let mut body = json!({ "model": model, "input": texts });
        if *dimensions > 0 {
            body["dimensions"] = (*dimensions).into();
        }
        if self.options.is_ollama() {
            body["truncate"] = true.into();
        } else {
            body["encoding_format"] = "float".into();
        }
        body.to_string().into_bytes()
    }

    fn request(&self, cx: &dyn CallContext, body: &[u8], texts: usize) -> Result<Vec<Vec<f32>>, Failure> {
        let limit = Duration::from_millis(self.options.timeout_ms);
        let limit = cx.remaining().map_or(limit, |left| left.min(limit));
        let (sender, receiver) = std::sync::mpsc::channel();
        let mut request = self.agent.post(&self.options.url).content_type("application/json");
        if let Some(key) = &self.key {
            request = request.header("Authorization", format!("Bearer {key}"));
        }
        let (request, body) = (request.config().timeout_global(Some(limit)).build(), body.to_vec());
        thread::spawn(move || {
            let answered = request.send(&body[..]).and_then(|mut response| {
                let (status, headers) = (response.status(), response.headers().clone());
                // A batch of 2048 vectors of 4096 numbers in decimal digits.
                let text = response.body_mut().with_config().limit(256 << 20).read_to_vec()?;
                Ok((status, headers, text))
            });
            // The caller may have gone.
            let _ = sender.send(answered);
        });
        let answered = loop {
            match receiver.recv_timeout(LOOK) {
                Ok(answered) => break answered,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {
                    cx.check().map_err(|error| Failure { error, again: None })?;
                }
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                    let error = self.unavailable("the request ended without an answer");
                    return Err(Failure { error, again: None });
                }
            }
        };
        let (status, headers, text) = answered.map_err(|error| {
            let error = match cx.check() {
                Err(error) => error,
                Ok(()) => self.unavailable(&error.to_string()),
            };
            let again = (error.code() == ErrorCode::UNAVAILABLE).then_some(None);
            Failure { error, again }
        })?;
        if status != http::StatusCode::OK {
            return Err(self.refused(status, &headers, &text));
        }
        self.vectors(&text, texts).map_err(|why| Failure { error: self.unavailable(&why), again: None })
    }

    fn refused(&self, status: http::StatusCode, headers: &http::HeaderMap, text: &[u8]) -> Failure {
        let said = said(text);
        let remedy = match status.as_u16() {
            401 | 403 => "; api_key_env names the environment variable of the key",
            404 => "; see whether url and model are right",
            300..=399 => "; it wants another url",
            _ => "",
        };
        let message = format!("status {}{said}{remedy}", status.as_u16());
        let error = match status.as_u16() {
            413 => Error::new(ErrorCode::OUT_OF_MEMORY, format!("{}: {message}", self.options.url)),
            _ => self.unavailable(&message),
        };
        let seconds =
            headers.get("retry-after").and_then(|after| after.to_str().ok()?.trim().parse::<u64>().ok());
        let busy = matches!(status.as_u16(), 429 | 500 | 502 | 503 | 504);
        Failure { error, again: busy.then_some(seconds.map(Duration::from_secs)) }
    }

    fn vectors(&self, text: &[u8], texts: usize) -> std::result::Result<Vec<Vec<f32>>, String> {
        #[derive(Deserialize)]
        struct Item {
            index: Option<usize>,
            embedding: Vec<f32>,
        }
        #[derive(Deserialize)]
        struct OpenAi {
            data: Vec<Item>,
        }
        #[derive(Deserialize)]
        struct Ollama {
            embeddings: Vec<Vec<f32>>,
        }
        let odd =
            |error: serde_json::Error| format!("its answer is not that of {}: {error}", self.options.api());
        let vectors = if self.options.is_ollama() {
            serde_json::from_slice::<Ollama>(text).map_err(odd)?.embeddings
        } else {
            let mut items = serde_json::from_slice::<OpenAi>(text).map_err(odd)?.data;
            // The order is the server's; the index says whose it is.
            if items.iter().all(|item| item.index.is_some()) {
                items.sort_by_key(|item| item.index);
            }
            items.into_iter().map(|item| item.embedding).collect()
        };
        match vectors.len() {
            n if n == texts => Ok(vectors),
            n => Err(format!("it answers {texts} texts with {n} vectors")),
        }
    }

    fn unavailable(&self, why: &str) -> Error {
        Error::new(ErrorCode::UNAVAILABLE, format!("{}: {why}", self.options.url))
    }
}

/// What a server says is wrong: `{"error": {"message": ...}}` of OpenAI, `{"error": ...}` of Ollama, or any text.
fn said(text: &[u8]) -> String {
    let json: Value = serde_json::from_slice(text).unwrap_or_default();
    let error = &json["error"];
    let said = error["message"].as_str().or(error.as_str()).map(str::to_owned);
    let said = said.unwrap_or_else(|| String::from_utf8_lossy(text).into_owned());
    let said: String = said.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(200).collect();
    if said.is_empty() { said } else { format!(": {said}") }
}

fn sleep(cx: &dyn CallContext, pause: Duration) -> Result<()> {
    let began = Instant::now();
    while began.elapsed() < pause {
        cx.check()?;
        thread::sleep(LOOK.min(pause));
    }
    cx.check()
}
