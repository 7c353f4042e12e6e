use super::{
    Failure, Outcome, args,
    args::Global,
    open, open_to_read,
    terminal::{DIM, GREEN, Terminal, WithProgress},
    view,
};
use crate::{
    engine::Engine,
    memory::promotion::{Policy, PromotionOptions, PromotionReport, Reason, Weighing},
    store::{CycleRecord, Layer, PromotionRecord, Score, Undone},
};
use clap::Args;
use serde::Serialize;

/// Cycles that --history shows.
const CYCLES: usize = 10;

/// Move records that are used to the next layer
///
/// Records that are used go from interact to insights, and from there to assets; those that are not expire.
/// Commands do that after their answer, so there is no need to: this does it now, shows why, and takes it
/// back. The settings are in [memory.promotion].
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray promote --dry-run --explain    what would move now, what would not, and why
  magray promote
  magray promote 01J9Z3                 one layer on, whatever its score
  magray promote --history --explain
  magray promote --undo                 take the last cycle back
  magray promote --undo 12")]
pub(super) struct Promote {
    /// Move these one layer on, whatever they score: ids, or their first characters (at least 4)
    #[arg(value_name = "ID", conflicts_with_all = ["layer", "limit"])]
    ids: Vec<String>,
    /// Show what would move, and move nothing
    #[arg(long)]
    dry_run: bool,
    /// Show the parts of each score, and what stays
    #[arg(long)]
    explain: bool,
    /// Records to move at most, the best first; with --history, cycles to show
    #[arg(long, short = 'n', value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Only records of this layer; then nothing expires
    #[arg(long, value_name = "LAYER", value_parser = args::layer())]
    layer: Option<Layer>,
    /// Take back what a cycle moved, by its number; by default the last one
    #[arg(
        long,
        value_name = "CYCLE",
        num_args = 0..=1,
        default_missing_value = "last",
        conflicts_with_all = ["ids", "dry_run", "explain", "limit", "layer", "history"]
    )]
    undo: Option<String>,
    /// Show what was moved, the last cycles first
    #[arg(long, conflicts_with_all = ["ids", "dry_run", "layer"])]
    history: bool,
}

#[derive(Serialize)]
struct ReportJson<'a> {
    cycle: Option<i64>,
    dry_run: bool,
    weighed: u64,
    waiting: u64,
    expired: u64,
    interrupted: bool,
    moves: Vec<MoveJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    stays: Option<&'a [Weighing]>,
}

#[derive(Serialize)]
struct MoveJson<'a> {
    id: &'a str,
    from: Layer,
    to: Layer,
    score: Score,
    /// None where it was moved by hand.
    threshold: Option<f64>,
    expires: Option<String>,
    former_expires: Option<String>,
    merged_into: Option<&'a str>,
    undone: Option<String>,
}

#[derive(Serialize)]
struct CycleJson<'a> {
    cycle: i64,
    at: String,
    moves: Vec<MoveJson<'a>>,
}

impl<'a> From<&'a PromotionRecord> for MoveJson<'a> {
    fn from(moved: &'a PromotionRecord) -> Self {
        Self {
            id: &moved.id,
            from: moved.from,
            to: moved.to,
            score: moved.score,
            threshold: moved.threshold,
            expires: moved.expires_ms.map(view::time),
            former_expires: moved.former_expires_ms.map(view::time),
            merged_into: moved.merged_into.as_deref(),
            undone: moved.undone_ms.map(view::time),
        }
    }
}

impl Promote {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        if let Some(cycle) = &self.undo {
            let cycle = match cycle.as_str() {
                "last" => None,
                number => Some(number.parse().map_err(|_| {
                    Failure::Usage(format!(
                        "'{number}' is no cycle; give a number of `magray promote --history`, or last"
                    ))
                })?),
            };
            return undo(&open(global, terminal)?, terminal, cycle);
        }
        if self.history {
            let Some(engine) = open_to_read(global, terminal)? else { return Ok(Outcome::NothingFound) };
            return self.print_history(&engine, terminal);
        }
        let engine = open(global, terminal)?;
        let options = PromotionOptions {
            dry_run: self.dry_run,
            limit: self.limit.map(|limit| limit as usize),
            layer: self.layer,
            ids: engine.promotable(&self.ids)?,
            explain: self.explain,
        };
        terminal.stop_gently();
        let report = {
            let progress = terminal.progress("records");
            engine.promote(&WithProgress(&progress), &options)?
        };
        if !self.dry_run {
            tend_indexes(&engine);
        }
        self.print_report(&engine, terminal, &report)?;
        if report.interrupted {
            return Err(Failure::Stopped("interrupted; what has moved is shown, and can be undone".into()));
        }
        Ok(Outcome::Done)
    }

    fn print_report(
        &self,
        engine: &Engine,
        terminal: &Terminal,
        report: &PromotionReport,
    ) -> Result<(), Failure> {
        if terminal.json {
            let PromotionReport { cycle, weighed, waiting, expired, interrupted, .. } = *report;
            return terminal.print_json(&ReportJson {
                cycle,
                dry_run: self.dry_run,
                weighed,
                waiting,
                expired,
                interrupted,
                moves: report.moves.iter().map(MoveJson::from).collect(),
                stays: self.explain.then_some(&report.stays),
            });
        }
        let policy = engine.promotion_policy();
        for moved in &report.moves {
            self.print_move(engine, terminal, Some(&policy), moved)?;
        }
        for stay in &report.stays {
            let why = match stay.reason {
                Reason::Low => "it scores too little",
                Reason::Young => "it came there too lately",
                Reason::Limit => "as many as may move at once do",
                Reason::Outdated => "what says the same in the next layer is outdated",
                Reason::Changed => "it was used or changed meanwhile",
            };
            terminal.print(format_args!("{} stays in {}: {why}", stay.id, stay.layer))?;
            print_text(engine, terminal, &stay.id)?;
            print_score(terminal, Some(&policy), &stay.score, Some(stay.threshold))?;
        }
        let would = if self.dry_run { "would promote" } else { "promoted" };
        let mut summary = format!("{would} {}", view::counted(report.moves.len() as u64, "record"));
        for (count, what) in [(report.waiting, "to be looked at again"), (report.expired, "expired")] {
            if count > 0 {
                summary.push_str(&format!(", {count} {what}"));
            }
        }
        terminal.print(format_args!("{summary}"))?;
        if let Some(cycle) = report.cycle {
            terminal.hint(&format!("`magray promote --undo {cycle}` takes that back"));
        }
        Ok(())
    }

    fn print_move(
        &self,
        engine: &Engine,
        terminal: &Terminal,
        policy: Option<&Policy>,
        moved: &PromotionRecord,
    ) -> Result<(), Failure> {
        let PromotionRecord { id, from, to, .. } = moved;
        let what = match (&moved.merged_into, moved.expires_ms) {
            (Some(into), _) => format!("merged into {into}"),
            (None, Some(ms)) => format!("kept until {}", view::day(ms)),
            (None, None) => "kept for good".to_owned(),
        };
        let undone = moved.undone_ms.map(|ms| format!(", undone {}", view::time(ms))).unwrap_or_default();
        terminal.print(format_args!("{GREEN}{from} > {to}{GREEN:#}  {id}  {what}{undone}"))?;
        print_text(engine, terminal, id)?;
        if self.explain {
            print_score(terminal, policy, &moved.score, moved.threshold)?;
        }
        Ok(())
    }

    fn print_history(&self, engine: &Engine, terminal: &Terminal) -> Result<Outcome, Failure> {
        let cycles = engine.promotion_history(self.limit.map_or(CYCLES, |limit| limit as usize))?;
        for CycleRecord { cycle, at_ms, moves } in &cycles {
            let at = view::time(*at_ms);
            if terminal.json {
                let moves = moves.iter().map(MoveJson::from).collect();
                terminal.print_json(&CycleJson { cycle: *cycle, at, moves })?;
                continue;
            }
            terminal.print(format_args!(
                "{DIM}cycle {cycle}, {at}: {}{DIM:#}",
                view::counted(moves.len() as u64, "record")
            ))?;
            for moved in moves {
                self.print_move(engine, terminal, None, moved)?;
            }
        }
        Ok(if cycles.is_empty() { Outcome::NothingFound } else { Outcome::Done })
    }
}

fn undo(engine: &Engine, terminal: &Terminal, cycle: Option<i64>) -> Result<Outcome, Failure> {
    let Some(undone) = engine.undo_promotion(cycle)? else {
        terminal.hint("there is nothing to undo; `magray promote --history` shows what was moved");
        return Ok(Outcome::NothingFound);
    };
    tend_indexes(engine);
    if terminal.json {
        terminal.print_json(&undone)?;
    } else {
        let Undone { cycle, undone, skipped } = &undone;
        for skipped in skipped {
            terminal.print(format_args!("{} is left as it is: {}", skipped.id, skipped.reason))?;
        }
        let count = view::counted(undone.len() as u64, "record");
        terminal.print(format_args!("took back {count} of cycle {cycle}"))?;
    }
    Ok(if undone.undone.is_empty() { Outcome::NothingFound } else { Outcome::Done })
}

/// The first line of a record, where it is still there.
fn print_text(engine: &Engine, terminal: &Terminal, id: &str) -> Result<(), Failure> {
    match engine.store().get(id)? {
        Some(record) => {
            terminal.print(format_args!("{}", view::snippet(&record.text, "", terminal.width(), 1)))
        }
        None => Ok(()),
    }
}

/// `0.830 = 0.30 x recency 0.97 + ...`; the parts alone where the weights of then are not known.
fn print_score(
    terminal: &Terminal,
    policy: Option<&Policy>,
    score: &Score,
    threshold: Option<f64>,
) -> Result<(), Failure> {
    let against = threshold.map(|threshold| format!(", at least {threshold:.2} wanted")).unwrap_or_default();
    let parts = match policy {
        Some(policy) => {
            let shares = policy.shares(score);
            let sum = shares.iter().map(|it| format!("{:.2} x {} {:.2}", it.weight, it.name, it.part));
            format!("= {}", sum.collect::<Vec<_>>().join(" + "))
        }
        None => {
            let Score { recency, frequency, importance, similarity, .. } = score;
            let similarity = similarity.map(|part| format!(", similarity {part:.2}")).unwrap_or_default();
            format!(
                "of recency {recency:.2}, frequency {frequency:.2}, importance {importance:.2}{similarity}"
            )
        }
    };
    terminal.print(format_args!("      {DIM}{:.3} {parts}{against}{DIM:#}", score.value))
}

/// Builds what moved into the indexes, where it is time for that. Searches find it in any case.
fn tend_indexes(engine: &Engine) {
    if let Err(error) = engine.tend_indexes(&super::UntilInterrupted) {
        tracing::warn!("the index could not be brought up to date: {error}");
    }
}
