use super::{
    Failure, Outcome,
    args::{Global, Select},
    open_to_read,
    terminal::{DIM, Terminal},
    view::{self, RecordJson},
};
use crate::{engine::now_ms, store::Filter};
use clap::Args;

/// List records, newest first
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray list --tag ops
  magray list --layer interact -n 100 --json | jq -r .text")]
pub(super) struct List {
    /// How many records
    #[arg(short = 'n', long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..))]
    limit: u32,
    /// Skip this many first
    #[arg(long, value_name = "N", default_value_t = 0)]
    offset: usize,
    #[command(flatten)]
    select: Select,
}

impl List {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
        let filter = Filter { not_expired_at_ms: Some(now_ms()), ..self.select.filter() };
        let records = engine.store().list(&filter, self.limit as usize, self.offset)?;
        for record in &records {
            if terminal.json {
                terminal.print_json(&RecordJson::from(record))?;
                continue;
            }
            let created = view::day(record.created_ms);
            // A record of no file is called by its id already.
            let id = match record.source {
                Some(_) => format!("  {DIM}{}{DIM:#}", record.ulid),
                None => String::new(),
            };
            terminal.print(format_args!("{DIM}{created}{DIM:#}  {}{id}", view::heading(record, None)))?;
            terminal.print(format_args!("{}", view::snippet(&record.text, "", terminal.width(), 1)))?;
        }
        let shown = (self.offset + records.len()) as u64;
        let total = engine.store().count(&filter)?;
        if shown < total {
            terminal.hint(&format!("{shown} of {total} records; the next ones: --offset {shown}"));
        }
        Ok(if records.is_empty() { Outcome::NothingFound } else { Outcome::Done })
    }
}
