use crate::{Fault, Options, SCHEMA, misbehave};
use magray_plugin_api::{
    CallContext, Capabilities, CreateVectorIndex, Error, ErrorCode, Health, Hit, Host, IdFilter, IndexSpec,
    IndexStats, Metric, Result, SearchParams, VectorIndex,
};
use magray_plugin_testkit::Oracle;
use std::{
    collections::HashSet,
    path::{Path, PathBuf},
    sync::{
        RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// The oracle as an index.
pub(crate) struct Exact {
    fault: Fault,
    spec: IndexSpec,
    state: RwLock<State>,
    searches: AtomicU64,
    opened: Option<PathBuf>,
}

struct State {
    oracle: Oracle,
    /// What `save` writes: ids and their vectors.
    log: Vec<(u64, Vec<f32>)>,
    dead: u64,
}

/// The vectors that an index with [`Fault::ForgetsTail`] compares: whole eights.
fn head(vectors: &[f32], dim: usize) -> Vec<f32> {
    let keep = |at: usize| at % dim < dim / 8 * 8;
    vectors.iter().enumerate().map(|(at, &v)| if keep(at) { v } else { 0.0 }).collect()
}

impl CreateVectorIndex for Exact {
    type Options = Options;
    const OPTIONS_SCHEMA: &'static str = SCHEMA;

    fn create(options: Options, spec: IndexSpec, _: &'static dyn Host) -> Result<Self> {
        let fault = options.check()?;
        if fault == Fault::DoesOnlyL2 && spec.metric != Metric::L2 {
            return Err(Error::new(ErrorCode::UNSUPPORTED, "l2 only"));
        }
        let state = State { oracle: Oracle::new(spec), log: Vec::new(), dead: 0 };
        Ok(Self { fault, spec, state: RwLock::new(state), searches: AtomicU64::new(0), opened: None })
    }

    fn open(options: Options, spec: IndexSpec, dir: &Path, host: &'static dyn Host) -> Result<Self> {
        let mut index = Self::create(options, spec, host)?;
        index.opened = Some(dir.to_owned());
        let fault = index.fault;
        let corrupt = |what: &str| Error::new(ErrorCode::CORRUPT_DATA, what);
        let bytes = match std::fs::read(dir.join("vectors")) {
            Err(_) if fault == Fault::OpensNothing => return Ok(index),
            read => read.map_err(|e| corrupt(&e.to_string()))?,
        };
        let mut words = bytes.chunks(8).map(|word| word.try_into().map_or(0, u64::from_le_bytes));
        let header: Vec<u64> = words.by_ref().take(3).collect();
        let &[dim, metric, count] = &header[..] else { return Err(corrupt("no header")) };
        let fits = (dim, metric) == (spec.dim as u64, spec.metric as u64);
        if !fits && fault != Fault::OpensAnySpec {
            return Err(corrupt("another spec"));
        }
        if count == 0 && fault == Fault::RefusesEmptyFile {
            return Err(corrupt("nothing in it"));
        }
        let expected = (count.wrapping_mul(dim.wrapping_add(1))).wrapping_add(3).wrapping_mul(8);
        if expected != bytes.len() as u64 {
            match fault {
                Fault::IgnoresTruncation => {}
                Fault::PanicsOnDamage => panic!("{expected} bytes expected"),
                _ => return Err(corrupt("length")),
            }
        }
        let words: Vec<u64> = words.collect();
        for row in words.chunks_exact(spec.dim + 1) {
            let vector: Vec<f32> = row[1..].iter().map(|&bits| f32::from_bits(bits as u32)).collect();
            if vector.iter().all(|v| v.is_finite()) {
                index.store(&row[..1], &vector);
            }
        }
        Ok(index)
    }
}

impl Exact {
    fn store(&self, ids: &[u64], vectors: &[f32]) {
        let mut state = self.state.write().unwrap();
        for (&id, vector) in ids.iter().zip(vectors.chunks_exact(self.spec.dim)) {
            let held = state.log.iter().any(|(held, _)| *held == id);
            if held && self.fault == Fault::KeepsFirst {
                continue;
            }
            if self.fault == Fault::MergesEqual && state.log.iter().any(|(_, other)| other == vector) {
                continue;
            }
            match self.fault {
                Fault::ForgetsTail => state.oracle.upsert(&[id], &head(vector, self.spec.dim)),
                _ => state.oracle.upsert(&[id], vector),
            }
            state.dead += u64::from(held);
            state.log.retain(|(held, _)| *held != id);
            state.log.push((id, vector.to_vec()));
        }
    }

    fn hits(&self, state: &State, query: &[f32], k: usize, filter: Option<IdFilter<'_>>) -> Vec<Hit> {
        let wavers = self.fault == Fault::Wavers && self.searches.fetch_add(1, Ordering::Relaxed) % 2 == 1;
        let forgets = (self.fault == Fault::ForgetsNearest && k < 100) || wavers;
        let mut hits = state.oracle.search(query, k + usize::from(forgets), filter);
        if forgets && !hits.is_empty() {
            hits.remove(0);
        }
        if self.fault == Fault::WorstFirst {
            hits.reverse();
        }
        // The largest square that f32 has room for.
        let large = query.iter().any(|v| v.abs() > 1e19);
        for hit in &mut hits {
            match (self.fault, self.spec.metric) {
                (Fault::HalvesCosine, Metric::Cosine) => hit.score /= 2.0,
                (Fault::NegatesDot, Metric::Dot) => hit.score = hit.score.exp(),
                (Fault::NegatesL2, Metric::L2) => hit.score = 1.0 / (1.0 - hit.score),
                (Fault::Overflows, Metric::Cosine) if large => hit.score = 0.0,
                _ => {}
            }
        }
        hits
    }
}

impl VectorIndex for Exact {
    fn spec(&self) -> IndexSpec {
        let dim = self.spec.dim + usize::from(self.fault == Fault::OtherSpec);
        IndexSpec { dim, ..self.spec }
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { exact: true, concurrent_write: true, filtered: true, mapped: false }
    }
    fn stats(&self) -> IndexStats {
        let state = self.state.read().unwrap();
        let dead = if self.fault == Fault::CountsDead { state.dead } else { 0 };
        IndexStats { live: state.oracle.ids().len() as u64 + dead, ..IndexStats::default() }
    }
    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()> {
        let fault = self.fault;
        if let Err(error) = self.spec.check_upsert(ids, vectors) {
            let rows = (vectors.len() / self.spec.dim).min(ids.len());
            let zero = vectors.chunks(self.spec.dim).any(|row| row.iter().all(|&v| v == 0.0));
            let whole = vectors.len() == ids.len() * self.spec.dim;
            match fault {
                Fault::TakesReservedId if ids.contains(&u64::MAX) => {}
                Fault::TakesZero if whole && zero => return Ok(()),
                Fault::TakesAnyLength if !whole => {
                    self.store(&ids[..rows], vectors);
                    return Ok(());
                }
                Fault::StoresBeforeChecking => {
                    self.store(ids, vectors);
                    return Err(error);
                }
                _ => return Err(error),
            }
        }
        let is_zero = |vector: &[f32]| vector.iter().all(|&v| v == 0.0);
        if fault == Fault::RefusesZero && vectors.chunks_exact(self.spec.dim).any(is_zero) {
            return Err(Error::invalid_input("a vector is zero"));
        }
        if fault == Fault::RefusesLargeIds && ids.iter().any(|&id| id > 1 << 40) {
            return Err(Error::invalid_input("so many ids cannot be"));
        }
        if fault == Fault::RefusesEmptyCalls && ids.is_empty() {
            return Err(Error::invalid_input("nothing to do"));
        }
        if fault == Fault::OpensReadOnly && self.opened.is_some() {
            return Err(Error::new(ErrorCode::UNSUPPORTED, "it is sealed"));
        }
        assert!(fault != Fault::HatesChance || ids.len() != 5, "asked to panic at 5 ids");
        if fault != Fault::IgnoresCancel {
            cx.check()?;
        }
        misbehave(fault);
        if fault == Fault::FirstOfOneIdCounts {
            for (id, vector) in ids.iter().zip(vectors.chunks_exact(self.spec.dim)).rev() {
                self.store(&[*id], vector);
            }
            return Ok(());
        }
        if fault == Fault::HidesWhileWriting {
            // The old state is away for long enough that a reader meets that.
            let empty = State { oracle: Oracle::new(self.spec), log: Vec::new(), dead: 0 };
            let held = std::mem::replace(&mut *self.state.write().unwrap(), empty);
            std::thread::sleep(Duration::from_millis(5));
            *self.state.write().unwrap() = held;
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
        state.dead += removed as u64;
        if self.fault != Fault::SavesRemoved {
            state.log.retain(|(id, _)| !ids.contains(id));
        }
        let distinct: HashSet<&u64> = ids.iter().collect();
        Ok(if self.fault == Fault::CountsUnknownRemovals { distinct.len() } else { removed })
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
        if self.fault == Fault::ReadsLate && self.opened.as_ref().is_some_and(|dir| !dir.exists()) {
            return Err(Error::new(ErrorCode::IO, "the files are gone"));
        }
        let state = self.state.read().unwrap();
        if self.fault == Fault::FailsWhenEmpty && state.log.is_empty() {
            return Err(Error::new(ErrorCode::INTERNAL, "no entry point"));
        }
        if k == 0 {
            return Ok(());
        }
        let filter = filter.filter(|filter| match self.fault {
            Fault::IgnoresBitmap => !format!("{filter:?}").contains("is_bitmap: 1"),
            Fault::IgnoresList => !format!("{filter:?}").contains("is_bitmap: 0"),
            Fault::IgnoresEmptyFilter => filter.count() > 0,
            _ => true,
        });
        let first = &queries[..self.spec.dim.min(queries.len())];
        for (query, out) in queries.chunks_exact(self.spec.dim).zip(out.chunks_exact_mut(k)) {
            let query = if self.fault == Fault::FirstQueryOnly { first } else { query };
            let hits = self.hits(&state, query, k, filter);
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
    fn warm_up(&self, _: &dyn CallContext) -> Result<()> {
        crate::warm_up(self.fault)
    }
    fn health(&self) -> Health {
        crate::health(self.fault)
    }
    fn tune(&self, name: &str, value: &str) -> Result<()> {
        crate::tune(self.fault, name, value)
    }
    fn describe(&self) -> String {
        crate::describe(self.fault)
    }
}
