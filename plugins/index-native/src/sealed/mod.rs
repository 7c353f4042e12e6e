//! Rows that do not change any more, as codes and originals, in memory or mapped from a file.
mod ids;
mod lists;
mod search;

pub(crate) use search::{Request, doubtful};

use crate::{
    build::Plan,
    container::{Container, Part},
    graph::{Outline, Scratch},
    int8::{self, Quantizer},
    options::Options,
    rabitq::Kernel,
    rotation::Rotation,
};
use ids::Ranks;
use magray_plugin_api::{Error, ErrorCode, IndexSpec, Result};
use std::{
    path::Path,
    sync::{Mutex, OnceLock},
};

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
    /// Made when rows that a filter lets through are first looked for.
    ranks: OnceLock<Option<Ranks>>,
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
        let rotation = Rotation::new(shape.width(spec.dim), shape.seed);
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
            ranks: OnceLock::new(),
        })
    }

    pub(crate) fn container(&self) -> &Container {
        &self.container
    }

    pub(crate) fn container_mut(&mut self) -> &mut Container {
        &mut self.container
    }

    /// Bytes of its own, and of what is mapped from its file.
    pub(crate) fn memory(&self) -> (usize, usize) {
        let (owned, mapped) = self.container.memory();
        let ranks = self.ranks.get().and_then(Option::as_ref).map_or(0, Ranks::bytes);
        (owned + ranks, mapped)
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

    /// The places of those of `wanted` that are there. A place has a number of 32 bits: a file with more is refused.
    pub(crate) fn find_all(&self, wanted: impl Iterator<Item = u64>) -> Vec<u32> {
        let (ids, order): (_, &[u32]) = (self.ids(), self.container.part(Part::Order));
        let is_flat = self.lists() == 0;
        let ranks = self.ranks.get_or_init(|| match is_flat {
            true => Ranks::new(ids[..self.rows()].iter().copied()),
            // What a damaged order says does not ascend.
            false => {
                Ranks::new(order.iter().map(|&place| ids.get(place as usize).copied().unwrap_or(u64::MAX)))
            }
        });
        let find = |id| match ranks {
            Some(ranks) => ranks.rank(id).map(|rank| if is_flat { rank } else { order[rank] as usize }),
            None => self.find(id),
        };
        let mut places = Vec::new();
        wanted.for_each(|id| places.extend(find(id).map(|place| place as u32)));
        places
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
        Plan::new(options, shape.rows, self.spec.dim) == Plan { bits: shape.bits, lists: shape.lists }
            && options.seed == shape.seed
    }

    /// Bits a dimension of the codes that a search scans; 0 where it walks a graph.
    pub(crate) fn bits(&self) -> usize {
        self.container.shape().bits
    }
}
