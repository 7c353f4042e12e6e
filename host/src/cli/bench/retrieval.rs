use crate::{
    bench::{DataSets, Found, Limit, RetrievalData, Way, measure_retrieval},
    cli::{
        Failure, Outcome,
        args::Global,
        setup,
        terminal::{BOLD, DIM, Terminal, UntilInterrupted},
    },
};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// Judge searches by words, by meaning and by both on questions with known answers
#[derive(Debug, Args)]
#[command(after_help = "\
A data folder is a retrieval set in BEIR's layout (corpus.jsonl, queries.jsonl, qrels/SPLIT.tsv, packed
or not), or has folders that are. Its documents are stored in a database of their own, which is gone
afterwards, and searched as `magray search` does.

Where all ids of documents are CONVERSATION/SESSION:TURN and those of questions begin with CONVERSATION/,
a question is asked of its own conversation, and sessions are judged too: by where their best turn is.

Examples:
  magray bench retrieval --data data/scifact
  magray bench retrieval --data data/locomo --model all-MiniLM-L6-v2 --tune")]
pub(in crate::cli) struct RetrievalCommand {
    /// Folder of data sets
    #[arg(long, value_name = "DIR")]
    data: PathBuf,
    /// Use only the first N questions of each split, and about N documents besides those that are judged
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    limit: Option<u32>,
    /// Also try other weights of words and meaning, and name the best
    #[arg(long)]
    tune: bool,
}

#[derive(Serialize)]
struct FoundJson<'a> {
    set: &'a str,
    way: &'a str,
    questions: usize,
    ndcg_10: f64,
    recall_5: f64,
    recall_10: f64,
    recall_100: f64,
    mrr_10: f64,
    session_recall_5: Option<f64>,
    session_recall_10: Option<f64>,
    ms: f64,
}

impl<'a> From<&'a Found> for FoundJson<'a> {
    fn from(found: &'a Found) -> Self {
        Self {
            set: &found.set,
            way: &found.way,
            questions: found.questions,
            ndcg_10: found.ndcg_10,
            recall_5: found.recall[0],
            recall_10: found.recall[1],
            recall_100: found.recall[2],
            mrr_10: found.mrr_10,
            session_recall_5: found.session_recall.map(|recall| recall[0]),
            session_recall_10: found.session_recall.map(|recall| recall[1]),
            ms: found.took.as_secs_f64() * 1e3,
        }
    }
}

impl RetrievalCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let sets = DataSets::find(&self.data)?;
        let data = RetrievalData::read(&sets, Limit(self.limit.map(|limit| limit as usize)))?;
        if data.is_empty() {
            return Err(Failure::Usage(format!("{}: there is no corpus.jsonl here", self.data.display())));
        }
        let setup = setup(global, terminal)?;
        let ways = Way::all(&setup.config.memory.search, self.tune);
        let found = {
            let progress = terminal.progress("documents and questions");
            progress.0.set_length(data.steps(ways.len()) as u64);
            measure_retrieval(&UntilInterrupted, &setup, &data, &ways, &mut |steps| {
                progress.0.inc(steps as u64)
            })?
        };
        for of_set in found.chunk_by(|a, b| a.set == b.set) {
            if terminal.json {
                of_set.iter().try_for_each(|found| terminal.print_json(&FoundJson::from(found)))?;
                continue;
            }
            print(terminal, of_set)?;
            if self.tune {
                name_the_best(terminal, of_set);
            }
        }
        Ok(Outcome::Done)
    }
}

fn print(terminal: &Terminal, found: &[Found]) -> Result<(), Failure> {
    let Some(first) = found.first() else { return Ok(()) };
    let sessions = if first.session_recall.is_some() { "  session R@5   R@10" } else { "" };
    terminal.print(format_args!(
        "{BOLD}{}{BOLD:#}, {} questions\n{DIM}  {:<12} nDCG@10    R@5   R@10  R@100  MRR@10{sessions}  ms a search{DIM:#}",
        first.set, first.questions, ""
    ))?;
    for Found { way, ndcg_10, recall, mrr_10, session_recall, took, .. } in found {
        let recall = recall.map(|share| share * 100.0);
        let sessions = session_recall
            .map(|of| format!("         {:5.1}  {:5.1}", of[0] * 100.0, of[1] * 100.0))
            .unwrap_or_default();
        terminal.print(format_args!(
            "  {way:<12} {ndcg_10:7.4}  {:5.1}  {:5.1}  {:5.1}  {mrr_10:6.4}{sessions}  {:11.2}",
            recall[0],
            recall[1],
            recall[2],
            took.as_secs_f64() * 1e3
        ))?;
    }
    Ok(())
}

fn name_the_best(terminal: &Terminal, found: &[Found]) {
    let tried = found.iter().filter_map(|found| Some((found, found.way.strip_prefix("hybrid ")?)));
    let tried = tried.filter_map(|(found, weight)| Some((found.ndcg_10, weight.parse::<f64>().ok()?)));
    if let Some((ndcg, weight)) = tried.max_by(|a, b| a.0.total_cmp(&b.0)) {
        terminal.hint(&format!(
            "the best nDCG@10 is {ndcg:.4}, by [memory.search] keyword_weight = {weight}; the fewer questions, the \
             less that says of others"
        ));
    }
}
