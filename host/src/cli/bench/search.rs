use super::{
    ReportJson,
    matrix::own_records,
    print_machine,
    workload::{heading, line},
};
use crate::{
    bench::{BenchTexts, Machine, Searches, measure_searches},
    cli::{
        Failure, Outcome,
        args::{Global, Select},
        setup,
        terminal::{Terminal, UntilInterrupted},
        view,
    },
    engine::Engine,
};
use clap::Args;
use std::path::PathBuf;

/// Measure whole searches of what is stored, from the words to the answer
#[derive(Debug, Args)]
#[command(after_help = "\
Each query is asked once before its embedding is in the cache, and once after. Without --queries they are
made of the records: titles, and sentences of texts. Nothing is written.

Examples:
  magray bench search
  magray bench search --queries questions.txt --layer assets --json")]
pub(in crate::cli) struct SearchCommand {
    /// File with one query a line
    #[arg(long, value_name = "FILE")]
    queries: Option<PathBuf>,
    /// Queries at most
    #[arg(long, value_name = "N", default_value_t = 200, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// Results of a query
    #[arg(long, short, value_name = "N", default_value_t = 10, value_parser = clap::value_parser!(u16).range(1..=1000))]
    k: u16,
    #[command(flatten)]
    select: Select,
}

impl SearchCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let mut setup = setup(global, terminal)?;
        let count = Some(self.count as usize);
        let queries = match &self.queries {
            Some(file) => BenchTexts::from_lines(file, count)?.into_texts(),
            None => {
                let set = own_records(global, terminal, &setup, count)?;
                set.questions().map(str::to_owned).collect()
            }
        };
        // Else the first search of a query might find its embedding of another run.
        setup.config.memory.cache.disk = false;
        let engine = Engine::open_read_only(setup)?;
        let machine = Machine::here();
        let searches = {
            let progress = terminal.progress("searches");
            progress.0.set_length(queries.len() as u64 * 2);
            let done = &mut || progress.0.inc(1);
            measure_searches(
                &UntilInterrupted,
                &engine,
                &queries,
                usize::from(self.k),
                &self.select.filter(),
                done,
            )?
        };
        if terminal.json {
            terminal.print_json(&ReportJson::new(&machine, &searches))?;
            return Ok(Outcome::Done);
        }
        print_machine(terminal, &machine)?;
        let Searches { records, backend, model, index, first_ms, embedded, cached, .. } = &searches;
        terminal.print(format_args!(
            "{}; model {model} by {backend}, index {index}; the first search, which loads them, took {first_ms:.1} ms",
            view::counted(*records, "record")
        ))?;
        heading(terminal)?;
        line(terminal, "embedded", embedded, &embedded.latency)?;
        line(terminal, "embedding cached", cached, &cached.latency)?;
        Ok(Outcome::Done)
    }
}
