use super::{ModelJson, folder_in_use, source};
use crate::{
    cli::{
        Failure, Outcome,
        terminal::{BOLD, DIM, GREEN, Terminal},
        view,
    },
    engine::Setup,
    models::{self, Models},
};
use clap::Args;
use indicatif::DecimalBytes;
use serde::Serialize;

/// List the models that are here, or those that `pull` knows by name
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray model list
  magray model list --available")]
pub(in crate::cli) struct List {
    /// Those that `magray model pull` knows by a short name
    #[arg(long)]
    available: bool,
}

impl List {
    pub(super) fn run(self, terminal: &Terminal, setup: &Setup, models: &Models) -> Result<Outcome, Failure> {
        if self.available { list_available(terminal, models) } else { list(terminal, setup, models) }
    }
}

fn list(terminal: &Terminal, setup: &Setup, models: &Models) -> Result<Outcome, Failure> {
    let in_use = folder_in_use(setup, models);
    let here = models.list()?;
    for model in &here {
        let json = ModelJson::new(model, in_use.as_ref());
        if terminal.json {
            terminal.print_json(&json)?;
            continue;
        }
        let mut facts: Vec<String> = json.architecture.iter().cloned().collect();
        facts.extend(json.dim.map(|dim| format!("{dim} wide")));
        facts.extend(json.max_tokens.map(|most| format!("{most} tokens")));
        facts.push(DecimalBytes(model.bytes).to_string());
        let used = if json.in_use { format!("  {GREEN}in use{GREEN:#}") } else { String::new() };
        terminal.print(format_args!("{BOLD}{}{BOLD:#}  {}{used}", model.name, facts.join(", ")))?;
        if let Some(refusal) = json.refusal {
            terminal.print(format_args!("    not usable: {}", view::whole(refusal)))?;
        }
        terminal.print(format_args!("    {DIM}{}{DIM:#}", source(model.manifest.as_ref())))?;
    }
    for (name, bytes) in models.unfinished() {
        terminal.hint(&format!(
            "{} of {name} are here, not whole; `magray model pull` of it goes on, `magray model remove {name}` \
             makes room",
            DecimalBytes(bytes)
        ));
    }
    if here.is_empty() {
        terminal.hint(&format!(
            "there is no model in {} yet; `magray model list --available` shows what can be had",
            models.dir().display()
        ));
        return Ok(Outcome::NothingFound);
    }
    if let Some(in_use) = in_use.filter(|in_use| here.iter().all(|model| model.dir != *in_use)) {
        let name = in_use.file_name().unwrap_or_default().to_string_lossy();
        terminal.hint(&format!("in use is '{name}', which is not among them"));
    }
    Ok(Outcome::Done)
}

#[derive(Serialize)]
struct KnownJson {
    name: &'static str,
    alias: Option<&'static str>,
    repo: &'static str,
    licence: &'static str,
    languages: &'static str,
    dim: usize,
    megabytes: u64,
    here: bool,
}

fn list_available(terminal: &Terminal, models: &Models) -> Result<Outcome, Failure> {
    for known in models::catalogue() {
        let there = |name: &str| models.dir().join(name).is_dir();
        let here = there(known.name) || known.alias.is_some_and(there);
        if terminal.json {
            let &models::Known { name, alias, repo, licence, languages, dim, megabytes, .. } = known;
            terminal.print_json(&KnownJson {
                name,
                alias,
                repo,
                licence,
                languages,
                dim,
                megabytes,
                here,
            })?;
            continue;
        }
        let alias = known.alias.map(|alias| format!(" ({alias})")).unwrap_or_default();
        let here = if here { format!("  {GREEN}here{GREEN:#}") } else { String::new() };
        let line = format!(
            "{:<40} {:<12} {:>4} wide {:>5} MB  {:<10}{here}",
            format!("{}{alias}", known.name),
            known.languages,
            known.dim,
            known.megabytes,
            known.licence,
        );
        terminal.print(format_args!("{}", line.trim_end()))?;
    }
    terminal.hint("any other model of the hub is pulled by OWNER/NAME");
    Ok(Outcome::Done)
}
