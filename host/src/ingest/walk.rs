use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use ignore::{DirEntry, WalkBuilder};

use super::IngestError;

/// Patterns in a file of this name hide files from magray alone. The syntax is that of
/// `.gitignore`, and it wins over `.gitignore` and `.ignore`.
const IGNORE_FILE: &str = ".magrayignore";

/// Folders of version control: never text of the user's, not even when hidden files are wanted.
const VERSION_CONTROL: [&str; 4] = [".git", ".hg", ".jj", ".svn"];

/// Which files [`walk`] lists. The default skips hidden files and does not follow links.
#[derive(Debug, Clone, Copy, Default)]
pub struct WalkOptions {
    /// Also list files and folders whose name starts with a dot.
    pub hidden: bool,
    /// Also list what symbolic links below the given paths point to. A given path that is itself
    /// a link is always followed.
    pub follow_links: bool,
}

/// A file to index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileEntry {
    /// Absolute and free of links, so that a file has the same path in every run.
    pub path: PathBuf,
    /// Bytes.
    pub size: u64,
    /// Time of the last change, in milliseconds since 1970; negative before.
    pub mtime_ms: i64,
}

/// Lists the files at and below `paths`.
///
/// `.gitignore` (inside a git repository or not), `.ignore` and `.magrayignore` are honoured, but
/// a file that is itself among `paths` is always listed. Each file comes once, however often it
/// is reached. What is wrong with a given path comes first; then the files follow in sorted order,
/// given path by given path. An error concerns one path, and the walk goes on.
pub fn walk(
    paths: &[PathBuf],
    options: &WalkOptions,
) -> impl Iterator<Item = Result<FileEntry, IngestError>> + use<> {
    let options = *options;
    let mut roots = Vec::new();
    let mut errors = Vec::new();
    for path in paths {
        match canonical(path) {
            Ok(root) => roots.push(root),
            Err(error) => errors.push(error),
        }
    }
    roots.sort();

    let mut seen = HashSet::new();
    let files = roots.into_iter().flat_map(move |root| below(&root, options));
    errors.into_iter().map(Err).chain(files).filter(move |found| match found {
        Ok(file) => seen.insert(file.path.clone()),
        Err(_) => true,
    })
}

fn canonical(path: &Path) -> Result<PathBuf, IngestError> {
    let found = fs::canonicalize(path).map_err(|error| unreadable(path, error))?;
    let kind = fs::metadata(&found).map_err(|error| unreadable(path, error))?;
    if kind.is_file() || kind.is_dir() { Ok(found) } else { Err(IngestError::NotAFile { path: path.into() }) }
}

fn below(root: &Path, options: WalkOptions) -> impl Iterator<Item = Result<FileEntry, IngestError>> + use<> {
    WalkBuilder::new(root)
        .hidden(!options.hidden)
        .follow_links(options.follow_links)
        .require_git(false)
        .add_custom_ignore_filename(IGNORE_FILE)
        .filter_entry(|entry| VERSION_CONTROL.iter().all(|name| entry.file_name() != *name))
        .sort_by_file_name(|a, b| a.cmp(b))
        .build()
        .flat_map(|entry| match entry {
            // A bad pattern in an ignore file comes along with the folder that holds the file.
            Ok(entry) => [entry.error().cloned().map(|error| Err(error.into())), file(&entry)],
            Err(error) => [Some(Err(error.into())), None],
        })
        .flatten()
}

/// The file an entry of the walk stands for, if it is one.
fn file(entry: &DirEntry) -> Option<Result<FileEntry, IngestError>> {
    if !entry.file_type().is_some_and(|kind| kind.is_file()) {
        return None;
    }
    let described = fs::canonicalize(entry.path()).and_then(|path| {
        let metadata = fs::metadata(&path)?;
        let mtime_ms = match metadata.modified()?.duration_since(UNIX_EPOCH) {
            Ok(after) => after.as_millis() as i64,
            Err(before) => -(before.duration().as_millis() as i64),
        };
        Ok(FileEntry { path, size: metadata.len(), mtime_ms })
    });
    Some(described.map_err(|error| unreadable(entry.path(), error)))
}

fn unreadable(path: &Path, source: std::io::Error) -> IngestError {
    let path = path.into();
    match source.kind() {
        ErrorKind::NotFound => IngestError::Missing { path },
        _ => IngestError::Unreadable { path, source },
    }
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn tree(files: &[(&str, &str)]) -> TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = folder.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        folder
    }

    fn list(folder: &TempDir, names: &[&str], options: WalkOptions) -> Vec<Result<String, String>> {
        let root = fs::canonicalize(folder.path()).unwrap();
        let paths: Vec<_> = names.iter().map(|name| folder.path().join(name)).collect();
        walk(&paths, &options)
            .map(|found| match found {
                Ok(file) => Ok(file.path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/")),
                Err(error) => Err(error.to_string()),
            })
            .collect()
    }

    fn files(folder: &TempDir, names: &[&str], options: WalkOptions) -> Vec<String> {
        list(folder, names, options).into_iter().map(Result::unwrap).collect()
    }

    #[test]
    fn files_come_sorted_with_size_and_time() {
        let folder = tree(&[("b/z", "12345"), ("b/a", ""), ("a.txt", ""), ("c", ""), ("b.txt", "")]);
        assert_eq!(
            files(&folder, &["."], WalkOptions::default()),
            ["a.txt", "b/a", "b/z", "b.txt", "c"].map(str::to_owned).to_vec()
        );

        let path = folder.path().join("b/z");
        let then = UNIX_EPOCH - std::time::Duration::from_millis(1500);
        fs::File::options().write(true).open(&path).unwrap().set_modified(then).unwrap();
        let found: Vec<_> = walk(&[path], &WalkOptions::default()).map(Result::unwrap).collect();
        assert_eq!((found.len(), found[0].size, found[0].mtime_ms), (1, 5, -1500));
    }

    #[test]
    fn ignore_files_count_outside_a_repository_too() {
        let folder = tree(&[
            (".gitignore", "*.log\n/out/\n"),
            (".ignore", "b.md\n"),
            ("sub/.magrayignore", "c.md\n!keep.log\n"),
            ("a.md", ""),
            ("b.md", ""),
            ("x.log", ""),
            ("out/o.md", ""),
            ("sub/c.md", ""),
            ("sub/keep.log", ""),
        ]);
        assert_eq!(files(&folder, &["."], WalkOptions::default()), ["a.md", "sub/keep.log"]);
    }

    #[test]
    fn a_named_file_is_taken_even_if_ignored_or_hidden() {
        let folder = tree(&[(".gitignore", "*.log\n"), ("x.log", ""), (".env", ""), ("a", "")]);
        assert_eq!(files(&folder, &["x.log", ".env"], WalkOptions::default()), [".env", "x.log"]);
        assert_eq!(files(&folder, &["x.log", "."], WalkOptions::default()), ["a", "x.log"]);
    }

    #[test]
    fn hidden_files_are_listed_on_demand_but_never_those_of_version_control() {
        let folder = tree(&[(".hidden/a", ""), (".git/config", ""), ("b", "")]);
        assert_eq!(files(&folder, &["."], WalkOptions::default()), ["b"]);
        let hidden = WalkOptions { hidden: true, ..WalkOptions::default() };
        assert_eq!(files(&folder, &["."], hidden), [".hidden/a", "b"]);
    }

    #[test]
    fn a_file_comes_once_however_often_it_is_reached() {
        let folder = tree(&[("a/b/c", ""), ("a/d", "")]);
        assert_eq!(
            files(&folder, &["a/b/c", "a/b", "a", "a/../a", "."], WalkOptions::default()),
            ["a/b/c", "a/d"]
        );
    }

    #[test]
    fn a_missing_path_is_named_and_the_others_are_listed() {
        let folder = tree(&[("a", "")]);
        let found = list(&folder, &["nowhere", "a"], WalkOptions::default());
        assert_eq!(found.len(), 2);
        let error = found[0].as_ref().unwrap_err();
        assert!(error.contains("nowhere: no such file or folder"), "{error}");
        assert_eq!(found[1].as_deref(), Ok("a"));
    }

    #[test]
    fn a_bad_pattern_is_reported_and_the_walk_goes_on() {
        let folder = tree(&[(".magrayignore", "[z-a]\n*.log\n"), ("b", ""), ("x.log", "")]);
        let found = list(&folder, &["."], WalkOptions::default());
        assert_eq!(found.len(), 2, "{found:?}");
        let error = found[0].as_ref().unwrap_err();
        assert!(error.contains(".magrayignore"), "{error}");
        assert_eq!(found[1].as_deref(), Ok("b"));
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_on_demand_and_lead_to_each_file_once() {
        let folder = tree(&[("real/a", ""), ("other/b", "")]);
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, folder.path().join(name)).unwrap();
        link("../other", "real/link");
        link("a", "real/same");
        assert_eq!(files(&folder, &["real"], WalkOptions::default()), ["real/a"]);
        let follow = WalkOptions { follow_links: true, ..WalkOptions::default() };
        assert_eq!(files(&folder, &["real"], follow), ["real/a", "other/b"]);
        assert_eq!(files(&folder, &["real/link"], WalkOptions::default()), ["other/b"]);
    }

    #[cfg(unix)]
    #[test]
    fn a_broken_link_is_reported_and_the_walk_goes_on() {
        let folder = tree(&[("a", ""), ("z", "")]);
        std::os::unix::fs::symlink("gone", folder.path().join("m")).unwrap();
        let follow = WalkOptions { follow_links: true, ..WalkOptions::default() };
        let found = list(&folder, &["."], follow);
        assert_eq!(found.len(), 3, "{found:?}");
        assert_eq!(found.iter().filter(|file| file.is_ok()).count(), 2);
        assert!(found.iter().any(|file| file.as_ref().is_err_and(|error| error.contains("/m"))), "{found:?}");
    }

    #[cfg(unix)]
    #[test]
    fn a_socket_is_not_a_file() {
        let folder = tree(&[]);
        let _socket = std::os::unix::net::UnixListener::bind(folder.path().join("s")).unwrap();
        assert!(list(&folder, &["s"], WalkOptions::default())[0].is_err());
        assert_eq!(list(&folder, &["."], WalkOptions::default()), []);
    }
}
