//! Speed by batch and length: what a GPU is tuned by.
use super::{Backend, BenchError};
use magray_plugin_api::{CallContext, Role};
use serde::Serialize;
use std::time::Instant;

/// What to measure.
#[derive(Clone, Debug)]
pub struct BatchRequest {
    /// Numbers of texts in one call.
    pub batches: Vec<usize>,
    /// Numbers of tokens of a text, about.
    pub lengths: Vec<usize>,
    /// How often each is measured, after one warm-up.
    pub runs: usize,
}

/// What was measured.
#[derive(Clone, Debug, Default)]
pub struct BatchRates {
    /// By length, and below it by batch.
    pub rates: Vec<BatchRate>,
    /// Calls of the backend.
    pub calls: u64,
    /// Calls that failed.
    pub failed: u64,
}

/// Speed at one length with one batch.
#[derive(Clone, Debug, Serialize)]
pub struct BatchRate {
    /// Tokens of a text, as the backend counts them.
    pub tokens: f64,
    /// Texts in one call.
    pub batch: usize,
    /// Median over the runs; none where it failed.
    pub texts_per_s: Option<f64>,
    /// Bytes of the device's memory that the backend held then.
    pub device_bytes: u64,
    /// Why it failed.
    pub fault: Option<String>,
}

/// Everyday words, one token each in the vocabularies of BERT and its kin.
const WORDS: [&str; 16] = [
    "the", "water", "house", "over", "time", "people", "river", "small", "under", "city", "music", "road",
    "while", "book", "tree", "and",
];

/// Measures each length with each batch. A batch that fails, as too large a one does, is a row with a fault.
/// `done` is told after each row.
///
/// # Errors
/// [`BenchError::Interrupted`] only.
pub fn measure_batches(
    cx: &dyn CallContext,
    backend: &Backend,
    request: &BatchRequest,
    done: &mut dyn FnMut(),
) -> Result<BatchRates, BenchError> {
    let mut measured = BatchRates::default();
    // More than it takes is what it takes.
    let fitting = request.batches.iter().map(|&batch| batch.min(backend.embedder().info().max_batch));
    let mut batches: Vec<usize> = fitting.collect();
    batches.dedup();
    let count = batches.iter().copied().max().unwrap_or(1);
    for &length in &request.lengths {
        let texts: Vec<String> = (0..count).map(|at| words(at, length)).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let tokens = backend.count_tokens(&texts)?.into_iter().map(f64::from).sum::<f64>() / count as f64;
        for &batch in &batches {
            let mut seconds = Vec::new();
            let mut fault = None;
            for _ in 0..=request.runs {
                let start = Instant::now();
                let calls = &mut measured.calls;
                match backend.embed(cx, &texts, Role::Passage, batch, &mut |_| *calls += 1) {
                    Ok(_) => seconds.push(start.elapsed().as_secs_f64()),
                    Err(BenchError::Interrupted) => return Err(BenchError::Interrupted),
                    Err(error) => {
                        measured.calls += 1;
                        measured.failed += 1;
                        fault = Some(error.to_string());
                        break;
                    }
                }
            }
            let timed = seconds.get_mut(1..).filter(|_| fault.is_none()).unwrap_or_default();
            timed.sort_by(f64::total_cmp);
            measured.rates.push(BatchRate {
                tokens,
                batch,
                texts_per_s: timed.get(timed.len() / 2).map(|median| count as f64 / median),
                device_bytes: backend.embedder().memory_use().device,
                fault,
            });
            done();
        }
    }
    Ok(measured)
}

/// A text of so many words, another one for each `at`.
fn words(at: usize, length: usize) -> String {
    let word = |place: usize| WORDS[(at + place * (1 + at / WORDS.len())) % WORDS.len()];
    (0..length.max(1)).map(word).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use magray_plugin_api::{DeviceReport, Embedder, EmbedderInfo, Error, ErrorCode, MemoryUse, Result};
    use std::time::Duration;

    /// A device with room for eight texts.
    struct Small(EmbedderInfo);

    impl Embedder for Small {
        fn info(&self) -> &EmbedderInfo {
            &self.0
        }
        fn device(&self) -> DeviceReport {
            DeviceReport::default()
        }
        fn count_tokens(&self, texts: &[&str], out: &mut [u32]) -> Result<()> {
            texts.iter().zip(out).for_each(|(text, out)| *out = text.split(' ').count() as u32);
            Ok(())
        }
        fn embed(&self, cx: &dyn CallContext, texts: &[&str], _: Role, out: &mut [f32]) -> Result<()> {
            cx.check()?;
            if texts.len() > 8 {
                return Err(Error::new(ErrorCode::OUT_OF_MEMORY, "eight fit"));
            }
            out.fill(1.0);
            Ok(())
        }
        fn memory_use(&self) -> MemoryUse {
            MemoryUse { device: 42, ..MemoryUse::default() }
        }
    }

    struct Cx(bool);

    impl CallContext for Cx {
        fn is_cancelled(&self) -> bool {
            self.0
        }
        fn remaining(&self) -> Option<Duration> {
            None
        }
        fn progress(&self, _: u64, _: u64) {}
    }

    fn measure(cancelled: bool) -> std::result::Result<BatchRates, BenchError> {
        let info = EmbedderInfo {
            dim: 1,
            max_tokens: 512,
            max_batch: 16,
            model: "small".to_owned(),
            space: [0; 32],
        };
        let backend = Backend { name: "small".to_owned(), embedder: Box::new(Small(info)) };
        let request = BatchRequest { batches: vec![4, 8, 16, 32], lengths: vec![5, 50], runs: 3 };
        measure_batches(&Cx(cancelled), &backend, &request, &mut || {})
    }

    #[test]
    fn a_batch_that_does_not_fit_is_a_row_with_a_fault_and_the_others_have_their_speed() {
        let measured = measure(false).expect("nobody cancels");
        let shown: Vec<_> =
            measured.rates.iter().map(|rate| (rate.tokens, rate.batch, rate.fault.is_some())).collect();
        assert_eq!(
            shown,
            [
                (5.0, 4, false),
                (5.0, 8, false),
                (5.0, 16, true),
                (50.0, 4, false),
                (50.0, 8, false),
                (50.0, 16, true)
            ]
        );
        for rate in &measured.rates {
            assert_eq!(rate.texts_per_s.is_some_and(|rate| rate > 0.0), rate.fault.is_none(), "{rate:?}");
            assert_eq!(rate.device_bytes, 42);
        }
        // 16 texts: 4 runs of 4 and of 2 calls, and one call that fails, at each length.
        assert_eq!((measured.calls, measured.failed), (2 * (16 + 8 + 1), 2));
    }

    #[test]
    fn it_stops_when_it_is_cancelled() {
        assert!(matches!(measure(true), Err(BenchError::Interrupted)));
    }

    #[test]
    fn texts_have_their_length_and_differ() {
        let texts: Vec<String> = (0..64).map(|at| words(at, 40)).collect();
        assert!(texts.iter().all(|text| text.split(' ').count() == 40));
        assert!(texts.iter().collect::<std::collections::BTreeSet<_>>().len() > 60);
    }
}
