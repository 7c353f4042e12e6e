//! `[memory.search]`: how records are found and ranked.

use super::values::{name, share, whole};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

/// `[memory.search]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// What is searched.
    pub mode: SearchMode,
    /// How what both legs found becomes one list.
    pub fusion: FusionKind,
    /// Share of the keyword leg in a convex fusion; the rest is the vector leg's.
    #[serde(deserialize_with = "share")]
    pub keyword_weight: f64,
    /// Share of the whole session or file in the score of a record of it.
    #[serde(deserialize_with = "share")]
    pub document_weight: f64,
    /// Records that each leg hands to the fusion, at least as many as are asked for.
    #[serde(deserialize_with = "whole::<1, 10_000, _, _>")]
    pub candidates: usize,
    /// What the rank of a record loses by its age, at most.
    #[serde(deserialize_with = "share")]
    pub age_weight: f64,
    /// What it gains by its use, at most.
    #[serde(deserialize_with = "share")]
    pub access_weight: f64,
    /// The model that reads query and record together.
    pub rerank: Rerank,
}

/// `[memory.search.rerank]`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rerank {
    /// Name or folder of the model; empty for none.
    pub model_name: String,
    /// The embedding profile that runs it.
    #[serde(deserialize_with = "name")]
    pub profile: String,
    /// Records that it judges.
    #[serde(deserialize_with = "whole::<1, 1000, _, _>")]
    pub candidates: usize,
}

/// What a search looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SearchMode {
    /// Words and meaning.
    Hybrid,
    /// Meaning alone.
    Vector,
    /// Words alone; needs no model.
    Keyword,
}

/// How two lists become one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum FusionKind {
    /// By the scores, each leg's from 0 to 1 and weighted.
    Convex,
    /// By the ranks alone.
    Rrf,
}
