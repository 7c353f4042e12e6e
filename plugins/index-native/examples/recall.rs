//! Recall and searches per second of processor time, by width of rescoring, breadth and filter.
//!
//! `cargo run --release -p magray-index-native --example recall -- SET [METRIC] [OPTIONS] [RESCORE] [EF] [FILTER]`
//!
//! SET is a folder of `$MAGRAY_DATA/ann` (see `magray_benches::Ann`), METRIC `cosine`, `dot` or `l2`,
//! OPTIONS those of the index as JSON, RESCORE and EF lists of numbers with commas, 0 being the default, FILTER
//! a list of how many rows there are for each that a filter lets through.
#![expect(clippy::print_stdout, reason = "it is all that it does")]

use magray_benches::Ann;
use magray_index_native::{Native, Options};
use magray_plugin_api::{CreateVectorIndex, Hit, IdFilter, IndexSpec, Metric, SearchParams, VectorIndex};
use magray_plugin_testkit::{Cx, HOST};
use std::{env, error::Error, time::Instant};

/// Hits a query.
const K: usize = 10;

/// Seconds that the threads of this process have worked.
fn cpu_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes one timespec.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Share of the true nearest `K` that are among the hits.
fn recall(ann: &Ann, hits: &[Hit]) -> f64 {
    let rows = hits.chunks_exact(K).zip(ann.truth.chunks_exact(ann.truth_len));
    let found = rows.map(|(hits, truth)| {
        hits.iter().filter(|hit| truth[..K].iter().any(|&id| u64::from(id) == hit.id)).count()
    });
    found.sum::<usize>() as f64 / hits.len() as f64
}

/// Recall, by searching exactly, and queries per second of processor time, one by one, where one row in `every`
/// passes a filter.
fn filtered(
    ann: &Ann,
    index: &Native,
    every: u64,
    params: SearchParams,
) -> magray_plugin_api::Result<(f64, f64)> {
    let rows = (ann.base.len() / ann.dim) as u64;
    // No stride, which would fit the blocks of an index or miss them.
    let passes = |id: u64| (id.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32).is_multiple_of(every);
    let ids: Vec<u64> = (0..rows).filter(|&id| passes(id)).collect();
    let mut words = vec![0; (rows as usize).div_ceil(64)];
    ids.iter().for_each(|id| words[(id / 64) as usize] |= 1 << (id % 64));
    let filter = IdFilter::bitmap(0, &words);
    let truth =
        Native::create(Options { exact_below: usize::MAX, ..Options::default() }, index.spec(), HOST)?;
    for &id in &ids {
        truth.upsert(&Cx::free(), &[id], &ann.base[id as usize * ann.dim..][..ann.dim])?;
    }
    let queries = &ann.queries[..ann.queries.len().min(200 * ann.dim)];
    let mut exact = vec![Hit::NONE; queries.len() / ann.dim * K];
    truth.search(&Cx::free(), queries, K, params, None, &mut exact)?;
    let mut hits = exact.clone();
    let mut best = 0.0f64;
    for _ in 0..4 {
        let cpu = cpu_seconds();
        for (query, hits) in queries.chunks(ann.dim).zip(hits.chunks_mut(K)) {
            index.search(&Cx::free(), query, K, params, Some(filter), hits)?;
        }
        best = best.max((queries.len() / ann.dim) as f64 / (cpu_seconds() - cpu));
    }
    let found = hits
        .chunks(K)
        .zip(exact.chunks(K))
        .map(|(hits, exact)| hits.iter().filter(|hit| hit.score >= exact[K - 1].score - 1e-6).count());
    Ok((found.sum::<usize>() as f64 / hits.len() as f64, best))
}

/// Recall, and queries per second of processor time, in batches of `batch`: the best of several rounds,
/// for other programs on the machine only ever slow it down.
fn measure(
    ann: &Ann,
    index: &Native,
    batch: usize,
    params: SearchParams,
) -> magray_plugin_api::Result<(f64, f64)> {
    let queries = ann.queries.len() / ann.dim;
    let mut hits = vec![Hit::NONE; queries * K];
    let mut best = 0.0f64;
    for _ in 0..8 {
        let cpu = cpu_seconds();
        for (queries, hits) in ann.queries.chunks(batch * ann.dim).zip(hits.chunks_mut(batch * K)) {
            index.search(&Cx::free(), queries, K, params, None, hits)?;
        }
        best = best.max(queries as f64 / (cpu_seconds() - cpu));
    }
    Ok((recall(ann, &hits), best))
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let argument = |at: usize, default: &str| arguments.get(at).map_or(default, String::as_str).to_owned();
    let ann = Ann::read(&argument(0, "minilm-100k-384-cos"))?;
    let metric = match argument(1, "cosine").as_str() {
        "l2" => Metric::L2,
        "dot" => Metric::Dot,
        _ => Metric::Cosine,
    };
    let options: Options = serde_json::from_str(&argument(2, "{}"))?;
    let numbers = |list: String| list.split(',').map(str::parse).collect::<Result<Vec<u32>, _>>();
    let (widths, efs) = (numbers(argument(3, "0,60,100,150,250"))?, numbers(argument(4, "0"))?);
    let spec = IndexSpec { dim: ann.dim, metric };
    let ids: Vec<u64> = (0..(ann.base.len() / ann.dim) as u64).collect();

    let (clock, cpu) = (Instant::now(), cpu_seconds());
    let built = Native::create(options, spec, HOST)?;
    built.upsert(&Cx::free(), &ids, &ann.base)?;
    built.warm_up(&Cx::free())?;
    let used = cpu_seconds() - cpu;
    println!("built in {:.2?}, {:.0} vectors/CPU-s", clock.elapsed(), ids.len() as f64 / used);
    let dir = tempfile::tempdir()?;
    built.save(&Cx::free(), dir.path())?;
    drop(built);
    let clock = Instant::now();
    let index = Native::open(options, spec, dir.path(), HOST)?;
    println!("opened in {:.2?}: {}", clock.elapsed(), index.describe());
    for (name, batch) in [("mapped, alone", 1), ("alone", 1), ("batches of 64", 64)] {
        for &ef in &efs {
            for &rescore in &widths {
                let mut params = SearchParams::with_ef(ef);
                params.rescore = rescore;
                let (recall, rate) = measure(&ann, &index, batch, params)?;
                println!(
                    "{name}, ef {ef}, rescore {rescore}: recall@{K} {recall:.4}, {rate:.0} queries/CPU-s"
                );
            }
        }
        index.warm_up(&Cx::free())?;
    }
    let every = argument(5, "");
    for every in every.split(',').filter(|every| !every.is_empty()) {
        for &ef in &efs {
            let (recall, rate) = filtered(&ann, &index, every.parse()?, SearchParams::with_ef(ef))?;
            println!("one row in {every}, ef {ef}: recall@{K} {recall:.4}, {rate:.0} queries/CPU-s");
        }
    }
    let clock = Instant::now();
    let mut hits = vec![Hit::NONE; K];
    for query in ann.queries.chunks_exact(ann.dim).take(500) {
        index.search(&Cx::free(), query, K, SearchParams::default(), None, &mut hits)?;
    }
    println!("default: {:.0} µs a query of wall time", clock.elapsed().as_secs_f64() / 500.0 * 1e6);
    Ok(())
}
