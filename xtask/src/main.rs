//! Campaigns against the built program, too long for a test: `cargo run -p xtask -- --help`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it is a program of its own")]

mod crash;
mod damage;
mod home;
mod random;

use clap::{Parser, Subcommand};
use std::{path::PathBuf, process::ExitCode};

/// Campaigns against the built program, too long for a test
#[derive(Debug, Parser)]
#[command(after_help = "\
Build the program first: cargo build --release --workspace

Examples:
  cargo run -p xtask -- crash --kills 500
  cargo run -p xtask -- damage --rounds 1000 --indexes native
  cargo run -p xtask -- crash --seed 7 --program target/debug/magray")]
struct Args {
    #[command(subcommand)]
    campaign: Campaign,
    /// The program; its plugins are looked for beside it
    #[arg(long, global = true, default_value = "target/release/magray")]
    program: PathBuf,
    /// Index backends, taken in turn
    #[arg(long, global = true, value_delimiter = ',', default_value = "flat,hnsw,native")]
    indexes: Vec<String>,
    /// Start of the random numbers: what is done is the same for the same seed, when it is hit is not
    #[arg(long, global = true, default_value_t = 1)]
    seed: u64,
}

#[derive(Debug, Subcommand)]
enum Campaign {
    /// kill -9 at random points of every writing command, then look for every acknowledged record
    Crash {
        /// Kills that must hit a running program
        #[arg(long, default_value_t = 500)]
        kills: u32,
    },
    /// Flip and cut index files at random, then compare the answers with those of before
    Damage {
        /// Damaged files in all
        #[arg(long, default_value_t = 1000)]
        rounds: u32,
    },
}

fn main() -> ExitCode {
    let args = Args::parse();
    let program = match args.program.canonicalize() {
        Ok(program) => program,
        Err(error) => {
            eprintln!("{}: {error}; build it first, or name it with --program", args.program.display());
            return ExitCode::from(2);
        }
    };
    let outcome = match args.campaign {
        Campaign::Crash { kills } => crash::run(&program, &args.indexes, args.seed, kills),
        Campaign::Damage { rounds } => damage::run(&program, &args.indexes, args.seed, rounds),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(found) => {
            eprintln!("FAILED: {found}");
            ExitCode::FAILURE
        }
    }
}
