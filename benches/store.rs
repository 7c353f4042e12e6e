//! What it takes until a record is acknowledged: single records from several writers at once, which share
//! a wait for the disk, and batches. By the clock, for that is what a writer waits.
//!
//! The database is in the folder for temporary files (`$TMPDIR`): name one on the disk that you ask about.
#![expect(clippy::print_stdout, reason = "a table, which criterion has no place for")]

use magray::store::{Durability, Layer, NewRecord, SpaceId, Store, StoreOptions};
use std::{
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};
use tempfile::TempDir;

const DIM: usize = 384;
/// How long each line is measured.
const TIME: Duration = Duration::from_secs(3);

static NEXT: AtomicUsize = AtomicUsize::new(0);

fn record() -> NewRecord {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let mut vector = vec![0.01; DIM];
    vector[number % DIM] = 1.0;
    let text = format!("Record {number} is about as long as a note that somebody leaves in passing.");
    NewRecord { vector: Some(vector), ..NewRecord::new(Layer::Insights, text) }
}

fn store(durability: Durability) -> (TempDir, Store, SpaceId) {
    let folder = tempfile::tempdir().expect("a folder");
    let options = StoreOptions { durability, ..StoreOptions::default() };
    let store = Store::open(&folder.path().join("magray.db"), &options).expect("a store");
    let space = store.space([7; 32], "bench", DIM).expect("a space");
    (folder, store, space)
}

/// Milliseconds of each call, in order of their length, and how long all of them took together.
fn measure(durability: Durability, writers: usize, batch: usize) -> (Vec<f64>, f64) {
    let (_folder, store, space) = store(durability);
    let started = Instant::now();
    let mut calls: Vec<f64> = thread::scope(|scope| {
        let write = || {
            let mut calls = Vec::new();
            while started.elapsed() < TIME {
                let records = (0..batch).map(|_| record()).collect();
                let call = Instant::now();
                store.add(Some(space), records).expect("stored");
                calls.push(call.elapsed().as_secs_f64() * 1e3);
            }
            calls
        };
        let writers: Vec<_> = (0..writers).map(|_| scope.spawn(write)).collect();
        writers.into_iter().flat_map(|writer| writer.join().expect("a writer")).collect()
    });
    calls.sort_by(f64::total_cmp);
    (calls, started.elapsed().as_secs_f64())
}

fn main() {
    println!("| durability | writers | records a call | p50 of a call | p99 | ms a record | records/s |");
    println!("|---|---|---|---|---|---|---|");
    for durability in [Durability::Full, Durability::Normal] {
        for (writers, batch) in [(1, 1), (4, 1), (16, 1), (1, 100), (1, 1000)] {
            let (calls, seconds) = measure(durability, writers, batch);
            let at = |share: f64| calls[((calls.len() - 1) as f64 * share) as usize];
            let records = (calls.len() * batch) as f64;
            println!(
                "| {durability:?} | {writers} | {batch} | {:.2} ms | {:.2} ms | {:.3} | {:.0} |",
                at(0.5),
                at(0.99),
                at(0.5) / batch as f64,
                records / seconds
            );
        }
    }
}
