//! `magray plugin new`: a plugin's repository, whole.
use super::super::{Failure, Outcome, terminal::Terminal};
use clap::{Args, ValueEnum};
use magray_plugin_api::manifest;
use std::{
    env::consts::{DLL_PREFIX, DLL_SUFFIX},
    fs,
    path::{Path, PathBuf},
};

const EXAMPLES: &str = "\
Examples:
  magray plugin new --kind index acme-exact
  magray plugin new --kind embedding acme-api --dir ~/src/acme-api --api-path ~/src/magray";

/// Write the workspace of a new plugin: code, tests, CI file, README and licence
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(in crate::cli) struct New {
    /// What the plugin offers
    #[arg(long, value_enum)]
    kind: Kind,
    /// Name of the crate, of the plugin, and of its component: lower-case letters, digits and hyphens
    name: String,
    /// Folder to make; without it one of the plugin's name
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// A checkout of magray to take the plugin API from, instead of the published one
    #[arg(long, value_name = "DIR")]
    api_path: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    /// Turns texts into vectors
    Embedding,
    /// Finds near vectors
    Index,
    /// Says what the cache of embeddings drops
    Cache,
}

/// What differs between the kinds.
struct Parts {
    code: &'static str,
    kind: &'static str,
    what: &'static str,
    flag: &'static str,
    section: &'static str,
}

impl Kind {
    const fn parts(self) -> Parts {
        match self {
            Self::Embedding => Parts {
                code: include_str!("template/embedding.rs.in"),
                kind: "Embedder",
                what: "An embedding backend",
                flag: "--backend",
                section: "ai.embedding",
            },
            Self::Index => Parts {
                code: include_str!("template/index.rs.in"),
                kind: "Index",
                what: "An index backend",
                flag: "--index",
                section: "memory.index",
            },
            Self::Cache => Parts {
                code: include_str!("template/cache.rs.in"),
                kind: "CachePolicy",
                what: "A cache policy",
                flag: "--cache",
                section: "memory.cache",
            },
        }
    }
}

impl New {
    pub(super) fn run(self, terminal: &Terminal) -> Result<Outcome, Failure> {
        let Self { kind, name, dir, api_path } = self;
        check_name(&name)?;
        let dir = dir.unwrap_or_else(|| PathBuf::from(&name));
        let taken =
            |dir: &Path| fs::read_dir(dir).is_ok_and(|mut files| files.next().is_some()) || dir.is_file();
        if taken(&dir) {
            return Err(Failure::Usage(format!(
                "{} is there already; name another with --dir",
                dir.display()
            )));
        }
        let Parts { code, kind, what, flag, section } = kind.parts();
        let crate_name = name.replace('-', "_");
        let replacements = [
            ("__NAME__", name.clone()),
            ("__TYPE__", type_name(&name)),
            ("__LIBRARY__", format!("{DLL_PREFIX}{crate_name}{DLL_SUFFIX}")),
            ("__CRATE__", crate_name),
            ("__KIND__", kind.to_owned()),
            ("__WHAT__", what.to_owned()),
            ("__FLAG__", flag.to_owned()),
            ("__SECTION__", section.to_owned()),
            ("__API__", dependency(api_path.as_deref(), "plugin-api", manifest::API)?),
            (
                "__TESTKIT__",
                dependency(api_path.as_deref(), "plugin-api/testkit", magray_plugin_testkit::VERSION)?,
            ),
        ];
        for (file, template) in [
            ("Cargo.toml", include_str!("template/Cargo.toml.in")),
            ("src/lib.rs", code),
            ("tests/conformance.rs", include_str!("template/conformance.rs.in")),
            ("README.md", include_str!("template/README.md.in")),
            ("LICENSE", include_str!("template/LICENSE.in")),
            (".gitignore", include_str!("template/gitignore.in")),
            (".github/workflows/ci.yml", include_str!("template/ci.yml.in")),
        ] {
            let text =
                replacements.iter().fold(template.to_owned(), |text, (from, to)| text.replace(from, to));
            let path = dir.join(file);
            let write = || {
                fs::create_dir_all(path.parent().unwrap_or(&dir))?;
                fs::write(&path, text)
            };
            write().map_err(Failure::io(format!("cannot write {}", path.display())))?;
        }
        if terminal.json {
            terminal.print_json(&serde_json::json!({ "name": name, "dir": dir }))?;
        } else {
            terminal.print(format_args!("{}", dir.display()))?;
        }
        terminal.hint(&format!("next: cd {} && cargo test && cargo build --release", dir.display()));
        Ok(Outcome::Done)
    }
}

fn check_name(name: &str) -> Result<(), Failure> {
    let fits = name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
        && !name.ends_with('-')
        && !name.contains("--")
        && name.len() <= 64;
    // What Rust or cargo would not take as the name of a crate.
    let taken = ["test", "core", "std", "alloc", "proc-macro", "self", "super", "crate"].contains(&name);
    if fits && !taken {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "'{name}' cannot be the name of a plugin: lower-case letters, digits and single hyphens, a letter first"
    )))
}

/// `acme-exact` as `AcmeExact`.
fn type_name(name: &str) -> String {
    let capital = |word: &str| word[..1].to_ascii_uppercase() + &word[1..];
    let name: String = name.split('-').map(capital).collect();
    // Names that the code uses itself.
    if ["Options", "Rows", "Host", "Error", "Result", "Hit", "Metric", "Role"].contains(&&*name) {
        name + "Plugin"
    } else {
        name
    }
}

fn dependency(checkout: Option<&Path>, folder: &str, version: &str) -> Result<String, Failure> {
    let Some(checkout) = checkout else { return Ok(format!("\"{version}\"")) };
    let path = checkout.join(folder);
    let path =
        path.canonicalize().map_err(Failure::io(format!("no checkout of magray: {}", path.display())))?;
    let path = toml::Value::from(&*path.to_string_lossy());
    Ok(format!("{{ path = {path}, version = \"{version}\" }}"))
}
