use crate::{
    bench::{DataSets, Found, Limit, Ranking, RetrievalData, Way, measure_retrieval},
    cli::{
        Failure, Outcome,
        args::Global,
        setup,
        terminal::{BOLD, DIM, Terminal, UntilInterrupted},
    },
};
use clap::Args;
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
                of_set.iter().try_for_each(|found| terminal.print_json(found))?;
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
    let sessions = if first.session_recall_5.is_some() { "  session R@5   R@10" } else { "" };
    terminal.print(format_args!(
        "{BOLD}{}{BOLD:#}, {} questions\n{DIM}  {:<12} nDCG@10    R@5   R@10  R@100  MRR@10{sessions}  ms a search{DIM:#}",
        first.set, first.questions, ""
    ))?;
    for Found { way, ranking, session_recall_5, session_recall_10, ms, .. } in found {
        let Ranking { ndcg_10, recall_5, recall_10, recall_100, mrr_10 } = ranking;
        let sessions = session_recall_5.zip(*session_recall_10);
        let sessions = sessions
            .map(|(five, ten)| format!("         {:5.1}  {:5.1}", five * 100.0, ten * 100.0))
            .unwrap_or_default();
        terminal.print(format_args!(
            "  {way:<12} {ndcg_10:7.4}  {:5.1}  {:5.1}  {:5.1}  {mrr_10:6.4}{sessions}  {ms:11.2}",
            recall_5 * 100.0,
            recall_10 * 100.0,
            recall_100 * 100.0
        ))?;
    }
    Ok(())
}

fn name_the_best(terminal: &Terminal, found: &[Found]) {
    let tried = found.iter().filter_map(|found| Some((found, found.way.strip_prefix("hybrid ")?)));
    let tried =
        tried.filter_map(|(found, weight)| Some((found.ranking.ndcg_10, weight.parse::<f64>().ok()?)));
    if let Some((ndcg, weight)) = tried.max_by(|a, b| a.0.total_cmp(&b.0)) {
        terminal.hint(&format!(
            "the best nDCG@10 is {ndcg:.4}, by [memory.search] keyword_weight = {weight}; the fewer questions, the \
             less that says of others"
        ));
    }
}
