//! Tokens a second by texts in a call and threads, and the time to load a model.
//!
//! `cargo bench -p magray-embed-candle -- MODEL TEXTS`: the folder of a model, and a file with one text
//! a line, of which the first 512 are taken.
#![expect(clippy::print_stdout, reason = "a bench")]
use magray_embed_candle::{CandleEmbedder, Options};
use magray_model_testkit::Threads;
use magray_plugin_api::{CreateEmbedder, Embedder, Result, Role};
use magray_plugin_testkit::Cx;
use std::{error::Error, fs, time::Instant};

static THREADS: Threads = Threads::new(1);

fn main() -> std::result::Result<(), Box<dyn Error>> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [model, texts] = &arguments[..] else {
        return Err("usage: cargo bench -p magray-embed-candle -- MODEL TEXTS".into());
    };
    let start = Instant::now();
    let options = Options { model: model.clone(), ..Options::default() };
    let embedder = CandleEmbedder::create(options, &THREADS)?;
    let created = start.elapsed();
    embedder.warm_up(&Cx::free())?;
    println!("load {created:.0?}, first text {:.1?}", start.elapsed() - created);

    let texts = fs::read_to_string(texts)?;
    let texts: Vec<&str> = texts.lines().take(512).collect();
    let mut counts = vec![0; texts.len()];
    embedder.count_tokens(&texts, &mut counts)?;
    let tokens: u32 = counts.iter().sum();
    println!("{} texts of {:.0} tokens", texts.len(), f64::from(tokens) / texts.len() as f64);
    let mut sorted: Vec<usize> = (0..texts.len()).collect();
    sorted.sort_by_key(|&text| counts[text]);
    let sorted: Vec<&str> = sorted.into_iter().map(|text| texts[text]).collect();

    println!("threads  texts in a call  tokens/s unsorted  tokens/s sorted");
    let dim = embedder.info().dim;
    for threads in [1, 2] {
        THREADS.set(threads);
        for batch in [1, 8, 32, 128] {
            let speed = |texts: &[&str]| -> Result<f64> {
                let mut out = vec![0.0; batch * dim];
                let start = Instant::now();
                for texts in texts.chunks(batch) {
                    embedder.embed(&Cx::free(), texts, Role::Passage, &mut out[..texts.len() * dim])?;
                }
                Ok(f64::from(tokens) / start.elapsed().as_secs_f64())
            };
            println!("{threads:7}  {batch:15}  {:17.0}  {:15.0}", speed(&texts)?, speed(&sorted)?);
        }
    }
    Ok(())
}
