//! A server on this machine that serves a repository as huggingface.co does: a listing, files, and a second server
//! that large files are redirected to. It misbehaves on request, and notes what it was asked and what it sent.
use sha1::Digest as _;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Condvar, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
};

pub(crate) const REPO: &str = "maker/tiny";
pub(crate) const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
/// Larger files are what git LFS would hold: listed with SHA-256, and sent by the second server.
const LARGE: usize = 10_000;

/// How the server behaves. All off serves well.
#[derive(Clone, Default)]
pub(crate) struct Manners {
    /// Closes a connection after so many bytes of a body.
    pub(crate) break_after: Option<usize>,
    /// Only the first connection to a large file breaks.
    pub(crate) break_once: bool,
    /// Sends whole files whatever range is asked for.
    pub(crate) ignore_range: bool,
    /// After `break_after` bytes it keeps the connection open and sends nothing more.
    pub(crate) stall: bool,
    /// Demands this token.
    pub(crate) token: Option<&'static str>,
    /// Sends other bytes than it lists in large files.
    pub(crate) corrupt: bool,
    /// Leaves sizes and digests out of the listing.
    pub(crate) terse: bool,
    /// Answers everything with a web page.
    pub(crate) page: bool,
    /// Answers the first request so, with this header, before it serves.
    pub(crate) first: Option<(&'static str, &'static str)>,
    /// Lists this size for large files.
    pub(crate) claim: Option<u64>,
    /// Redirects from itself to itself without end.
    pub(crate) circle: bool,
}

/// A request that was served.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    /// Whether it went to the second server.
    pub(crate) store: bool,
    pub(crate) path: String,
    pub(crate) range: Option<String>,
    pub(crate) authorization: Option<String>,
    /// Bytes of the body that were sent.
    pub(crate) sent: usize,
}

pub(crate) struct Hub {
    shared: Arc<Shared>,
    pub(crate) hub: SocketAddr,
    store: SocketAddr,
}

struct Shared {
    files: BTreeMap<String, Vec<u8>>,
    manners: Mutex<Manners>,
    log: Mutex<Vec<Request>>,
    /// Requests that have arrived.
    arrived: (Mutex<usize>, Condvar),
    /// Requests wait for it.
    open: (Mutex<bool>, Condvar),
    ended: AtomicBool,
    store: SocketAddr,
}

impl Hub {
    pub(crate) fn new(files: &[(&str, &[u8])]) -> Self {
        let listen = || TcpListener::bind("127.0.0.1:0").expect("a port");
        let (hub, store) = (listen(), listen());
        let address = |listener: &TcpListener| listener.local_addr().expect("an address");
        let shared = Arc::new(Shared {
            files: files.iter().map(|(name, content)| ((*name).to_owned(), content.to_vec())).collect(),
            manners: Mutex::default(),
            log: Mutex::default(),
            arrived: Default::default(),
            open: (Mutex::new(true), Condvar::new()),
            ended: AtomicBool::new(false),
            store: address(&store),
        });
        let this = Self { shared: Arc::clone(&shared), hub: address(&hub), store: address(&store) };
        for (listener, is_store) in [(hub, false), (store, true)] {
            let shared = Arc::clone(&shared);
            thread::spawn(move || {
                for stream in listener.incoming() {
                    if shared.ended.load(Ordering::SeqCst) {
                        return;
                    }
                    let shared = Arc::clone(&shared);
                    // A client that goes away ends its thread, and nothing else.
                    thread::spawn(move || stream.and_then(|stream| shared.serve(stream, is_store)));
                }
            });
        }
        this
    }

    pub(crate) fn behave(&self, manners: Manners) {
        *self.shared.manners.lock().expect("a lock") = manners;
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.hub)
    }

    pub(crate) fn log(&self) -> Vec<Request> {
        self.shared.log.lock().expect("a lock").clone()
    }

    /// Bytes that were sent of this file.
    pub(crate) fn sent(&self, name: &str) -> usize {
        self.log().iter().filter(|request| request.path.ends_with(name)).map(|request| request.sent).sum()
    }

    /// From now on requests wait until it is opened.
    pub(crate) fn close(&self) {
        *self.shared.open.0.lock().expect("a lock") = false;
    }

    pub(crate) fn open(&self) {
        *self.shared.open.0.lock().expect("a lock") = true;
        self.shared.open.1.notify_all();
    }

    /// Returns when so many requests have arrived in all.
    pub(crate) fn wait_for(&self, requests: usize) {
        let (count, changed) = &self.shared.arrived;
        let guard = count.lock().expect("a lock");
        drop(changed.wait_while(guard, |count| *count < requests).expect("a lock"));
    }
}

impl Drop for Hub {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.open();
        for address in [self.hub, self.store] {
            let _ = TcpStream::connect(address);
        }
    }
}

impl Shared {
    fn serve(&self, mut stream: TcpStream, store: bool) -> std::io::Result<()> {
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            match line.trim_end() {
                "" => break,
                line => lines.push(line.to_owned()),
            }
        }
        let header = |name: &str| {
            lines.iter().find_map(|line| {
                let (header, value) = line.split_once(": ")?;
                header.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let path = lines[0].split(' ').nth(1).unwrap_or_default().to_owned();
        let request =
            Request { store, path, range: header("range"), authorization: header("authorization"), sent: 0 };
        {
            let (count, changed) = &self.arrived;
            *count.lock().expect("a lock") += 1;
            changed.notify_all();
            let (open, changed) = &self.open;
            drop(changed.wait_while(open.lock().expect("a lock"), |open| !*open).expect("a lock"));
        }
        let (manners, first) = {
            let mut manners = self.manners.lock().expect("a lock");
            let first = manners.first.take();
            let now = manners.clone();
            if store && now.break_once {
                manners.break_after = None;
            }
            (now, first)
        };
        let mut answer = match first {
            Some((status, header)) => Answer::new(status).header(header),
            None => self.answer(&request, &manners),
        };
        let body = std::mem::take(&mut answer.body);
        let mut head = format!("HTTP/1.1 {}\r\nConnection: close\r\n", answer.status);
        for line in &answer.headers {
            let _ = write!(head, "{line}\r\n");
        }
        let _ = write!(head, "Content-Length: {}\r\n\r\n", body.len());
        let cut = manners.break_after.filter(|_| store).unwrap_or(usize::MAX).min(body.len());
        // Noted before it is sent: whoever has the bytes may look.
        self.log.lock().expect("a lock").push(Request { sent: cut, ..request });
        stream.write_all(head.as_bytes())?;
        stream.write_all(&body[..cut])?;
        if cut < body.len() && manners.stall {
            // Until the client goes away.
            let _ = reader.read(&mut [0]);
        }
        stream.shutdown(Shutdown::Both)
    }

    fn answer(&self, request: &Request, manners: &Manners) -> Answer {
        if manners.page {
            return Answer::new("200 OK")
                .header("Content-Type: text/html")
                .body(b"<html>Welcome</html>".to_vec());
        }
        if manners.circle {
            return Answer::new("302 Found").header(&format!("Location: {}", request.path));
        }
        if request.store {
            let name = request.path.trim_start_matches("/store/");
            return self.content(name, request, manners);
        }
        let bearer = manners.token.map(|token| format!("Bearer {token}"));
        if bearer.is_some() && request.authorization != bearer {
            return Answer::new("401 Unauthorized").header("X-Error-Code: GatedRepo");
        }
        let files = format!("/{REPO}/resolve/{COMMIT}/");
        match request.path.strip_prefix(&files) {
            Some(name) if self.files.get(name).is_some_and(|content| content.len() > LARGE) => {
                Answer::new("302 Found")
                    .header(&format!("X-Linked-Etag: \"{}\"", sha256(&self.files[name])))
                    .header(&format!("X-Linked-Size: {}", self.files[name].len()))
                    .header(&format!("Location: http://{}/store/{name}", self.store))
            }
            Some(name) => self.content(name, request, manners),
            None => self.listing(request, manners),
        }
    }

    fn listing(&self, request: &Request, manners: &Manners) -> Answer {
        let repo = format!("/api/models/{REPO}/revision/");
        let Some(revision) = request.path.strip_prefix(&repo) else {
            return Answer::new("404 Not Found").header("X-Error-Code: RepoNotFound");
        };
        if !matches!(revision.split('?').next(), Some("main" | "v1" | COMMIT)) {
            return Answer::new("404 Not Found").header("X-Error-Code: RevisionNotFound");
        }
        let siblings: Vec<_> = self
            .files
            .iter()
            .map(|(name, content)| {
                let size = content.len();
                match size > LARGE {
                    _ if manners.terse => serde_json::json!({"rfilename": name}),
                    true => serde_json::json!({
                        "rfilename": name, "size": manners.claim.unwrap_or(size as u64), "blobId": "0".repeat(40),
                        "lfs": {"sha256": sha256(content), "size": manners.claim.unwrap_or(size as u64)},
                    }),
                    false => serde_json::json!({"rfilename": name, "size": size, "blobId": git_blob(content)}),
                }
            })
            .collect();
        let listing = serde_json::json!({"id": REPO, "sha": COMMIT, "siblings": siblings});
        Answer::new("200 OK").body(listing.to_string().into_bytes())
    }

    fn content(&self, name: &str, request: &Request, manners: &Manners) -> Answer {
        let Some(content) = self.files.get(name) else {
            return Answer::new("404 Not Found").header("X-Error-Code: EntryNotFound");
        };
        let mut content = content.clone();
        if manners.corrupt && content.len() > LARGE {
            content[LARGE / 2] ^= 1;
        }
        let etag = format!("ETag: \"{}\"", git_blob(&content));
        let range = request.range.as_ref().filter(|_| !manners.ignore_range);
        let start =
            range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
        match start {
            Some(start) if start < content.len() => {
                let len = content.len();
                Answer::new("206 Partial Content")
                    .header(&etag)
                    .header(&format!("Content-Range: bytes {start}-{}/{len}", len - 1))
                    .body(content.split_off(start))
            }
            _ => Answer::new("200 OK").header(&etag).body(content),
        }
    }
}

struct Answer {
    status: &'static str,
    headers: Vec<String>,
    body: Vec<u8>,
}

impl Answer {
    fn new(status: &'static str) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    fn header(mut self, line: &str) -> Self {
        self.headers.push(line.to_owned());
        self
    }

    fn body(mut self, body: Vec<u8>) -> Self {
        self.body = body;
        self
    }
}

pub(crate) fn sha256(content: &[u8]) -> String {
    hex(&sha2::Sha256::digest(content))
}

fn git_blob(content: &[u8]) -> String {
    let header = format!("blob {}\0", content.len());
    hex(&sha1::Sha1::digest([header.as_bytes(), content].concat()))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
