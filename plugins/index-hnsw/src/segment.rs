use crate::{
    distance::{RowDistance, normalised},
    graph::Graph,
    ids::Ids,
    options::Parameters,
    rows::Rows,
};
use magray_plugin_api::{Error, ErrorCode, Hit, Host, IdFilter, IndexSpec, MemoryUse, Metric, Result};
use parking_lot::{Mutex, RwLock};
use std::{
    collections::HashMap,
    hash::{BuildHasher, BuildHasherDefault, DefaultHasher},
    sync::Arc,
};

/// `hnsw_rs` counts the points of a layer in an i32.
const MOST_ROWS: usize = i32::MAX as usize;

/// Rows that a scan compares with in the time in which a walk under a filter that refuses nothing
/// finds one candidate; a filter that lets one row in ten through makes that ten times as many.
/// Half of what was measured with 100,000 vectors of 384 numbers, for there the scanned rows were
/// in the cache.
const SCANNED_WHILE_WALKING: f64 = 250.0;

/// Ids on top of a graph.
///
/// The graph can forget nothing, so an id that is replaced gets another row, and a row that no id
/// holds is dead: a stepping stone of every search and never a result. Equal vectors share a row.
/// Were each a point of its own, more of them than a point has links would link to one another
/// only, and cut the graph in two.
///
/// Threads: any number of searches beside one writer.
pub(crate) struct Segment {
    spec: IndexSpec,
    rows: Arc<Rows>,
    distance: RowDistance,
    graph: Graph,
    ids: RwLock<Ids>,
    /// A row by the hash of its vector, to find its equals. Only the writer looks here.
    equals: Mutex<HashMap<u64, u32>>,
}

/// How to search: [`crate::Options::ef_search`] and [`crate::Options::exact_below`].
#[derive(Clone, Copy)]
pub(crate) struct Breadth {
    pub(crate) ef: usize,
    pub(crate) exact_below: usize,
}

impl Segment {
    pub(crate) fn new(spec: IndexSpec, parameters: &Parameters, host: &'static dyn Host) -> Self {
        let rows = Arc::new(Rows::new(spec.dim));
        let distance = RowDistance::new(Arc::clone(&rows), spec.metric);
        let graph = Graph::new(parameters, distance.clone(), host);
        Self { spec, rows, distance, graph, ids: RwLock::default(), equals: Mutex::default() }
    }

    /// A segment of parts that were saved: as many rows as points and as `ids` knows.
    pub(crate) fn from_parts(
        spec: IndexSpec,
        rows: Arc<Rows>,
        distance: RowDistance,
        graph: Graph,
        ids: Ids,
    ) -> Self {
        let equals = (0..rows.len() as u32).map(|row| (hash(rows.get(row)), row)).collect();
        Self { spec, rows, distance, graph, ids: RwLock::new(ids), equals: Mutex::new(equals) }
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    pub(crate) fn graph(&self) -> &Graph {
        &self.graph
    }

    pub(crate) fn simd(&self) -> &'static str {
        self.distance.simd()
    }

    /// An estimate.
    pub(crate) fn memory_use(&self) -> MemoryUse {
        let (rows, mapped) = self.rows.bytes();
        // A slot of a map that is between half and wholly full.
        let equals = self.rows.len() * 24;
        let resident = self.graph.bytes() + rows + self.ids.read().bytes() + equals;
        MemoryUse { resident: resident as u64, mapped: mapped as u64, device: 0 }
    }

    /// Calls `read` with the ids, which do not change meanwhile.
    pub(crate) fn with_ids<R>(&self, read: impl FnOnce(&Ids) -> R) -> R {
        read(&self.ids.read())
    }

    /// Every id with its vector, as stored.
    pub(crate) fn live(&self) -> Vec<(u64, &[f32])> {
        self.ids.read().entries().map(|(id, row)| (id, self.rows.get(row))).collect()
    }

    /// Stores vectors that the index has checked, no id twice. Each becomes visible, and what it
    /// replaces invisible, at one moment: after it has been linked.
    ///
    /// # Errors
    /// `UNSUPPORTED` where the graph can hold no more rows.
    pub(crate) fn insert(&self, batch: &[(u64, &[f32])], pool: Option<&rayon::ThreadPool>) -> Result<()> {
        let first = self.rows.len();
        if first + batch.len() > MOST_ROWS {
            return Err(Error::new(
                ErrorCode::UNSUPPORTED,
                format!("a graph of hnsw_rs holds {MOST_ROWS} vectors, the dead ones included"),
            ));
        }
        let entries: Vec<_> =
            batch.iter().map(|&(id, vector)| (id, self.row_for(self.stored(vector)))).collect();
        self.graph.insert(first as u32..self.rows.len() as u32, pool);

        let mut ids = self.ids.write();
        ids.grow(self.rows.len());
        for (id, row) in entries {
            ids.set(id, row);
        }
        Ok(())
    }

    /// The row of an equal vector, or a new one.
    fn row_for(&self, vector: Box<[f32]>) -> u32 {
        let mut equals = self.equals.lock();
        let hash = hash(&vector);
        if let Some(&row) = equals.get(&hash)
            && *self.rows.get(row) == *vector
        {
            return row;
        }
        let row = self.rows.len() as u32;
        self.rows.push(vector);
        equals.insert(hash, row);
        row
    }

    /// How many of `removed` were there.
    pub(crate) fn remove(&self, removed: &[u64]) -> usize {
        let mut ids = self.ids.write();
        removed.iter().filter(|&&id| ids.remove(id)).count()
    }

    /// Writes the best hits for `query`, checked by the index, to `out`.
    pub(crate) fn search(
        &self,
        query: &[f32],
        breadth: Breadth,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) {
        let query = self.stored(query);
        let ids = self.ids.read();
        let live = ids.len();
        let most = filter.map_or(live, |filter| live.min(usize::try_from(filter.count()).unwrap_or(live)));
        let wanted = out.len().min(most);
        let ef = breadth.ef.max(wanted);

        let mut hits = Vec::new();
        if !scan_is_quicker(&ids, most, Breadth { ef, ..breadth }, filter) {
            hits = self.walk(&ids, &query, wanted, ef, filter);
        }
        // A graph may fall apart; what it cannot reach is still owed.
        if hits.len() < wanted {
            hits = self.scan(&ids, &query, filter);
        }
        best_first(&mut hits, out);
    }

    /// Walks the graph.
    fn walk(&self, ids: &Ids, query: &[f32], k: usize, ef: usize, filter: Option<IdFilter<'_>>) -> Vec<Hit> {
        let hits = |found: Vec<(u32, f32)>| -> Vec<Hit> {
            let of_row = |(row, distance)| {
                let passing = ids.of(row).iter().filter(|&&id| passes(filter, id));
                passing.map(move |&id| Hit::new(id, self.distance.score(distance)))
            };
            found.into_iter().flat_map(of_row).collect()
        };
        if filter.is_none() {
            // A walk under a filter stops later. Where the dead are few and evenly spread it is
            // cheaper to ask for so many more.
            let dead = ids.dead_rows();
            let more = |n: usize| n + (n * dead).div_ceil((ids.rows() - dead).max(1));
            let hits = hits(self.graph.search(query, more(k), more(ef), None));
            if hits.len() >= k {
                return hits;
            }
        }
        let row_passes = |row| ids.of(row).iter().any(|&id| passes(filter, id));
        hits(self.graph.search(query, k, ef, Some(&row_passes)))
    }

    /// Compares with every vector that may be returned.
    fn scan(&self, ids: &Ids, query: &[f32], filter: Option<IdFilter<'_>>) -> Vec<Hit> {
        let hit =
            |(id, row)| Hit::new(id, self.distance.score(self.distance.between(query, self.rows.get(row))));
        match filter {
            Some(filter) if filter.count() <= ids.len() as u64 => {
                filter.iter().filter_map(|id| Some(hit((id, ids.row(id)?)))).collect()
            }
            _ => ids.entries().filter(|&(id, _)| passes(filter, id)).map(hit).collect(),
        }
    }

    /// A vector as the rows hold it.
    fn stored(&self, vector: &[f32]) -> Box<[f32]> {
        if self.spec.metric == Metric::Cosine { normalised(vector) } else { vector.into() }
    }
}

fn passes(filter: Option<IdFilter<'_>>, id: u64) -> bool {
    filter.is_none_or(|filter| filter.contains(id))
}

/// Whether to compare with each of the at most `most` vectors that may be returned, rather than to
/// walk the graph.
fn scan_is_quicker(ids: &Ids, most: usize, breadth: Breadth, filter: Option<IdFilter<'_>>) -> bool {
    if breadth.exact_below == 0 {
        return false;
    }
    most <= breadth.exact_below.max(4 * breadth.ef)
        || filter.is_some_and(|filter| {
            let share = share_passing(ids, filter);
            let walk = SCANNED_WHILE_WALKING * breadth.ef as f64 / share;
            share * (ids.len() as f64) < walk
        })
}

/// The share of rows with an id that passes, of a sample. The filter's own count does not tell,
/// for it may name ids that are not here.
fn share_passing(ids: &Ids, filter: IdFilter<'_>) -> f64 {
    const SAMPLE: usize = 512;
    let sample = (0..ids.rows() as u32).step_by(ids.rows().div_ceil(SAMPLE).max(1));
    let (sampled, passing) = sample.fold((0, 0), |(sampled, passing), row| {
        (sampled + 1, passing + u32::from(ids.of(row).iter().any(|&id| filter.contains(id))))
    });
    f64::from(passing) / f64::from(sampled.max(1))
}

/// Equal on every run, for equal bits.
fn hash(vector: &[f32]) -> u64 {
    BuildHasherDefault::<DefaultHasher>::default().hash_one(bytemuck::cast_slice::<f32, u8>(vector))
}

/// Writes the best of `hits` to `out`; equal scores by ascending id.
fn best_first(hits: &mut Vec<Hit>, out: &mut [Hit]) {
    let nearer = |a: &Hit, b: &Hit| b.score.total_cmp(&a.score).then(a.id.cmp(&b.id));
    if out.len() < hits.len() {
        if let Some(last) = out.len().checked_sub(1) {
            hits.select_nth_unstable_by(last, nearer);
        }
        hits.truncate(out.len());
    }
    hits.sort_unstable_by(nearer);
    out.fill(Hit::NONE);
    out[..hits.len()].copy_from_slice(hits);
}
