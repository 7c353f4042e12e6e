use crate::{CallContext, DeviceReport, Error, ErrorCode, Health, Host, MemoryUse, Result};
use abi_stable::StableAbi;
use serde::de::DeserializeOwned;

/// What a text is for. Models with prefixes or instructions treat the two differently.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// The text is searched for.
    Passage = 0,
    /// The text asks.
    Query = 1,
}

/// What stays the same for the life of an [`Embedder`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EmbedderInfo {
    /// Width of every vector, at least 1.
    pub dim: usize,
    /// Tokens of a text beyond this many are ignored; `usize::MAX` where there is no limit.
    pub max_tokens: usize,
    /// The most texts that one [`Embedder::embed`] takes, at least 1.
    pub max_batch: usize,
    /// Name of the model, for people.
    pub model: String,
    /// BLAKE3 digest of everything that decides a vector: weights, tokenizer, pooling,
    /// normalisation, prefixes, maximal length, width. Vectors of two embedders may meet in one
    /// index exactly when their digests are equal.
    pub space: [u8; 32],
}

impl EmbedderInfo {
    /// The first thing that [`Embedder::embed`] does, for authors: whether the call is one that it takes.
    ///
    /// # Errors
    /// `INVALID_INPUT` where there are more than `max_batch` texts, or `out` is not `[texts.len(), dim]`.
    pub fn check_call(&self, texts: &[&str], out: &[f32]) -> Result<()> {
        let (count, Self { dim, max_batch, .. }) = (texts.len(), self);
        if count > *max_batch {
            return Err(Error::invalid_input(format!("{count} texts in one call; at most {max_batch}")));
        }
        if count.checked_mul(*dim) != Some(out.len()) {
            return Err(Error::invalid_input(format!("{} numbers for {count} texts x {dim}", out.len())));
        }
        Ok(())
    }
}

/// Turns texts into unit vectors.
///
/// Threads: any number of calls at once.
pub trait Embedder: Send + Sync + 'static {
    /// The width, limits and space of this embedder.
    fn info(&self) -> &EmbedderInfo;

    /// Which device does the work.
    fn device(&self) -> DeviceReport;

    /// Writes into `out[i]` the number of tokens that [`Embedder::embed`] computes for `texts[i]`.
    /// The host may build batches by these numbers.
    ///
    /// # Errors
    /// `INVALID_INPUT` where the lengths differ.
    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()>;

    /// Writes one unit vector a text into `out`: `[texts.len(), dim]`, row-major. A text that the
    /// model has no token for gets the zero vector: it has no direction, and the host does not
    /// match it. The vector of a text does not depend on its neighbours in the batch.
    ///
    /// # Errors
    /// `INVALID_INPUT` where `out` has another length or there are more than `max_batch` texts;
    /// `CANCELLED` and `DEADLINE` by `cx`; `OUT_OF_MEMORY` where a smaller batch may succeed.
    /// After an error the content of `out` means nothing.
    fn embed(&self, cx: &dyn CallContext, texts: &[&str], role: Role, out: &mut [f32]) -> Result<()>;

    /// Does now what the first call would otherwise wait for. Since 1.1: an older host never
    /// calls it.
    ///
    /// # Errors
    /// As [`Embedder::embed`].
    fn warm_up(&self, _cx: &dyn CallContext) -> Result<()> {
        Ok(())
    }

    /// Writes into `scores[i]` how well `passages[i]` answers `query`, from 0 to 1, greater is better, by a model
    /// that reads the two together (a cross-encoder). The score of a passage does not depend on the others. One
    /// whose model judges pairs makes no vectors: its [`Embedder::embed`] is `UNSUPPORTED`, and its width and
    /// space mean nothing. Since 1.2: an older host never calls it.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the model makes vectors; `INVALID_INPUT` where the lengths differ; else as
    /// [`Embedder::embed`].
    fn rerank(
        &self,
        _cx: &dyn CallContext,
        _query: &str,
        _passages: &[&str],
        _scores: &mut [f32],
    ) -> Result<()> {
        Err(Error::new(ErrorCode::UNSUPPORTED, "the model makes vectors and does not judge pairs of texts"))
    }

    /// How well it is; cheap, for the host may ask often.
    fn health(&self) -> Health {
        Health::ok()
    }

    /// Memory that it holds now.
    fn memory_use(&self) -> MemoryUse {
        MemoryUse::default()
    }

    /// Changes a parameter while it runs, for sweeps. Names are those of the options.
    ///
    /// # Errors
    /// `UNSUPPORTED` for a name that it does not know or cannot change, `INVALID_CONFIG` for a bad
    /// value.
    fn tune(&self, name: &str, _value: &str) -> Result<()> {
        Err(Error::new(ErrorCode::UNSUPPORTED, format!("'{name}' cannot be changed while it runs")))
    }

    /// Anything else that is worth showing, as a JSON object.
    fn describe(&self) -> String {
        "{}".to_owned()
    }
}

/// How the host makes an [`Embedder`] from its options.
pub trait CreateEmbedder: Embedder + Sized {
    /// The options in the user's TOML. Use `#[serde(deny_unknown_fields)]`, so that a mistyped key
    /// is an error.
    type Options: DeserializeOwned;

    /// JSON Schema of the options, for `magray plugin info`.
    const OPTIONS_SCHEMA: &'static str = r#"{"type":"object"}"#;

    /// Makes an embedder.
    ///
    /// # Errors
    /// `INVALID_CONFIG` for options that cannot be, `UNAVAILABLE` for a model or device that is
    /// not there, `CORRUPT_DATA` for a model that is damaged.
    fn create(options: Self::Options, host: &'static dyn Host) -> Result<Self>;
}
