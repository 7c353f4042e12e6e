//! A home of its own for each test, and the program run in it.
pub(crate) use magray_model_testkit::{fetched as assets, repository};

use serde_json::Value;
use std::{
    env, fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};
use tempfile::TempDir;

/// A data folder, and `magray` on it.
pub(crate) struct Home {
    dir: TempDir,
}

/// What a run left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Home {
    pub(crate) fn new() -> Self {
        Self { dir: tempfile::tempdir().expect("a temporary folder") }
    }

    /// The folder that holds everything of the test.
    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.path().join("data")
    }

    /// Writes a file below the home, and its folders.
    pub(crate) fn file(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("its folder");
        fs::write(&path, content).expect("the file");
        path
    }

    /// Copies a built plugin into the home's plugin folder.
    pub(crate) fn install(&self, library: &str) -> PathBuf {
        self.file(&format!("plugins/{library}"), fs::read(built(library)).expect("the plugin is built"))
    }

    /// The program with nothing of the user's environment, and no plugin but those of this home.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_magray"));
        command
            .args(args)
            .current_dir(self.path())
            .env_clear()
            .env("MAGRAY_HOME", self.data())
            .env("MAGRAY_PLUGIN_PATH", self.path().join("plugins"))
            .env("MAGRAY_PLUGINS__SEARCH_DEFAULTS", "false")
            .env("HOME", self.path())
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Ran {
        Ran::of(&mut self.command(args))
    }

    pub(crate) fn run_with_stdin(&self, args: &[&str], input: &[u8]) -> Ran {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("it runs");
        let mut stdin = child.stdin.take().expect("its input");
        let input = input.to_vec();
        // The program may stop reading before the end, which is its right.
        let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
        let output = child.wait_with_output().expect("it ends");
        writer.join().expect("the writer ends");
        Ran::from(output)
    }

    /// The answer as JSON, of a run that must succeed.
    pub(crate) fn json(&self, args: &[&str]) -> Value {
        let args: Vec<&str> = args.iter().copied().chain(["--json"]).collect();
        let ran = self.run(&args).expect(0);
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {}", ran.stdout))
    }

    /// The texts that a search finds, best first.
    pub(crate) fn search(&self, args: &[&str]) -> Vec<String> {
        let found = self.json(&[&["search"], args].concat());
        let hits = found["hits"].as_array().expect("hits");
        hits.iter().map(|hit| hit["text"].as_str().expect("a text").to_owned()).collect()
    }
}

impl From<std::process::Output> for Ran {
    fn from(output: std::process::Output) -> Self {
        let text = |bytes| String::from_utf8(bytes).expect("UTF-8");
        Self { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }
}

impl Ran {
    pub(crate) fn of(command: &mut Command) -> Self {
        Self::from(command.output().expect("the program runs"))
    }

    /// Fails the test where the exit code is another.
    #[track_caller]
    pub(crate) fn expect(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        self
    }

    /// Fails the test where stderr lacks one of these.
    #[track_caller]
    pub(crate) fn says(self, parts: &[&str]) -> Self {
        for part in parts {
            assert!(self.stderr.contains(part), "no {part:?} in {self:#?}");
        }
        self
    }
}

/// A library that cargo built for the tests.
pub(crate) fn built(library: &str) -> PathBuf {
    let test = env::current_exe().expect("this program");
    test.parent().expect("its folder").join(library)
}

/// The folder of what is built from workspaces other than ours; apart from ours, so that no program finds these
/// plugins beside it.
pub(crate) fn other_workspaces() -> PathBuf {
    built("").ancestors().nth(2).expect("target/PROFILE/deps").join("other-workspaces")
}

/// Runs `cargo COMMAND` in a workspace of its own inside the repository, and returns the folder of what it builds.
pub(crate) fn cargo(command: &str, workspace: &str) -> PathBuf {
    cargo_with(command, workspace, &[])
}

/// As [`cargo`], with more arguments.
pub(crate) fn cargo_with(command: &str, workspace: &str, more: &[&str]) -> PathBuf {
    cargo_in(&repository().join(workspace), &[&[command, "--locked"], more].concat());
    other_workspaces().join("debug")
}

/// Runs cargo in the folder of a workspace.
pub(crate) fn cargo_in(folder: &Path, args: &[&str]) {
    let ran = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .args(args)
        .arg("--quiet")
        .current_dir(folder)
        .env("CARGO_TARGET_DIR", other_workspaces())
        .output()
        .expect("cargo runs");
    assert!(
        ran.status.success(),
        "{}{}",
        String::from_utf8_lossy(&ran.stdout),
        String::from_utf8_lossy(&ran.stderr)
    );
}

/// A file of evaluation data: below `$MAGRAY_SHARED`, else below `shared` beside the repository.
pub(crate) fn shared(path: &str) -> String {
    magray_model_testkit::shared(path).into_os_string().into_string().expect("UTF-8")
}

/// File name of a library.
macro_rules! library {
    ($name:literal) => {
        if cfg!(windows) {
            concat!($name, ".dll")
        } else if cfg!(target_vendor = "apple") {
            concat!("lib", $name, ".dylib")
        } else {
            concat!("lib", $name, ".so")
        }
    };
}

pub(crate) const CANDLE: &str = library!("magray_embed_candle_plugin");
pub(crate) const CPU: &str = library!("magray_embed_cpu_plugin");
pub(crate) const ONNX: &str = library!("magray_embed_onnx_plugin");
pub(crate) const FLAT: &str = library!("magray_index_flat_plugin");
pub(crate) const HNSW: &str = library!("magray_index_hnsw_plugin");
pub(crate) const NATIVE: &str = library!("magray_index_native_plugin");
pub(crate) const LRU: &str = library!("magray_cache_lru_plugin");
pub(crate) const S3FIFO: &str = library!("magray_cache_s3fifo_plugin");
pub(crate) const TINYLFU: &str = library!("magray_cache_tinylfu_plugin");
pub(crate) const CHAOS: &str = library!("magray_chaos_plugin");
pub(crate) const FAULTY: &str = library!("magray_faulty_plugin");
pub(crate) const MORTAL: &str = library!("magray_mortal_plugin");
pub(crate) const CRASH: &str = library!("magray_crash_plugin");
