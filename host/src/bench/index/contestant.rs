//! A contestant and its process.
use super::{
    super::{
        BenchError, Contestant,
        throughput::command,
        worker::{Held, Worker},
    },
    Build, Curve, Filter, Filtered, Searched,
    set::{K, VectorSet},
    worker::{IndexReply, IndexTask, Setting, name_of},
    write_failed,
};
use std::{collections::HashSet, fs, io, path::Path};

/// A contestant with a worker that has started.
pub(super) struct Running<'a> {
    pub(super) contestant: &'a Contestant,
    threads: usize,
    worker: Worker,
    engine: String,
    options: String,
}

impl<'a> Running<'a> {
    pub(super) fn start(
        contestant: &'a Contestant,
        threads: usize,
        set: &VectorSet,
    ) -> Result<Self, BenchError> {
        let program = command(&contestant.worker, &contestant.env);
        let mut worker = Worker::spawn(&contestant.name, program, threads)?;
        let absolute = |path: &Path| path.canonicalize().map_err(write_failed(path));
        let (base, queries) = set.paths();
        let start = IndexTask::Start {
            threads,
            base: absolute(base)?,
            queries: absolute(queries)?,
            query_count: set.query_count(),
            metric: name_of(set.metric()).to_owned(),
            k: K,
        };
        match worker.ask(&start)? {
            IndexReply::Ready { engine, options } => {
                Ok(Self { contestant, threads, worker, engine, options })
            }
            other => Err(worker.odd(&other)),
        }
    }

    /// Lets it build and save in the folder, and ends it.
    pub(super) fn build(mut self, folder: &Path, rows: usize) -> Result<Build, BenchError> {
        fs::create_dir_all(folder).map_err(write_failed(folder))?;
        match self.worker.ask(&IndexTask::Build { folder: folder.to_owned() })? {
            IndexReply::Built { cpu_s, seconds } if cpu_s > 0.0 => Ok(Build {
                name: self.contestant.name.clone(),
                engine: self.engine,
                options: self.options,
                threads: self.threads,
                vectors_per_cpu_s: rows as f64 / cpu_s,
                seconds,
                file_bytes_per_vector: bytes_below(folder).map_err(write_failed(folder))? as f64
                    / rows as f64,
            }),
            other => Err(self.worker.odd(&other)),
        }
    }

    pub(super) fn open(mut self, folder: &Path) -> Result<Opened<'a>, BenchError> {
        let before = self.worker.resident_bytes();
        match self.worker.ask(&IndexTask::Open { folder: folder.to_owned() })? {
            IndexReply::Opened { seconds, first_s, filters, settings } if !settings.is_empty() => {
                Ok(Opened {
                    running: self,
                    before,
                    open_ms: seconds * 1000.0,
                    first_ms: first_s * 1000.0,
                    filters,
                    settings,
                    held: None,
                    curves: Vec::new(),
                    filtered: Vec::new(),
                })
            }
            other => Err(self.worker.odd(&other)),
        }
    }
}

/// A contestant with a worker that has opened its index.
pub(super) struct Opened<'a> {
    pub(super) running: Running<'a>,
    /// Bytes that it had resident before.
    before: Option<u64>,
    open_ms: f64,
    first_ms: f64,
    pub(super) filters: bool,
    pub(super) settings: Vec<Setting>,
    held: Option<Held>,
    pub(super) curves: Vec<Curve>,
    pub(super) filtered: Vec<Filtered>,
}

/// What a search over all queries gave.
pub(super) struct Found {
    pub(super) ids: Vec<Vec<u64>>,
    pub(super) time: Time,
}

/// Seconds of a search.
pub(super) struct Time {
    /// Of one pass over all queries, by the process's CPU time.
    pub(super) cpu_s: f64,
    /// And by the wall's clock.
    pub(super) wall_s: f64,
    /// Of each call of all passes.
    pub(super) calls: Vec<f64>,
}

impl Opened<'_> {
    /// The knobs that reach the recall asked for, by the first curve.
    pub(super) fn chosen(&self) -> Setting {
        let chosen = self.curves.first().and_then(|curve| curve.points.get(curve.chosen));
        chosen.map(|point| point.setting.clone()).unwrap_or_default()
    }

    pub(super) fn search(
        &mut self,
        set: &VectorSet,
        setting: &Setting,
        batch: usize,
        filter: Option<&Filter>,
    ) -> Result<Found, BenchError> {
        let worker = &mut self.running.worker;
        let path = filter.map(|filter| filter.path.clone());
        let reply = worker.ask(&IndexTask::Search { setting: setting.clone(), batch, filter: path })?;
        let IndexReply::Found { cpu_s, seconds, ids, held } = reply else { return Err(worker.odd(&reply)) };
        self.held = held.or(self.held);
        // Each pass over the queries takes as many calls.
        let calls = set.query_count().div_ceil(batch.max(1));
        if !cpu_s.is_finite() || cpu_s <= 0.0 || seconds.is_empty() || !seconds.len().is_multiple_of(calls) {
            let told = format!("{cpu_s} CPU-seconds and {} calls, where a pass is {calls}", seconds.len());
            return Err(worker.fault(told));
        }
        let allowed = filter.map(|filter| &filter.allowed);
        if let Some(fault) = fault_in(&ids, set.query_count(), set.rows(), allowed) {
            return Err(worker.fault(fault));
        }
        let wall_s = seconds.iter().sum::<f64>() / (seconds.len() / calls) as f64;
        Ok(Found { ids, time: Time { cpu_s, wall_s, calls: seconds } })
    }

    pub(super) fn end(self, rows: usize) -> Searched {
        let grown = self.running.worker.resident_bytes().zip(self.before);
        let grown = grown.map(|(after, before)| after.saturating_sub(before) as f64 / rows as f64);
        Searched {
            name: self.running.contestant.name.clone(),
            threads: self.running.threads,
            open_ms: self.open_ms,
            first_ms: self.first_ms,
            memory_bytes_per_vector: grown,
            held: self.held,
            curves: self.curves,
            filtered: self.filtered,
        }
    }
}

/// What is wrong with an answer, of whatever recall.
fn fault_in(ids: &[Vec<u64>], queries: usize, rows: usize, allowed: Option<&HashSet<u64>>) -> Option<String> {
    if ids.len() != queries {
        return Some(format!("it answers {} queries of {queries}", ids.len()));
    }
    let fault = |(query, ids): (usize, &Vec<u64>)| {
        let mut seen = HashSet::new();
        let wrong = if ids.len() > K {
            format!("{} neighbours where {K} were asked for", ids.len())
        } else if let Some(id) = ids.iter().find(|&&id| id >= rows as u64) {
            format!("id {id}, and there are {rows} vectors")
        } else if let Some(id) = ids.iter().find(|&&id| !seen.insert(id)) {
            format!("id {id} twice")
        } else {
            let id = ids.iter().find(|id| allowed.is_some_and(|allowed| !allowed.contains(id)))?;
            format!("id {id}, which the filter forbids")
        };
        Some(format!("it answers query {query} with {wrong}"))
    };
    ids.iter().enumerate().find_map(fault)
}

/// Length of all files in a folder and the folders in it.
fn bytes_below(folder: &Path) -> io::Result<u64> {
    fs::read_dir(folder)?.try_fold(0, |sum, entry| {
        let entry = entry?;
        let found = entry.metadata()?;
        Ok(sum + if found.is_dir() { bytes_below(&entry.path())? } else { found.len() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_answer_is_told_from_one_of_low_recall() {
        let fault = |ids: &[&[u64]]| {
            let ids: Vec<Vec<u64>> = ids.iter().map(|ids| ids.to_vec()).collect();
            fault_in(&ids, 2, 20, Some(&(0..15).collect())).unwrap_or_default()
        };
        assert_eq!(fault(&[&[3, 1], &[]]), "");
        assert!(fault(&[&[1]]).contains("1 queries of 2"));
        assert!(fault(&[&[1], &[20]]).contains("query 1 with id 20, and there are 20 vectors"));
        assert!(fault(&[&[1, 2, 1], &[]]).contains("query 0 with id 1 twice"));
        assert!(fault(&[&[16], &[]]).contains("id 16, which the filter forbids"));
        assert!(fault(&[&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10], &[]]).contains("11 neighbours"));
        assert_eq!(fault_in(&[vec![16]], 1, 20, None), None);
    }
}
