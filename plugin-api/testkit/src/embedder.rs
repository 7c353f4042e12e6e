use crate::{
    Asks, Checked, Cx, DESCRIBES, HEALTHY, MEMORY, Outcome, POLLS, Polled, Report, Run, Settings,
    TUNE_UNKNOWN, describes, ensure, healthy, memory, polls, random::Random, refused, tune_unknown,
};
use magray_plugin_api::{Embedder, ErrorCode, Result, Role};

/// How far two computations of one number of a unit vector may be apart.
const TOLERANCE: f32 = 1e-3;

/// A batch that is larger is not tried.
const LARGEST_BATCH: usize = 4096;

/// Checks an embedder.
pub fn embedder(embedder: &dyn Embedder) -> Report {
    let mut all = Run::new(None, Settings::default());
    run(&mut all, embedder);
    all.report
}

pub(crate) fn run(run: &mut Run<'_>, embedder: &dyn Embedder) {
    for &(name, asks, check) in CHECKS.iter().chain(OF_PAIRS) {
        run.check((name, asks), || check(embedder));
    }
    // Looked at only where a check fails, so that what makes vectors is asked for nothing else.
    let of_vectors = |checked: Checked| match checked {
        Err(Outcome::Failed(_)) if makes_no_vectors(embedder) => {
            Err(Outcome::Skipped("its model judges pairs of texts and makes no vectors".into()))
        }
        other => other,
    };
    for &(name, asks, check) in OF_VECTORS {
        run.check((name, asks), || of_vectors(check(embedder)));
    }
    let settings = run.settings;
    run.check(MEMORY, || of_vectors(memory::stays(settings, || passages(embedder, &TEXTS).map(drop))));
    run.check(FUZZ, || of_vectors(fuzz(embedder, settings.seed)));
}

pub(crate) fn asks() -> impl Iterator<Item = Asks> {
    let all = CHECKS.iter().chain(OF_PAIRS).chain(OF_VECTORS);
    all.map(|&(name, asks, _)| (name, asks)).chain([MEMORY, FUZZ])
}

const FUZZ: Asks = ("fuzz", "random texts in random batches get the vectors that they get alone");

type Entry = (&'static str, &'static str, fn(&dyn Embedder) -> Checked);

const CHECKS: &[Entry] = &[
    ("says-what-it-is", "width, limits, model and space are given", says_what_it_is),
    ("names-its-device", "device, engine and precision are given", names_its_device),
    (HEALTHY.0, HEALTHY.1, |embedder| healthy(&embedder.health())),
    (DESCRIBES.0, DESCRIBES.1, |embedder| describes(&embedder.describe())),
    (TUNE_UNKNOWN.0, TUNE_UNKNOWN.1, |embedder| tune_unknown(|name, value| embedder.tune(name, value))),
    ("warms-up", "warm_up() succeeds, also a second time", warms_up),
    ("counts-tokens", "count_tokens() counts each text alone, up to max_tokens", counts_tokens),
    ("count-refuses-wrong-length", "count_tokens() into another length gives INVALID_INPUT", count_refuses),
];

/// Skipped where the model makes vectors.
const OF_PAIRS: &[Entry] = &[
    ("judges-pairs", "rerank() gives a passage a score from 0 to 1, whatever others there are", judges_pairs),
    ("rerank-refuses-wrong-length", "rerank() into another length gives INVALID_INPUT", rerank_refuses),
    ("rerank-cancels", "rerank() under a cancelled context gives CANCELLED", rerank_cancels),
];

/// Skipped where the model judges pairs of texts.
const OF_VECTORS: &[Entry] = &[
    ("writes-every-number", "every number of out is written and finite", writes_every_number),
    ("unit-vectors", "a vector has length 1, or is zero for a text without a token", unit_vectors),
    ("tells-texts-apart", "texts that have nothing in common get different vectors", tells_texts_apart),
    ("deterministic", "a text gets the same vector again", deterministic),
    ("batch-independent", "a vector does not depend on its neighbours in the batch", batch_independent),
    ("both-roles", "passages and queries are both embedded", both_roles),
    ("empty-batch", "a batch without texts succeeds", empty_batch),
    ("largest-batch", "max_batch texts are taken, and one more gives INVALID_INPUT", largest_batch),
    ("refuses-wrong-length", "an out of another length gives INVALID_INPUT", refuses_wrong_length),
    ("cancels", "a cancelled context gives CANCELLED", cancels),
    ("keeps-deadline", "a passed deadline gives DEADLINE", keeps_deadline),
    (POLLS.0, POLLS.1, asks_while_it_works),
    ("concurrent", "calls from four threads at once get what one gets", concurrent),
    ("takes-any-text", "every text is taken: empty, long, control characters, emoji", takes_any_text),
];

const TEXTS: [&str; 4] =
    ["hello world", "The cat sat on the mat.", "database index", "a query about the weather in spring"];

/// `[texts.len(), dim]`; numbers that the embedder does not write are NaN.
fn embed(embedder: &dyn Embedder, texts: &[&str], role: Role) -> Checked<Vec<f32>> {
    let mut out = vec![f32::NAN; texts.len() * embedder.info().dim];
    for (texts, out) in texts
        .chunks(embedder.info().max_batch)
        .zip(out.chunks_mut(embedder.info().max_batch.saturating_mul(embedder.info().dim)))
    {
        embedder.embed(&Cx::free(), texts, role, out)?;
    }
    Ok(out)
}

fn passages(embedder: &dyn Embedder, texts: &[&str]) -> Checked<Vec<f32>> {
    embed(embedder, texts, Role::Passage)
}

fn same(a: &[f32], b: &[f32]) -> bool {
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| (a - b).abs() <= TOLERANCE)
}

fn unit_or_zero(row: &[f32]) -> Checked {
    let written = row.iter().all(|v| v.is_finite());
    ensure!(written, "{} numbers are not finite", row.iter().filter(|v| !v.is_finite()).count());
    let length = row.iter().map(|v| v * v).sum::<f32>().sqrt();
    let zero = row.iter().all(|&v| v == 0.0);
    ensure!(zero || (length - 1.0).abs() <= TOLERANCE, "a vector has length {length}");
    Ok(())
}

fn says_what_it_is(embedder: &dyn Embedder) -> Checked {
    let info = embedder.info();
    ensure!(info.dim > 0, "dim is 0");
    ensure!(info.max_tokens > 0, "max_tokens is 0");
    ensure!(info.max_batch > 0, "max_batch is 0");
    ensure!(!info.model.is_empty(), "model is empty");
    ensure!(info.space != [0; 32], "space is all zero, which is no digest");
    Ok(())
}

fn names_its_device(embedder: &dyn Embedder) -> Checked {
    let device = embedder.device();
    let named = ![&device.device, &device.engine, &device.precision].iter().any(|name| name.is_empty());
    ensure!(named, "{device:?}");
    Ok(())
}

fn warms_up(embedder: &dyn Embedder) -> Checked {
    embedder.warm_up(&Cx::free())?;
    Ok(embedder.warm_up(&Cx::free())?)
}

/// A score for each passage; one that the embedder does not write is NaN.
fn rerank(embedder: &dyn Embedder, cx: &Cx, passages: &[&str]) -> Result<Vec<f32>> {
    let mut scores = vec![f32::NAN; passages.len()];
    embedder.rerank(cx, "where did the cat sit", passages, &mut scores)?;
    Ok(scores)
}

fn is_unsupported<T>(result: &Result<T>) -> bool {
    result.as_ref().is_err_and(|error| error.code() == ErrorCode::UNSUPPORTED)
}

fn judges(embedder: &dyn Embedder) -> Checked {
    if is_unsupported(&rerank(embedder, &Cx::free(), &TEXTS[..1])) {
        return Err(Outcome::Skipped("its model does not judge pairs of texts".into()));
    }
    Ok(())
}

fn makes_no_vectors(embedder: &dyn Embedder) -> bool {
    let mut out = vec![0.0; embedder.info().dim];
    let embedded = embedder.embed(&Cx::free(), &TEXTS[..1], Role::Passage, &mut out);
    is_unsupported(&embedded) && judges(embedder).is_ok()
}

fn judges_pairs(embedder: &dyn Embedder) -> Checked {
    judges(embedder)?;
    let cx = Cx::free();
    rerank(embedder, &cx, &[])?;
    let mut passages = TEXTS[..embedder.info().max_batch.min(TEXTS.len())].to_vec();
    let scores = rerank(embedder, &cx, &passages)?;
    ensure!(scores.iter().all(|score| (0.0..=1.0).contains(score)), "not all from 0 to 1: {scores:?}");
    for (passage, score) in passages.iter().zip(&scores) {
        let alone = rerank(embedder, &cx, &[passage])?;
        ensure!(same(&alone, &[*score]), "{passage:?} gets {score}, and alone {}", alone[0]);
    }
    passages.reverse();
    let mut reversed = rerank(embedder, &cx, &passages)?;
    reversed.reverse();
    ensure!(same(&scores, &reversed), "{scores:?}, and in reverse order {reversed:?}");
    Ok(())
}

fn rerank_refuses(embedder: &dyn Embedder) -> Checked {
    judges(embedder)?;
    for length in [0, 2] {
        let result = embedder.rerank(&Cx::free(), "a query", &TEXTS[..1], &mut vec![0.0; length]);
        refused(&format!("one passage into {length} scores"), ErrorCode::INVALID_INPUT, result)?;
    }
    Ok(())
}

fn rerank_cancels(embedder: &dyn Embedder) -> Checked {
    judges(embedder)?;
    refused("rerank", ErrorCode::CANCELLED, rerank(embedder, &Cx::cancelled(), &TEXTS[..1]))
}

fn writes_every_number(embedder: &dyn Embedder) -> Checked {
    let out = passages(embedder, &TEXTS)?;
    let odd = out.iter().filter(|v| !v.is_finite()).count();
    ensure!(odd == 0, "{odd} of {} numbers are not finite", out.len());
    Ok(())
}

fn unit_vectors(embedder: &dyn Embedder) -> Checked {
    passages(embedder, &TEXTS)?.chunks_exact(embedder.info().dim).try_for_each(unit_or_zero)
}

fn tells_texts_apart(embedder: &dyn Embedder) -> Checked {
    let out = passages(embedder, &TEXTS)?;
    let mut rows = out.chunks_exact(embedder.info().dim);
    let first = rows.next().unwrap_or_default();
    ensure!(!rows.any(|row| same(first, row)), "{:?} has the vector of another text", TEXTS[0]);
    Ok(())
}

fn deterministic(embedder: &dyn Embedder) -> Checked {
    let (once, again) = (passages(embedder, &TEXTS)?, passages(embedder, &TEXTS)?);
    ensure!(same(&once, &again), "two calls differ");
    Ok(())
}

fn batch_independent(embedder: &dyn Embedder) -> Checked {
    let alone = passages(embedder, &TEXTS[..1])?;
    let long = "a text that is much longer and pads the batch to another length ".repeat(8);
    let among = passages(embedder, &[&long, TEXTS[0], "x", ""])?;
    let dim = embedder.info().dim;
    ensure!(same(&alone, &among[dim..2 * dim]), "alone and in a batch of four it is another vector");
    Ok(())
}

fn both_roles(embedder: &dyn Embedder) -> Checked {
    for role in [Role::Passage, Role::Query] {
        embed(embedder, &TEXTS, role)?.chunks_exact(embedder.info().dim).try_for_each(unit_or_zero)?;
    }
    Ok(())
}

fn empty_batch(embedder: &dyn Embedder) -> Checked {
    embedder.count_tokens(&[], &mut [])?;
    Ok(embedder.embed(&Cx::free(), &[], Role::Passage, &mut [])?)
}

fn largest_batch(embedder: &dyn Embedder) -> Checked {
    let (max, dim) = (embedder.info().max_batch, embedder.info().dim);
    if max > LARGEST_BATCH {
        return Err(Outcome::Skipped(format!("max_batch is {max}; more than {LARGEST_BATCH} are not tried")));
    }
    let texts = vec![TEXTS[0]; max + 1];
    let mut out = vec![f32::NAN; (max + 1) * dim];
    embedder.embed(&Cx::free(), &texts[1..], Role::Passage, &mut out[dim..])?;
    unit_or_zero(&out[max * dim..])?;
    let result = embedder.embed(&Cx::free(), &texts, Role::Passage, &mut out);
    refused("embed of max_batch + 1 texts", ErrorCode::INVALID_INPUT, result)
}

fn refuses_wrong_length(embedder: &dyn Embedder) -> Checked {
    let dim = embedder.info().dim;
    for length in [0, dim - 1, dim + 1, 2 * dim] {
        let mut out = vec![0.0; length];
        let result = embedder.embed(&Cx::free(), &TEXTS[..1], Role::Passage, &mut out);
        refused(&format!("one text into {length} numbers"), ErrorCode::INVALID_INPUT, result)?;
    }
    let result = embedder.embed(&Cx::free(), &[], Role::Passage, &mut [0.0]);
    refused("no text into one number", ErrorCode::INVALID_INPUT, result)
}

fn stopped(embedder: &dyn Embedder, cx: &Cx, code: ErrorCode) -> Checked {
    let mut out = vec![0.0; embedder.info().dim];
    refused("embed", code, embedder.embed(cx, &TEXTS[..1], Role::Passage, &mut out))
}

fn cancels(embedder: &dyn Embedder) -> Checked {
    stopped(embedder, &Cx::cancelled(), ErrorCode::CANCELLED)
}

fn keeps_deadline(embedder: &dyn Embedder) -> Checked {
    stopped(embedder, &Cx::expired(), ErrorCode::DEADLINE)
}

fn asks_while_it_works(embedder: &dyn Embedder) -> Checked {
    let text = "a text of some length that is embedded many times ".repeat(20);
    let texts = vec![text.as_str(); embedder.info().max_batch.min(64)];
    let mut out = vec![0.0; texts.len() * embedder.info().dim];
    embedder.warm_up(&Cx::free())?;
    let cx = Polled::new();
    embedder.embed(&cx, &texts, Role::Passage, &mut out)?;
    polls(&cx)
}

fn concurrent(embedder: &dyn Embedder) -> Checked {
    let expected = passages(embedder, &TEXTS)?;
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..4 {
                        ensure!(same(&expected, &passages(embedder, &TEXTS)?), "another answer");
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread.join().unwrap_or_else(|_| Err(Outcome::Failed("a thread panicked".into())))
        })
    })
}

fn counts_tokens(embedder: &dyn Embedder) -> Checked {
    let long = "word ".repeat(10_000);
    let texts = [TEXTS[0], &long, TEXTS[0]];
    let mut counts = [u32::MAX; 3];
    embedder.count_tokens(&texts, &mut counts)?;
    let [short, long, again] = counts;
    ensure!(short == again, "one text has {short} tokens and {again}");
    ensure!(short < long, "two words have {short} tokens, 10,000 have {long}");
    let max = embedder.info().max_tokens;
    ensure!(long as usize <= max, "{long} tokens are computed, but max_tokens is {max}");
    Ok(())
}

fn count_refuses(embedder: &dyn Embedder) -> Checked {
    let result = embedder.count_tokens(&TEXTS, &mut [0]);
    refused("four texts into one count", ErrorCode::INVALID_INPUT, result)
}

fn takes_any_text(embedder: &dyn Embedder) -> Checked {
    let (megabyte, one_word) = ("lorem ipsum ".repeat(87_382), "a".repeat(100_000));
    let texts = [
        "",
        " \t\r\n",
        "\0",
        "\u{1}\u{7f}\u{9f}\u{ad}\u{feff}\u{fffd}\u{10ffff}",
        "👩‍👩‍👧‍👦🏳️‍🌈🇨🇭",
        "e\u{301}\u{302}\u{303}\u{304}\u{305}",
        "\u{202e}דוגמה مثال 例子 пример ตัวอย่าง",
        "[CLS] [SEP] [PAD] [UNK] [MASK] <s> </s>",
        &one_word,
        &megabyte,
    ];
    for text in texts {
        let shown: String = text.chars().take(24).collect();
        let row = passages(embedder, &[text])
            .and_then(|row| unit_or_zero(&row))
            .and_then(|()| Ok(embedder.count_tokens(&[text], &mut [0])?));
        if let Err(Outcome::Failed(why)) = row {
            return Err(Outcome::Failed(format!("{shown:?} ({} bytes): {why}", text.len())));
        }
    }
    Ok(())
}

fn fuzz(embedder: &dyn Embedder, seed: u64) -> Checked {
    const BATCHES: usize = 24;
    let dim = embedder.info().dim;
    let mut random = Random(seed);
    for batch in 0..BATCHES {
        let texts: Vec<String> = (0..=random.below(8)).map(|_| random.text()).collect();
        let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
        let role = [Role::Passage, Role::Query][random.below(2) as usize];
        let together = embed(embedder, &texts, role)?;
        let mut counts = vec![0; texts.len()];
        embedder.count_tokens(&texts, &mut counts)?;
        for (text, row) in texts.iter().zip(together.chunks_exact(dim)) {
            let at = || format!("seed {seed}, batch {batch}, {text:?}");
            if let Err(Outcome::Failed(why)) = unit_or_zero(row) {
                return Err(Outcome::Failed(format!("{}: {why}", at())));
            }
            let alone = embed(embedder, &[text], role)?;
            ensure!(same(row, &alone), "{}: alone it is another vector than in its batch", at());
        }
    }
    Ok(())
}
