//! The one place that calls `hnsw_rs`.
use crate::{
    distance::{RowDistance, query_point},
    options::Parameters,
};
use hnsw_rs::{
    api::AnnT,
    hnsw::{FilterT, Hnsw},
    hnswio::HnswIo,
};
use magray_plugin_api::{Error, ErrorCode, Host, Result};
use rayon::prelude::*;
use self_cell::self_cell;
use std::{
    fs::{File, OpenOptions},
    io::{Read, Seek, SeekFrom, Write},
    mem::ManuallyDrop,
    ops::Range,
    path::Path,
};

/// The files that [`Graph::dump`] writes; `hnsw_rs` makes the names of [`BASENAME`].
pub(crate) const FILES: [&str; 2] = ["graph.hnsw.graph", "graph.hnsw.data"];
const BASENAME: &str = "graph";

/// Points that are inserted one after the other before threads may help. Points that race for an
/// empty graph see no other point, get no link, and are never found.
const SERIAL_START: usize = 1000;

type Points<'a> = Hnsw<'a, u32, RowDistance>;

self_cell!(
    /// A graph and what its lifetime says it borrows: the loader that read it. Only a loader that
    /// maps vectors lends anything, and this one never does, but its signature cannot know; it is
    /// a path and a counter, so holding it costs nothing.
    struct LoadedPoints {
        owner: HnswIo,
        #[not_covariant]
        dependent: Points,
    }
);

/// A graph over the rows that its [`RowDistance`] knows, each under its row number.
///
/// Threads: any number of searches beside one insertion.
pub(crate) struct Graph {
    points: ManuallyDrop<LoadedPoints>,
    host: &'static dyn Host,
}

impl Graph {
    pub(crate) fn new(parameters: &Parameters, distance: RowDistance, host: &'static dyn Host) -> Self {
        let points = LoadedPoints::new(HnswIo::default(), |_| {
            Hnsw::new(
                parameters.max_connections,
                parameters.max_elements,
                parameters.max_layers,
                parameters.ef_construction,
                distance,
            )
        });
        Self { points: ManuallyDrop::new(points), host }
    }

    fn with<R>(&self, call: impl FnOnce(&Points<'_>) -> R) -> R {
        self.points.with_dependent(|_, points| call(points))
    }

    pub(crate) fn len(&self) -> usize {
        self.with(|points| points.get_nb_point())
    }

    /// Inserts rows that the distance knows already, on the threads of `pool` where there is one.
    pub(crate) fn insert(&self, rows: Range<u32>, pool: Option<&rayon::ThreadPool>) {
        self.with(|points| {
            let insert = |row: u32| points.insert((&[row], row as usize));
            match pool.filter(|_| points.get_nb_point() >= SERIAL_START) {
                Some(pool) => pool.install(|| rows.into_par_iter().for_each(insert)),
                None => rows.for_each(insert),
            }
        });
    }

    /// At most `k` rows near `query` that pass `filter`, with their distances, nearest first.
    pub(crate) fn search(
        &self,
        query: &[f32],
        k: usize,
        ef: usize,
        filter: Option<&dyn Fn(u32) -> bool>,
    ) -> Vec<(u32, f32)> {
        self.with(|points| {
            // It reserves room for `ef` points at once; and where a filter refuses the entry
            // point, a search of breadth 1 takes from an empty heap and panics.
            let ef = ef.min(points.get_nb_point()).max(2);
            let filter = filter.map(|passes| move |row: &usize| passes(*row as u32));
            let filter = filter.as_ref().map(|filter| filter as &dyn FilterT);
            let found = points.search_filter(&query_point(query), k, ef, filter);
            found.iter().map(|point| (point.d_id as u32, point.distance)).collect()
        })
    }

    /// Writes [`FILES`] under `dir`. The graph must not be empty.
    ///
    /// # Errors
    /// `IO`.
    pub(crate) fn dump(&self, dir: &Path) -> Result<()> {
        for name in FILES {
            // Where it cannot make a file it prints to standard output and panics.
            File::create(dir.join(name)).map_err(|error| io_error(&dir.join(name), &error))?;
        }
        self.with(|points| {
            points.file_dump(dir, BASENAME).map_err(|error| {
                Error::new(ErrorCode::IO, format!("cannot write the graph to {}: {error:#}", dir.display()))
            })?;
            let path = dir.join(FILES[0]);
            let scale = points.get_point_indexation().get_level_scale();
            correct_level_scale(&path, scale).map_err(|error| io_error(&path, &error))
        })
    }

    /// Reads what [`Graph::dump`] wrote. The files must be as it left them: on others the loader
    /// panics, ends the process or reads beyond its buffer.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where the loader refuses, which it does for files of another version of this
    /// plugin.
    pub(crate) fn load(dir: &Path, distance: RowDistance, host: &'static dyn Host) -> Result<Self> {
        let loader = HnswIo::new(dir, BASENAME);
        let loaded = LoadedPoints::try_new(loader, |loader| loader.load_hnsw_with_dist(distance));
        let mut points = loaded.map_err(|error| {
            Error::new(
                ErrorCode::CORRUPT_DATA,
                format!("cannot load the graph in {}: {error:#}", dir.display()),
            )
        })?;
        // The loader turns this on; a graph should grow as it began.
        points.with_dependent_mut(|_, points| points.set_extend_candidates(false));
        Ok(Self { points: ManuallyDrop::new(points), host })
    }

    /// Points by the highest layer that they are in, lowest layer first.
    pub(crate) fn layers(&self) -> Vec<usize> {
        self.with(|points| {
            let layers = 0..=usize::from(points.get_max_level_observed());
            layers.map(|layer| points.get_point_indexation().get_layer_nb_point(layer)).collect()
        })
    }

    /// Links of a point in the lowest layer, the mean of the thousand oldest.
    pub(crate) fn mean_connections(&self) -> f64 {
        self.with(|points| {
            let mut sampled = 0usize;
            let mut links = 0;
            for point in points.get_point_indexation().get_layer_iterator(0).take(1000) {
                sampled += 1;
                links += point.get_neighborhood_id()[0].len();
            }
            links as f64 / sampled.max(1) as f64
        })
    }

    /// `max_connections` and `ef_construction` of this graph, which a file brings along.
    pub(crate) fn build_parameters(&self) -> (usize, usize) {
        self.with(|points| (usize::from(points.get_max_nb_connection()), points.get_ef_construction()))
    }

    /// Bytes on the heap, estimated: `hnsw_rs` makes four allocations a point and one a link. Rather
    /// too many, for the oldest points have the most links.
    pub(crate) fn bytes(&self) -> usize {
        const POINT: usize = 580;
        const LINK: f64 = 60.0;
        (self.len() as f64 * (POINT as f64 + self.mean_connections() * LINK)) as usize
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // Dropping a graph works in parallel too, on the global pool unless inside another; and a
        // global pool would never end.
        let mut drop_points = || {
            // SAFETY: this runs once, for `install` calls its closure once; `self` is being dropped
            // and nothing uses the field after.
            unsafe { ManuallyDrop::drop(&mut self.points) }
        };
        match thread_pool(self.host) {
            Ok(pool) => pool.install(drop_points),
            Err(_) => drop_points(),
        }
    }
}

/// As many threads as the host grants now.
///
/// # Errors
/// `UNAVAILABLE` where the system gives no thread.
pub(crate) fn thread_pool(host: &dyn Host) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(host.threads())
        .thread_name(|at| format!("hnsw-{at}"))
        .build()
        .map_err(|error| Error::from_source(ErrorCode::UNAVAILABLE, &error))
}

/// Corrects the dump: it holds the scale of the level distribution, and the loader takes it for a
/// factor on that scale. Left so, a graph that was loaded would get ever fewer upper layers.
fn correct_level_scale(path: &Path, written: f64) -> std::io::Result<()> {
    // After a magic number, the mode of the dump and the number of connections.
    const AT: u64 = 4 + 1 + 1;
    let mut file = OpenOptions::new().read(true).write(true).open(path)?;
    let mut bytes = [0; size_of::<f64>()];
    file.seek(SeekFrom::Start(AT))?;
    file.read_exact(&mut bytes)?;
    if f64::from_ne_bytes(bytes) != written {
        return Err(std::io::Error::other("hnsw_rs wrote a header that this plugin does not know"));
    }
    file.seek(SeekFrom::Start(AT))?;
    file.write_all(&1f64.to_ne_bytes())
}

pub(crate) fn io_error(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::IO, format!("{}: {error}", path.display()))
}
