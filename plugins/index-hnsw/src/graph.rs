//! The one place that calls `hnsw_rs`, which builds graphs here and does no more: a graph is searched
//! as [`Links`], and saved as those too.
use crate::{
    distance::RowDistance,
    links::{Links, Neighbours},
    options::Parameters,
};
use hnsw_rs::{hnsw::Hnsw, hnswio::HnswIo};
use magray_plugin_api::{Error, ErrorCode, Host, Result};
use rayon::prelude::*;
use self_cell::self_cell;
use std::{
    any::type_name,
    fs::File,
    io::{self, BufWriter, Write},
    mem::ManuallyDrop,
    ops::Range,
    path::Path,
};

/// Points that are inserted one after the other before threads may help. Points that race for an
/// empty graph see no other point, get no link, and are never found.
const SERIAL_START: usize = 1000;

/// Layers of a graph of `hnsw_rs`; it can be told to use fewer, and then cannot be loaded.
pub(crate) const LAYERS: usize = 16;

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
/// Threads: one at a time; searches go by [`crate::links`].
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
                LAYERS,
                parameters.ef_construction,
                distance,
            )
        });
        Self { points: ManuallyDrop::new(points), host }
    }

    fn with<R>(&self, call: impl FnOnce(&Points<'_>) -> R) -> R {
        self.points.with_dependent(|_, points| call(points))
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

    /// The links of every point, as they are now.
    pub(crate) fn links(&self) -> Links {
        self.with(|points| {
            let points = points.get_point_indexation();
            let top = usize::from(points.get_max_level_observed());
            // The first point of the highest layer is where the graph is entered.
            let Some(entry) = points.get_layer_iterator(top).next() else { return Links::empty() };
            let mut levels: Vec<_> = (0..=top).map(|_| Vec::new()).collect();
            for layer in 0..=top {
                for point in points.get_layer_iterator(layer) {
                    let row = point.get_origin_id() as u32;
                    let neighbours = point.get_neighborhood_id();
                    for (level, neighbours) in neighbours.into_iter().take(layer + 1).enumerate() {
                        // One that is in lower layers only would be a dead end.
                        let reached = neighbours.iter().filter(|other| usize::from(other.p_id.0) >= level);
                        levels[level].push((row, reached.map(|other| other.d_id as u32).collect()));
                    }
                }
            }
            Links::new(Neighbours { entry: entry.get_origin_id() as u32, levels })
        })
    }

    /// A graph that goes on where `links` were taken.
    ///
    /// `hnsw_rs` lets links be read, but offers no way to put them back other than its loader. That
    /// loader trusts its files: it ends the process, panics, or reads beyond a buffer where they are
    /// damaged. So it only ever sees files that were written for it a moment ago.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where `links` are damaged, `IO` where those files cannot be written, `INTERNAL`
    /// where the loader refuses them.
    pub(crate) fn from_links(
        links: &Links,
        parameters: &Parameters,
        distance: RowDistance,
        host: &'static dyn Host,
    ) -> Result<Self> {
        if links.entry() as usize >= links.len() {
            return Err(Error::new(ErrorCode::CORRUPT_DATA, "the links name no row to enter by"));
        }
        let folder = host.data_dir()?;
        let dir = tempfile::Builder::new().prefix("growing-").tempdir_in(&folder);
        let dir = dir.map_err(|error| io_error(&folder, &error))?;
        let dump = Dump::new(links.neighbours(), parameters, &distance);
        dump.write(dir.path()).map_err(|error| io_error(dir.path(), &error))?;
        let loader = HnswIo::new(dir.path(), BASENAME);
        let loaded = LoadedPoints::try_new(loader, |loader| loader.load_hnsw_with_dist(distance));
        let mut points = loaded.map_err(|error| {
            Error::new(ErrorCode::INTERNAL, format!("hnsw_rs does not take its links back: {error:#}"))
        })?;
        // The loader turns this on; a graph should grow as it began.
        points.with_dependent_mut(|_, points| points.set_extend_candidates(false));
        Ok(Self { points: ManuallyDrop::new(points), host })
    }

    /// Bytes on the heap of a graph with `links`, estimated: `hnsw_rs` makes four allocations a
    /// point and one a link.
    pub(crate) fn bytes(links: &Links) -> usize {
        const POINT: usize = 580;
        const LINK: f64 = 60.0;
        (links.len() as f64 * (POINT as f64 + links.mean_connections() * LINK)) as usize
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

const BASENAME: &str = "graph";

/// The files that the loader of `hnsw_rs` 0.3.5 reads (its `hnswio.rs`, "format 4"), of a graph whose
/// points are row numbers.
struct Dump<'a> {
    links: Neighbours,
    parameters: &'a Parameters,
    distance: &'a RowDistance,
    /// The highest level of each row, and its place among those of that level.
    places: Vec<(u8, i32)>,
}

impl<'a> Dump<'a> {
    const HEADER: u32 = 0x002a_6779;
    const LAYER: u32 = 0x000a_676f;
    const POINT: u32 = 0x000a_678f;
    const DATA: u32 = 0xa67f_0000;

    fn new(links: Neighbours, parameters: &'a Parameters, distance: &'a RowDistance) -> Self {
        let mut places = vec![(0, 0); links.levels.first().map_or(0, Vec::len)];
        let mut taken = [0; LAYERS];
        for (row, place) in places.iter_mut().enumerate() {
            let is_in = |level: &Vec<(u32, _)>| level.binary_search_by_key(&(row as u32), |&(row, _)| row);
            let top = links.levels.iter().skip(1).take_while(|level| is_in(level).is_ok()).count();
            *place = (top as u8, taken[top]);
            taken[top] += 1;
        }
        Self { links, parameters, distance, places }
    }

    fn write(&self, dir: &Path) -> io::Result<()> {
        let create = |part: &str| -> io::Result<BufWriter<File>> {
            let file = File::create_new(dir.join(format!("{BASENAME}.hnsw.{part}")))?;
            Ok(BufWriter::with_capacity(1 << 20, file))
        };
        let (mut graph, mut data) = (create("graph")?, create("data")?);
        graph.write_all(&Self::HEADER.to_ne_bytes())?;
        // With the places of points.
        graph.write_all(&[1, self.parameters.max_connections as u8])?;
        // A factor on the scale of the level distribution.
        graph.write_all(&1f64.to_ne_bytes())?;
        graph.write_all(&[LAYERS as u8])?;
        for number in [self.parameters.ef_construction, self.places.len(), 1] {
            graph.write_all(&number.to_ne_bytes())?;
        }
        for name in [type_name::<RowDistance>(), type_name::<u32>()] {
            graph.write_all(&name.len().to_ne_bytes())?;
            graph.write_all(name.as_bytes())?;
        }
        data.write_all(&Self::DATA.to_ne_bytes())?;
        data.write_all(&1usize.to_ne_bytes())?;

        graph.write_all(&[LAYERS as u8])?;
        for layer in 0..LAYERS {
            let rows = || (0..).zip(&self.places).filter(|(_, place)| usize::from(place.0) == layer);
            graph.write_all(&Self::LAYER.to_ne_bytes())?;
            graph.write_all(&rows().count().to_ne_bytes())?;
            for (row, _) in rows() {
                graph.write_all(&Self::POINT.to_ne_bytes())?;
                self.write_place(&mut graph, row)?;
                for level in 0..LAYERS {
                    self.write_neighbours(&mut graph, level, row)?;
                }
                data.write_all(&Self::DATA.to_ne_bytes())?;
                data.write_all(&u64::from(row).to_ne_bytes())?;
                data.write_all(&(size_of::<u32>() as u64).to_ne_bytes())?;
                data.write_all(&row.to_ne_bytes())?;
            }
        }
        self.write_place(&mut graph, self.links.entry)?;
        data.flush()?;
        graph.flush()
    }

    fn write_place(&self, graph: &mut impl Write, row: u32) -> io::Result<()> {
        let (layer, place) = self.places[row as usize];
        graph.write_all(&(row as usize).to_ne_bytes())?;
        graph.write_all(&[layer])?;
        graph.write_all(&place.to_ne_bytes())
    }

    fn write_neighbours(&self, graph: &mut impl Write, level: usize, row: u32) -> io::Result<()> {
        let level = self.links.levels.get(level).map_or(&[][..], Vec::as_slice);
        let point = level.binary_search_by_key(&row, |&(row, _)| row);
        let others = point.map_or(&[][..], |point| &level[point].1);
        graph.write_all(&others.len().to_ne_bytes())?;
        let rows = self.distance.rows();
        for &other in others {
            self.write_place(graph, other)?;
            graph.write_all(&self.distance.between(rows.get(row), rows.get(other)).to_ne_bytes())?;
        }
        Ok(())
    }
}

pub(crate) fn io_error(path: &Path, error: &std::io::Error) -> Error {
    Error::new(ErrorCode::IO, format!("{}: {error}", path.display()))
}
