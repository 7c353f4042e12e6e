//! How sealed rows are searched: by all codes, by those of some lists, or by a walk of the graph; then by the
//! originals of the best.
use super::Sealed;
use crate::{
    best::Best,
    candidates::Candidates,
    codes::{ByCodes, Codes, Query},
    container::Part,
    exact::Exact,
    graph::{Candidate, Graph, Scorer, Scratch},
    int4, int8, parallel,
    rabitq::{self, Accept, ROWS, Run, Scan, Target},
    rotation::LANES,
};
use magray_plugin_api::{CallContext, Hit, Metric, Result};
use std::{
    ops::Range,
    sync::{MutexGuard, PoisonError},
};

/// Codes that are worth a thread: some 200 µs of scanning, several times what a thread takes to start.
const THREAD_WORDS: usize = 4 << 20;

/// Rows in view of walks that are worth a thread, some 100 µs.
const THREAD_STEPS: usize = 256;

/// Bytes of codes of rows that are worth a thread, some 200 µs.
const THREAD_CODES: usize = 2 << 20;

/// Originals that are asked of memory ahead.
const AHEAD: usize = 8;

/// Queries that a thread scans together.
const GROUP: usize = 16;

/// Bytes of codes of rows that all queries of a group are compared with before the next ones are read: a quarter of
/// a second-level cache.
const CHUNK_CODES: usize = 256 << 10;

/// Rows beyond those that are wanted which are scored by the originals in any case.
const SURE: usize = 4;

/// The most rows that are scored by the originals after a scan; twice as many of what lists found, where most are twice.
pub(crate) fn doubtful(k: usize) -> usize {
    8 * k + 32
}

/// What to search for, and how hard.
pub(crate) struct Request<'a> {
    /// Each as [`crate::exact::prepare`] made it.
    pub(crate) queries: &'a [Vec<f32>],
    pub(crate) k: usize,
    /// How many of the rows with the best codes are scored again, at least `k`.
    pub(crate) rescore: usize,
    /// How many lists are scanned, where there are lists.
    pub(crate) probes: usize,
    /// How many rows a walk keeps in view, where there is a graph.
    pub(crate) breadth: usize,
    /// About how many rows may be found.
    pub(crate) passing: usize,
    /// Which places may be found.
    pub(crate) accept: Option<Accept<'a>>,
    pub(crate) threads: usize,
}

impl Sealed {
    /// The codes of the rows, where they lie row by row.
    fn codes(&self) -> Option<Codes<'_>> {
        let codes = self.container.part(Part::Codes);
        if self.container.shape().step.is_some() {
            return int4::Codes::new(self.spec.dim, codes, self.container.part(Part::Half))
                .map(Codes::Nibbles);
        }
        let stride = int8::stride(self.spec.dim);
        int8::Codes::new(stride, codes, self.container.part(Part::Half)).map(Codes::Bytes)
    }

    /// A query as it is compared with [`Sealed::codes`].
    fn query(&self, query: &[f32]) -> Query {
        Query::new(self.kernel, self.spec.metric, query, &self.quantizer, self.container.shape().step)
    }

    pub(super) fn scanned(&self) -> Scan<'_> {
        Scan {
            kernel: self.kernel,
            words: rabitq::words(self.spec.dim, self.bits()),
            bits: self.container.part(Part::Bits),
            factors: self.container.part(Part::Factors),
        }
    }

    /// The hits of each query, best first, by comparing it with the rows at `places`.
    pub(crate) fn exact(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        places: &[u32],
    ) -> Result<Vec<Vec<Hit>>> {
        let Request { queries, k, threads, .. } = *request;
        let exact = Exact { kernel: self.kernel, spec: self.spec, threads, queries, k };
        let found = exact.among(cx, places, |place, room, score| {
            let scale = self.read(place, room);
            score(self.ids()[place], room, scale);
        })?;
        Ok(found.into_iter().map(Best::into_sorted).collect())
    }

    /// The hits of each query, best first, among the rows at `places`: by all of their codes, and of the best
    /// by the originals.
    pub(crate) fn among(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        places: &[u32],
    ) -> Result<Vec<Vec<Hit>>> {
        let best = Candidates::new(doubtful(request.k));
        let Some(codes) = self.codes().filter(|_| places.len() > best.limit()) else {
            return self.exact(cx, request, places);
        };
        let work = places.len() * codes.stride() * request.queries.len();
        let threads = request.threads.min(work / THREAD_CODES).max(1);
        let share = request.queries.len().div_ceil(threads).clamp(1, GROUP);
        let groups: Vec<&[Vec<f32>]> = request.queries.chunks(share).collect();
        let found = parallel::map(threads, groups, |queries| {
            let coded: Vec<Query> = queries.iter().map(|query| self.query(query)).collect();
            let mut best = vec![best.clone(); queries.len()];
            for places in places.chunks((CHUNK_CODES / codes.stride()).max(1)) {
                cx.check()?;
                for (query, best) in coded.iter().zip(&mut best) {
                    self.offer(codes, query, places, best);
                }
            }
            let found = queries.iter().zip(best);
            Ok(found
                .map(|(query, best)| self.by_originals(request, query, by_distance(best)))
                .collect::<Vec<_>>())
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// About how many rows a scan goes through for a query; with lists, many of them twice.
    pub(crate) fn scanned_rows(&self, probes: usize) -> f64 {
        let share = if self.lists() == 0 { 1.0 } else { probes as f64 / self.lists() as f64 };
        (self.container.shape().blocks() * ROWS) as f64 * share.min(1.0)
    }

    /// The hits of each query, best first, by the codes.
    pub(crate) fn search(&self, cx: &dyn CallContext, request: &Request<'_>) -> Result<Vec<Vec<Hit>>> {
        if let Some(outline) = &self.outline
            && let Some(codes) = self.codes()
        {
            return self.walk(cx, request, &outline.graph(self.container.part(Part::Graph)), codes);
        }
        let blocks = self.container.shape().blocks();
        let words = self.scanned_rows(request.probes) * rabitq::words(self.spec.dim, self.bits()) as f64;
        let work = (words * request.queries.len() as f64) as usize;
        let threads = request.threads.min(work / THREAD_WORDS).max(1);
        if self.lists() == 0 && request.queries.len() < threads {
            // Each thread scans a part of the codes for all queries.
            let part = blocks.div_ceil(threads).max(1);
            let parts: Vec<Range<usize>> =
                (0..blocks).step_by(part).map(|begin| begin..blocks.min(begin + part)).collect();
            let scan = |part| self.scan(cx, request, request.queries, part);
            let mut parts = parallel::map(threads, parts, scan)?.into_iter();
            let mut found = parts.next().unwrap_or_default();
            for part in parts {
                found.iter_mut().zip(part).for_each(|(all, part)| all.merge(part));
            }
            let found = request.queries.iter().zip(found);
            return Ok(found.map(|(query, found)| self.rescore(request, query, found)).collect());
        }
        let share = request.queries.len().div_ceil(threads).clamp(1, GROUP);
        let groups: Vec<&[Vec<f32>]> = request.queries.chunks(share).collect();
        let found = parallel::map(threads, groups, |queries| {
            let found = self.scan(cx, request, queries, 0..blocks)?;
            let found = queries.iter().zip(found).map(|(query, found)| self.rescore(request, query, found));
            Ok(found.collect::<Vec<_>>())
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// The rows of each query with the best codes, of `blocks`, or of the lists where there are some.
    fn scan(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        queries: &[Vec<f32>],
        blocks: Range<usize>,
    ) -> Result<Vec<Candidates>> {
        match self.lists() {
            0 => self.scan_flat(cx, request, &self.tables(queries), blocks),
            _ => self.scan_lists(cx, request, queries, &self.tables(queries)),
        }
    }

    /// What the scan looks up for each query.
    fn tables(&self, queries: &[Vec<f32>]) -> Vec<rabitq::Query> {
        let width = self.rotation.width();
        if let [query] = queries {
            return self.tables_of(std::slice::from_ref(query), &mut vec![[0.0]; width]);
        }
        let mut tile = vec![[0.0; LANES]; width];
        queries.chunks(LANES).flat_map(|queries| self.tables_of(queries, &mut tile)).collect()
    }

    /// The tables of at most `L` queries.
    fn tables_of<const L: usize>(&self, queries: &[Vec<f32>], tile: &mut [[f32; L]]) -> Vec<rabitq::Query> {
        tile.fill([0.0; L]);
        for (lane, query) in queries.iter().enumerate() {
            for ((dim, q), center) in tile.iter_mut().zip(query).zip(self.quantizer.center()) {
                dim[lane] = q - center;
            }
        }
        self.kernel.rotate(&self.rotation, tile);
        let lane = |lane: usize| tile.iter().map(|dim| dim[lane]).collect::<Vec<_>>();
        (0..queries.len()).map(|at| rabitq::Query::new(&lane(at), self.bits())).collect()
    }

    fn scan_flat(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        tables: &[rabitq::Query],
        blocks: Range<usize>,
    ) -> Result<Vec<Candidates>> {
        let mut found = vec![Candidates::new(request.rescore); tables.len()];
        let scan = self.scanned();
        // A few milliseconds of work between two looks at the context.
        let step = ((32 << 20) / (scan.words * ROWS * tables.len().max(1))).max(64);
        for begin in blocks.clone().step_by(step) {
            cx.check()?;
            let mut targets: Vec<Target<'_>> =
                tables.iter().zip(&mut found).map(|(query, found)| Target { query, found }).collect();
            let run = Run { blocks: begin..blocks.end.min(begin + step), base: 0.0 };
            scan.run(&[run], &mut targets, request.accept);
        }
        Ok(found)
    }

    /// Scores what a scan found by the codes of the rows, and the best of that by the originals.
    fn rescore(&self, request: &Request<'_>, query: &[f32], found: Candidates) -> Vec<Hit> {
        let mut places = self.places_of(found);
        let twice = if self.lists() > 0 { 2 } else { 1 };
        let mut best = Candidates::new(twice * doubtful(request.k));
        match self.codes() {
            Some(codes) if places.len() > request.k + SURE => {
                self.offer(codes, &self.query(query), &places, &mut best);
                self.by_originals(request, query, by_distance(best))
            }
            _ => {
                places.sort_unstable();
                places.dedup();
                let mut hits = Vec::with_capacity(places.len());
                self.score_originals(query, places.into_iter(), &mut hits);
                best_of(hits, request.k)
            }
        }
    }

    /// The places of what a scan found; with lists some of them twice.
    fn places_of(&self, found: Candidates) -> Vec<u32> {
        if self.lists() == 0 {
            return found.into_places();
        }
        let mut places = found.into_about_places();
        let slots: &[u32] = self.container.part(Part::Slots);
        places.iter_mut().for_each(|place| *place = slots[*place as usize]);
        // What a damaged file says is left out.
        places.retain(|&place| (place as usize) < self.rows());
        places
    }

    /// Offers each of `places` by its code.
    fn offer(&self, codes: Codes<'_>, query: &Query, places: &[u32], best: &mut Candidates) {
        let mut distances = vec![0.0; places.len()];
        ByCodes::new(self.byte_kernel, codes, query, self.spec.metric).score(places, &mut distances);
        best.offer(distances.iter().map(|distance| -distance), places);
    }

    /// The best, by the originals, of some rows that are sorted by their codes, the nearest first. Codes
    /// leave some in doubt where many rows are about as near: then more are compared, for as long as what codes were
    /// off by so far could bring a row among the best.
    fn by_originals(
        &self,
        request: &Request<'_>,
        query: &[f32],
        found: impl Iterator<Item = Candidate>,
    ) -> Vec<Hit> {
        let mut found = found.peekable();
        let (mut taken, mut hits) = (Vec::new(), Vec::new());
        let mut count = request.k + SURE;
        loop {
            let begin = taken.len();
            taken.extend(found.by_ref().take(count));
            let rows = taken[begin..].iter().map(|candidate: &Candidate| candidate.row);
            self.score_originals(query, rows, &mut hits);
            match found.peek() {
                Some(next) if self.may_be_among_best(request.k, &taken, &hits, next.distance) => {}
                _ => return best_of(hits, request.k),
            }
            // A look costs about as much as some rows do.
            count = hits.len() / 3;
        }
    }

    /// Whether a row at this distance by its code may be among the `k` best of `hits`, which are the rows of `found`:
    /// whether it is within three deviations of what the codes of these were off by.
    fn may_be_among_best(&self, k: usize, found: &[Candidate], hits: &[Hit], distance: f32) -> bool {
        let exact = |hit: &Hit| if self.spec.metric == Metric::L2 { -0.5 * hit.score } else { -hit.score };
        let mut distances: Vec<f32> = hits.iter().map(exact).collect();
        let errors = || distances.iter().zip(found).map(|(distance, found)| distance - found.distance);
        let count = hits.len() as f32;
        let mean = errors().sum::<f32>() / count;
        let deviation = (errors().map(|error| (error - mean) * (error - mean)).sum::<f32>() / count).sqrt();
        let (_, &mut last, _) = distances.select_nth_unstable_by(k.min(hits.len()) - 1, f32::total_cmp);
        distance + mean - 3.0 * deviation <= last
    }

    /// Adds a hit for each of some places, in their order, by its original.
    fn score_originals(
        &self,
        query: &[f32],
        places: impl ExactSizeIterator<Item = u32> + Clone,
        hits: &mut Vec<Hit>,
    ) {
        let mut row = vec![0.0; self.spec.dim];
        places.clone().take(AHEAD).for_each(|place| self.prefetch(place));
        let mut ahead = places.clone().skip(AHEAD);
        for place in places {
            if let Some(next) = ahead.next() {
                self.prefetch(next);
            }
            let scale = self.read(place as usize, &mut row);
            let score = self.kernel.score(self.spec.metric, query, &row, scale);
            hits.push(Hit::new(self.ids()[place as usize], score));
        }
    }

    /// Asks memory for an original and what goes with it.
    fn prefetch(&self, place: u32) {
        let at = place as usize;
        let row = at * self.spec.dim..(at + 1) * self.spec.dim;
        if self.is_wide() {
            int8::prefetch(&self.container.part::<f32>(Part::Originals)[row]);
        } else {
            int8::prefetch(&self.container.part::<u16>(Part::Originals)[row]);
        }
        int8::prefetch(&self.ids()[at..=at]);
        int8::prefetch(self.container.part::<f32>(Part::Scales).get(at..=at).unwrap_or_default());
    }

    /// The hits of each query by a walk of the graph. Where it does not find enough, for a filter lets
    /// few rows through or such that are far away, each that passes is compared instead.
    fn walk(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        graph: &Graph<'_>,
        codes: Codes<'_>,
    ) -> Result<Vec<Vec<Hit>>> {
        let work = request.queries.len() * request.breadth;
        let threads = request.threads.min(work / THREAD_STEPS).clamp(1, request.queries.len().max(1));
        let share = request.queries.len().div_ceil(threads).max(1);
        let breadth = request.breadth.max(request.k);
        let groups: Vec<&[Vec<f32>]> = request.queries.chunks(share).collect();
        let found = parallel::map(threads, groups, |queries| {
            let mut scratch = self.scratches().pop().unwrap_or_default();
            let mut hits = Vec::with_capacity(queries.len());
            for query in queries {
                cx.check()?;
                let coded = self.query(query);
                let mut scorer = ByCodes::new(self.byte_kernel, codes, &coded, self.spec.metric);
                let found = match request.accept {
                    None => Some(graph.search(&mut scorer, request.k, breadth, &mut scratch)),
                    Some(accept) => {
                        let budget = request.passing.max(4 * breadth);
                        let accept = |row| accept(row as usize);
                        graph.search_filtered(&mut scorer, breadth, accept, budget, &mut scratch)
                    }
                };
                // Of a graph that hangs together badly a walk may see less than is asked for.
                hits.push(match found.filter(|found| found.len() >= request.k) {
                    Some(found) => self.by_originals(request, query, found.iter().copied()),
                    None => {
                        let accept =
                            |place: &u32| request.accept.is_none_or(|accept| accept(*place as usize));
                        let places: Vec<u32> = (0..self.rows() as u32).filter(accept).collect();
                        let alone = Request { queries: std::slice::from_ref(query), threads: 1, ..*request };
                        self.among(cx, &alone, &places)?.concat()
                    }
                });
            }
            self.scratches().push(scratch);
            Ok(hits)
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    // A scratch is as good after a panic as before: every search begins with a clean one.
    fn scratches(&self) -> MutexGuard<'_, Vec<Scratch>> {
        self.scratches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What was found by codes, as candidates.
fn by_distance(found: Candidates) -> impl Iterator<Item = Candidate> {
    found.into_sorted().map(|(score, row)| Candidate { distance: -score, row })
}

/// The `k` best of some hits, best first.
fn best_of(hits: Vec<Hit>, k: usize) -> Vec<Hit> {
    let mut best = Best::new(k);
    hits.into_iter().for_each(|hit| best.push(hit));
    best.into_sorted()
}
