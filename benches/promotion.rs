//! What a cycle of promotion takes over 100,000 records: where nothing was used since the last one, by number
//! of records that were used and stay, and by number of those that move. By the clock, without waiting
//! for the disk, and in CPU time of the process, which the thread that writes is part of.
//!
//! `MAGRAY_BENCH_ROWS` is another number of records.
#![expect(clippy::print_stdout, reason = "a table, which criterion has no place for")]

use magray::{
    config::Config,
    memory::promotion::{Policy, PromotionOptions, PromotionReport, promote},
    store::{Durability, Filter, Layer, NewRecord, RecordId, SpaceId, Store, StoreOptions},
};
use magray_plugin_testkit::Cx;
use std::{
    env,
    time::{Instant, SystemTime, UNIX_EPOCH},
};
use tempfile::TempDir;

const DIM: usize = 384;
const HOUR: u64 = 3_600_000;
/// Of each line; the median counts.
const ROUNDS: usize = 9;

struct World {
    store: Store,
    space: SpaceId,
    policy: Policy,
    ids: Vec<RecordId>,
    now: u64,
    _folder: TempDir,
}

impl World {
    fn new(rows: usize) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let options = StoreOptions { durability: Durability::Normal, ..StoreOptions::default() };
        let store = Store::open(&folder.path().join("magray.db"), &options).expect("a store");
        let space = store.space([7; 32], "bench", DIM).expect("a space");
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let now = u64::try_from(since.as_millis()).unwrap_or(u64::MAX);
        let mut ids = Vec::with_capacity(rows);
        for first in (0..rows).step_by(10_000) {
            let records = (first..rows.min(first + 10_000)).map(|n| {
                let mut vector = vec![0.01; DIM];
                vector[n % DIM] = 1.0;
                let text = format!("Record {n} is about as long as a note that somebody leaves in passing. ");
                NewRecord {
                    vector: Some(vector),
                    expires_ms: Some(now + 24_000 * HOUR),
                    ..NewRecord::new(
                        if n % 2 == 0 { Layer::Interact } else { Layer::Insights },
                        text.repeat(4),
                    )
                }
            });
            let added = store.add(Some(space), records.collect()).expect("stored");
            ids.extend(added.iter().map(|added| added.id));
        }
        let config = Config::load(None, std::iter::empty(), &[]).expect("the defaults").config;
        Self { store, space, policy: Policy::new(&config.memory), ids, now: now + 48 * HOUR, _folder: folder }
    }

    fn cycle(&self) -> PromotionReport {
        let options = PromotionOptions::default();
        promote(&Cx::free(), &self.store, Some(self.space), &self.policy, &options, self.now)
            .expect("a cycle")
    }

    /// Medians in milliseconds, by the clock and of the CPU, of a cycle after `times` uses of `count` records,
    /// after which all is as before.
    fn measure(&mut self, count: usize, times: usize, moves: bool) -> (f64, f64) {
        let (mut clock, mut cpu) = (Vec::new(), Vec::new());
        for round in 0..ROUNDS {
            self.now += 1;
            // Others each time: a use of before stays counted.
            let start = round * count % self.ids.len();
            let used: Vec<RecordId> = self.ids.iter().cycle().skip(start).take(count).copied().collect();
            for _ in 0..times {
                self.store.touch(&used, self.now);
            }
            self.store.flush().expect("counted");
            let (started, cpu_started) = (Instant::now(), cpu_ms());
            let report = self.cycle();
            cpu.push(cpu_ms() - cpu_started);
            clock.push(started.elapsed().as_secs_f64() * 1e3);
            assert_eq!((report.weighed, report.expired), (count as u64, 0));
            assert_eq!(report.moves.len(), if moves { count } else { 0 });
            if moves {
                self.store.undo_promotions(None, self.now).expect("undone");
            }
        }
        (median(clock), median(cpu))
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Milliseconds that this process has computed.
fn cpu_ms() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists on every system that this runs on, and `time` is ours.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &raw mut time) }, 0);
    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 / 1e6
}

fn main() {
    let rows = env::var("MAGRAY_BENCH_ROWS").ok().and_then(|rows| rows.parse().ok()).unwrap_or(100_000);
    let mut world = World::new(rows);
    assert_eq!(world.store.count(&Filter::default()).expect("counted"), rows as u64);
    println!("| {rows} records, a cycle where | clock | CPU | CPU each |");
    println!("|---|---|---|---|");
    let mut line = |what: &str, count: usize, times: usize, moves: bool| {
        let (clock, cpu) = world.measure(count, times, moves);
        let each = if count == 0 { String::new() } else { format!("{:.1} us", cpu * 1e3 / count as f64) };
        println!("| {what} | {clock:.2} ms | {cpu:.2} ms | {each} |");
    };
    line("nothing was used", 0, 0, false);
    for count in [100, 1000] {
        line(&format!("{count} were used once, and stay"), count, 1, false);
    }
    for count in [100, 1000] {
        line(&format!("{count} were used often, and move"), count, 40, true);
    }
}
