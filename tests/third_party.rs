//! `examples/third-party`: a plugin outside of the workspace that asks a server, which here serves real vectors.
use crate::support::{Home, LRU, Ran, cargo_with};
use magray_plugin_api::{Embedder, Plugin, Role};
use magray_plugin_testkit::{Cx, HOST};
use serde_json::{Value, json};
use std::{
    collections::VecDeque,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    sync::{Arc, Mutex},
    thread,
};

/// What a server answers before it serves: a status line, a header, a body.
type Refusal = (&'static str, &'static str, &'static str);

#[derive(Default)]
struct State {
    refusals: VecDeque<Refusal>,
    /// Texts of each request, and its `Authorization`.
    requests: Vec<(Vec<String>, String)>,
}

/// OpenAI's `/v1/embeddings` and Ollama's `/api/embed`, with the vectors of the model that is built into magray.
struct Server {
    address: String,
    state: Arc<Mutex<State>>,
}

impl Server {
    fn new() -> Self {
        let cpu: &Plugin = magray::engine::LINKED
            .iter()
            .find(|plugin| plugin.components.iter().any(|component| component.name == "cpu"))
            .expect("it is built in");
        let embedder: Arc<dyn Embedder> = cpu.embedder("cpu", "{}", HOST).expect("the embedded model").into();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = state.clone();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (embedder, state) = (embedder.clone(), shared.clone());
                // A client may go away at any time.
                thread::spawn(move || while answer(&stream, &*embedder, &state).is_some() {});
            }
        });
        Self { address, state }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    fn refuse(&self, refusals: &[Refusal]) {
        self.state.lock().expect("no panic").refusals.extend(refusals);
    }

    fn take_requests(&self) -> Vec<(Vec<String>, String)> {
        std::mem::take(&mut self.state.lock().expect("no panic").requests)
    }
}

/// Serves one request; none where there is no other.
fn answer(mut stream: &TcpStream, embedder: &dyn Embedder, state: &Mutex<State>) -> Option<()> {
    let mut reader = BufReader::new(stream);
    let (mut path, mut length, mut key) = (String::new(), 0, String::new());
    for at in 0.. {
        let mut line = String::new();
        if reader.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end();
        if at == 0 {
            path = line.split(' ').nth(1)?.to_owned();
        } else if line.is_empty() {
            break;
        } else if let Some((name, value)) = line.split_once(": ") {
            match &*name.to_lowercase() {
                "content-length" => length = value.parse().ok()?,
                "authorization" => key = value.to_owned(),
                _ => {}
            }
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body).ok()?;
    let request: Value = serde_json::from_slice(&body).ok()?;
    let texts: Vec<String> = serde_json::from_value(request["input"].clone()).ok()?;
    let refusal = {
        let mut state = state.lock().ok()?;
        state.requests.push((texts.clone(), key));
        state.refusals.pop_front()
    };
    let (status, header, body) = match refusal {
        Some((status, header, body)) => (status, header, body.to_owned()),
        None => ("200 OK", "X-Served: yes", vectors(embedder, &path, &texts)?.to_string()),
    };
    let head = format!("HTTP/1.1 {status}\r\n{header}\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes()).ok()?;
    stream.write_all(body.as_bytes()).ok()
}

fn vectors(embedder: &dyn Embedder, path: &str, texts: &[String]) -> Option<Value> {
    let dim = embedder.info().dim;
    let mut rows = vec![0.0; texts.len() * dim];
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    embedder.embed(&Cx::free(), &texts, Role::Passage, &mut rows).ok()?;
    let rows: Vec<&[f32]> = rows.chunks_exact(dim).collect();
    Some(match path {
        "/api/embed" => json!({ "embeddings": rows }),
        _ => {
            // From the last to the first: a client goes by the index.
            let items = rows.iter().enumerate().rev();
            json!({ "data": items.map(|(at, row)| json!({ "index": at, "embedding": row })).collect::<Vec<_>>() })
        }
    })
}

fn library() -> (PathBuf, String) {
    let folder = cargo_with("build", "examples/third-party", &["--no-default-features", "--offline"]);
    let name = LRU.replace("magray_cache_lru_plugin", "embed_http");
    (folder.join(&name), name)
}

fn options(url: &str, more: Value) -> String {
    let mut options = json!({ "url": url, "model": "built-in" });
    options.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    options.to_string()
}

#[test]
fn it_conforms_with_both_kinds_of_server() {
    let (library, _) = library();
    let (home, server) = (Home::new(), Server::new());
    for path in ["/v1/embeddings", "/api/embed"] {
        let options = options(&server.url(path), json!({}));
        let args = ["plugin", "check", library.to_str().expect("UTF-8"), "--options", &options];
        let ran = home.run(&args);
        assert_eq!(ran.code, Some(0), "{path}: {ran:#?}");
    }
    let most = server.take_requests().iter().map(|request| request.0.len()).max();
    assert_eq!(most, Some(64), "a batch is one request");
}

/// A home with the plugin and a profile `served` of it.
fn home_with(url: &str, more: &str) -> Home {
    let (library, name) = library();
    let home = Home::new();
    home.file(&format!("plugins/{name}"), fs::read(library).expect("it is built"));
    let profile = format!("plugin = \"http\"\noptions = {{ url = \"{url}\", model = \"built-in\"{more} }}\n");
    home.file(".config/magray/config.toml", format!("[ai.embedding.profiles.served]\n{profile}"));
    home
}

#[test]
fn a_search_through_a_server() {
    let server = Server::new();
    let home = home_with(&server.url("/v1/embeddings"), ", api_key_env = \"SERVER_KEY\"");
    let run = |args: &[&str]| {
        Ran::of(home.command(&[&["--backend", "served"], args].concat()).env("SERVER_KEY", "secret"))
    };
    for text in [
        "the staging key rotates on Mondays",
        "bread is baked with flour and yeast",
        "a cat sleeps in the sun",
    ] {
        run(&["add", text]).expect(0);
    }
    // A server that is busy is asked again.
    server.refuse(&[
        ("429 Too Many Requests", "Retry-After: 0", "{}"),
        ("503 Service Unavailable", "Retry-After: 0", ""),
    ]);
    let found = run(&["search", "how is a loaf of bread made", "-k", "1"]).expect(0).stdout;
    assert!(found.contains("flour"), "{found}");
    let requests = server.take_requests();
    assert!(requests.iter().all(|request| request.1 == "Bearer secret"), "{requests:?}");

    let missing = home.run(&["--backend", "served", "add", "a text"]).expect(3);
    missing.says(&["SERVER_KEY", "is not set"]);
}

#[test]
fn the_config_of_a_project_sends_no_text_anywhere() {
    let server = Server::new();
    let home = home_with(&server.url("/v1/embeddings"), "");
    let own = home.path().join(".config/magray/config.toml");
    let cloned = home.file("repository/config.toml", fs::read(own).expect("the config"));
    let config = ["--config", cloned.to_str().expect("UTF-8"), "--backend", "served"];
    let refused = home.run(&[&config[..], &["add", "a private text"]].concat()).expect(3);
    refused.says(&["repository/config.toml", "an address", "option 'url'", "set it in your own config"]);
    assert_eq!(server.take_requests().len(), 0);
    home.run(&["--backend", "served", "add", "a private text"]).expect(0);
    assert_ne!(server.take_requests().len(), 0);
}

#[test]
fn what_a_server_says_is_told_and_no_key_is() {
    let server = Server::new();
    let home = home_with(
        &server.url("/v1/embeddings"),
        ", dimensions = 256, retries = 1, api_key_env = \"SERVER_KEY\"",
    );
    let add = || Ran::of(home.command(&["--backend", "served", "add", "a text"]).env("SERVER_KEY", "secret"));
    let cases: [(Refusal, &[&str]); 4] = [
        (
            ("401 Unauthorized", "X: y", "{\"error\": {\"message\": \"bad key\"}}"),
            &["401: bad key", "api_key_env"],
        ),
        (
            ("404 Not Found", "X: y", "{\"error\": \"model not found\"}"),
            &["404: model not found", "url and model"],
        ),
        (("200 OK", "X: y", "<html>"), &["not that of openai"]),
        (("200 OK", "X: y", "{\"data\": []}"), &["texts with 0 vectors"]),
    ];
    for (refusal, says) in cases {
        server.refuse(&[refusal; 40]);
        let ran = add().expect(3).says(says);
        assert!(!ran.stderr.contains("secret"), "{ran:#?}");
        server.state.lock().expect("no panic").refusals.clear();
    }
    let closed = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address");
    let home = home_with(&format!("http://{closed}/api/embed"), ", retries = 0");
    home.run(&["--backend", "served", "add", "a text"]).expect(3).says(&["/api/embed"]);

    // The system takes the connection, and nobody ever answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/api/embed", silent.local_addr().expect("an address"));
    let home = home_with(&url, ", retries = 0, timeout_ms = 200");
    home.run(&["--backend", "served", "add", "a text"]).expect(3).says(&["/api/embed", "timeout"]);
}
