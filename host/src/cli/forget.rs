use super::{
    Failure, Outcome,
    args::{Global, Select},
    open_to_read,
    terminal::Terminal,
    view,
};
use crate::{engine::Engine, store::RecordId};
use clap::Args;
use serde::Serialize;

/// Delete records
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray forget 01J9Z3
  magray forget --project old --yes")]
pub(super) struct Forget {
    /// Ids, or their first characters (at least 4)
    #[arg(value_name = "ID")]
    ids: Vec<String>,
    #[command(flatten)]
    select: Select,
    /// Delete all that the flags select without asking
    #[arg(long, short)]
    yes: bool,
}

#[derive(Serialize)]
struct ForgottenJson {
    forgotten: usize,
}

impl Forget {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        if self.ids.is_empty() != self.select.selects() {
            return Err(Failure::Usage("give either ids, or flags that select what to forget".into()));
        }
        let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
        let forgotten = if self.ids.is_empty() {
            self.matching(&engine, terminal)?
        } else {
            self.named(&engine, terminal)?
        };
        super::upkeep(&engine);
        if terminal.json {
            terminal.print_json(&ForgottenJson { forgotten })?;
        } else {
            terminal.print(format_args!("forgot {}", view::counted(forgotten as u64, "record")))?;
        }
        Ok(if forgotten == 0 { Outcome::NothingFound } else { Outcome::Done })
    }

    fn named(&self, engine: &Engine, terminal: &Terminal) -> Result<usize, Failure> {
        let mut ids: Vec<RecordId> = Vec::new();
        for id in &self.ids {
            match engine.store().get(id)? {
                Some(record) => ids.push(record.id),
                None => terminal.hint(&format!("there is no record {id}")),
            }
        }
        Ok(engine.store().forget(&ids)?)
    }

    fn matching(&self, engine: &Engine, terminal: &Terminal) -> Result<usize, Failure> {
        let filter = self.select.filter();
        let count = engine.store().count(&filter)?;
        if count == 0 {
            return Ok(0);
        }
        if !self.yes && !terminal.confirm(&format!("forget {}", view::counted(count, "record")))? {
            return Ok(0);
        }
        Ok(engine.store().forget_matching(&filter)?)
    }
}
