use super::{
    Failure, Outcome,
    args::Global,
    open,
    terminal::{BOLD, GREEN, Terminal, UntilInterrupted},
    view,
};
use crate::engine::{Engine, ModelChoice, Place, ReembedPlan, ReembedReport, SpaceReport};
use clap::Args;
use indicatif::HumanBytes;
use serde::Serialize;
use std::time::{Duration, Instant};

/// Change the embedding model of everything that is stored
///
/// Embeds every record for the model that --model names, and with the backend that --backend names, while
/// the old model goes on serving; then switches at once, for every process. Ctrl-C is safe: the same
/// command goes on from there. The old vectors stay until --drop-old, so that --rollback is quick. Without
/// --model it embeds what the model in force lacks.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray reembed --model multilingual-e5-small --dry-run
  magray reembed --model multilingual-e5-small
  magray --backend onnx reembed --model all-MiniLM-L6-v2
  magray reembed --rollback
  magray reembed --drop-old")]
pub(super) struct Reembed {
    /// Show what it would do, how long it would take, and what it would weigh
    #[arg(long)]
    dry_run: bool,
    /// Go back to the model before the last switch
    #[arg(long, conflicts_with_all = ["dry_run", "status", "drop_old"])]
    rollback: bool,
    /// Show what is embedded for which model
    #[arg(long, conflicts_with_all = ["dry_run", "drop_old"])]
    status: bool,
    /// Drop the vectors and indexes of all other models than the one in force
    #[arg(long, visible_alias = "prune", conflicts_with = "dry_run")]
    drop_old: bool,
}

#[derive(Serialize)]
struct SpaceJson<'a> {
    model: &'a str,
    space: String,
    dim: usize,
    state: &'static str,
    embedded: u64,
    missing: u64,
    vector_bytes: u64,
    index_bytes: u64,
}

impl<'a> From<&'a SpaceReport> for SpaceJson<'a> {
    fn from(report: &'a SpaceReport) -> Self {
        Self {
            model: &report.model,
            space: report.digest[..8].iter().map(|byte| format!("{byte:02x}")).collect(),
            dim: report.dim,
            state: state(report),
            embedded: report.embedded,
            missing: report.missing,
            vector_bytes: report.vector_bytes,
            index_bytes: report.index_bytes,
        }
    }
}

#[derive(Serialize)]
struct PlanJson<'a> {
    from: Option<SpaceJson<'a>>,
    to: SpaceJson<'a>,
    seconds: Option<f64>,
    more_bytes: u64,
    free_bytes: u64,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    embedded: u64,
    switched: bool,
    took_ms: f64,
    from: Option<SpaceJson<'a>>,
    to: SpaceJson<'a>,
}

impl Reembed {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        // The flags name what to change to; until then the database runs as it would without them.
        let mut global = global.clone();
        let (profile, model) = global.take_model();
        let engine = open(&global, terminal)?;
        terminal.stop_gently();
        if self.status {
            return status(&engine, terminal);
        }
        if self.drop_old {
            return drop_old(&engine, terminal);
        }
        let choice = if self.rollback {
            engine.previous_model()?
        } else {
            let now = engine.model()?;
            ModelChoice { profile: profile.unwrap_or(now.profile), model: model.unwrap_or(now.model) }
        };
        let start = Instant::now();
        let reembed = engine.reembed(&choice)?;
        if self.dry_run {
            return show_plan(terminal, &reembed.plan(&UntilInterrupted)?);
        }
        let report = {
            let progress = terminal.progress("records");
            reembed.run(&UntilInterrupted, &mut |done, total| {
                progress.0.set_length(total);
                progress.0.set_position(done);
            })?
        };
        show_report(terminal, &choice, &report, start.elapsed())
    }
}

fn status(engine: &Engine, terminal: &Terminal) -> Result<Outcome, Failure> {
    let spaces = engine.spaces()?;
    if terminal.json {
        let spaces: Vec<SpaceJson<'_>> = spaces.iter().map(SpaceJson::from).collect();
        terminal.print_json(&serde_json::json!({ "spaces": spaces }))?;
        return Ok(Outcome::Done);
    }
    terminal.print(format_args!(
        "{BOLD}{:<28} {:>5}  {:<10} {:>9} {:>9} {:>11} {:>11}{BOLD:#}",
        "model", "wide", "state", "embedded", "missing", "vectors", "index"
    ))?;
    for space in &spaces {
        terminal.print(format_args!(
            "{:<28} {:>5}  {:<10} {:>9} {:>9} {:>11} {:>11}",
            space.model,
            space.dim,
            state(space),
            space.embedded,
            space.missing,
            HumanBytes(space.vector_bytes).to_string(),
            HumanBytes(space.index_bytes).to_string()
        ))?;
    }
    Ok(Outcome::Done)
}

fn state(space: &SpaceReport) -> &'static str {
    match space.place {
        Place::Active => "in force",
        Place::Previous => "previous",
        Place::Other => "not used",
    }
}

fn drop_old(engine: &Engine, terminal: &Terminal) -> Result<Outcome, Failure> {
    let dropped = engine.drop_other_spaces(&UntilInterrupted)?;
    if terminal.json {
        let dropped: Vec<SpaceJson<'_>> = dropped.iter().map(SpaceJson::from).collect();
        terminal.print_json(&serde_json::json!({ "dropped": dropped }))?;
        return Ok(Outcome::Done);
    }
    for space in &dropped {
        terminal.print(format_args!(
            "{GREEN}dropped{GREEN:#} {}: index {}, and {} in the database, which new records will fill",
            space.model,
            HumanBytes(space.index_bytes),
            HumanBytes(space.vector_bytes)
        ))?;
    }
    if dropped.is_empty() {
        terminal.hint("there is no other model's to drop");
    }
    Ok(Outcome::Done)
}

fn show_plan(terminal: &Terminal, plan: &ReembedPlan) -> Result<Outcome, Failure> {
    if terminal.json {
        terminal.print_json(&PlanJson {
            from: plan.from.as_ref().map(SpaceJson::from),
            to: (&plan.to).into(),
            seconds: plan.estimate.map(|took| took.as_secs_f64()),
            more_bytes: plan.more_bytes,
            free_bytes: plan.free_bytes,
        })?;
        return Ok(Outcome::Done);
    }
    if let Some(from) = &plan.from {
        terminal.print(format_args!("from  {}", holds(from)))?;
    }
    terminal.print(format_args!("to    {}", holds(&plan.to)))?;
    let time = plan.estimate.map_or_else(String::new, |took| format!(", about {}", roughly(took)));
    terminal.print(format_args!(
        "{} to embed{time}, about {} more on the disk ({} free)",
        view::counted(plan.to.missing, "record"),
        HumanBytes(plan.more_bytes),
        HumanBytes(plan.free_bytes)
    ))?;
    Ok(Outcome::Done)
}

fn holds(space: &SpaceReport) -> String {
    format!(
        "{}, {} wide: {} of {} embedded, vectors {}, index {}",
        space.model,
        space.dim,
        space.embedded,
        view::counted(space.embedded + space.missing, "record"),
        HumanBytes(space.vector_bytes),
        HumanBytes(space.index_bytes)
    )
}

fn show_report(
    terminal: &Terminal,
    choice: &ModelChoice,
    report: &ReembedReport,
    took: Duration,
) -> Result<Outcome, Failure> {
    if terminal.json {
        terminal.print_json(&ReportJson {
            embedded: report.embedded,
            switched: report.switched,
            took_ms: took.as_secs_f64() * 1000.0,
            from: report.from.as_ref().map(SpaceJson::from),
            to: (&report.to).into(),
        })?;
        return Ok(Outcome::Done);
    }
    let did = if report.switched { "switched to" } else { "embedded for" };
    terminal.print(format_args!(
        "{GREEN}{did}{GREEN:#} {} by {}: {} in {:.1} s",
        report.to.model,
        choice.profile,
        view::counted(report.embedded, "new vector"),
        took.as_secs_f64()
    ))?;
    terminal.print(format_args!("now     {}", holds(&report.to)))?;
    if let Some(from) = &report.from {
        terminal.print(format_args!("before  {}", holds(from)))?;
        terminal.hint("`magray reembed --rollback` goes back; `magray reembed --drop-old` frees what the old model left");
    }
    Ok(Outcome::Done)
}

/// A time as people say it.
fn roughly(time: Duration) -> String {
    match time.as_secs() {
        0 => "a second".to_owned(),
        seconds => humantime::format_duration(Duration::from_secs(seconds)).to_string(),
    }
}
