//! Tokens a second by precision, threads, texts in a call and tokens at once, and the time to load a
//! model.
//!
//! `cargo bench -p magray-embed-onnx -- MODEL TEXTS`: the folder of a model, and a file with one text a
//! line, of which the first 256 are taken. ONNX Runtime is found by `ORT_DYLIB_PATH`.
#![expect(clippy::print_stdout, reason = "a bench")]
use magray_embed_onnx::{OnnxEmbedder, Options, Precision};
use magray_plugin_api::{CreateEmbedder, Embedder, Host, LogLevel, Result, Role};
use magray_plugin_testkit::{Cx, HOST};
use std::{error::Error, fs, path::PathBuf, time::Instant};

/// The testkit's host, with as many threads as are asked for.
struct Threads(usize);

impl Host for Threads {
    fn log_enabled(&self, level: LogLevel, target: &str) -> bool {
        HOST.log_enabled(level, target)
    }
    fn log(&self, level: LogLevel, target: &str, message: &str) {
        HOST.log(level, target, message);
    }
    fn threads(&self) -> usize {
        self.0
    }
    fn memory_budget(&self) -> Option<u64> {
        HOST.memory_budget()
    }
    fn data_dir(&self) -> Result<PathBuf> {
        HOST.data_dir()
    }
    fn models_dir(&self) -> PathBuf {
        HOST.models_dir()
    }
    fn count(&self, name: &str, value: u64) {
        HOST.count(name, value);
    }
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [model, texts] = &arguments[..] else {
        return Err("usage: cargo bench -p magray-embed-onnx -- MODEL TEXTS".into());
    };
    let texts = fs::read_to_string(texts)?;
    let texts: Vec<&str> = texts.lines().take(256).collect();
    for precision in [Precision::Fp32, Precision::Int8] {
        for (threads, streams) in [(1, 1), (2, 1), (2, 2)] {
            let host = if threads == 1 { &Threads(1) } else { &Threads(2) };
            let options = Options { model: model.clone(), precision, streams, ..Options::default() };
            measure(options, host, &texts)?;
        }
    }
    Ok(())
}

fn measure(options: Options, host: &'static Threads, texts: &[&str]) -> Result<()> {
    let label = format!("{:?}, {} threads, {} streams", options.precision, host.0, options.streams);
    let start = Instant::now();
    let embedder = OnnxEmbedder::create(options, host)?;
    let created = start.elapsed();
    embedder.warm_up(&Cx::free())?;
    println!("{label}: load {created:.0?}, first text {:.1?}", start.elapsed() - created);
    let mut counts = vec![0; texts.len()];
    embedder.count_tokens(texts, &mut counts)?;
    let tokens: u32 = counts.iter().sum();
    let dim = embedder.info().dim;
    println!("  {} texts of {:.0} tokens; tokens/s", texts.len(), f64::from(tokens) / texts.len() as f64);
    println!("  tokens at once  calls of 1  of 8  of 32  of 128");
    for at_once in ["256", "512", "1024", "2048", "8192"] {
        embedder.tune("tokens_at_once", at_once)?;
        print!("  {at_once:>14}");
        for (batch, width) in [(1, 10), (8, 4), (32, 5), (128, 6)] {
            let mut out = vec![0.0; batch * dim];
            let start = Instant::now();
            for texts in texts.chunks(batch) {
                embedder.embed(&Cx::free(), texts, Role::Passage, &mut out[..texts.len() * dim])?;
            }
            print!("  {:width$.0}", f64::from(tokens) / start.elapsed().as_secs_f64());
        }
        println!();
    }
    Ok(())
}
