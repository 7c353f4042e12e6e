//! A server that speaks as huggingface.co does: lists the files of a repository, and sends them.
use super::{ModelError, digest::Digest};
use serde::Deserialize;
use std::{env, ffi::OsString, fmt, fs, io, path::PathBuf, time::Duration};
use ureq::{
    Agent, Body,
    http::{HeaderMap, Response, Uri, header},
    tls::{RootCerts, TlsConfig},
};

/// The hub of Hugging Face.
pub(super) const ENDPOINT: &str = "https://huggingface.co";
/// Redirects of one request at most.
const REDIRECTS: usize = 10;
/// Bytes of a listing at most.
const LISTING: u64 = 32 << 20;

/// Why a server did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each says what it is in its message")]
pub enum HubError {
    #[error("'{0}' is no address of a server; HF_ENDPOINT takes one such as {ENDPOINT}")]
    Endpoint(String),

    #[error("HF_HUB_OFFLINE is set, so nothing is fetched; unset it, or use `magray model import`")]
    Offline,

    #[error("the token in {} cannot be read: {error}", path.display())]
    Token { path: PathBuf, error: io::Error },

    #[error("{endpoint} has no repository {repo}, or it is private: check its name{}", token_advice(*with_token))]
    NoRepository { endpoint: String, repo: String, with_token: bool },

    #[error("{repo} has no revision '{revision}'")]
    NoRevision { repo: String, revision: String },

    #[error("{repo} is gated or private: accept its terms on {endpoint}/{repo}{}", token_advice(*with_token))]
    Gated { endpoint: String, repo: String, with_token: bool },

    /// The server says no for good.
    #[error("{url}: the server answers {answer}")]
    Refused { url: String, answer: String },

    /// The server says what cannot be.
    #[error("{url}: {reason}")]
    Nonsense { url: String, reason: String },

    /// What may pass has not passed.
    #[error(
        "{url}: {reason}{}; what is here is kept, and the same command goes on from there",
        if *attempts > 1 { format!(", {attempts} times in a row") } else { String::new() }
    )]
    GaveUp { url: String, reason: String, attempts: u64 },
}

fn token_advice(with_token: bool) -> &'static str {
    if with_token {
        " with the account of your token"
    } else {
        ", and give a token in HF_TOKEN or by `hf auth login` where it needs one"
    }
}

/// How the server is reached.
#[derive(Clone)]
pub struct HubOptions {
    /// Address of the server.
    pub endpoint: String,
    /// Says who asks. Sent to `endpoint` and to no other server.
    pub token: Option<String>,
    /// How often a request is tried again when it breaks without having brought anything.
    pub retries: u64,
    /// The wait before the first of these; each further one is twice as long, up to 30 s.
    pub retry_wait: Duration,
    /// A server that sends nothing for so long has gone.
    pub stall: Duration,
}

impl fmt::Debug for HubOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubOptions").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// `HF_ENDPOINT` and the token, as the tools of Hugging Face find them: `HF_TOKEN`, the file `HF_TOKEN_PATH`,
/// the file `token` in `HF_HOME`, else in `~/.cache/huggingface`.
///
/// # Errors
/// [`HubError::Token`] where a file that is there cannot be read, and [`HubError::Offline`].
pub fn endpoint_and_token() -> Result<(String, Option<String>), HubError> {
    from_vars(|name| env::var_os(name).filter(|value| !value.is_empty()))
}

fn from_vars(var: impl Fn(&str) -> Option<OsString>) -> Result<(String, Option<String>), HubError> {
    let text = |name: &str| var(name).map(|value| value.to_string_lossy().trim().to_owned());
    let path = |name: &str| var(name).map(PathBuf::from);
    if text("HF_HUB_OFFLINE")
        .is_some_and(|value| matches!(&*value.to_lowercase(), "1" | "on" | "yes" | "true"))
    {
        return Err(HubError::Offline);
    }
    let endpoint = text("HF_ENDPOINT").unwrap_or_else(|| ENDPOINT.to_owned());
    if let Some(token) = text("HF_TOKEN") {
        return Ok((endpoint, Some(token)));
    }
    let home = || {
        let cache = path("XDG_CACHE_HOME").or_else(|| path("HOME").map(|home| home.join(".cache")));
        path("HF_HOME").or_else(|| cache.map(|cache| cache.join("huggingface")))
    };
    let file = path("HF_TOKEN_PATH").or_else(|| home().map(|home| home.join("token")));
    let token = match file.map(|path| (fs::read_to_string(&path), path)) {
        Some((Ok(token), _)) => Some(token.trim().to_owned()).filter(|token| !token.is_empty()),
        Some((Err(error), path)) if error.kind() != io::ErrorKind::NotFound => {
            return Err(HubError::Token { path, error });
        }
        _ => None,
    };
    Ok((endpoint, token))
}

/// A server, and how to talk to it. Threads: any number of calls at once.
#[derive(Debug)]
pub struct Hub {
    agent: Agent,
    endpoint: Uri,
    pub(super) options: HubOptions,
}

/// What a repository holds at one revision.
#[derive(Debug)]
pub(super) struct Listing {
    /// The commit that the revision stands for.
    pub(super) commit: String,
    pub(super) files: Vec<RemoteFile>,
}

/// A file of a repository.
#[derive(Clone, Debug)]
pub(super) struct RemoteFile {
    pub(super) name: String,
    /// None where the listing does not say.
    pub(super) size: Option<u64>,
    pub(super) digest: Option<Digest>,
}

#[derive(Deserialize)]
struct ListingJson {
    sha: String,
    siblings: Vec<SiblingJson>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SiblingJson {
    rfilename: String,
    size: Option<u64>,
    blob_id: Option<String>,
    lfs: Option<LfsJson>,
}

#[derive(Deserialize)]
struct LfsJson {
    sha256: Option<String>,
    oid: Option<String>,
    size: Option<u64>,
}

/// Why an attempt failed.
#[derive(Debug)]
pub(super) enum Trouble {
    /// Another attempt may do better, after as long as the server asks for.
    Passing(String, Option<Duration>),
    Final(ModelError),
}

impl From<HubError> for Trouble {
    fn from(error: HubError) -> Self {
        Self::Final(error.into())
    }
}

impl From<ModelError> for Trouble {
    fn from(error: ModelError) -> Self {
        Self::Final(error)
    }
}

/// An answer, after redirects.
pub(super) struct Reply {
    pub(super) response: Response<Body>,
    /// What the hub itself said, before it sent us to where the file is.
    first: HeaderMap,
}

impl Reply {
    /// Digest and size of the file, as the hub itself states them.
    pub(super) fn stated(&self) -> (Option<Digest>, Option<u64>) {
        let text = |name: &str| self.first.get(name).and_then(|value| value.to_str().ok());
        let digest = text("x-linked-etag").or_else(|| text("etag")).and_then(Digest::from_hex);
        let last = self.response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok());
        (digest, text("x-linked-size").or(last).and_then(|size| size.parse().ok()))
    }
}

impl Hub {
    /// Checks the address; nothing is sent.
    ///
    /// # Errors
    /// [`HubError::Endpoint`].
    pub fn new(mut options: HubOptions) -> Result<Self, HubError> {
        options.endpoint.truncate(options.endpoint.trim_end_matches('/').len());
        let endpoint = options.endpoint.parse::<Uri>().ok();
        let endpoint = endpoint
            .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.query().is_none())
            .ok_or_else(|| HubError::Endpoint(options.endpoint.clone()))?;
        let agent = Agent::config_builder()
            // Redirects are followed here, so that the token stays with its server.
            .max_redirects(0)
            .http_status_as_error(false)
            .user_agent(concat!("magray/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(options.stall))
            .timeout_connect(Some(options.stall))
            .timeout_recv_response(Some(options.stall))
            .timeout_per_read(Some(options.stall))
            // What the system trusts: companies have certificates of their own.
            .tls_config(TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build())
            .build();
        Ok(Self { agent: agent.into(), endpoint, options })
    }

    /// Address of a repository, for people.
    pub(super) fn page(&self, repo: &str) -> String {
        format!("{}/{repo}", self.options.endpoint)
    }

    /// Address of a file.
    pub(super) fn file_url(&self, repo: &str, commit: &str, name: &str) -> String {
        let path: Vec<String> = name.split('/').map(encoded).collect();
        format!("{}/{repo}/resolve/{}/{}", self.options.endpoint, encoded(commit), path.join("/"))
    }

    /// One attempt to list a repository.
    pub(super) fn list(&self, repo: &str, revision: &str) -> Result<Listing, Trouble> {
        let endpoint = &self.options.endpoint;
        let url = format!("{endpoint}/api/models/{repo}/revision/{}?blobs=true", encoded(revision));
        let mut reply = self.get(&url, repo, revision, None)?;
        let json = reply.response.body_mut().with_config().limit(LISTING).read_to_vec();
        let json = json.map_err(|error| passing(&error))?;
        let listing: ListingJson = serde_json::from_slice(&json).map_err(|error| {
            let reason = format!("this is no listing of a repository ({error}); is HF_ENDPOINT right?");
            Trouble::from(HubError::Nonsense { url: url.clone(), reason })
        })?;
        if !matches!(Digest::from_hex(&listing.sha), Some(Digest::GitBlob(_))) {
            let reason = "the listing names no commit".to_owned();
            return Err(HubError::Nonsense { url, reason }.into());
        }
        let files = listing.siblings.into_iter().map(|file| {
            let (digest, size) = match file.lfs {
                Some(lfs) => (lfs.sha256.or(lfs.oid), lfs.size.or(file.size)),
                None => (file.blob_id, file.size),
            };
            RemoteFile { name: file.rfilename, size, digest: digest.as_deref().and_then(Digest::from_hex) }
        });
        Ok(Listing { commit: listing.sha, files: files.collect() })
    }

    /// One attempt to get `url`, from byte `from` on, through redirects. A reply is one with status 200 or 206.
    pub(super) fn get(
        &self,
        url: &str,
        repo: &str,
        revision: &str,
        from: Option<u64>,
    ) -> Result<Reply, Trouble> {
        let nonsense = |reason: String| Trouble::from(HubError::Nonsense { url: url.to_owned(), reason });
        let mut at: Uri = url.parse().map_err(|error| nonsense(format!("no address: {error}")))?;
        let mut first = None;
        for _ in 0..=REDIRECTS {
            let mut request = self.agent.get(&at).header(header::ACCEPT_ENCODING, "identity");
            if let Some(token) = self.options.token.as_ref().filter(|_| same_server(&at, &self.endpoint)) {
                request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
            }
            if let Some(from) = from {
                request = request.header(header::RANGE, format!("bytes={from}-"));
            }
            let response = request.call().map_err(|error| self.trouble(&at, error))?;
            let status = response.status();
            if first.is_none() {
                first = Some(response.headers().clone());
            }
            match status.as_u16() {
                200 | 206 => return Ok(Reply { response, first: first.unwrap_or_default() }),
                301 | 302 | 303 | 307 | 308 => {
                    let location = response.headers().get(header::LOCATION);
                    let next = location.and_then(|location| resolve(&at, location.to_str().ok()?));
                    let next = next.ok_or_else(|| nonsense("a redirect to nowhere".to_owned()))?;
                    if at.scheme_str() == Some("https") && next.scheme_str() != Some("https") {
                        return Err(nonsense(format!("a redirect to {}, which is not secure", shown(&next))));
                    }
                    at = next;
                }
                _ => return Err(self.refusal(&at, repo, revision, &response)),
            }
        }
        Err(nonsense(format!("more than {REDIRECTS} redirects")))
    }

    fn refusal(&self, at: &Uri, repo: &str, revision: &str, response: &Response<Body>) -> Trouble {
        let text = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
        let status = response.status();
        let (endpoint, repo) = (self.options.endpoint.clone(), repo.to_owned());
        let with_token = self.options.token.is_some();
        let here = same_server(at, &self.endpoint);
        let error = match (status.as_u16(), text("x-error-code")) {
            (_, Some("GatedRepo")) => HubError::Gated { endpoint, repo, with_token },
            (_, Some("RepoNotFound")) => HubError::NoRepository { endpoint, repo, with_token },
            (_, Some("RevisionNotFound")) => HubError::NoRevision { repo, revision: revision.to_owned() },
            (401 | 403, None) if here => HubError::Gated { endpoint, repo, with_token },
            (404, None) if here && at.path().contains("/api/models/") => {
                HubError::NoRepository { endpoint, repo, with_token }
            }
            (408 | 429 | 500.., _) => {
                let wait = text("retry-after").and_then(retry_after);
                return Trouble::Passing(format!("the server answers {status}"), wait);
            }
            // Where a file is sent from, an address that has run out is answered so; a new one is good.
            (403, _) => return Trouble::Passing(format!("{} answers {status}", shown(at)), None),
            (_, _) => {
                let why = text("x-error-message").map(|why| format!(": {}", plain(why))).unwrap_or_default();
                HubError::Refused { url: shown(at), answer: format!("{status}{why}") }
            }
        };
        error.into()
    }

    fn trouble(&self, at: &Uri, error: ureq::Error) -> Trouble {
        match error {
            ureq::Error::BadUri(_) | ureq::Error::Http(_) | ureq::Error::InvalidProxyUrl => {
                Trouble::from(HubError::Refused { url: shown(at), answer: error.to_string() })
            }
            // What TLS refuses comes as broken data.
            error if is_distrust(&error) => Trouble::from(HubError::Refused {
                url: shown(at),
                answer: format!(
                    "in a way that cannot be trusted ({error}); behind a proxy with certificates of its own, add \
                     them to the system's or name their file in SSL_CERT_FILE"
                ),
            }),
            error => passing(&error),
        }
    }
}

fn is_distrust(error: &ureq::Error) -> bool {
    match error {
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => true,
        ureq::Error::Io(error) => error.kind() == io::ErrorKind::InvalidData,
        _ => false,
    }
}

/// What goes wrong on the way may go right the next time.
fn passing(error: &dyn fmt::Display) -> Trouble {
    Trouble::Passing(format!("the connection failed ({error})"), None)
}

/// Seconds; the other form, a date, is left to our own wait.
fn retry_after(text: &str) -> Option<Duration> {
    text.trim().parse().ok().map(Duration::from_secs)
}

/// An address without its query, which may hold a signature, and what a terminal would obey.
pub(super) fn shown(uri: &Uri) -> String {
    plain(&format!(
        "{}://{}{}",
        uri.scheme_str().unwrap_or_default(),
        uri.authority().map(|authority| authority.as_str()).unwrap_or_default(),
        uri.path()
    ))
}

fn plain(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect()
}

/// A part of a path, safe in an address.
fn encoded(part: &str) -> String {
    let mut out = String::with_capacity(part.len());
    for byte in part.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// Whether scheme, host and port are the same.
fn same_server(a: &Uri, b: &Uri) -> bool {
    let port =
        |uri: &Uri| uri.port_u16().or(if uri.scheme_str() == Some("https") { Some(443) } else { Some(80) });
    let host = |uri: &Uri| uri.host().map(str::to_ascii_lowercase);
    a.scheme_str() == b.scheme_str() && host(a) == host(b) && port(a) == port(b)
}

/// Where a redirect leads (RFC 3986, section 5, without `.` and `..`, which servers do not send).
fn resolve(from: &Uri, location: &str) -> Option<Uri> {
    let (scheme, authority) = (from.scheme_str()?, from.authority()?);
    let whole = if location.contains("://") {
        location.to_owned()
    } else if location.starts_with("//") {
        format!("{scheme}:{location}")
    } else if location.starts_with('/') {
        format!("{scheme}://{authority}{location}")
    } else {
        let folder = from.path().rsplit_once('/').map_or("", |(folder, _)| folder);
        format!("{scheme}://{authority}{folder}/{location}")
    };
    let whole = whole.split('#').next().unwrap_or_default();
    whole
        .parse::<Uri>()
        .ok()
        .filter(|uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn uri(text: &str) -> Uri {
        text.parse().expect("an address")
    }

    #[test]
    fn redirects_are_resolved() {
        let from = uri("https://hub.example:8443/a/b/resolve/main/c?x=1");
        for (location, to) in [
            ("https://cdn.example/x?sig=1#part", "https://cdn.example/x?sig=1"),
            ("//cdn.example/x", "https://cdn.example/x"),
            ("/api/resolve-cache/c", "https://hub.example:8443/api/resolve-cache/c"),
            ("d", "https://hub.example:8443/a/b/resolve/main/d"),
        ] {
            assert_eq!(resolve(&from, location), Some(uri(to)), "{location}");
        }
        for location in ["file:///etc/passwd", "ftp://x/y", "https://", "http://a b/"] {
            assert_eq!(resolve(&from, location), None, "{location}");
        }
    }

    #[test]
    fn a_server_is_scheme_host_and_port() {
        let hub = uri("https://hub.example");
        for same in ["https://hub.example/x", "https://HUB.example:443/y"] {
            assert!(same_server(&uri(same), &hub), "{same}");
        }
        for other in [
            "http://hub.example/x",
            "https://hub.example:444/",
            "https://evil.example/",
            "https://hub.example.evil.example/",
            "https://hub.example@evil.example/",
        ] {
            assert!(!same_server(&uri(other), &hub), "{other}");
        }
    }

    #[test]
    fn the_token_is_found_where_the_tools_of_the_hub_put_it() {
        let home = tempfile::tempdir().expect("a folder");
        let file = home.path().join(".cache/huggingface/token");
        fs::create_dir_all(file.parent().expect("a parent")).expect("made");
        fs::write(&file, "from-file\n").expect("written");
        fs::write(home.path().join("other"), "from-path").expect("written");
        let vars = |set: &[(&str, &str)]| {
            let set: Vec<(String, OsString)> =
                set.iter().map(|(name, value)| ((*name).to_owned(), value.into())).collect();
            let home = home.path().to_owned();
            from_vars(move |name| match name {
                "HOME" => Some(home.clone().into()),
                _ => set.iter().find(|(set, _)| set == name).map(|(_, value)| value.clone()),
            })
        };
        assert_eq!(vars(&[]).expect("found"), (ENDPOINT.to_owned(), Some("from-file".to_owned())));
        let path = home.path().join("other");
        let path = path.to_str().expect("UTF-8");
        assert_eq!(vars(&[("HF_TOKEN_PATH", path)]).expect("found").1.as_deref(), Some("from-path"));
        let both = vars(&[("HF_TOKEN_PATH", path), ("HF_TOKEN", "direct"), ("HF_ENDPOINT", "http://mirror")]);
        assert_eq!(both.expect("found"), ("http://mirror".to_owned(), Some("direct".to_owned())));
        let none = vars(&[("XDG_CACHE_HOME", "/nowhere")]);
        assert_eq!(none.expect("found").1, None);
        assert!(matches!(vars(&[("HF_HUB_OFFLINE", "1")]), Err(HubError::Offline)));
    }

    #[test]
    fn only_addresses_of_servers_are_taken() {
        let options = |endpoint: &str| HubOptions {
            endpoint: endpoint.to_owned(),
            token: Some("secret".to_owned()),
            retries: 0,
            retry_wait: Duration::ZERO,
            stall: Duration::from_secs(1),
        };
        let hub = Hub::new(options("http://mirror.example/hf//")).expect("an address");
        assert_eq!(
            hub.file_url("a/b", "main", "1_P x/c.json"),
            "http://mirror.example/hf/a/b/resolve/main/1_P%20x/c.json"
        );
        assert!(!format!("{hub:?}").contains("secret"));
        for wrong in ["", "mirror.example", "ftp://mirror.example", "http://m/?x=1", "not an address"] {
            assert!(matches!(Hub::new(options(wrong)), Err(HubError::Endpoint(_))), "{wrong}");
        }
    }
}
