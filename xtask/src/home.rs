//! A data folder, and the program run in it.
use serde_json::Value;
use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};
use tempfile::TempDir;

/// What a campaign says of a defect; it ends it.
pub(crate) type Found<T> = Result<T, String>;

pub(crate) struct Home {
    dir: TempDir,
    program: PathBuf,
    index: String,
}

impl Home {
    pub(crate) fn new(program: &Path, index: &str) -> Found<Self> {
        let dir = tempfile::tempdir().map_err(|error| format!("cannot make a folder: {error}"))?;
        Ok(Self { dir, program: program.to_owned(), index: index.to_owned() })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn index_folder(&self) -> PathBuf {
        self.path("data/index")
    }

    /// The same home, with its data in another folder.
    pub(crate) fn command_in(&self, data: &str, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .args(["--index", &self.index])
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .env("HOME", self.dir.path())
            .env("MAGRAY_HOME", self.path(data))
            // Small, so that sealing and merging happen all the time.
            .env("MAGRAY_MEMORY__SYNC__SEAL_AFTER", "20")
            // The same search again has the same scores.
            .env("MAGRAY_MEMORY__SEARCH__AGE_WEIGHT", "0")
            .env("MAGRAY_MEMORY__SEARCH__ACCESS_WEIGHT", "0")
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_in("data", args)
    }

    pub(crate) fn run(&self, args: &[&str]) -> Found<Output> {
        let output = self.command(args).output().map_err(|error| format!("cannot start it: {error}"))?;
        if output.status.code().is_none() {
            return Err(format!("{args:?} crashed: {}", describe(&output)));
        }
        Ok(output)
    }

    pub(crate) fn expect(&self, args: &[&str]) -> Found<Output> {
        let output = self.run(args)?;
        match output.status.success() {
            true => Ok(output),
            false => Err(format!("{args:?} failed: {}", describe(&output))),
        }
    }

    pub(crate) fn feed(&self, args: &[&str], input: &str) -> Found<Output> {
        let failed = |error: std::io::Error| format!("{args:?}: {error}");
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(failed)?;
        let mut stdin = child.stdin.take().ok_or("no stdin")?;
        let input = input.to_owned();
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().map_err(failed)?;
        drop(writer.join());
        match output.status.success() {
            true => Ok(output),
            false => Err(format!("{args:?} failed: {}", describe(&output))),
        }
    }

    /// Every record of a data folder: its id and text.
    pub(crate) fn records_in(&self, data: &str) -> Found<BTreeMap<String, String>> {
        let args = ["list", "--json", "-n", "10000000"];
        let output =
            self.command_in(data, &args).output().map_err(|error| format!("cannot start it: {error}"))?;
        if !matches!(output.status.code(), Some(0 | 1)) {
            return Err(format!("list failed: {}", describe(&output)));
        }
        let mut records = BTreeMap::new();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let record: Value = serde_json::from_str(line).map_err(|error| format!("{error} in {line}"))?;
            records.insert(field(&record, "id")?, field(&record, "text")?);
        }
        Ok(records)
    }
}

pub(crate) fn field(of: &Value, name: &str) -> Found<String> {
    of[name].as_str().map(str::to_owned).ok_or_else(|| format!("no {name} in {of}"))
}

pub(crate) fn describe(output: &Output) -> String {
    let mut text = format!("{}", output.status);
    for (name, bytes) in [("stdout", &output.stdout), ("stderr", &output.stderr)] {
        let shown = String::from_utf8_lossy(bytes);
        let tail: String = shown.chars().rev().take(2000).collect::<Vec<_>>().into_iter().rev().collect();
        // A String takes whatever is written to it.
        let _ = write!(text, "\n--- {name}\n{tail}");
    }
    text
}

/// Every file below a folder, in order.
pub(crate) fn files_below(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        match path.is_dir() {
            true => found.extend(files_below(&path)),
            false => found.push(path),
        }
    }
    found.sort();
    found
}
