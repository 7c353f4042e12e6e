//! Models from a hub.
use super::{
    Incoming, ModelError, Models, Progress,
    catalogue::{catalogue, known},
    digest::hash_file,
    download::Wanted,
    error::io_error,
    hub::{Hub, HubError, RemoteFile},
    incoming::exists,
    layout,
};
use magray_model::{Architecture, Manifest};
use magray_plugin_api::{CallContext, ErrorCode};
use std::{fs, path::PathBuf};

/// What to pull.
#[derive(Clone, Debug)]
pub struct PullRequest {
    /// `OWNER/NAME` at the hub.
    pub repo: String,
    /// Branch, tag or commit; none is the newest.
    pub revision: Option<String>,
    /// Name that the model is to have here.
    pub name: String,
    /// Files of the repository beside those that the model needs.
    pub extra: Vec<String>,
    /// Takes a model that none of magray's own backends runs.
    pub force: bool,
    prefixes: Option<(&'static str, &'static str)>,
}

impl PullRequest {
    /// What a user means by `model`: a name of the catalogue, or `OWNER/NAME`.
    ///
    /// # Errors
    /// [`ModelError::NotKnown`], and [`ModelError::BadName`] where the repository has a name that no folder can
    /// have.
    pub fn new(model: &str, name: Option<String>) -> Result<Self, ModelError> {
        let (repo, own_name, prefixes) = match (known(model), model.split_once('/')) {
            // The folder is called as the user says, so that a config that names the alias finds it.
            (Some(known), None) => {
                let alias = known.alias.filter(|alias| alias.eq_ignore_ascii_case(model));
                (known.repo.to_owned(), alias.unwrap_or(known.name), known.prefixes)
            }
            (Some(known), Some(_)) => (known.repo.to_owned(), known.name, known.prefixes),
            (None, Some((owner, own))) if layout::is_name(owner) && layout::is_name(own) => {
                (model.to_owned(), own, None)
            }
            _ => {
                let near =
                    |name: &&str| strsim::damerau_levenshtein(&name.to_lowercase(), &model.to_lowercase());
                let names = catalogue().iter().flat_map(|known| [Some(known.name), known.alias]).flatten();
                let meant = names.min_by_key(near).filter(|name| near(name) <= 3);
                return Err(ModelError::NotKnown { name: model.to_owned(), meant });
            }
        };
        let name = name.unwrap_or_else(|| own_name.to_owned());
        if !layout::is_name(&name) {
            return Err(ModelError::BadName(name));
        }
        Ok(Self { repo, revision: None, name, extra: Vec::new(), force: false, prefixes })
    }
}

/// What a pull did.
#[derive(Debug)]
pub struct Pulled {
    /// The model's folder.
    pub dir: PathBuf,
    /// The commit that it is of.
    pub revision: Option<String>,
    /// Whether it was here already, so that nothing was done.
    pub was_here: bool,
    /// Bytes that came over the network.
    pub downloaded: u64,
}

impl Models {
    /// Whether what `request` asks for is here already, which needs no network to say.
    ///
    /// # Errors
    /// [`ModelError::Exists`] where another model has the name.
    pub fn pulled(&self, request: &PullRequest) -> Result<Option<Pulled>, ModelError> {
        let dir = self.dir().join(&request.name);
        if !dir.exists() {
            return Ok(None);
        }
        let Some(Manifest { source, revision, files, .. }) = Manifest::read(&dir) else {
            return Err(exists(&dir, &request.name));
        };
        let commit = revision.clone().unwrap_or_default();
        let wanted =
            request.revision.as_ref().is_none_or(|wanted| wanted.len() >= 7 && commit.starts_with(wanted));
        let extra = request.extra.iter().all(|extra| files.iter().any(|file| file.path == *extra));
        if source.ends_with(&format!("/{}", request.repo)) && wanted && extra {
            return Ok(Some(Pulled { dir, revision, was_here: true, downloaded: 0 }));
        }
        Err(exists(&dir, &request.name))
    }

    /// Downloads a model into `incoming`, going on from what an earlier attempt brought, and puts it in its place.
    ///
    /// # Errors
    /// [`ModelError`]. Unless the model cannot be used, what was fetched is kept for the next attempt.
    pub fn pull(
        &self,
        cx: &dyn CallContext,
        hub: &Hub,
        mut incoming: Incoming,
        request: &PullRequest,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Pulled, ModelError> {
        // While we waited for it, another process may have finished it.
        if let Some(pulled) = self.pulled(request)? {
            return Ok(pulled);
        }
        let repo = &request.repo;
        let listing = hub.listing(cx, repo, request.revision.as_deref().unwrap_or("main"))?;
        let files = choose(&listing.files, request, || hub.page(repo))?;
        let mut wanted = Vec::new();
        for file in files {
            wanted.push(hub.wanted(cx, repo, &listing.commit, file)?);
        }
        // What says whether the model can be used comes before what is large.
        wanted.sort_by_key(|file| (file.name != "config.json", file.size, file.name));

        let total = wanted.iter().map(|file| file.size).fold(0, u64::saturating_add);
        let mut left = 0_u64;
        for file in &wanted {
            if !incoming.has(file.name, &file.digest)? {
                let brought = incoming.brought(file.name, &file.digest)?;
                left = left.saturating_add(file.size.saturating_sub(brought));
            }
        }
        incoming.check_room(&request.name, left)?;

        let (mut before, mut downloaded) = (0, 0);
        for file in &wanted {
            let mut at = |done: u64| progress(Progress { file: file.name, done: before + done, total });
            downloaded += fetch(cx, hub, &mut incoming, file, &mut at)?;
            before += file.size;
            if file.name == "config.json" && !request.force {
                if let Err(error) = check_architecture(&incoming, &hub.page(repo)) {
                    incoming.discard()?;
                    return Err(error);
                }
            }
        }
        let names: Vec<&str> = wanted.iter().map(|file| file.name).collect();
        let describe = |manifest: &mut Manifest| {
            manifest.source = hub.page(repo);
            manifest.revision = Some(listing.commit.clone());
            let (query, passage) = request.prefixes.unzip();
            manifest.query_prefix = query.map(str::to_owned);
            manifest.passage_prefix = passage.map(str::to_owned);
        };
        let dir = incoming.finish(&request.name, &names, describe, request.force)?;
        Ok(Pulled { dir, revision: Some(listing.commit), was_here: false, downloaded })
    }
}

/// The files to fetch.
fn choose<'a>(
    files: &'a [RemoteFile],
    request: &PullRequest,
    page: impl Fn() -> String,
) -> Result<Vec<&'a RemoteFile>, ModelError> {
    let unusable = |reason: String| ModelError::Unusable { from: page(), reason };
    let names: Vec<String> = files.iter().map(|file| file.name.clone()).collect();
    let needed = layout::needed(&names, false);
    if needed.is_empty() {
        let has = |name: &str| names.iter().any(|there| there == name);
        return Err(unusable(match has("config.json") {
            false => "it has no config.json at its top".to_owned(),
            true if has("pytorch_model.bin") => {
                "its weights are only in pytorch_model.bin, which can run code when it is read; a repository with \
                 model.safetensors is needed"
                    .to_owned()
            }
            true => "it has neither model.safetensors nor onnx/model.onnx".to_owned(),
        }));
    }
    for extra in &request.extra {
        if !layout::is_safe(extra) || !names.contains(extra) {
            return Err(unusable(format!("it has no file '{extra}'")));
        }
    }
    let chosen =
        |file: &&RemoteFile| needed.contains(&file.name.as_str()) || request.extra.contains(&file.name);
    let mut chosen: Vec<_> = files.iter().filter(chosen).collect();
    chosen.sort_by(|a, b| a.name.cmp(&b.name));
    chosen.dedup_by(|a, b| a.name == b.name);
    Ok(chosen)
}

/// Brings one file to its place; returns the bytes that came over the network.
fn fetch(
    cx: &dyn CallContext,
    hub: &Hub,
    incoming: &mut Incoming,
    file: &Wanted<'_>,
    at: &mut dyn FnMut(u64),
) -> Result<u64, ModelError> {
    if incoming.has(file.name, &file.digest)? {
        at(file.size);
        return Ok(0);
    }
    let part = incoming.part(file.name, &file.digest)?;
    let place = incoming.place(file.name)?;
    let mut brought = incoming.brought(file.name, &file.digest)?;
    let mut downloaded = 0;
    loop {
        hub.download(cx, file, &part, at)?;
        downloaded += file.size.saturating_sub(brought);
        let hashed = hash_file(cx, &part, &mut |_| {})?;
        if file.digest.is_of(&part, &hashed)? {
            fs::rename(&part, &place).map_err(io_error("make", &place))?;
            incoming.enter_hashed(file.name, hashed)?;
            return Ok(downloaded);
        }
        fs::remove_file(&part).map_err(io_error("remove", &part))?;
        // What an earlier attempt left may have been damaged since.
        if std::mem::take(&mut brought) == 0 {
            let reason =
                "what the server sends does not match the digest that it lists, so it was thrown away";
            let url = hub.file_url(file.repo, file.commit, file.name);
            return Err(HubError::Nonsense { url, reason: reason.to_owned() }.into());
        }
        tracing::warn!("{}: what an earlier attempt left is damaged; it is fetched anew", file.name);
    }
}

/// Says before anything large is fetched that nothing here could run it.
fn check_architecture(incoming: &Incoming, from: &str) -> Result<(), ModelError> {
    let path = incoming.dir().join("config.json");
    let config = fs::read(&path).map_err(io_error("read", &path))?;
    let unusable = |reason: String| ModelError::Unusable { from: from.to_owned(), reason };
    let config =
        serde_json::from_slice(&config).map_err(|error| unusable(format!("its config.json: {error}")))?;
    match Architecture::from_config(&config) {
        Ok(_) => Ok(()),
        Err(error) => {
            let (from, reason) = (from.to_owned(), error.message().to_owned());
            Err(match error.code() {
                ErrorCode::UNSUPPORTED => ModelError::Unsupported { from, reason },
                _ => ModelError::Unusable { from, reason },
            })
        }
    }
}
