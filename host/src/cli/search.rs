use super::{
    Failure, Outcome,
    args::{Global, Select},
    open_to_read,
    terminal::{BOLD, Terminal, UntilInterrupted},
    view::{self, RecordJson},
};
use crate::engine::{SearchHit, SearchRequest, SearchResponse};
use clap::Args;
use serde::Serialize;

/// Find records by meaning
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  magray search \"how are backups made\"
  magray search \"retry policy\" -k 3 --layer assets --source src/
  magray --backend cpu --index hnsw search \"retry policy\" --json")]
pub(super) struct Search {
    /// What to look for, in your own words
    query: String,
    /// How many results
    #[arg(short, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    k: u16,
    /// Leave out results below this cosine similarity (-1 to 1)
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true, value_parser = score)]
    min_score: Option<f32>,
    #[command(flatten)]
    select: Select,
}

fn score(text: &str) -> Result<f32, String> {
    match text.parse() {
        Ok(score) if (-1.0..=1.0).contains(&score) => Ok(score),
        _ => Err("it must be a number from -1 to 1".into()),
    }
}

#[derive(Serialize)]
struct ResponseJson<'a> {
    query: &'a str,
    backend: &'a str,
    model: &'a str,
    device: &'a str,
    engine: &'a str,
    precision: &'a str,
    /// Why another backend or device answered than was asked for.
    fallback: Option<&'a str>,
    /// Whether the vector of the query came from the cache.
    cached: bool,
    index: &'a str,
    took_ms: f64,
    unembedded: u64,
    unknown_words: bool,
    hits: Vec<HitJson<'a>>,
}

#[derive(Serialize)]
struct HitJson<'a> {
    score: f32,
    passage: &'a str,
    line: u32,
    #[serde(flatten)]
    record: RecordJson<'a>,
}

impl Search {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let request = SearchRequest {
            query: self.query,
            k: usize::from(self.k),
            filter: self.select.filter(),
            min_score: self.min_score,
        };
        if request.query.trim().is_empty() {
            return Err(Failure::Usage("the query is empty".into()));
        }
        let Some(engine) = open_to_read(global, terminal)? else {
            if terminal.json {
                terminal.print_json(&serde_json::json!({ "query": request.query, "hits": [] }))?;
            }
            return Ok(Outcome::NothingFound);
        };
        let response = engine.search(&UntilInterrupted, &request)?;
        if terminal.json {
            print_json(terminal, &request.query, &response)?;
        } else {
            print(terminal, &request.query, &response)?;
        }
        super::upkeep(&engine);
        Ok(if response.hits.is_empty() { Outcome::NothingFound } else { Outcome::Done })
    }
}

fn print(terminal: &Terminal, query: &str, response: &SearchResponse) -> Result<(), Failure> {
    for SearchHit { score, record, passage } in &response.hits {
        terminal
            .print(format_args!("{BOLD}{score:.2}{BOLD:#}  {}", view::heading(record, Some(passage.line))))?;
        terminal.print(format_args!("{}\n", view::snippet(&passage.text, query, terminal.width(), 4)))?;
    }
    if response.unknown_words {
        terminal.hint(&format!("nothing found: the model {} knows no word of the query", response.model));
    } else if response.hits.is_empty() {
        terminal.hint("nothing found; try other words, fewer filters or a lower --min-score");
    } else {
        terminal.hint(&format!(
            "{} in {:.1} ms: {} by {} on {}{}, index {}",
            view::counted(response.hits.len() as u64, "result"),
            response.took.as_secs_f64() * 1000.0,
            response.model,
            response.backend,
            view::ran_on(&response.device),
            if response.cached { ", query from the cache" } else { "" },
            response.index
        ));
    }
    if let Some(why) = &response.fallback {
        terminal.warn(&format!("not what was asked for, but {} answered: {why}", response.backend));
    }
    if response.unembedded > 0 {
        terminal.warn(&format!(
            "{} without a vector of {} cannot be found by it; `magray --backend {} --model {} reembed` embeds them",
            view::counted(response.unembedded, "record"),
            response.model,
            response.backend,
            response.model
        ));
    }
    Ok(())
}

fn print_json(terminal: &Terminal, query: &str, response: &SearchResponse) -> Result<(), Failure> {
    let hits = response.hits.iter().map(|hit| HitJson {
        score: hit.score,
        passage: &hit.passage.text,
        line: hit.passage.line,
        record: (&hit.record).into(),
    });
    terminal.print_json(&ResponseJson {
        query,
        backend: &response.backend,
        model: &response.model,
        device: &response.device.device,
        engine: &response.device.engine,
        precision: &response.device.precision,
        fallback: response.fallback.as_deref(),
        cached: response.cached,
        index: &response.index,
        took_ms: response.took.as_secs_f64() * 1000.0,
        unembedded: response.unembedded,
        unknown_words: response.unknown_words,
        hits: hits.collect(),
    })
}
