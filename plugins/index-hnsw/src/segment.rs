use crate::{
    distance::{RowDistance, normalised},
    graph::Graph,
    ids::Ids,
    links::Links,
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
/// finds one candidate; a filter that lets one row in ten through makes that up to ten times as many.
/// Measured at width 384 with AVX-512: 3.2 us a candidate, 0.15 us a row.
const SCANNED_WHILE_WALKING: f64 = 20.0;

/// Rows that may wait to be laid out are at most one in so many of those that are. Laying all out
/// costs some microseconds a row, linking one a hundred times as much.
const LINKED_FOR_EACH_WAITING: usize = 16;

/// Rows that may wait in any case, where [`crate::Options::exact_below`] lets as many be scanned.
const MOST_WAITING_AT_FIRST: usize = 1024;

/// Ids on top of a graph.
///
/// The graph can forget nothing, so an id that is replaced gets another row, and a row that no id
/// holds is dead: a stepping stone of every search and never a result. Equal vectors share a row.
/// Were each a point of its own, more of them than a point has links would link to one another
/// only, and cut the graph in two.
///
/// Searches walk [`Links`], a copy of the graph as it was, and compare with each row that was added
/// since; [`Graph`] itself is there from the first row that is added on.
///
/// Threads: any number of searches beside one writer.
pub(crate) struct Segment {
    spec: IndexSpec,
    parameters: Parameters,
    host: &'static dyn Host,
    rows: Arc<Rows>,
    distance: RowDistance,
    ids: RwLock<Ids>,
    links: RwLock<Arc<Links>>,
    growing: Mutex<Option<Growing>>,
}

/// What only a writer needs.
struct Growing {
    graph: Graph,
    /// A row by the hash of its vector, to find its equals.
    equals: HashMap<u64, u32>,
}

/// How to search: [`crate::Options::ef_search`] and [`crate::Options::exact_below`].
#[derive(Clone, Copy)]
pub(crate) struct Breadth {
    pub(crate) ef: usize,
    pub(crate) exact_below: usize,
}

impl Segment {
    pub(crate) fn new(spec: IndexSpec, parameters: Parameters, host: &'static dyn Host) -> Self {
        Self::from_parts(spec, parameters, host, Rows::new(spec.dim), Links::empty(), Ids::default())
    }

    /// A segment of parts that were saved: as many rows as `links` links and `ids` knows.
    pub(crate) fn from_parts(
        spec: IndexSpec,
        parameters: Parameters,
        host: &'static dyn Host,
        rows: Rows,
        links: Links,
        ids: Ids,
    ) -> Self {
        let rows = Arc::new(rows);
        let distance = RowDistance::new(Arc::clone(&rows), spec.metric);
        let (ids, links) = (RwLock::new(ids), RwLock::new(Arc::new(links)));
        Self { spec, parameters, host, rows, distance, ids, links, growing: Mutex::default() }
    }

    pub(crate) fn rows(&self) -> &Rows {
        &self.rows
    }

    /// The links of every row. Waits for a writer.
    pub(crate) fn links(&self) -> Arc<Links> {
        if let Some(growing) = &*self.growing.lock() {
            self.lay_out(growing, 0);
        }
        Arc::clone(&self.links.read())
    }

    pub(crate) fn simd(&self) -> &'static str {
        self.distance.simd()
    }

    pub(crate) fn warm_up(&self) {
        self.links().warm_up();
        self.rows.warm_up();
    }

    /// An estimate. Waits for a writer.
    pub(crate) fn memory_use(&self) -> MemoryUse {
        let growing = self.growing.lock();
        let links = Arc::clone(&self.links.read());
        // A slot of a map that is between half and wholly full.
        let growing = growing.as_ref().map_or(0, |growing| Graph::bytes(&links) + growing.equals.len() * 24);
        let (linked, mapped_links) = links.memory();
        let (rows, mapped_rows) = self.rows.bytes();
        let resident = growing + linked + rows + self.ids.read().bytes();
        MemoryUse { resident: resident as u64, mapped: (mapped_links + mapped_rows) as u64, device: 0 }
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
    /// `UNSUPPORTED` where the graph can hold no more rows, `UNAVAILABLE` where there is no memory,
    /// and those of [`Graph::from_links`].
    pub(crate) fn insert(&self, batch: &[(u64, &[f32])], pool: Option<&rayon::ThreadPool>) -> Result<()> {
        let first = self.rows.len();
        if first + batch.len() > MOST_ROWS {
            return Err(Error::new(
                ErrorCode::UNSUPPORTED,
                format!("a graph of hnsw_rs holds {MOST_ROWS} vectors, the dead ones included"),
            ));
        }
        self.rows
            .reserve(batch.len())
            .map_err(|error| Error::new(ErrorCode::UNAVAILABLE, format!("no room for vectors: {error}")))?;
        let mut growing = self.growing.lock();
        let growing = match &mut *growing {
            Some(growing) => growing,
            none => none.insert(self.grow()?),
        };
        let entries: Vec<_> = batch
            .iter()
            .map(|&(id, vector)| (id, self.row_for(&self.stored(vector), &mut growing.equals)))
            .collect();
        growing.graph.insert(first as u32..self.rows.len() as u32, pool);

        let mut ids = self.ids.write();
        ids.grow(self.rows.len());
        for (id, row) in entries {
            ids.set(id, row);
        }
        drop(ids);
        let linked = self.links.read().len();
        let at_first = self.parameters.exact_below.min(MOST_WAITING_AT_FIRST);
        self.lay_out(growing, at_first.max(linked / LINKED_FOR_EACH_WAITING));
        Ok(())
    }

    /// What an index needs to grow on from where it was saved.
    fn grow(&self) -> Result<Growing> {
        let links = Arc::clone(&self.links.read());
        let graph = match links.len() {
            0 => Graph::new(&self.parameters, self.distance.clone(), self.host),
            _ => Graph::from_links(&links, &self.parameters, self.distance.clone(), self.host)?,
        };
        let equals = (0..self.rows.len() as u32).map(|row| (hash(self.rows.get(row)), row)).collect();
        Ok(Growing { graph, equals })
    }

    /// Lays the links out for search where more than `waiting` rows wait for that.
    fn lay_out(&self, growing: &Growing, waiting: usize) {
        if self.rows.len() - self.links.read().len() > waiting {
            let links = Arc::new(growing.graph.links());
            *self.links.write() = links;
        }
    }

    /// The row of an equal vector, or a new one.
    fn row_for(&self, vector: &[f32], equals: &mut HashMap<u64, u32>) -> u32 {
        let hash = hash(vector);
        if let Some(&row) = equals.get(&hash)
            && self.rows.get(row) == vector
        {
            return row;
        }
        let row = self.rows.push(vector) as u32;
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
            hits = self.walk(&ids, &query, ef, filter);
        }
        // A graph may fall apart; what it cannot reach is still owed.
        if hits.len() < wanted {
            hits = self.scan(&ids, &query, filter);
        }
        best_first(&mut hits, out);
    }

    /// Walks the graph, and compares with the rows that are not laid out.
    fn walk(&self, ids: &Ids, query: &[f32], ef: usize, filter: Option<IdFilter<'_>>) -> Vec<Hit> {
        // Laid out only after their ids were set, which nobody does now: no row of it is unknown.
        let links = Arc::clone(&self.links.read());
        let ef = ef.min(links.len());
        let row_passes = |row| ids.of(row).any(|id| passes(filter, id));
        let mut found = if filter.is_none() && ids.dead_rows() == 0 {
            links.search(&self.distance, query, ef, |_| true)
        } else {
            links.search(&self.distance, query, ef, row_passes)
        };
        for row in (links.len() as u32..ids.rows() as u32).filter(|&row| row_passes(row)) {
            found.push((row, self.distance.between(query, self.rows.get(row))));
        }
        let of_row = |(row, distance)| {
            let score = self.distance.score(distance);
            ids.of(row).filter(|&id| passes(filter, id)).map(move |id| Hit::new(id, score))
        };
        found.into_iter().flat_map(of_row).collect()
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
        (sampled + 1, passing + u32::from(ids.of(row).any(|id| filter.contains(id))))
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
