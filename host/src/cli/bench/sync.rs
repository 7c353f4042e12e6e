use super::{ReportJson, print_machine};
use crate::{
    bench::{Machine, SyncCommit, SyncFigures, SyncStored, measure_sync, sync_steps},
    cli::{
        Failure, Outcome,
        args::Global,
        setup,
        terminal::{BOLD, DIM, Terminal, UntilInterrupted},
    },
};
use clap::Args;

/// Measure what it takes until a commit can be found, by number of changes and of vectors stored
#[derive(Debug, Args)]
#[command(after_help = "\
Stores vectors 384 wide in a folder that is removed, seals them in the index in force, and hands commits to
it. Times are CPU time of the process, medians of the runs. A search is one for the ten nearest.

Examples:
  magray bench sync
  magray --index native bench sync --rows 10000,100000,1000000 --json")]
pub(in crate::cli) struct SyncCommand {
    /// Numbers of vectors stored, separated by commas
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',', default_value = "10000,100000",
        value_parser = clap::value_parser!(u64).range(1..=100_000_000))]
    rows: Vec<u64>,
    /// How often each is measured
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u16).range(1..=1000))]
    runs: u16,
}

impl SyncCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let machine = Machine::here();
        let measured = {
            let progress = terminal.progress("measurements");
            progress.0.set_length(sync_steps(&self.rows) as u64);
            let done = &mut || progress.0.inc(1);
            measure_sync(&UntilInterrupted, &setup, &self.rows, usize::from(self.runs), done)?
        };
        if terminal.json {
            terminal.print_json(&ReportJson::new(&machine, &measured))?;
            return Ok(Outcome::Done);
        }
        print_machine(terminal, &machine)?;
        print(terminal, &measured)?;
        Ok(Outcome::Done)
    }
}

fn print(terminal: &Terminal, measured: &SyncFigures) -> Result<(), Failure> {
    terminal.print(format_args!(
        "index {}, vectors {} wide; CPU time in microseconds",
        measured.index, measured.dim
    ))?;
    let line = |what: &str, us: f64| terminal.print(format_args!("  {what:<52} {us:>10.0}"));
    for SyncStored { rows, commits, search_us, open_us, add_us, add_open_us, read_back_us } in
        &measured.stored
    {
        terminal.print(format_args!("\n{BOLD}{rows} stored{BOLD:#}"))?;
        for &SyncCommit { changes, mixed, receive_us, search_us } in commits {
            let of = if mixed { "a third each new, changed and removed" } else { "new" };
            line(&format!("{changes} {of}"), receive_us)?;
            terminal
                .print(format_args!("{DIM}    a search beside them{:31} {search_us:>10.0}{DIM:#}", ""))?;
        }
        line("a search of what is sealed", *search_us)?;
        line("opening all of it, and a search", *open_us)?;
        line("a transaction of 1000 with no index open", *add_us)?;
        line("the same with an index open", *add_open_us)?;
        line("1000 changes read back from the log", *read_back_us)?;
    }
    Ok(())
}
