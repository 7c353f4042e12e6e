use super::ReportJson;
use crate::{
    bench::{GovernorFigures, GovernorPoint, GovernorRequest, Machine, measure_governor},
    cli::{
        Failure, Outcome,
        args::Global,
        setup,
        terminal::{BOLD, Terminal, WithProgress},
        view,
    },
};
use clap::Args;
use indicatif::HumanBytes;
use std::{fmt::Write as _, fs, path::PathBuf};

/// See what caches and indexes are granted while memory becomes short, and that nothing is lost
///
/// Stores texts in a data folder of its own, so that caches and indexes grow; then takes memory beside them until the
/// limit of this process is nearly reached; then frees it. It ends with failure if a record is not found.
#[derive(Debug, Args)]
#[command(after_help = "\
The limit is that of a control group, or of `ulimit -d`, and must be 4 GiB or less. How much of the machine others
use does not count. The thresholds are those of [memory.resource_manager] in the config.

Examples:
  systemd-run --user --scope -p MemoryMax=512M magray bench governor
  systemd-run --user --scope -p MemoryMax=512M magray bench governor --csv trace.csv --json
  (ulimit -d 524288; magray bench governor)")]
pub(in crate::cli) struct GovernorCommand {
    /// Looks of the governor in each of the three phases
    #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(2..=10_000))]
    looks: u32,
    /// Texts that are stored between two looks
    #[arg(long, value_name = "N", default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    texts: u32,
    /// Write what was seen at each look to this file
    #[arg(long, value_name = "FILE")]
    csv: Option<PathBuf>,
}

impl GovernorCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let request = GovernorRequest { looks: self.looks, texts: self.texts };
        let machine = Machine::here();
        let figures = {
            let progress = terminal.progress("looks");
            measure_governor(&WithProgress(&progress), setup, request)?
        };
        if let Some(file) = &self.csv {
            fs::write(file, csv(&figures.points))
                .map_err(Failure::io(format!("cannot write {}", file.display())))?;
        }
        if terminal.json {
            terminal.print_json(&ReportJson::new(&machine, &figures))?;
        } else {
            print(terminal, &figures)?;
        }
        match figures.lost {
            0 => Ok(Outcome::Done),
            lost => Err(Failure::Partly(format!(
                "{lost} of {} records that were looked for were not found",
                figures.checked
            ))),
        }
    }
}

fn csv(points: &[GovernorPoint]) -> String {
    let mut lines =
        "seconds,used_percent,stalled_percent,ballast_bytes,anonymous_bytes,granted_bytes,cached_bytes,\
                     cache_reason,granted_vectors,held_vectors,vectors_reason,stored\n"
            .to_owned();
    for point in points {
        let GovernorPoint { seconds, used_percent, stalled_percent, ballast_bytes, anonymous_bytes, .. } =
            point;
        let GovernorPoint { granted_bytes, cached_bytes, granted_vectors, held_vectors, stored, .. } = point;
        let [cache, vectors] = [point.cache_reason, point.vectors_reason].map(<&str>::from);
        // Writing to a String does not fail.
        let _ = writeln!(
            lines,
            "{seconds},{used_percent:.2},{stalled_percent:.2},{ballast_bytes},{anonymous_bytes},{granted_bytes},\
             {cached_bytes},{cache},{granted_vectors},{held_vectors},{vectors},{stored}"
        );
    }
    lines
}

fn print(terminal: &Terminal, figures: &GovernorFigures) -> Result<(), Failure> {
    let GovernorFigures { limit, limit_bytes, points, stored, checked, lost, cleaned_bytes } = figures;
    terminal.print(format_args!("{limit}, {}", HumanBytes(*limit_bytes)))?;
    terminal.print(format_args!(
        "{BOLD}{:>7} {:>6} {:>12} {:>12} {:<11} {:>9} {:>9} {:<11} {:>8}{BOLD:#}",
        "seconds", "used", "cache grant", "cached", "why", "vectors", "held", "why", "stored"
    ))?;
    let (last, mut before) = (points.len().saturating_sub(1), None);
    for (at, point) in points.iter().enumerate() {
        let grants = (point.granted_bytes, point.granted_vectors);
        // The first and the last, and each that changed something.
        if at > 0 && at < last && before == Some(grants) {
            continue;
        }
        before = Some(grants);
        terminal.print(format_args!(
            "{:>7} {:>5.1}% {:>12} {:>12} {:<11} {:>9} {:>9} {:<11} {:>8}",
            point.seconds,
            point.used_percent,
            HumanBytes(point.granted_bytes).to_string(),
            HumanBytes(point.cached_bytes).to_string(),
            <&str>::from(point.cache_reason),
            point.granted_vectors,
            point.held_vectors,
            <&str>::from(point.vectors_reason),
            point.stored
        ))?;
    }
    terminal.print(format_args!(
        "{} stored, {checked} times one was looked for, {lost} not found; a cleanup then gave back {}",
        view::counted(*stored, "record"),
        HumanBytes(*cleaned_bytes)
    ))
}
