//! Builds an index over a set of vectors, saves, opens and searches it, and prints what that took as one
//! JSON object a line. `scripts/bench-index-peers.py` calls it beside other libraries.
//!
//! Times are seconds of the processor, of all threads together: another program on the machine does not
//! show in them as it does in time on the clock.
#![expect(clippy::print_stdout, reason = "it is a program")]

use clap::Parser;
use magray_plugin_api::{
    Component, Hit, IdFilter, IndexSpec, Maker, Metric, Plugin, SearchParams, VectorIndex,
};
use magray_plugin_testkit::{Cx, HOST};
use memmap2::Mmap;
use serde_json::json;
use std::{collections::HashSet, error::Error, fs::File, path::PathBuf, time::Instant};

/// The plugins that it can run.
const PLUGINS: &[Plugin] = &[magray_index_flat::PLUGIN, magray_index_hnsw::PLUGIN];

#[derive(Parser)]
struct Args {
    /// Component of an index plugin.
    #[arg(long, default_value = "hnsw")]
    index: String,
    /// Its options.
    #[arg(long, default_value = "{}")]
    options: String,
    /// Folder with base.f32, query.f32 (row-major, f32) and truth.u32 (the nearest rows of each query,
    /// nearest first, as many as --truth).
    #[arg(long)]
    set: PathBuf,
    /// Width of the vectors.
    #[arg(long)]
    dim: usize,
    /// Neighbours that truth.u32 names for each query.
    #[arg(long, default_value_t = 100)]
    truth: usize,
    /// "cosine", "l2" or "dot".
    #[arg(long, default_value = "cosine")]
    metric: String,
    /// Hits a query.
    #[arg(long, default_value_t = 10)]
    k: usize,
    /// Breadths to search with; 0 is what the options say.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    ef: Vec<u32>,
    /// Queries in one call.
    #[arg(long, value_delimiter = ',', default_value = "1")]
    batch: Vec<usize>,
    /// Filters that let one row in so many through; 0 is none.
    #[arg(long, value_delimiter = ',', default_value = "0")]
    filter: Vec<usize>,
    /// Rounds over all queries for each figure; the quickest counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Also search the index as it was built, before it was saved.
    #[arg(long)]
    built: bool,
}

/// Processor seconds of this process.
fn cpu() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: it writes the one value that it is given.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn timed<R>(call: impl FnOnce() -> R) -> (R, f64, f64) {
    let (clock, processor) = (Instant::now(), cpu());
    let result = call();
    (result, cpu() - processor, clock.elapsed().as_secs_f64())
}

struct Set {
    base: Mmap,
    queries: Mmap,
    truth: Mmap,
}

impl Set {
    fn open(args: &Args) -> Result<Self, Box<dyn Error>> {
        let map = |name: &str| -> Result<Mmap, Box<dyn Error>> {
            let path = args.set.join(name);
            let file = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
            // SAFETY: the script that wrote the file waits for this program.
            Ok(unsafe { Mmap::map(&file) }?)
        };
        Ok(Self { base: map("base.f32")?, queries: map("query.f32")?, truth: map("truth.u32")? })
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args = Args::parse();
    let set = Set::open(&args)?;
    let base: &[f32] = bytemuck::try_cast_slice(&set.base).map_err(|error| error.to_string())?;
    let metric = match &*args.metric {
        "cosine" => Metric::Cosine,
        "l2" => Metric::L2,
        "dot" => Metric::Dot,
        other => return Err(format!("no metric '{other}'").into()),
    };
    let spec = IndexSpec { dim: args.dim, metric };
    let components = PLUGINS.iter().flat_map(|plugin| plugin.components);
    let maker = components.filter(|component| component.name == args.index).find_map(|component| {
        let Component { maker: Maker::Index(make), .. } = component else { return None };
        Some(make)
    });
    let make = maker.ok_or_else(|| format!("no index '{}'", args.index))?;

    let ids: Vec<u64> = (0..(base.len() / args.dim) as u64).collect();
    let built = make(&args.options, spec, None, HOST)?;
    let (done, build, build_wall) = timed(|| built.upsert(&Cx::free(), &ids, base));
    done?;
    let memory = built.memory_use();
    let dir = tempfile::tempdir()?;
    let (done, save, _) = timed(|| built.save(&Cx::free(), dir.path()));
    done?;
    let files = dir.path().read_dir()?.filter_map(|entry| entry.ok()?.metadata().ok()).map(|file| file.len());
    println!(
        "{}",
        json!({
            "index": args.index, "options": args.options, "n": ids.len(), "dim": args.dim,
            "build_cpu_s": build, "build_wall_s": build_wall, "build_per_cpu_s": ids.len() as f64 / build,
            "save_cpu_s": save, "file_bytes": files.sum::<u64>(), "memory_bytes": memory.resident,
        })
    );
    if args.built {
        sweep(&args, &set, &*built, "built")?;
    }
    drop(built);
    let (opened, open, _) = timed(|| make(&args.options, spec, Some(dir.path()), HOST));
    let opened = opened?;
    let (done, warm, _) = timed(|| opened.warm_up(&Cx::free()));
    done?;
    let describe: serde_json::Value = serde_json::from_str(&opened.describe())?;
    println!("{}", json!({"open_cpu_s": open, "warm_up_cpu_s": warm, "describe": describe}));
    sweep(&args, &set, &*opened, "opened")
}

fn sweep(args: &Args, set: &Set, index: &dyn VectorIndex, state: &str) -> Result<(), Box<dyn Error>> {
    let queries: &[f32] = bytemuck::try_cast_slice(&set.queries).map_err(|error| error.to_string())?;
    let truth: &[u32] = bytemuck::try_cast_slice(&set.truth).map_err(|error| error.to_string())?;
    let (n, k) = (queries.len() / args.dim, args.k);
    for &share in &args.filter {
        let allowed: Vec<u64> = (0..index.stats().live).step_by(share.max(1)).collect();
        for &ef in &args.ef {
            for &batch in &args.batch {
                let mut out = vec![Hit::NONE; n * k];
                let (mut best, mut wall) = (f64::INFINITY, f64::INFINITY);
                for _ in 0..args.rounds {
                    let filter = (share > 0).then(|| IdFilter::sorted(&allowed));
                    let calls = queries.chunks(batch * args.dim).zip(out.chunks_mut(batch * k));
                    let (done, cpu, clock) = timed(|| {
                        calls.into_iter().try_for_each(|(queries, out)| {
                            index.search(&Cx::free(), queries, k, SearchParams::with_ef(ef), filter, out)
                        })
                    });
                    done?;
                    (best, wall) = (best.min(cpu), wall.min(clock));
                }
                let found = out.chunks(k).zip(truth.chunks(args.truth)).map(|(hits, truth)| {
                    let truth: HashSet<u64> = truth[..k].iter().map(|&row| row.into()).collect();
                    hits.iter().filter(|hit| truth.contains(&hit.id)).count()
                });
                // What a filter should find, truth.u32 does not say.
                let recall = (share == 0).then(|| found.sum::<usize>() as f64 / (n * k) as f64);
                println!(
                    "{}",
                    json!({
                        "state": state, "ef": ef, "batch": batch, "filter_one_in": share, "recall": recall,
                        "qps_per_cpu_s": n as f64 / best, "qps": n as f64 / wall,
                    })
                );
            }
        }
    }
    Ok(())
}
