use super::{
    model::{EMBEDDED, Model},
    pooling::{Engine, normalize, prefetch},
};
use crate::{tokenizer::sections, workers};
use magray_plugin_api::{
    CallContext, CreateEmbedder, DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, Host, MemoryUse,
    Result, Role,
};
use serde::Deserialize;
use std::{
    fmt, path,
    sync::atomic::{AtomicU64, Ordering},
};

/// The options of [`StaticEmbedder`].
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Name of the model: the embedded one, or a folder in the folder of models. With a path
    /// separator in it: a folder.
    pub model: String,
    /// The most texts that one call takes, at least 1. They cost no memory beyond their own.
    pub batch_size: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { model: EMBEDDED.to_owned(), batch_size: 4096 }
    }
}

/// Embeds texts by static (model2vec-type) models: the vector of a text is the mean of one row of
/// weights a token, scaled to length 1. [`Role`] changes nothing.
///
/// The same text gives the same bits on every CPU and in every batch.
pub struct StaticEmbedder {
    model: Model,
    info: EmbedderInfo,
    engine: Engine,
    host: &'static dyn Host,
}

impl fmt::Debug for StaticEmbedder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StaticEmbedder").field("info", &self.info).field("engine", &self.engine).finish()
    }
}

/// A long text is cut into pieces of about so many bytes (well under 1 ms of work), so that it can
/// be cancelled; the caller is asked after as many.
const CHECK_BYTES: usize = 64 << 10;
/// Starting a thread takes as long as embedding some thousand bytes; this is many times that.
const THREAD_BYTES: usize = 64 << 10;
/// Texts that a thread takes at once.
const CHUNK_TEXTS: usize = 32;

/// Tokens whose rows are asked for before they are summed, so that they are in the cache by then.
const AHEAD: usize = 32;

/// What a thread needs to embed one chunk of texts after the other.
struct Worker<'a> {
    embedder: &'a StaticEmbedder,
    cx: &'a dyn CallContext,
    /// Bytes and tokens since the caller was asked whether to go on.
    unasked: usize,
    /// The tokens of the texts, one after the other.
    ids: Vec<u32>,
    /// Where in `ids` the tokens of each text end.
    ends: Vec<usize>,
}

impl Worker<'_> {
    /// Writes the vectors of `texts` into `rows`, `[texts.len(), dim]`.
    fn embed(&mut self, texts: &[&str], rows: &mut [f32]) -> Result<()> {
        let StaticEmbedder { model: Model { tokenizer, weights, .. }, engine, .. } = self.embedder;
        self.ids.clear();
        self.ends.clear();
        for text in texts {
            for section in sections(text, CHECK_BYTES) {
                self.check(section.len())?;
                tokenizer.encode(section, &mut self.ids);
            }
            self.ends.push(self.ids.len());
        }

        let (mut summed, mut asked) = (0, 0);
        for (text, row) in rows.chunks_exact_mut(weights.dim).enumerate() {
            row.fill(0.0);
            while summed < self.ends[text] {
                let next = self.ends[text].min(summed + AHEAD);
                let ahead = self.ids.len().min(next + AHEAD);
                prefetch(weights, &self.ids[asked..ahead]);
                asked = ahead;
                self.check(next - summed)?;
                engine.add_rows(weights, &self.ids[summed..next], row);
                summed = next;
            }
            normalize(row);
        }
        Ok(())
    }

    /// Asks the caller whether to go on, where that was `work` and more bytes or tokens ago.
    fn check(&mut self, work: usize) -> Result<()> {
        self.unasked += work;
        if self.unasked >= CHECK_BYTES {
            self.unasked = 0;
            self.cx.check()?;
        }
        Ok(())
    }
}

impl CreateEmbedder for StaticEmbedder {
    type Options = Options;

    const OPTIONS_SCHEMA: &'static str = r#"{
  "type": "object",
  "additionalProperties": false,
  "properties": {
    "model": {
      "type": "string",
      "minLength": 1,
      "default": "potion-base-8M-int8",
      "description": "The embedded model by its name, a folder in the folder of models by its name, or the path of a folder. It holds a static (model2vec-type) model: model.safetensors, config.json, and tokenizer.json or vocab.txt."
    },
    "batch_size": {
      "type": "integer",
      "minimum": 1,
      "default": 4096,
      "description": "The most texts in one call."
    }
  }
}"#;

    fn create(options: Options, host: &'static dyn Host) -> Result<Self> {
        if options.model.is_empty() {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "'model' is empty"));
        }
        if options.batch_size == 0 {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "'batch_size' is 0; it is at least 1"));
        }
        let model = if options.model == EMBEDDED {
            Model::embedded()?
        } else if options.model.contains(path::is_separator) {
            Model::open(options.model.as_ref())?
        } else {
            Model::open(&host.models_dir().join(&options.model))?
        };
        let info = EmbedderInfo {
            dim: model.weights.dim,
            max_tokens: usize::MAX,
            max_batch: options.batch_size,
            model: model.name.clone(),
            space: model.space,
        };
        Ok(Self { model, info, engine: Engine::detect(), host })
    }
}

impl Embedder for StaticEmbedder {
    fn info(&self) -> &EmbedderInfo {
        &self.info
    }

    fn device(&self) -> DeviceReport {
        DeviceReport {
            device: "cpu".to_owned(),
            engine: self.engine.name().to_owned(),
            precision: self.model.weights.precision.name().to_owned(),
            fallback_reason: String::new(),
        }
    }

    fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
        if out.len() != texts.len() {
            return Err(Error::invalid_input(format!("{} counts for {} texts", out.len(), texts.len())));
        }
        let mut ids = Vec::new();
        for (&text, count) in texts.iter().zip(out) {
            *count = 0;
            for section in sections(text, CHECK_BYTES) {
                ids.clear();
                self.model.tokenizer.encode(section, &mut ids);
                *count = count.saturating_add(u32::try_from(ids.len()).unwrap_or(u32::MAX));
            }
        }
        Ok(())
    }

    fn embed(&self, cx: &dyn CallContext, texts: &[&str], _role: Role, out: &mut [f32]) -> Result<()> {
        let dim = self.info.dim;
        self.info.check_call(texts, out)?;
        cx.check()?;
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        let chunks = texts.len().div_ceil(CHUNK_TEXTS);
        let threads = (bytes / THREAD_BYTES).min(chunks).min(self.host.threads());

        let work = texts.chunks(CHUNK_TEXTS).zip(out.chunks_mut(CHUNK_TEXTS * dim));
        let done = AtomicU64::new(0);
        workers::run(threads, work, |next| {
            let mut worker = Worker { embedder: self, cx, unasked: 0, ids: Vec::new(), ends: Vec::new() };
            while let Some((chunk, rows)) = next() {
                worker.embed(chunk, rows)?;
                let count = chunk.len() as u64;
                cx.progress(done.fetch_add(count, Ordering::Relaxed) + count, texts.len() as u64);
            }
            Ok(())
        })
    }

    fn warm_up(&self, _cx: &dyn CallContext) -> Result<()> {
        // One byte of each page is enough to have the system read it.
        std::hint::black_box(self.model.weights.rows().iter().step_by(4096).fold(0, |all, byte| all ^ byte));
        Ok(())
    }

    fn memory_use(&self) -> MemoryUse {
        let scales = size_of_val(&*self.model.weights.scales);
        MemoryUse {
            resident: (self.model.tokenizer.memory() + scales) as u64,
            mapped: self.model.weights.file_len() as u64,
            device: 0,
        }
    }

    fn describe(&self) -> String {
        serde_json::json!({
            "model": self.info.model,
            "kind": "static",
            "dim": self.info.dim,
            "vocabulary": self.model.weights.vocabulary(),
            "precision": self.model.weights.precision.name(),
            "tokenizer": "BERT uncased WordPiece",
            "pooling": "mean",
        })
        .to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_testkit::{self as testkit, Cx, HOST};
    use proptest::prelude::*;
    use std::sync::LazyLock;

    static EMBEDDER: LazyLock<StaticEmbedder> =
        LazyLock::new(|| StaticEmbedder::create(Options::default(), HOST).unwrap());

    fn embed(texts: &[&str]) -> Vec<f32> {
        let mut out = vec![f32::NAN; texts.len() * EMBEDDER.info.dim];
        EMBEDDER.embed(&Cx::free(), texts, Role::Passage, &mut out).unwrap();
        out
    }

    fn dot(a: &[f32], b: &[f32]) -> f32 {
        a.iter().zip(b).map(|(a, b)| a * b).sum()
    }

    #[test]
    fn keeps_the_contract() {
        testkit::embedder(&*EMBEDDER).assert();
    }

    #[derive(Deserialize)]
    struct Reference {
        items: Vec<Item>,
    }

    /// A text, its tokens, and its vector by the weights in f32, from which ours were quantized.
    #[derive(Deserialize)]
    struct Item {
        text: String,
        token_ids: Vec<u32>,
        f32: Vec<f32>,
    }

    #[test]
    fn vectors_are_those_of_the_original_model() {
        let reference: Reference =
            serde_json::from_str(include_str!("../../tests/data/reference.json")).unwrap();
        let texts: Vec<&str> = reference.items.iter().map(|item| item.text.as_str()).collect();
        let mut counts = vec![0; texts.len()];
        EMBEDDER.count_tokens(&texts, &mut counts).unwrap();
        for ((item, row), count) in
            reference.items.iter().zip(embed(&texts).chunks(EMBEDDER.info.dim)).zip(counts)
        {
            let mut ids = Vec::new();
            EMBEDDER.model.tokenizer.encode(&item.text, &mut ids);
            assert_eq!(ids, item.token_ids, "{:?}", item.text);
            assert_eq!(count as usize, ids.len(), "{:?}", item.text);
            if ids.is_empty() {
                assert!(row.iter().all(|&value| value == 0.0), "{:?}", item.text);
            } else {
                let cosine = dot(row, &item.f32) / dot(&item.f32, &item.f32).sqrt();
                assert!(cosine >= 0.999, "{cosine} for {:?}", item.text);
            }
        }
    }

    #[test]
    fn threads_and_neighbours_change_no_bit() {
        let texts: Vec<String> = (0..1000).map(|n| format!("text {n} ").repeat(n % 60)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let bytes: usize = texts.iter().map(|text| text.len()).sum();
        assert!(bytes > 2 * THREAD_BYTES, "too little work for a second thread");
        let alone: Vec<f32> = texts.iter().flat_map(|text| embed(&[text])).collect();
        assert_eq!(embed(&texts), alone);
    }

    #[test]
    fn a_text_of_many_sections_is_one_text() {
        let long = "one two three four ".repeat(3 * CHECK_BYTES / 19);
        let mut count = [0];
        EMBEDDER.count_tokens(&[&long], &mut count).unwrap();
        assert_eq!(count[0] as usize, long.split_whitespace().count());
        assert!(dot(&embed(&[&long]), &embed(&["one two three four"])) > 0.999_99);
    }

    #[test]
    fn a_long_text_can_be_cancelled() {
        struct CancelledLater(AtomicU64);
        impl CallContext for CancelledLater {
            fn is_cancelled(&self) -> bool {
                self.0.fetch_add(1, Ordering::Relaxed) > 2
            }
            fn remaining(&self) -> Option<std::time::Duration> {
                None
            }
            fn progress(&self, _done: u64, _total: u64) {}
        }
        let long = "word ".repeat(CHECK_BYTES);
        let cx = CancelledLater(AtomicU64::new(0));
        let error = EMBEDDER.embed(&cx, &[&long], Role::Query, &mut [0.0; 256]).unwrap_err();
        assert_eq!(error.code(), ErrorCode::CANCELLED);
    }

    #[test]
    fn wrong_options_are_refused() {
        let refused = |options| StaticEmbedder::create(options, HOST).unwrap_err();
        let error = refused(Options { batch_size: 0, ..Options::default() });
        assert_eq!(error.code(), ErrorCode::INVALID_CONFIG);
        let error = refused(Options { model: String::new(), ..Options::default() });
        assert_eq!(error.code(), ErrorCode::INVALID_CONFIG);
        let error = refused(Options { model: "no-such-model".to_owned(), ..Options::default() });
        assert_eq!(error.code(), ErrorCode::UNAVAILABLE);
        let folder = HOST.models_dir().join("no-such-model");
        assert!(error.message().contains(&folder.display().to_string()), "{error}");
        assert!(serde_json::from_str::<Options>(r#"{"modle": "x"}"#).is_err());
    }

    #[test]
    fn the_schema_names_the_options_and_their_defaults() {
        let schema: serde_json::Value = serde_json::from_str(StaticEmbedder::OPTIONS_SCHEMA).unwrap();
        let properties = schema["properties"].as_object().unwrap();
        let defaults: serde_json::Map<_, _> =
            properties.iter().map(|(name, option)| (name.clone(), option["default"].clone())).collect();
        assert_eq!(defaults.len(), 2);
        assert_eq!(serde_json::from_value::<Options>(defaults.into()).unwrap(), Options::default());
    }

    proptest! {
        #[test]
        fn any_text_has_length_1_or_no_token(text in any::<String>()) {
            let mut count = [0];
            EMBEDDER.count_tokens(&[&text], &mut count).unwrap();
            let vector = embed(&[&text]);
            let length = dot(&vector, &vector).sqrt();
            let expected = if count[0] == 0 { 0.0 } else { 1.0 };
            prop_assert!((length - expected).abs() < 1e-5, "{}", length);
        }
    }
}
