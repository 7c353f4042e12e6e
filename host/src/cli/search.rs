use super::{
    Failure, Outcome,
    args::{self, Global, Select},
    open_to_read,
    terminal::{BOLD, DIM, Terminal, UntilInterrupted},
    view::{self, RecordJson},
};
use crate::{
    config::{FusionKind, SearchMode},
    engine::{KeywordLeg, Ranked, Reranking, SearchHit, SearchRequest, SearchResponse, Validity, VectorLeg},
    memory::LegScore,
};
use clap::Args;
use serde::Serialize;
use std::time::Duration;

/// Find records by words and meaning
#[derive(Debug, Args)]
#[command(after_help = "\
A hybrid search is by words and by meaning. Where the model cannot be had, its words answer alone, and
it says so. Records that others have replaced, and those that are not true now, are not found, unless
you ask for another time.

The score: in a hybrid search 0 to 1, of what the best of all answers would have; in a vector search the
cosine, -1 to 1; in a keyword search BM25, 0 and more. Age and use change it by a factor of 0.3 to 1.5.

Examples:
  magray search \"how are backups made\"
  magray search \"retry policy\" -k 3 --layer assets --source src/
  magray search ENOSPC --mode keyword --after 7d
  magray search \"who is on call\" --as-of 2026-03-01
  magray search \"retry policy\" --explain
  magray --backend cpu --index hnsw search \"retry policy\" --json")]
pub(super) struct Search {
    /// What to look for, in your own words
    query: String,
    /// How many results
    #[arg(short, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    k: u16,
    /// What to search: words, meaning or both [default: the config's, which is hybrid unless changed]
    #[arg(long, value_enum, value_name = "MODE")]
    mode: Option<SearchMode>,
    /// How a hybrid search joins what both found [default: the config's, which is convex unless changed]
    #[arg(long, value_enum, value_name = "FUSION")]
    fusion: Option<FusionKind>,
    /// Leave out results below this score, as the mode has it (below), before age and use
    #[arg(long, value_name = "SCORE", allow_hyphen_values = true, value_parser = score)]
    min_score: Option<f32>,
    /// What was true at this time: 2026-03-01, 2026-03-01T12:00:00Z (UTC), 7d for seven days ago, +7d for in seven days
    #[arg(long, value_name = "TIME", value_parser = args::moment)]
    as_of: Option<u64>,
    /// What was true at any time: records that others have replaced, too
    #[arg(long, conflicts_with = "as_of")]
    any_time: bool,
    /// Have this model read the query with each of the best results and order them anew; an empty name for none [default: that of
    /// the config, which is none unless changed]
    #[arg(long, value_name = "MODEL")]
    rerank: Option<String>,
    /// Show how each result came to its place
    #[arg(long)]
    explain: bool,
    #[command(flatten)]
    select: Select,
}

fn score(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(score) if score.is_finite() => Ok(score),
        _ => Err("it must be a number".into()),
    }
}

#[derive(Serialize)]
struct ResponseJson<'a> {
    query: &'a str,
    mode: SearchMode,
    backend: Option<&'a str>,
    model: Option<&'a str>,
    device: Option<&'a str>,
    engine: Option<&'a str>,
    precision: Option<&'a str>,
    /// Why another backend or device answered than was asked for.
    fallback: Option<&'a str>,
    /// Why a hybrid search did without its vectors.
    without_vectors: Option<&'a str>,
    /// Whether the vector of the query came from the cache.
    cached: bool,
    index: Option<&'a str>,
    took_ms: f64,
    unembedded: u64,
    unknown_words: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reranking: Option<RerankingJson<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    legs: Option<LegsJson<'a>>,
    hits: Vec<HitJson<'a>>,
}

#[derive(Serialize)]
struct RerankingJson<'a> {
    model: &'a str,
    backend: &'a str,
    device: &'a str,
    judged: usize,
    took_ms: f64,
    /// Why it judged none.
    failure: Option<&'a str>,
}

#[derive(Serialize)]
struct LegsJson<'a> {
    keyword: Option<KeywordJson<'a>>,
    vector: Option<VectorJson>,
}

#[derive(Serialize)]
struct KeywordJson<'a> {
    terms: &'a [String],
    found: usize,
    took_ms: f64,
}

#[derive(Serialize)]
struct VectorJson {
    found: usize,
    took_ms: f64,
}

#[derive(Serialize)]
struct HitJson<'a> {
    score: f32,
    #[serde(skip_serializing_if = "Option::is_none")]
    explain: Option<ExplainJson>,
    passage: &'a str,
    line: u32,
    #[serde(flatten)]
    record: RecordJson<'a>,
}

#[derive(Serialize)]
struct ExplainJson {
    found: f32,
    factor: f32,
    keyword: Option<LegScore>,
    vector: Option<LegScore>,
    reranked: Option<f32>,
}

impl Search {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        if self.query.trim().is_empty() {
            return Err(Failure::Usage("the query is empty".into()));
        }
        let Some(engine) = open_to_read(global, terminal)? else {
            if terminal.json {
                terminal.print_json(&serde_json::json!({ "query": self.query, "hits": [] }))?;
            }
            return Ok(Outcome::NothingFound);
        };
        let mut settings = engine.setup().config.memory.search.clone();
        settings.mode = self.mode.unwrap_or(settings.mode);
        settings.fusion = self.fusion.unwrap_or(settings.fusion);
        if let Some(model) = self.rerank {
            settings.rerank.model_name = model;
        }
        let request = SearchRequest {
            query: self.query,
            k: usize::from(self.k),
            filter: self.select.filter(),
            validity: match self.as_of {
                Some(time) => Validity::At(time),
                None if self.any_time => Validity::Any,
                None => Validity::Now,
            },
            min_score: self.min_score,
            settings,
        };
        let response = engine.search(&UntilInterrupted, &request)?;
        if terminal.json {
            print_json(terminal, &request.query, &response, self.explain)?;
        } else {
            print(terminal, &request.query, &response, self.explain)?;
        }
        if response.vector.is_some() {
            super::upkeep(&engine);
        } else {
            // What has loaded no model needs none for its indexes.
            super::expire(&engine);
        }
        Ok(if response.hits.is_empty() { Outcome::NothingFound } else { Outcome::Done })
    }
}

fn print(terminal: &Terminal, query: &str, response: &SearchResponse, explain: bool) -> Result<(), Failure> {
    for SearchHit { ranked, record, passage } in &response.hits {
        let score = ranked.score;
        terminal
            .print(format_args!("{BOLD}{score:.2}{BOLD:#}  {}", view::heading(record, Some(passage.line))))?;
        terminal.print(format_args!("{}", view::snippet(&passage.text, query, terminal.width(), 4)))?;
        if explain {
            terminal.print(format_args!("      {DIM}{}{DIM:#}", explained(ranked)))?;
        }
        terminal.print(format_args!(""))?;
    }
    let (keyword, vector) = (response.keyword.as_ref(), response.vector.as_ref());
    if explain {
        for line in [keyword.map(explained_keyword), vector.map(explained_vector)].into_iter().flatten() {
            terminal.print(format_args!("{DIM}{line}{DIM:#}"))?;
        }
    }
    let unknown_words = vector.filter(|leg| leg.unknown_words);
    match unknown_words {
        Some(leg) if response.hits.is_empty() => {
            terminal.hint(&format!("nothing found: the model {} knows no word of the query", leg.model));
        }
        _ if response.hits.is_empty() => {
            terminal.hint("nothing found; try other words, fewer filters or a lower --min-score");
        }
        _ => terminal.hint(&format!(
            "{} in {:.1} ms: {}",
            view::counted(response.hits.len() as u64, "result"),
            millis(response.took),
            searched(keyword, vector, response.reranking.as_ref())
        )),
    }
    if let Some(Reranking { model, failure: Some(why), .. }) = &response.reranking {
        terminal.warn(&format!("not in the order of {model}, but as they were found: {why}"));
    }
    if let Some(why) = &response.without_vectors {
        terminal.warn(&format!("found by words alone, for there is no vector of the query: {why}"));
    }
    if let Some(VectorLeg { backend, model, fallback, unembedded, .. }) = vector {
        if let Some(why) = fallback {
            terminal.warn(&format!("not what was asked for, but {backend} answered: {why}"));
        }
        if *unembedded > 0 {
            terminal.warn(&format!(
                "{} without a vector of {model} cannot be found by it; `magray --backend {backend} --model {model} reembed` embeds them",
                view::counted(*unembedded, "record")
            ));
        }
    }
    Ok(())
}

/// Who answered.
fn searched(
    keyword: Option<&KeywordLeg>,
    vector: Option<&VectorLeg>,
    reranking: Option<&Reranking>,
) -> String {
    let words = keyword.map(|_| "words".to_owned());
    let meaning = vector.map(|leg| {
        format!(
            "{} by {} on {}{}, index {}",
            leg.model,
            leg.backend,
            view::ran_on(&leg.device),
            if leg.cached { ", query from the cache" } else { "" },
            leg.index
        )
    });
    let found = words.into_iter().chain(meaning).collect::<Vec<_>>().join(" and ");
    match reranking.filter(|reranking| reranking.failure.is_none()) {
        Some(Reranking { model, backend, device, .. }) => {
            format!("{found}, ordered by {model} by {backend} on {}", view::ran_on(device))
        }
        None => found,
    }
}

/// How a result came to its place.
fn explained(ranked: &Ranked) -> String {
    let leg = |name: &str, leg: Option<LegScore>| match leg {
        Some(LegScore { rank, score }) => format!("{name} #{rank} {score:.3}"),
        None => format!("{name} -"),
    };
    let Ranked { score, found, factor, keyword, vector, reranked, .. } = *ranked;
    let (keyword, vector) = (leg("keyword", keyword), leg("vector", vector));
    match reranked {
        Some(judged) => {
            format!("{keyword}, {vector}: {found:.3}; reranked {judged:.3} x {factor:.2} = {score:.3}")
        }
        None => format!("{keyword}, {vector}: {found:.3} x {factor:.2} = {score:.3}"),
    }
}

fn explained_keyword(leg: &KeywordLeg) -> String {
    let terms = if leg.terms.is_empty() { "no word".to_owned() } else { leg.terms.join(" ") };
    format!("keyword  {} found in {:.1} ms: {terms}", leg.found, millis(leg.took))
}

fn explained_vector(leg: &VectorLeg) -> String {
    format!("vector   {} found in {:.1} ms: {}", leg.found, millis(leg.took), searched(None, Some(leg), None))
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1000.0
}

fn print_json(
    terminal: &Terminal,
    query: &str,
    response: &SearchResponse,
    explain: bool,
) -> Result<(), Failure> {
    let hits = response.hits.iter().map(|hit| {
        let Ranked { score, found, factor, keyword, vector, reranked, .. } = hit.ranked;
        HitJson {
            score,
            explain: explain.then_some(ExplainJson { found, factor, keyword, vector, reranked }),
            passage: &hit.passage.text,
            line: hit.passage.line,
            record: (&hit.record).into(),
        }
    });
    let vector = response.vector.as_ref();
    terminal.print_json(&ResponseJson {
        query,
        mode: response.mode,
        backend: vector.map(|leg| leg.backend.as_str()),
        model: vector.map(|leg| leg.model.as_str()),
        device: vector.map(|leg| leg.device.device.as_str()),
        engine: vector.map(|leg| leg.device.engine.as_str()),
        precision: vector.map(|leg| leg.device.precision.as_str()),
        fallback: vector.and_then(|leg| leg.fallback.as_deref()),
        without_vectors: response.without_vectors.as_deref(),
        cached: vector.is_some_and(|leg| leg.cached),
        index: vector.map(|leg| leg.index.as_str()),
        took_ms: millis(response.took),
        unembedded: vector.map_or(0, |leg| leg.unembedded),
        unknown_words: vector.is_some_and(|leg| leg.unknown_words),
        reranking: response.reranking.as_ref().map(|reranking| RerankingJson {
            model: &reranking.model,
            backend: &reranking.backend,
            device: &reranking.device.device,
            judged: reranking.judged,
            took_ms: millis(reranking.took),
            failure: reranking.failure.as_deref(),
        }),
        legs: explain.then(|| LegsJson {
            keyword: response.keyword.as_ref().map(|leg| KeywordJson {
                terms: &leg.terms,
                found: leg.found,
                took_ms: millis(leg.took),
            }),
            vector: vector.map(|leg| VectorJson { found: leg.found, took_ms: millis(leg.took) }),
        }),
        hits: hits.collect(),
    })
}
