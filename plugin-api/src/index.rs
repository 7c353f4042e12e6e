use crate::{CallContext, Error, ErrorCode, Health, Host, MemoryUse, Result};
use abi_stable::StableAbi;
use serde::de::DeserializeOwned;
use std::{marker::PhantomData, path::Path};

/// How near two vectors are. A score is a similarity under every metric: greater is nearer.
#[repr(u8)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// `dot(a, b) / (|a| |b|)`, in -1..=1. The index normalises; zero vectors are refused.
    Cosine = 0,
    /// `dot(a, b)`.
    Dot = 1,
    /// `-|a - b|²`, at most 0.
    L2 = 2,
}

/// One search result.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The id that the vector was stored under.
    pub id: u64,
    /// Similarity by the index's [`Metric`]; greater is nearer.
    pub score: f32,
    _reserved: u32,
}

impl Hit {
    /// Fills the tail of a row where fewer than `k` vectors match.
    pub const NONE: Self = Self::new(u64::MAX, f32::NEG_INFINITY);

    /// A hit.
    pub const fn new(id: u64, score: f32) -> Self {
        Self { id, score, _reserved: 0 }
    }

    /// Whether this is the filler and not a result.
    pub fn is_none(&self) -> bool {
        self.score == f32::NEG_INFINITY
    }
}

/// The ids that a search may return: a bitmap, or a sorted list where ids are sparse.
///
/// Borrowed from the host, so it crosses the boundary without a copy; valid until the call returns.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug)]
pub struct IdFilter<'a> {
    /// `words` is a bitmap (1) or a sorted list of ids (0).
    is_bitmap: u8,
    /// The id of bit 0 of the bitmap.
    first: u64,
    count: u64,
    words: *const u64,
    len: usize,
    borrowed: PhantomData<&'a u64>,
}

// SAFETY: it is a shared borrow of plain integers.
unsafe impl Send for IdFilter<'_> {}
// SAFETY: as above.
unsafe impl Sync for IdFilter<'_> {}

impl<'a> IdFilter<'a> {
    /// The ids whose bit is set: bit `i % 64` of `words[i / 64]` stands for id `first + i`.
    pub fn bitmap(first: u64, words: &'a [u64]) -> Self {
        let count = words.iter().map(|word| u64::from(word.count_ones())).sum();
        Self::new(1, first, count, words)
    }

    /// The ids of a list that is sorted and without duplicates.
    pub fn sorted(ids: &'a [u64]) -> Self {
        debug_assert!(ids.is_sorted_by(|a, b| a < b));
        Self::new(0, 0, ids.len() as u64, ids)
    }

    fn new(is_bitmap: u8, first: u64, count: u64, words: &'a [u64]) -> Self {
        Self { is_bitmap, first, count, words: words.as_ptr(), len: words.len(), borrowed: PhantomData }
    }

    fn words(&self) -> &'a [u64] {
        // SAFETY: `new` took pointer and length from a slice that lives for 'a.
        unsafe { std::slice::from_raw_parts(self.words, self.len) }
    }

    /// How many ids pass. Few of many: score them one by one with [`IdFilter::iter`].
    pub fn count(&self) -> u64 {
        self.count
    }

    /// Whether `id` passes.
    #[inline]
    pub fn contains(&self, id: u64) -> bool {
        if self.is_bitmap == 0 {
            return self.words().binary_search(&id).is_ok();
        }
        let Some(bit) = id.checked_sub(self.first) else { return false };
        let word = usize::try_from(bit / 64).ok().and_then(|at| self.words().get(at));
        word.is_some_and(|word| word >> (bit % 64) & 1 == 1)
    }

    /// The ids that pass, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u64> + 'a {
        let (words, first, is_bitmap) = (self.words(), self.first, self.is_bitmap != 0);
        let bits = words.iter().enumerate().take(if is_bitmap { words.len() } else { 0 });
        let list = if is_bitmap { &[] } else { words };
        bits.flat_map(move |(at, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = u64::from(rest.trailing_zeros());
                rest &= rest.wrapping_sub(1);
                (bit < 64).then(|| first + at as u64 * 64 + bit)
            })
        })
        .chain(list.iter().copied())
    }
}

/// How hard to search. Zero means: what the index's options say.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SearchParams {
    /// How broad a search is: the candidates of a graph (ef_search). An index of another kind that has tuned
    /// itself takes it as a percentage of that; one that compares with everything ignores it.
    pub ef: u32,
    /// How many candidates to score again with the original vectors.
    pub rescore: u32,
    reserved: [u64; 3],
}

impl SearchParams {
    /// Parameters with this breadth.
    pub fn with_ef(ef: u32) -> Self {
        Self { ef, ..Self::default() }
    }
}

/// What an index can do.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Its results are those of comparing with every vector.
    pub exact: bool,
    /// [`VectorIndex::upsert`] and [`VectorIndex::remove`] may run from several threads at once.
    pub concurrent_write: bool,
    /// It keeps its recall under a selective filter.
    pub filtered: bool,
    /// [`CreateVectorIndex::open`] maps the files and does not read them whole.
    pub mapped: bool,
}

/// What an index holds now.
#[repr(C)]
#[derive(StableAbi, Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct IndexStats {
    /// Vectors that a search can return.
    pub live: u64,
    /// Vectors removed or replaced that still take room.
    pub dead: u64,
    /// Bytes on disk that [`VectorIndex::save`] would write, where known; else 0.
    pub file_bytes: u64,
}

/// Width and metric of an index.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct IndexSpec {
    /// Width of every vector, at least 1.
    pub dim: usize,
    /// How near two vectors are.
    pub metric: Metric,
}

/// Holds vectors by id and finds the nearest ones.
///
/// Threads: any number of searches at once, and beside them one writer (`upsert`, `remove`,
/// `tune`); several writers where [`Capabilities::concurrent_write`] says so. `save` may run
/// beside searches, never beside a writer.
pub trait VectorIndex: Send + Sync + 'static {
    /// Width and metric.
    fn spec(&self) -> IndexSpec;

    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// What it holds.
    fn stats(&self) -> IndexStats;

    /// Stores `vectors`, `[ids.len(), dim]` row-major, under `ids`. An id that is already there is
    /// replaced; of an id that `ids` names twice the last row counts. Any `u64` but `u64::MAX` is
    /// an id.
    ///
    /// # Errors
    /// `INVALID_INPUT`, and nothing is changed, where the lengths do not fit, a number is not
    /// finite, an id is `u64::MAX`, or a vector is zero under [`Metric::Cosine`]. After `CANCELLED`
    /// or `DEADLINE` some of the rows may be stored.
    fn upsert(&self, cx: &dyn CallContext, ids: &[u64], vectors: &[f32]) -> Result<()>;

    /// Removes `ids` at once: no later search returns them. Returns how many were there; unknown
    /// and repeated ids do not count.
    ///
    /// # Errors
    /// As [`VectorIndex::upsert`].
    fn remove(&self, cx: &dyn CallContext, ids: &[u64]) -> Result<usize>;

    /// For each row of `queries`, `[n, dim]` row-major, writes `k` hits into its row of `out`,
    /// `[n, k]`, best first, no id twice, [`Hit::NONE`] where fewer match. Only ids that `filter`
    /// lets through are returned.
    ///
    /// # Errors
    /// `INVALID_INPUT` where the lengths do not fit, a number is not finite, or a query is zero
    /// under [`Metric::Cosine`].
    fn search(
        &self,
        cx: &dyn CallContext,
        queries: &[f32],
        k: usize,
        params: SearchParams,
        filter: Option<IdFilter<'_>>,
        out: &mut [Hit],
    ) -> Result<()>;

    /// Writes everything into files in `dir`, which exists and is empty; subfolders are not taken.
    /// The host adds checksums and moves the folder into place, so a crash in the middle needs no
    /// care here.
    ///
    /// # Errors
    /// `IO`.
    fn save(&self, cx: &dyn CallContext, dir: &Path) -> Result<()>;

    /// Does now what the first search would otherwise wait for. Since 1.1: an older host never
    /// calls it.
    ///
    /// # Errors
    /// As [`VectorIndex::search`].
    fn warm_up(&self, _cx: &dyn CallContext) -> Result<()> {
        Ok(())
    }

    /// How well it is; cheap, for the host may ask often.
    fn health(&self) -> Health {
        Health::ok()
    }

    /// Memory that it holds now.
    fn memory_use(&self) -> MemoryUse {
        MemoryUse::default()
    }

    /// Changes a parameter while it runs, for sweeps without a rebuild. Names are those of the
    /// options.
    ///
    /// # Errors
    /// `UNSUPPORTED` for a name that it does not know or cannot change, `INVALID_CONFIG` for a bad
    /// value.
    fn tune(&self, name: &str, _value: &str) -> Result<()> {
        Err(Error::new(ErrorCode::UNSUPPORTED, format!("'{name}' cannot be changed while it runs")))
    }

    /// Anything else that is worth showing, as a JSON object.
    fn describe(&self) -> String {
        "{}".to_owned()
    }
}

/// How the host makes a [`VectorIndex`] from its options, empty or from files.
pub trait CreateVectorIndex: VectorIndex + Sized {
    /// The options in the user's TOML. Use `#[serde(deny_unknown_fields)]`, so that a mistyped key
    /// is an error.
    type Options: DeserializeOwned;

    /// JSON Schema of the options, for `magray plugin info`.
    const OPTIONS_SCHEMA: &'static str = r#"{"type":"object"}"#;

    /// Makes an empty index.
    ///
    /// # Errors
    /// `INVALID_CONFIG` for options that cannot be, `UNSUPPORTED` for a metric or width that it
    /// does not do.
    fn create(options: Self::Options, spec: IndexSpec, host: &'static dyn Host) -> Result<Self>;

    /// Opens what [`VectorIndex::save`] wrote to `dir`, by the same version of the plugin with the
    /// same options: any other the host discards and builds anew. The host has verified that the
    /// files are as `save` left them; a damaged one must still be an error and never undefined
    /// behaviour. `dir` is read only; it may be deleted while the index is open.
    ///
    /// # Errors
    /// `CORRUPT_DATA` where the files are damaged, of another width or metric, or of a version
    /// that it cannot read: the host then builds the index anew.
    fn open(options: Self::Options, spec: IndexSpec, dir: &Path, host: &'static dyn Host) -> Result<Self>;
}

/// Checks that every implementation of [`VectorIndex`] owes its caller.
impl IndexSpec {
    /// The number of rows in `vectors`.
    ///
    /// # Errors
    /// `INVALID_INPUT` where the length is no multiple of the width, a number is not finite, or a
    /// vector is zero under [`Metric::Cosine`].
    pub fn check_rows(&self, vectors: &[f32]) -> Result<usize> {
        if !vectors.len().is_multiple_of(self.dim) {
            return Err(Error::invalid_input(format!(
                "{} numbers are no whole vectors of width {}",
                vectors.len(),
                self.dim
            )));
        }
        for (row, vector) in vectors.chunks_exact(self.dim).enumerate() {
            // A sum of squares is finite exactly when every number is, but for overflow; only then
            // is a second look needed.
            let norm = sum_of_squares(vector);
            if !norm.is_finite() && vector.iter().any(|v| !v.is_finite()) {
                return Err(Error::invalid_input(format!("vector {row} has a number that is not finite")));
            }
            if norm == 0.0 && self.metric == Metric::Cosine && vector.iter().all(|&v| v == 0.0) {
                return Err(Error::invalid_input(format!("vector {row} is zero and has no direction")));
            }
        }
        Ok(vectors.len() / self.dim)
    }

    /// As [`IndexSpec::check_rows`], and that there is one row an id and no id is `u64::MAX`.
    ///
    /// # Errors
    /// `INVALID_INPUT`.
    pub fn check_upsert(&self, ids: &[u64], vectors: &[f32]) -> Result<()> {
        let rows = self.check_rows(vectors)?;
        if rows != ids.len() {
            return Err(Error::invalid_input(format!("{rows} vectors for {} ids", ids.len())));
        }
        if ids.contains(&u64::MAX) {
            return Err(Error::invalid_input("the id u64::MAX is reserved"));
        }
        Ok(())
    }

    /// As [`IndexSpec::check_rows`], and that `out` has `k` places a query.
    ///
    /// # Errors
    /// `INVALID_INPUT`.
    pub fn check_search(&self, queries: &[f32], k: usize, out: &[Hit]) -> Result<usize> {
        let rows = self.check_rows(queries)?;
        if rows.checked_mul(k) != Some(out.len()) {
            return Err(Error::invalid_input(format!("{} places for {rows} x {k} hits", out.len())));
        }
        Ok(rows)
    }

    /// `INVALID_CONFIG` where the width is 0.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self) -> Result<()> {
        if self.dim == 0 {
            return Err(Error::new(ErrorCode::INVALID_CONFIG, "the width of an index is at least 1"));
        }
        Ok(())
    }
}

/// In as many independent sums as registers hold: one sum would wait for each addition.
fn sum_of_squares(vector: &[f32]) -> f32 {
    let (whole, rest) = vector.as_chunks::<32>();
    let mut sums = [0.0; 32];
    for numbers in whole {
        sums.iter_mut().zip(numbers).for_each(|(sum, v)| *sum += v * v);
    }
    sums.iter().sum::<f32>() + rest.iter().map(|v| v * v).sum::<f32>()
}
