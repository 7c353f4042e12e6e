//! The vectors of an index: those of a mapped file, which never change, and behind them those that
//! were written since, in memory.

use crate::file::{self, Mapped, Writer};
use magray_plugin_api::{CallContext, Error, Hit, IndexSpec, IndexStats, MemoryUse, Metric, Result};
use std::{collections::HashMap, ops::Range, path::Path};

/// Rows are numbered from 0, the mapped ones first.
#[derive(Debug)]
pub(crate) struct Rows {
    pub(crate) spec: IndexSpec,
    mapped: Option<Mapped>,
    /// Bit `row % 64` of word `row / 64`: a mapped row that was removed or replaced since.
    dead: Vec<u64>,
    dead_count: usize,
    ids: Vec<u64>,
    /// Squared lengths; empty but under l2.
    norms: Vec<f32>,
    /// `[ids.len(), dim]` row-major; of length 1 under cosine.
    vectors: Vec<f32>,
    /// Where each of `ids` stands in them.
    places: HashMap<u64, usize>,
}

/// Some rows that lie one after the other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Block<'a> {
    /// `[n, dim]` row-major.
    pub(crate) vectors: &'a [f32],
    /// Squared lengths; empty but under l2.
    pub(crate) norms: &'a [f32],
}

impl Rows {
    pub(crate) fn new(spec: IndexSpec, mapped: Option<Mapped>) -> Self {
        let words = mapped.as_ref().map_or(0, |mapped| mapped.ids().len().div_ceil(64));
        Self {
            spec,
            mapped,
            dead: vec![0; words],
            dead_count: 0,
            ids: Vec::new(),
            norms: Vec::new(),
            vectors: Vec::new(),
            places: HashMap::new(),
        }
    }

    fn mapped_ids(&self) -> &[u64] {
        self.mapped.as_ref().map_or(&[], Mapped::ids)
    }

    /// Number of rows, dead ones too.
    pub(crate) fn len(&self) -> usize {
        self.mapped_ids().len() + self.ids.len()
    }

    pub(crate) fn live(&self) -> usize {
        self.len() - self.dead_count
    }

    /// The first row in memory.
    pub(crate) fn boundary(&self) -> usize {
        self.mapped_ids().len()
    }

    pub(crate) fn id(&self, row: usize) -> u64 {
        let mapped = self.mapped_ids();
        mapped.get(row).copied().unwrap_or_else(|| self.ids[row - mapped.len()])
    }

    pub(crate) fn is_live(&self, row: usize) -> bool {
        self.dead.get(row / 64).is_none_or(|word| word >> (row % 64) & 1 == 0)
    }

    /// The live row of `id`.
    pub(crate) fn find(&self, id: u64) -> Option<usize> {
        if let Some(place) = self.places.get(&id) {
            return Some(self.boundary() + place);
        }
        self.mapped_ids().binary_search(&id).ok().filter(|&row| self.is_live(row))
    }

    /// Rows that all lie before or all behind [`Rows::boundary`].
    pub(crate) fn block(&self, rows: Range<usize>) -> Block<'_> {
        let boundary = self.boundary();
        let (vectors, norms, rows) = match &self.mapped {
            Some(mapped) if rows.start < boundary => (mapped.vectors(), mapped.norms(), rows),
            _ => (&self.vectors[..], &self.norms[..], rows.start - boundary..rows.end - boundary),
        };
        let norms = if self.spec.metric == Metric::L2 { &norms[rows.clone()] } else { &[] };
        Block { vectors: &vectors[rows.start * self.spec.dim..rows.end * self.spec.dim], norms }
    }

    /// Stores one vector that [`check_lengths`] let through.
    pub(crate) fn upsert(&mut self, id: u64, vector: &[f32]) {
        let (vector, norm) = prepare(self.spec, vector);
        if let Some(&place) = self.places.get(&id) {
            self.vectors[place * self.spec.dim..][..self.spec.dim].copy_from_slice(&vector);
            if let Some(held) = self.norms.get_mut(place) {
                *held = norm;
            }
            return;
        }
        self.kill(id);
        self.places.insert(id, self.ids.len());
        self.ids.push(id);
        self.vectors.extend_from_slice(&vector);
        if self.spec.metric == Metric::L2 {
            self.norms.push(norm);
        }
    }

    /// Whether `id` was there.
    pub(crate) fn remove(&mut self, id: u64) -> bool {
        let Some(place) = self.places.remove(&id) else { return self.kill(id) };
        // The last row moves into the gap, so rows in memory are never dead.
        let (dim, last) = (self.spec.dim, self.ids.len() - 1);
        self.vectors.copy_within(last * dim.., place * dim);
        self.vectors.truncate(last * dim);
        if self.spec.metric == Metric::L2 {
            self.norms.swap_remove(place);
        }
        self.ids.swap_remove(place);
        if let Some(&moved) = self.ids.get(place) {
            self.places.insert(moved, place);
        }
        true
    }

    /// Marks the mapped row of `id` as dead; whether there was a live one.
    fn kill(&mut self, id: u64) -> bool {
        let Ok(row) = self.mapped_ids().binary_search(&id) else { return false };
        let was_live = self.is_live(row);
        self.dead[row / 64] |= 1 << (row % 64);
        self.dead_count += usize::from(was_live);
        was_live
    }

    /// The score by definition, for a hit whose score has the rounding of another formula.
    pub(crate) fn exact_l2(&self, query: &[f32], hit: Hit) -> Hit {
        let Some(row) = self.find(hit.id) else { return hit };
        let vector = self.block(row..row + 1).vectors;
        let square: f32 = query.iter().zip(vector).map(|(a, b)| (a - b) * (a - b)).sum();
        Hit::new(hit.id, -square)
    }

    /// Writes the live rows by ascending id.
    pub(crate) fn save(&self, cx: &dyn CallContext, dir: &Path) -> Result<()> {
        let mut rows: Vec<usize> = (0..self.len()).filter(|&row| self.is_live(row)).collect();
        rows.sort_by_key(|&row| self.id(row));
        let mut writer = Writer::create(self.spec, rows.len(), dir)?;
        writer.part()?;
        rows.iter().try_for_each(|&row| writer.write(&[self.id(row)]))?;
        writer.part()?;
        rows.iter().try_for_each(|&row| writer.write(self.block(row..row + 1).norms))?;
        writer.part()?;
        for (done, &row) in rows.iter().enumerate() {
            if done.is_multiple_of(1024) {
                cx.check()?;
                cx.progress(done as u64, rows.len() as u64);
            }
            writer.write(self.block(row..row + 1).vectors)?;
        }
        writer.finish()
    }

    pub(crate) fn stats(&self) -> IndexStats {
        let file_bytes = file::length(self.spec, self.live());
        IndexStats { live: self.live() as u64, dead: self.dead_count as u64, file_bytes }
    }

    pub(crate) fn memory_use(&self) -> MemoryUse {
        // A place of the table: key, value and a byte of its own.
        let table = self.places.capacity() * (size_of::<(u64, usize)>() + 1);
        let words = (self.dead.capacity() + self.ids.capacity()) * 8;
        let numbers = (self.norms.capacity() + self.vectors.capacity()) * 4;
        let mapped = self.mapped.as_ref().map_or(0, Mapped::bytes);
        MemoryUse { resident: (table + words + numbers) as u64, mapped, ..MemoryUse::default() }
    }
}

fn squared_length(vector: &[f32]) -> f64 {
    vector.iter().map(|&v| f64::from(v) * f64::from(v)).sum()
}

/// Refuses vectors so long that a dot product or a distance between two of them could overflow f32.
/// Under cosine there are none: they are normalised.
///
/// # Errors
/// `INVALID_INPUT`.
pub(crate) fn check_lengths(spec: IndexSpec, vectors: &[f32]) -> Result<()> {
    // (|a| + |b|)² is at most four times the greater square.
    const LIMIT: f64 = f32::MAX as f64 / 4.0;
    let too_long = |vector: &[f32]| spec.metric != Metric::Cosine && squared_length(vector) > LIMIT;
    match vectors.chunks_exact(spec.dim).position(too_long) {
        None => Ok(()),
        Some(row) => Err(Error::invalid_input(format!(
            "vector {row} is longer than {:.1e}, too long to compare in f32; scale the vectors down",
            LIMIT.sqrt()
        ))),
    }
}

/// A vector as it is stored and searched for, of length 1 under cosine, and its squared length.
pub(crate) fn prepare(spec: IndexSpec, vector: &[f32]) -> (Vec<f32>, f32) {
    let norm = squared_length(vector);
    if spec.metric != Metric::Cosine {
        return (vector.to_vec(), norm as f32);
    }
    let scale = 1.0 / norm.sqrt();
    (vector.iter().map(|&v| (f64::from(v) * scale) as f32).collect(), 1.0)
}
