use crate::{
    embedding::{Embedding, EmbeddingError},
    ingest::{Chunk, FileKind, split},
    store::{Record, text_terms},
};
use magray_plugin_api::{CallContext, Role};

/// About two lines of a terminal.
const PASSAGE_CHARS: usize = 220;
/// A record longer than this many passages is judged by these alone.
const MAX_PASSAGES: usize = 64;

/// The part of a record that answers best.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Passage {
    /// The part, as it stands in the record.
    pub text: String,
    /// Its first line, counted in the record's source where it has one, else in the record, from 1.
    pub line: u32,
}

/// For each record the passage nearest to `query`, the query's vector `[dim]`. One embedding call
/// for all of them.
///
/// # Errors
/// [`EmbeddingError`].
pub fn best_passages(
    cx: &dyn CallContext,
    embedding: &Embedding,
    query: &[f32],
    records: &[&Record],
) -> Result<Vec<Passage>, EmbeddingError> {
    let parts: Vec<Vec<_>> = records.iter().map(|record| parts_of(record)).collect();
    // A record of one passage needs no judging.
    let judged = || parts.iter().filter(|parts| parts.len() > 1).flatten();
    let texts: Vec<&str> = judged().map(|part| part.text.as_str()).collect();
    let vectors = embedding.answer(cx, &texts, Role::Passage)?.vectors;
    let mut scores = vectors.chunks_exact(query.len()).map(|vector| dot(vector, query));
    Ok(records.iter().zip(&parts).map(|(record, parts)| passage(record, parts, &mut scores)).collect())
}

/// The passage of a record with most of `terms`, which are those of a query.
pub fn passage_with_terms(record: &Record, terms: &[String]) -> Passage {
    let parts = parts_of(record);
    let counts = parts.iter().map(|part| {
        let found = text_terms(&part.text);
        terms.iter().filter(|term| found.contains(term)).count() as f32
    });
    passage(record, &parts, &mut counts.collect::<Vec<_>>().into_iter())
}

fn parts_of(record: &Record) -> Vec<Chunk> {
    let mut parts = split(&record.text, FileKind::Text, None, PASSAGE_CHARS);
    parts.truncate(MAX_PASSAGES);
    parts
}

/// The part of the highest score; `scores` has them where there is more than one.
fn passage(record: &Record, parts: &[Chunk], scores: &mut impl Iterator<Item = f32>) -> Passage {
    let first_line = record.source.as_ref().map_or(1, |source| source.line_start);
    let best = match parts {
        [] => return Passage { text: record.text.clone(), line: first_line },
        [only] => only,
        parts => {
            let scored: Vec<f32> = scores.by_ref().take(parts.len()).collect();
            // The first of equals, which is where a reader would look first.
            let best = (0..parts.len()).rev().max_by(|&a, &b| scored[a].total_cmp(&scored[b]));
            &parts[best.unwrap_or(0)]
        }
    };
    let line = first_line + u32::try_from(best.line_start.saturating_sub(1)).unwrap_or(0);
    Passage { text: best.text.clone(), line }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}
