//! What a packager installs beside the program.
use super::{Cli, Failure, Outcome, terminal::Terminal};
use clap::{Args, CommandFactory as _};
use std::{
    fs,
    io::{self, Write as _},
    path::PathBuf,
};

/// Print a completion script for a shell
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray completions bash > ~/.local/share/bash-completion/completions/magray
  magray completions fish > ~/.config/fish/completions/magray.fish")]
pub(super) struct Completions {
    /// The shell
    shell: clap_complete::Shell,
}

impl Completions {
    pub(super) fn run(self, _: &Terminal) -> Result<Outcome, Failure> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut Cli::command(), "magray", &mut script);
        write_out(&script)
    }
}

/// Print the manual page, or write the pages of all commands to a folder
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray man | man -l -
  magray man --out ~/.local/share/man/man1")]
pub(super) struct Man {
    /// Write magray.1, magray-search.1, ... to this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Man {
    pub(super) fn run(self, _: &Terminal) -> Result<Outcome, Failure> {
        let command = Cli::command();
        if let Some(dir) = &self.out {
            let cannot = || Failure::io(format!("cannot write manual pages to {}", dir.display()));
            fs::create_dir_all(dir).map_err(cannot())?;
            clap_mangen::generate_to(command, dir).map_err(cannot())?;
            return Ok(Outcome::Done);
        }
        let mut page = Vec::new();
        clap_mangen::Man::new(command)
            .render(&mut page)
            .map_err(Failure::io("cannot render the manual page"))?;
        write_out(&page)
    }
}

fn write_out(bytes: &[u8]) -> Result<Outcome, Failure> {
    io::stdout().lock().write_all(bytes).map_err(Failure::io("cannot write to standard output"))?;
    Ok(Outcome::Done)
}
