//! `magray bench`.
mod embed;
mod quality;

use super::{Failure, Outcome, args::Global, setup, terminal::Terminal};
use crate::engine::Setup;
use clap::{Args, Subcommand};

/// Measure embedding backends on data of your own or of others
#[derive(Debug, Subcommand)]
pub(super) enum Bench {
    Quality(quality::QualityCommand),
    Embed(embed::EmbedCommand),
    #[command(hide = true)]
    Worker(embed::WorkerCommand),
}

impl Bench {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        terminal.stop_gently();
        match self {
            Self::Quality(quality) => quality.run(global, terminal),
            Self::Embed(embed) => embed.run(global, terminal),
            Self::Worker(worker) => worker.run(global, terminal),
        }
    }
}

/// What is measured.
#[derive(Debug, Args)]
struct Subject {
    /// Embedding profiles of the config, or backends of plugins, separated by commas [default: the one in force]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    backends: Vec<String>,
}

impl Subject {
    /// The setup, and the names of the backends.
    fn resolve(self, global: &Global, terminal: &Terminal) -> Result<(Setup, Vec<String>), Failure> {
        let setup = setup(global, terminal)?;
        let in_force = || vec![setup.config.ai.embedding.profile.clone()];
        let backends = if self.backends.is_empty() { in_force() } else { self.backends };
        Ok((setup, backends))
    }
}
