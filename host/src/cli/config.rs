use super::{
    Failure, Outcome,
    args::Global,
    memory, resolve,
    terminal::{DIM, GREEN, Terminal},
};
use crate::{
    config::{Config, DEFAULT_TOML, Resolved, render_resolved, user_file},
    engine::default_data_dir,
};
use clap::Subcommand;
use std::{
    env,
    fs::{self, File},
    io::{self, Write as _},
    path::PathBuf,
};

/// See, check and begin a configuration
#[derive(Debug, Subcommand)]
#[command(name = "config")]
pub(super) enum ConfigCommand {
    /// Print every key with its default and what it is for
    Show {
        /// Print the values in force instead, and where each comes from
        #[arg(long)]
        resolved: bool,
    },
    /// Check a config file, or everything that is in force, and that the memory is enough for it
    #[command(after_help = "\
Examples:
  magray config check
  magray config check config/production-server.toml
  magray config check config/production-server.toml --memory 128GiB")]
    Check {
        /// The file; else all layers as a command would read them
        file: Option<PathBuf>,
        /// Check it for a machine with so much memory, not for this one
        #[arg(long, value_name = "BYTES", value_parser = memory::bytes)]
        memory: Option<u64>,
    },
    /// Write a commented config file with the defaults
    Init {
        /// Where to write it [default: magray/config.toml in your config folder, where it is found]
        file: Option<PathBuf>,
        /// Replace a file that is there
        #[arg(long)]
        force: bool,
    },
}

impl ConfigCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        match self {
            Self::Show { resolved: false } => terminal.print(format_args!("{}", DEFAULT_TOML.trim_end()))?,
            Self::Show { resolved: true } => show_resolved(terminal, &resolve(global, terminal)?)?,
            Self::Check { file, memory } => {
                let checked = match &file {
                    Some(file) => Config::check(file)?,
                    None => resolve(global, terminal)?,
                };
                let models =
                    global.data_dir.clone().or_else(default_data_dir).unwrap_or_default().join("models");
                let fit = memory::fit(&checked.config, &models, memory);
                let is_set = memory::is_set(&checked);
                let what = checked
                    .file
                    .map_or_else(|| "defaults and environment".to_owned(), |file| file.display().to_string());
                if let Some(fit) = fit.as_ref().filter(|fit| is_set && !fit.fits()) {
                    return Err(Failure::Usage(format!("{what}: [memory.resource_manager] {fit}")));
                }
                if terminal.json {
                    terminal.print_json(&serde_json::json!({ "ok": true, "checked": what, "fit": fit }))?;
                } else {
                    terminal.print(format_args!("{GREEN}ok{GREEN:#} {what}"))?;
                    match &fit {
                        Some(fit) if fit.fits() => terminal.print(format_args!("{DIM}{fit}{DIM:#}"))?,
                        // The default is as many as fit.
                        Some(fit) => terminal
                            .hint(&format!("at most {} vectors are held in memory: {fit}", fit.most())),
                        None => terminal.hint(&format!(
                            "how much memory it needs is not known before the model '{}' is here",
                            checked.config.ai.embedding.model_name
                        )),
                    }
                }
            }
            Self::Init { file, force } => init(terminal, file, force)?,
        }
        Ok(Outcome::Done)
    }
}

fn show_resolved(terminal: &Terminal, resolved: &Resolved) -> Result<(), Failure> {
    if terminal.json {
        return terminal.print_json(&resolved.config);
    }
    terminal.print(format_args!("{}", render_resolved(resolved).trim_end()))
}

fn init(terminal: &Terminal, file: Option<PathBuf>, force: bool) -> Result<(), Failure> {
    let var = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let file = file.or_else(|| user_file(var));
    let file =
        file.ok_or_else(|| Failure::Usage("there is no config folder; say where to write it".into()))?;
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder).map_err(Failure::io(format!("cannot make {}", folder.display())))?;
    }
    let mut options = File::options();
    options.write(true).truncate(true).create(force).create_new(!force);
    let written = options.open(&file).and_then(|mut file| file.write_all(DEFAULT_TOML.as_bytes()));
    match written {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            Err(Failure::Usage(format!("{} is there already; --force replaces it", file.display())))
        }
        written => {
            written.map_err(Failure::io(format!("cannot write {}", file.display())))?;
            if terminal.json {
                return terminal.print_json(&serde_json::json!({ "wrote": file }));
            }
            terminal.print(format_args!("{GREEN}wrote{GREEN:#} {}", file.display()))
        }
    }
}
