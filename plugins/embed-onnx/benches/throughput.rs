//! Tokens a second of CPU by precision, threads, texts in a call and tokens at once, and what it takes to
//! load a model. Time is that of the CPU, so that other work on the machine disturbs less.
//!
//! `cargo bench -p magray-embed-onnx -- MODEL TEXTS COUNT`: the folder of a model, and a file with one text
//! a line, of which the first COUNT are taken. ONNX Runtime is found by `ORT_DYLIB_PATH`.
#![expect(clippy::print_stdout, reason = "a bench")]
use magray_embed_onnx::{OnnxEmbedder, Options, Precision};
use magray_model_testkit::Threads;
use magray_plugin_api::{CreateEmbedder, Embedder, Host, Result, Role};
use magray_plugin_testkit::Cx;
use std::{error::Error, fs, time::Duration};

static ONE: Threads = Threads::new(1);
static TWO: Threads = Threads::new(2);

/// Time that the threads of this process have run.
fn cpu() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes to a local of the right type.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    // Cargo adds `--bench`.
    let arguments: Vec<String> =
        std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let [model, texts, count] = &arguments[..] else {
        return Err("usage: cargo bench -p magray-embed-onnx -- MODEL TEXTS COUNT".into());
    };
    let texts = fs::read_to_string(texts)?;
    let texts: Vec<&str> = texts.lines().take(count.parse()?).collect();
    for (threads, streams) in [(1, 1), (2, 1), (2, 2)] {
        for precision in [Precision::Fp32, Precision::Int8] {
            let host = if threads == 1 { &ONE } else { &TWO };
            let options = Options { model: model.clone(), precision, streams, ..Options::default() };
            measure(options, host, &texts)?;
        }
    }
    Ok(())
}

fn measure(options: Options, host: &'static Threads, texts: &[&str]) -> Result<()> {
    let label = format!("{:?}, {} threads, {} streams", options.precision, host.threads(), options.streams);
    let start = cpu();
    let embedder = OnnxEmbedder::create(options, host)?;
    let created = cpu() - start;
    embedder.warm_up(&Cx::free())?;
    println!("{label}: load {created:.0?}, first text {:.1?}", cpu() - start - created);
    let mut counts = vec![0; texts.len()];
    embedder.count_tokens(texts, &mut counts)?;
    let tokens: u32 = counts.iter().sum();
    let dim = embedder.info().dim;
    println!(
        "  {} texts of {:.0} tokens; tokens a second of CPU",
        texts.len(),
        f64::from(tokens) / texts.len() as f64
    );
    println!("  tokens at once  calls of 1  of 8  of 32");
    for at_once in ["256", "512", "2048"] {
        embedder.tune("tokens_at_once", at_once)?;
        print!("  {at_once:>14}");
        for (batch, width) in [(1, 10), (8, 4), (32, 5)] {
            let mut out = vec![0.0; batch * dim];
            let start = cpu();
            for texts in texts.chunks(batch) {
                embedder.embed(&Cx::free(), texts, Role::Passage, &mut out[..texts.len() * dim])?;
            }
            print!("  {:width$.0}", f64::from(tokens) / (cpu() - start).as_secs_f64());
        }
        println!();
    }
    Ok(())
}
