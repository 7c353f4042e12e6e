//! Rows that do not change any more, as codes and originals, and how they are searched.

use crate::{
    best::Best,
    build::Plan,
    candidates::Candidates,
    container::{Container, Part},
    exact::Exact,
    graph::{ByCodes, Graph, Outline, Scratch},
    int8::{self, Quantizer},
    ivf::list_of,
    options::Options,
    parallel,
    rabitq::{self, Accept, Kernel, ROWS, Scan, Target},
    rotation::{LANES, Rotation},
};
use magray_plugin_api::{CallContext, Error, ErrorCode, Hit, IndexSpec, Metric, Result};
use std::{
    ops::Range,
    path::Path,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Codes that are worth a thread: some 200 µs of scanning, several times what a thread takes to start.
const THREAD_WORDS: usize = 4 << 20;

/// Rows in view of walks that are worth a thread, some 100 µs.
const THREAD_STEPS: usize = 256;

/// So many rows are scanned in the time in which a walk compares one.
const SCANNED: usize = 50;

/// Queries that a thread scans together.
const GROUP: usize = 16;

/// The share of the nearest rows that the lists which a search scans by default must hold.
const FOUND: f64 = 0.99;

/// Of the rows that were scored by int8 codes so many times `k` are scored by the originals, and a few
/// more, for in one case of a thousand the order of int8 scores is off by as much.
const EXACT: (usize, usize) = (2, 8);

/// The index as it was built, in memory or mapped from its file.
#[derive(Debug)]
pub(crate) struct Sealed {
    spec: IndexSpec,
    kernel: Kernel,
    byte_kernel: int8::Kernel,
    container: Container,
    quantizer: Quantizer,
    rotation: Rotation,
    /// Where there is a graph.
    outline: Option<Outline>,
    /// For the searches of a graph to come.
    scratches: Mutex<Vec<Scratch>>,
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
    /// Which places may be found.
    pub(crate) accept: Option<Accept<'a>>,
    pub(crate) threads: usize,
}

impl Sealed {
    /// Opens the file in `dir`.
    ///
    /// # Errors
    /// As [`Container::open`].
    pub(crate) fn open(spec: IndexSpec, kernel: Kernel, dir: &Path) -> Result<Self> {
        Self::new(spec, kernel, Container::open(spec, dir)?).ok_or_else(|| {
            Error::new(
                ErrorCode::CORRUPT_DATA,
                format!("{}: the index is damaged and must be built anew", dir.display()),
            )
        })
    }

    /// `None` where the parts contradict each other. What is in the codes and vectors is not looked
    /// at: damage there makes wrong scores and nothing worse.
    pub(crate) fn new(spec: IndexSpec, kernel: Kernel, container: Container) -> Option<Self> {
        let shape = *container.shape();
        let ids: &[u64] = container.part(Part::Ids);
        let sound = if shape.lists == 0 {
            let (rows, none) = ids.split_at(shape.rows);
            rows.is_sorted_by(|a, b| a < b)
                && rows.last() != Some(&u64::MAX)
                && none.iter().all(|&id| id == u64::MAX)
        } else {
            let starts: &[u32] = container.part(Part::Starts);
            starts.is_sorted()
                && starts.first() == Some(&0)
                && starts.last().is_some_and(|&end| end as usize == shape.blocks())
        };
        let quantizer = Quantizer::new(container.part::<f32>(Part::Center).to_vec(), shape.scale)?;
        let rotation = Rotation::new(32 * rabitq::words(spec.dim), shape.seed);
        let byte_kernel = int8::Kernel::detect();
        let outline = match container.part_bytes(Part::Graph) {
            0 => None,
            // An odd byte more or less makes it no graph.
            bytes if bytes % 4 != 0 || shape.lists > 0 => return None,
            _ => Some(Outline::read(shape.rows, container.part(Part::Graph))?),
        };
        sound.then(|| Self {
            spec,
            kernel,
            byte_kernel,
            container,
            quantizer,
            rotation,
            outline,
            scratches: Mutex::default(),
        })
    }

    pub(crate) fn container(&self) -> &Container {
        &self.container
    }

    pub(crate) fn container_mut(&mut self) -> &mut Container {
        &mut self.container
    }

    pub(crate) fn rows(&self) -> usize {
        self.container.shape().rows
    }

    pub(crate) fn places(&self) -> usize {
        self.container.shape().places
    }

    pub(crate) fn lists(&self) -> usize {
        self.container.shape().lists
    }

    /// `u64::MAX` where a place has no row.
    pub(crate) fn ids(&self) -> &[u64] {
        self.container.part(Part::Ids)
    }

    /// The place of `id`.
    pub(crate) fn find(&self, id: u64) -> Option<usize> {
        // The id of a place without a row, and what a damaged order would read as.
        if id == u64::MAX {
            return None;
        }
        let ids = self.ids();
        if self.lists() == 0 {
            return ids[..self.rows()].binary_search(&id).ok();
        }
        let order: &[u32] = self.container.part(Part::Order);
        let of = |&place: &u32| ids.get(place as usize).copied().unwrap_or(u64::MAX);
        let at = order.binary_search_by_key(&id, of).ok()?;
        Some(order[at] as usize)
    }

    /// Reads the vector at `place` into `out`, and what makes its length 1 under cosine, else 1.
    pub(crate) fn read(&self, place: usize, out: &mut [f32]) -> f32 {
        let range = place * self.spec.dim..(place + 1) * self.spec.dim;
        if self.is_wide() {
            out.copy_from_slice(&self.container.part(Part::Originals)[range]);
        } else {
            self.kernel.widen(&self.container.part(Part::Originals)[range], out);
        }
        self.container.part(Part::Scales).get(place).copied().unwrap_or(1.0)
    }

    /// Whether the originals are f32.
    pub(crate) fn is_wide(&self) -> bool {
        self.container.shape().wide
    }

    /// Whether it is laid out as `options` say.
    pub(crate) fn is_as(&self, options: &Options) -> bool {
        let shape = self.container.shape();
        Plan::new(options, shape.rows, self.spec.dim) == Plan { graph: self.has_graph(), lists: shape.lists }
            && options.seed == shape.seed
    }

    /// Whether it is walked and not scanned.
    pub(crate) fn has_graph(&self) -> bool {
        self.outline.is_some()
    }

    fn codes(&self) -> Option<int8::Codes<'_>> {
        let stride = int8::stride(self.spec.dim);
        int8::Codes::new(stride, self.container.part(Part::Codes), self.container.part(Part::Half))
    }

    fn scan(&self) -> Scan<'_> {
        Scan {
            kernel: self.kernel,
            words: rabitq::words(self.spec.dim),
            bits: self.container.part(Part::Bits),
            factors: self.container.part(Part::Factors),
        }
    }

    /// The hits of each query, best first, by comparing it with the rows at `places`.
    pub(crate) fn exact(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        places: &[usize],
    ) -> Result<Vec<Vec<Hit>>> {
        let Request { queries, k, threads, .. } = *request;
        let exact = Exact { kernel: self.kernel, spec: self.spec, threads, queries, k };
        let found = exact.among(cx, places, |place, room, score| {
            let scale = self.read(place, room);
            score(self.ids()[place], room, scale);
        })?;
        Ok(found.into_iter().map(Best::into_sorted).collect())
    }

    /// The hits of each query, best first, by the codes.
    pub(crate) fn search(&self, cx: &dyn CallContext, request: &Request<'_>) -> Result<Vec<Vec<Hit>>> {
        if let Some(outline) = &self.outline
            && let Some(codes) = self.codes()
        {
            return self.walk(cx, request, &outline.graph(self.container.part(Part::Graph)), codes);
        }
        let blocks = self.container.shape().blocks();
        let share = if self.lists() == 0 { 1.0 } else { request.probes as f64 / self.lists() as f64 };
        let words = (self.places() * rabitq::words(self.spec.dim)) as f64 * share;
        let work = (words * request.queries.len() as f64) as usize;
        let threads = request.threads.min(work / THREAD_WORDS).max(1);
        if self.lists() == 0 && request.queries.len() < threads {
            // Each thread scans a part of the codes for all queries.
            let part = blocks.div_ceil(threads).max(1);
            let parts: Vec<Range<usize>> =
                (0..blocks).step_by(part).map(|begin| begin..blocks.min(begin + part)).collect();
            let tables = self.tables(request.queries);
            let mut parts =
                parallel::map(threads, parts, |part| self.scan_flat(cx, request, &tables, part))?.into_iter();
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
            let tables = self.tables(queries);
            let found = if self.lists() == 0 {
                self.scan_flat(cx, request, &tables, 0..blocks)?
            } else {
                self.scan_lists(cx, request, queries, &tables)?
            };
            let found = queries.iter().zip(found).map(|(query, found)| self.rescore(request, query, found));
            Ok(found.collect::<Vec<_>>())
        })?;
        Ok(found.into_iter().flatten().collect())
    }

    /// What the scan looks up for each query.
    fn tables(&self, queries: &[Vec<f32>]) -> Vec<rabitq::Query> {
        let width = 32 * rabitq::words(self.spec.dim);
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
        (0..queries.len()).map(|at| rabitq::Query::new(&lane(at))).collect()
    }

    fn scan_flat(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        tables: &[rabitq::Query],
        blocks: Range<usize>,
    ) -> Result<Vec<Candidates>> {
        let mut found = vec![Candidates::new(request.rescore); tables.len()];
        let scan = self.scan();
        // A few milliseconds of work between two looks at the context.
        let step = ((32 << 20) / (scan.words * ROWS * tables.len().max(1))).max(64);
        for begin in blocks.clone().step_by(step) {
            cx.check()?;
            let mut targets: Vec<Target<'_>> = tables
                .iter()
                .zip(&mut found)
                .map(|(query, found)| Target { query, base: 0.0, found })
                .collect();
            scan.run(begin..blocks.end.min(begin + step), &mut targets, request.accept);
        }
        Ok(found)
    }

    fn scan_lists(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        queries: &[Vec<f32>],
        tables: &[rabitq::Query],
    ) -> Result<Vec<Candidates>> {
        let scan = self.scan();
        let starts: &[u32] = self.container.part(Part::Starts);
        let mut all = Vec::with_capacity(queries.len());
        for (query, table) in queries.iter().zip(tables) {
            cx.check()?;
            let mut found = Candidates::new(request.rescore);
            for list in self.nearest_lists(query, request.probes) {
                let at = list.id as usize;
                let blocks = starts[at] as usize..starts[at + 1] as usize;
                let target = Target { query: table, base: list.score, found: &mut found };
                scan.run(blocks, &mut [target], request.accept);
            }
            all.push(found);
        }
        Ok(all)
    }

    /// The lists to scan, the nearest first, each as a hit with its number and the term of a score that
    /// is of the query and the list.
    fn nearest_lists(&self, query: &[f32], probes: usize) -> Vec<Hit> {
        let centroids: &[f32] = self.container.part(Part::Centroids);
        let mut nearest = Best::new(probes.clamp(1, self.lists()));
        for (list, centroid) in (0..).zip(centroids.chunks_exact(self.spec.dim)) {
            let base = match self.spec.metric {
                Metric::L2 => 0.5 * self.kernel.score(Metric::L2, query, centroid, 1.0),
                _ => self.kernel.score(Metric::Dot, query, centroid, 1.0),
            };
            nearest.push(Hit::new(list, base));
        }
        nearest.into_sorted()
    }

    /// How many of the nearest lists hold [`FOUND`] of the nearest rows of `queries`, which are rows.
    pub(crate) fn needed_probes(
        &self,
        cx: &dyn CallContext,
        threads: usize,
        queries: &[Vec<f32>],
    ) -> Result<usize> {
        // The nearest is the row itself.
        let k = 11.min(self.rows());
        let rescore = (32 * k).min(self.places());
        let request =
            Request { queries, k, rescore, probes: self.lists(), breadth: 0, accept: None, threads };
        let found = self.search(cx, &request)?;
        let starts: &[u32] = self.container.part(Part::Starts);
        let mut ranks = Vec::new();
        for (query, hits) in queries.iter().zip(found) {
            let mut rank = vec![self.lists(); self.lists()];
            for (at, list) in self.nearest_lists(query, self.lists()).iter().enumerate() {
                rank[list.id as usize] = at;
            }
            let places = hits.iter().skip(1).filter_map(|hit| self.find(hit.id));
            ranks.extend(places.map(|place| rank[list_of(starts, place / ROWS)] + 1));
        }
        ranks.sort_unstable();
        let needed = ranks.get((ranks.len() as f64 * FOUND) as usize).or(ranks.last());
        Ok(needed.copied().unwrap_or(1).clamp(1, self.lists()))
    }

    /// Scores what a scan found by the int8 codes, and the best of that by the originals.
    fn rescore(&self, request: &Request<'_>, query: &[f32], found: Candidates) -> Vec<Hit> {
        let mut places = found.into_places();
        let exact = EXACT.0 * request.k + EXACT.1;
        if places.len() > exact
            && let Some(codes) = self.codes()
        {
            let mut queries = int8::Queries::new(codes.stride());
            self.quantizer.push_query(self.spec.metric, query, &mut queries);
            let mut dots = vec![0; places.len()];
            self.byte_kernel.dots(&codes, queries.get(0), &places, &mut dots);
            let mut best = Candidates::new(exact);
            for (&place, dot) in places.iter().zip(dots) {
                let score = match self.spec.metric {
                    Metric::L2 => dot - codes.half()[place as usize],
                    _ => dot,
                };
                best.push(score as f32, place as usize);
            }
            places = best.into_places();
        }
        self.by_originals(request, query, places)
    }

    /// The best of some places by the originals.
    fn by_originals(
        &self,
        request: &Request<'_>,
        query: &[f32],
        places: impl IntoIterator<Item = u32>,
    ) -> Vec<Hit> {
        let mut row = vec![0.0; self.spec.dim];
        let mut best = Best::new(request.k);
        for place in places {
            let scale = self.read(place as usize, &mut row);
            let score = self.kernel.score(self.spec.metric, query, &row, scale);
            best.push(Hit::new(self.ids()[place as usize], score));
        }
        best.into_sorted()
    }

    /// The hits of each query by a walk of the graph. Where it does not find enough, for a filter lets
    /// few rows through or such that are far away, the codes of one bit are scanned instead.
    fn walk(
        &self,
        cx: &dyn CallContext,
        request: &Request<'_>,
        graph: &Graph<'_>,
        codes: int8::Codes<'_>,
    ) -> Result<Vec<Vec<Hit>>> {
        let work = request.queries.len() * request.breadth;
        let threads = request.threads.min(work / THREAD_STEPS).clamp(1, request.queries.len().max(1));
        let share = request.queries.len().div_ceil(threads).max(1);
        let exact = EXACT.0 * request.k + EXACT.1;
        let breadth = request.breadth.max(exact);
        let groups: Vec<&[Vec<f32>]> = request.queries.chunks(share).collect();
        let found = parallel::map(threads, groups, |queries| {
            let mut scratch = self.scratches().pop().unwrap_or_default();
            let mut coded = int8::Queries::new(codes.stride());
            let mut hits = Vec::with_capacity(queries.len());
            for query in queries {
                cx.check()?;
                coded.clear();
                self.quantizer.push_query(self.spec.metric, query, &mut coded);
                let by_distance = self.spec.metric == Metric::L2;
                let mut scorer = ByCodes::new(self.byte_kernel, codes, coded.get(0), by_distance);
                let found = match request.accept {
                    None => Some(graph.search(&mut scorer, breadth, &mut scratch)),
                    Some(accept) => {
                        let budget = (self.rows() / SCANNED).max(4 * breadth);
                        let accept = |row| accept(row as usize);
                        graph.search_filtered(&mut scorer, breadth, accept, budget, &mut scratch)
                    }
                };
                // Of a graph that hangs together badly a walk may see less than is asked for.
                hits.push(match found.filter(|found| found.len() >= request.k) {
                    Some(found) => {
                        let places = found.iter().take(exact).map(|candidate| candidate.row);
                        self.by_originals(request, query, places)
                    }
                    None => {
                        let tables = self.tables(std::slice::from_ref(query));
                        let blocks = self.container.shape().blocks();
                        let found = self.scan_flat(cx, request, &tables, 0..blocks)?;
                        found.into_iter().flat_map(|found| self.rescore(request, query, found)).collect()
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
