use super::{
    Failure, Outcome,
    args::Global,
    open_to_read,
    terminal::Terminal,
    view::{self, RecordJson},
};
use clap::Args;

/// Show records whole
#[derive(Debug, Args)]
pub(super) struct Get {
    /// Ids, or their first characters (at least 4)
    #[arg(required = true, value_name = "ID")]
    ids: Vec<String>,
}

impl Get {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
        let mut outcome = Outcome::Done;
        for id in &self.ids {
            let Some(record) = engine.store().get(id)? else {
                terminal.hint(&format!("there is no record {id}"));
                outcome = Outcome::NothingFound;
                continue;
            };
            if terminal.json {
                terminal.print_json(&RecordJson::from(&record))?;
            } else {
                terminal.print(format_args!(
                    "{}\n{}\n",
                    view::heading(&record, None),
                    view::whole(&record.text)
                ))?;
            }
        }
        Ok(outcome)
    }
}
