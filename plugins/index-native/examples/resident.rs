//! What a search needs in memory: an index is built by one process, and searched by another one that has read nothing
//! else, so that a limit on its memory counts what the index needs.
//!
//! `cargo run --release -p magray-index-native --example resident -- build SET FOLDER [OPTIONS]`, then
//! `... search SET FOLDER EF[,EF...] [OPTIONS]`, for instance in a control group with a limit of memory.
//!
//! SET is a folder of `$MAGRAY_DATA/ann` (see `magray_benches::Ann`), OPTIONS those of the index as JSON.
#![expect(clippy::print_stdout, reason = "it is all that it does")]

use magray_benches::Ann;
use magray_index_native::{Native, Options};
use magray_plugin_api::{CreateVectorIndex, Hit, IndexSpec, Metric, SearchParams, VectorIndex};
use magray_plugin_testkit::{Cx, HOST};
use std::{env, error::Error, fs, path::Path, time::Instant};

/// Hits a query.
const K: usize = 10;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["build", set, folder, ref options @ ..] => build(set, folder.as_ref(), options_of(options)?),
        ["search", set, folder, efs, ref options @ ..] => {
            search(set, folder.as_ref(), efs, options_of(options)?)
        }
        _ => Err("build SET FOLDER [OPTIONS], or search SET FOLDER EF[,EF...] [OPTIONS]".into()),
    }
}

fn options_of(arguments: &[&str]) -> serde_json::Result<Options> {
    serde_json::from_str(arguments.first().unwrap_or(&"{}"))
}

fn build(set: &str, folder: &Path, options: Options) -> Result<(), Box<dyn Error>> {
    let ann = Ann::read(set)?;
    let ids: Vec<u64> = (0..(ann.base.len() / ann.dim) as u64).collect();
    let index = Native::create(options, IndexSpec { dim: ann.dim, metric: Metric::Cosine }, HOST)?;
    index.upsert(&Cx::free(), &ids, &ann.base)?;
    fs::create_dir_all(folder)?;
    index.save(&Cx::free(), folder)?;
    println!("{}", index.describe());
    Ok(())
}

fn search(set: &str, folder: &Path, efs: &str, options: Options) -> Result<(), Box<dyn Error>> {
    let ann = Ann::questions(set)?;
    let index = Native::open(options, IndexSpec { dim: ann.dim, metric: Metric::Cosine }, folder, HOST)?;
    for ef in efs.split(',') {
        let params = SearchParams::with_ef(ef.parse()?);
        // The second round finds in memory what there is room for.
        for round in ["first", "second"] {
            let (mut times, mut found) = (Vec::new(), 0);
            for (query, truth) in ann.queries.chunks_exact(ann.dim).zip(ann.truth.chunks_exact(ann.truth_len))
            {
                let mut hits = [Hit::NONE; K];
                let start = Instant::now();
                index.search(&Cx::free(), query, K, params, None, &mut hits)?;
                times.push(start.elapsed());
                found +=
                    hits.iter().filter(|hit| truth[..K].iter().any(|&id| u64::from(id) == hit.id)).count();
            }
            times.sort();
            let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
            println!(
                "ef {ef}, {round} round of {}: recall@{K} {:.4}, p50 {:.2?}, p95 {:.2?}; {}",
                times.len(),
                found as f64 / (times.len() * K) as f64,
                at(0.5),
                at(0.95),
                resident()?
            );
        }
    }
    Ok(())
}

/// What the process has in memory, as the kernel says it.
fn resident() -> std::io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let lines = status.lines().filter(|line| line.starts_with("Rss") || line.starts_with("VmRSS"));
    Ok(lines.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(", "))
}
