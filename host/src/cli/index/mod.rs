mod care;

use super::{
    Failure, Outcome, args,
    args::Global,
    open,
    terminal::{GREEN, Terminal, UntilInterrupted},
    view,
};
use crate::{
    engine::{FileReport, IndexReport, IndexRequest},
    store::Layer,
};
use clap::Args;
use serde::Serialize;
use std::{path::PathBuf, time::Instant};

/// Remember files and folders, and keep up with their changes; or look after the index
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
#[command(override_usage = "magray index [OPTIONS] <PATH>...\n       magray index <COMMAND>")]
#[command(after_help = "\
Text, Markdown and code are split into passages; .gitignore, .ignore and .magrayignore are honoured;
binary files are skipped. Run it again at any time: unchanged files are left alone, and records of
deleted files go. Ctrl-C is safe: the next run goes on from there.

A first path that is named like one of the commands is given as ./verify, or after --.

Examples:
  magray index ~/notes
  magray index src docs README.md --project magray --tag code
  magray index verify
  magray index -- verify")]
pub(super) struct Index {
    #[command(subcommand)]
    care: Option<care::Care>,
    /// Files and folders
    #[arg(required = true, value_name = "PATH")]
    paths: Vec<PathBuf>,
    /// Layer of the records [default: assets]
    #[arg(long, value_name = "LAYER", value_parser = args::layer())]
    layer: Option<Layer>,
    /// Project of the records
    #[arg(long, value_name = "NAME")]
    project: Option<String>,
    /// A label for the records; may be given several times
    #[arg(long, value_name = "TAG")]
    tag: Vec<String>,
    /// Take hidden files too
    #[arg(long)]
    hidden: bool,
}

#[derive(Serialize)]
struct ReportJson {
    files_indexed: u64,
    files_unchanged: u64,
    files_removed: u64,
    files_skipped: usize,
    chunks_added: u64,
    chunks_kept: u64,
    chunks_removed: u64,
    embedded: u64,
    took_ms: f64,
    skipped: Vec<SkippedJson>,
}

#[derive(Serialize)]
struct SkippedJson {
    path: Option<PathBuf>,
    reason: String,
}

impl Index {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        if let Some(care) = self.care {
            return care.run(global, terminal);
        }
        let start = Instant::now();
        let engine = open(global, terminal)?;
        terminal.stop_gently();
        let request = IndexRequest {
            paths: self.paths,
            layer: self.layer,
            project: self.project,
            tags: self.tag,
            hidden: self.hidden,
        };
        let report = {
            let progress = terminal.progress("files");
            engine.index_files(&UntilInterrupted, &request, &mut |now| {
                progress.0.set_length(now.total as u64);
                progress.0.set_position(now.files as u64);
                progress.0.set_message(format!("{} passages", now.chunks));
            })?
        };
        super::upkeep(&engine);
        let failed = report.skipped.iter().filter(|skipped| skipped.is_error).count();
        for FileReport { path, reason, is_error } in &report.skipped {
            let path = path.as_ref().map(|path| format!("{}: ", path.display())).unwrap_or_default();
            if *is_error {
                terminal.error(&format!("{path}{reason}"));
            } else {
                tracing::debug!("skipped {path}{reason}");
            }
        }
        print(terminal, report, start)?;
        if failed > 0 {
            return Err(Failure::Partly(format!(
                "{} could not be indexed",
                view::counted(failed as u64, "path")
            )));
        }
        Ok(Outcome::Done)
    }
}

fn print(terminal: &Terminal, report: IndexReport, start: Instant) -> Result<(), Failure> {
    let took = start.elapsed();
    if terminal.json {
        return terminal.print_json(&ReportJson {
            files_indexed: report.files_indexed,
            files_unchanged: report.files_unchanged,
            files_removed: report.files_removed,
            files_skipped: report.skipped.len(),
            chunks_added: report.chunks_added,
            chunks_kept: report.chunks_kept,
            chunks_removed: report.chunks_removed,
            embedded: report.embedded,
            took_ms: took.as_secs_f64() * 1000.0,
            skipped: report
                .skipped
                .into_iter()
                .map(|skipped| SkippedJson { path: skipped.path, reason: skipped.reason })
                .collect(),
        });
    }
    let mut parts =
        vec![view::counted(report.files_indexed, "file"), view::counted(report.chunks_added, "new passage")];
    let skipped = report.skipped.iter().filter(|skipped| !skipped.is_error).count();
    let counts = [
        (report.files_unchanged, "file", "unchanged"),
        (report.files_removed, "file", "gone"),
        (report.chunks_removed, "passage", "gone"),
        (skipped as u64, "file", "skipped (-v says why)"),
        (report.embedded, "older record", "embedded"),
    ];
    let counts = counts.into_iter().filter(|&(count, ..)| count > 0);
    parts.extend(counts.map(|(count, what, became)| format!("{} {became}", view::counted(count, what))));
    terminal.print(format_args!(
        "{GREEN}indexed{GREEN:#} {} in {:.1} s",
        parts.join(", "),
        took.as_secs_f64()
    ))
}
