use super::*;
use crate::Oracle;
use magray_plugin_api::{CallContext, Capabilities, Error, IndexStats};
use std::sync::RwLock;

/// What an [`Exact`] does wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Fault {
    None,
    WorstFirst,
    NoPadding,
    KeepsRemoved,
    CountsUnknownRemovals,
    FirstOfOneIdCounts,
    TakesReservedId,
    StoresBeforeChecking,
    IgnoresFilter,
    NegatesL2,
    ForgetsNearest,
    IgnoresCancel,
    PanicsOnDamage,
    IgnoresTruncation,
    OpensAnySpec,
    SavesRemoved,
    RefusesZero,
}

/// The oracle as an index.
struct Exact {
    fault: Fault,
    spec: IndexSpec,
    state: RwLock<State>,
}

struct State {
    oracle: Oracle,
    /// What `save` writes: ids and their vectors.
    log: Vec<(u64, Vec<f32>)>,
}

impl Exact {
    fn new(fault: Fault, spec: IndexSpec) -> Self {
        Self { fault, spec, state: RwLock::new(State { oracle: Oracle::new(spec), log: Vec::new() }) }
    }

    fn open(fault: Fault, spec: IndexSpec, dir: &Path) -> Result<Self> {
        let corrupt = |what: &str| Error::new(ErrorCode::CORRUPT_DATA, what);
        let bytes = std::fs::read(dir.join("vectors")).map_err(|e| corrupt(&e.to_string()))?;
        let mut words = bytes.chunks(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let header: Vec<u64> = words.by_ref().take(3).collect();
        let &[dim, metric, count] = &header[..] else { return Err(corrupt("no header")) };
        let fits = (dim, metric) == (spec.dim as u64, spec.metric as u64);
        if !fits && fault != Fault::OpensAnySpec {
            return Err(corrupt("another spec"));
        }
        let expected = (count.wrapping_mul(dim.wrapping_add(1))).wrapping_add(3).wrapping_mul(8);
        if expected != bytes.len() as u64 {
            match fault {
                Fault::IgnoresTruncation => {}
                Fault::PanicsOnDamage => panic!("{expected} bytes expected"),
                _ => return Err(corrupt("length")),
            }
        }
        let index = Self::new(fault, spec);
        let words: Vec<u64> = words.collect();
        for row in words.chunks_exact(spec.dim + 1) {
            let vector: Vec<f32> = row[1..].iter().map(|&bits| f32::from_bits(bits as u32)).collect();
            if vector.iter().all(|v| v.is_finite()) {
                index.store(&row[..1], &vector);
            }
        }
        Ok(index)
    }

    fn store(&self, ids: &[u64], vectors: &[f32]) {
        let mut state = self.state.write().unwrap();
        for (&id, vector) in ids.iter().zip(vectors.chunks_exact(self.spec.dim)) {
            state.oracle.upsert(&[id], vector);
            state.log.retain(|(held, _)| *held != id);
            state.log.push((id, vector.to_vec()));
        }
    }
}

impl VectorIndex for Exact {
    fn spec(&self) -> IndexSpec {
        self.spec
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { exact: true, concurrent_write: true, filtered: true, mapped: false }
    }
    fn stats(&self) -> IndexStats {
        let live = self.state.read().unwrap().oracle.ids().len() as u64;
        IndexStats { live, ..IndexStats::default() }
    }
    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        if self.fault == Fault::StoresBeforeChecking {
            self.store(ids, vectors);
        }
        match self.spec.check_upsert(ids, vectors) {
            Err(_) if self.fault == Fault::TakesReservedId && ids.contains(&u64::MAX) => {}
            result => result?,
        }
        let is_zero = |vector: &[f32]| vector.iter().all(|&v| v == 0.0);
        if self.fault == Fault::RefusesZero && vectors.chunks_exact(self.spec.dim).any(is_zero) {
            return Err(Error::invalid_input("a vector is zero"));
        }
        if self.fault != Fault::IgnoresCancel {
            cx.check()?;
        }
        if self.fault == Fault::FirstOfOneIdCounts {
            for (id, vector) in ids.iter().zip(vectors.chunks_exact(self.spec.dim)).rev() {
                self.store(&[*id], vector);
            }
            return Ok(());
        }
        self.store(ids, vectors);
        Ok(())
    }
    fn remove(&self, _cx: &dyn CallContext, ids: &[u64]) -> Result<usize> {
        if self.fault == Fault::KeepsRemoved {
            return Ok(ids.len());
        }
        let mut state = self.state.write().unwrap();
        let removed = state.oracle.remove(ids);
        if self.fault != Fault::SavesRemoved {
            state.log.retain(|(id, _)| !ids.contains(id));
        }
        Ok(if self.fault == Fault::CountsUnknownRemovals { ids.len() } else { removed })
    }
    fn search(
        &self,
        cx: &dyn CallContext,
        queries: &[f32],
        k: usize,
        _params: SearchParams,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()> {
        self.spec.check_search(queries, k, out)?;
        if self.fault != Fault::IgnoresCancel {
            cx.check()?;
        }
        if k == 0 {
            return Ok(());
        }
        let state = self.state.read().unwrap();
        let filter = filter.filter(|_| self.fault != Fault::IgnoresFilter);
        for (query, out) in queries.chunks_exact(self.spec.dim).zip(out.chunks_exact_mut(k)) {
            let skipped = usize::from(self.fault == Fault::ForgetsNearest && k < 100);
            let mut hits = state.oracle.search(query, k + skipped, filter).split_off(skipped);
            if self.fault == Fault::WorstFirst {
                hits.reverse();
            }
            if self.fault == Fault::NegatesL2 && self.spec.metric == Metric::L2 {
                hits.iter_mut().for_each(|hit| hit.score = 1.0 / (1.0 - hit.score));
            }
            if self.fault != Fault::NoPadding {
                out.fill(Hit::NONE);
            }
            out[..hits.len()].copy_from_slice(&hits);
        }
        Ok(())
    }
    fn save(&self, _cx: &dyn CallContext, dir: &Path) -> Result<()> {
        let log = &self.state.read().unwrap().log;
        let mut words = vec![self.spec.dim as u64, self.spec.metric as u64, log.len() as u64];
        for (id, vector) in log {
            words.push(*id);
            words.extend(vector.iter().map(|v| u64::from(v.to_bits())));
        }
        let bytes: Vec<u8> = words.into_iter().flat_map(u64::to_le_bytes).collect();
        std::fs::write(dir.join("vectors"), bytes).map_err(|e| Error::from_source(ErrorCode::IO, &e))
    }
}

#[test]
fn a_right_index_passes() {
    let report = index(
        &|spec| Ok(Box::new(Exact::new(Fault::None, spec))),
        Some(&|spec, dir| Ok(Box::new(Exact::open(Fault::None, spec, dir)?))),
    );
    assert!(report.checks.iter().all(|check| check.outcome == Outcome::Passed), "{report}");
}

#[test]
fn names_are_unique() {
    let names: HashSet<&str> = entries().map(|entry| entry.0).collect();
    assert_eq!(names.len(), entries().count());
}

#[test]
fn a_wrong_index_is_caught() {
    for (fault, check) in [
        (Fault::WorstFirst, "best-first"),
        (Fault::NoPadding, "pads-with-none"),
        (Fault::KeepsRemoved, "removes"),
        (Fault::CountsUnknownRemovals, "removes"),
        (Fault::FirstOfOneIdCounts, "last-of-one-id-counts"),
        (Fault::TakesReservedId, "refuses-reserved-id"),
        (Fault::StoresBeforeChecking, "refuses-not-finite"),
        (Fault::IgnoresFilter, "filters-by-bitmap"),
        (Fault::NegatesL2, "scores-l2"),
        (Fault::ForgetsNearest, "recall-cosine"),
        (Fault::IgnoresCancel, "cancels"),
        (Fault::PanicsOnDamage, "survives-damaged-files"),
        (Fault::IgnoresTruncation, "refuses-truncated-files"),
        (Fault::OpensAnySpec, "refuses-other-spec"),
        (Fault::SavesRemoved, "saves-and-opens"),
        (Fault::SavesRemoved, "agrees-when-reopened"),
        (Fault::RefusesZero, "takes-zero"),
    ] {
        let make = |spec| -> Result<Index> { Ok(Box::new(Exact::new(fault, spec))) };
        let open = |spec, dir: &Path| -> Result<Index> { Ok(Box::new(Exact::open(fault, spec, dir)?)) };
        let &(name, asks, run) = entries().find(|entry| entry.0 == check).unwrap();
        let mut report = Report::default();
        report.run(name, asks, || run(&Subject::new(&make, Some(&open))));
        assert!(!report.passed(), "{check} missed {fault:?}");
    }
}

#[test]
fn what_it_cannot_do_is_skipped() {
    let make = |spec: IndexSpec| -> Result<Index> {
        match spec.metric {
            Metric::L2 => Ok(Box::new(Exact::new(Fault::None, spec))),
            _ => Err(Error::new(ErrorCode::UNSUPPORTED, "l2 only")),
        }
    };
    let report = index(&make, None);
    report.assert();
    let skipped = |name| {
        let check = report.checks.iter().find(|check| check.name == name).unwrap();
        matches!(check.outcome, Outcome::Skipped(_))
    };
    assert!(skipped("scores-dot") && skipped("saves-and-opens") && !skipped("scores-l2"), "{report}");
}
