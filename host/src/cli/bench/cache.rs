use super::{ReportJson, print_machine};
use crate::{
    bench::{Answered, CacheFigures, CacheSize, CacheTrace, Machine, measure_cache},
    cli::{
        Failure, Outcome,
        args::Global,
        memory, setup,
        terminal::{BOLD, DIM, Terminal, UntilInterrupted},
    },
};
use clap::Args;
use indicatif::HumanBytes;
use magray_plugin_api::ComponentKind;
use std::{collections::BTreeSet, path::PathBuf};

/// Measure how much cache policies answer of a trace of requests, and what they cost
#[derive(Debug, Args)]
#[command(after_help = "\
FILE is little-endian u32 keys (.u32), records of libCacheSim with sizes (.oracleGeneral.bin), or text
with one key a line, such as a log of queries; each also compressed (.zst, .gz). Times in it do not count:
nothing grows too old.

Each policy runs through its plugin, in caches of each size that begin empty. `belady` is what a cache
would answer that knows the future: where all entries weigh the same, none that always holds what was
asked for last answers more. `in use` is the share that the cache of embeddings answers under the
policy, which makes room for up to 500 entries at once. Operations are timed in a full cache of
100,000 entries, in CPU time.

Examples:
  magray bench cache --trace queries.log
  magray bench cache --trace web.u32.zst --caches lru,s3fifo --sizes 1%,10%,5000
  magray bench cache --trace disks.oracleGeneral.bin.zst --sizes 128MiB,1GiB --json
  magray bench cache --zipf 200000,1.0 --requests 2000000 --sizes 100000")]
pub(in crate::cli) struct CacheCommand {
    /// Trace to replay
    #[arg(long, value_name = "FILE", required_unless_present = "zipf")]
    trace: Option<PathBuf>,
    /// Make a trace of KEYS keys, that at rank r asked for in proportion to r^-SKEW
    #[arg(long, value_name = "KEYS,SKEW", conflicts_with = "trace", value_parser = zipf)]
    zipf: Option<(u32, f64)>,
    /// Requests of a trace that is made
    #[arg(long, value_name = "N", default_value_t = 1_000_000, value_parser = clap::value_parser!(u32).range(1..), requires = "zipf")]
    requests: u32,
    /// Cache profiles of the config, or policies of plugins, separated by commas [default: all policies]
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    caches: Vec<String>,
    /// Sizes, separated by commas: entries (or bytes where the trace has sizes, as in 64MiB), or percent
    /// of all keys (or of their bytes)
    #[arg(long, value_name = "SIZES", value_delimiter = ',', default_value = "1%,5%,10%,20%", value_parser = size)]
    sizes: Vec<CacheSize>,
}

/// Parses `--zipf`.
fn zipf(text: &str) -> Result<(u32, f64), String> {
    let parts = text.split_once(',').and_then(|(keys, skew)| Some((keys.parse().ok()?, skew.parse().ok()?)));
    parts
        .filter(|&(keys, skew): &(u32, f64)| keys > 0 && (0.0..=10.0).contains(&skew))
        .ok_or_else(|| "it must be KEYS,SKEW, as in 100000,1.0; SKEW is 0 to 10".to_owned())
}

/// Parses one of `--sizes`.
fn size(text: &str) -> Result<CacheSize, String> {
    let percent = |text: &str| {
        text.parse().ok().filter(|percent| (0.0..=100.0).contains(percent)).map(CacheSize::Percent)
    };
    let number = |text: &str| memory::bytes(text).ok().map(CacheSize::Exactly);
    text.strip_suffix('%')
        .map_or_else(|| number(text), percent)
        .ok_or_else(|| "it must be a number above 0, as in 5000 or 64MiB, or percent, as in 2.5%".to_owned())
}

impl CacheCommand {
    pub(super) fn run(self, global: &Global, terminal: &Terminal) -> Result<Outcome, Failure> {
        let setup = setup(global, terminal)?;
        let plugins = setup.plugins();
        let mut names = self.caches;
        if names.is_empty() {
            let all: BTreeSet<_> =
                plugins.offered(ComponentKind::CachePolicy).map(|policy| policy.name.clone()).collect();
            names.extend(all);
        }
        let machine = Machine::here();
        let measured = {
            let progress = terminal.progress("replays");
            let trace = match (&self.trace, self.zipf) {
                (Some(path), _) => CacheTrace::open(path)?,
                (None, Some((keys, skew))) => CacheTrace::zipf(keys as usize, skew, self.requests as usize),
                (None, None) => return Err(Failure::Usage("name a trace, or --zipf".to_owned())),
            };
            measure_cache(
                &UntilInterrupted,
                &setup,
                &plugins,
                &trace,
                &names,
                &self.sizes,
                &mut |done, of, name| {
                    progress.0.set_length(of as u64);
                    progress.0.set_position(done as u64);
                    progress.0.set_message(name.to_owned());
                },
            )?
        };
        if terminal.json {
            terminal.print_json(&ReportJson::new(&machine, &measured))?;
        } else {
            print_machine(terminal, &machine)?;
            print(terminal, &measured)?;
        }
        Ok(Outcome::Done)
    }
}

fn print(terminal: &Terminal, measured: &CacheFigures) -> Result<(), Failure> {
    let CacheFigures { trace, requests, unique, unique_bytes, sizes, operations } = measured;
    let bytes = unique_bytes.map(|bytes| format!(", {}", HumanBytes(bytes))).unwrap_or_default();
    terminal.print(format_args!("{trace}: {requests} requests of {unique} keys{bytes}"))?;
    let names = operations.iter().map(|cost| cost.name.len());
    let width = names.chain(["belady".len()]).max().unwrap_or(0);
    let percent =
        |ratio: Option<f64>| ratio.map_or_else(String::new, |ratio| format!("{:.4}", 100.0 * ratio));
    for size in sizes {
        let capacity = match unique_bytes {
            Some(_) => HumanBytes(size.capacity).to_string(),
            None => format!("{} entries", size.capacity),
        };
        terminal.print(format_args!(
            "\n{BOLD}{capacity}{BOLD:#}\n  {:<width$} {:>9} {:>10} {:>9} {:>9} {:>12}",
            "", "hits %", "misses", "bytes %", "in use %", "bytes/entry"
        ))?;
        let row = |name: &str, answered: &Answered, in_use: Option<f64>, bytes: &str| {
            let Answered { misses, hit_ratio, byte_hit_ratio, .. } = *answered;
            let (hits, bytes_hit) = (percent(Some(hit_ratio)), percent(byte_hit_ratio));
            let in_use = percent(in_use);
            terminal.print(format_args!(
                "  {name:<width$} {hits:>9} {misses:>10} {bytes_hit:>9} {in_use:>9} {bytes:>12}"
            ))
        };
        for policy in &size.policies {
            let bytes = format!("{:.0}", policy.bytes_per_entry);
            row(&policy.name, &policy.answered, policy.in_cache_hit_ratio, &bytes)?;
        }
        row("belady", &size.belady, None, "")?;
    }
    terminal.print(format_args!(
        "\n{BOLD}nanoseconds an operation{BOLD:#}\n  {:<width$} {:>7} {:>7}",
        "", "hit", "miss"
    ))?;
    for cost in operations {
        terminal.print(format_args!("  {:<width$} {:>7.0} {:>7.0}", cost.name, cost.hit_ns, cost.miss_ns))?;
    }
    terminal.print(format_args!("{DIM}a miss is an insertion and the eviction that makes room{DIM:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_numbers_or_percent() {
        assert_eq!(size("5000"), Ok(CacheSize::Exactly(5000)));
        assert_eq!(size("64MiB"), Ok(CacheSize::Exactly(64 << 20)));
        assert_eq!(size("2.5%"), Ok(CacheSize::Percent(2.5)));
        for bad in ["", "0", "-1", "x", "101%", "NaN%", "1.5", "99999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
        assert_eq!(zipf("10,1.1"), Ok((10, 1.1)));
        for bad in ["10", "0,1", "10,-1", "10,NaN"] {
            assert!(zipf(bad).is_err(), "{bad}");
        }
    }
}
